"""The pages about many runs: the index, and runs side by side."""

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from conftest import growth
from run_folders import HEADLINE, executed, make_run, method_row, picture

from geo_utils.cli import app
from geo_utils.records import conclusion, find_records
from geo_utils.show.pages import duration, runs_view, write_comparison, write_index

chromium = pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")


@pytest.fixture
def report(capsys):
    """Call the command line; return its exit code and what it wrote."""

    def call(*arguments):
        code = app([*map(str, arguments)], standalone_mode=False)
        out, err = capsys.readouterr()
        return (1, err) if code else (0, out)

    return call


def in_browser(page, script, folder, size="1280,720"):
    """Return the page's markup after a script has run in it, and the browser's complaints."""
    changed = folder / "changed.html"
    text = re.sub(
        r'<meta http-equiv="Content-Security.*?>', "", page.read_text()
    )  # bars the script
    changed.write_text(text.replace("</html>", f"<script>{script}</script></html>"))
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=3000", "--dump-dom",
         f"--window-size={size}", f"file://{changed}"],
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
        assert "offline roles" in finished and "30 s" in finished
        record = find_records(root)[0]
        assert conclusion(record) in finished and "[0.800, 1.000]" in finished
        assert "repeats=3" in finished and "notebook.ipynb" in finished
        assert "3 runs · 1 failed · 1 finished · 1 unreadable" in page
        assert loads_something(page) == []

    def test_the_command_shows_a_table_and_writes_the_page(self, root, report):
        code, said = report("runs", "--root", root)
        head, *_, page = said.splitlines()
        assert code == 0 and head.split() == ["run", "status", "result"]
        assert page == str(root / "index.html") and "<script>alert(1)" in said  # as it was written
        states = re.findall(r"2026010\d-\S+ +(\w+)", said)
        assert states == ["finished", "failed", "unreadable"], said
        assert "key-point rewrite 0.900" in " ".join(said.split())

    def test_an_empty_folder_is_an_empty_page_and_a_missing_one_an_error(self, tmp_path, report):
        assert "0 runs" in write_index(tmp_path).read_text()
        code, said = report("runs", "--root", tmp_path / "missing")
        assert code == 1 and "missing: no such folder" in said

    @chromium
    @pytest.mark.parametrize("wide", [400, 1280])
    def test_it_can_be_read_on_a_phone_and_on_a_screen(self, root, tmp_path, wide):
        script = f"""
        document.documentElement.style.width = "{wide}px";  // no window is as narrow as a phone
        for (const box of document.querySelectorAll("input[type=checkbox]")) box.click();
        const texts = [...document.querySelectorAll(".geo-all td, .geo-all a, section, p")];
        const right = Math.max(...texts.map(part => part.getBoundingClientRect().right));
        const found = document.querySelector(".geo-all td:nth-child(5)").getBoundingClientRect();
        document.title = [right, found.width].map(Math.round);
        """
        markup = in_browser(write_index(root), script, tmp_path, f"{max(wide, 500)},900")
        right, found = re.search("<title>(.*?)</title>", markup).group(1).split(",")
        assert int(right) <= wide and int(found) > 340

    @chromium
    def test_headers_sort_and_words_filter(self, root, tmp_path):
        script = """
        const filter = document.querySelector("input[type=search]");
        const ids = () => [...document.querySelectorAll(".geo-all tbody tr:not([hidden])")]
          .map(r => r.id.slice(0, 10)).join(" ");
        const heads = document.querySelectorAll("th button"), out = [];
        heads[2].click(); out.push(ids()); heads[2].click(); out.push(ids());
        heads[0].click(); out.push(ids());
        filter.value = "grpo UNREAD"; filter.dispatchEvent(new Event("input")); out.push(ids());
        document.title = out.join("|") + "|" + document.querySelector(".geo-shown").textContent;
        """
        markup = in_browser(write_index(root), script, tmp_path)
        title = re.search("<title>(.*?)</title>", markup).group(1)
        one, two, three = "20260101-1", "20260102-1", "20260103-1"
        assert title.split("|") == [
            f"{one} {two} {three}", f"{three} {two} {one}", f"{two} {one} {three}", three, "1 of 3",
        ]  # fmt: skip

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
        assert read.total() == 401  # and the script of the page

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(None, "not ended"), (0, "0 s"), (59.6, "1 min 0 s"), (3661, "1 h 1 min"),
         (90_000, "1 d 1 h"), (86_401, "1 d 0 h")],
    )  # fmt: skip
    def test_durations_have_two_units(self, seconds, text):
        assert duration(seconds) == text


