"""Commands and notebooks as a user runs them, for tests."""

import os
import subprocess
import sys

from conftest import PROJECT

from geo_utils.runs import Run


def command(*arguments, **options):
    given = {"cwd": PROJECT, "capture_output": True, "text": True, "timeout": 600} | options
    return subprocess.run([sys.executable, "-m", *map(str, arguments)], **given)


def copied_project(root):
    """A copy of the project whose `.venv` is ready: commands are typed there as a user does."""
    for name in ("notebooks", "params", "geo_utils", "tests", "Makefile", "pyproject.toml",
                 "requirements.lock"):  # fmt: skip
        (root / name).symlink_to(PROJECT / name)
    binaries = root / ".venv/bin"
    binaries.mkdir(parents=True)
    for name, program in (
        ("python", ""),
        ("geo", " -m geo_utils"),
        ("papermill", " -m papermill"),
        ("pre-commit", " -m pre_commit"),
    ):
        (binaries / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{program} "$@"\n')
        (binaries / name).chmod(0o755)
    (root / ".venv/ready").touch()
    return root


def shell(root, line):
    """Type a line in a shell there."""
    return subprocess.run(
        line, shell=True, cwd=root, capture_output=True, text=True, timeout=600,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
    )  # fmt: skip


def sets(*pairs):
    """The command line's form of (name, value) pairs."""
    return [f"{name}={value}" for name, value in pairs]


def run_command(notebook, params, root, *overrides):
    """The command that runs a notebook, without a terminal."""
    given = sets(("paths.output", root), *overrides)
    return [sys.executable, "-m", "geo_utils", "run", notebook, params, *given]


def run_notebook(notebook, params, root, *overrides, **options):
    return command(*run_command(notebook, params, root, *overrides)[2:], **options)


def only_run(root, notebook):
    (folder,) = (root / notebook).glob("*/*")
    return Run(folder)
