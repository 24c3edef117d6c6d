"""The week's deck: from what runs recorded to slides that fit."""

import re
import stat
import subprocess
import sys

import nbformat
import pytest
from conftest import PROJECT
from run_folders import PIXEL, executed, make_run, picture, table
from test_run_pages import chromium, in_browser, loads_something

from geo_utils.parameters import default_parameters
from geo_utils.records import Record
from geo_utils.show.example import marked_changes
from geo_utils.show.pages import runs_view
from geo_utils.show.report import BROWSERS, NoPdf, print_pdf, render_report
from geo_utils.weekly.deck import EXAMPLE_TAG, make_deck, recorded
from geo_utils.weekly.params import MOST_SLIDES, WeeklyParams

DEFAULTS = default_parameters(PROJECT / "notebooks" / "05_weekly.ipynb")
NB03 = "03_key_point_prompt"


def deck(root, **changes):
    return make_deck(WeeklyParams.check(DEFAULTS | {"paths": {"output": str(root)}} | changes))


def titles(made):
    return [re.search("<h2>(.*?)</h2>", slide.data).group(1) for slide in made.slides]


class TestRecorded:
    def test_what_is_tagged_joins_and_nothing_else(self, tmp_path):
        log = ("weekly", "A log", {})
        cells = [picture(), table(3, tag="other"), table(3), log, table(1, tag=EXAMPLE_TAG)]
        record = Record(executed(make_run(tmp_path, "20260101-1"), *cells))
        question, found, examples = recorded(record)
        assert [f.heading for f in found] == ["How often?", "The numbers"]
        assert f"data:image/png;base64,{PIXEL}" in found[0].body and "<td>2</td>" in found[1].body
        assert len(examples) == 1 and question == "02 · Does it work?"

    def test_other_kinds_of_output(self, tmp_path):
        kinds = [{"text/markdown": "- **b**"}, {"text/plain": "a < b"}]
        cells = [("weekly", "H", kind) for kind in kinds]
        record = Record(executed(make_run(tmp_path, "20260101-1"), *cells))
        words, plain = (found.body for found in recorded(record).figures)
        assert "<strong>b</strong>" in words and "a &lt; b" in plain

    @pytest.mark.parametrize(("rows", "shown"), [(12, 12), (13, 12), (40, 12)])
    def test_no_table_has_over_12_rows(self, tmp_path, rows, shown):
        record = Record(executed(make_run(tmp_path, "20260101-1"), table(rows)))
        (found,) = recorded(record).figures
        assert found.body.count("<td>") == shown
        assert (f"{rows - shown} more rows" in found.body) == (rows > shown)

    @pytest.mark.parametrize(
        "content",
        [None, "", "{}", '{"cells": [1]}', '{"cells": null}', '{"cells": 3}', "[]", "[" * 99_999],
    )
    def test_a_missing_or_torn_notebook_shows_nothing(self, tmp_path, content):
        folder = make_run(tmp_path, "20260101-1")
        if content is not None:
            (folder / "notebook.ipynb").write_text(content)
        assert recorded(Record(folder)) == ("02_baseline_rewrites", [], [])
        assert "Without figures here: 02 smoke" in deck(tmp_path).slides[0].data


def test_the_shipped_notebooks_tags_survive_stripping(tmp_path):
    def tagged(notebook):
        cells = nbformat.read(notebook, as_version=4).cells
        return [c.id for c in cells if "weekly" in c.metadata.get("tags", ())]

    shipped = sorted((PROJECT / "notebooks").glob("0[234]_*.ipynb"))
    copies = []
    for path in shipped:
        node = nbformat.read(path, as_version=4)
        node.cells[1].execution_count = 1
        copies.append(tmp_path / path.name)
        nbformat.write(node, copies[-1])
    program = [sys.executable, "-m", "nbstripout", "--keep-id"]
    subprocess.run([*program, *map(str, copies)], check=True)
    for path, copy in zip(shipped, copies, strict=True):
        assert tagged(copy) == tagged(path) != []
        assert nbformat.read(copy, as_version=4).cells[1].execution_count is None


