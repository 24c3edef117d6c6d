"""Every sample of a run, browsed in its report: in a real browser, without a request."""

import shutil

import nbformat
import numpy as np
import pandas as pd
import pytest
from browser import opened
from run_folders import make_run

from geo_utils.show.report import render_report, sample_browser

METHODS = ["original", "fluency", "key_point"]
EVIL = "<script>document.title='evil'</script><img src=x onerror=alert(1)>"


def samples_of(queries, repeats):
    """Rows of all methods; q3's key-point rewrites are supported, its second answer is hostile."""
    rows = []
    for i in range(queries):
        for method in METHODS:
            for repeat in range(repeats):
                own = i == 3 and method == "key_point"
                row = {"query_id": f"q{i}", "query": f"question {i}?", "key_point": f"claim {i}"}
                row |= {"method": method, "repeat": repeat, "page": f"page of q{i}, {method}"}
                row |= {"answer": f"answer {repeat} " + (EVIL if own and repeat == 1 else "")}
                row |= {"verdict": "supported" if own else "omitted", "supported": float(own)}
                row |= {"explanation": f"because {i}", "abstention": None, "pawc": 0.25}
                rows.append(row)
    lost = {"page": None, "answer": None, "verdict": None, "supported": np.nan, "pawc": np.nan}
    rows[0] |= lost | {"explanation": "", "abstention": "engine: 503: down"}
    return pd.DataFrame(rows)


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_samples_are_filtered_opened_and_read_in_a_browser(tmp_path):
    run = make_run(tmp_path, "20260101-100000000-aaaaaaaa")
    samples_of(200, 9).to_parquet(run / "samples.parquet")
    cells = [nbformat.v4.new_markdown_cell("# Title\n\n## The answer")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), run / "notebook.ipynb")
    report = render_report(run / "notebook.ipynb", {"status": "finished"})["report"]
    with opened(report.as_uri(), tmp_path / "profile", 400) as page:
        at = "document.querySelector('.geo-samples {}')".format
        count = f"{at('.geo-count')}.textContent"
        page.run(f"{at('details')}.open = true")
        page.until(f"{count} === '5400 of 5400 samples, 100 shown'")
        for name, value in (("method", 2), ("verdict", "supported")):
            page.run(f"{at(f'[name={name}]')}.value = {value!r}")
            page.run(f"{at(f'[name={name}]')}.dispatchEvent(new Event('input'))")
        assert page.run(count) == "9 of 5400 samples, 9 shown"
        page.run("document.querySelectorAll('.geo-list > details')[1].open = true")
        shown = page.until(f"{at('.geo-texts')} && {at('.geo-list > details[open]')}.textContent")
        for text in ("supported", "key-point rewrite, answer 2 · q3: question 3?", "claim 3",
                     "because 3. Visibility of the target (PAWC): 0.25.",
                     "page of q3, key_point", f"answer 1 {EVIL}"):  # fmt: skip
            assert text in shown
        cells = "document.querySelectorAll('.geo-map tbody tr')"
        page.run(f"{cells}[1].querySelectorAll('button')[0].click()")
        assert page.run(count) == "9 of 5400 samples, 9 shown"
        assert page.run(f"{cells}[3].cells[3].textContent") == "100%"
        page.run(f"{cells}[0].querySelectorAll('button')[0].click()")
        assert page.run(f"{at('.geo-list summary')}.textContent").startswith("abstained original")
        assert page.run("document.title") == "Title" and not page.complaints
        assert [url for url in page.asked if not url.startswith(("file:", "data:"))] == []
        assert page.run("document.documentElement.scrollWidth") == 400


def test_a_page_s_text_is_packed_once():
    assert len(sample_browser(samples_of(200, 9))) < 200_000


@pytest.mark.parametrize("table", [pd.DataFrame(), pd.DataFrame({"query_id": ["q"]})])
def test_another_table_is_left_out(table):
    assert sample_browser(table) == ""
