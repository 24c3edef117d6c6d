"""What the studies found, in words that are computed from the tables."""

from __future__ import annotations

import pandas as pd

from geo_utils.studies.headroom import BAND, CALLS_PER_ROLLOUT
from geo_utils.studies.results import StudyTables
from geo_utils.studies.tables import abstentions_text, origins_text
from geo_utils.tables import count_range, label, with_interval

# A gain of the best of k rewrites that is worth a training, in key-point probability.
WORTH = 0.05
_CURSE = "winner's curse"


def off(study: str) -> str:
    """Say that a study was not run, and how to."""
    return f"*Not run here: `studies.{study}` is null, or found nothing to work on.*"


def headroom_findings(found: StudyTables, source: str) -> str:
    """Say in Markdown what training could gain at most, where, and at what cost in calls."""
    if found.headroom is None or found.strata is None:
        return off("headroom")
    rows, samples = found.headroom, found.samples["headroom"]
    chosen = samples[samples["stage"] == "choose"]
    k, m = chosen["rewrite"].nunique(), chosen["repeat"].nunique()
    strata = [
        f"{name} ({row['share']:.0%} of key points): "
        f"{with_interval(row['gain'], row['gain_low'], row['gain_high'], signed=True)}"
        f", n = {int(row['n_units'])}"
        for name, row in found.strata.iterrows()
        if row["n_units"]
    ]
    groups = [name for name in rows.index if name.startswith("no variance")]
    lines = [
        f"- **{headroom_verdict(found)}**",
        f"- **At most**: the mean of {k} rewrites x {m} answers carries the key point with "
        f"probability {_row(rows, 'mean of rewrites')}; the room above it is "
        f"{_row(rows, 'room above the mean')}.",
        f"- **Within reach**: the best of {k} rewrites, re-scored with fresh answers, gains "
        f"{_row(rows, 'best of k, fresh answers', signed=True)}. On the answers it was chosen by "
        f"it looks like {_row(rows, 'best of k, same answers', signed=True)}; "
        f"{_row(rows, _CURSE, signed=True)} of that is luck.",
        f"- **Where**, by the probability so far: {'; '.join(strata)}.",
        f"- **Rewrite or luck**: between rewrites {_row(rows, 'between rewrites')}, between "
        f"answers to one page {_row(rows, 'between answers')} (variances); "
        f"{_row(rows, 'share of rewrites')} of what varies within a key point is the rewrite's.",
        f"- **Trainable band** ({BAND[0]:.0%} to {BAND[1]:.0%}): "
        f"{_row(rows, 'in the trainable band')} of key points.",
        *(_group_line(rows, name.removeprefix("no variance, ")) for name in groups),
        "",
        f"n = {rows['n_queries'].max()} queries, {rows['n_units'].max()} key points, "
        f"{abstentions_text(found, 'headroom')}; {found.notes['headroom']}. A rollout is "
        f"{CALLS_PER_ROLLOUT} calls (engine, judge). Source: {source}.",
    ]
    return "\n".join(lines)


def headroom_verdict(found: StudyTables) -> str:
    """Say in one sentence whether there is something to gain, where most, and what it costs."""
    assert found.headroom is not None and found.strata is not None
    gain = found.headroom.loc["best of k, fresh answers"]
    room = (found.strata["share"] * (1 - found.strata["mean"])).dropna()
    useful = found.headroom[found.headroom.index.str.startswith("useful")]["mean"].dropna()
    if pd.isna(gain["low"]) or room.empty or useful.empty:
        return "Too few key points to say what training could gain."
    if gain["low"] > WORTH:
        answer = f"There is headroom: at least {gain['low']:+.3f} is within reach"
    elif gain["high"] < WORTH:
        answer = f"Little headroom: the best of k gains less than {WORTH:.2f}"
    elif gain["low"] > 0:
        answer = f"Some headroom, perhaps not worth a training ({gain['mean']:+.3f})"
    else:
        answer = f"Open: the best of k gains {gain['mean']:+.3f}, and may gain nothing"
    size = str(useful.idxmax()).rpartition(" = ")[2]
    price = 1_000 * 1_000 / useful.max() if useful.max() > 0 else float("inf")
    return (
        f"{answer}; most room is at key points of probability {room.idxmax()} "
        f"(n = {found.strata.loc[room.idxmax(), 'n_queries']:.0f} queries); 1,000 useful "
        f"groups of {size} cost about {price:,.0f} calls."
    )


def adoption_findings(found: StudyTables, source: str) -> str:
    """Say in Markdown whether all sources land their key points when all adopt."""
    if found.adoption is None or found.adoption_change is None:
        return off("adoption")
    rows, change = found.adoption, found.adoption_change
    alone, whole = rows[rows.index == 1].iloc[0], rows.iloc[-1]
    clear = change["high"] < 0 or change["low"] > 0
    verb = "shrinks" if change["mean"] < 0 else "grows"
    moved = f"clearly {verb}" if clear else "does not clearly change"
    return "\n".join(
        [
            f"- One adopter lands its own key point in {_cell(alone, 'adopter')} of answers, "
            f"{_cell(alone, 'gain', signed=True)} over nobody adopting.",
            f"- With all {rows.index[-1]} adopting, each lands it in {_cell(whole, 'adopter')}, "
            f"{_cell(whole, 'gain', signed=True)}; the gain **{moved}**: "
            f"{with_interval(change['mean'], change['low'], change['high'], signed=True)} "
            f"({int(change['n_queries'])} queries, paired).",
            f"- All of them land at once in {_cell(whole, 'all_land')} of answers.",
            "",
            f"Key points: {origins_text(found)}. n = {count_range(rows['n_queries'])} queries, "
            f"{int(rows['abstentions'].sum())} abstentions in all. Source: {source}.",
        ]
    )


