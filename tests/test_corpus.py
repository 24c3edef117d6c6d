import json
import re
from collections import Counter

import pytest
from conftest import make_example, make_row

from geo_utils import corpus as corpus_module
from geo_utils.corpus import MAX_PAGE_CHARS, CorpusError, KeyPoint, choose_key_points, load_corpus


def points(**changes):
    point = {"point_number": 1, "point_content": "A claim.", "spans": []} | changes
    return {"ori_keypoint_dict": {"points": [point]}}


def load(path, **options):
    return load_corpus("jsonl", path=path, **options)


class TestSample:
    corpus = load_corpus()

    def test_size(self):
        assert len(self.corpus) >= 24
        assert len({e.query_id for e in self.corpus}) == len(self.corpus)
        assert set(Counter(e.target_id for e in self.corpus)) == {0, 1, 2, 3, 4}

    @pytest.mark.parametrize("example", corpus, ids=lambda e: e.query_id)
    def test_example(self, example):
        assert len(example.sources) == 5
        assert all(120 <= len(page.split()) <= 250 for page in example.sources)
        assert 4 <= len(example.key_points) <= 8
        for point in example.key_points:
            assert point.spans
            assert all(span in example.target for span in point.spans)
            assert point.content not in example.target

    def test_pages_are_no_copies(self):
        for example in self.corpus:
            grams = [
                {tuple(w[i : i + 8]) for i in range(len(w) - 7)}
                for w in (re.findall(r"\w+", page.lower()) for page in example.sources)
            ]
            for i, page in enumerate(grams):
                assert not any(page & other for other in grams[:i]), example.query_id


class TestRows:
    def test_a_row_becomes_an_example(self, rows_file):
        (example,) = load(rows_file(make_row()))
        assert example.query_id == "q1"
        assert example.target == make_row()["text_list"][1]
        assert example.key_points[1] == KeyPoint(2, "A new tide arrives every 12 hours.")

    def test_geo_bench_layout(self, rows_file):
        sources = [{"url": "a", "cleaned_text": "One."}, {"cleaned_text": "", "raw_text": "Two."}]
        row = {"query": "q?", "tags": [], "sources": sources, "sugg_idx": 1}
        (example,) = load(rows_file(row))
        assert example.sources == ("One.", "Two.")
        assert example.target == "Two."

    def test_one_source_is_enough(self, rows_file):
        (example,) = load(rows_file(make_row(text_list=["Only one."], target_id=0)))
        assert example.sources == ("Only one.",)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"text_list": []}, "no sources"),
            ({"text_list": None}, "no sources"),
            ({"text_list": "one page"}, "no sources"),
            ({"target_id": 3}, "target_id=3; allowed are 0 to 2"),
            ({"target_id": -1}, "target_id=-1; allowed are 0 to 2"),
            ({"target_id": "1"}, "target_id='1'; allowed"),
            ({"target_id": True}, "target_id=True; allowed"),
            ({"query": ""}, "query='' must be a text"),
            ({"query_id": None}, "query_id is missing"),
            ({"text_list": ["a", 5, "b"]}, "page 1: int instead of a text"),
            ({"text_list": ["a", "  ", "b"]}, "the target page 1 is empty"),
            ({"text_list": ["a", "x" * 5_000_000, "b"]}, "page 1: 5,000,000 characters; at most"),
            ({"ori_keypoint_dict": {"points": [{"point_number": 1}]}}, "without point_content"),
            ({"ori_keypoint_dict": {"points": ["a"]}}, "without point_content: 'a'"),
            ({"ori_keypoint_dict": {"points": {"a": 1}}}, "key points must be a list"),
            ({"ori_keypoint_dict": "x"}, "ori_keypoint_dict must hold points, not 'x'"),
            (points(point_number="1"), "point_number='1' must be a whole number"),
            (points(spans="Zinc"), "spans of point 1 must be a list, not 'Zinc'"),
            ({"query": "\x00"}, "must be a text"),
        ],
    )
    def test_a_wrong_row_is_named_by_line(self, rows_file, monkeypatch, changes, message):
        path = rows_file(make_row(), make_row(**({"query_id": "q2"} | changes)))
        cleaned, clean = [], corpus_module.clean_text
        monkeypatch.setattr(
            corpus_module, "clean_text", lambda text: cleaned.append(text) or clean(text)
        )
        with pytest.raises(CorpusError, match=re.escape(message)) as caught:
            load(path)
        assert "line 2" in str(caught.value)
        # what is too long is refused before any work is done on it
        assert cleaned and max(map(len, cleaned)) <= MAX_PAGE_CHARS

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is empty"),
            (b" \n\n", "is empty"),
            (json.dumps(make_row()).encode() + b'\n{"query_id": "q2", "que', "line 2: not a JSON"),
            (json.dumps(make_row()).encode() + b"\n[1, 2]", "line 2: list instead of a JSON"),
            ('{"query": "caf\u00e9"}'.encode("latin-1"), "line 1: byte 15 is not UTF-8"),
        ],
    )
    def test_a_wrong_file(self, tmp_path, content, message):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(content)
        with pytest.raises(CorpusError, match=message):
            load(path)

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(CorpusError, match=r"nowhere\.jsonl: no such file"):
            load(tmp_path / "nowhere.jsonl")

    def test_duplicate_ids_name_both_rows(self, rows_file):
        with pytest.raises(CorpusError, match=r"'q1' stands in rows 1 and 3"):
            load(rows_file(make_row(), make_row("q2"), make_row()))

    def test_a_byte_order_mark_is_no_error(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(make_row()).encode())
        assert len(load(path)) == 1

    def test_control_characters_are_removed_and_counted(self, rows_file):
        pages = ["A\x00B\x1b[0m", "Line\r\nnext\ttab \ud800", "ok"]
        path = rows_file(make_row())
        path.write_text(json.dumps(make_row(text_list=pages)))
        corpus = load(path)
        assert corpus[0].sources == ("AB[0m", "Line\nnext\ttab ", "ok")
        assert "control characters (removed): 2" in str(corpus)

    def test_equal_point_numbers_are_numbered_anew(self, rows_file):
        twice = [{"point_number": 4, "point_content": text} for text in ("One.", "Two.")]
        (example,) = load(rows_file(make_row(ori_keypoint_dict={"points": twice})))
        assert [p.number for p in example.key_points] == [1, 2]

    def test_line_breaks_of_every_kind_separate_words(self, rows_file):
        row = make_row(text_list=["one\x0ctwo\u2028three\x85four", "b", "c"])
        assert load(rows_file(row))[0].sources[0] == "one\ntwo\nthree\nfour"

    @pytest.mark.parametrize("name", ["smaple", "", "SAMPLE"])
    def test_an_unknown_name_lists_the_known(self, name):
        with pytest.raises(CorpusError, match="Choose from sample, jsonl"):
            load_corpus(name)

    def test_limit_draws_nested_subsets_in_file_order(self, rows_file):
        path = rows_file(*(make_row(f"q{i}") for i in range(20)))
        ids = [e.query_id for e in load(path)]
        five = [e.query_id for e in load(path, limit=5, seed=1)]
        ten = [e.query_id for e in load(path, limit=10, seed=1)]
        assert set(five) < set(ten) < set(ids)
        assert five == [i for i in ids if i in five]
        assert five != [e.query_id for e in load(path, limit=5, seed=2)]
        with pytest.raises(CorpusError, match="limit=0"):
            load(path, limit=0)


