"""The two trainings that are shipped: what the README says of them, and what may not be in them."""

import pandas as pd
import pytest
from conftest import PROJECT

from geo_utils.certificate import correct, load_labels
from geo_utils.corpus import load_corpus
from geo_utils.files import read_jsonl
from geo_utils.grpo.comparison import AFTER, BEFORE, against_rivals
from geo_utils.notebooks import read_parameters
from geo_utils.show.tables import intervals
from geo_utils.summary import summarise

RECORDS = PROJECT / "outputs" / "reference" / "04_grpo"
README = (PROJECT / "README.md").read_text()


@pytest.fixture(scope="module", params=["1.5B", "0.5B"])
def record(request):
    folder = RECORDS / f"qwen_{request.param.lower()}"
    return request.param, folder, pd.read_parquet(folder / "samples.parquet")


def test_the_readmes_sentence_is_what_it_says(record):
    policy, folder, samples = record
    summary, rivals = summarise(samples), against_rivals(samples)
    each = intervals(summary, "key_point_probability", "ci")
    rivals = rivals.set_axis(
        rivals.columns.str.replace(r"^(low|high)$", r"difference_\1", regex=True), axis=1
    )
    gains = intervals(rivals, "difference", signed=True)
    steps = read_jsonl(folder / "metrics.jsonl")
    assert [step["step"] for step in steps] == [*range(1, 101)]
    said = f"The {policy} policy goes from {each[BEFORE]} to {each[AFTER]}: {gains[BEFORE]}"
    if policy == "1.5B":
        found = correct(samples, load_labels(str(folder / "labels.jsonl")), BEFORE)
        assert found.fit == len(found.labels.table) == 320
        said += f", by hand labels {intervals(found.lifts, 'corrected', signed=True)[AFTER]}, and "
        said += f"{gains['paste_key_point']} over pasting"
    else:
        said += f"; {summary.loc[AFTER, 'unchanged']:.0%} of its pages are the original"
    assert said in README
    n = summary.loc[AFTER]
    assert f"on {n['n_examples']} held-out queries, {n['n_samples']} samples a method" in README


def test_no_text_of_the_pages_it_was_trained_on_is_shipped(record):
    _, folder, samples = record
    assert not samples[["query", "key_point", "page", "answer", "explanation"]].any(axis=None)
    if (folder / "labels.jsonl").is_file():
        assert not load_labels(str(folder / "labels.jsonl")).table["key_point"].any()
    own = {example.query_id for example in load_corpus("sample")}
    assert set(pd.read_parquet(folder / "read.parquet")["query_id"]) <= own
    assert {row["query_id"] for row in read_jsonl(folder / "rollouts.jsonl")} <= own
    assert not own & set(samples["query_id"])


def test_its_parameters_are_those_of_the_training():
    """But for paths, and for what a record has in place of a corpus and its split."""
    trained, shown = (read_parameters("04", name, [])[1] for name in ("researchy", "recorded"))
    for name in ("reward", "lora", "engine", "judge"):
        assert trained[name] == shown[name]
    assert {k: v for k, v in trained["grpo"].items() if "vllm" not in k} == shown["grpo"]
    for part, name in (("data", "prefilter"), ("data", "validation")):
        assert trained[part][name] == shown[part][name]
    assert {**trained["evaluation"], "corpus": None} == {**shown["evaluation"], "corpus": None}
