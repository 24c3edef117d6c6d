"""Hand labels, the judge's errors by arm, and what is left of a lift once they are corrected."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from measure_certificate import coverage

from geo_utils import certificate as module
from geo_utils.certificate import (
    PREVIOUS_ARM,
    Labels,
    answer_sha,
    arm_of,
    certificate,
    correct,
    corrected_lifts,
    corrected_probabilities,
    correction_headline,
    export_labels,
    import_labels,
    read_labels,
    with_labels,
)
from geo_utils.cli import app
from geo_utils.roles.methods import pooled
from geo_utils.show.tables import correction_findings, correction_tables
from geo_utils.statistics import interval_reach

ARMS = ["original", "key_point", "paste_key_point", "fluency", "rules"]
Y, N, C = "supported", "omitted", "contradicted"
HOW = {"readers": {"reader_a": "a person", "reader_b": "a person"}}


def samples_of(methods=ARMS, queries=10, repeats=2):
    """Samples whose judge calls the even queries supported."""
    rows = [
        {
            "query_id": f"q{q}", "query": "how?", "method": method, "repeat": r,
            "key_point_number": 1, "key_point": "The Moon pulls.", "verdict": (Y, N)[q % 2],
            "answer": f"{method} {q} {r}", "supported": float(q % 2 == 0),
        }
        for q in range(queries) for method in methods for r in range(repeats)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def labels_of(samples, first, second=None):
    table = samples[module._SAMPLE].assign(
        answer_sha=[answer_sha(*t) for t in samples[["query_id", "key_point", "answer"]].values],
        key_point=samples["key_point"],
        reader_a=first,
        reader_b=first if second is None else second,
    )
    return Labels(HOW, table)


class TestCorrection:
    @pytest.mark.parametrize("planted", [{"lift": 0.2}, {"lift": 0.0, "each": False}])
    def test_the_corrected_lift_holds_the_truth_where_errors_differ(self, planted):
        """Recall 0.6 and 0.95, specificity 0.95 and 0.8: the raw lift is twice the true one."""
        found = coverage(range(120), **planted)
        held = found.drop(["raw", "width"])
        assert (held >= 0.92).all() and found["raw"] < 0.3

    def test_by_hand(self, monkeypatch):
        """6 of 8 called supported; of 4 labelled, one is called so wrongly: 3/4 - 1/4."""
        monkeypatch.setattr(module, "FEWEST", 4)
        samples = samples_of(["original"], queries=4)
        samples["supported"] = [1, 1, 1, 1, 1, 1, 0, 0]
        samples["truth"] = [1, np.nan, 0, np.nan, 1, np.nan, 0, np.nan]
        row = corrected_probabilities(samples).loc["original"]
        assert (row["raw"], row["corrected"]) == (0.75, 0.5)
        assert (row["n_samples"], row["n_labels"], row["label_queries"]) == (8, 4, 4)
        lifted = samples.assign(method="key_point", supported=1.0)
        lifted.loc[2, "truth"] = 1.0
        lift = corrected_lifts(pd.concat([samples, lifted])).loc["key_point"]
        assert (lift["raw"], lift["corrected"]) == (0.25, 0.25)
        # what is left without each query: verdicts of 6 samples, label less verdict of 3
        said = {"original": np.array([2, 2, 2, 0]), "key_point": np.array([2, 2, 2, 2])}
        wrong = {"original": np.array([0, -1, 0, 0]), "key_point": np.array([0, 0, 0, -1])}
        left = {m: (sum(s) - s) / 6 + (sum(wrong[m]) - wrong[m]) / 3 for m, s in said.items()}
        each = left["key_point"] - left["original"]
        half = interval_reach(4) * np.sqrt(3 / 4 * ((each - each.mean()) ** 2).sum())
        assert lift["corrected_high"] == pytest.approx(0.25 + half)

    def test_a_reply_without_a_page_needs_no_label_and_has_no_error(self, monkeypatch):
        """Half of the replies hold no page; of the others 6 of 8 are called so, and all are."""
        monkeypatch.setattr(module, "FEWEST", 4)
        samples = samples_of(["policy/before", "original"], queries=8)
        none = (samples["query_id"] >= "q4") & (samples["method"] == "policy/before")
        samples["supported"] = [*[1.0] * 12, *[0.0] * 20]
        samples["truth"] = np.where(samples["repeat"] == 0, 1.0, np.nan)
        samples.loc[none, ["truth", "verdict", "answer"]] = [np.nan, "no page", None]
        row = corrected_probabilities(samples).loc["policy/before"]
        assert (row["raw"], row["corrected"]) == (6 / 16, 0.5)
        assert (row["n_samples"], row["n_labels"], row["label_queries"]) == (16, 4, 4)
        lift = corrected_lifts(samples).loc["policy/before"]
        assert (lift["raw"], lift["corrected"]) == (0.0, -0.5)
        # where labels alone tell, they tell of the pages that there are
        silent = samples.assign(supported=0.0, truth=samples["truth"] * 0.0)
        alone = corrected_probabilities(silent).loc[["policy/before", "original"], "corrected_high"]
        of_four, of_eight = 1 - 0.025 ** (1 / 4), 1 - 0.025 ** (1 / 8)  # Clopper-Pearson, none seen
        assert list(alone) == pytest.approx([of_four / 2, of_eight])

    def test_where_all_agree_the_labels_alone_tell(self):
        samples = samples_of(["original"], queries=30, repeats=1).assign(supported=0.0, truth=0.0)
        row = corrected_probabilities(samples).loc["original"]
        assert row["corrected"] == row["corrected_low"] == 0 < row["corrected_high"] < 0.13

    def test_an_arm_without_labels_stays_raw_and_says_so(self):
        samples = samples_of(queries=30)
        few = samples[samples["method"].isin(["original", "key_point", "fluency", "rules"])]
        few = few[(few["method"].isin(["original", "key_point"])) | (few["query_id"] < "q15")]
        found = with_labels(samples, labels_of(few, N))
        each, lifts = corrected_probabilities(found), corrected_lifts(found)
        assert list(each.index) == [*ARMS, pooled(2)]
        notes = {"original": "", "key_point": "", "rules": "14 labels; a correction needs 20"}
        notes |= {"paste_key_point": "no labels; a correction needs 20", pooled(2): ""}
        for arm, note in notes.items():
            assert each.loc[arm, "note"] == note and each.loc[arm, "raw"] == 0.5
            assert np.isnan(each.loc[arm, "corrected"]) == bool(note)
            if arm != "original":
                assert lifts.loc[arm, "note"] == note and lifts.loc[arm, "raw"] == 0.0
        lifts = corrected_lifts(found, reference="paste_key_point")
        assert lifts.loc["original", "note"].startswith("paste_key_point: no labels")
        bare = corrected_probabilities(with_labels(samples, None))
        assert (bare["note"] == "no labels; a correction needs 20").all()

    def test_previous_methods_are_one_whose_pairs_are_means_and_whose_labels_count_each(
        self, monkeypatch
    ):
        """Of 8 samples of 4 pairs 5 are called supported; of 5 labels 2 say otherwise, both no."""
        monkeypatch.setattr(module, "FEWEST", 5)
        samples = samples_of(["original", "fluency", "rules"], queries=4, repeats=1)
        samples["supported"] = [1, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0, 0]
        samples["truth"] = [np.nan, 1, 0, np.nan, 0, np.nan, np.nan, 1, 0, np.nan, np.nan, np.nan]
        row = corrected_probabilities(samples).loc[pooled(2)]
        assert (row["raw"], row["corrected"]) == (5 / 8, pytest.approx(5 / 8 - 2 / 5))
        assert (row["n_samples"], row["n_labels"], row["label_queries"]) == (4, 5, 3)

    def test_a_method_that_was_never_scored_has_a_row_and_no_number(self):
        samples = samples_of(["original", "key_point"]).assign(truth=np.nan)
        samples.loc[samples["method"] == "key_point", "supported"] = np.nan
        for found in (corrected_probabilities(samples), corrected_lifts(samples)):
            row = found.loc["key_point"]
            assert np.isnan([row["raw"], row["raw_low"], row["corrected"]]).all()
            assert row["n_samples"] == 0 and row["note"].startswith("no labels")
        with pytest.raises(ValueError, match="reference='rules': choose from original, key_point"):
            corrected_lifts(samples, "rules")

    def test_previous_methods_are_those_that_do_not_know_the_point(self):
        arms = {m: arm_of(m) for m in ("fluency", "keyword_stuffing", "rules")}
        assert set(arms.values()) == {PREVIOUS_ARM}
        for own in ("original", "key_point", "rules_truthful", "instruct_engine", "removed"):
            assert arm_of(own) == own


class TestCertificate:
    def test_by_hand_and_by_arm(self):
        """Of the original's 10 supported 5 are seen, of its 10 others 5 are refused."""
        samples = samples_of(["original", "key_point"])
        own = samples["method"] == "key_point"
        first = np.where(own, samples["verdict"], np.where(samples["repeat"] == 0, Y, N))
        second = np.where(own & (samples["query_id"] == "q9"), Y, first)
        found = certificate(with_labels(samples, labels_of(samples, first, second)))
        assert list(found.index) == ["original", "key_point", "all arms"]
        bad, good = found.loc["original"], found.loc["key_point"]
        assert (bad["recall"], bad["specificity"], bad["kappa"]) == (0.5, 0.5, 0.0)
        assert (bad["n_recall"], bad["n_labels"], bad["readers"]) == (10, 20, 1.0)
        assert bad["recall_low"] < 0.5 < bad["recall_high"]
        # the readers disagree on two of the answers, which are left out of the rates
        assert (good["recall"], good["specificity"], good["n_specificity"]) == (1.0, 1.0, 8)
        assert good["disagreements"] == 2 and good["readers"] == pytest.approx(0.8)
        assert good["readers_low"] < 0.8 < good["readers_high"] <= 1.0
        assert found.loc["all arms", "n_labels"] == 40

    def test_without_labels_it_is_empty(self):
        assert certificate(with_labels(samples_of(), None)).empty

    def test_a_label_stays_with_its_answer(self):
        samples = samples_of(["original"], queries=4, repeats=1)
        labels = labels_of(samples, [Y, Y, N, C], [Y, N, N, N])
        samples["supported"] = [1.0, 0.0, np.nan, 1.0]
        assert with_labels(samples, labels)["truth"].tolist()[:2] == [1.0, 0.5]
        changed = samples.assign(answer=["another", *samples["answer"][1:]])[::-1]
        found = with_labels(changed, labels)
        np.testing.assert_equal(found["truth"].tolist(), [0.0, np.nan, 0.5, np.nan])
        assert found["reader_a"].tolist() == [C, N, Y, None]

    def test_a_query_is_in_one_half_for_good(self):
        labels = labels_of(samples_of(queries=40), N)
        halves = [set(labels.half(half).table["query_id"]) for half in ("tune", "correct")]
        assert not halves[0] & halves[1] and len(halves[0] | halves[1]) == 40
        assert 10 < len(halves[0]) < 30 and {"q0", "q3"} <= halves[0] and "q1" in halves[1]


