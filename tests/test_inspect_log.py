"""A run's samples as a log of inspect_ai, read back by its own reader."""

import sys

import numpy as np
import pandas as pd
import pytest
from run_folders import make_run

from geo_utils.cli import app

HEADLINE = {"methods": {
    "original": {"key_point_probability": 0.5, "ci_low": 0.1, "ci_high": 0.9, "n_samples": 2,
                 "abstentions": 0},
    "key_point": {"key_point_probability": 1.0, "ci_low": None, "ci_high": None, "n_samples": 1,
                  "abstentions": 1},
}}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    folder = make_run(tmp_path, "20260101-100000000-aaaaaaaa", headline=HEADLINE)
    rows = []
    for method, supported in (("original", [1.0, 0.0]), ("key_point", [1.0, np.nan])):
        for repeat, value in enumerate(supported):
            lost = np.isnan(value)
            verdict = None if lost else "supported" if value else "omitted"
            row = {"query_id": "q", "query": "why?", "key_point_number": 1, "key_point": "claim"}
            row |= {"method": method, "repeat": repeat, "page": "page", "answer": f"a{repeat}"}
            row |= {"verdict": verdict, "supported": value, "explanation": "words"}
            row |= {"target_place": 0, "pawc": 0.5, "uncited": False}
            rows.append(row | {"abstention": "judge: 503" if lost else None})
    pd.DataFrame(rows).to_parquet(folder / "samples.parquet")
    return folder


def export(*line):
    return app(["export", *map(str, line)], standalone_mode=False) or 0


def test_the_reader_of_inspect_ai_finds_the_same_numbers(run, capsys):
    log = pytest.importorskip("inspect_ai.log")
    assert export(run, "--inspect") == 0
    assert "4 samples: " in capsys.readouterr().out
    found = log.read_eval_log(str(run / "samples.eval"))
    assert found.status == "success" and len(found.samples) == 4
    told = {(s.id, s.epoch): s for s in found.samples}
    assert told["q/1/original", 1].scores["supported"].value == 1.0
    assert told["q/1/original", 2].scores["supported"].answer == "omitted"
    assert told["q/1/original", 2].output.completion == "a1"
    lost = told["q/1/key_point", 2]
    assert lost.scores == {} and lost.metadata["abstention"] == "judge: 503"
    scores = {score.name: score for score in found.results.scores}
    assert {n: m.value for n, m in scores["original"].metrics.items()} == {
        "mean": 0.5, "low": 0.1, "high": 0.9,
    }  # fmt: skip
    assert scores["key_point"].metrics.keys() == {"mean"}
    assert scores["key_point"].unscored_samples == 1


def test_without_inspect_ai_it_says_how_to_get_it(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    assert export(run, "--inspect") == 2
    assert "pip install inspect-ai" in capsys.readouterr().err


def test_a_form_and_samples_are_needed(run, capsys):
    assert export(run) == 2 and "name the form" in capsys.readouterr().err
    (run / "samples.parquet").unlink()
    pytest.importorskip("inspect_ai")
    assert export(run, "--inspect") == 2 and "no samples.parquet" in capsys.readouterr().err
