"""What the tables of samples count, and by what."""

import re
import shutil

import nbformat
import numpy as np
import pandas as pd
import pytest
from browser import opened
from nbformat.v4 import new_code_cell, new_notebook, new_output

from geo_utils.efficiency.rows import laid_out
from geo_utils.show.report import render_report
from geo_utils.show.tables import abstention_table, over_queries, styled, verdict_table


def test_abstentions_of_a_kind_are_one_line_with_an_example():
    lost = [
        "rewriter: refused: I cannot do that: it is\n wrong.",
        "rewriter: refused: Sorry, I cannot.",
        "rewriter: short: under a fifth of the page's words",
        "judge: unparsable: no JSON in '{'",
        "judge: unparsable: no JSON in '['",
        "judge: gave no verdict",
        None,
    ]
    found = abstention_table(pd.DataFrame({"method": "key_point", "abstention": lost}))
    assert set(found.index) == {"key-point rewrite"}
    assert found.values.tolist() == [
        ["rewriter: refused", 2, "I cannot do that: it is wrong."],
        ["rewriter: short", 1, "under a fifth of the page's words"],
        ["judge: unparsable", 2, "no JSON in '{'"],
        ["judge: gave no verdict", 1, ""],
    ]
    none = abstention_table(pd.DataFrame({"method": "key_point", "abstention": [None]}))
    assert none.loc["", "abstentions"] == "none"


def test_the_share_of_replies_that_copy_a_prompt_stands_beside_the_verdicts():
    """Of the replies of a model: an edit has none."""
    samples = pd.DataFrame(
        {
            "method": ["original", *["key_point"] * 4],
            "echoes": [np.nan, 0.0, 2.0, 1.0, np.nan],
            "prompt_copied": [1.0, 0.0, 0.0, 1.0, np.nan],
        }
    ).assign(verdict="omitted", uncited=False, citations_out_of_range=0, citations_unparsed=0)
    table = verdict_table(samples, "").data
    assert table["replies with echoes removed"].tolist() == ["–", "67%"]
    assert table["answers that copy the prompt"].tolist() == ["100%", "33%"]


def test_a_cell_without_a_number_is_a_dash():
    table = pd.DataFrame({"a": ["nan", "+nan%", None, "nan bread"], "b": [np.nan, 1.5, pd.NA, 2]})
    page = styled(table, [], "n = 1 queries").to_html()
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page)
    assert cells == ["–", "–", "–", "1.500000", "–", "–", "nan bread", "2"]
    assert ">n = 1 query</caption>" in page


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_a_wide_table_is_read_on_a_phone(tmp_path):
    """The page keeps the phone's width; rows keep their names, captions stay whole."""
    interval = "0.123 [0.012, 0.234]"
    wide = pd.DataFrame({f"figure {i}": [interval] * 2 for i in range(9)}, index=["a b c", "d"])
    steps = pd.DataFrame({"setting": ["one with a long name"], "schedule": ["ahead"], "gpus": [2]})
    tables = over_queries(wide, [], "Where it is from. " * 9), laid_out(steps, " ".join(steps), "")
    cells = [
        new_code_cell("t", outputs=[new_output("display_data", {"text/html": t.to_html()})])
        for t in tables
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "notebook.ipynb")
    report = render_report(tmp_path / "notebook.ipynb", {"status": "finished"})["report"]
    with opened(report.as_uri(), tmp_path / "profile", 400) as page:
        assert page.run("document.documentElement.scrollWidth") == 400
        page.run("document.querySelector('table').parentNode.scrollLeft = 500")
        box = "document.querySelector('{}').getBoundingClientRect()".format
        for part in ("tbody th", "caption"):
            assert page.run(f"{box(part)}.left") >= 0 and page.run(f"{box(part)}.right") <= 400
        assert page.run(f"{box('tbody td')}.height") < 45  # an interval is never broken
        sides = "[...document.querySelectorAll('table')[1].querySelectorAll('tbody td')]"
        found = page.run(f"{sides}.map(cell => getComputedStyle(cell).textAlign)")
        assert found == ["left", "left", "right"]
        assert not page.complaints and page.asked == [report.as_uri()]
