"""From an executed notebook to a report and a slide deck, one file each, opened offline."""

from __future__ import annotations

import argparse
import html
import re
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import HTMLExporter, SlidesExporter
from traitlets.config import Config

from geo_utils.files import resolve_path, write_atomic
from geo_utils.meeting.browser import NoPdf, print_pdf
from geo_utils.meeting.index_page import write_index
from geo_utils.meeting.records import find_records, named_records
from geo_utils.meeting.side_by_side import write_comparison
from geo_utils.runs import Run

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_REVEAL = files("pyreveal") / "revealjs" / "dist"
_REVEAL_LINK = re.compile(r'<link[^>]*href="reveal-inline/dist/([\w/.-]+)"[^>]*>')


def render_report(notebook: Path, manifest: dict[str, Any] | None = None) -> tuple[Path, Path]:
    """Render an executed notebook beside itself.

    Args:
        notebook: An executed notebook, also one that stopped half way.
        manifest: The run's manifest, for the banner that says how the run ended.

    Returns:
        Paths of `report.html` (all cells but their code, without those tagged `slides-only`) and
        `slides.html` (the cells whose slide type is not `skip`). Neither loads anything from
        anywhere.
    """
    node = nbformat.read(notebook, as_version=4)
    folder = notebook.resolve().parent
    node.metadata["title"] = _title(node) or notebook.stem
    resources = {
        "geo_banner": _banner(manifest or {}),
        "geo_reveal_js": (_REVEAL / "reveal.js").read_text(encoding="utf-8"),
    }
    config = _config("geo_report")
    config.TagRemovePreprocessor.enabled = True
    config.TagRemovePreprocessor.remove_cell_tags = {"slides-only"}
    report, _ = HTMLExporter(config=config).from_notebook_node(node, dict(resources))
    write_atomic(folder / "report.html", report)
    slides, _ = SlidesExporter(
        config=_config("geo_slides"), reveal_url_prefix="reveal-inline", reveal_theme="white"
    ).from_notebook_node(_a_slide_an_output(node), dict(resources))
    write_atomic(folder / "slides.html", _REVEAL_LINK.sub(_inline_style, slides))
    return folder / "report.html", folder / "slides.html"


def render_pdf(slides: Path, manifest: dict[str, Any]) -> str | None:
    """Print the slides of a run that asked for it.

    Args:
        slides: As `render_report` returns them.
        manifest: The run's; its parameter `pdf` asks.

    Returns:
        A line on where the PDF is, or why there is none; none where none was asked for.
    """
    parameters = manifest.get("parameters") or {}
    if not (parameters.get("resolved") or {}).get("pdf"):
        return None
    try:
        return f"pdf: {print_pdf(slides)}"
    except NoPdf as error:
        return f"pdf: none, {error}"


def main(argv: Sequence[str] | None = None) -> None:
    """Render a run's report and slides; or compare runs, or write the index of all runs."""
    parser = argparse.ArgumentParser(
        prog="python -m geo_utils.report", description=main.__doc__,
        usage="%(prog)s PATH [--pdf] | compare RUN RUN ... | index",
        epilog="PATH: run folder or executed .ipynb. RUN: run folder or run id.",
    )  # fmt: skip
    parser.add_argument("words", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--pdf", action="store_true", help="print the slides, too")
    parser.add_argument("--output-root", default="outputs", help="folder of the runs")
    args = parser.parse_args(argv)
    root = resolve_path(args.output_root)
    try:
        if args.words == ["index"]:
            written: list[Path | str] = [write_index(_folder(root))]
        elif args.words[0] == "compare":
            records = named_records(args.words[1:], find_records(root))
            written = [write_comparison(records, root)]
        elif len(args.words) == 1:
            written = _rendered(Path(args.words[0]), args.pdf)
        else:
            parser.error(f"one PATH, or compare or index before {args.words[0]!r}")
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    print("\n".join(map(str, written)))  # noqa: T201


def _rendered(path: Path, pdf: bool) -> list[Path | str]:
    notebook = path / "notebook.ipynb" if path.is_dir() else path
    if not notebook.is_file():
        sys.exit(f"{notebook}: no such notebook; give a run folder or an executed .ipynb")
    manifest = Run(notebook.parent).manifest
    try:
        report, slides = render_report(notebook, manifest)
    except Exception as error:  # the parser's and the exporters' errors are of many kinds
        sys.exit(f"{notebook} cannot be rendered: {type(error).__name__}: {error}"[:500])
    asked = {"parameters": {"resolved": {"pdf": True}}} if pdf else manifest
    line = render_pdf(slides, asked)
    return [report, slides, *([line.removeprefix("pdf: ")] if line else [])]


def _folder(root: Path) -> Path:
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; run a notebook first, or name --output-root")
    return root


def _a_slide_an_output(node: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return the cells of the deck, each output of a cell tagged `slides` as a slide of its own.

    Cells that are skipped go, those that show nothing, and Papermill's injected one: nbconvert
    would make empty slides of them.
    """
    split: nbformat.NotebookNode = nbformat.from_dict({**node, "cells": []})
    for cell in node.cells:
        tags = cell.metadata.get("tags", ())
        slide_type = cell.metadata.get("slideshow", {}).get("slide_type")
        empty = cell.cell_type == "code" and not cell.outputs
        if slide_type == "skip" or empty or "injected-parameters" in tags:
            continue
        if "slides" not in tags:
            split.cells.append(cell)
            continue
        for i, output in enumerate(cell.outputs):
            alone = {**cell, "id": f"{cell.id}-{i}", "outputs": [output]}
            split.cells.append(nbformat.from_dict(alone))
    return split


def _config(template: str) -> Config:
    config = Config()
    config.TemplateExporter.extra_template_basedirs = [str(_TEMPLATES)]
    config.TemplateExporter.template_name = template
    config.TemplateExporter.exclude_input = True
    config.TemplateExporter.exclude_input_prompt = True
    config.TemplateExporter.exclude_output_prompt = True
    config.HTMLExporter.embed_images = True
    return config


def _title(node: nbformat.NotebookNode) -> str | None:
    for cell in node.cells:
        found = re.search(r"^#\s+(.+)$", cell.source, re.MULTILINE)
        if cell.cell_type == "markdown" and found:
            return str(found.group(1))
    return None


def _banner(manifest: dict[str, Any]) -> str:
    if not manifest:
        return ""
    status, git = str(manifest.get("status")), dict(manifest.get("git") or {})
    facts = [
        f"run <b>{html.escape(str(manifest.get('run_id')))}</b>: <b>{status}</b>",
        *([html.escape(str(manifest["reason"]))] if manifest.get("reason") else []),
        html.escape(str(manifest.get("provenance", ""))),
        f"started {html.escape(str(manifest.get('started_at')))}",
        f"commit {str((manifest.get('git') or {}).get('commit'))[:10]}"
        + (" with uncommitted changes" if git.get("dirty") else ""),
    ]
    kind = "finished" if status == "finished" else "unfinished"
    return f'<div class="geo-banner {kind}">{" · ".join(filter(None, facts))}</div>'


def _inline_style(found: re.Match[str]) -> str:
    return f"<style>{(_REVEAL / found.group(1)).read_text(encoding='utf-8')}</style>"


if __name__ == "__main__":
    main()
