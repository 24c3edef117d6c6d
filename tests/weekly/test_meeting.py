"""The README's section on the meeting, command by command, in a project of its own."""

import json
import re
import shutil

import pytest
from conftest import PROJECT
from headless import copied_project, shell
from run_folders import make_run

from geo_utils.records import find_records

SECTION = re.search(
    r"## The week's meeting\n+```bash\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL
).group(1)
COMMANDS = [line.split("  ")[0].strip() for line in SECTION.splitlines()]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with an environment that is ready, and three runs."""
    root = copied_project(tmp_path_factory.mktemp("project"))
    (root / "my_notes.md").write_text("## Open questions\n\nDoes it hold for another engine?\n")
    done = shell(root, ".venv/bin/geo run 02 smoke corpus.limit=5 repeats=1")
    assert done.returncode == 0, done.stderr
    (first,) = find_records(root / "outputs")
    copied = root / "outputs/02_baseline_rewrites/copy/20260201-100000000-aaaaaaaa"
    shutil.copytree(first.folder, copied)  # as if it had read the whole corpus: no trial
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["parameters"]["resolved"]["corpus"]["limit"] = None
    for row in manifest["headline"]["methods"].values():
        row["n_examples"] = 30
    (copied / "manifest.json").write_text(json.dumps(manifest))
    (root / "outputs" / "index.html").rename(root / "index-of-the-first-run.html")
    make_run(root / "outputs", "20260202-100000000-bbbbbbbb", variant="broken", status="failed",
             reason="the corpus was gone", headline=None)  # fmt: skip
    return root


def test_a_run_ends_with_the_index_written(project):
    page = (project / "index-of-the-first-run.html").read_text()
    assert "1 run · 1 finished" in page and "limit=5" in page


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme(project, command):
    ids = [r.run_id for r in find_records(project / "outputs") if r.notebook[:2] == "02"]
    for run_id in (ids[0], ids[-1]):
        command = command.replace("RUN", run_id, 1)
    done = shell(project, command)
    assert done.returncode == 0, done.stderr
    if "compare" in command:
        (page,) = (project / "outputs/comparisons").glob("*.html")
        assert all(run_id in page.read_text() for run_id in (ids[0], ids[-1]))
    elif "make index" in command:
        runs = len(find_records(project / "outputs"))
        assert f"<div>{runs} runs · 1 failed" in (project / "outputs/index.html").read_text()
    else:
        check_deck(project, command, done.stdout)


def check_deck(project, command, said):
    decks = [r for r in find_records(project / "outputs") if r.notebook == "05_weekly"]
    record = max(decks, key=lambda r: r.started)
    slides = (record.folder / "slides.html").read_text()
    assert record.status == "finished" and f"{record.run_id}/slides.html" in said
    assert 3 <= record.headline["slides"] <= 15
    assert slides.count("<section><section>") == record.headline["slides"]
    recorded = json.loads(
        max((project / "outputs/02_baseline_rewrites/smoke").glob("*/notebook.ipynb")).read_text()
    )
    (cell,) = [c for c in recorded["cells"] if "weekly" in c["metadata"].get("tags", ())]
    assert "".join(cell["outputs"][0]["data"]["image/png"]).strip() in slides
    assert ("Does it hold for another engine?" in slides) == ("NOTES" in command)
    assert ("the corpus was gone" in slides) == ("runs=" not in command)
    assert ("Trials left out: 02 smoke (smoke)" in slides) == ("runs=" not in command)
    assert f"{record.run_id}/slides.pdf" in said or "pdf: none, no browser" in said
