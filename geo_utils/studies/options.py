"""Which studies notebook 03 runs beside its comparison, and how large; off unless named."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1, le=100_000, strict=True)]
Share = Annotated[float, Field(gt=0, lt=1)]
JudgeKind = Literal["lexical", "lexical strict", "verdict", "batch", "soft"]
MODEL_JUDGES: tuple[JudgeKind, ...] = ("verdict", "batch", "soft")
# As params.Backend, which names the same; this module stands below it.
RoleBackend = Literal["offline", "gemini", "openai", "vllm", "transformers"]


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HeadroomOptions(_Options):
    """k rewrites x m answers a key point.

    Attributes:
        rewrites: k, sampled rewrites of a page.
        answers: m, sampled answers a rewrite.
        fresh_answers: Answers that only the best rewrite gets, drawn after it was chosen.
        groups: Group sizes of GRPO to count.
        queries: How many queries, drawn from the seed; none for all.
    """

    rewrites: Annotated[int, Field(le=16, strict=True)] = 8
    answers: Annotated[int, Field(le=100, strict=True)] = 4
    fresh_answers: Count = 8
    groups: list[Annotated[int, Field(ge=2, le=1024, strict=True)]] = [4, 8, 16]
    queries: Count | None = None

    @model_validator(mode="after")
    def _enough(self) -> HeadroomOptions:
        for name, value, why in (
            ("rewrites", self.rewrites, "a best of them and a variance between them"),
            ("answers", self.answers, "the answer noise within a rewrite"),
        ):
            if value < 2:
                raise ValueError(f"{name}={value!r}: {why} need at least 2")
        if not self.groups:
            raise ValueError("groups=[]: name at least one group size, such as 8")
        return self


class AdoptionOptions(_Options):
    """From none to all sources rewritten, each for its own key point.

    Attributes:
        repeats: Sampled answers a number of adopters.
        queries: How many queries, drawn from the seed; none for all.
    """

    repeats: Count = 3
    queries: Count | None = None


class RoleOptions(_Options):
    """Another model for a role.

    Attributes:
        backend: What it is reached through.
        model: Its id, where the backend needs one.
        servers: As the notebook's `servers`.
    """

    backend: RoleBackend = "offline"
    model: str | None = None
    servers: list[str] = []

    @model_validator(mode="after")
    def _reachable(self) -> RoleOptions:
        if self.backend not in ("offline", "gemini") and self.model is None:
            raise ValueError(f"model=None: backend={self.backend!r} needs a model id")
        if self.backend == "openai" and not self.servers:
            raise ValueError("servers=[]: backend='openai' needs an address ending in /v1")
        return self


class EngineOptions(RoleOptions):
    """Another engine; the last three are settings of the offline one.

    Attributes:
        word_budget: Longest answer in words.
        emphasis: Factor on the assumed response to emphasis; 0 reads words only.
        noise: Scale of the draw, as `ExtractiveEngine.temperature`.
    """

    word_budget: Count = 300
    emphasis: Annotated[float, Field(ge=0, le=10)] = 1.0
    noise: Annotated[float, Field(ge=0, le=10)] = 0.10

    @model_validator(mode="after")
    def _offline_only(self) -> EngineOptions:
        settings = {"word_budget", "emphasis", "noise"} & self.model_fields_set
        if self.backend != "offline" and settings:
            raise ValueError(
                f"{', '.join(sorted(settings))}: only backend='offline' has such settings, "
                f"not {self.backend!r}"
            )
        return self


class TransferOptions(_Options):
    """Rewrite with one model, answer with another, judge with a third.

    Attributes:
        engines: Engines beside the run's own, by the name that the matrix shows.
        rewriters: Rewriters beside the run's own, likewise.
        judge: A judge in place of the run's own.
        methods: Rows of the matrix; empty for the method under study.
        repeats: Sampled answers a page.
        queries: How many queries, drawn from the seed; none for all.
    """

    engines: dict[str, EngineOptions] = {}
    rewriters: dict[str, RoleOptions] = {}
    judge: RoleOptions | None = None
    methods: list[str] = []
    repeats: Count = 3
    queries: Count | None = None

    @model_validator(mode="after")
    def _two_engines(self) -> TransferOptions:
        if not self.engines:
            raise ValueError(
                "engines={}: a transfer needs a second engine beside the run's own, such as "
                "engines={'words only': {'emphasis': 0}}"
            )
        return self


class JudgeCheckOptions(_Options):
    """Several judges on the same answers.

    Attributes:
        answers: How many answers, drawn from the seed; none for all.
        judges: Which; none for all that the run's judge can be.
        labels: A sheet of hand labels, as `agreement.label_sheet` writes it and a person fills it.
    """

    answers: Count | None = 200
    judges: list[JudgeKind] | None = None
    labels: str | None = None

    @model_validator(mode="after")
    def _two_judges(self) -> JudgeCheckOptions:
        if self.judges is not None and len(set(self.judges)) < 2 and self.labels is None:
            raise ValueError(
                f"judges={self.judges!r}: an agreement needs two judges, or labels of a person"
            )
        return self


class PowerOptions(_Options):
    """How many queries a lift needs.

    Attributes:
        lifts: Differences in key-point probability to be found.
        power: Chance of finding them.
        repeats: Numbers of answers a page to plan with.
        pilot: Folder of an earlier run, whose variance the plan before the run is made from.
    """

    lifts: list[Share] = [0.05, 0.1, 0.2]
    power: Share = 0.8
    repeats: list[Count] = [1, 3, 5, 10]
    pilot: str | None = None

    @model_validator(mode="after")
    def _something(self) -> PowerOptions:
        for name in ("lifts", "repeats"):
            if not getattr(self, name):
                raise ValueError(f"{name}=[]: name at least one")
        return self


class StudyOptions(_Options):
    """The studies; one that is not named, or is null, is off and calls nothing.

    Attributes:
        headroom: What training could gain.
        adoption: What happens when other pages do the same.
        transfer: Whether a lift holds under another engine.
        judges: Whether judges agree with each other, and with a person.
        power: How many queries a lift needs; calls nothing.
    """

    headroom: HeadroomOptions | None = None
    adoption: AdoptionOptions | None = None
    transfer: TransferOptions | None = None
    judges: JudgeCheckOptions | None = None
    power: PowerOptions | None = None
