"""Whether the retrieval table holds planted truths: `python tests/measure_retrieval.py`.

Two methods are planted beside the original page. `wins` is said more often and found less often,
`same` neither: whether a page is found hangs on its query alone, whether the point is said on the
query and the answer.
"""

import argparse
import gc

import numpy as np
import pandas as pd

from geo_utils import statistics
from geo_utils.baseline_rewrites.retrieval import retrieval

FOUND = {"original": 0.8, "wins": 0.55, "same": 0.8}
SAID = {"original": 0.4, "wins": 0.7, "same": 0.4}
WHATS = {"found": FOUND, "supported": SAID, "end_to_end": {m: FOUND[m] * SAID[m] for m in FOUND}}


def planted(seed, n, repeats=3):
    """Return samples of n queries with the columns that `retrieval` reads."""
    rng = np.random.default_rng(seed)
    rows = []
    for query in range(n):
        ease = rng.random()
        for method in FOUND:
            # Pages of one query share their luck: most that are found are found before and after.
            own = ease if rng.random() < 0.7 else rng.random()
            found = float(own < FOUND[method])
            chance = rng.beta(4 * SAID[method], 4 * (1 - SAID[method]))
            said = rng.random(repeats) < chance
            rows += [
                {
                    "query_id": query, "key_point_number": 1, "repeat": i, "method": method,
                    "supported": float(s), "rank_bm25": 1 + 9 * (1 - found), "found_bm25": found,
                    "end_to_end_bm25": found * s,
                }
                for i, s in enumerate(said)
            ]  # fmt: skip
    return pd.DataFrame(rows)


def coverage(seeds, n):
    """Return how often each interval holds its truth, and each verdict is right where given."""
    hits, given, right = {}, 0, 0
    for seed in seeds:
        found = retrieval(planted(seed, n)).loc["bm25"]
        for what, truth in WHATS.items():
            for method in FOUND:
                row = found.loc[method]
                held = row[f"{what}_low"] <= truth[method] <= row[f"{what}_high"]
                hits.setdefault((what, method), []).append(held)
                change = truth[method] - truth["original"]
                if method == "original":
                    continue
                if row[f"{what}_clear"]:
                    given += 1
                    right += np.sign(change) == np.sign(row[f"{what}_difference"])
                held = row[f"{what}_difference_low"] <= change <= row[f"{what}_difference_high"]
                # Without an interval, where no query differs, only 0 is held.
                held |= np.isnan(row[f"{what}_difference_low"]) & (change == 0)
                hits.setdefault((f"{what}, difference", method), []).append(held)
    return {k: float(np.mean(v)) for k, v in hits.items()}, (right / given if given else np.nan)


def main():
    """Plant 1,000 experiments of 30 and of 120 queries and print what the table holds of them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seeds", type=int, default=1000)
    args = parser.parse_args()
    statistics.N_RESAMPLES = 999
    gc.freeze()  # statsmodels collects garbage at every correction
    for n in (30, 120):
        held, right = coverage(range(args.seeds), n)
        lines = [
            f"{n} queries, {what}, {method}: {rate:.3f}" for (what, method), rate in held.items()
        ]
        print("\n".join([*lines, f"{n} queries, clear verdicts that are right: {right:.3f}"]))  # noqa: T201


if __name__ == "__main__":
    main()
