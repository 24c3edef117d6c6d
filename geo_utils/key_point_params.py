"""Typed parameters of notebook 03, with the studies beside its comparison."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from geo_utils.methods import MODEL_FREE_METHODS, check_methods, known_method
from geo_utils.params import NO_ID_NEEDED, EvaluationParams
from geo_utils.studies.options import MODEL_JUDGES, EngineOptions, StudyOptions


class KeyPointPromptParams(EvaluationParams):
    """Parameters of notebook 03.

    Attributes:
        baseline_methods: Methods to compare with, `original` among them.
        method: The method made for the key point.
        studies: What is studied beside the comparison.
    """

    notebook: ClassVar[str] = "03_key_point_prompt"
    baseline_methods: list[str]
    method: str
    studies: Annotated[StudyOptions, Field(strict=False)]

    @property
    def methods(self) -> list[str]:
        """All methods, the one under study last."""
        return [*self.baseline_methods, self.method]

    @field_validator("baseline_methods")
    @classmethod
    def _known(cls, methods: list[str]) -> list[str]:
        return [known_method(name) for name in methods]

    @field_validator("method")
    @classmethod
    def _known_one(cls, method: str) -> str:
        return known_method(method)

    @model_validator(mode="after")
    def _check_headroom(self) -> Self:
        """Refuse k rewrites that would be one and the same."""
        if self.studies.headroom is None:
            return self
        same = None
        if self.method in MODEL_FREE_METHODS:
            same = "it edits a page in one way only"
        elif self.rewriter == "offline" and self.method != "key_point":
            same = "offline only method='key_point' has several edits to draw from"
        elif self.rewriter != "offline" and self.temperature == 0:
            same = "with temperature=0 the rewriter writes one page only"
        if same:
            raise ValueError(f"studies.headroom: method={self.method!r} has no k rewrites: {same}")
        return self

    @model_validator(mode="after")
    def _check_transfer(self) -> Self:
        """Refuse a transfer to the run's own engine, and methods that a rewriter cannot do."""
        transfer = self.studies.transfer
        if transfer is None:
            return self
        own = EngineOptions(
            backend=self.engine,
            model=self.models.get("engine"),
            servers=self.servers.get("engine", []),
        )
        for name, engine in transfer.engines.items():
            if engine.model_dump() == own.model_dump():
                raise ValueError(
                    f"studies.transfer.engines.{name}: the run's own engine; a transfer needs "
                    "another one"
                )
        for name in transfer.methods:
            known_method(name)
        rows = transfer.methods or [self.method]
        if "original" in rows:
            raise ValueError("studies.transfer.methods: 'original' is what every row is held to")
        for backend in (self.rewriter, *(r.backend for r in transfer.rewriters.values())):
            check_methods(rows, backend)
        return self

    @model_validator(mode="after")
    def _check_judges(self) -> Self:
        """Refuse judges that the run's judge cannot be."""
        asked = self.studies.judges and self.studies.judges.judges
        for kind in asked or ():
            if kind in MODEL_JUDGES and self.judge == "offline":
                raise ValueError(
                    f"studies.judges.judges: {kind!r} needs a model; judge='offline' is one "
                    "of lexical, lexical strict"
                )
            if kind == "soft" and self.judge in NO_ID_NEEDED:
                raise ValueError(
                    f"studies.judges.judges: 'soft' needs log-probabilities, which "
                    f"judge={self.judge!r} does not give"
                )
        return self
