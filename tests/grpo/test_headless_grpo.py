"""Notebook 04 as a user runs it, and the policy that it leaves as a method of notebook 02."""

import json
import os
import re
import signal
import subprocess
import time

import pandas as pd
import pytest
from conftest import GEMINI, PROJECT
from headless import only_run, run_command, run_notebook
from train_many import SMALL

from geo_utils.certificate import export_labels, import_labels
from geo_utils.corpus import load_corpus
from geo_utils.files import read_jsonl
from geo_utils.grpo.comparison import (
    AFTER,
    BEFORE,
    BEST_OF,
    DISTILLED,
    against_rivals,
    training_headline,
)
from geo_utils.grpo.recorded import READ, record_training, replay
from geo_utils.roles.methods import is_policy
from geo_utils.summary import summarise

NB04 = "04_grpo"
TINY = [
    *SMALL.items(),
    ("evaluation.repeats", "1"),
    ("evaluation.key_points", "one"),
    ("evaluation.best_of", "2"),
    ("data.validation", "{queries: 1, every: 8}"),
    ("data.prefilter", "{trials: 2, low: 0.0, high: 1.0}"),
    ("reward.refills", "1"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("grpo")
    done = run_notebook(NB04, "smoke", root, *TINY)
    assert done.returncode == 0, done.stderr
    return done, only_run(root, NB04)


def test_the_run_folder_holds_what_it_promises(finished):
    done, run = finished
    manifest = run.manifest
    assert manifest["status"] == "finished" and AFTER in manifest["headline"]["methods"]
    assert {"mean", "low", "high", "p", "n_queries"} == set(manifest["headline"]["gain"])
    assert "random weights" in manifest["provenance"] and "strict" in manifest["provenance"]
    checksums = manifest["base_checksum"]
    assert checksums["before"] == checksums["after"]
    assert [row["step"] for row in read_jsonl(run.folder / "metrics.jsonl")] == list(range(1, 17))
    samples = pd.read_parquet(run.folder / "samples.parquet")
    methods = ["original", "key_point", "paste_key_point", BEFORE, BEST_OF, AFTER]
    found = [m for m in dict.fromkeys(samples["method"]) if m != DISTILLED]  # if any landed
    assert found == methods
    assert [row["step"] for row in read_jsonl(run.folder / "validation.jsonl")] == [0, 8, 16]
    assert len(list((run.folder / "checkpoints").glob("best-*"))) == 1
    assert manifest["lengths"]["held out"]["pairs"] == 4
    assert set(manifest["headline"]["lift over"]) == set(samples["method"]) - {AFTER}
    assert manifest["headline"]["verdict"].startswith(("Worth", "Not worth", "Not decided"))
    for name in ("reward", "phases", "rivals", "ladder", "health", "validation"):
        assert (run.folder / "figures" / f"{name}.png").is_file()
    assert "policy/after" in done.stderr and "random weights" in done.stderr


def test_report_and_slides_are_short_and_say_what_was_trained(finished):
    _, run = finished
    report = (run.folder / "report.html").read_text()
    assert "random weights" in report and "Rollouts to read" in report
    # A contents list stands on top of both.
    answer, table = report.find("By how much"), report.rfind("What it will call")
    assert 0 < answer < table and "there is no verdict yet" not in report
    assert "By how much" in (run.folder / "slides.html").read_text().split("</section>")[0]
    assert "'grad_norm'" not in report and "it/s]" not in report  # no line a step, no bars
    assert "IProgress" not in report
    watched = report.partition('id="Training"')[2].partition('id="Did-the-reward-rise?"')
    assert watched[1] and "<img" not in watched[0]  # the figure that grew is gone: one a claim
    assert (run.folder / "notebook.ipynb").stat().st_size < 1_500_000
    assert "Rollouts to read" in (run.folder / "slides.html").read_text()


def labelled(samples, folder):
    """A labels file on two answers of each arm, which two readers call omitted."""
    texts = export_labels(pd.read_parquet(samples), {"run": "this"}, each=2, seed=0)
    head, *rows = texts[0].splitlines()
    told = [json.loads(row) | {"label": "omitted"} for row in rows]
    sheet = "\n".join([json.dumps(json.loads(head) | {"reader": "a test"}), *map(json.dumps, told)])
    sheets = [folder / "a.jsonl", folder / "b.jsonl"]
    for path, text in zip([*sheets, folder / "key.jsonl"], [sheet, sheet, texts[1]], strict=True):
        path.write_text(text)
    found = folder / "labels.jsonl"
    found.write_text(import_labels(folder / "key.jsonl", sheets, "2026-11-30"))
    return found


def without_what_trains(folder):
    """An environment in which what trains cannot be imported, which takes ten seconds of CPU."""
    folder.mkdir()
    for name in ("torch", "transformers", "trl", "peft", "datasets", "accelerate"):
        (folder / f"{name}.py").write_text("raise ImportError(f'{__name__} trains nothing here')\n")
    path = filter(None, [str(folder), os.environ.get("PYTHONPATH")])
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)}


