"""Which studies notebook 03 runs beside its comparison, and how large; off unless named."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from geo_utils.parameters import Options
from geo_utils.roles.methods import MODEL_FREE_METHODS, check_methods, known_method
from geo_utils.roles.params import WITHOUT_LOGPROBS, EvaluationParams, Model, ModelName

Count = Annotated[int, Field(ge=1, le=100_000, strict=True)]
Method = Annotated[str, AfterValidator(known_method)]
Share = Annotated[float, Field(gt=0, lt=1)]
JudgeKind = Literal["lexical", "lexical strict", "entailment", "verdict", "batch", "soft"]


class HeadroomOptions(Options):
    """k rewrites x m answers a key point.

    Attributes:
        rewrites: k, sampled rewrites of a page.
        answers: m, sampled answers a rewrite.
        fresh_answers: Answers that only the best rewrite gets, drawn after it was chosen; 0 for
            none: the best by one half of the answers is then judged by the other half.
        groups: Group sizes of GRPO to count.
        queries: How many queries, drawn from the seed; none for all.
    """

    rewrites: Annotated[int, Field(le=16, strict=True)] = 8
    answers: Annotated[int, Field(le=100, strict=True)] = 4
    fresh_answers: Annotated[int, Field(ge=0, le=100_000, strict=True)] = 8
    groups: list[Annotated[int, Field(ge=2, le=1024, strict=True)]] = [4, 8, 16]
    queries: Count | None = None

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.rewrites < 2:
            need = "a best of them and a variance between them need at least 2"
            raise ValueError(f"rewrites={self.rewrites}: {need}")
        if self.answers < 2:
            need = "the answer noise within a rewrite needs at least 2"
            raise ValueError(f"answers={self.answers}: {need}")
        if not self.groups:
            raise ValueError("groups=[]: name at least one group size, such as 8")
        return self


class AdoptionOptions(Options):
    """From none to all sources rewritten, each for its own key point.

    Attributes:
        repeats: Sampled answers a number of adopters.
        queries: How many queries, drawn from the seed; none for all.
    """

    repeats: Count = 3
    queries: Count | None = None


class EngineOptions(Options):
    """Another engine, as one string or with settings of the offline one.

    Attributes:
        model: As the notebook's `engine`; its address stands under the notebook's `servers`.
        word_budget: Longest answer in words.
        emphasis: Factor on the assumed response to emphasis; 0 reads words only.
        noise: Scale of the draw, as `ExtractiveEngine.temperature`.
    """

    model: Model = "offline"
    word_budget: Count = 300
    emphasis: Annotated[float, Field(ge=0, le=10)] = 1.0
    noise: Annotated[float, Field(ge=0, le=10)] = 0.10

    @model_validator(mode="before")
    @classmethod
    def _one_string(cls, given: Any) -> Any:
        return {"model": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _offline_only(self) -> Self:
        settings = ", ".join(sorted(self.model_fields_set - {"model"}))
        if settings and self.model != "offline":
            only = "only the offline engine has such settings"
            raise ValueError(f"{settings}: {only}, not {self.model!r}")
        return self


class TransferOptions(Options):
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
    rewriters: dict[str, Model] = {}
    judge: Model | None = None
    methods: list[Method] = []
    repeats: Count = 3
    queries: Count | None = None

    @model_validator(mode="after")
    def _two_engines(self) -> Self:
        if not self.engines:
            raise ValueError(
                "engines={}: a transfer needs a second engine beside the run's own, such as "
                "engines={'words only': {'emphasis': 0}}"
            )
        return self


class JudgeCheckOptions(Options):
    """Several judges on the same answers.

    Attributes:
        answers: How many answers, drawn from the seed; none for all.
        judges: Which; none for all that the run's judge can be.
    """

    answers: Count | None = 200
    judges: list[JudgeKind] | None = None


class PowerOptions(Options):
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
    def _something(self) -> Self:
        for name in ("lifts", "repeats"):
            if not getattr(self, name):
                raise ValueError(f"{name}=[]: name at least one")
        return self


class StudyOptions(Options):
    """The studies; one that is not named, or is null, is off and calls nothing.

    Attributes:
        headroom: What training could gain.
        adoption: What happens when other pages do the same.
        transfer: Whether a lift holds under another engine.
        judges: Whether judges agree with each other, and with hand labels.
        power: How many queries a lift needs; calls nothing.
    """

    headroom: HeadroomOptions | None = None
    adoption: AdoptionOptions | None = None
    transfer: TransferOptions | None = None
    judges: JudgeCheckOptions | None = None
    power: PowerOptions | None = None

    def templates(self, judge: str) -> dict[str, list[str]]:
        """Return the prompt templates that the studies use beside the comparison's, by role.

        Args:
            judge: The judge's model.
        """
        extract = ["extract_key_points"] if self.adoption else []
        verdicts = ["judge_verdict", "judge_all_points"] if self.judges else []
        soft = ["judge_soft"] if self.judges and has_logprobs(judge) else []
        return {"engine": extract, "judge": extract + verdicts + soft, "rewriter": extract}


def has_logprobs(judge: str) -> bool:
    """Tell whether a judge's model gives log-probabilities."""
    return ModelName.read(judge).backend not in WITHOUT_LOGPROBS


