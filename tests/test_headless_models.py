"""A new user with a key: count the cost, run a few, change the judge, meet trouble."""

import json
import re

import nbformat
import pytest
from conftest import GEMINI, PROJECT, SECRET, make_row
from headless import only_run, run_notebook

from geo_utils.baseline_rewrites.params import BaselineRewritesParams
from geo_utils.models.base import FatalError
from geo_utils.parameters import default_parameters
from geo_utils.roles.make import make_roles
from geo_utils.runs import Run

NB02, NB03 = "02_baseline_rewrites", "03_key_point_prompt"
METHODS = "[original, fluency]"


def run_on(server, root, *overrides, notebook=NB02, params="smoke", judge=GEMINI):
    urls = "{" + ", ".join(f'{r}: ["{server.url}"]' for r in ("engine", "judge", "rewriter")) + "}"
    pairs = [
        ("paths.cache", str(root / "cache")),
        ("engine", GEMINI),
        ("judge", judge),
        ("rewriter", GEMINI),
        ("servers", urls),
        ("calls", "{timeout_s: 60, max_tries: 4}"),
        *((("methods", METHODS),) if notebook == NB02 else ()),
        *overrides,
    ]
    return run_notebook(notebook, params, root, *pairs)


def test_a_new_users_path(gemini_server, tmp_path):
    server = gemini_server(key=SECRET)
    rehearsal = run_on(server, tmp_path, ("corpus.limit", "10"), ("dry_run", "true"))
    assert rehearsal.returncode == 0
    assert "dry run, nothing was spent" in rehearsal.stderr
    assert "- **engine** (gemini-2.5-flash-lite): 60 calls, 0 already held" in rehearsal.stderr
    assert "- **judge** (gemini-2.5-flash-lite): 70 calls" in rehearsal.stderr
    assert "- **rewriter** (gemini-2.5-flash-lite): 10 calls" in rehearsal.stderr
    assert "US dollars; retries come on top (prices as of" in rehearsal.stderr
    assert server.entries() == []
    planned = only_run(tmp_path, NB02)
    assert planned.manifest["status"] == "planned"
    assert planned.manifest["plan"]["engine"]["calls"] == 60
    cells = nbformat.read(planned.folder / "notebook.ipynb", as_version=4).cells
    assert not [o for c in cells for o in c.get("outputs", ()) if o.output_type == "error"]
    report = (planned.folder / "report.html").read_text()
    assert "Traceback" not in report and "Exception was encountered" not in report

    first = run_on(server, tmp_path, ("corpus.limit", "10"), ("variant", "first"))
    assert first.returncode == 0, first.stderr
    assert "SIMULATED by a stand-in (simulated-gemini-2.5-flash-lite)" in first.stderr
    (folder,) = (tmp_path / NB02 / "first").iterdir()
    run = Run(folder)
    usage = run.manifest["usage"]["roles"]
    assert usage["engine"]["answered"] + usage["engine"]["cached"] == 60 + 2  # by hand, again
    assert usage["rewriter"]["answered"] == 10
    assert usage["engine"]["cost_usd"] > 0 and usage["engine"]["latency_p95_s"] > 0
    assert "SIMULATED" in run.manifest["provenance"]
    report = (run.folder / "report.html").read_text()
    assert "SIMULATED" in report
    row = ["engine", 60, usage["engine"]["calls"], usage["engine"]["cached"]]
    assert "".join(f"<td>{cell}</td>" for cell in row) in report  # planned beside spent
    assert set(run.manifest["templates"]) == {
        "engine_answer",
        "judge_verdict",
        "judge_claims",
        "rewrite_fluency",
    }

    asked = len(server.entries())
    other = run_on(server, tmp_path, ("corpus.limit", "10"), ("variant", "other"), judge="offline")
    assert other.returncode == 0, other.stderr
    assert len(server.entries()) == asked  # the engine's answers came from the cache
    again = run_on(
        server, tmp_path, ("corpus.limit", "10"), ("dry_run", "true"), ("variant", "again")
    )
    assert "0 calls, 60 already held" in again.stderr

    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


