"""From a samples table to one row of estimates a method."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from geo_utils.models.usage import Usage
from geo_utils.statistics import cluster_mean, holm, paired_difference
from geo_utils.visibility import FIGURES

ALPHA = 0.05
PAIR = ["query_id", "key_point_number", "repeat"]


def summarise(samples: pd.DataFrame, reference: str = "original", seed: int = 0) -> pd.DataFrame:
    """Summarise a samples table by method.

    Args:
        samples: As `evaluate` returns it.
        reference: The method that paired differences are taken to.
        seed: Seed of the permutations.

    Returns:
        Indexed by method, in the order of the samples: `key_point_probability` with `ci_low` and
        `ci_high`, `n_examples`, `n_samples`, `abstentions`, mean `word`, `position`, `pawc`
        over `n_answers`, `kept` and `grounded` (fidelity of the pages), each with `_low` and
        `_high`, `page_words`; against the reference
        `difference`, `difference_low`, `difference_high`, `p_value`, `p_holm` (over the methods),
        `pairs_dropped`, and `clear`: whether the adjusted p-value is below 0.05.
    """
    methods = list(dict.fromkeys(samples["method"]))
    wide = samples.pivot(index=PAIR, columns="method", values="supported")
    queries = wide.index.get_level_values("query_id").tolist()
    rows = {}
    for method in methods:
        part = samples[samples["method"] == method]
        clusters = part["query_id"].tolist()
        found = cluster_mean(part["supported"].to_numpy(float), clusters, bounded=True)
        row: dict[str, Any] = {
            "key_point_probability": found.mean,
            "ci_low": found.low,
            "ci_high": found.high,
            "n_examples": found.n_clusters,
            "n_samples": found.n_samples,
            "abstentions": int(part["supported"].isna().sum()),
        }
        row["n_answers"] = int(part["pawc"].notna().sum())
        for name in FIGURES:
            share = cluster_mean(part[name].to_numpy(float), clusters)
            row |= {name: share.mean, f"{name}_low": share.low, f"{name}_high": share.high}
        row["page_words"] = float(part["page_words"].mean())
        for name in ("kept", "grounded"):
            share = cluster_mean(part[name].to_numpy(float), clusters)
            row |= {name: share.mean, f"{name}_low": share.low, f"{name}_high": share.high}
        if method != reference and reference in methods:
            against = paired_difference(
                wide[method].to_numpy(float), wide[reference].to_numpy(float), queries, seed
            )
            row |= {
                "difference": against.estimate.mean,
                "difference_low": against.estimate.low,
                "difference_high": against.estimate.high,
                "p_value": against.p_value,
                "pairs_dropped": against.n_dropped,
            }
        rows[method] = row
    summary = pd.DataFrame.from_dict(rows, orient="index")
    for column in ("difference", "difference_low", "difference_high", "p_value", "pairs_dropped"):
        if column not in summary:
            summary[column] = np.nan
    summary["p_holm"] = holm(summary["p_value"].tolist())
    summary["clear"] = summary["p_holm"] < ALPHA
    return summary.rename_axis("method")


def headline(summary: pd.DataFrame) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Return the numbers by method that a manifest records; None where there is none."""
    columns = ["key_point_probability", "ci_low", "ci_high", "n_examples", "n_samples",
               "abstentions", *FIGURES]  # fmt: skip
    return {
        "methods": {
            str(method): {
                column: None
                if pd.isna(row[column])
                else int(row[column])
                if column in ("n_examples", "n_samples", "abstentions")
                else float(row[column])
                for column in columns
            }
            for method, row in summary.iterrows()
        }
    }


def usage_report(samples: pd.DataFrame, usage: Usage) -> dict[str, Any]:
    """Return what a run used, for its manifest: samples, abstentions, and usage by role."""
    return {
        "samples": len(samples),
        "abstentions": int(samples["abstention"].notna().sum()),
        "roles": usage.report(),
    }
