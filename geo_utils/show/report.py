"""From an executed notebook to a report and a slide deck, one file each, opened offline."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from markupsafe import Markup
from nbconvert import HTMLExporter, SlidesExporter

from geo_utils.files import write_atomic
from geo_utils.roles.methods import label
from geo_utils.show.jinja import TEMPLATES, filled, secured
from geo_utils.show.pptx import write_pptx
from geo_utils.show.tables import DASH

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
_LIMIT_S = 120
# Cells for the slides alone, and those that wait for somebody who types.
_UNREPORTED = {"slides-only", "notebook-only"}
_PAGE = re.compile(rb"/Type\s*/Page\b(?!s)")
_REVEAL = files("pyreveal") / "revealjs" / "dist"
# nbconvert's own way to print, by a style sheet that is not there.
_PRINT = re.compile(r"<script>\s*if\( window\.location\.search\.match\(.*?</script>", re.DOTALL)
_REVEAL_LINK = re.compile(r'<link[^>]*href="reveal-inline/dist/([\w/.-]+)"[^>]*>')
# Columns of samples that can be browsed.
_BROWSED = set(
    """query_id query key_point page answer verdict method repeat explanation abstention supported
    pawc""".split()  # noqa: SIM905
)


class NoPdf(RuntimeError):
    """The PDF could not be made; the slides stand as they are."""


def render_report(
    notebook: Path, manifest: dict[str, Any] | None = None, pdf: bool = False
) -> dict[str, Path | str]:
    """Render an executed notebook beside itself.

    Args:
        notebook: An executed notebook, also one that stopped half way.
        manifest: The run's manifest, for the banner that says how the run ended; its parameters
            `pdf` and `pptx` ask for the slides as PDF and as PowerPoint.
        pdf: Asks for the PDF as well.

    Returns:
        Paths: `report` of `report.html` (all cells but their code, without those tagged
        `slides-only`) and `slides` of `slides.html` (the cells whose slide type is not `skip`),
        neither of which loads anything from anywhere; `pdf` and `pptx` where they were asked
        for, or the words why there is none.
    """
    node = nbformat.read(notebook, as_version=4)
    folder, run = notebook.resolve().parent, manifest or {}
    titles = [
        found.group(1)
        for cell in node.cells
        if cell.cell_type == "markdown"
        and (found := re.search(r"^#\s+(.+)$", cell.source, re.MULTILINE))
    ]
    node.metadata["title"] = next(iter(titles), notebook.stem)
    options: dict[str, Any] = {
        "extra_template_basedirs": [str(TEMPLATES)],
        "exclude_input": True,
        "exclude_input_prompt": True,
        "exclude_output_prompt": True,
        "embed_images": True,
    }
    reporter = HTMLExporter(template_name="geo_report", **options)
    kept = (c for c in node.cells if not _UNREPORTED.intersection(c.metadata.get("tags", ())))
    shown = _with(node, kept)
    extra = {"manifest": run, "samples": _samples(folder), "contents": _contents(shown)}
    extra |= {"data_files": _data_files(folder), "spending": _spending(run)}
    report, _ = reporter.from_notebook_node(shown, extra)
    written: dict[str, Path | str] = {
        "report": folder / "report.html",
        "slides": folder / "slides.html",
    }
    runs, fit, browse = (
        (TEMPLATES / name).read_text("utf-8") for name in ("runs.js", "slides.js", "samples.js")
    )
    write_atomic(folder / "report.html", secured(report, [runs, browse]))
    slider = SlidesExporter(
        template_name="geo_slides",
        reveal_url_prefix="reveal-inline",
        reveal_theme="white",
        **options,
    )
    script = (_REVEAL / "reveal.js").read_text(encoding="utf-8")
    own = {"geo_reveal_js": script, "geo_slides_js": fit}
    slides, _ = slider.from_notebook_node(_a_slide_an_output(node), own)
    slides = _REVEAL_LINK.sub(_inline_style, _PRINT.sub("", slides))
    slides = secured(slides, [runs, script, fit])
    write_atomic(folder / "slides.html", slides)
    asked = (run.get("parameters") or {}).get("resolved") or {}
    if pdf or asked.get("pdf"):
        try:
            written["pdf"] = print_pdf(folder / "slides.html")
        except NoPdf as error:
            written["pdf"] = f"none, {error}"
    if asked.get("pptx"):
        made = (c.outputs for c in node.cells if "slides" in c.metadata.get("tags", ()))
        pages = [output["data"]["text/html"] for outputs in made for output in outputs]
        written["pptx"] = write_pptx(pages, folder / "slides.pptx")
    return written


def _samples(folder: Path) -> Markup:
    """Return the list of a run's samples; empty where it has none that can be read."""
    try:
        return sample_browser(pd.read_parquet(folder / "samples.parquet"))
    except (OSError, ValueError):
        return Markup()


