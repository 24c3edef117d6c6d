"""The week's deck: from what runs recorded to slides that fit."""

import base64
import io
import re
import shutil
import stat
import subprocess
import sys

import nbformat
import pytest
from conftest import PROJECT
from PIL import Image
from run_folders import PIXEL, executed, make_run, method_row, picture, table
from test_run_pages import chromium, in_browser, loads_something

from geo_utils.parameters import default_parameters
from geo_utils.records import Record
from geo_utils.show.jinja import filled, from_markdown
from geo_utils.show.pages import runs_view
from geo_utils.show.pptx import write_pptx
from geo_utils.show.report import BROWSERS, NoPdf, print_pdf, render_report
from geo_utils.weekly.deck import EXAMPLE_TAG, make_deck, recorded
from geo_utils.weekly.params import MOST_SLIDES, WeeklyParams

DEFAULTS = default_parameters(PROJECT / "notebooks" / "05_weekly.ipynb")
NB03 = "03_key_point_prompt"


def deck(root, **changes):
    given = {"paths": {"output": str(root)}, "trials": True} | changes
    return make_deck(WeeklyParams.check(DEFAULTS | given))


def titles(made):
    """The headings of each slide."""
    return [re.findall("<h[23]>(.*?)</h[23]>", slide.data) for slide in made.slides]


