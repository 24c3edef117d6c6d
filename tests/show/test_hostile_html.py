"""Foreign text on every page: in a browser nothing of it runs, and nothing is asked for."""

import http.server
import re
import shutil
import subprocess
import threading

import nbformat
import pandas as pd
import pytest
from conftest import PROJECT
from IPython.core.formatters import DisplayFormatter
from run_folders import make_run

from geo_utils.files import write_atomic
from geo_utils.parameters import default_parameters
from geo_utils.records import find_records
from geo_utils.show.jinja import from_markdown, in_words, secured
from geo_utils.show.pages import write_index
from geo_utils.show.report import render_report
from geo_utils.show.tables import styled
from geo_utils.weekly.deck import make_deck
from geo_utils.weekly.params import WeeklyParams

CHROMIUM = shutil.which("chromium")


@pytest.fixture
def canary():
    """A server on loopback that notes what is asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def hostile(url):
    """Markup that fetches, or runs what fetches, each in another way."""
    return (
        f"</td></table></style></script><script>fetch('{url}/script')</script>"
        f"<img src='{url}/img'><img src=x onerror=\"fetch('{url}/onerror')\">"
        f"<svg onload=\"fetch('{url}/svg')\"></svg><iframe src='{url}/iframe'></iframe>"
        f"<link rel=stylesheet href='{url}/link'><style>@import url('{url}/import');"
        f"body{{background:url('{url}/css')}}</style><object data='{url}/object'></object>"
        f"<video autoplay src='{url}/video'></video><script src='{url}/src'></script>"
        f"<base href='{url}/'><form action='{url}/form'><input autofocus "
        f"onfocus=\"fetch('{url}/focus')\"></form>"
        f"<link rel=preload as=image href='{url}/preload'><img srcset='{url}/srcset 1x'>"
        f"<details open ontoggle=\"fetch('{url}/toggle')\">x</details> ![p]({url}/markdown) "
        f"[l](javascript:fetch('{url}/href')) ![q][r]\n\n[r]: {url}/reference"
    )


class Named:
    """What is no text, but shown as one, such as a path."""

    def __init__(self, name):
        self.name = name

    def __str__(self):
        return self.name


def opened(path, tmp_path):
    """Open a page in a browser; return what it complains of."""
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--dump-dom",
         f"file://{path}"],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    return done.stdout


def shown(*values):
    """A code cell that shows them, as a kernel would."""
    outputs = []
    for value in values:
        data, metadata = DisplayFormatter().format(value)
        outputs.append(nbformat.v4.new_output("display_data", data, metadata=metadata))
    return nbformat.v4.new_code_cell(
        "", outputs=outputs, metadata={"tags": ["weekly"], "slideshow": {"slide_type": "slide"}}
    )


@pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")
def test_no_page_runs_or_fetches_what_is_named_by_others(canary, tmp_path):
    url, asked = canary
    # No policy holds a page back from going elsewhere.
    evil = f"<meta http-equiv=refresh content='0;url={url}/refresh'>{hostile(url)}"
    table = pd.DataFrame({evil: [evil, Named(evil)], "n": [1, 2]}, index=[evil, Named(f"x{evil}")])
    run = make_run(tmp_path, "20260101-100000000-aaaaaaaa", provenance=f"{evil}\ud800", reason=evil,
                   git={"commit": evil})  # fmt: skip
    (run / "50% #1.json").write_text("{}")
    node = nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_markdown_cell("# Title"),
        shown(styled(table.rename(columns=Named), [evil], evil), table, in_words(evil)),
    ])  # fmt: skip
    nbformat.write(node, run / "notebook.ipynb")
    (record,) = find_records(tmp_path)
    rendered = render_report(run / "notebook.ipynb", record.manifest)
    assert 'href="./50%25%20%231.json"' in rendered["report"].read_text()
    raw = {"text/html": f"<style>.a{{color:red}}</style><b class=a onclick=x>kept</b>{evil}"}
    output = nbformat.v4.new_output("display_data", raw)  # of a notebook that another hand wrote
    tagged = {"tags": ["weekly"]}
    node.cells.append(nbformat.v4.new_code_cell("", outputs=[output], metadata=tagged))
    nbformat.write(node, run / "notebook.ipynb")
    notes = tmp_path / "notes.md"
    notes.write_text(f"## Next\n\n{evil}\n\n**bold** [link](https://example.org)")
    defaults = default_parameters(PROJECT / "notebooks/05_weekly.ipynb")
    given = {"paths": {"output": str(tmp_path)}, "notes": str(notes), "runs": [str(run)]}
    deck = make_deck(WeeklyParams.check(defaults | given))
    page = tmp_path / "deck.html"
    body = "".join(slide.data for slide in deck.slides)
    write_atomic(page, f"<!DOCTYPE html><html><head></head><body>{body}</body></html>")
    for path in (*rendered.values(), write_index(tmp_path), page):
        found = opened(path, tmp_path)
        assert "Title" in found or "Runs" in found or "Next" in found
        assert not asked, (path, asked)
    assert '<style>.a{color:red}</style><b class="a">kept</b>' in body
    assert "<strong>bold</strong>" in body and 'href="https://example.org"' in body


@pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")
def test_what_slips_through_is_held_by_the_page_s_policy(canary, tmp_path):
    url, asked = canary
    page = tmp_path / "page.html"
    text = f"<html><head></head><body><script>document.title='own'</script>{hostile(url)}</body>"
    page.write_text(text)
    opened(page, tmp_path)
    assert asked  # so much of it works
    asked.clear()
    page.write_text(secured(text, ["document.title='own'"]))
    assert "<title>own</title>" in opened(page, tmp_path)
    assert not asked


def test_words_open_no_page_and_no_file_and_link_to_none(canary, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.md").write_text("of a file")
    url, asked = canary
    for text in (
        f"{url}/x",
        "notes.md",
        f"At {url}/x[y](z) and www.example.org, WWW.example.org, a@example.org, **best** [r].\n\n"
        "[r]: /z",
    ):
        found = from_markdown(in_words(text).data)
        assert re.sub("<[^<>]*>", "", found).split() == text.replace("*", "").split()
        assert "<a" not in found and not asked


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a **b** `c`\n\n- d", ["<strong>b</strong>", "<code>c</code>", "<li>d</li>"]),
        ("[a](https://example.org)", ['href="https://example.org"']),
        ("| a |\n|---|\n| b |", ["<td>b</td>"]),
        ("<script>alert(1)</script><b onclick=x>b</b>", ["<b>b</b>"]),
        ("![p](http://example.org/p.png)", ['alt="p"']),
        ("[x](javascript:alert(1)) [y](data:text/html,x)", ["x", "y"]),
        ("<a href='da&#9;ta:text/html,x' class='geo-slide'>z</a>", ["<a>z</a>"]),
        ("<a href='&#100;ata:text/html,x'>z</a>", ["<a>z</a>"]),
    ],
)
def test_markdown_keeps_its_form_and_loses_what_runs_or_loads(text, kept):
    found = from_markdown(text)
    assert all(part in found for part in kept)
    for gone in ("<script", "onclick", "src=", "javascript:", "data:", "geo-slide", "text/html"):
        assert gone not in found
