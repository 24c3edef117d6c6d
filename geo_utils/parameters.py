"""Typed parameters of a notebook, and what cannot be used said in one line each."""

from __future__ import annotations

import ast
import csv
import difflib
import html
import inspect
import json
import re
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
_Checked = TypeVar("_Checked", bound=BaseModel)
_PLAIN = (str, int, float, bool, type(None), list, tuple, dict)
_INJECTED = "# Parameters"  # the comment that opens Papermill's injected cell
_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")
_MEANING = re.compile(r"^ {4}(\w+): (.+(?:\n {5,}.+)*)", re.MULTILINE)
# Of a union or a mapping's name, in pydantic's places.
_BRANCH = re.compile(r"constrained-|(?:literal|dict|list|union)?\[")
_HERE = {"127.0.0.1", "localhost", "0.0.0.0", "::1"}
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")


class ParameterError(ValueError):
    """Parameters that a notebook cannot run with; one line a problem."""


class Options(BaseModel):
    """Parameters that belong together, each with a default; a group of a notebook's."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-5 is a number, 017 and 1:30 are none, and no key is given twice."""

    # Without its numbers, which are octal behind a zero and to the base of 60 with a colon.
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, form) for tag, form in known if not tag.endswith((":int", ":float"))]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_document(self, node: Any) -> Any:
        self.deep_construct = True  # what holds itself is refused
        return super().construct_document(node)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        own = [
            k.value if k.tag.endswith(":merge") else self.construct_object(k, deep)
            for k, _ in node.value
        ]
        twice = [key for place, key in enumerate(own) if key in own[:place]]
        if twice:
            raise yaml.YAMLError(f"{twice[0]!r} is given twice{node.start_mark}")
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """What `_Loader` reads as it was: 1e-5 as a text in quotes, and any kind of line break."""


for _kind, _form in (
    ("int", r"[-+]?(?:0|[1-9][\d_]*|0x[\da-fA-F]+)$"),
    ("float", r"[-+]?(?:(?:\d[\d_]*\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?|\.inf|\.nan)$"),
):
    for _each in (_Loader, _Dumper):
        _each.add_implicit_resolver(
            f"tag:yaml.org,2002:{_kind}", re.compile(_form, re.ASCII), list("-+.0123456789")
        )
_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"'
    ),
)


def from_yaml(text: str) -> Any:
    """Return the value that a YAML text stands for.

    Raises:
        ValueError: It is no YAML, gives a key twice, or holds itself.
    """
    try:
        return yaml.load(text, _Loader)
    except Exception as error:  # of many kinds: a date that is none, a list as key, `!!int ''`
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from None


