"""How often intervals hold a planted truth, and verdicts are right.

A thousand studies of each kind, their seeds fixed beforehand; words choose the kinds:

    python tests/measure_verdicts.py [headroom placebo looks levels winners queries resolution]

The figures stand in the docstrings of what they measure. A verdict can be given, or not; `right` is
of those given, `wrong` of all studies, for where the truth is near the border few are given.
"""

import sys
import time

import numpy as np
import pandas as pd

from geo_utils.baseline_rewrites.counterfactual import equivalence
from geo_utils.key_point_prompt.headroom import WORTH, best_of_k, decision, unit_table
from geo_utils.key_point_prompt.power import pilot_variance
from geo_utils.statistics import cluster_mean, cluster_ratio, level_spread
from geo_utils.summary import by_query, leading

SEEDS = range(1000)
MARGIN = 0.05


def row(what, held=None, given=None, right=None):
    """One line: the share of intervals that hold the truth, of verdicts given, and given wrong."""
    known = [one for one in ([] if held is None else held) if one is not None]
    found = {"what": what, "covered": float(np.mean(known)) if known else None}
    if given is not None:
        given, right = np.array(given), np.array(right)
        found |= {"given": float(given.mean()), "wrong": float((given & ~right).mean())}
    return found


def holds(truth, estimate):
    """Whether an interval holds the truth; None where none was given."""
    return None if np.isnan(estimate.low) else bool(estimate.low <= truth <= estimate.high)


def samples_of(methods, queries):
    """A samples table of arrays of shape (queries, repeats), by method."""
    q, r = np.indices(next(iter(methods.values())).shape).reshape(2, -1)
    parts = [
        {"query_id": queries[q], "key_point_number": 1, "repeat": r, "method": name,
         "supported": values.ravel()}
        for name, values in methods.items()
    ]  # fmt: skip
    return pd.concat(map(pd.DataFrame, parts), ignore_index=True)


# What k rewrites of n key points do: (n, k) chances that an answer carries the point.
def _spread(sd):
    return lambda rng, n, k: np.clip(
        rng.uniform(0.35, 0.65, (n, 1)) + rng.normal(0, sd, (n, k)), 0, 1
    )


CHANCES = {
    "equal rewrites": lambda rng, n, k: rng.beta(1, 1.2, (n, 1)).repeat(k, 1),
    "normal, small": _spread(0.05),
    "normal": _spread(0.12),
    "good or bad": lambda rng, n, k: (
        rng.choice([0.3, 0.5, 0.7], (n, 1)) + 0.17 * rng.choice([-1, 1], (n, k))
    ),
    "one in eight is good": lambda rng, n, k: np.where(rng.random((n, k)) < 1 / 8, 0.8, 0.3),
    "some key points": lambda rng, n, k: np.where(
        rng.random((n, 1)) < 0.6,
        rng.choice([0.02, 0.98], (n, 1)),
        np.clip(0.5 + rng.normal(0, 0.2, (n, k)), 0, 1),
    ),
    "ceiling": lambda rng, n, k: np.clip(
        rng.uniform(0.97, 1, (n, 1)) + rng.normal(0, 0.01, (n, k)), 0, 1
    ),
}
STUDIES = [(kind, 30) for kind in CHANCES]
STUDIES += [("normal", 10), ("normal", 120), ("good or bad", 120)]


def study(rng, chances, answers=4, fresh=8):
    """The samples of a headroom study, as `headroom.ask` returns them."""
    n, k = chances.shape
    chosen = (rng.random((n, k, answers)) < chances[..., None]).astype(float)
    best = (chosen.sum(2) + 0.5 * rng.random((n, k))).argmax(1)  # ties are drawn
    again = (rng.random((n, fresh)) < chances[np.arange(n), best][:, None]).astype(float)
    q, i, j = np.indices(chosen.shape).reshape(3, -1)
    late, more = np.indices(again.shape).reshape(2, -1)
    return pd.DataFrame(
        {
            "query_id": np.append(q, late),
            "key_point_number": 1,
            "rewrite": np.append(i, best[late]),
            "repeat": np.append(j, answers + more),
            "stage": np.repeat(["choose", "fresh"], [q.size, late.size]),
            "supported": np.append(chosen, again),
        }
    )


