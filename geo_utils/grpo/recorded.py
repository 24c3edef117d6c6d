"""A training that was made elsewhere, on pages that may not be shown: its numbers.

A record is a folder. `record.json` says of what (see `models.record`); what a training leaves
behind as it goes lies beside it (`PARTS`), and the comparison's samples without their texts.
`read.parquet` and `rollouts.jsonl` hold pages to read: what the policies make of other pages, which
may be shown.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from math import isnan, nan
from pathlib import Path
from typing import Any

import pandas as pd

from geo_utils.certificate import answer_sha
from geo_utils.corpus import Corpus, Example
from geo_utils.files import read_jsonl, write_atomic
from geo_utils.grpo import rivals
from geo_utils.grpo.params import GrpoParams, RewardOptions
from geo_utils.grpo.rewards import Rollout, free_reward, paid_page, telling_rollouts
from geo_utils.models.record import ABOUT, open_record
from geo_utils.runs import Run
from geo_utils.visibility import FIGURES

PARTS = ("metrics.jsonl", "validation.jsonl", "prefilter.jsonl")
KEPT = ("lengths", "distilled")  # of a run's manifest
SAMPLES, READ, ROLLOUTS = "samples.parquet", "read.parquet", "rollouts.jsonl"
_TEXTS = ["query", "key_point", "page", "answer", "explanation"]


def record_training(
    run: Path, folder: Path, about: Mapping[str, Any], read: pd.DataFrame, examples: Corpus
) -> None:
    """Make a record of a finished run of notebook 04.

    Args:
        run: The run's folder.
        folder: Gets the record.
        about: Of `record.json`, beside the models and lengths, which the run knows: `corpus`, in
            words; `date`; `gpu`; what else is to be known of it.
        read: Samples of both policies (`policy/before`, `policy/after`) and of `original` on
            `examples`, as notebook 02 makes them where the policies' folders are among its methods.
        examples: Pages that may be shown.
    """
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    for name in PARTS:
        if read_jsonl(run / name):
            shutil.copy(run / name, folder)
    costs = [{n: row[n] for n in ("part", "n", "seconds")} for row in read_jsonl(run / rivals.FILE)]
    if costs:
        write_atomic(folder / rivals.FILE, "".join(f"{json.dumps(row)}\n" for row in costs))
    samples = pd.read_parquet(run / SAMPLES)
    texts = zip(samples["query_id"], samples["key_point"], samples["answer"], strict=True)
    samples["answer_sha"] = [answer_sha(*t) if isinstance(t[2], str) else None for t in texts]
    samples[_TEXTS] = samples[_TEXTS].where(samples[_TEXTS].isna(), "")
    samples.to_parquet(folder / SAMPLES, compression="zstd", index=False)
    read.to_parquet(folder / READ, compression="zstd", index=False)
    options = RewardOptions.model_validate(manifest["parameters"]["resolved"]["reward"])
    batch = _rollouts(read, examples, options)
    judged = [row for row in read_jsonl(run / "validation.jsonl") if row["mean"] is not None]
    best = max(judged, key=lambda row: row["mean"], default=None)  # was compared, else the last
    step = (best or read_jsonl(run / "metrics.jsonl")[-1])["step"]
    chosen = "".join(f"{json.dumps(row)}\n" for row in telling_rollouts(step, batch))
    write_atomic(folder / ROLLOUTS, chosen)
    models = sorted({name.partition("/")[2] for name in manifest["models"].values() if "/" in name})
    told = {**about, "models": models} | {name: manifest.get(name, {}) for name in KEPT}
    write_atomic(folder / ABOUT, json.dumps(told, indent=2) + "\n")


def _rollouts(read: pd.DataFrame, examples: Corpus, options: RewardOptions) -> list[Rollout]:
    """Return the trained policy's pages with their rewards, each by the answer that was sampled.

    The reply is taken to be the page.
    """
    figures = list(FIGURES) if options.figure == "mean" else [options.figure]
    seen = read.assign(seen=read[figures].mean(axis=1))
    key = ["query_id", "repeat"]
    before = seen[seen["method"] == "original"].groupby(key)["seen"].mean()
    by_id, found = {example.query_id: example for example in examples}, []
    for row in seen[(seen["method"] == "policy/after") & seen["page"].notna()].to_dict("records"):
        example, page = by_id[row["query_id"]], row["page"]
        point = next(p for p in example.key_points if p.number == row["key_point_number"])
        paid = paid_page(page, example, point)
        echoes = None if isnan(row["echoes"]) else int(row["echoes"])
        rollout = Rollout(example, point, page, 0, None, page, None, paid, echoes)
        rollout.answer, rollout.verdict = row["answer"], row["verdict"]
        known = {"key_point": row["supported"], "fidelity": row["fidelity"]}
        known["visibility"] = row["seen"] - before.get((row["query_id"], row["repeat"]), nan)
        scores = {
            name: known[name] if name in known else free_reward(name, rollout, rollout, options, "")
            for name in options.funcs
        }
        if not any(map(isnan, scores.values())):
            rollout.rewarded(scores, options)
            found.append(rollout)
    return found


def replay(record: Path, run: Run) -> None:
    """Put what a recorded training left behind into a run.

    Raises:
        ValueError: The record holds no training, or no pages to read.
    """
    about = open_record(record).about
    if missing := [name for name in (PARTS[0], SAMPLES, READ) if not (record / name).is_file()]:
        way = "name a recorded training (grpo.recorded), or set record to null and train"
        raise ValueError(f"record={str(record)!r} lacks {', '.join(missing)}; {way}")
    run.update(**{name: about[name] for name in KEPT})
    for name in (*PARTS, rivals.FILE, ROLLOUTS):
        if (record / name).is_file():
            shutil.copy(record / name, run.folder)


def to_read(
    params: GrpoParams, samples: pd.DataFrame, held_out: Iterable[Example], examples: Corpus
) -> tuple[pd.DataFrame, Iterable[Example]]:
    """Return samples whose texts are there, and the examples that they are of."""
    if params.recorded:
        return pd.read_parquet(params.recorded / READ), examples
    return samples, held_out
