"""Typed notebook parameters: plain literals in, a checked object or one clear error out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from geo_utils.cells import bound_names
from geo_utils.parameter_errors import ParameterError, problem_line

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class NotebookParams(BaseModel):
    """Parameters that every notebook has.

    Attributes:
        variant: Name of this set of parameters; a folder of the outputs.
        output_root: Folder of the runs; a relative path is taken from the project's root.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    notebook: ClassVar[str]

    variant: Name
    output_root: Annotated[str, Field(min_length=1)]

    _passed: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def passed(self) -> dict[str, Any]:
        """The parameters that were passed to the notebook, as opposed to its defaults."""
        return dict(self._passed)

    def __str__(self) -> str:
        """Return the parameters as YAML, a line each."""
        text: str = yaml.safe_dump(
            self.model_dump(), sort_keys=False, allow_unicode=True, default_flow_style=None
        )
        return text.rstrip()

    @property
    def settled(self) -> dict[str, Any]:
        """Values that hang on the moment: handed on, so that every process has the same."""
        return {}

    @property
    def in_manifest(self) -> dict[str, Any]:
        """Seeds and models, for the manifest."""
        return {"seeds": {}, "models": {}}

    @classmethod
    def check(cls, values: Mapping[str, Any], passed: Iterable[str] = ()) -> Self:
        """Make parameters from plain values.

        Args:
            values: One value for every field.
            passed: Names that the user set, kept for the manifest.

        Raises:
            ParameterError: Every problem at once: the parameter, its value, what is allowed.
        """
        try:
            params = cls(**values)
        except ValidationError as error:
            also = cls._aliases()
            problems = [
                problem_line(_known(cls, d["loc"]), dict(d), also if len(d["loc"]) == 1 else ())
                for d in error.errors()
            ]
            raise ParameterError(f"{cls.notebook}: " + "\n".join(problems)) from None
        params._passed = {name: values[name] for name in passed}
        return params

    @classmethod
    def _aliases(cls) -> Iterable[str]:
        """Return the names that `check` takes beside the fields'."""
        return ()

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any]) -> Self:
        """Read the parameters cell, and Papermill's injected one, from a notebook's globals().

        Only names that those cells bind count, so that variables made further down the notebook
        are never taken for misspelt parameters when a cell is run again.

        Raises:
            ParameterError: As `check`, also for a parameter that the cells do not bind.
        """
        bound, injected = bound_names(namespace, cls.model_fields)
        known = {name: namespace[name] for name in cls.model_fields if name in namespace}
        values = known | {name: namespace[name] for name in bound if name in namespace}
        return cls.check(values, injected)


def _known(model: type[BaseModel], place: Sequence[Any]) -> list[str]:
    """Return the names that are known beside the last of a place; none inside a free mapping."""
    for part in place[:-1]:
        field = model.model_fields.get(part)
        kinds = (field.annotation, *get_args(field.annotation)) if field else ()
        inner = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if len(inner) != 1:
            return []
        model = inner[0]
    return list(model.model_fields)
