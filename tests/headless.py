"""Commands and notebooks as a user runs them, for tests."""

import subprocess
import sys

from conftest import PROJECT

from geo_utils.runs import Run


def command(*arguments, **options):
    given = {"cwd": PROJECT, "capture_output": True, "text": True, "timeout": 600} | options
    return subprocess.run([sys.executable, "-m", *map(str, arguments)], **given)


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