def to_yaml(values: Any) -> str:
    """Return what `from_yaml` reads as these values."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a parameter file.

    Raises:
        ParameterError: The file is missing or no mapping of names to values.
    """
    if not path.is_file():
        there = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise ParameterError(f"no parameter file {path}; there are: {', '.join(there) or 'none'}")
    try:
        values = from_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ParameterError(f"{path}: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ParameterError(f"{path}: must map parameter names to values")
    return values


def overridden(
    values: Mapping[str, Any],
    overrides: Iterable[tuple[str, str]],
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return values with others set over them.

    Args:
        values: By name.
        overrides: (name, value as YAML) pairs; `name.entry` sets one entry of a mapping, to any
            depth, and `name."a.b"` one whose name holds a dot.
        defaults: What stands for a mapping that `values` has not.

    Raises:
        ParameterError: A text that is no YAML, an entry of what is no mapping, a name given twice.
    """
    found, given = dict(values), set[str]()
    for key, text in overrides:
        if key in given:
            raise ParameterError(f"{key}={text}: {key} is given twice")
        given.add(key)
        head, *inner = next(csv.reader([key], delimiter="."), None) or [key]
        try:
            value = from_yaml(text)
        except ValueError as error:
            raise ParameterError(f"{key}={text}: {error}") from None
        found[head] = _set(found.get(head, (defaults or {}).get(head)), inner, value, key)
    return found


def _set(old: Any, path: Sequence[str], value: Any, key: str) -> Any:
    """Return a value with one entry set, to any depth of mappings; nothing is changed in place."""
    if not path:
        return value
    if not isinstance(old, dict | None):
        raise ParameterError(f"{key}: {path[0]!r} is no entry of {old!r}, which is no mapping")
    old = old or {}
    return old | {path[0]: _set(old.get(path[0]), path[1:], value, key)}


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence: `; did you mean 'seed'?`, or a full stop."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."


def checked(kind: type[_Checked], values: Mapping[str, Any], whose: str) -> _Checked:
    """Make parameters from plain values.

    Args:
        kind: Their class.
        values: One for every field without a default.
        whose: Named before the problems.

    Raises:
        ParameterError: Every problem at once: the parameter, its value, what is allowed.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        problems = "\n".join(_problem_line(kind, dict(detail)) for detail in error.errors())
        raise ParameterError(f"{whose}: {problems}") from None


def _problem_line(kind: type[BaseModel], detail: Mapping[str, Any]) -> str:
    """Put one pydantic error into one line: parameter, value, what is allowed."""
    place = [part for part in detail["loc"] if not _BRANCH.match(str(part))]
    value = detail["input"]
    name = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).lstrip(".")
    message = detail["msg"].removeprefix("Value error, ")
    fields = sorted(_known(kind, place))
    if detail["type"] == "extra_forbidden":
        known = f" Known are {', '.join(fields)}" if fields else ""
        return f"{name!r} is no parameter{nearest(str(place[-1]), fields)}{known}"
    if detail["type"] == "missing":
        where = " from the parameters cell" if len(place) == 1 else ""
        return f"{name} is missing{where}"
    if detail["type"] == "value_error":
        return message if not place else f"{name}: {message}"
    message = message[0].lower() + message[1:]
    hint = ""
    if detail["type"] == "literal_error":
        expected = str(detail["ctx"]["expected"])
        choices = [choice.strip("' ") for choice in expected.replace(" or ", ", ").split(",")]
        message, hint = f"choose from {', '.join(choices)}", nearest(str(value), choices)
    elif isinstance(value, str) and _NUMBER.fullmatch(value):
        hint = " (a quoted number is text)"
    elif isinstance(value, bool):
        hint = " (YAML reads yes, no, on and off as true or false: quote them)"
    return f"{name}={value!r}: {message}{hint}"


def bound_names(
    namespace: Mapping[str, Any], fields: Container[str]
) -> tuple[list[str], list[str]]:
    """Return the names bound by a running notebook's parameter cells.

    Args:
        namespace: The notebook's globals(); IPython keeps the executed cells in `In`.
        fields: Names of the parameters, by which the notebook's own cell is known.

    Returns:
        Names bound by the last parameters cell and the last injected one, and the latter's
        alone. Outside IPython all plain values of the namespace count.
    """
    if "In" not in namespace:
        return [n for n, v in namespace.items() if n[:1] != "_" and isinstance(v, _PLAIN)], []
    own: list[str] = []
    injected: list[str] = []
    for source in namespace["In"]:
        names = list(_assignments(source))
        if source.lstrip().startswith(_INJECTED):
            injected = names
        elif any(name in fields for name in names):
            own = names
    return own + injected, injected


def _assignments(source: str) -> dict[str, ast.expr]:
    """Return what a cell that only assigns to names assigns; empty for any other cell."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return {}
    found = {}
    for statement in body:
        if not isinstance(statement, ast.Assign):
            return {}
        for target in statement.targets:
            if isinstance(target, ast.Name):
                found[target.id] = statement.value
    return found


def default_parameters(notebook: Path) -> dict[str, Any]:
    """Return the values in a notebook's own parameters cell, without running it.

    Raises:
        ValueError: No cell is tagged `parameters`, or one of its values is no plain literal.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    for cell in cells:  # without nbformat, whose import takes a second
        if "parameters" in cell["metadata"].get("tags", ()):
            bound = _assignments("".join(cell["source"]))
            return {name: ast.literal_eval(value) for name, value in bound.items()}
    raise ValueError(f"{notebook}: no cell is tagged 'parameters'")


@dataclass(frozen=True)
class LocalServer:
    """A vLLM server that parameters expect on the host of the run.

    Attributes:
        address: Such as `http://127.0.0.1:8001`, without the path.
        model: What it has to serve.
        policy: Whether a training sends it its weights.
        options: Of `vllm serve`, as the parameters name them.
    """

    address: str
    model: str
    policy: bool = False
    options: tuple[str, ...] = ()

    @classmethod
    def at(
        cls, url: str, model: str, policy: bool = False, options: tuple[str, ...] = ()
    ) -> list[Self]:
        """Return the server at an address of this host; none at another's, which is up already."""
        place = urlsplit(url)
        found = cls(f"{place.scheme}://{place.netloc}", model, policy, options)
        return [found] * (place.hostname in _HERE)


class Paths(Options):
    """Where files are; a relative path is taken from the project's root.

    Attributes:
        output: Folder of the runs.
    """

    output: Annotated[str, Field(min_length=1)] = "outputs"


class NotebookParams(BaseModel):
    """Parameters that every notebook has.

    Attributes:
        variant: Name of this set of parameters; a folder of the outputs.
        paths: Where files are.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
    notebook: ClassVar[str]

    variant: Name
    paths: Annotated[Paths, Field(strict=False)]

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

    def _repr_html_(self) -> str:
        """Return the parameters folded, as a notebook and its report show them."""
        told = f"Parameters of this run: {self.notebook} {self.variant}"
        return f"<details><summary>{told}</summary><pre>{html.escape(str(self))}</pre></details>"

    @property
    def settled(self) -> dict[str, Any]:
        """Values that hang on the moment: handed on, so that every process has the same."""
        return {}

    @property
    def in_manifest(self) -> dict[str, Any]:
        """Seeds and models, for the manifest."""
        return {"seeds": {}, "models": {}}

    @property
    def servers_here(self) -> list[LocalServer]:
        """The model servers that the run expects on its own host, each once."""
        return []

    @property
    def gpus_needed(self) -> int:
        """How many GPUs the run needs: its own, if it loads a model, and one a local server."""
        return 0

    @property
    def steps_to_train(self) -> int | None:
        """The last step of a training; none where nothing is trained."""
        return None

    def saved_work(self, folder: Path) -> list[int]:
        """Return what the run would not have to do again; equal before and after, it got nowhere.

        Args:
            folder: Its run folder.
        """
        return []

    @classmethod
    def check(cls, values: Mapping[str, Any], passed: Iterable[str] = ()) -> Self:
        """Make parameters from plain values.

        Args:
            values: One value for every field.
            passed: Names that the user set, kept for the manifest.

        Raises:
            ParameterError: Every problem at once: the parameter, its value, what is allowed.
        """
        for place, text in _texts(values):
            if CONTROL.search(text) or text.isspace():
                told = "no line breaks, other control characters, or blanks alone"
                raise ParameterError(f"{cls.notebook}: {place}={text!r}: {told}")
        params = checked(cls, values, cls.notebook)
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


def _texts(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text of plain values, with its place."""
    if isinstance(value, str):
        yield place, value
    for name, inner in value.items() if isinstance(value, Mapping) else ():
        yield from _texts(inner, f"{place}.{name}".lstrip("."))
    for number, inner in enumerate(value) if isinstance(value, list | tuple) else ():
        yield from _texts(inner, f"{place}[{number}]")


def _known(model: type[BaseModel], place: Sequence[Any]) -> list[str]:
    """Return the names that are known beside the last of a place; none inside a free mapping."""
    for part in place[:-1]:
        field = model.model_fields.get(part)
        inner = _group(field.annotation) if field else None
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _group(annotation: Any) -> type[BaseModel] | None:
    """Return the one group of parameters that an annotation holds, if it holds one."""
    kinds = (annotation, *get_args(annotation))
    inner = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
    return inner[0] if len(inner) == 1 else None


def described(
    model: type[BaseModel], defaults: Mapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    """Yield a line a parameter: its dotted name, type, default, and what it means.

    Args:
        model: The parameters, or a group of them.
        defaults: Values of a notebook's own cell, over the classes'.
        prefix: Of the names.
    """
    meanings: dict[str, str] = {}
    for base in reversed(model.__mro__):
        told = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        meanings |= {n: " ".join(text.split()) for n, text in _MEANING.findall(told)}
    for name, field in model.model_fields.items():
        inner = _group(field.annotation)
        needed = field.is_required() and name not in defaults
        value = defaults.get(name, None if needed else field.get_default())
        about, own = meanings.get(name, ""), f"{prefix}{name}"
        if inner is None:
            given = "needed" if needed else f"= {value!r}"
            yield f"{own}: {_type_name(field.annotation)} {given}  {about}".rstrip()
        elif get_origin(field.annotation) is dict:
            yield f"{own}: by name, each a group  {about}".rstrip()
            yield from described(inner, {}, f"{own}.NAME.")
        else:
            yield f"{own}: {'off, or ' * (value is None)}a group  {about}".rstrip()
            yield from described(inner, value if isinstance(value, Mapping) else {}, f"{own}.")


def _type_name(annotation: Any) -> str:
    """Return a type as a reader would write it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(inner[0])
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin in (Union, UnionType):
        return " | ".join(map(_type_name, inner))
    name = str(getattr(origin or annotation, "__name__", annotation)).replace("NoneType", "null")
    return f"{name}[{', '.join(map(_type_name, inner))}]" if inner else name