class TestRecorded:
    def test_what_is_tagged_joins_and_nothing_else(self, tmp_path):
        log = ("weekly", "A log", {})
        cells = [picture(), table(3, tag="other"), table(3), log, table(1, tag=EXAMPLE_TAG)]
        record = Record(executed(make_run(tmp_path, "20260101-1"), *cells))
        question, found, examples = recorded(record)
        assert [f.title for f in found] == ["02 · How often?", "02 · The numbers"]
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
        assert len(deck(tmp_path).slides) == 2


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
        low = io.BytesIO()
        Image.new("1", (4, 1)).save(low, "PNG")
        first = ("weekly", "First", {"image/png": base64.b64encode(low.getvalue()).decode()})
        executed(make_run(tmp_path, "20260101-1"), first, example)
        executed(make_run(tmp_path, "20260102-1", NB03), picture("A"), picture("B"),
                 title="03 · And now?")  # fmt: skip
        make_run(tmp_path, "20260103-1", NB03, "x", status="failed", reason="no <b>corpus</b>",
                 headline=None)  # fmt: skip
        return tmp_path

    def test_the_order_of_the_meeting(self, root):
        made = deck(root)
        assert titles(made) == [
            ["Key-point control, the week", "02 · Does it work?", "03 · And now?"],
            ["02 · First"], ["03 · A"], ["03 · B"], ["02 · One example"],
            ["What did not finish", "Open questions", "Next steps"],
        ]  # fmt: skip
        first, figure, second, third, _, last = (slide.data for slide in made.slides)
        said = "original 0.400 [0.300, 0.500], keyword stuffing 0.500 [0.400, 0.600], key-point"
        assert first.count(said) == 2 and "offline roles" in first
        assert said in figure  # there is room for it below; not below the next run's
        assert said not in second and said not in third
        assert "no &lt;b&gt;corpus" in last and "03 x" in last
        assert "This is the template" in last
        assert made.headline == {"slides": 6, "finished runs": 2, "unfinished runs": 1}
        assert made.sources == "figures of 2 runs: offline roles"
        assert "1 finished run: nothing to compare" in runs_view(made.chosen.finished[:1]).data

    @pytest.mark.parametrize(
        ("manifest", "why"),
        [
            ({}, "smoke"),
            ({"variant": "v", "parameters": {"resolved": {"corpus": {"limit": 9}}}},
             "corpus.limit=9"),
            ({"variant": "v", "provenance": "policy of random weights"}, "random weights"),
            ({"variant": "v", "headline": {"methods": {"original": method_row(
                0.4, 0.3, 0.5, n_examples=9)}}}, "9 queries"),
        ],
    )  # fmt: skip
    def test_trials_stay_out_and_are_named(self, tmp_path, manifest, why):
        make_run(tmp_path, "20260102-1", **manifest)
        with pytest.raises(ValueError, match=rf"02 \w+ \({why}\); trials=true takes them"):
            deck(tmp_path, trials=False)
        for kept in ({"trials": True}, {"runs": ["20260102-1"]}):
            assert deck(tmp_path, **({"trials": False} | kept)).headline["finished runs"] == 1
        make_run(tmp_path, "20260101-1", variant="v")  # an older one is no trial
        made = deck(tmp_path, trials=False)
        assert made.chosen.finished[0].run_id == "20260101-1"
        assert f"({why})." in made.slides[0].data

    def test_step_times_of_random_weights_are_no_trial(self, tmp_path):
        said = "measured on a GPU; SIMULATED: Gemini, random weights of a shape"
        make_run(tmp_path, "20260104-1", "01_efficiency", "study", headline={}, provenance=said)
        assert "No headline recorded." in deck(tmp_path, trials=False).slides[0].data

    def test_what_is_small_shares_a_slide_and_long_words_are_cut(self, tmp_path):
        words = ("weekly", "Words", {"text/markdown": "- " + "word " * 20 + "\n"})
        long = ("weekly", "Long", {"text/markdown": ("- " + "word " * 20 + "\n") * 40})
        executed(make_run(tmp_path, "20260101-1"), table(3), words, table(3, "Three"), long)
        made = deck(tmp_path)
        assert titles(made)[1:-1] == [
            ["02 · The numbers", "02 · Words", "02 · Three"], ["02 · Long"],
        ]  # fmt: skip
        assert made.slides[2].data.count("<li>") < 30
        assert "The rest is in the run's report." in made.slides[2].data

    def test_what_does_not_fit_is_counted_and_every_run_has_a_share(self, root):
        for i in range(4):
            many = [picture(f"Figure {k}") for k in range(8)]
            executed(make_run(root, f"20260104-{i}", variant=f"v{i}"), *many)
        made = deck(root)
        assert len(made.slides) == MOST_SLIDES
        assert made.left_out == 35 - (MOST_SLIDES - 3)
        assert f"{made.left_out} more recorded figures did not fit" in made.slides[0].data
        shown = " ".join(slide.data for slide in made.slides[1:])
        assert all(f"v{i} · 20260104-{i}" in shown for i in range(4)) and "20260102-1" in shown

    def test_of_many_runs_the_rest_is_counted(self, root):
        for i in range(40):
            make_run(root, f"20260105-{i:02d}", variant=f"v{i}")
            make_run(root, f"20260106-{i:02d}", variant=f"w{i}", status="failed", reason="x " * 500)
        made = deck(root)
        assert all(slide.data.count("<tr>") <= 13 for slide in made.slides)
        first = "".join(slide.data for slide in made.slides[:2])
        assert "and 36 more: see outputs/index.html" in first  # of 40 without a notebook of theirs
        assert "33 more: see outputs/index.html" in "".join(s.data for s in made.slides[-2:])

    def test_only_failures_are_a_deck_too(self, tmp_path):
        make_run(tmp_path, "20260101-1", status="interrupted", reason="signal SIGTERM")
        torn = make_run(tmp_path, "20260101-2")
        (torn / "manifest.json").write_text('{"status":')
        make_run(tmp_path, "20260101-3", status="started", ended_at=None)
        made = deck(tmp_path)
        first, last = (slide.data for slide in made.slides)
        assert "still running" in last and "is torn" in last and "signal SIGTERM" in last
        assert "No run has finished." in first
        assert made.sources == "figures of 0 runs: none finished"
        assert runs_view(made.chosen.finished).data == "<p>0 finished runs: nothing to compare.</p>"

    def test_nothing_since_a_date_is_an_error(self, root):
        with pytest.raises(ValueError, match=r"no run since=.2030-01-01. in .*an earlier date"):
            deck(root, since="2030-01-01")
        assert deck(root, since="2026-01-02").headline["finished runs"] == 1
        with pytest.raises(ValueError, match="run a notebook first, such as geo run 02"):
            deck(root / "nowhere")

    @pytest.mark.parametrize(
        ("text", "wanted"),
        [
            ("", [["Open questions and next steps"]]),
            ("Only words.", [["Notes"]]),
            ("intro\n## One\ntext\n## Two\n", [["Notes", "One", "Two"]]),
            ("## Next steps\ntext\n## One\ntext", [["One", "Next steps"]]),
            ("## One\n" + "- a line\n" * 40, [[f"One ({i} of 3)"] for i in (1, 2, 3)]),
            ("## One <i>\n<!-- hidden ## Two -->\ntext", [["One &lt;i&gt;"]]),
        ],
    )
    def test_notes_are_packed_and_the_next_steps_are_last(self, tmp_path, text, wanted):
        make_run(tmp_path, "20260101-1")
        notes = tmp_path / "notes.md"
        notes.write_text(text)
        made = deck(tmp_path, notes=str(notes))
        assert titles(made)[-len(wanted) :] == wanted
        assert "hidden" not in made.slides[-1].data

    def test_too_many_notes_are_an_error(self, root, tmp_path):
        notes = tmp_path / "notes.md"
        notes.write_text("\n".join(f"## {i}\n" + "- line\n" * 18 for i in range(20)))
        with pytest.raises(ValueError, match="21 slides of notes and of what did not fin"):
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
    columns = "".join(f"<div><h4>{head}</h4><div class='geo-box'>{text}</div></div>" for head, text
                      in (("A", "one\ntwo"), ("B", "three"), ("C", "<b>four</b>\x1b")))  # fmt: skip
    example = f"<div class='geo-view'><p>Query</p><div class='geo-columns'>{columns}</div></div>"
    cells = [picture("H " * 60), ("weekly", "Wide", {"text/html": wide}), table(40),
             (EXAMPLE_TAG, "To read", {"text/html": example})]  # fmt: skip
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

    def test_the_right_arrow_visits_every_slide(self, tmp_path):
        """Also slides that stand below others, as a notebook's of type `subslide` do."""
        cells = [
            nbformat.v4.new_markdown_cell(f"# {i}", metadata={"slideshow": {"slide_type": kind}})
            for i, kind in enumerate(("slide", "subslide", "slide", "subslide", "subslide"))
        ]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebook.ipynb")
        script = """
        Reveal.on("ready", () => {
          const seen = [Reveal.getCurrentSlide().textContent.trim()[0]];
          for (let i = 0; i < 6; i++) {
            document.dispatchEvent(new KeyboardEvent("keydown", {keyCode: 39, bubbles: true}));
            seen.push(Reveal.getCurrentSlide().textContent.trim()[0]);
          }
          document.title = seen.join("");
        });
        """
        page = render_report(tmp_path / "notebook.ipynb")["slides"]
        assert "<title>0123444</title>" in in_browser(page, script, tmp_path)

    def test_the_pdf_has_a_page_a_slide(self, slides):
        made, path = slides
        pdf = print_pdf(path)
        assert pdf == path.with_name("slides.pdf") and pages(pdf) == len(made.slides)
        assert pdf.stat().st_size > 20_000  # blank pages have no fonts

    def test_the_deck_is_one_file(self, slides):
        assert loads_something(slides[1].read_text()) == []