def resolved(**values):
    return {"passed": {}, "resolved": {"variant": "v", "paths": {"output": "outputs"}} | values}


EVIL = "</script><script>console.log('run')</script><img src=x onerror=alert(1)> {{ 7*7 }}"


def pair(root):
    raised = {"methods": HEADLINE["methods"] | {"key_point": method_row(0.5, 0.4, 0.6)}}
    raised["its own"] = {"mean": 0.1, "low": 0.0, "high": 1.0, "n": 3}
    same = {"calls": {"max_calls": 1}}
    make_run(root, "20260101-1", parameters=resolved(seed=0, **same))
    make_run(root, "20260101-2", "02_baseline_rewrites", "other", headline=raised,
             parameters=resolved(seed=1, **same))  # fmt: skip


def obstacles(root):
    pair(root)
    make_run(root, "20260101-3", notebook="03_key_point_prompt", provenance="gemini",
             parameters=resolved(seed=0, method="key_point"), inputs={"corpus": "d"},
             code_hash="two")  # fmt: skip
    make_run(root, "20260101-4", status="failed", reason="why", headline=None, parameters=None)


def sampled(root):
    pair(root)
    for record, found in zip(find_records(root), ([0] * 7 + [1], [1] * 8), strict=True):
        rows = {"query_id": [*range(8)] * 2, "key_point": "k", "supported": [1] * 8 + found,
                "method": ["original"] * 8 + ["key_point"] * 8}  # fmt: skip
        pd.DataFrame(rows).to_parquet(record.folder / "samples.parquet")


def hostile(root):
    for i in range(2):
        parameters = {EVIL: f"{i}{EVIL}", "__proto__": i, "half": "\ud800"}
        headline = {EVIL: {"mean": 0.1 * i, "low": 0.0, "high": 1.0, "n": 3}}
        make_run(root, f"20260101-{i}", provenance=EVIL, code_hash=EVIL, reason=EVIL,
                 status="interrupted", git={"commit": EVIL}, inputs={"corpus": f"{i}{EVIL}"},
                 parameters=resolved(**parameters), headline=headline)  # fmt: skip


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """What a browser shows of some groups of runs, all on one page: (tables, other texts)."""
    groups = (pair, obstacles, sampled, hostile)
    folder, views = tmp_path_factory.mktemp("compared"), []
    for make in groups:
        make(folder / make.__name__)
        views.append(runs_view(find_records(folder / make.__name__)).data)
    page = folder / "page.html"
    page.write_text(f"<!DOCTYPE html><html><body>{''.join(views)}</body></html>")
    found = [compared_in(section) for section in sections(in_browser(page, "", folder))]
    return dict(zip((make.__name__ for make in groups), found, strict=True))


def sections(markup):
    return re.findall("<section>(.*?)</section>", markup, re.DOTALL)


def compared_in(section):
    tables = [
        [re.findall("<t[hd]>(.*?)</t[hd]>", row) for row in re.findall("<tr>.*?</tr>", table)]
        for table in re.findall("<table>(.*?)</table>", section)
    ]
    rest = re.sub("<table>.*?</table>", "", section)
    return tables, re.findall(r"<(?:p|h3)[^>]*>(.*?)</(?:p|h3)>", rest)


