"""Run folders as finished notebooks leave them, made without running any."""

import json

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9"
    "awAAAABJRU5ErkJggg=="
)


def method_row(probability, low, high, **changes):
    return {
        "key_point_probability": probability, "ci_low": low, "ci_high": high,
        "n_examples": 30, "n_samples": 90, "abstentions": 2, "pawc": 0.2,
    } | changes  # fmt: skip


HEADLINE = {
    "methods": {
        "original": method_row(0.4, 0.3, 0.5),
        "key_point": method_row(0.9, 0.8, 1.0),
        "keyword_stuffing": method_row(0.5, 0.4, 0.6),
    }
}


def make_run(root, run_id, notebook="02_baseline_rewrites", variant="smoke", **manifest):
    """Write a manifest as a finished run has it; an entry of None is left out."""
    folder = root / notebook / variant / run_id
    folder.mkdir(parents=True)
    stamp = f"{run_id[:4]}-{run_id[4:6]}-{run_id[6:8]}T10:00"
    entries = {
        "run_id": run_id, "notebook": notebook, "variant": variant, "status": "finished",
        "reason": None, "started_at": f"{stamp}:00+00:00", "ended_at": f"{stamp}:30+00:00",
        "attempts": [{"started_at": f"{stamp}:00+00:00", "pid": 1, "host": "elsewhere"}],
        "parameters": {"passed": {}, "resolved": {"variant": variant, "seed": 0, "repeats": 3}},
        "provenance": "offline roles", "headline": HEADLINE, "git": {"commit": "abcdef012345"},
        "code_hash": "one", "inputs": {"corpus": "c"},
    } | manifest  # fmt: skip
    kept = {name: value for name, value in entries.items() if value is not None}
    (folder / "manifest.json").write_text(json.dumps(kept))
    return folder


def executed(folder, *cells, title="02 · Does it work?"):
    """Write an executed notebook of (tag, heading, output) cells."""
    made = [new_markdown_cell(f"# {title}\n\nText.")]
    for tag, heading, data in cells:
        made.append(new_markdown_cell(f"## {heading}"))
        output = new_output("execute_result", data=data, execution_count=1)
        made.append(new_code_cell("shown", outputs=[output], metadata={"tags": [tag]}))
    nbformat.write(new_notebook(cells=made), folder / "notebook.ipynb")
    return folder


def picture(heading="How often?", tag="weekly"):
    return tag, heading, {"image/png": PIXEL, "text/plain": "<Figure>"}


def table(rows, heading="The numbers", tag="weekly"):
    body = "".join(f"<tr><th>{i}</th><td>{i}</td></tr>" for i in range(rows))
    shown = f"<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody>{body}</tbody></table>"
    return tag, heading, {"text/html": shown, "text/plain": "table"}
