"""The trainings that are shipped: what the README says of them, and what may not be in them."""

import pandas as pd
import pytest
from conftest import PROJECT

from geo_utils.certificate import correct, load_labels
from geo_utils.corpus import load_corpus
from geo_utils.files import read_jsonl
from geo_utils.grpo.comparison import AFTER, BEFORE, against_rivals
from geo_utils.notebooks import read_parameters
from geo_utils.show.tables import intervals
from geo_utils.summary import contrasts, summarise

RECORDS = PROJECT / "outputs" / "reference" / "04_grpo"
README = (PROJECT / "README.md").read_text()


@pytest.fixture(scope="module", params=["1.5b", "0.5b", "1.5b_visibility"])
def record(request):
    return opened(request.param)


def opened(name):
    folder = RECORDS / f"qwen_{name}"
    return folder, pd.read_parquet(folder / "samples.parquet")


@pytest.mark.parametrize("policy", ["1.5B", "0.5B"])
def test_the_readmes_sentence_is_what_it_says(policy):
    folder, samples = opened(policy.lower())
    summary, rivals = summarise(samples), against_rivals(samples)
    each = intervals(summary, "key_point_probability", "ci")
    gains = intervals(rivals, "difference", signed=True)
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


def test_the_readmes_sentence_on_visibility_is_what_it_says():
    folder, samples = opened("1.5b_visibility")
    each, rivals = intervals(summarise(samples), "pawc"), against_rivals(samples, aim="pawc")
    gain = intervals(rivals, "difference", signed=True)[BEFORE]
    none = samples["verdict"].eq("no page") & samples["method"].isin([BEFORE, AFTER])
    both = samples[~samples["query_id"].isin(samples.loc[none, "query_id"])]  # a point a query
    row = contrasts(both, "pawc", BEFORE, [AFTER])
    said = f"Rewarded for visibility ({len(read_jsonl(folder / 'metrics.jsonl'))} steps), it goes "
    said += f"in position-adjusted word count from {each[BEFORE]} to {each[AFTER]}: {gain}, but "
    said += f"{intervals(row, 'difference', signed=True)[AFTER]} on "
    said += f"{row.loc[AFTER, 'n_examples']:.0f} with a page both times"
    assert said in README and not rivals["clear"].any()


def test_no_text_of_the_pages_it_was_trained_on_is_shipped(record):
    folder, samples = record
    assert not samples[["query", "key_point", "page", "answer", "explanation"]].any(axis=None)
    if (folder / "labels.jsonl").is_file():
        assert not load_labels(str(folder / "labels.jsonl")).table["key_point"].any()
    own = {example.query_id for example in load_corpus("sample")}
    assert set(pd.read_parquet(folder / "read.parquet")["query_id"]) <= own
    assert {row["query_id"] for row in read_jsonl(folder / "rollouts.jsonl")} <= own
    assert not own & set(samples["query_id"])


def test_the_rollouts_shown_are_the_best_and_the_worst_of_the_pages_to_read(record):
    folder, _ = record
    read = pd.read_parquet(folder / "read.parquet")
    by_name = {name: read[read["method"] == name] for name in ("original", AFTER)}
    both = by_name[AFTER].merge(by_name["original"], on=["query_id", "repeat"])
    main = both["supported_x"]
    if folder.name.endswith("visibility"):
        main = 3 * (both["pawc_x"] - both["pawc_y"])
    least = main + 0.3 * both["fidelity_x"]  # two components are 0 to 1, by 0.2 and 0.3
    first, worst, best = read_jsonl(folder / "rollouts.jsonl")
    assert [row["kind"] for row in (first, worst, best)] == ["first", "worst", "best"]
    assert least.max() <= best["reward"] <= least.max() + 0.5 + 1e-9
    assert least.min() <= worst["reward"] <= least.min() + 0.5 + 1e-9
    for row in (first, worst, best):
        same = (both["page_x"] == row["page"]) & (both["answer_x"] == row["answer"])
        assert least[same].between(row["reward"] - 0.5 - 1e-9, row["reward"] + 1e-9).any()


@pytest.mark.parametrize("name", ["", "_visibility"])
def test_its_parameters_are_those_of_the_training(name):
    """But for paths, and for what a record has in place of a corpus and its split."""
    names = f"researchy{name}", f"recorded{name}"
    trained, shown = (read_parameters("04", name, [])[1] for name in names)
    for name in ("reward", "lora", "engine", "judge"):
        assert trained[name] == shown[name]
    assert {k: v for k, v in trained["grpo"].items() if "vllm" not in k} == shown["grpo"]
    for name in ("prefilter", "validation", "key_points"):
        assert trained["data"].get(name) == shown["data"].get(name)
    assert {**trained["evaluation"], "corpus": None} == {**shown["evaluation"], "corpus": None}
    steps = read_jsonl(PROJECT / shown["record"] / "metrics.jsonl")
    assert len(steps) == shown["grpo"]["max_steps"]