@chromium
class TestSideBySide:
    def test_only_what_differs_and_every_number_with_n(self, compared):
        (runs, parameters, headlines), texts = compared["pair"]
        assert parameters == [["", "run 1", "run 2"], ["seed", "0", "1"]]
        names = ["", "run", "found", "status", "took", "commit", "source"]
        assert [row[0] for row in runs] == names
        assert runs[4:] == [
            ["took", "30 s", "30 s"], ["commit", "abcdef0123", "abcdef0123"],
            ["source", "offline roles", "offline roles"],
        ]  # fmt: skip
        (row,) = [row for row in headlines if row[0] == "key-point probability, key-point rewrite"]
        counts = "<small>n = 30 queries, 90 samples, 2 abstentions</small>"
        assert row[2] == f"0.500 [0.400, 0.600]<br>{counts}"
        headed = "Headlines [95 % interval, or quartiles where named]"
        alone = "1 more that one run alone has: see its report."
        assert texts == ["Parameters that differ", headed, alone]
        assert len(headlines) == 1 + len(HEADLINE["methods"])

    def test_runs_of_the_same_samples_are_compared_query_by_query(self, compared):
        (_, parameters, rows, _), texts = compared["sampled"]
        assert parameters[1] == ["seed", "0", "1"]
        assert texts[1:3] == [
            "Query by query: run 2 minus run 1 [95 % interval]",
            "Clear: Key-point rewrite +0.875 [+0.579, +1.171].",
        ]
        counts = "<small>n = 8 queries, 8 key points, 0 more without a score in either</small>"
        assert rows == [
            ["Original", "+0.000", counts],
            ["Key-point rewrite", "+0.875 [+0.579, +1.171]", counts],
        ]

    def test_what_stands_in_the_way_is_said(self, compared):
        (runs, parameters, _), texts = compared["obstacles"]
        text = " ".join(texts)
        for word in ("run 4 recorded no parameters", "Different notebooks", "same corpus",
                     "different roles", "versions of the code", "Not finished: run 4"):  # fmt: skip
            assert word in text
        assert parameters[1:] == [["seed", "0", "1", "0", "–"]]
        assert runs[3] == ["status", "finished", "finished", "finished", "failed: why"]

    def test_nothing_that_a_manifest_says_becomes_markup_or_a_script(self, compared):
        (runs, parameters, headlines), _ = compared["hostile"]
        escaped = EVIL.replace("<", "&lt;").replace(">", "&gt;")
        assert ["__proto__", "0", "1"] in parameters
        assert [escaped, f"0{escaped}", f"1{escaped}"] in parameters
        assert runs[6] == ["source", escaped, escaped] and headlines[1][0] == escaped

    def test_on_the_index_the_runs_that_are_ticked_are_compared(self, tmp_path):
        pair(tmp_path)
        script = """
        const boxes = document.querySelectorAll("input[type=checkbox]");
        document.title = document.querySelector("section").hidden;
        for (const place of [1, 0]) boxes[place].click();
        """
        markup = in_browser(write_index(tmp_path), script, tmp_path)
        assert "<title>true</title>" in markup
        (runs, parameters, _), texts = compared_in(*sections(markup))
        assert any("geo runs --compare 20260101-1 --compare 20260101-2" in text for text in texts)
        assert parameters[1] == ["seed", "0", "1"]  # in the order in which they were ticked
        assert "20260101-1" in runs[1][1] and "20260101-2" in runs[1][2]


class TestComparison:
    @pytest.fixture
    def records(self, tmp_path):
        pair(tmp_path)
        return find_records(tmp_path)

    @pytest.mark.parametrize("write", [write_index, lambda root: write_comparison(
        find_records(root), root)])  # fmt: skip
    def test_what_a_manifest_says_is_escaped(self, tmp_path, write):
        hostile(tmp_path)
        page = write(tmp_path).read_text()
        assert page.count("</script>") == 2 and "<img" not in page and "{{ 7*7 }}" in page

    def test_the_page_is_one_file_with_links_to_the_runs(self, records, tmp_path):
        path = write_comparison(records, tmp_path)
        page = path.read_text()
        assert write_comparison(records, tmp_path) == path and loads_something(page) == []
        links = re.findall('href="(?!data:)([^"]+)"', page) + re.findall('"link": "([^"]+)"', page)
        assert len(links) == 4  # the manifests, and the folders for the comparison
        assert all((path.parent / link).exists() for link in links)

    def test_the_command_takes_folders_and_ids(self, records, tmp_path, report):
        def compare(*runs):
            return report("runs", *(f"--compare={run}" for run in runs), "--root", tmp_path)

        code, said = compare(records[0].folder, "20260101-2")
        assert code == 0 and Path(said.strip()).parent == tmp_path / "comparisons"
        for words, message in (
            ((records[0].folder,), "at least two different runs"),
            ((records[0].folder, records[0].folder), "at least two different runs"),
            ((records[0].folder, "20269"), "'20269' is no run"),
        ):
            code, said = compare(*words)
            assert code == 1 and message in said
