"""The notebooks and the parameters that each takes."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from geo_utils.files import project_root
from geo_utils.parameters import (
    NotebookParams,
    ParameterError,
    default_parameters,
    nearest,
    read_yaml,
)

NOTEBOOKS = ("01_efficiency", "02_baseline_rewrites", "03_key_point_prompt", "04_grpo", "05_weekly")


def params_class(notebook: str) -> type[NotebookParams]:
    """Return the class of a notebook's parameters: `PARAMS` in the chapter of the same name.

    Args:
        notebook: One of `NOTEBOOKS`.
    """
    chapter = notebook.partition("_")[2]
    found: type[NotebookParams] = import_module(f"geo_utils.{chapter}.params").PARAMS
    return found


def read_parameters(
    notebook: str, file: str, overrides: Sequence[tuple[str, str]] = ()
) -> tuple[str, dict[str, Any], NotebookParams]:
    """Read a notebook's parameters from a file, over the notebook's own defaults.

    Args:
        notebook: The notebook's name, with or without folder and ending.
        file: A name in `params/<notebook>/`, or a path to a YAML file.
        overrides: (name, value as YAML) pairs over the file's; `name.entry` sets one entry of a
            mapping.

    Returns:
        The notebook's name, the values to pass to it, and the checked parameters.

    Raises:
        ParameterError: Anything that cannot be used.
    """
    name = notebook.removeprefix("notebooks/").removesuffix(".ipynb")
    if name not in NOTEBOOKS:
        raise ParameterError(
            f"unknown notebook {notebook!r}{nearest(name, NOTEBOOKS)} Choose from "
            f"{', '.join(NOTEBOOKS)}"
        )
    path = Path(file)
    if path.suffix not in (".yaml", ".yml"):
        path = project_root() / "params" / name / f"{file}.yaml"
    passed = read_yaml(path)
    env = passed.get("env")  # of a recipe that TRL reads as well
    own = env.get("GEO_UTILS") if isinstance(env, dict) else None
    if isinstance(own, dict):
        passed = own | {name: value for name, value in passed.items() if name != "env"}
    defaults = default_parameters(project_root() / "notebooks" / f"{name}.ipynb")
    for key, text in overrides:
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:  # the latter of a date that is none
            raise ParameterError(f"-p {key}: {text!r} is not YAML: {error}") from None
        values, (head, dot, entry) = defaults | passed, key.partition(".")
        mappings = [name for name in values if isinstance(values[name], dict)]
        if dot and head not in mappings:
            raise ParameterError(
                f"-p {key}: {head!r} is no mapping{nearest(head, mappings)} "
                f"Choose from {', '.join(mappings)}"
            )
        passed[head] = values[head] | {entry: value} if dot else value
    params = params_class(name).check(defaults | passed, passed)
    return name, passed | params.settled, params
