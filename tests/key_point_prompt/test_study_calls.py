"""The studies with a model: counted before, kept after, the same when they are resumed."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import GEMINI, PROJECT, make_example

from geo_utils.corpus import load_corpus
from geo_utils.evaluate import evaluate
from geo_utils.key_point_prompt.params import KeyPointPromptParams
from geo_utils.key_point_prompt.power import power_before
from geo_utils.key_point_prompt.studies import check_studies, make_studies
from geo_utils.parameters import default_parameters
from geo_utils.plan import plan_by_role, plan_calls
from geo_utils.roles.make import make_roles
from geo_utils.runs import Run, RunInterrupted

DEFAULTS = default_parameters(PROJECT / "notebooks" / "03_key_point_prompt.ipynb")
TABLES = ("headroom", "adoption", "transfer", "judges")


def parameters(server, root, labels="", **calls):
    other = "gemini/gemini-2.5-flash"
    roles = ("engine", "judge", "rewriter")
    return KeyPointPromptParams.check(
        DEFAULTS
        | dict.fromkeys(roles, GEMINI)
        | {
            "servers": {role: server.url for role in (*roles, other)},
            "corpus": {"limit": 2},
            "repeats": 2,
            "labels": labels,
            "baseline_methods": ["original"],
            "paths": {"output": str(root), "cache": str(root / "cache")},
            "calls": {"timeout_s": 60, "max_tries": 4} | calls,
            "studies": {
                "headroom": {"rewrites": 2, "answers": 2, "fresh_answers": 1, "groups": [2]},
                "adoption": {"repeats": 1},
                "judges": {"answers": 3},
                "transfer": {"engines": {"other": other}, "repeats": 1},
                "power": {},
            },
        }
    )


def planned_and_run(server, root, labels="", **calls):
    params = parameters(server, root, labels, **calls)
    examples = load_corpus(**params.corpus_options)
    roles = make_roles(params)
    studies = make_studies(params, roles)
    plan = plan_calls(roles, examples, params.methods, also=studies.rehearsals())
    samples = evaluate(
        examples, params.methods, roles.engine, roles.judge, params.repeats,
        rewriter=roles.rewriter, progress=lambda done, total: None,
    )  # fmt: skip
    found = studies.run(examples, samples, Run(root))
    return plan, found, roles.template_hashes(params.studies.templates(params.judge))


def test_they_are_counted_kept_and_resumed(gemini_server, tmp_path):
    server = gemini_server()
    plan, found, templates = planned_and_run(server, tmp_path / "whole")
    planned = plan["calls"]
    # two queries, k x m + fresh answers: what the comparison asks already is counted once
    assert planned["engine, headroom"] == 2 * (2 * 2 + 1 - 2)
    assert planned["rewriter, headroom"] == 2
    # five sources: 5 levels beyond none, where the original's answer is there already
    assert planned["engine, adoption"] == 2 * 5
    assert planned["rewriter, adoption"] == planned["extractor, adoption"] == 2 * 4
    assert planned["judge, adoption"] == 2 * (6 * 5 - 1)
    transfer = plan.loc[["engine, transfer"]]
    assert transfer["model"].tolist() == ["gemini-2.5-flash"] and transfer["calls"].sum() == 4
    assert planned["judge, judges"] == 3  # one batch an answer; the rest is there already
    asked = len(server.entries())
    assert 0.8 * planned.sum() <= asked <= planned.sum()
    assert {"extract_key_points", "judge_all_points"} <= set(templates)
    judged = found["judges"].tables["kappa"].index
    assert judged[0] == "lexical – lexical strict" and "verdict – batch" in judged
    assert not any("soft" in name for name in judged)
    sources = found["adoption"].tables["samples"].drop_duplicates(["query_id", "source"])
    assert sources["origin"].value_counts().to_dict() == {"target": 2, "model": 8}

    rows = found["judges"].tables["samples"].assign(key_point_number=1, method="original")
    rows = rows.assign(repeat=range(3), reader_a="supported", reader_b="omitted")
    path = tmp_path / "labels.jsonl"
    names = ["query_id", "key_point_number", "repeat", "method", "answer_sha", "key_point"]
    labels = rows[[*names, "reader_a", "reader_b"]].to_json(orient="records", lines=True)
    path.write_text(json.dumps({"labels": {}}) + "\n" + labels)
    again, found, _ = planned_and_run(server, tmp_path / "whole", str(path))
    assert again["calls"].sum() == 0 and again["held"].sum() > 0
    assert "reader a – reader b" in found["judges"].tables["kappa"].index
    assert len(server.entries()) == asked

    for _ in range(2):
        with pytest.raises(RunInterrupted, match="max_calls"):
            planned_and_run(server, tmp_path / "cut", str(path), max_calls=asked // 3)
    planned_and_run(server, tmp_path / "cut", str(path))
    assert len(server.entries()) == 2 * asked  # two caches; nothing asked twice in either
    for name in TABLES:
        whole, cut = (pd.read_parquet(tmp_path / f / f"{name}.parquet") for f in ("whole", "cut"))
        pd.testing.assert_frame_equal(whole, cut, check_exact=True)


def test_an_arrangement_is_planned_with_the_calls_about_it(gemini_server, tmp_path):
    params = parameters(gemini_server(), tmp_path)
    methods = ["original", "key_point", "arrange_key_point"]
    plan = plan_calls(make_roles(params), load_corpus(**params.corpus_options), methods)
    # two queries; two answers a page, each with its verdict; a comparison a rewritten page
    judged = 2 * 3 * 2 + 2 * 2
    assert plan["calls"].to_dict() == {"engine": 2 * 3 * 2, "judge": judged, "rewriter": 2 * 2}
    # A verdict is short; a comparison has a line for each claim of two pages, of some 15 tokens.
    compared = (plan.loc["judge", "tokens_out"] - 2 * 3 * 2 * 50) / (2 * 2)
    assert 15 * 10 < compared < 15 * 80


def test_queries_are_priced_with_all_their_key_points(gemini_server, tmp_path):
    params = parameters(gemini_server(), tmp_path)
    params = params.model_copy(
        update={"corpus": params.corpus.model_copy(update={"key_points": "all"})}
    )
    examples = load_corpus(**params.corpus_options)
    roles = make_roles(params)
    plan = plan_calls(roles, examples, params.methods)
    table = power_before(params, plan, examples)
    points = sum(len(example.key_points) for example in examples)
    assert points > 2  # of two queries
    row = table.iloc[0]
    assert row["calls"] == pytest.approx(row["queries"] / 2 * plan["calls"].sum(), abs=1)
    assert row["answers"] == np.ceil(row["queries"] / 2 * points * params.repeats)


def test_faults_are_abstentions_that_the_tables_count(gemini_server, tmp_path):
    server = gemini_server(faults={"blocked": 0.15}, seed=3)
    _, found, _ = planned_and_run(server, tmp_path)
    asked = [found[name].tables["samples"] for name in TABLES[:3]]
    assert sum(samples["supported"].isna().sum() for samples in asked) > 0
    for samples in asked:
        assert (samples["supported"].isna() == samples["abstention"].notna()).all()


def test_a_corpus_of_single_sources_is_refused_for_adoption(tmp_path):
    params = KeyPointPromptParams.check(DEFAULTS | {"studies": {"adoption": {}}})
    single = make_example(sources=("The Moon raises two bulges.",), target_id=0)
    with pytest.raises(ValueError, match="every query of corpus 'sample' has one source"):
        check_studies(params, [single])
    check_studies(params, [single, make_example("q2")])


def test_a_pilot_that_is_not_there_is_named():
    params = KeyPointPromptParams.check(DEFAULTS | {"studies": {"power": {"pilot": "no/run"}}})
    with pytest.raises(ValueError, match=r"studies.power.pilot='no/run': cannot read samples.par"):
        check_studies(params, load_corpus().examples[:2])


def test_a_plan_is_recorded_by_role_with_its_parts_together_and_unknown_prices_as_none():
    columns = ["model", "calls", "held", "tokens_in", "tokens_out", "cost_usd"]
    rows = [["m", 2, 1, 5, 6, 0.5], ["m", 3, 0, 5, 6, 0.25], ["other", 1, 0, 2, 2, float("nan")]]
    table = pd.DataFrame(rows, columns=columns, index=["engine", "engine, adoption", "judge"])
    found = plan_by_role(table)
    counts = {"calls": 5, "held": 1, "tokens_in": 10, "tokens_out": 12, "cost_usd": 0.75}
    assert found["engine"] == counts and found["judge"]["cost_usd"] is None
    assert plan_by_role(table.iloc[:0]) == {}
