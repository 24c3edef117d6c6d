"""What the figures of a run come from, in words: offline, simulated, random weights or live."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from geo_utils.notebook_params import NotebookParams
from geo_utils.params import RunParams


def provenance(params: NotebookParams, served_by: Iterable[str] = ()) -> str:
    """Say what the figures of a run come from, for captions and the manifest.

    Args:
        params: The run's parameters.
        served_by: What the models called themselves; a stand-in's name starts with `simulated`.
    """
    if not isinstance(params, RunParams):
        return "each figure names its own source"
    names = sorted(name for name in served_by if not Path(name).is_absolute())  # of services
    stand_ins = [name for name in names if name.startswith("simulated")]
    label = f"SIMULATED by a stand-in ({', '.join(stand_ins)}): " if stand_ins else ""
    policy = f"; {params.policy_source}" if params.policy_source else ""
    if all(backend.startswith("offline") for backend in params.backends.values()):
        strict = " (strict)" if params.backends["judge"] == "offline_strict" else ""
        asked = f"further models asked: {', '.join(names)}" if names else "no model"
        rewriters = "edits" if policy else f"edit-based rewriters; {asked}"
        return (
            f"{label}offline roles: extractive engine, lexical judge{strict}, {rewriters}{policy}"
        )
    away = elsewhere(params)
    parts = [
        f"{role} {backend}" + (f" {params.models[role]}" if role in params.models else "")
        + (" at another address than Google's" if role in away else "")
        for role, backend in params.backends.items()
    ]  # fmt: skip
    return label + ", ".join(parts) + policy


def elsewhere(params: RunParams) -> list[str]:
    """Return the roles that ask Gemini at another address than Google's, as a rehearsal does."""
    everywhere = os.environ.get("GOOGLE_GEMINI_BASE_URL")
    return [
        role
        for role, backend in params.backends.items()
        if backend == "gemini" and (everywhere or params.servers.get(role))
    ]
