"""The fidelity gate: which rewrites are still the page, and the strict probability."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from geo_utils.corpus import Example, KeyPoint, KeyPointChoice, choose_key_points
from geo_utils.fidelity import fidelity, new_claims
from geo_utils.judges import Judge, Verdict
from geo_utils.lexical import SUPPORT_THRESHOLD, coverage
from geo_utils.lint import new_instructions
from geo_utils.loops import gather_all, run_sync
from geo_utils.methods import is_arm
from geo_utils.text import sentences

CHECKS = ("fidelity", "new_claims", "instructions", "plants", "faithful")


def original_support(
    examples: Iterable[Example], judge: Judge, key_points: KeyPointChoice = "one", seed: int = 0
) -> dict[tuple[str, int], float]:
    """Ask the judge whether each original page supports its own key point.

    Returns:
        1.0, 0.0, or NaN for an abstention, by query and number of the key point.
    """
    pairs = choose_key_points(examples, key_points, seed)

    async def everything() -> list[Verdict]:
        return await gather_all(judge.judge(p.content, e.target) for e, p in pairs)

    verdicts = run_sync(everything())
    return {
        (e.query_id, p.number): np.nan if v.label is None else float(v.label == "supported")
        for (e, p), v in zip(pairs, verdicts, strict=True)
    }


def check_pages(samples: pd.DataFrame, examples: Iterable[Example], gate: float) -> pd.DataFrame:
    """Check each rewritten page against its original.

    Args:
        samples: As `evaluate.evaluate` returns it, with `original_supports` (NaN where nobody
            asked: the point then counts as the page's own).
        examples: The corpus.
        gate: Least fidelity.

    Returns:
        A row a sample: `fidelity` (the worse of kept and grounded, the key point being grounded
        unless the original page does not support it), `new_claims` (sentences that neither
        carries), `instructions` (new ones, by the lint), `plants` (1.0 if the page says more of
        the key point than its original, which does not support it), `faithful` (1.0 if fidelity
        is at least the gate, and it neither instructs nor plants) and `strict` (supported by an
        answer to a faithful page). NaN where there is no page.
    """
    corpus = {example.query_id: example for example in examples}
    known: dict[tuple[str, int, str], tuple[float, ...]] = {}
    rows = []
    each: Iterable[Any] = samples.itertuples(index=False)
    for row in each:
        if is_arm(row.method) or not isinstance(row.page, str):
            rows.append((np.nan,) * len(CHECKS))
            continue
        key = (row.query_id, row.key_point_number, row.page)
        if key not in known:
            point = KeyPoint(row.key_point_number, row.key_point)
            own = bool(row.original_supports != 0)
            known[key] = _checked(corpus[row.query_id], point, row.page, own, gate)
        rows.append(known[key])
    found = pd.DataFrame(rows, columns=list(CHECKS), index=samples.index)
    # A policy that wrote no page has failed, whatever the page would have been.
    failed = samples["verdict"].eq("no page")
    found.loc[failed, "faithful"] = 0.0
    found["strict"] = samples["supported"] * found["faithful"]
    return found


def _checked(
    example: Example, point: KeyPoint, page: str, own: bool, gate: float
) -> tuple[float, ...]:
    also = [point.content] if own else []
    score = fidelity(example.target, page, also).score
    orders = len(new_instructions(example.target, page))
    plants = not own and _share(point, page) > max(
        _share(point, example.target), SUPPORT_THRESHOLD - 1e-9
    )
    faithful = score >= gate - 1e-9 and not orders and not plants
    claims = len(new_claims(example.target, page, also))
    return score, float(claims), float(orders), float(plants), float(faithful)


def _share(point: KeyPoint, page: str) -> float:
    return coverage(point.content, sentences(page)).score
