"""Parameters that cannot be used, said in one line each: name, value, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml


class ParameterError(ValueError):
    """Parameters that a notebook cannot run with; one line a problem."""


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
    except (yaml.YAMLError, ValueError) as error:
        raise ParameterError(f"{path}: not YAML: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ParameterError(f"{path}: must map parameter names to values")
    return values


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence: `; did you mean 'seed'?`, or a full stop."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."


def problem_line(fields: Iterable[str], detail: Mapping[str, Any], also: Iterable[str] = ()) -> str:
    """Put one pydantic error into one line: parameter, value, what is allowed.

    Args:
        fields: The names that are known at its place.
        detail: The error.
        also: Further names that may have been meant.
    """
    place, value = detail["loc"], detail["input"]
    name = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).lstrip(".")
    message = detail["msg"].removeprefix("Value error, ")
    fields = sorted(fields)
    if detail["type"] == "extra_forbidden":
        meant = nearest(str(place[-1]), [*fields, *also])
        known = f" Known are {', '.join(fields)}" if fields else ""
        return f"{name!r} is no parameter{meant}{known}"
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
