"""What the repository promises about itself: who imports whom, pins, stripped notebooks."""

import ast
import asyncio
import graphlib
import importlib
import json
import re
import subprocess
import sys
import tomllib

import nbformat
import pytest
import yaml
from conftest import PROJECT
from headless import copied_project, sets, shell
from test_record import Answering

from geo_utils.models.loops import run_sync

PACKAGE = PROJECT / "geo_utils"
README = (PROJECT / "README.md").read_text()
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_what_a_notebook_imports_is_there(path):
    """Also what it comes to after hours on a GPU."""
    for cell in nbformat.read(path, as_version=4).cells:
        for node in ast.walk(ast.parse(cell.source if cell.cell_type == "code" else "")):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("geo_utils"):
                module = importlib.import_module(str(node.module))
                for name in (alias.name for alias in node.names):
                    assert hasattr(module, name) or importlib.import_module(f"{node.module}.{name}")


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


def test_the_readme_can_be_read_in_a_few_minutes():
    assert len(README.split()) <= 1500


def test_the_readmes_python_runs(tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "key_point_probability" in done.stdout


def typed_lines():
    """Every line of the README that is to be typed, but for those that other tests type."""
    text = README.replace("\\\n", "")
    for section in ("The week's meeting", "On a cluster"):  # test_meeting, test_slurm_time
        text = re.sub(rf"## {section}\n.*?(?=\n## )", "", text, flags=re.DOTALL)
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).splitlines()
    lines = [re.split(r"\s+# ", line)[0] for line in blocks]
    lines += re.findall(r"`((?:\.venv/bin/)?(?:geo run|make) [^`]+)`", text)
    return [line for line in dict.fromkeys(filter(None, lines)) if "GEMINI_API_KEY" not in line]


@pytest.mark.parametrize("line", typed_lines())
def test_commands_of_the_readme(project, gemini_server, line):
    makefile = (PROJECT / "Makefile").read_text()
    if line.startswith("make"):  # `.ci/run` and other tests run them
        assert f"\n{line.split()[1]}:" in makefile
        return
    if f"/{line.rpartition('/')[2]}\n" in makefile:  # `make demo` types it
        return
    line = re.sub("^geo", ".venv/bin/geo", line)
    if "04 colocate" in line:
        assert "vllm is not installed; pip install" in shell(project, line).stderr
        return
    if "gemini" in line and "--dry-run" not in line:
        address = [gemini_server().url]
        roles = ("engine", "judge", "rewriter")
        line += f" 'servers={json.dumps(dict.fromkeys(roles, address))}'"
    done = shell(project, line)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.findall("Traceback|failed", done.stdout + done.stderr)


CONTRIBUTING = (PROJECT / "CONTRIBUTING.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", CONTRIBUTING, re.DOTALL)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with what CONTRIBUTING takes to be there."""
    root = copied_project(tmp_path_factory.mktemp("project"))
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    (root / ".pre-commit-config.yaml").symlink_to(PROJECT / ".pre-commit-config.yaml")
    (block,) = re.findall(r"```json\n(.*?)```", CONTRIBUTING, re.DOTALL)
    (root / "my_rows.jsonl").write_text(json.dumps(json.loads(block)) + "\n")
    for name in ("mine.md", "rival.md"):
        (root / name).write_text("# Starters\n\nThe first gas is bacteria. Yeast comes later.\n")
    (root / "my_prompts").mkdir()
    wording = (PACKAGE / "prompts" / "rewrite_key_point.md").read_text()
    (root / "my_prompts" / "rewrite_key_point.md").write_text(f"{wording}\nBe brief.\n")
    (root / "outputs/reference/01_efficiency").mkdir(parents=True)
    return root


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split()[1])
def test_commands_of_contributing(project, block):
    """Each as it is typed; a server is a stand-in, and the record is of three queries."""
    for line in block.splitlines():
        line = line.partition("  #")[0].strip()
        if line.startswith("make"):  # `.ci/run` runs them
            assert f"\n{line.split()[-1]}:" in (PROJECT / "Makefile").read_text()
            continue
        if "pip install" in line:
            assert "gpu" in PYPROJECT["optional-dependencies"]
            continue
        for run in (project / "outputs/01_efficiency/study").glob("*"):
            line = line.replace("/RUN/", f"/{run.name}/")
        done = with_server(project, line) if "127.0.0.1:8000" in line else shell(project, line)
        assert done.returncode == 0, done.stdout + done.stderr
        if "geo record" in line:
            about = json.loads((project / "record/record.json").read_text())
            assert about["gpu"] == "one NVIDIA H200"


def with_server(project, line):
    """Type a line that asks a server."""
    line = line.replace("geo_utils/data/record", "record").replace("openai/MODEL", "openai/m")
    if "geo record" in line:
        roles = ("engine", "openai/m"), ("rewriter", "openai/m")
        line = " ".join([line, *sets(*roles, ("corpus.limit", 3), ("repeats", 1))])

    async def served():
        async with Answering() as server:
            own = line.replace("http://127.0.0.1:8000/v1", server.url)
            return await asyncio.to_thread(shell, project, own)

    return run_sync(served())


def test_contributing_names_what_is_there():
    assert len(CONTRIBUTING.splitlines()) <= 100
    tops = {path.name for path in PROJECT.iterdir()}
    paths = {p for p in re.findall(r"`([\w./]+)`", CONTRIBUTING) if p.partition("/")[0] in tops}
    assert len(paths) > 15
    for path in paths:
        assert "NAME" in path or (PROJECT / path).exists(), path
    named = re.findall(r"`([\w.]+)`(?:, or in `([\w.]+)`)? \(`([\w./]+\.py)`\)", CONTRIBUTING)
    assert len(named) > 8
    for *names, path in named:
        for name in filter(None, names):
            assert name.rpartition(".")[2] in (PROJECT / path).read_text(), (name, path)
