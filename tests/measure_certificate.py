"""How often the corrected lift's interval holds a planted truth: run it without arguments.

A judge that errs more on one page than on the other, hand labels of some answers, and the lift
from the original page to the rewritten one, as the judge sees it and corrected.
"""

import numpy as np
import pandas as pd

from geo_utils.certificate import corrected_lifts, corrected_probabilities

BASE = 1 / 2.2  # mean of the Beta(1, 1.2) that queries' probabilities are drawn from
RECALL = {"original": 0.6, "key_point": 0.95}
SPECIFICITY = {"original": 0.95, "key_point": 0.8}


def judged_samples(
    seed, lift, n=60, repeats=3, labels=80, recall=RECALL, specificity=SPECIFICITY, some=1.0, b=1.2,
    silent=0.0,
):  # fmt: skip
    """Return samples of two methods with verdicts that err, and the truth of the labelled ones.

    Args:
        seed: Of every draw.
        lift: The true one, on average over queries; they differ in it and in their probability.
        n: Queries.
        repeats: Samples a query and method.
        labels: Answers of each method that readers have read.
        recall: Of the judge, by method.
        specificity: Likewise.
        some: Share of the queries that labels are drawn from.
        b: Queries' probabilities are drawn from Beta(1, b).
        silent: Chance that a query's rewritten page is none, as of a policy: no answer, no label.
    """
    rng = np.random.default_rng(seed)
    base = rng.beta(1, b, (n, 1))
    left = b / (1 + b)
    chance = {
        "original": base,
        "key_point": base + (1 - base) * rng.uniform(0, 2 * lift / left, (n, 1)),
    }
    queries, parts = np.arange(n).repeat(repeats), []
    luck = rng.random((n, repeats))  # answers of one repeat share some of it, as paired ones do
    for method, p in chance.items():
        own = np.where(rng.random((n, repeats)) < 0.4, rng.random((n, repeats)), luck)
        true = (own < p).ravel()
        u = rng.random(true.size)
        said = np.where(true, u < recall[method], u >= specificity[method])
        here = silent if method == "key_point" else 0.0
        none = (rng.random(n) < here if here else np.zeros(n, bool)).repeat(repeats)
        read = rng.choice(np.flatnonzero((queries < some * n) & ~none), labels, replace=False)
        rows = pd.DataFrame({"query_id": queries, "repeat": np.tile(np.arange(repeats), n)})
        rows = rows.assign(method=method, key_point_number=1, supported=said * 1.0 * ~none)
        rows["verdict"] = np.where(none, "no page", "judged")
        parts.append(rows.assign(truth=pd.Series(true[read].astype(float), index=read)))
    return pd.concat(parts, ignore_index=True)


def coverage(seeds, lift, each=True, **planted):
    """Return how often intervals hold the truth, and how wide the corrected lift's is.

    Args:
        seeds: One experiment each.
        lift: The true one.
        each: Correct the probability of each method as well.
        planted: As `judged_samples` takes it.
    """
    base, rows = 1 / (1 + planted.get("b", 1.2)), []
    wrote = 1 - planted.get("silent", 0.0)
    true = wrote * (base + lift) - base
    for seed in seeds:
        samples = judged_samples(seed, lift, **planted)
        found = corrected_lifts(samples).loc["key_point"]
        row = {k: found[f"{k}_low"] <= true <= found[f"{k}_high"] for k in ("raw", "corrected")}
        row |= {"width": found["corrected_high"] - found["corrected_low"]}
        if each:
            probabilities = corrected_probabilities(samples)
            for method, truth in (("original", base), ("key_point", base + true)):
                low, high = probabilities.loc[method, ["corrected_low", "corrected_high"]]
                row |= {method: low <= truth <= high}
        rows.append(row)
    return pd.DataFrame(rows).astype(float).mean()


CASES = {
    "planted": {},
    "no lift": {"lift": 0.0},
    "120 queries": {"n": 120},
    "30 queries x 30 samples": {"n": 30, "repeats": 30},
    "the same, labels of 15 queries": {"n": 30, "repeats": 30, "some": 0.5},
    "original at 0.1": {"b": 9.0},
    "equal errors": {
        "recall": dict.fromkeys(RECALL, 0.9),
        "specificity": dict.fromkeys(RECALL, 0.9),
    },
    "few errors": {
        "recall": dict.fromkeys(RECALL, 0.99),
        "specificity": dict.fromkeys(RECALL, 0.99),
    },
    "20 labels": {"labels": 20},
    "three replies in ten without a page": {"silent": 0.3},
}


if __name__ == "__main__":
    for name, case in CASES.items():
        found = coverage(range(1000), **{"lift": 0.2} | case)
        print(name, found.round(3).to_dict(), flush=True)  # noqa: T201