class KeyPointPromptParams(EvaluationParams):
    """Parameters of notebook 03.

    Attributes:
        baseline_methods: Methods to compare with, `original` among them.
        method: The method made for the key point.
        studies: What is studied beside the comparison.
    """

    notebook: ClassVar[str] = "03_key_point_prompt"
    baseline_methods: list[Method]
    method: Method
    studies: Annotated[StudyOptions, Field(strict=False)]

    @property
    def methods(self) -> list[str]:
        """All methods, the one under study last."""
        return [*self.baseline_methods, self.method]

    @model_validator(mode="after")
    def _check_headroom(self) -> Self:
        """Refuse k rewrites that would be one and the same."""
        same = None
        if self.method in MODEL_FREE_METHODS:
            same = "it edits a page in one way only"
        elif self.rewriter == "offline" and self.method != "key_point":
            same = "offline only method='key_point' has several edits to draw from"
        elif self.rewriter != "offline" and self.sampling.temperature == 0:
            same = "with sampling.temperature=0 the rewriter writes one page only"
        if self.studies.headroom and same:
            raise ValueError(f"studies.headroom: method={self.method!r} has no k rewrites: {same}")
        return self

    @model_validator(mode="after")
    def _check_transfer(self) -> Self:
        """Refuse a transfer to the run's own engine, and methods that a rewriter cannot do."""
        transfer = self.studies.transfer
        if transfer is None:
            return self
        own = "the run's own engine; a transfer needs another one"
        for name, engine in transfer.engines.items():
            if engine == EngineOptions(model=self.engine):
                raise ValueError(f"studies.transfer.engines.{name}: {own}")
        rows = transfer.methods or [self.method]
        if "original" in rows:
            raise ValueError("studies.transfer.methods: 'original' is what every row is held to")
        for rewriter in (self.rewriter, *transfer.rewriters.values()):
            check_methods(rows, rewriter)
        return self

    @model_validator(mode="after")
    def _check_judges(self) -> Self:
        """Refuse judges that the run's judge cannot be."""
        asked = self.studies.judges and self.studies.judges.judges
        if asked is not None and len(set(asked)) < 2 and not self.labels:
            raise ValueError(
                f"studies.judges.judges={asked!r}: an agreement needs two judges, or hand labels"
            )
        own = {"offline": [], "entailment": ["entailment"]}.get(
            ModelName.read(self.judge).backend, ["verdict", "batch"]
        )
        known = ["lexical", "lexical strict", *own, *["soft"] * has_logprobs(self.judge)]
        needs = {"soft": "log-probabilities", "entailment": "judge=entailment/ID"}
        for kind in asked or ():
            if kind not in known:
                raise ValueError(
                    f"studies.judges.judges: {kind!r} needs {needs.get(kind, 'a model')}; "
                    f"judge={self.judge!r} is one of {', '.join(known)}"
                )
        return self


PARAMS = KeyPointPromptParams