def sample_browser(samples: pd.DataFrame) -> Markup:
    """Return a part of a page that lists every sample, to be filtered and opened.

    The texts are packed into the page (JSON, gzip, base64), each page and query once, and unpacked
    by the browser when the list is opened: nothing is asked for.

    Args:
        samples: As `evaluate.evaluate` returns it; of another table nothing is returned.
    """
    if samples.empty or not _BROWSED.issubset(samples.columns):
        return Markup()
    table, texts = pd.DataFrame(index=samples.index), {}
    for name in ("query_id", "method", "key_point", "page"):
        table[name], found = pd.factorize(samples[name])  # -1 for a page that is missing
        texts[name] = [str(text) for text in found]
    queries = samples.drop_duplicates("query_id").set_index("query_id")["query"]
    table["repeat"] = samples["repeat"]
    table["verdict"] = samples["verdict"].fillna("abstained")
    table["answer"] = samples["answer"].fillna("")
    table["reason"] = samples["abstention"].fillna(samples["explanation"]).fillna("")
    table[["supported", "pawc"]] = samples[["supported", "pawc"]].astype(float).round(3)
    rows = table.astype(object).where(table.notna(), None)
    told = {
        "queries": [[name, str(queries[name])] for name in texts["query_id"]],
        "methods": [label(name) for name in texts["method"]],
        "points": texts["key_point"],
        "pages": texts["page"],
        "rows": rows.to_numpy().tolist(),
    }
    packed = gzip.compress(json.dumps(told, ensure_ascii=False).encode("utf-8", "replace"), mtime=0)
    return filled("samples.html", count=len(samples), packed=base64.b64encode(packed).decode())


def _contents(node: nbformat.NotebookNode) -> list[tuple[str, str]]:
    """Return the chapters of a report: each heading's name, and its place on the page."""
    texts = "\n".join(cell.source for cell in node.cells if cell.cell_type == "markdown")
    names = re.findall(r"^##\s+(.+?)\s*$", texts, re.MULTILINE)
    return [(name, name.replace(" ", "-")) for name in names]


def _data_files(folder: Path) -> list[str]:
    """Return the files of a run that a reader may want, by name."""
    kinds = {".json", ".parquet", ".jsonl", ".yaml", ".ipynb"}
    found = sorted(path.name for path in folder.glob("[!.]*") if path.suffix in kinds)
    return [*found, "slides.html", *["figures/"] * (folder / "figures").is_dir()]


def _spending(run: dict[str, Any]) -> list[list[str]]:
    """Return what was planned beside what was spent, a row a role."""
    plan, usage = run.get("plan") or {}, (run.get("usage") or {}).get("roles") or {}

    def told(row: dict[str, Any], *names: str) -> str:
        values = [row[name] for name in names if row.get(name) is not None]
        return f"{round(sum(values), 4):,}" if values else DASH

    return [
        [
            role,
            *(told(row.get(role, {}), "calls") for row in (plan, usage)),
            told(usage.get(role, {}), "cached"),
            *(told(row.get(role, {}), "tokens_in", "tokens_out") for row in (plan, usage)),
            *(told(row.get(role, {}), "cost_usd") for row in (plan, usage)),
        ]
        for role in dict.fromkeys([*plan, *usage])
    ]


def print_pdf(slides: Path) -> Path:
    """Print a slide deck, a page a slide, beside it, through a browser of this machine.

    Args:
        slides: A deck as `render_report` writes it; reveal.js lays it out for print.

    Returns:
        Path of the PDF.

    Raises:
        NoPdf: There is no browser, or it failed; the message says which.
    """
    path = slides.with_suffix(".pdf")
    path.unlink(missing_ok=True)  # one of an older deck would be taken for this one's
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        names = ", ".join(name for name in BROWSERS if "/" not in name)
        raise NoPdf(
            f"no browser is installed ({names}); {slides.name} prints from any, with ?print-pdf "
            "behind its address"
        )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        printed = Path(folder) / "slides.pdf"
        flags = (
            "headless disable-gpu no-first-run no-pdf-header-footer disable-background-networking "
            "disable-component-update disable-sync virtual-time-budget=10000"
        )
        command = [browser, *(f"--{flag}" for flag in flags.split())]
        if os.geteuid() == 0:
            command.append("--no-sandbox")  # Chromium refuses root without it
        command += [f"--user-data-dir={folder}/profile", f"--print-to-pdf={printed}"]
        command.append(f"{slides.resolve().as_uri()}?print-pdf")
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoPdf(f"{browser} did not print {slides.name}: {error}"[:300]) from None
        if done.returncode or not printed.is_file():
            raise NoPdf(f"{browser} did not print {slides.name}: {done.stderr.strip()[-300:]}")
        wanted = slides.read_text(encoding="utf-8").count("<section><section>")
        pages = len(_PAGE.findall(printed.read_bytes()))
        if 0 < pages < wanted:  # none is found where the browser packs the pages' entries
            raise NoPdf(f"{browser} printed {pages} of the {wanted} slides of {slides.name}")
        shutil.copyfile(printed, path)
    return path


def _a_slide_an_output(node: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return the cells of the deck, each output of a cell tagged `slides` as a slide of its own.

    Cells that are skipped go, those that show nothing, and Papermill's injected one: nbconvert
    would make empty slides of them.
    """
    cells = []
    for cell in node.cells:
        tags = cell.metadata.get("tags", ())
        skipped = cell.metadata.get("slideshow", {}).get("slide_type") == "skip"
        empty = cell.cell_type == "code" and not cell.outputs
        if skipped or empty or "injected-parameters" in tags:
            continue
        if "slides" not in tags:
            cells.append(cell)
            continue
        for i, output in enumerate(cell.outputs):
            cells.append({**cell, "id": f"{cell.id}-{i}", "outputs": [output]})
    return _with(node, cells)


def _with(node: nbformat.NotebookNode, cells: Iterable[Any]) -> nbformat.NotebookNode:
    """Return a notebook with other cells."""
    changed: nbformat.NotebookNode = nbformat.from_dict({**node, "cells": [*cells]})
    return changed


def _inline_style(found: re.Match[str]) -> str:
    return f"<style>{(_REVEAL / found.group(1)).read_text(encoding='utf-8')}</style>"
