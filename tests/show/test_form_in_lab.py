"""The form in a real JupyterLab with its dark theme, driven in a browser."""

import json
import os
import shutil
import subprocess
import sys

import nbformat
import pytest
from browser import opened
from servers import wait_until_up

from geo_utils.cluster.servers import free_port

CELL = """
from geo_utils.corpus import own_example
from geo_utils.evaluate import draw_source_order
from geo_utils.notebooks import read_parameters
from geo_utils.roles.make import make_roles
from geo_utils.show.example import page_form, question_view, show

prices = own_example("A ticket is $5 to $6, for families $7.", "A ticket is $5 to $6.")
view = question_view(prices, prices.key_points[0], draw_source_order(prices, 0))
show(page_form(make_roles(read_parameters("03", "smoke")[2])), view)
"""
# Types into fields as a person does: the widget listens to the events, not to the value.
TYPE = """
(() => {
  const type = (field, text) => {
    const kind = field.tagName === 'TEXTAREA' ? HTMLTextAreaElement : HTMLInputElement;
    Object.getOwnPropertyDescriptor(kind.prototype, 'value').set.call(field, text);
    for (const name of ['input', 'change']) field.dispatchEvent(new Event(name, {bubbles: true}));
  };
  const [page, others] = document.querySelectorAll('.widget-textarea textarea');
  const [point, query] = document.querySelectorAll('.widget-text input');
  type(page, 'The Moon raises two bulges of water. A harbour sees a tide every 12 hours.');
  type(others, 'The sea rises twice a day in most harbours. Boats wait for it.');
  type(point, 'The Moon raises two bulges of water.');
  type(query, 'how do tides work?');
})()
"""
RUN = "[...document.querySelectorAll('button')].find(b => b.textContent.trim() === 'Run').click()"
IDLE = "fetch('/api/kernels').then(r => r.json()).then(k => k[0]?.execution_state === 'idle')"
SHOWN = "document.querySelector('.widget-html .geo-view')"


@pytest.fixture
def lab(tmp_path):
    """JupyterLab in its dark theme, on a notebook that holds the form."""
    cell = nbformat.v4.new_code_cell(CELL)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    node = nbformat.v4.new_notebook(cells=[cell], metadata=kernel)
    nbformat.write(node, tmp_path / "form.ipynb")
    themes = tmp_path / "settings/@jupyterlab/apputils-extension"
    themes.mkdir(parents=True)
    text = json.dumps({"theme": "JupyterLab Dark"})
    (themes / "themes.jupyterlab-settings").write_text(text)
    port = free_port()
    process = subprocess.Popen(
        [
            sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
            f"--ServerApp.root_dir={tmp_path}", "--IdentityProvider.token=",
            "--LabApp.expose_app_in_browser=True",
        ],
        env=os.environ | {
            "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces"),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until_up(f"http://127.0.0.1:{port}/api", process)
        yield f"http://127.0.0.1:{port}/lab/tree/form.ipynb"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_a_page_is_pasted_run_and_its_verdicts_are_read_in_the_dark(lab, tmp_path):
    pytest.importorskip("ipywidgets")
    with opened(lab, tmp_path / "profile") as page:
        page.until("window.jupyterapp && document.querySelectorAll('.jp-CodeCell').length")
        page.until(IDLE)  # before, JupyterLab would ask for a kernel
        page.run("jupyterapp.commands.execute('notebook:run-all-cells'); 1")
        page.until("document.querySelectorAll('.widget-textarea textarea').length === 2")
        page.run(TYPE)
        page.run(RUN)
        page.until(f"{SHOWN} !== null")
        shown = page.run("document.querySelector('.widget-html').textContent")
        assert "Answer: key-point rewrite" in shown and "supported" in shown
        assert "offline roles" in shown
        prices = page.run("document.querySelector('.jp-RenderedHTML .geo-view').innerText")
        assert "A ticket is $5 to $6" in prices  # no formula
        assert page.run("document.body.dataset.jpThemeLight") == "false"
        style = f"getComputedStyle({SHOWN})"
        colours = page.run(f"[{style}.color, {style}.backgroundColor]")
        assert colours == ["rgb(221, 221, 221)", "rgb(17, 17, 17)"]  # not dark on dark
