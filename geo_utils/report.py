"""From an executed notebook to a report and a slide deck, one file each, opened offline."""

from __future__ import annotations

import argparse
import copy
import html
import re
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import HTMLExporter, SlidesExporter
from traitlets.config import Config

from geo_utils.files import write_atomic
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
        Paths of `report.html` (all cells but their code) and `slides.html` (the cells whose
        slide type is not `skip`). Neither loads anything from anywhere.
    """
    node = nbformat.read(notebook, as_version=4)
    folder = notebook.resolve().parent
    node.metadata["title"] = _title(node) or notebook.stem
    resources = {
        "geo_banner": _banner(manifest or {}),
        "geo_reveal_js": (_REVEAL / "reveal.js").read_text(encoding="utf-8"),
    }
    report, _ = HTMLExporter(config=_config("geo_report")).from_notebook_node(node, dict(resources))
    write_atomic(folder / "report.html", report)
    for cell in node.cells:  # one that shows nothing would be an empty slide
        if cell.cell_type == "code" and not cell.outputs:
            cell.metadata.setdefault("slideshow", {})["slide_type"] = "skip"
    slides, _ = SlidesExporter(
        config=_config("geo_slides"), reveal_url_prefix="reveal-inline", reveal_theme="white"
    ).from_notebook_node(_without_empty_slides(node), dict(resources))
    write_atomic(folder / "slides.html", _REVEAL_LINK.sub(_inline_style, slides))
    return folder / "report.html", folder / "slides.html"


def main() -> None:
    """Render the report and slides of a run folder or an executed notebook."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("path", type=Path, help="run folder or executed .ipynb")
    path = parser.parse_args().path
    notebook = path / "notebook.ipynb" if path.is_dir() else path
    if not notebook.is_file():
        sys.exit(f"{notebook}: no such notebook; give a run folder or an executed .ipynb")
    try:
        written = render_report(notebook, Run(notebook.parent).manifest)
    except Exception as error:  # the parser's and the exporters' errors are of many kinds
        sys.exit(f"{notebook} cannot be rendered: {type(error).__name__}: {error}"[:500])
    print("\n".join(map(str, written)))  # noqa: T201


def _config(template: str) -> Config:
    config = Config()
    config.TemplateExporter.extra_template_basedirs = [str(_TEMPLATES)]
    config.TemplateExporter.template_name = template
    config.TemplateExporter.exclude_input = True
    config.TemplateExporter.exclude_input_prompt = True
    config.TemplateExporter.exclude_output_prompt = True
    config.HTMLExporter.embed_images = True
    return config


def _without_empty_slides(node: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Skip the cells that show nothing, such as the figure of an analysis switched off."""
    shown = copy.deepcopy(node)
    for cell in shown.cells:
        if cell.cell_type == "code" and not cell.outputs and "slideshow" in cell.metadata:
            cell.metadata["slideshow"]["slide_type"] = "skip"
    return shown


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
