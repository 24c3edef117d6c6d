"""A report in the reader's own scheme, light or dark: every text of it stands out."""

import shutil

import pandas as pd
import pytest
from browser import opened
from conftest import make_example
from run_folders import executed, make_run, picture
from test_example import ROW
from test_samples import samples_of

from geo_utils.records import find_records
from geo_utils.show.example import answers_view, pages_view, prompts_view
from geo_utils.show.jinja import filled
from geo_utils.show.pages import runs_view
from geo_utils.show.report import render_report
from geo_utils.show.tables import over_queries

# Of each text: where it stands, its luminance and its ground's, by WCAG 2.2.
TEXTS = r"""(() => {
  const pen = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = colour => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data];
  };
  const over = (top, below) => below.map((v, i) => v + (top[i] - v) * top[3] / 255);
  const ground = element => {
    if (!element) return [255, 255, 255];
    return over(rgba(getComputedStyle(element).backgroundColor), ground(element.parentElement));
  };
  const light = colour => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
    const v = colour[i] / 255;
    return sum + weight * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  }, 0);
  const found = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode, element = text.parentElement, below = ground(element);
    if (!text.textContent.trim() || !element.checkVisibility()) continue;
    const place = [element.closest("[class*=geo-]")?.className, element.tagName].join(" ");
    found.push([place, light(over(rgba(getComputedStyle(element).color), below)), light(below)]);
  }
  return found;
})()"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_every_text_of_a_report_stands_out_in_both_schemes(tmp_path):
    run, _ = (make_run(tmp_path, f"2026010{i}-100000000-aaaaaaaa") for i in (1, 2))
    samples_of(4, 2).to_parquet(run / "samples.parquet")
    example, table = make_example(), over_queries(pd.DataFrame({"a": ["b", "c"]}), [], "Words.")
    block = {"title": "T", "aside": "of", "body": table.to_html(), "feet": ["n"]}
    views = [pages_view(example, ROW), answers_view(example, ROW | {"answer": "The Moon [1] [2]."})]
    views += [prompts_view([]), runs_view(find_records(tmp_path))]
    shown = [view.data for view in views] + [table.to_html(), filled("slide.html", blocks=[block])]
    cells = [("shown", "A `name`", {"text/html": html}) for html in shown]
    manifest = {"status": "finished", "run_id": "r", "started_at": "today"}
    report = render_report(executed(run, picture(), *cells) / "notebook.ipynb", manifest)["report"]
    with opened(report.as_uri(), tmp_path / "profile", 400) as page:
        page.run("document.querySelectorAll('details').forEach(part => { part.open = true })")
        page.until("document.querySelector('.geo-list > details') !== null")
        page.run("document.querySelector('.geo-list > details').open = true")
        page.until("document.querySelector('.geo-texts') !== null")
        for scheme in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            page.call("Emulation.setEmulatedMedia", features=features)
            texts = pd.DataFrame(page.run(TEXTS), columns=["place", "text", "ground"])
            ends = texts[["text", "ground"]]
            texts["contrast"] = (ends.max(axis=1) + 0.05) / (ends.min(axis=1) + 0.05)
            assert texts["contrast"].min() >= 4.5, texts.sort_values("contrast").head()
            plain = texts[~texts["place"].str.contains("badge")]
            lighter = plain["text"] > plain["ground"]
            assert lighter.all() if scheme == "dark" else not lighter.any(), plain[lighter]
            for place in ("P", "CODE", "TD", "INS", "geo-samples", "geo-texts DIV", "geo-all",
                          "geo-slide", "geo-banner"):  # fmt: skip
                assert texts["place"].str.contains(place).any(), place
        pictures = "[...document.images].every(i => i.getBoundingClientRect().right <= 400)"
        assert page.run(f"document.images.length && {pictures}")
        assert [url for url in page.asked if not url.startswith("data:")] == [report.as_uri()]
        assert not page.complaints
