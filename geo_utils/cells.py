"""Which names a notebook's parameter cells bind."""

from __future__ import annotations

import ast
import json
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

_PLAIN = (str, int, float, bool, type(None), list, tuple, dict)
_INJECTED = "# Parameters"  # the comment that opens Papermill's injected cell


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
        names = assignments(source)
        if source.lstrip().startswith(_INJECTED):
            injected = list(names)
        elif any(name in fields for name in names):
            own = list(names)
    return own + injected, injected


def assignments(source: str) -> dict[str, ast.expr]:
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
            bound = assignments("".join(cell["source"]))
            return {name: ast.literal_eval(value) for name, value in bound.items()}
    raise ValueError(f"{notebook}: no cell is tagged 'parameters'")
