"""A page of one's own: tried from the command line, in a cell and in a form."""

import re
import sys

import pytest
from conftest import GEMINI, PROJECT, SECRET, make_row

from geo_utils.cli import app
from geo_utils.corpus import CorpusError, own_example
from geo_utils.notebooks import read_parameters
from geo_utils.roles.make import make_roles
from geo_utils.show.example import page_form, trial_view, try_page

PAGES = make_row()["text_list"]
POINT = "The Moon raises two bulges of water."


def example(**changes):
    return own_example(PAGES[1], POINT, **({"others": [PAGES[0], PAGES[2]]} | changes))


def roles(*overrides, file="smoke"):
    return make_roles(read_parameters("03", file, overrides)[2])


@pytest.fixture
def tried(tmp_path, capsys):
    """Run `geo try` on a page and two others; return its exit code and what it said."""
    paths = [tmp_path / f"{i}.txt" for i in range(3)]
    for path, text in zip(paths, PAGES, strict=True):
        path.write_text(text)
    out = tmp_path / "shown.html"

    def run(*more, page=paths[1]):
        others = ["--other", str(paths[0]), "--other", str(paths[2])]
        line = ["try", "--page", str(page), "--key-point", POINT, *others, "--out", str(out), *more]
        code = app([*line, f"paths.cache={tmp_path / 'cache'}"], standalone_mode=False) or 0
        return code, capsys.readouterr(), out

    return run


class TestOwnExample:
    def test_the_question_is_the_page_s_title_unless_one_is_given(self):
        assert own_example("# Tides\n\nThe sea rises.", POINT).query == "Tides"
        own = example(query="why tides?")
        assert own.query == "why tides?" and own.target == PAGES[1] and len(own.sources) == 3
        assert own.key_points[0].content == POINT

    @pytest.mark.parametrize(
        ("page", "point", "said"),
        [(" \n", POINT, "the page is empty"), ("A page.", " ", "the key point is empty")],
    )
    def test_what_is_missing_is_named(self, page, point, said):
        with pytest.raises(CorpusError, match=said):
            own_example(page, point)


class TestCommand:
    def test_it_says_what_came_out_and_writes_a_page(self, tried):
        code, said, out = tried("--query", "how do tides work?", "--repeats", "2")
        assert code == 0, said.err
        assert re.search(
            r"Original: the answer supports the key point in \d of 2 answers", said.out
        )
        assert "Key-point rewrite: the answer supports" in said.out
        assert "Source: offline roles" in said.out and said.out.splitlines()[-1] == str(out)
        page = out.read_text()
        assert "<ins>" in page and "Content-Security-Policy" in page and "offline roles" in page
        assert "words, the target page)" in page and "No model was asked" in page

    def test_a_model_rewrites_and_answers_and_its_prompts_are_shown(self, tried, gemini_server):
        server = gemini_server(key=SECRET)
        places = f'servers={{engine: "{server.url}", rewriter: "{server.url}"}}'
        code, said, out = tried("--engine", GEMINI, "--method", "key_point", places)
        assert code == 0, said.err
        assert "SIMULATED by a stand-in" in said.out and "judge offline" in said.out
        assert server.outcomes()["answered"] == 3  # a page, and an answer before and after
        page = out.read_text()
        assert "The prompt that the rewriter got" in page and "SIMULATED" in page

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            (["--method", "fluency"], "needs a model; rewriter='offline' has"),
            (["--method", "orginal"], "unknown method 'orginal'; did you mean 'original'?"),
            (["--method", "original"], "method='original' changes nothing"),
            (["--engine", "gemni/x"], "engine: 'gemni/x' names no model"),
        ],
    )
    def test_what_cannot_be_done_is_refused_in_a_line(self, tried, more, said):
        code, told, out = tried(*more)
        assert code == 2 and said in told.err and "Traceback" not in told.err
        assert not out.exists()


class TestCell:
    def test_a_record_is_stood_in_for_by_offline_roles_that_are_labelled(self):
        trial = try_page(roles(file="recorded"), example(), "key_point")
        assert trial.findings[-1].startswith("Source: offline roles")
        assert list(trial.samples["method"]) == ["original", "key_point"]

    def test_a_page_without_rivals_is_told_so(self):
        trial = try_page(roles(), example(others=()), "paste_key_point")
        assert any("only source" in line for line in trial.findings)

    def test_what_changes_nothing_is_refused(self):
        with pytest.raises(ValueError, match="changes nothing"):
            try_page(roles(), example(), "original")

    def test_the_view_escapes_what_was_pasted(self):
        evil = "<script>alert(1)</script>"
        own = own_example(f"{PAGES[1]} {evil}", f"{POINT} {evil}", evil)
        shown = trial_view(try_page(roles(), own, "key_point")).data
        assert "<script" not in shown and "&lt;script&gt;" in shown


class TestForm:
    def test_without_ipywidgets_it_says_how_to_get_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "ipywidgets", None)
        assert "pip install ipywidgets" in page_form(roles()).data

    def test_run_shows_the_verdicts_and_an_error_is_read_in_the_form(self):
        pytest.importorskip("ipywidgets")
        *fields, method, button, result = page_form(roles()).children
        button.click()
        assert "the page is empty" in result.value and not button.disabled
        for field, text in zip(fields, [PAGES[1], POINT, "tides?", PAGES[0]], strict=True):
            field.value = text
        method.value = "paste_key_point"
        button.click()
        assert "Answer: paste key point" in result.value
        assert "offline roles" in result.value and ">supported</span>" in result.value


def test_both_notebooks_walk_their_example_with_the_same_cells():
    import nbformat

    walks = []
    for name in ("02_baseline_rewrites", "03_key_point_prompt"):
        cells = nbformat.read(PROJECT / "notebooks" / f"{name}.ipynb", as_version=4).cells
        own = [c.source for c in cells if c.id.startswith("hand-") and c.cell_type == "code"]
        walks.append([text.replace("params.method", "last") for text in own])
    assert walks[0] == walks[1] and len(walks[0]) == 4