class TestHub:
    def test_a_saved_dataset(self, tmp_path):
        import datasets

        datasets.Dataset.from_list([make_row(), make_row("q2")]).save_to_disk(tmp_path / "saved")
        corpus = load(tmp_path / "saved")
        assert [e.query_id for e in corpus] == ["q1", "q2"]
        assert corpus[0].key_points[0].content == "The Moon raises two bulges of water."
        with pytest.raises(CorpusError, match="no dataset saved to disk"):
            load(tmp_path)

    def test_a_hub_layout_with_autogeo_key_points(self, tmp_path, monkeypatch):
        """The Hub's repository layout read from a folder, and AutoGEO's key points joined."""
        hub = tmp_path / "hub"
        hub.mkdir()
        (hub / "README.md").write_text(
            "---\nconfigs:\n- config_name: main\n  data_files:\n"
            "  - split: test\n    path: test.jsonl\n---\n"
        )
        plain = {k: v for k, v in make_row().items() if k != "ori_keypoint_dict"}
        rows_ = [plain | {"query_id": q} for q in ("a", "b", "c")]
        (hub / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows_))
        monkeypatch.setitem(corpus_module.HUB_IDS, "researchy-geo", str(hub))
        points = tmp_path / "key_point"
        points.mkdir()
        target = {
            "point_number": 1,
            "point_content": "Two bulges.",
            "spans": ["The Moon raises  two bulges of water."],
        }
        other = target | {"spans": ["Boats wait for it."], "point_content": "Boats wait."}
        (points / "a.json").write_text(json.dumps({"key_points": {"d7": [other], "d9": [target]}}))
        (points / "b.json").write_text(json.dumps({"key_points": {"d7": [other]}}))
        corpus = load_corpus("researchy-geo", path=points)
        assert [len(e.key_points) for e in corpus] == [1, 0, 0]
        assert corpus[0].key_points[0].content == "Two bulges."
        assert corpus.join_rate == pytest.approx(1 / 3)
        assert "joined for 33.3% of queries" in str(corpus)

    def test_an_unreachable_hub_says_what_to_do(self, monkeypatch, tmp_path):
        monkeypatch.setitem(corpus_module.HUB_IDS, "geo-bench", str(tmp_path / "nowhere"))
        with pytest.raises(CorpusError, match="use corpus='jsonl' with its folder"):
            load_corpus("geo-bench")


class TestChoice:
    def test_one_point_a_page_by_its_own_seed(self):
        corpus = load_corpus()
        chosen = choose_key_points(corpus, seed=3)
        assert len(chosen) == len(corpus)
        assert choose_key_points(corpus.examples[5:7], seed=3) == chosen[5:7]
        assert [p for _, p in chosen] != [p for _, p in choose_key_points(corpus, seed=4)]

    def test_all_points(self):
        corpus = load_corpus()
        chosen = choose_key_points(corpus, "all")
        assert len(chosen) == sum(len(e.key_points) for e in corpus)

    def test_exclusive_points_are_on_no_other_page(self):
        shared = KeyPoint(1, "The sea rises twice a day in most harbours.")
        own = KeyPoint(2, "The Moon raises two bulges of water.")
        example = make_example(key_points=(shared, own))
        for seed in range(5):
            assert choose_key_points([example], "exclusive", seed) == [(example, own)]
        assert choose_key_points([make_example(key_points=(shared,))], "exclusive") == []

    def test_examples_without_points_are_left_out_and_counted(self, rows_file):
        path = rows_file(make_row(), make_row("q2", ori_keypoint_dict={"points": []}))
        corpus = load(path)
        assert len(choose_key_points(corpus)) == 1
        assert "1 examples without key points (skipped)" in str(corpus)
