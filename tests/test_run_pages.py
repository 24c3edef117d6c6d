"""The pages about many runs: the index, and runs side by side."""

import fcntl
import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import growth
from run_folders import HEADLINE, executed, make_run, method_row, picture

from geo_utils.meeting.index_page import duration, write_index
from geo_utils.meeting.records import find_records
from geo_utils.meeting.side_by_side import compare_runs, comparison_view, write_comparison
from geo_utils.report import main

chromium = pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")


@pytest.fixture
def report(capsys):
    """Call the command line; return its exit code and what it wrote."""

    def call(*arguments):
        try:
            main([*map(str, arguments)])
        except SystemExit as end:
            return 1, str(end.code)
        return 0, capsys.readouterr().out

    return call


def in_browser(page, script, folder):
    """Return the page's markup after a script has run in it, and the browser's complaints."""
    changed = folder / "changed.html"
    changed.write_text(page.read_text().replace("</html>", f"<script>{script}</script></html>"))
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=3000", "--dump-dom",
         f"file://{changed}"],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


def loads_something(page):
    markup = re.sub(r"(<script[^>]*>).*?</script>", r"\1", page, flags=re.DOTALL)
    tags = r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["'](?!data:|#)([^"']+)"""
    return re.findall(tags, markup) + re.findall(r"@import|url\([\"']?(?:https?:)?//", markup)


@pytest.fixture
def root(tmp_path):
    executed(make_run(tmp_path, "20260101-100000000-aaaaaaaa"), picture())
    make_run(tmp_path, "20260102-1", variant="bad", status="failed", headline=None,
             reason="ValueError: <script>alert(1)</script>")  # fmt: skip
    torn = make_run(tmp_path, "20260103-1", notebook="04_grpo")
    (torn / "manifest.json").write_text('{"status": "fin')
    (torn / "report.html").write_text("")
    return tmp_path


class TestIndex:
    def test_every_run_is_a_row_also_a_torn_one(self, root):
        page = write_index(root).read_text()
        rows = re.findall(r"<tr id=.*?</tr>", page, re.DOTALL)
        assert [re.search('id="([^"]+)"', row).group(1)[:10] for row in rows] == [
            "20260103-1", "20260102-1", "20260101-1",
        ]  # fmt: skip
        torn, failed, finished = rows
        assert "unreadable" in torn and "manifest.json is torn" in torn and "not ended" in torn
        assert 'href="04_grpo/smoke/20260103-1/report.html"' in torn and "slides" not in torn
        assert "&lt;script&gt;alert(1)" in failed and "<script>" not in failed
        assert "key-point rewrite 0.900 [0.800, 1.000]" in finished and "offline roles" in finished
        assert "n = 30 queries, 90 samples, 2 abstentions each" in finished and "30 s" in finished
        assert "repeats=3" in finished and "notebook.ipynb" in finished
        assert "3 runs · 1 failed · 1 finished · 1 unreadable" in page
        assert loads_something(page) == []

    def test_an_empty_folder_is_an_empty_page_and_a_missing_one_an_error(self, tmp_path, report):
        assert "0 runs" in write_index(tmp_path).read_text()
        code, said = report("index", "--output-root", tmp_path / "missing")
        assert code == 1 and "missing: no such folder" in said

    @chromium
    def test_headers_sort_and_words_filter(self, root, tmp_path):
        script = """
        const ids = () => rows.filter(r => !r.hidden).sort((a, b) => a.rowIndex - b.rowIndex)
          .map(r => r.id.slice(0, 10)).join(" ");
        const heads = document.querySelectorAll("th button"), out = [];
        heads[3].click(); out.push(ids()); heads[3].click(); out.push(ids());
        heads[0].click(); out.push(ids());
        filter.value = "grpo UNREAD"; filter.dispatchEvent(new Event("input")); out.push(ids());
        document.title = out.join("|") + "|" + document.getElementById("shown").textContent;
        """
        markup = in_browser(write_index(root), script, tmp_path)
        title = re.search("<title>(.*?)</title>", markup).group(1)
        one, two, three = "20260101-1", "20260102-1", "20260103-1"
        assert title.split("|") == [
            f"{one} {two} {three}", f"{three} {two} {one}", f"{two} {one} {three}", three, "1 of 3",
        ]  # fmt: skip

    def test_who_writes_second_has_seen_what_the_first_has(self, tmp_path):
        (tmp_path / ".locks").mkdir()
        with (tmp_path / ".locks/index").open("w") as first:
            fcntl.flock(first, fcntl.LOCK_EX)
            second = threading.Thread(target=write_index, args=(tmp_path,))
            second.start()
            time.sleep(0.5)
            assert not (tmp_path / "index.html").exists()
            make_run(tmp_path, "20260101-1")  # while the second one waits
        second.join()
        assert 'id="20260101-1"' in (tmp_path / "index.html").read_text()

    def test_each_run_is_read_once_and_costs_the_same_among_many(self, tmp_path, monkeypatch):
        few, many = tmp_path / "few", tmp_path / "many"
        for root, runs in ((few, 100), (many, 400)):
            for i in range(runs):
                make_run(root, f"20260101-{i:09d}-aaaaaaaa", variant=f"v{i % 40}")
        # 4 if linear; the defaults are read once a process
        assert growth(write_index, few, many, tries=3) < 8
        read, real = Counter(), Path.read_text
        monkeypatch.setattr(
            Path, "read_text", lambda path, *a, **k: read.update([path]) or real(path, *a, **k)
        )
        write_index(many)
        manifests = {path: times for path, times in read.items() if path.name == "manifest.json"}
        assert len(manifests) == 400 and set(manifests.values()) == {1}
        assert read.total() <= 400 + 1  # and the page's template

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(None, "not ended"), (0, "0 s"), (59.6, "1 min 0 s"), (3661, "1 h 1 min"),
         (90_000, "1 d 1 h"), (86_401, "1 d 0 h")],
    )  # fmt: skip
    def test_durations_have_two_units(self, seconds, text):
        assert duration(seconds) == text