def test_a_budget_ends_the_run_as_interrupted_and_more_resumes_it(gemini_server, tmp_path):
    server = gemini_server()
    short = run_on(server, tmp_path, ("corpus.limit", "5"), ("calls.max_calls", "20"))
    assert short.returncode == 1
    run = only_run(tmp_path, NB02)
    assert run.manifest["status"] == "interrupted"
    assert "max_calls=20 is reached; all answers are kept" in run.manifest["reason"]
    assert len(server.entries()) == 20
    rest = run_on(server, tmp_path, ("corpus.limit", "5"))
    assert rest.returncode == 0, rest.stderr
    again = only_run(tmp_path, NB02)
    assert again.folder == run.folder and again.manifest["status"] == "finished"
    seen = {(entry["prompt"], entry["seed"]) for entry in server.entries()}
    assert len(seen) == len(server.entries())  # nothing was asked twice


def test_a_key_that_is_revoked_fails_the_run(gemini_server, tmp_path):
    done = run_on(gemini_server(revoke_after=10), tmp_path, ("corpus.limit", "5"))
    assert done.returncode == 1 and "the key is refused" in done.stderr
    assert only_run(tmp_path, NB02).manifest["status"] == "failed"
    assert SECRET not in done.stderr


@pytest.mark.parametrize(
    ("key", "message"),
    [(None, "no Gemini key: set GEMINI_API_KEY"), ("wrong", "the key is refused")],
)
def test_no_key_and_a_wrong_key_are_found_before_a_call(
    gemini_server, tmp_path, monkeypatch, key, message
):
    server = gemini_server(key=SECRET)
    monkeypatch.delenv("GEMINI_API_KEY")
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("GEMINI_API_KEY", key)
    values = default_parameters(PROJECT / "notebooks" / f"{NB02}.ipynb") | {
        "engine": GEMINI,
        "servers": {"engine": server.url},
        "paths": {"cache": str(tmp_path / "cache")},
    }
    with pytest.raises(FatalError, match=message):
        make_roles(BaselineRewritesParams.check(values))
    make_roles(BaselineRewritesParams.check(values | {"dry_run": True}))  # a price needs no key
    assert server.entries() == []


def test_pages_without_key_points_get_them_from_a_model(gemini_server, tmp_path):
    rows = [make_row(f"q{i}", query=f"how do tides work in {i}?") for i in range(4)]
    for i, row in enumerate(rows):
        row["text_list"][1] += f" In harbour {i} the water rises by about {i + 2} metres a day."
    path = tmp_path / "bare.jsonl"
    path.write_text("".join(json.dumps(r | {"ori_keypoint_dict": None}) + "\n" for r in rows))
    server = gemini_server()
    corpus = (("corpus.name", "jsonl"), ("corpus.path", str(path)))
    rehearsal = run_on(server, tmp_path, *corpus, ("dry_run", "true"), notebook=NB03)
    assert "- **extractor** (gemini-2.5-flash-lite): 4 calls" in rehearsal.stderr
    done = run_on(server, tmp_path, *corpus, ("variant", "bare"), notebook=NB03)
    assert done.returncode == 0, done.stderr
    manifests = list(tmp_path.glob(f"{NB03}/bare/*/manifest.json"))
    manifest = json.loads(manifests[0].read_text())
    assert manifest["usage"]["roles"]["extractor"]["answered"] >= 1
    assert manifest["headline"]["methods"]["key_point"]["n_examples"] == 4


def test_a_run_with_faults_counts_its_abstentions_and_shows_them(gemini_server, tmp_path):
    faults = {"blocked": 0.1, "truncated": 0.05, "429": 0.05}
    server = gemini_server(faults=faults, retry_after_s=0.1)
    done = run_on(server, tmp_path, ("corpus.limit", "12"), notebook=NB03)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path, NB03)
    assert run.manifest["usage"]["abstentions"] > 0
    packed = r"[A-Za-z0-9+/=]{200,}"  # pictures and samples
    report = re.sub(packed, "", (run.folder / "report.html").read_text())
    assert "blocked: " in report and "nan" not in report.split("Verdicts and abstentions")[-1]