def headroom(seeds):
    for kind, n in STUDIES:
        many = CHANCES[kind](np.random.default_rng(0), 50_000, 8)
        truth = (many.max(1) - many.mean(1)).mean()
        between, answers = many.var(1, ddof=1).mean(), (many * (1 - many)).mean()
        share, found = between / (between + answers), []
        for seed in seeds:
            rng = np.random.default_rng([seed, n])
            samples = study(rng, CHANCES[kind](rng, n, 8))
            units = unit_table(samples)
            gain = best_of_k(samples, units)["gain of the best of k"]
            verdict = decision(vars(gain))
            part = units["rewrite_variance"].to_numpy(float)
            whole = part + units["answer_variance"].to_numpy(float)
            right = verdict == ("headroom" if truth > WORTH else "little")
            shares = cluster_ratio(part, whole, units.index.get_level_values(0).tolist())
            found.append(
                (holds(truth, gain), verdict != "not decided", right, holds(share, shares))
            )
        held, given, right, held_share = zip(*found, strict=True)
        yield row(f"gain {truth:.2f}: {kind}, n = {n}", held, given, right)
        yield row(f"share of rewrites {share:.2f}: {kind}, n = {n}", held_share)


def differences(rng, lift, n, repeats=3, spread=0.1):
    """Paired differences of n queries: the lift differs between them, answers share some luck."""
    base = rng.uniform(0.15, 0.6, (n, 1))
    better = base + lift + rng.uniform(-spread, spread, (n, 1))
    luck = rng.random((n, repeats))
    own = np.where(rng.random((n, repeats)) < 0.6, luck, rng.random((n, repeats)))
    return (own < better).astype(float) - (luck < base)


def placebo(seeds):
    for lift, n, moved in [
        (0.0, 30, 1), (0.0, 120, 1), (0.0, 400, 1), (0.02, 120, 1), (0.1, 30, 1), (0.1, 120, 1),
        (0.2, 30, 1), (0.0, 30, 0), (0.0, 120, 0), (0.1, 60, 0.14),
    ]:  # fmt: skip
        rows = []
        for seed in seeds:
            rng = np.random.default_rng([seed, n])
            if moved < 1:  # an engine without luck: few queries move, and then wholly
                values = ((rng.random((n, 1)) < moved) & (rng.random((n, 1)) < 0.7)).repeat(3, 1)
            else:
                values = differences(rng, lift, n)
            found = cluster_mean(values.ravel().astype(float), np.arange(n).repeat(3).tolist())
            rows.append((found.mean, found.low, found.high, n))
        truth = lift if moved == 1 else 0.7 * moved
        table = pd.DataFrame(rows, columns=["difference", "low", "high", "n_examples"])
        said = equivalence(table, MARGIN)
        held = (said["inner_low"] <= truth) & (truth <= said["inner_high"])
        right = said["verdict"] == ("lost" if abs(truth) < MARGIN else "kept")
        what = f"placebo of {truth:.2f}, n = {n}" + ", few queries move" * (moved < 1)
        given = said["verdict"] != "not decided"
        yield row(f"{what}, lost {(said['verdict'] == 'lost').mean():.3f}", None, given, right)
        yield row(f"{what}, 90 % interval", held)


def looks(seeds):
    for lift in (0.0, 0.2):
        fixed, sequence = [], []
        for seed in seeds:
            values = differences(np.random.default_rng(seed), lift, 120).mean(1)
            for held, looked in ((fixed, False), (sequence, True)):
                sizes = range(10, 121)
                held.append(
                    all(
                        holds(lift, cluster_mean(values[:n], range(n), looked=looked))
                        for n in sizes
                    )
                )
        yield row(f"lift {lift:.1f}, a look at each of 10 to 120 queries, sequence", sequence)
        yield row(f"lift {lift:.1f}, the same looks, intervals of one look", fixed)