class TestDeck:
    @pytest.fixture
    def root(self, tmp_path):
        example = table(1, "One example", EXAMPLE_TAG)
        executed(make_run(tmp_path, "20260101-1"), picture("First"), example)
        executed(make_run(tmp_path, "20260102-1", NB03), picture("A"), picture("B"),
                 title="03 · And now?")  # fmt: skip
        make_run(tmp_path, "20260103-1", NB03, "x", status="failed", reason="no <b>corpus</b>",
                 headline=None)  # fmt: skip
        return tmp_path

    def test_the_order_of_the_meeting(self, root):
        made = deck(root)
        assert titles(made) == [
            "Key-point control, the week", "Headline numbers", "02 · First", "03 · A", "03 · B",
            "02 · One example", "What did not finish", "Open questions", "Next steps",
        ]  # fmt: skip
        asked, headlines, *_, failed, questions, _ = (slide.data for slide in made.slides)
        assert "03 · And now?" in asked and "offline roles" in asked
        assert "0.900 [0.800, 1.000]" in headlines
        assert "<td>30 queries, 90 samples, 2 abstentions</td>" in headlines
        assert "no &lt;b&gt;corpus" in failed and "03 x" in failed
        assert "This is the template" in questions
        assert made.headline == {"slides": 9, "finished runs": 2, "unfinished runs": 1}
        assert made.sources == "figures of 2 runs: offline roles"
        assert "1 finished run: nothing to compare" in runs_view(made.chosen.finished[:1]).data

    def test_each_headline_names_its_quantity_its_interval_and_its_source(self, root):
        quartiles = {"seconds a step, median [quartiles]": {
            "a": {"mean": 2.0, "low": 1.5, "high": 2.5, "n_steps": 8},
        }}  # fmt: skip
        said = "measured on a GPU; SIMULATED: Gemini, random weights of a shape"
        make_run(root, "20260104-1", "01_efficiency", headline=quartiles, provenance=said)
        for i in range(6):  # as many sources as the first slide's table has rows
            make_run(root, f"20260105-{i}", NB03, f"v{i}", provenance=f"engine e{i}, judge j")
        shown = deck(root).slides[1].data
        rows = [re.findall("<td>(.*?)</td>", row) for row in shown.split("<tr>")[2:]]
        assert rows[0] == [
            "01 smoke", "seconds a step, median [quartiles].a", "2.000 [1.500, 2.500]",
            "8 steps", "SIMULATED, random weights",
        ]  # fmt: skip
        assert [row[-1] for row in rows[1:]] == ["offline roles"] * 2 + [
            f"engine e{i}" for i in range(6)
        ]
        assert all(row[1].startswith("key-point probability, ") for row in rows[1:])
        assert "[ ]: 95 % interval, or quartiles where named" in shown

    def test_what_does_not_fit_is_counted_and_every_run_has_a_share(self, root):
        for i in range(4):
            many = [picture(f"Figure {k}") for k in range(8)]
            executed(make_run(root, f"20260104-{i}", variant=f"v{i}"), *many)
        made = deck(root)
        assert len(made.slides) == MOST_SLIDES
        assert made.left_out == 35 - (MOST_SLIDES - 6)
        assert f"{made.left_out} more recorded figures did not fit" in made.slides[0].data
        shown = " ".join(slide.data for slide in made.slides[2:])
        assert all(f"v{i} · 20260104-{i}" in shown for i in range(4)) and "20260102-1" in shown

    def test_many_runs_keep_every_table_under_13_rows(self, root):
        for i in range(40):
            make_run(root, f"20260105-{i:02d}", variant=f"v{i}")
            make_run(root, f"20260106-{i:02d}", variant=f"w{i}", status="failed", reason="x " * 500)
        made = deck(root)
        assert all(slide.data.count("<tr>") <= 13 for slide in made.slides)
        assert "33 more: see outputs/index.html" in made.slides[-3].data  # 41 failed, 8 shown

    def test_only_failures_are_a_deck_too(self, tmp_path):
        make_run(tmp_path, "20260101-1", status="interrupted", reason="signal SIGTERM")
        torn = make_run(tmp_path, "20260101-2")
        (torn / "manifest.json").write_text('{"status":')
        make_run(tmp_path, "20260101-3", status="started", ended_at=None)
        made = deck(tmp_path)
        assert "still running" in made.slides[2].data and "is torn" in made.slides[2].data
        assert "No run has finished." in made.slides[0].data
        assert "signal SIGTERM" in made.slides[2].data
        assert made.sources == "figures of 0 runs: none finished"
        assert runs_view(made.chosen.finished).data == "<p>0 finished run: nothing to compare.</p>"

    def test_nothing_since_a_date_is_an_error(self, root):
        with pytest.raises(ValueError, match=r"no run since=.2030-01-01. in .*an earlier date"):
            deck(root, since="2030-01-01")
        assert deck(root, since="2026-01-02").headline["finished runs"] == 1
        with pytest.raises(ValueError, match="run a notebook first, such as geo run 02 smoke"):
            deck(root / "nowhere")

    @pytest.mark.parametrize(
        ("text", "wanted"),
        [
            ("", ["Open questions and next steps"]),
            ("Only words.", ["Notes"]),
            ("intro\n## One\ntext\n## Two\n", ["Notes", "One", "Two"]),
            ("## One\n" + "- a line\n" * 31, [f"One ({i} of 3)" for i in (1, 2, 3)]),
            ("## One <i>\n<!-- hidden ## Two -->\ntext", ["One &lt;i&gt;"]),
        ],
    )
    def test_notes_are_a_slide_a_heading(self, root, tmp_path, text, wanted):
        notes = tmp_path / "notes.md"
        notes.write_text(text)
        made = deck(root, notes=str(notes))
        assert titles(made)[-len(wanted) :] == wanted
        assert "hidden" not in made.slides[-1].data

    def test_too_many_notes_are_an_error(self, root, tmp_path):
        notes = tmp_path / "notes.md"
        notes.write_text("\n".join(f"## {i}" for i in range(20)))
        with pytest.raises(ValueError, match="20 slides of notes leave no room"):
            deck(root, notes=str(notes))


