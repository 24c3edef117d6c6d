"""Slides to PDF through a browser of this machine, where there is one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome",
            "microsoft-edge", "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
            "/Applications/Chromium.app/Contents/MacOS/Chromium")  # fmt: skip
_LIMIT_S = 120
_PAGE = re.compile(rb"/Type\s*/Page\b(?!s)")


class NoPdf(RuntimeError):
    """The PDF could not be made; the slides stand as they are."""


def find_browser() -> str | None:
    """Return the path of the first browser of `BROWSERS` that is installed."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def print_pdf(slides: Path) -> Path:
    """Print a slide deck, a page a slide, beside it.

    Args:
        slides: A deck as `report.render_report` writes it; reveal.js lays it out for print.

    Returns:
        Path of the PDF.

    Raises:
        NoPdf: There is no browser, or it failed; the message says which.
    """
    browser, path = find_browser(), slides.with_suffix(".pdf")
    path.unlink(missing_ok=True)  # one of an older deck would be taken for this one's
    if browser is None:
        names = ", ".join(name for name in BROWSERS if "/" not in name)
        raise NoPdf(f"no browser is installed ({names}); {slides.name} prints from any, with "
                    "?print-pdf behind its address")  # fmt: skip
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [
            browser, "--headless", "--disable-gpu", "--no-first-run", "--no-pdf-header-footer",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--virtual-time-budget=10000", f"--user-data-dir={folder}/profile",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),  # Chromium refuses root without it
            f"--print-to-pdf={folder}/slides.pdf", f"{slides.resolve().as_uri()}?print-pdf",
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoPdf(f"{browser} did not print {slides.name}: {error}"[:300]) from None
        printed = Path(folder) / "slides.pdf"
        if done.returncode or not printed.is_file():
            raise NoPdf(f"{browser} did not print {slides.name}: {done.stderr.strip()[-300:]}")
        wanted = slides.read_text(encoding="utf-8").count("<section><section>")
        pages = len(_PAGE.findall(printed.read_bytes()))
        if 0 < pages < wanted:  # none is found where the browser packs the pages' entries
            raise NoPdf(f"{browser} printed {pages} of the {wanted} slides of {slides.name}")
        shutil.copyfile(printed, path)
    return path
