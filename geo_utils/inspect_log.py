"""A run's samples as a log of inspect_ai, which `inspect view` opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from geo_utils.records import Record

_TOLD = ("method", "key_point", "page", "target_place", "verdict", "pawc", "uncited", "abstention")


def write_inspect_log(record: Record, path: Path) -> int:
    """Write the samples of a run of notebook 02, 03 or 04 as one log.

    A sample's id is its query, key point and method, its epoch the repeat; the score `supported`
    is 1 or 0, and missing for an abstention, whose reason is in the sample's metadata. The
    results hold each method's key-point probability with its interval, as the manifest has it.

    Args:
        record: The run.
        path: Of the log; its ending, `.eval` or `.json`, says which of inspect_ai's formats.

    Returns:
        How many samples were written.

    Raises:
        ValueError: inspect_ai is not installed, or the run has no samples.
    """
    try:
        from inspect_ai import log, model
        from inspect_ai.scorer import Score
    except ImportError:
        raise ValueError(
            "a log is written by inspect_ai, which is not installed: pip install inspect-ai"
        ) from None
    try:
        samples = pd.read_parquet(record.folder / "samples.parquet")
    except OSError:
        raise ValueError(f"{record.folder} has no samples.parquet; give a finished run") from None
    engine = str(record.manifest.get("models", {}).get("engine", "unknown"))
    rows: Any = samples.astype(object).where(samples.notna(), None).to_dict("records")
    written = [
        log.EvalSample(
            id=f"{row['query_id']}/{row['key_point_number']}/{row['method']}",
            epoch=int(row["repeat"]) + 1,
            input=row["query"],
            target=row["key_point"],
            output=model.ModelOutput.from_content(engine, row["answer"] or ""),
            messages=[
                model.ChatMessageUser(content=row["query"]),
                model.ChatMessageAssistant(content=row["answer"] or ""),
            ],
            scores={}
            if row["supported"] is None
            else {
                "supported": Score(
                    value=row["supported"], answer=row["verdict"], explanation=row["explanation"]
                )
            },
            metadata={name: row[name] for name in _TOLD},
        )
        for row in rows
    ]
    names = {"key_point_probability": "mean", "ci_low": "low", "ci_high": "high"}
    scores = [
        log.EvalScore(
            name=method,
            scorer="supported",
            scored_samples=row["n_samples"],
            unscored_samples=row["abstentions"],
            metrics={
                name: log.EvalMetric(name=name, value=row[column])
                for column, name in names.items()
                if row[column] is not None
            },
        )
        for method, row in record.headline.get("methods", {}).items()
    ]
    spec = log.EvalSpec(
        created=str(record.manifest.get("started_at")),
        task=f"{record.notebook} {record.variant}",
        run_id=record.run_id,
        model=engine,
        dataset=log.EvalDataset(
            name=str(record.parameters.get("corpus.name")), samples=samples["query_id"].nunique()
        ),
        config=log.EvalConfig(epochs=int(samples["repeat"].max()) + 1),
        metadata={"provenance": record.provenance, "parameters": record.parameters},
    )
    scored = int(samples["supported"].notna().sum())
    results = log.EvalResults(total_samples=len(samples), completed_samples=scored, scores=scores)
    made = log.EvalLog(status="success", eval=spec, results=results, samples=written)
    log.write_eval_log(made, str(path))
    return len(written)
