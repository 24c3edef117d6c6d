"""The command line of reports: one run rendered anew, runs compared, all runs listed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from geo_utils.files import resolve_path
from geo_utils.records import find_records, named_records
from geo_utils.runs import Run
from geo_utils.show.pages import write_comparison, write_index
from geo_utils.show.report import render_report


def main(argv: Sequence[str] | None = None) -> None:
    """Render a run's report and slides; or compare runs, or write the index of all runs."""
    parser = argparse.ArgumentParser(
        prog="python -m geo_utils.report",
        description=main.__doc__,
        usage="%(prog)s PATH [--pdf] | compare RUN RUN ... | index",
        epilog="PATH: run folder or executed .ipynb. RUN: run folder or run id.",
    )
    parser.add_argument("words", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--pdf", action="store_true", help="print the slides, too")
    parser.add_argument("--output-root", default="outputs", help="folder of the runs")
    args = parser.parse_args(argv)
    root = resolve_path(args.output_root)
    try:
        if args.words == ["index"]:
            if not root.is_dir():
                sys.exit(f"{root}: no such folder; run a notebook first, or name --output-root")
            written: list[Path | str] = [write_index(root)]
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
    try:
        return list(render_report(notebook, Run(notebook.parent).manifest, pdf).values())
    except Exception as error:  # the parser's and the exporters' errors are of many kinds
        sys.exit(f"{notebook} cannot be rendered: {type(error).__name__}: {error}"[:500])


if __name__ == "__main__":
    main()