@pytest.fixture
def exported(tmp_path):
    sheet, key = export_labels(samples_of(), {"run": "03 · smoke · r1"}, each=8, seed=0)
    (tmp_path / "sheet.key.jsonl").write_text(key)
    (tmp_path / "sheet.jsonl").write_text(sheet)
    return tmp_path


def fill(folder, name, reader, label):
    head, *rows = map(json.loads, (folder / "sheet.jsonl").read_text().splitlines())
    rows = [row | {"label": label(row)} for row in rows]
    lines = [json.dumps(row) + "\n" for row in [head | {"reader": reader}, *rows]]
    (folder / name).write_text("".join(lines))
    return folder / name


class TestExchange:
    def test_out_blind_and_back(self, tmp_path, capsys):
        samples, run = samples_of(), tmp_path / "run"
        run.mkdir()
        samples.loc[samples["query_id"] == "q3", ["answer", "verdict"]] = None
        samples.to_parquet(run / "samples.parquet")
        sheet = tmp_path / "sheet.jsonl"
        command = ["labels", "export", str(run), str(sheet), "--each", "10"]
        for status in (0, 2):  # what may hold labels is not written over
            with pytest.raises(SystemExit) as ended:
                app(command)
            assert ended.value.code == status
        assert "is there already, and may hold labels" in capsys.readouterr().err
        _, *rows = map(json.loads, sheet.read_text().splitlines())
        assert len(rows) == 40 and set(rows[0]) == {"id", "query", "key_point", "answer", "label"}
        drawn = [row["answer"].split()[0] for row in rows]
        assert drawn != sorted(drawn) and set(drawn) == set(ARMS)
        first = fill(tmp_path, "a.jsonl", "a person", lambda row: " Supported ")
        second = fill(tmp_path, "b.jsonl", "model m", lambda row: N if "9" in row["answer"] else Y)
        key, out = tmp_path / "sheet.key.jsonl", tmp_path / "labels.jsonl"
        with pytest.raises(SystemExit) as ended:
            app(["labels", "import", str(key), str(first), str(second), "--out", str(out)])
        assert ended.value.code == 0
        said = capsys.readouterr().out
        assert "40 labels of 9 queries" in said and "10 previous methods" in said
        labels = read_labels(out)
        assert labels.about["readers"] == {"reader_a": "a person", "reader_b": "model m"}
        found = with_labels(samples, labels)
        assert found["truth"].notna().sum() == 40
        nine = found[found["truth"].notna() & (found["query_id"] == "q9")]
        assert (nine["truth"] == 0.5).all() and (found["truth"] == 1.0).sum() == 40 - len(nine)

    def test_a_draw_hangs_on_its_seed_alone(self):
        samples = samples_of()
        first = export_labels(samples, {}, 8, 0)
        assert export_labels(samples.sample(frac=1, random_state=1), {}, 8, 0) == first
        assert export_labels(samples, {}, 8, 1) != first

    def test_an_arm_with_too_few_answers_is_refused(self):
        with pytest.raises(ValueError, match=r"'original' has 20 answers .* --each 30 is more"):
            export_labels(samples_of(["original"]), {}, 30, 0)
        with pytest.raises(ValueError, match="no answers of original"):
            export_labels(samples_of(["removed"]), {}, 1, 0)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda lines: lines[:-1], "1 of 32 rows are missing, first id="),
            (lambda lines: [*lines, lines[1]], "line 34: id='{id}' stood in line 2; keep one"),
            (lambda lines: [lines[0].replace("a person", " "), *lines[1:]], "line 1: reader=' '"),
            (lambda lines: [lines[0], lines[1].replace(Y, "yes"), *lines[2:]],
             "line 2: label='yes'; choose from supported, omitted, contradicted"),
            (lambda lines: [lines[0], lines[1].replace(Y, ""), *lines[2:]], "line 2: it has no la"),
            (lambda lines: [lines[0], '{"id": "x", "label": "omitted"}'], "line 2: id='x' is not"),
            (lambda lines: [lines[0], "{"], "line 2: no JSON"),
            (lambda lines: [lines[0], "3"], "line 2: no object"),
            (lambda lines: lines[1:], "line 1: no entry 'reader'; give a file of `geo labels exp"),
        ],
    )  # fmt: skip
    def test_a_sheet_that_is_not_right_says_where(self, exported, change, message):
        good = fill(exported, "a.jsonl", "a person", lambda row: Y)
        lines = good.read_text().splitlines()
        bad = exported / "b.jsonl"
        bad.write_text("\n".join(change(lines)) + "\n")
        message = message.replace("{id}", json.loads(lines[1])["id"])
        with pytest.raises(ValueError, match=re.escape(message)) as refused:
            import_labels(exported / "sheet.key.jsonl", [good, bad], "2026-11-30")
        assert str(bad) in str(refused.value)
        with pytest.raises(ValueError, match="1 sheets: two readers are needed"):
            import_labels(exported / "sheet.key.jsonl", [good], "2026-11-30")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda rows: rows[1:], "line 1: no entry 'labels'; give a file of `geo labels imp"),
            (lambda rows: [*rows, rows[1]], "line 34: this sample has a row already"),
            (lambda rows: [rows[0], rows[1] | {"reader_b": "no"}], "line 2, reader_b: label='no'"),
            (lambda rows: [rows[0], {"query_id": "q"}], "line 2: no key_point_number, repeat"),
        ],
    )  # fmt: skip
    def test_a_labels_file_that_is_not_right_says_where(self, exported, change, message):
        sheets = [fill(exported, f"{n}.jsonl", "a person", lambda row: Y) for n in "ab"]
        made = import_labels(exported / "sheet.key.jsonl", sheets, "2026-11-30")
        rows = change([json.loads(line) for line in made.splitlines()])
        path = exported / "labels.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(ValueError, match=re.escape(f"{path}, {message}")):
            read_labels(path)
        with pytest.raises(ValueError, match="cannot be read"):
            read_labels(exported / "none.jsonl")


