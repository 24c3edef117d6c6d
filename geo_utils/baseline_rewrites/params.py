"""Parameters of notebook 02: the methods, which analyses are made of them, what they may cost."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, Field, StrictBool, field_validator, model_validator

from geo_utils.models.base import EMBEDDER
from geo_utils.parameters import Options
from geo_utils.roles.methods import known_method
from geo_utils.roles.params import EvaluationParams, Model, ModelName, Role


class AnalysisOptions(Options):
    """The analyses of notebook 02; those that call a model are off unless asked for.

    Attributes:
        removed: Answer without the target page too: one engine and one judge call a repeat.
        no_sources: Answer from no source at all, which only a model can: as many.
        placebo: Methods whose rewrites are shuffled among the queries: as many for each, and for
            the original pages, shuffled likewise.
        margin: Difference in key-point probability up to which a placebo has lost its effect.
        original_support: Ask the judge whether the original page supports the key point: one call
            a key point. The funnel's third step and a part of the fidelity gate.
        collateral: Ask the judge for the page's other key points and the other sources' points:
            one call a sample with a model that judges by verdicts, one a point with one that
            gives log-probabilities.
        gate: Least fidelity of a rewrite that counts in the strict probability; None for what
            suits the judge, see `fidelity.least_fidelity`.
        funnel: Show how often the target is credited for the key point.
        frontier: Show lift against fidelity, length and instructions.
        retrieval: Show the page's rank among all pages of the corpus for its query.
        first: How many of them an engine would be given.
        embedder: The model of dense retrieval, `openai/ID` with its address under servers; each
            page, query and rewrite is one call. None ranks by BM25 alone.
    """

    removed: StrictBool = False
    no_sources: StrictBool = False
    placebo: list[str] = []
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.05
    original_support: StrictBool = False
    collateral: StrictBool = False
    gate: Annotated[float, Field(ge=0, le=1)] | None = None
    funnel: StrictBool = True
    frontier: StrictBool = True
    retrieval: StrictBool = True
    first: Annotated[int, Field(ge=1, strict=True)] = 5
    embedder: Model | None = None

    @field_validator("placebo")
    @classmethod
    def _distinct(cls, placebo: list[str]) -> list[str]:
        if repeated := sorted({name for name in placebo if placebo.count(name) > 1}):
            raise ValueError(f"{', '.join(repeated)} named more than once")
        return placebo

    def templates(self, judge_mode: str) -> dict[str, list[str]]:
        """Return the prompt templates that the analyses use beside the comparison's, by role."""
        return {
            "engine": ["engine_no_sources"] * self.no_sources,
            "judge": ["judge_all_points"] * (self.collateral and judge_mode != "soft"),
        }


class BaselineRewritesParams(EvaluationParams):
    """Parameters of notebook 02.

    Attributes:
        methods: Methods to compare, `original` among them; also the folder of a trained policy.
        analyses: What is asked of the comparison beyond the key-point probability.
    """

    notebook: ClassVar[str] = "02_baseline_rewrites"
    methods: list[Annotated[str, AfterValidator(known_method)]]
    analyses: Annotated[AnalysisOptions, Field(strict=False)]

    @property
    def roles(self) -> dict[Role, str]:
        """The model of each role."""
        found = super().roles
        if self.analyses.embedder is not None:
            found[EMBEDDER] = self.analyses.embedder
        return found

    @model_validator(mode="after")
    def _check_analyses(self) -> Self:
        """Refuse what cannot be analysed with the run's other parameters."""
        placebo, embedder = self.analyses.placebo, self.analyses.embedder
        if embedder is not None and ModelName.read(embedder).backend != "openai":
            raise ValueError(
                f"analyses.embedder={embedder!r}: vectors come from an OpenAI-compatible server; "
                "write openai/ID, with its address under servers"
            )
        if self.analyses.no_sources and self.engine == "offline":
            raise ValueError(
                "analyses.no_sources=True: engine='offline' quotes its sources and can say nothing "
                "without them; set it to false, or choose a model as engine"
            )
        known = [method for method in self.methods if method != "original"]
        for name in placebo:
            if name not in known:
                raise ValueError(
                    f"analyses.placebo={placebo!r}: {name!r} is no rewriting method of this run; "
                    f"choose from {', '.join(known)}"
                )
        if placebo and self.corpus.limit == 1:
            raise ValueError(
                f"analyses.placebo={placebo!r}: corpus.limit=1 leaves no other query to shuffle "
                "rewrites with; set it to 2 or more"
            )
        return self


PARAMS = BaselineRewritesParams
