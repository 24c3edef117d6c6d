"""The notebooks and the parameters that each takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from geo_utils.cells import default_parameters
from geo_utils.efficiency.params import EfficiencyParams
from geo_utils.files import project_root
from geo_utils.key_point_params import KeyPointPromptParams
from geo_utils.meeting.params import WeeklyParams
from geo_utils.notebook_params import NotebookParams
from geo_utils.parameter_errors import ParameterError, nearest, read_yaml
from geo_utils.params import BaselineRewritesParams
from geo_utils.training.params import GrpoParams

_ALL: tuple[type[NotebookParams], ...] = (
    EfficiencyParams, BaselineRewritesParams, KeyPointPromptParams, GrpoParams, WeeklyParams,
)  # fmt: skip
PARAMS = {model.notebook: model for model in _ALL}


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
    if name not in PARAMS:
        raise ParameterError(
            f"unknown notebook {notebook!r}{nearest(name, PARAMS)} Choose from {', '.join(PARAMS)}"
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
        passed |= _override(defaults | passed, key, value)
    params = PARAMS[name].check(defaults | passed, passed)
    return name, passed | params.settled, params


def _override(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return the parameter that `-p` sets; a dotted name sets one entry of a mapping."""
    head, dot, entry = key.partition(".")
    if not dot:
        return {key: value}
    mappings = [name for name in values if isinstance(values[name], dict)]
    if head not in mappings:
        raise ParameterError(
            f"-p {key}: {head!r} is no mapping{nearest(head, mappings)} "
            f"Choose from {', '.join(mappings)}"
        )
    return {head: values[head] | {entry: value}}