def resolved(**values):
    return {"passed": {}, "resolved": {"variant": "v", "output_root": "outputs"} | values}


class TestComparison:
    @pytest.fixture
    def pair(self, tmp_path):
        raised = {"methods": HEADLINE["methods"] | {"key_point": method_row(0.5, 0.4, 0.6)}}
        make_run(tmp_path, "20260101-1", parameters=resolved(seed=0, calls={"max_calls": 1}))
        make_run(tmp_path, "20260101-2", parameters=resolved(seed=1, calls={"max_calls": 1}),
                 headline=raised, variant="other")  # fmt: skip
        return find_records(tmp_path)

    def test_only_what_differs_and_every_number_with_n(self, pair):
        compared = compare_runs(pair)
        assert compared.parameters.to_dict() == {"A": {"seed": "0"}, "B": {"seed": "1"}}
        cell = compared.headlines.loc["key-point probability, key-point rewrite", "B"]
        assert cell == "0.500 [0.400, 0.600]\nn = 30 queries, 90 samples, 2 abstentions"
        assert compared.notes == ()
        assert compared.figure.get_suptitle() == (
            "Key-point rewrite differs most: 0.500 in B, 0.900 in A; their intervals do not meet"
        )
        labels = [tick.get_text() for tick in compared.figure.axes[0].get_yticklabels()]
        assert labels[:2] == ["A · original", "B · original"] and len(labels) == 6

    def test_what_stands_in_the_way_is_said(self, pair, tmp_path):
        make_run(tmp_path, "20260101-3", notebook="03_key_point_prompt", provenance="gemini",
                 parameters=resolved(seed=0, method="key_point"), inputs={"corpus": "d"},
                 code_hash="two")  # fmt: skip
        make_run(tmp_path, "20260101-4", status="failed", reason="why", headline=None,
                 parameters=None)  # fmt: skip
        compared = compare_runs(find_records(tmp_path))
        text = " ".join(compared.notes)
        for word in ("D recorded no parameters", "Different notebooks", "same corpus",
                     "different roles", "versions of the code", "Not finished: D"):  # fmt: skip
            assert word in text
        assert "method" not in compared.parameters.index
        assert compared.parameters.loc["seed"].tolist() == ["0", "1", "0", "–"]
        assert compared.runs.loc["D", "status"] == "failed: why"

    def test_many_runs_stand_below_each_other(self, tmp_path):
        for i in range(30):
            make_run(tmp_path, f"20260101-{i:02d}", parameters=resolved(seed=i))
        shown = comparison_view(find_records(tmp_path)).data
        assert "<th>seed</th>" in shown and "<th>AD</th>" in shown

    def test_quartiles_are_not_called_95_percent_intervals(self, tmp_path):
        seconds = {"mean": 2.0, "low": 1.5, "high": 2.5, "n_steps": 8}
        for i in range(2):
            make_run(tmp_path, f"20260101-{i}", "01_efficiency", headline={
                "seconds a step, median [quartiles]": {"a": seconds},
            })  # fmt: skip
        records = find_records(tmp_path)
        figure = compare_runs(records).figure
        assert "n = 8 steps; quartiles." in [text.get_text() for text in figure.texts]
        shown = comparison_view(records).data
        assert "Headlines [quartiles]" in shown and "95 %" not in shown

    def test_runs_without_intervals_have_no_figure(self, tmp_path):
        for i in range(2):
            make_run(tmp_path, f"20260101-{i}", headline={"step_s": 2.0 + i})
        assert compare_runs(find_records(tmp_path)).figure is None
        assert "No run has a headline number" in comparison_view(find_records(tmp_path)).data

    def test_the_page_is_one_file_with_links_to_the_runs(self, pair, tmp_path):
        path = write_comparison(pair, tmp_path)
        page = path.read_text()
        assert write_comparison(pair, tmp_path) == path and loads_something(page) == []
        for link in re.findall('href="(?!data:)([^"]+)"', page):
            assert (path.parent / link / "manifest.json").exists()
        assert "data:image/png;base64" in page

    def test_the_command_takes_folders_and_ids(self, pair, tmp_path, report):
        arguments = (pair[0].folder, "20260101-2", "--output-root", tmp_path)
        code, said = report("compare", *arguments)
        assert code == 0 and Path(said.strip()).parent == tmp_path / "comparisons"
        for words, message in (
            ((pair[0].folder,), "at least two different runs"),
            ((pair[0].folder, pair[0].folder), "at least two different runs"),
            ((pair[0].folder, "20269"), "'20269' is no run"),
        ):
            code, said = report("compare", *words, "--output-root", tmp_path)
            assert code == 1 and message in said
