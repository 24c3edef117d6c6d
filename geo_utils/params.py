"""Typed notebook parameters: plain literals in, a checked object or one clear error out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from geo_utils.cells import bound_names
from geo_utils.files import resolve_path

# Methods that only edit the page, under any rewriter.
MODEL_FREE_METHODS = ("original", "paste_key_point", "repeat_key_point")
# Methods that the offline rewriter has an edit for; with a model they are prompts.
OFFLINE_METHODS = ("keyword_stuffing", "easy_to_understand", "key_point")
MODEL_METHODS = (
    "unique_words",
    "fluency",
    "authoritative",
    "technical_terms",
    "cite_sources",
    "quotation",
    "statistics",
    "rules",
)
METHODS = (*MODEL_FREE_METHODS, *OFFLINE_METHODS, *MODEL_METHODS)

Backend = Literal["offline"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class ParameterError(ValueError):
    """Parameters that a notebook cannot run with; one line a problem."""


class NotebookParams(BaseModel):
    """Parameters that every evaluation notebook has.

    Attributes:
        variant: Name of this set of parameters; a folder of the outputs.
        output_root: Folder of the runs; a relative path is taken from the project's root.
        corpus: Which corpus, as `corpus.load_corpus` names them.
        corpus_path: File or folder of the corpus, where it needs one; relative as output_root.
        split: Split of a Hub dataset.
        limit: How many queries, drawn from the seed; none for all.
        key_points: `one` a page drawn from the seed, `all`, or one that is `exclusive` to it.
        engine: What answers.
        judge: What gives verdicts.
        rewriter: What rewrites.
        repeats: Sampled answers a page.
        seed: Seed of every draw.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    notebook: ClassVar[str]

    variant: Name
    output_root: Annotated[str, Field(min_length=1)]
    corpus: Literal["sample", "jsonl", "researchy-geo", "e-commerce", "geo-bench"]
    corpus_path: str | None
    split: Name
    limit: Annotated[int, Field(ge=1)] | None
    key_points: Literal["one", "all", "exclusive"]
    engine: Backend
    judge: Backend
    rewriter: Backend
    repeats: Annotated[int, Field(ge=1, le=1000)]
    seed: Annotated[int, Field(ge=0, lt=2**32)]

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
    def corpus_options(self) -> dict[str, Any]:
        """The arguments of `corpus.load_corpus` that these parameters ask for."""
        path = None if self.corpus_path is None else resolve_path(self.corpus_path)
        return {
            "name": self.corpus, "path": path, "split": self.split,
            "limit": self.limit, "seed": self.seed,
        }  # fmt: skip

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
            problems = [_problem(cls, dict(detail)) for detail in error.errors()]
            raise ParameterError(f"{cls.notebook}: " + "\n".join(problems)) from None
        params._passed = {name: values[name] for name in passed}
        return params

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

    @model_validator(mode="after")
    def _check_corpus(self) -> Self:
        if self.corpus == "jsonl" and self.corpus_path is None:
            raise ValueError("corpus_path=None: corpus='jsonl' needs the path of its file")
        if self.corpus in ("sample", "geo-bench") and self.corpus_path is not None:
            raise ValueError(
                f"corpus_path={self.corpus_path!r}: corpus={self.corpus!r} takes no path; "
                "set corpus='jsonl' to read your own file"
            )
        return self

    def _check_methods(self, methods: Iterable[str]) -> None:
        """Refuse methods that the rewriter cannot do, and a comparison without its reference."""
        methods = list(methods)
        if repeated := sorted({name for name in methods if methods.count(name) > 1}):
            raise ValueError(f"methods: {', '.join(repeated)} named more than once")
        if "original" not in methods:
            raise ValueError(
                f"methods={methods!r}: 'original' must be among them, as every paired "
                "difference is taken to it"
            )
        if self.rewriter == "offline":
            for name in methods:
                if name in MODEL_METHODS:
                    raise ValueError(
                        f"method {name!r} needs a model; rewriter='offline' has "
                        f"{', '.join((*MODEL_FREE_METHODS, *OFFLINE_METHODS))}"
                    )


class BaselineRewritesParams(NotebookParams):
    """Parameters of notebook 02.

    Attributes:
        methods: Methods to compare, `original` among them.
    """

    notebook: ClassVar[str] = "02_baseline_rewrites"
    methods: list[str]

    @field_validator("methods")
    @classmethod
    def _known(cls, methods: list[str]) -> list[str]:
        return [_method(name) for name in methods]

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_methods(self.methods)
        return self


class KeyPointPromptParams(NotebookParams):
    """Parameters of notebook 03.

    Attributes:
        baseline_methods: Methods to compare with, `original` among them.
        method: The method made for the key point.
    """

    notebook: ClassVar[str] = "03_key_point_prompt"
    baseline_methods: list[str]
    method: str

    @property
    def methods(self) -> list[str]:
        """All methods, the one under study last."""
        return [*self.baseline_methods, self.method]

    @field_validator("baseline_methods")
    @classmethod
    def _known(cls, methods: list[str]) -> list[str]:
        return [_method(name) for name in methods]

    @field_validator("method")
    @classmethod
    def _known_one(cls, method: str) -> str:
        return _method(method)

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_methods(self.methods)
        return self


PARAMS: dict[str, type[NotebookParams]] = {
    model.notebook: model for model in (BaselineRewritesParams, KeyPointPromptParams)
}


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a parameter file.

    Raises:
        ParameterError: The file is missing or no mapping of names to values.
    """
    if not path.is_file():
        there = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise ParameterError(f"no parameter file {path}; there are: {', '.join(there) or 'none'}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParameterError(f"{path}: not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ParameterError(f"{path}: must map parameter names to values")
    return values


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence: `; did you mean 'seed'?`, or a full stop."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."


def _method(name: str) -> str:
    if name not in METHODS:
        raise ValueError(
            f"unknown method {name!r}{nearest(name, METHODS)} Choose from {', '.join(METHODS)}"
        )
    return name


def _problem(model: type[NotebookParams], detail: dict[str, Any]) -> str:
    """Put one pydantic error into one line: parameter, value, what is allowed."""
    place, value = detail["loc"], detail["input"]
    name = "".join(f"[{p}]" if isinstance(p, int) else str(p) for p in place)
    message = detail["msg"].removeprefix("Value error, ")
    fields = sorted(model.model_fields)
    if detail["type"] == "extra_forbidden":
        return f"{name!r} is no parameter{nearest(name, fields)} Known are {', '.join(fields)}"
    if detail["type"] == "missing":
        return f"{name} is missing from the parameters cell"
    if detail["type"] == "value_error":
        return message if not place else f"{name}: {message}"
    message = message[0].lower() + message[1:]
    hint = ""
    if detail["type"] == "literal_error":
        expected = str(detail["ctx"]["expected"])
        choices = [choice.strip("' ") for choice in expected.replace(" or ", ", ").split(",")]
        message, hint = f"choose from {', '.join(choices)}", nearest(str(value), choices)
    elif isinstance(value, str) and _is_number(value):
        hint = " (a quoted number is text; YAML also reads 1e-5 as text: write 1.0e-5)"
    elif isinstance(value, bool):
        hint = " (YAML reads yes, no, on and off as true or false: quote them)"
    return f"{name}={value!r}: {message}{hint}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