def levels(seeds):
    for spread in (0.0, 0.03, 0.08):
        for number in (2, 3, 5):
            held = []
            for seed in seeds:
                rng = np.random.default_rng([seed, number])
                shift = rng.normal(0, spread, number)
                lifts = rng.uniform(-0.1, 0.5, (30, 1)) + rng.normal(0, 0.1, (30, number)) + shift
                noisy = lifts + rng.choice([-0.6, 0, 0.6], (30, number, 3)).mean(2)
                held.append(holds(spread, level_spread(noisy)))
            yield row(f"spread {spread:.2f} between {number} judges, n = 30", held)


def winners(seeds):
    for ahead in (0.0, 0.05, 0.25):
        given, right = [], []
        for seed in seeds:
            rng = np.random.default_rng(seed)
            base, luck = rng.uniform(0.1, 0.6, (30, 1)), rng.random((30, 3))
            methods = {}
            for i in range(6):
                own = np.where(rng.random((30, 3)) < 0.6, luck, rng.random((30, 3)))
                methods[f"m{i}"] = (own < base + ahead * (i == 0)).astype(float)
            leads = leading(samples_of(methods, np.arange(30)), "supported")
            given.append(leads.any())
            right.append(bool(ahead and leads["m0"]))
        yield row(f"one of six methods ahead by {ahead:.2f}, n = 30", None, given, right)


def queries(seeds):
    pages, each, repeats = 30, 3, 4
    found, truths = [], []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        base = rng.uniform(0.2, 0.6, (pages * each, 1))
        change = rng.uniform(-0.15, 0.4, (pages, 1, 1)) + rng.normal(0, 0.08, (pages, each, 1))
        change = np.clip(change, -0.2, 0.4)
        draws = {
            name: (rng.random((pages * each, repeats)) < chance).astype(float)
            for name, chance in (
                ("original", base), ("method", base + change.reshape(-1, 1)),
            )
        }  # fmt: skip
        names = np.arange(pages * each)
        samples = samples_of(draws, names).assign(page=lambda t: t["query_id"] // each)
        got = by_query(samples).loc["method"]
        seen = (draws["method"] - draws["original"]).reshape(pages, each, repeats)
        others = seen.sum(2, keepdims=True) - seen
        worst = others == others.min(1, keepdims=True)
        truths.append((change.mean(), ((change * worst).sum(1) / worst.sum(1)).mean()))
        found.append(got[[f"{n}{e}" for n in ("net", "page_mean", "page_worst")
                          for e in ("", "_low", "_high")]].to_numpy(float))  # fmt: skip
    table = np.array(found)
    truth = table[:, 0].mean(), *np.mean(truths, axis=0)  # of wins and losses that are seen
    for i, (name, value) in enumerate(zip(("net", "page_mean", "page_worst"), truth, strict=True)):
        mean, low, high = table[:, 3 * i : 3 * i + 3].T
        held = (low <= value) & (value <= high)
        yield row(f"{name} {value:+.3f}, found {mean.mean():+.3f}, 30 pages of 3 queries", held)


def resolution(seeds):
    ratios = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        pilot, whole = differences(rng, 0.15, 30), differences(rng, 0.15, 120)
        made = samples_of({"original": np.zeros((30, 3)), "m": pilot}, np.arange(30))
        found = cluster_mean(whole.ravel(), np.arange(120).repeat(3).tolist())
        promised = pilot_variance(made, "m").half_width(120, 3)
        ratios.append(promised / ((found.high - found.low) / 2))
    low, middle, high = np.quantile(ratios, [0.025, 0.5, 0.975])
    yield row(f"half-width promised / had: median {middle:.2f}, 95 % in {low:.2f} to {high:.2f}")


KINDS = {f.__name__: f for f in (headroom, placebo, looks, levels, winners, queries, resolution)}


def main():
    """Measure the kinds that are named, or all, and print a line each."""
    for name in sys.argv[1:] or KINDS:
        started = time.process_time()
        for found in KINDS[name](SEEDS):
            parts = [f"{key} {value:.3f}" for key, value in found.items()
                     if key != "what" and value is not None]  # fmt: skip
            if found.get("given"):
                parts.append(f"right {1 - found['wrong'] / found['given']:.3f}")
            print(f"{name:10} {found['what']:66} {'  '.join(parts)}", flush=True)  # noqa: T201
        print(f"{name:10} {time.process_time() - started:.0f} s", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
