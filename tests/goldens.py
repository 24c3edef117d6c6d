"""Goldens of the house's rebuilding: what the notebooks show, before and after a step.

    python tests/goldens.py write|check [NAME ...]

Runs notebooks on the shipped sample into a temporary folder and keeps what depends on no clock:
tables, findings, the pictures' hashes, headlines, a training step by step, and the resolved
parameters of every YAML. `check` names what differs. Gone when the rebuilding is done.
"""

import difflib
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pandas as pd

PROJECT = Path(__file__).resolve().parent.parent
KEPT = Path(__file__).with_suffix(".json")
RUNS = {
    "01": ("01_efficiency", "default", {"settings": "{}"}),
    "02": ("02_baseline_rewrites", "full", {}),
    "03": ("03_key_point_prompt", "full", {}),
    "04": ("04_grpo", "smoke", {}),
}
TIMED = re.compile("^at$|phases|background|step_time|seconds|_wall$|runtime|per_second")
CHANGING = re.compile(  # run ids, uuids of styled tables, seconds, folders
    r"\d{8}-\d{6,9}-[0-9a-f]{8}|T_[0-9a-f]{5}\w*|/tmp/[\w./-]+|\d+(\.\d+)? s\b|[0-9a-f]{32,64}"
)


def digest(data):
    return hashlib.sha256(data if isinstance(data, bytes) else data.encode()).hexdigest()[:16]


def executed(name, folder):
    notebook, variant, changes = RUNS[name]
    given = changes | {"paths.output": folder}
    if name != "01":
        given["paths.cache"] = folder / "cache"
    pairs = [f"{key}={value}" for key, value in given.items()]
    done = subprocess.run(
        [sys.executable, "-m", "geo_utils", "run", notebook, variant, *pairs],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (run,) = folder.glob(f"{notebook}/*/*/")
    return run


def shown(run):
    """The outputs of a notebook's cells, pictures by their hash."""
    found = []
    for cell in nbformat.read(run / "notebook.ipynb", as_version=4).cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            for kind in ("text/markdown", "text/html", "image/png", "text/plain"):
                if kind in data:
                    text = data[kind] if kind != "image/png" else "picture " + digest(data[kind])
                    found.append(CHANGING.sub("#", text))
                    break
    return found


def table(path):
    frame = pd.read_parquet(path)
    return digest(frame.to_json(orient="records", double_precision=12))


def steps(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not TIMED.search(k)} for row in rows]


def of_run(name):
    with tempfile.TemporaryDirectory() as folder:
        run = executed(name, Path(folder))
        manifest = json.loads((run / "manifest.json").read_text())
        found = {
            "shown": shown(run),
            "headline": manifest["headline"],
            "provenance": manifest["provenance"],
            "tables": {p.name: table(p) for p in sorted(run.glob("*.parquet"))},
        }
        if name == "04":
            found["steps"] = steps(run)
            found["rollouts"] = digest(
                "".join(
                    json.dumps([r["step"], r["kind"], r["reply"], r["page"], r["rewards"]])
                    for r in map(json.loads, (run / "rollouts.jsonl").read_text().splitlines())
                )
            )
        return found


def parameters():
    """What every YAML of params/ resolves to."""
    code = """
import json, sys
from pathlib import Path
from geo_utils.notebooks import read_parameters
found = {}
for path in sorted(Path("params").glob("*/*.yaml")):
    over = [("day", "2026-01-31")] if path.parent.name == "05_weekly" else []
    found[str(path)] = read_parameters(path.parent.name, str(path), over)[2].model_dump(mode="json")
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def main(what, *names):
    makers = {name: (lambda name=name: of_run(name)) for name in RUNS} | {"parameters": parameters}
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    wrong = 0
    for name in names or makers:
        found = json.loads(json.dumps(makers[name]()))
        if what == "write":
            kept[name] = found
            continue
        before, after = (
            json.dumps(x, indent=1, ensure_ascii=False).splitlines() for x in (kept[name], found)
        )
        changed = [line for line in difflib.unified_diff(before, after, lineterm="", n=1)]
        wrong += bool(changed)
        sys.stdout.write(
            f"{name}: {'as before' if not changed else f'{len(changed)} lines differ'}\n"
        )
        sys.stdout.write("\n".join(line[:1500] for line in changed[:60]))
    if what == "write":
        KEPT.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    sys.exit(wrong)


if __name__ == "__main__":
    main(*sys.argv[1:])