@pytest.fixture(scope="module")
def presentation(slides):
    pptx = pytest.importorskip("pptx")
    made, page = slides
    pages = [slide.data for slide in made.slides]
    return pptx.Presentation(write_pptx(pages, page.with_name("slides.pptx")))


class TestPptx:
    def test_text_and_tables_are_text_and_figures_pictures(self, slides, presentation):
        deck, shown = slides[0], presentation
        texts = ["\n".join(s.text_frame.text for s in slide.shapes if s.has_text_frame)
                 for slide in shown.slides]  # fmt: skip
        assert len(texts) == len(deck.slides)
        assert texts[0].startswith("Key-point control, the week")
        assert "original 0.400 [0.300, 0.500]" in texts[0] and "Next steps" in texts[-1]
        shapes = [shape for slide in shown.slides for shape in slide.shapes]
        assert [s.image.blob for s in shapes if s.shape_type == 13] == [base64.b64decode(PIXEL)]
        tables = [s.table for s in shapes if s.has_table]
        assert [(len(t.rows), len(t.columns)) for t in tables] == [(1, 20), (13, 2), (2, 3)]
        assert [c.text for c in tables[1].rows[2].cells] == ["1", "1"]
        assert [c.text for c in tables[2].rows[1].cells] == ["one\ntwo", "three", "four"]

    def test_everything_stays_on_its_slide(self, presentation):
        wide, high = presentation.slide_width, presentation.slide_height
        for shape in (shape for slide in presentation.slides for shape in slide.shapes):
            assert shape.left >= 0 and shape.left + shape.width <= wide
            assert shape.top >= 0 and shape.top + shape.height <= high

    @pytest.mark.parametrize(
        ("notes", "text"),
        [
            ("![a plan](http://example.org/plan.png)", "a plan"),
            ("![a plan](data:image/svg+xml;base64,PHN2Zy8+)", "a plan"),
            ("![](data:image/png;base64,AAAA)", "(picture)"),
            ("<div class='geo-columns'><div><p>one</p></div><div></div></div>", "one"),
            ("<div class='geo-slide'>one</div>", "one"),
            ("half \ufffe a page", "half a page"),
        ],
    )
    def test_no_note_breaks_it(self, tmp_path, notes, text):
        pptx = pytest.importorskip("pptx")
        block = {"title": "Notes", "aside": "", "body": from_markdown(notes), "feet": []}
        path = write_pptx([filled("slide.html", blocks=[block])], tmp_path / "slides.pptx")
        (slide,) = pptx.Presentation(path).slides
        assert slide.shapes[-1].text_frame.text.split() == text.split()

    def test_a_run_that_asks_for_it_has_one(self, slides, tmp_path):
        pytest.importorskip("pptx")
        shutil.copy(slides[1].with_name("notebook.ipynb"), tmp_path)
        manifest = {"parameters": {"resolved": {"pptx": True}}}
        written = render_report(tmp_path / "notebook.ipynb", manifest)
        assert written["pptx"] == tmp_path / "slides.pptx" and written["pptx"].exists()


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