class TestShown:
    def test_raw_and_corrected_stand_side_by_side(self):
        samples = samples_of(queries=30)
        few = samples[samples["method"].isin(["original", "key_point"])]
        own = np.where(few["method"] == "key_point", few["verdict"], N)
        found = correct(samples, labels_of(few, own))
        table, judge = (each.data for each in correction_tables(found, "Corpus c."))
        assert table.loc["original", ["as judged", "n labels"]].tolist() == [
            "0.500 [0.322, 0.678]",
            60,
        ]
        assert table.loc["original", "corrected"].startswith("0.000")
        assert table.loc["key-point rewrite", "lift as judged"] == "+0.000"
        assert table.loc["key-point rewrite", "lift corrected"].startswith("+0.500 [+0.3")
        assert table.loc["fluency", ["corrected", "lift corrected"]].tolist() == ["–", "–"]
        assert table.loc["rules (as published)", "n labels"] == 0
        assert judge.loc["original", ["recall", "n other"]].tolist() == ["–", 60]
        said = correction_findings(found)
        assert "over the original page +0.000 as judged, **+0.500 [+0.3" in said
        assert "120 of 120 hand labels" in said and "a person; a person" in said
        assert said.count("- **") == 1  # the one method that has labels
        turned = correct(samples, labels_of(few, own), "key_point")
        assert "over key-point rewrite +0.000 as judged, **-0.500 [-0.6" in correction_findings(
            turned
        )
        assert [*correction_headline(turned)] == ["corrected lift over key_point"]
        (lift,) = correction_headline(found).values()
        assert list(lift) == ["key_point"] and lift["key_point"]["raw"] == 0.0
        assert lift["key_point"]["mean"] == 0.5 and lift["key_point"]["n_labels"] == 60

    def test_without_labels_one_sentence_tells_how_to_get_them(self):
        found = correct(samples_of(), None)
        assert found is None and correction_tables(found, "") == []
        assert "`geo labels export`" in correction_findings(found)
        assert correction_headline(found) == {}

    def test_labels_of_other_answers_are_said_to_fit_none(self):
        samples = samples_of(queries=30)
        found = correct(samples.assign(answer="another"), labels_of(samples, N))
        assert "None of the 300 hand labels" in correction_findings(found)
        assert correction_tables(found, "") == []
        assert correction_headline(found) == {"corrected lift over original": {}}
