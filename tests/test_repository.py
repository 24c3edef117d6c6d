"""What the repository promises about itself: floors, pins, stripped notebooks."""

import ast
import re
import subprocess
import sys
import tomllib

import nbformat
import pytest
import yaml
from conftest import PROJECT

FLOORS = [
    "files cells methods loops parameter_errors call_options notebook_params params "
    "provenance runs notebooks "
    "key_point_params progress cluster cluster.resources cluster.supervisor efficiency "
    "efficiency.params training training.options training.params training.trl_fields analyses "
    "analyses.options studies studies.options meeting meeting.params meeting.records",
    "text lexical rows corpus citations visibility statistics prompts arrangement fidelity lint "
    "key_points studies.group_variance efficiency.measurements efficiency.bounds "
    "efficiency.capacity efficiency.pooling efficiency.contrasts efficiency.sittings",
    "models models.apart models.base models.batching models.cache models.caller models.gemini "
    "models.limits models.openai_server models.planner models.prices models.replies models.slots "
    "models.usage "
    "models.transformers_local models.vllm_local models.weights",
    "engines judges rewriters model_roles model_rewriters cleaning studies.source_points",
    "evaluate summary policies roles plan rewards training.rollouts training.scoring "
    "training.call_clock training.free_rewards analyses.analyses analyses.collateral "
    "analyses.contrasts analyses.conventions analyses.counterfactual analyses.frontier "
    "analyses.funnel analyses.gate analyses.strata studies.headroom studies.adoption "
    "studies.transfer studies.agreement studies.hand_labels studies.power studies.studies "
    "studies.results",
    "training.checkpoints training.compilation training.heap training.preflight "
    "training.small_policy training.cold_start training.data training.log training.grpo "
    "training.comparison training.phases training.streaming training.unpadded "
    "training.overlapped_trainer "
    "cluster.servers efficiency.random_weights efficiency.gpus efficiency.recipes "
    "efficiency.measure efficiency.bench efficiency.sweep",
    # The look-alike is a program that answers through the roles; nothing imports it.
    "tables plots view report run slurm cluster.tasks cluster.folder cluster.state cluster.task "
    "training.plots training.rollout_view efficiency.text "
    "efficiency.tables efficiency.words efficiency.plots analyses.effect_plots analyses.plots "
    "analyses.tables studies.tables studies.findings studies.plots meeting.headlines "
    "meeting.index_page meeting.side_by_side meeting.recorded meeting.weekly meeting.browser "
    "models.simulated_gemini models.simulated_answers",
]
FLOOR = {module: number for number, names in enumerate(FLOORS) for module in names.split()}
PACKAGE = PROJECT / "geo_utils"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
PINS = [*PYPROJECT["dependencies"], *PYPROJECT["optional-dependencies"]["dev"]]


def imported(path):
    """The package's modules that a module imports, also inside its functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("geo_utils."):
            yield node.module.removeprefix("geo_utils.")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_its_floor_and_below(name):
    for other in imported(MODULES[name]):
        assert FLOOR[other] <= FLOOR[name], f"{name} imports {other} from above"


def test_no_module_imports_itself_round_a_corner():
    graph = {name: set(imported(path)) for name, path in MODULES.items()}
    for start in graph:
        reached, frontier = set(), graph[start]
        while frontier:
            reached |= frontier
            frontier = {other for name in frontier for other in graph[name]} - reached
        assert start not in reached, f"{start} imports itself through others"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_stripped_and_can_be_slides(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert "parameters" in code[0].metadata.tags
    for cell in code:
        assert not cell.outputs and cell.execution_count is None
    for cell in cells:
        assert cell.metadata.slideshow.slide_type in ("slide", "subslide", "-", "skip", "notes")


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
