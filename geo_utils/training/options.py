"""Groups of notebook 04's parameters."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from geo_utils.methods import known_method
from geo_utils.parameter_errors import nearest
from geo_utils.params import Backend, Role

REWARDS = ("key_point", "visibility", "fidelity", "length_budget", "no_instructions", "format",
           "negative_length")  # fmt: skip
DOTTED = "geo_utils.rewards."


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RewardOptions(_Options):
    """What is rewarded; the components are those of `geo_utils.rewards`.

    Attributes:
        funcs: Names of the components.
        weights: Their weights, 1 each if not given; a group is normalised after weighting.
        repeats: Sampled answers a completion.
        soft: Take the judge's strength of support instead of supported or not.
        figure: Which visibility, or the mean of the three.
        length_slack: Share of words that a rewrite may add before `length_budget` falls.
        deadline_s: Longest wait for the answers of a batch.
        most_lost: So many batches in a row without any score end the run.
        placebo: Score every completion with another query's rewrite; nothing can be learned.
        schedule: When rewards are worked out, and what runs beside what; see
            `training.overlapped_trainer`: `stock`, `fused`, `early`, or one step `ahead`.
    """

    funcs: Annotated[list[str], Field(min_length=1)] = ["key_point"]
    weights: list[float] | None = None
    repeats: Annotated[int, Field(ge=1)] = 1
    soft: bool = False
    figure: Literal["word", "position", "pawc", "mean"] = "pawc"
    length_slack: Annotated[float, Field(ge=0)] = 0.3
    deadline_s: Annotated[float, Field(gt=0)] = 120.0
    most_lost: Annotated[int, Field(ge=1)] = 5
    placebo: bool = False
    schedule: Literal["stock", "fused", "early", "ahead"] = "early"

    @field_validator("funcs")
    @classmethod
    def _known(cls, funcs: list[str]) -> list[str]:
        names = [name.removeprefix(DOTTED) for name in funcs]
        for name in names:
            if name not in REWARDS:
                raise ValueError(
                    f"unknown reward {name!r}{nearest(name, REWARDS)} Choose from "
                    f"{', '.join(REWARDS)}"
                )
        return names

    @model_validator(mode="after")
    def _one_weight_each(self) -> Self:
        if self.weights is not None and len(self.weights) != len(self.funcs):
            raise ValueError(
                f"weights={self.weights}: {len(self.funcs)} rewards need as many weights"
            )
        return self


class Prefilter(_Options):
    """Keep the prompts whose success over a few trial rewrites is neither low nor high."""

    trials: Annotated[int, Field(ge=2)] = 4
    low: Annotated[float, Field(ge=0, le=1)] = 0.2
    high: Annotated[float, Field(ge=0, le=1)] = 0.8


class DataOptions(_Options):
    """Which prompts the policy is trained and tested on.

    Attributes:
        held_out: Share of the queries that training never sees.
        key_points: Those of a page to train on.
        max_prompt_tokens: Longest prompt; the page is cut to it, never the instructions.
        prefilter: Keep prompts of middling success only.
        dataset_name: Folder where `python -m geo_utils.training.grpo prepare` writes the prompts.
    """

    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.3
    key_points: Literal["one", "all", "exclusive"] = "all"
    max_prompt_tokens: Annotated[int, Field(ge=32)] = 4096
    prefilter: Prefilter | None = None
    dataset_name: str | None = None


class FinalEvaluation(_Options):
    """How the policy is compared on held-out queries.

    Attributes:
        judge: Judge of the comparison, another than the training's; `offline_strict` wants the
            point's words in one sentence.
        judge_mode: As `judge_mode`.
        models: Model ids by role, where they differ from the run's.
        servers: Addresses by role, likewise.
        rewriter: What carries out the method's prompt for comparison.
        methods: Methods to compare with, `original` first.
        repeats: Sampled answers a page.
        key_points: Those of a held-out page.
    """

    judge: Literal["offline_strict", "offline", "gemini", "openai", "vllm", "transformers"]
    judge_mode: Literal["verdict", "soft"] = "verdict"
    models: dict[Role, str] = {}
    servers: dict[Role, list[str]] = {}
    rewriter: Backend = "offline"
    methods: list[str] = ["original", "key_point"]
    repeats: Annotated[int, Field(ge=1)] = 3
    key_points: Literal["one", "all", "exclusive"] = "all"

    @field_validator("methods")
    @classmethod
    def _known(cls, methods: list[str]) -> list[str]:
        return [known_method(name) for name in methods]


class SmallModel(_Options):
    """A Qwen3 of random weights, made on the spot with a tokenizer of the corpus's words."""

    hidden_size: Annotated[int, Field(ge=16)] = 64
    layers: Annotated[int, Field(ge=1)] = 2
    vocabulary: Annotated[int, Field(ge=300)] = 1024


class ColdStart(_Options):
    """Supervised fine-tuning before the reinforcement.

    Attributes:
        steps: Optimizer steps; 0 leaves it out.
        pairs: `edits`: random offline edits; `rewrites`: the best of `best_of` rewrites by the
            comparison's rewriter, from the cache of notebook 03 as far as that has them.
        best_of: Rewrites a pair is chosen from.
        batch_size: Pairs a step.
        learning_rate: Highest; a cosine follows.
        small_model: Train this small model in full instead of an adapter.
    """

    steps: Annotated[int, Field(ge=0)] = 0
    pairs: Literal["edits", "rewrites"] = "rewrites"
    best_of: Annotated[int, Field(ge=1)] = 4
    batch_size: Annotated[int, Field(ge=1)] = 8
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    small_model: SmallModel | None = None