def test_a_recorded_training_is_shown_without_a_model_and_without_pytorch(finished, tmp_path):
    _, run = finished
    record = tmp_path / "record"
    about = {"corpus": "Pages of nobody", "date": "30 November 2026"}
    read = pd.read_parquet(run.folder / "samples.parquet")
    record_training(run.folder, record, about, read, load_corpus("sample"))
    labels = labelled(run.folder / "samples.parquet", tmp_path)
    shown = {"record": record, "labels": labels, "data.max_prompt_tokens": 192}
    shown = dict(TINY) | shown | {"policy.base": "nowhere"}
    env = without_what_trains(tmp_path / "hidden")
    done = run_notebook(NB04, "smoke", tmp_path / "out", *shown.items(), env=env)
    assert done.returncode == 0, done.stderr
    again = only_run(tmp_path / "out", NB04)
    head = again.manifest["headline"]
    assert head.pop("corrected lift over policy/before") == {}  # of two labels an arm
    assert head == run.manifest["headline"]
    assert again.manifest["lengths"] == run.manifest["lengths"]
    assert not (again.folder / "checkpoints").exists() and not again.manifest["usage"]["roles"]
    report = (again.folder / "report.html").read_text()
    assert "Pages of nobody, 1 repeat" in report and "1 repeats" not in report
    assert run.manifest["lengths"]["words"][:60] in report
    samples = pd.read_parquet(again.folder / "samples.parquet")
    texts = samples[["query", "key_point", "page", "answer", "explanation"]]
    assert not texts.fillna("").any(axis=None)
    (record / READ).unlink()
    with pytest.raises(ValueError, match=r"lacks read\.parquet; name a recorded training"):
        replay(record, again)
    assert "hand labels, of " not in report and "No hand labels" not in report
    told = report.partition('id="Is-it-the-judge?"')[2].partition('id="What-it-costs"')[0]
    assert "trained policy" in told


def test_training_and_comparison_share_no_query(finished):
    _, run = finished
    trained = {row["query_id"] for row in read_jsonl(run.folder / "rollouts.jsonl")}
    tested = set(pd.read_parquet(run.folder / "samples.parquet")["query_id"])
    assert trained and tested and not trained & tested


def test_a_checkpoint_is_a_method_of_notebook_02(finished, tmp_path):
    _, run = finished
    adapter, whole = run.folder / "checkpoints/final", run.folder / "policy"
    newest = max((run.folder / "checkpoints").glob("checkpoint-*"))
    methods = ["original", str(adapter), str(whole), str(newest)]
    shared = (("methods", json.dumps(methods)), ("corpus.limit", "3"), ("repeats", "1"),
              ("paths.cache", tmp_path / "cache"))  # fmt: skip
    done = run_notebook("02_baseline_rewrites", "smoke", tmp_path, *shared)
    assert done.returncode == 0, done.stderr
    first = only_run(tmp_path, "02_baseline_rewrites")
    samples = pd.read_parquet(first.folder / "samples.parquet")
    assert set(samples["method"]) == set(methods)
    written = samples[samples["method"].map(is_policy)]
    assert written["page"].notna().any(), set(written["abstention"])
    again = run_notebook("02_baseline_rewrites", "smoke", tmp_path, *shared, ("variant", "again"))
    assert again.returncode == 0, again.stderr
    second = pd.read_parquet(next(tmp_path.glob("02*/again/*/samples.parquet")))
    pd.testing.assert_frame_equal(samples, second)  # from the cache, to the letter


def test_a_terminated_run_is_resumed_where_it_was(finished, tmp_path):
    _, undisturbed = finished
    command = run_command(NB04, "smoke", tmp_path, *TINY)
    process = subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 600
    while not list(tmp_path.glob("04_grpo/smoke/2*/checkpoints/checkpoint-2")):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGTERM, errors
    run = only_run(tmp_path, NB04)
    assert run.manifest["status"] == "interrupted"
    assert len(read_jsonl(run.folder / "metrics.jsonl")) < 16
    done = run_notebook(NB04, "smoke", tmp_path, *TINY)
    assert done.returncode == 0, done.stderr
    assert run.manifest["status"] == "finished" and len(run.manifest["attempts"]) == 2
    rewards = [
        [row["reward"] for row in read_jsonl(r.folder / "metrics.jsonl")]
        for r in (run, undisturbed)
    ]
    assert rewards[0] == rewards[1]


def test_a_recipe_for_a_gpu_is_refused_here(tmp_path):
    done = run_notebook(NB04, "default", tmp_path)
    assert done.returncode == 1 and "this recipe needs a GPU" in done.stderr


def test_a_dry_run_counts_reward_and_comparison(tmp_path, gemini_server):
    server = gemini_server()
    done = run_notebook(
        NB04, "smoke", tmp_path, *TINY, ("engine", GEMINI), ("dry_run", "true"),
        ("servers", json.dumps({"engine": [server.url]})), ("paths.cache", tmp_path / "cache"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    reason = only_run(tmp_path, NB04).manifest["reason"]
    # 16 steps x 8 x 2 answers, as many for a round of others, and both again for the rivals; 3
    # validations, 2 trials of each of the prompts, 2 x 2 answers of 4 held-out ones
    found = int(re.search(r"reward's engine.*?: ([\d,]+) calls", reason)[1].replace(",", ""))
    assert 4 * 256 + 3 + 16 < found < 4 * 256 + 3 + 16 + 2 * 40
    assert not server.answered()


def test_a_gain_without_pairs_is_none_and_not_a_number(finished):
    _, run = finished
    samples = pd.read_parquet(run.folder / "samples.parquet")
    samples.loc[samples["method"] == BEFORE, "supported"] = float("nan")
    found = training_headline(samples, summarise(samples), against_rivals(samples), "No verdict.")
    assert found["gain"]["mean"] is None and found["gain"]["n_queries"] == 0
    json.dumps(found, allow_nan=False)