def more_findings(found: StudyTables, power: float, source: str) -> str:
    """Say in Markdown whether the lift would hold: transfer, judges and power."""
    return "\n\n".join(
        (
            f"**Other engines.**\n\n{transfer_findings(found, source)}",
            f"**Other judges.**\n\n{judge_findings(found, source)}",
            f"**Other queries.**\n\n{power_findings(found, power, source)}",
        )
    )


def transfer_findings(found: StudyTables, source: str) -> str:
    """Say in Markdown what is left of each lift under another engine."""
    if found.transfer is None or found.transfer_loss is None:
        return off("transfer")
    lines = []
    for _, row in found.transfer_loss.iterrows():
        clear = row["high"] < 0 or row["low"] > 0
        verb = "smaller" if row["difference"] < 0 else "larger"
        moved = f"clearly {verb}" if clear else "not clearly another"
        lines.append(
            f"- {label(row['method']).capitalize()} ({row['rewriter']}) under *{row['engine']}*: "
            f"the lift is **{moved}**, "
            f"{with_interval(row['difference'], row['low'], row['high'], signed=True)}, "
            f"{row['n_queries']} queries."
        )
    lost = int(found.transfer["pairs_dropped"].sum())
    noted = f"{lost} pairs dropped for abstentions. {found.notes['transfer']}."
    return "\n".join([*lines, "", f"{noted} Source: {source}."])


def judge_findings(found: StudyTables, source: str) -> str:
    """Say in Markdown how far judges agree, and what that does to the lift."""
    if found.kappa is None or found.kappa.empty:
        return off("judges")
    lines = [
        f"- {name}: kappa {with_interval(row['kappa'], row['low'], row['high'])}, equal verdicts "
        f"{with_interval(row['agreement'], row['agreement_low'], row['agreement_high'])}, "
        f"n = {int(row['n_answers'])} answers, {int(row['abstentions'])} abstentions."
        for name, row in found.kappa.iterrows()
    ]
    fix = found.correction
    if isinstance(fix, str):
        lines.append(f"- No corrected lift: {fix}.")
    elif fix is not None:
        seen, true, shrink = fix.observed, fix.corrected, fix.shrinkage
        lines.append(
            f"- The judge sees {with_interval(shrink.mean, shrink.low, shrink.high)} of a lift "
            f"(recall + specificity - 1, {shrink.n_samples} labels): "
            f"{with_interval(seen.mean, seen.low, seen.high, signed=True)} observed, "
            f"{with_interval(true.mean, true.low, true.high, signed=True)} corrected for that."
        )
    return "\n".join([*lines, "", f"Source: {source}."])


def power_findings(found: StudyTables, power: float, source: str) -> str:
    """Say in Markdown how many queries the smallest lift needs."""
    if found.power is None or found.pilot is None:
        return off("power")
    rows, pilot = found.power, found.pilot
    small = rows[rows["lift"] == rows["lift"].min()]
    few, many = small.iloc[0], small.iloc[-1]
    points = ""
    if pilot.points_a_query > 1:
        points = f", {pilot.between_points:.3f} between the key points of a query"
    return "\n".join(
        [
            f"- A lift of {few['lift']:.2f} is found with {power:.0%} power by "
            f"{few['queries']:,} queries [{few['low']:,}, {few['high']:,}] at {few['repeats']} "
            f"a page, by {many['queries']:,} [{many['low']:,}, {many['high']:,}] at "
            f"{many['repeats']} answers a page.",
            f"- Of the variance of a pair, {pilot.between:.3f} lies between queries{points} and "
            f"{pilot.within:.3f} between repeats: more repeats only help with the last.",
            "",
            f"Pilot: {pilot.n_queries} queries, {pilot.n_pairs} pairs of "
            f"{label(pilot.method)}; intervals by bootstrap over its queries. Source: {source}.",
        ]
    )


def _group_line(rows: pd.DataFrame, size: str) -> str:
    return (
        f"- **{size}**: {_row(rows, f'no variance, {size}')} of groups have no variance; "
        f"{_row(rows, f'useful groups in 1,000 calls, {size}', digits=1)} useful groups in 1,000 "
        f"calls ({rows['how'][f'no variance, {size}']})."
    )


def _row(rows: pd.DataFrame, name: str, signed: bool = False, digits: int = 3) -> str:
    row = rows[rows.index == name].iloc[0]
    return with_interval(row["mean"], row["low"], row["high"], signed, digits)


def _cell(row: pd.Series, name: str, signed: bool = False) -> str:
    return with_interval(row[name], row[f"{name}_low"], row[f"{name}_high"], signed)
