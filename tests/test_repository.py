"""What the repository promises about itself: who imports whom, pins, stripped notebooks."""

import ast
import graphlib
import json
import re
import subprocess
import sys
import tomllib

import nbformat
import pytest
import yaml
from conftest import PROJECT

PACKAGE = PROJECT / "geo_utils"
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
PINS = [*PYPROJECT["dependencies"], *PYPROJECT["optional-dependencies"]["dev"]]


def test_the_core_imports_no_chapter_and_a_chapter_no_other():
    modules = {
        ".".join(p.relative_to(PROJECT).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")
    }
    chapters = {path.stem.partition("_")[2] for path in NOTEBOOKS}
    imports = {module: set() for module in modules}
    for module, path in modules.items():
        own = module.split(".")[1]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and f"{node.module}."[:10] == "geo_utils.":
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                imports[module] |= {n if n in modules else node.module for n in names}
        for other in {name.split(".")[1] for name in imports[module]} - {own}:
            if own in ("cli", "__main__") or (own, other) == ("efficiency", "grpo"):
                continue
            assert other not in chapters | {"cli"}, f"{module} imports {other}"
            assert other != "show" or own in chapters, f"{module} imports show"
            assert (own, other) != ("models", "roles"), f"{module} imports roles"
    graphlib.TopologicalSorter(imports).prepare()  # raises where modules import in a circle


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_stripped_and_can_be_slides(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert "parameters" in code[0].metadata.tags
    for cell in code:
        assert not cell.outputs and cell.execution_count is None
    for cell in cells:
        assert cell.metadata.slideshow.slide_type in ("slide", "subslide", "-", "skip", "notes")
    ids = [cell["id"] for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    assert len(ids) == len(set(ids))  # as merged branches may have it


@pytest.mark.parametrize("path", NOTEBOOKS[:3], ids=lambda p: p.stem)
def test_a_notebook_says_what_a_chapter_is_for_and_its_cells_are_short(path):
    for cell in nbformat.read(path, as_version=4).cells:
        lines = cell.source.strip().splitlines()
        if cell.cell_type == "markdown" and lines[0].startswith("#"):
            assert len(lines) > 2, f"{lines[0]}: no sentence says why it is asked"
        elif cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", ()):
            assert len(lines) <= 15, cell.source


def test_environment_yml_has_the_same_pins():
    wanted = yaml.safe_load((PROJECT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in wanted if isinstance(entry, dict))
    assert [line for line in pip if "==" in line] == PINS
    assert pip[0] == "-c requirements.lock" and pip[-1] == "-e ."
    python = next(entry for entry in wanted if str(entry).startswith("python="))
    assert python.removeprefix("python=") in ("3.11", "3.12")


def test_every_direct_dependency_is_pinned_and_locked():
    lock = dict(
        line.split("==") for line in (PROJECT / "requirements.lock").read_text().splitlines()
    )
    locked = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in lock.items()}
    for pin in PINS:
        name, version = pin.split("==")
        assert locked[re.sub(r"[-_.]+", "-", name).lower()] == version, pin


def test_what_is_installed_is_what_is_locked():
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    installed = {
        re.sub(r"[-_.]+", "-", n).lower(): v.split("+")[0]
        for n, v in (line.split("==") for line in listed.splitlines() if "==" in line)
    }
    for line in (PROJECT / "requirements.lock").read_text().splitlines():
        name, version = line.split("==")
        found = installed.get(re.sub(r"[-_.]+", "-", name).lower())
        assert found in (version, None), f"{name}: {found} installed, {version} locked"


def test_the_readmes_python_runs(tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "key_point_probability" in done.stdout