def rendered(root, folder):
    """Render a deck as notebook 05 leaves it."""
    made = deck(root)
    outputs = [
        nbformat.v4.new_output("display_data", data={"text/html": slide.data})
        for slide in made.slides
    ]
    show = {"slideshow": {"slide_type": "slide"}, "tags": ["slides"]}
    skip = {"slideshow": {"slide_type": "skip"}}
    cells = [
        nbformat.v4.new_markdown_cell("# 05 · Deck", metadata=skip),
        nbformat.v4.new_code_cell("a = 1", metadata={"tags": ["injected-parameters"]}),
        nbformat.v4.new_code_cell("display(*slides)", metadata=show, outputs=outputs),
    ]
    folder.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "notebook.ipynb")
    return made, render_report(folder / "notebook.ipynb")["slides"]


def pages(pdf):
    return len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf.read_bytes()))


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Make a deck with what is most likely not to fit."""
    root = tmp_path_factory.mktemp("outputs")
    wide = "<table><tbody><tr>" + "<td>a_long_word_in_a_cell</td>" * 20 + "</tr></tbody></table>"
    cells = [picture("H " * 60), ("weekly", "Wide", {"text/html": wide}), table(40)]
    executed(make_run(root, "20260101-1"), *cells, title="02 · " + "long question " * 20)
    for i in range(14):
        make_run(root, f"20260106-{i:02d}", variant="v" * 60 + str(i), status="failed",
                 reason="a long reason " * 50)  # fmt: skip
    return rendered(root, root / "deck")


@chromium
class TestSlides:
    def test_nothing_is_cut_off_on_any_slide(self, slides, tmp_path):
        script = """
        Reveal.on("ready", () => {
          const sizes = [], found = document.querySelectorAll(".slides > section > section");
          found.forEach((section, i) => {
            Reveal.slide(i);
            const slide = section.querySelector(".geo-slide").getBoundingClientRect();
            const scale = Reveal.getScale(), box = section.getBoundingClientRect();
            const wide = Math.max(...Array.from(section.querySelectorAll("td, img, h2, li"),
              part => part.getBoundingClientRect().right));
            sizes.push([(wide - box.left) / scale, (slide.bottom - box.top) / scale]);
          });
          document.title = JSON.stringify(sizes);
        });
        """
        made, path = slides
        markup = in_browser(path, script, tmp_path)
        sizes = re.findall(r"[\d.]+,[\d.]+", re.search("<title>(.*?)</title>", markup).group(1))
        assert len(sizes) == len(made.slides)
        for size in sizes:
            width, height = map(float, size.split(","))
            assert 100 < width <= 1281 and 30 < height <= 721, sizes

    def test_the_pdf_has_a_page_a_slide(self, slides):
        made, path = slides
        pdf = print_pdf(path)
        assert pdf == path.with_name("slides.pdf") and pages(pdf) == len(made.slides)
        assert pdf.stat().st_size > 20_000  # blank pages have no fonts

    def test_the_deck_is_one_file(self, slides):
        assert loads_something(slides[1].read_text()) == []


class TestWithoutABrowser:
    def test_none_is_said_and_an_old_pdf_goes(self, tmp_path, monkeypatch):
        monkeypatch.setattr("geo_utils.show.report.BROWSERS", ("no-such-browser",))
        (tmp_path / "slides.pdf").write_text("of another day")
        with pytest.raises(NoPdf, match=r"no browser is installed \(no-such-browser\)"):
            print_pdf(tmp_path / "slides.html")
        assert not (tmp_path / "slides.pdf").exists()

    @pytest.mark.parametrize(
        ("script", "message"),
        [
            ("echo broken >&2; exit 3", "chromium did not print slides.html: broken"),
            ("exit 0", "chromium did not print slides.html"),
            ('for a; do case $a in --print-to-pdf=*) echo "/Type /Page" > "${a#*=}";; esac; done',
             "chromium printed 1 of the 2 slides of slides.html"),
        ],
    )  # fmt: skip
    def test_one_that_fails_is_named(self, tmp_path, monkeypatch, script, message):
        (tmp_path / "slides.html").write_text("<section><section></section></section>" * 2)
        program = tmp_path / "chromium"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        with pytest.raises(NoPdf, match=message):
            print_pdf(tmp_path / "slides.html")
        assert BROWSERS[0] == "chromium"


@pytest.mark.parametrize("words", [5, 20, 75])
def test_an_excerpt_holds_the_key_point_and_no_more_words(words):
    filler = " ".join(f"word{i}" for i in range(300))
    page = f"{filler} The harbour closes at dusk. {filler}"
    before, after = marked_changes(filler, page, {"harbour", "close", "dusk"}, words)
    shown = re.sub(r"<[^>]+>|\(… \d+ words?\)", "", after)
    assert len(re.findall(r"\w+", shown)) == words
    assert all(f"<mark>{word}</mark>" in after for word in ("harbour", "closes", "dusk"))
    counts = [int(n) for n in re.findall(r"\(… (\d+) words?\)", after)]
    assert sum(counts) + words == 605
    assert "<ins>" in after and "<del>" not in before
