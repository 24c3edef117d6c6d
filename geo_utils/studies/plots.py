"""Figures of the studies: one message each, its claim computed into the title."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from geo_utils.plots import colour
from geo_utils.studies.results import StudyTables
from geo_utils.studies.tables import abstentions_text, origins_text
from geo_utils.tables import count_range, label, with_interval
from geo_utils.training.plots import finished

_BLUE, _GREY, _RED = "#1f4e9c", "#777777", "#c1272d"


def headroom_figure(found: StudyTables, source: str) -> Figure | None:
    """Draw what the best of k rewrites gains, in all and by how likely the key point is already.

    None where headroom was not studied.
    """
    if found.headroom is None or found.strata is None:
        return None
    wanted = {
        "room above the mean": ("all there is: every answer carries it", _GREY),
        "best of k, same answers": ("best of k, on the answers it was chosen by", _GREY),
        "best of k, fresh answers": ("best of k, on fresh answers", _BLUE),
    }
    rows = [
        (text, *found.headroom.loc[name, ["mean", "low", "high"]].astype(float), shade)
        for name, (text, shade) in wanted.items()
    ]
    rows += [
        (f"    at {name} so far ({int(row['n_units'])})", row["gain"], row["gain_low"],
         row["gain_high"], _RED)
        for name, row in found.strata.iterrows() if row["n_units"]
    ]  # fmt: skip
    best = found.headroom.loc["best of k, fresh answers"]
    samples = found.samples["headroom"]
    k = samples["rewrite"].nunique()
    title = (
        f"The best of {k} rewrites is worth {best['mean']:+.2f} over their mean; "
        f"all there is would be {float(rows[0][1]):+.2f}"
    )
    if pd.isna(best["mean"]):
        title = "No key point was scored often enough to say what training could gain"
    figure, axes = _canvas(2.6 + 0.55 * len(rows))
    _dots(axes, rows, signed=True)
    axes.axvline(0, color="#555555", linewidth=1.5, zorder=0)
    axes.set(xlabel="gain in key-point probability over the mean rewrite")
    units = found.headroom["n_units"].max()
    note = (
        f"n = {found.headroom['n_queries'].max()} queries, {units} key points (in brackets: of "
        f"the row), {abstentions_text(found, 'headroom')}; {found.notes['headroom']}. {source}"
    )
    return finished(figure, title, note)


def groups_figure(found: StudyTables, source: str) -> Figure | None:
    """Draw the share of GRPO groups that teach nothing; None where headroom was not studied."""
    if found.headroom is None:
        return None
    table = found.headroom
    names = [str(name) for name in table.index if str(name).startswith("no variance")]
    rows = []
    for name in names:
        size = name.rpartition(" ")[2]
        useful = table["mean"][f"useful groups in 1,000 calls, G = {size}"]
        text = f"G = {size}: {useful:.0f} useful in 1,000 calls"
        rows.append((text, *table.loc[name, ["mean", "low", "high"]].astype(float), _BLUE))
    if table["mean"][names].isna().all():
        return None
    most = max(names, key=lambda n: float(table["mean"][n.replace("no variance,", _USEFUL)]))
    size, wasted = most.rpartition(" ")[2], float(table["mean"][most])
    useful = float(table["mean"][most.replace("no variance,", _USEFUL)])
    title = (
        f"Groups of {size} give most for a call: {wasted:.0%} of them teach nothing, "
        f"{useful:.0f} in 1,000 calls do"
    )
    figure, axes = _canvas(2.4 + 0.6 * len(rows))
    _dots(axes, rows)
    axes.set(xlim=(0, 1), xlabel="share of groups whose rewards are all the same")
    ways = "; ".join(dict.fromkeys(str(table["how"][name]) for name in names))
    note = (
        f"n = {table['n_queries'].max()} queries, {table['n_units'].max()} key points, "
        f"{abstentions_text(found, 'headroom')}. {ways.capitalize()}. A rollout is one rewrite "
        f"and one answer: 2 calls. {source}"
    )
    return finished(figure, title, note)


def adoption_figure(found: StudyTables, source: str) -> Figure | None:
    """Draw the probability of a source's own key point against the number of adopters.

    None where adoption was not studied.
    """
    if found.adoption is None or found.adoption_change is None:
        return None
    table, change = found.adoption, found.adoption_change
    alone, whole = table["adopter"].loc[1], table["adopter"].iloc[-1]
    title = (
        f"With all {table.index[-1]} sources adopting, each lands its key point in {whole:.0%} "
        f"of answers; alone it was {alone:.0%}"
    )
    if pd.isna(alone) or pd.isna(whole):
        title = "Too few answers could be scored to say what adoption by all does"
    figure, axes = _canvas(6.0)
    for name, text, shade in (
        ("adopter", "adopters", colour("key_point")),
        ("all_land", "all adopters at once", _BLUE),
        ("other", "the others", colour("original")),
    ):
        rows = table.dropna(subset=name)
        if rows.empty:
            continue
        levels = rows.index.to_numpy(float)
        axes.fill_between(
            levels, rows[f"{name}_low"], rows[f"{name}_high"], color=shade, alpha=0.15
        )
        axes.plot(levels, rows[name], "o-", color=shade, linewidth=3, markersize=9)
        if name == "other":  # whose line ends where another crosses it
            place, beside = (levels[0], rows[f"{name}_low"].iloc[0]), "top"
        else:
            place, beside = (levels[-1], rows[name].iloc[-1]), "center"
        axes.annotate(
            f"  {text}", place, color=shade, fontsize=16, va=beside, annotation_clip=False
        )
    axes.set(ylim=(0, 1), xlabel="sources that adopt the rewrite", xticks=list(table.index))
    axes.set_ylabel("probability of its own key point")
    axes.set_xlim(-0.1, float(table.index[-1]) + 1.1)
    moved = with_interval(change["mean"], change["low"], change["high"], signed=True)
    note = (
        f"Gain over nobody adopting, with all minus alone: {moved}. Key points: "
        f"{origins_text(found)}. n = {count_range(table['n_queries'])} queries, "
        f"{count_range(table['n_samples'])} verdicts a number of adopters, "
        f"{int(table['abstentions'].sum())} abstentions in all; 95 % intervals. {source}"
    )
    return finished(figure, title, note)


def transfer_figure(found: StudyTables, source: str) -> Figure | None:
    """Draw each method's lift under each engine as a matrix; None where it was not studied."""
    if found.transfer is None:
        return None
    rows = found.transfer
    several = rows["rewriter"].nunique() > 1
    names = rows["method"].map(label)
    rows = rows.assign(row=names + (", " + rows["rewriter"] if several else ""))
    order = list(dict.fromkeys(rows["row"]))
    engines = list(dict.fromkeys(rows["engine"]))
    lifts = rows.pivot(index="row", columns="engine", values="lift").loc[order, engines]
    texts = [[_matrix_cell(rows, row, engine) for engine in engines] for row in order]
    others = rows[rows["engine"] != engines[0]]
    raised = int((others["clear"] & (others["lift"] > 0)).sum())
    title = f"Under another engine {raised} of {len(others)} lifts are clearly there"
    if found.transfer_loss is not None and found.transfer_loss["difference"].notna().any():
        lost = found.transfer_loss.sort_values("difference").iloc[0]
        title += (
            f"; {label(lost['method'])} under '{lost['engine']}' moves most: "
            f"{lost['difference']:+.2f}"
        )
    figure, axes = _canvas(2.8 + 0.9 * len(order))
    reach = float(np.nanmax(np.abs(lifts.to_numpy(float)))) if lifts.notna().any(axis=None) else 1
    sns.heatmap(
        lifts.astype(float), annot=np.array(texts), fmt="", cmap="RdBu_r", center=0,
        vmin=-reach, vmax=reach, cbar=False, ax=axes, annot_kws={"fontsize": 15},
        linewidths=2,
    )  # fmt: skip
    axes.set(xlabel="engine", ylabel="")
    axes.tick_params(axis="y", rotation=0)
    note = (
        f"Paired lift over the original page with 95 % intervals. n = "
        f"{count_range(rows['n_queries'])} queries, {count_range(rows['n_pairs'])} pairs a cell, "
        f"{int(rows['pairs_dropped'].sum())} dropped for abstentions. {found.notes['transfer']}. "
        f"{source}"
    )
    return finished(figure, title, note)


def agreement_figure(found: StudyTables, source: str) -> Figure | None:
    """Draw Cohen's kappa of each two judges; None where there are not two."""
    if found.kappa is None or found.kappa["kappa"].isna().all():
        return None
    table = found.kappa.dropna(subset="kappa")
    rows = [(str(n), r["kappa"], r["low"], r["high"], _BLUE) for n, r in table.iterrows()]
    least = table.sort_values("kappa").iloc[0]
    worst, verdicts = least.name, least["agreement"]
    title = (
        f"Judges agree least at kappa {table['kappa'].min():.2f} ({worst}: "
        f"{float(verdicts):.0%} equal verdicts)"
        if len(table) > 1
        else f"{str(worst).capitalize()}: kappa {table['kappa'].min():.2f}, "
        f"{float(verdicts):.0%} equal verdicts"
    )
    figure, axes = _canvas(2.4 + 0.6 * len(rows))
    _dots(axes, rows)
    axes.set(xlim=(min(0.0, float(table["low"].min(skipna=True))), 1.0))
    axes.set(xlabel="Cohen's kappa on supported or not")
    note = (
        f"n = {count_range(table['n_answers'])} answers of {count_range(table['n_queries'])} "
        f"queries, {int(table['abstentions'].sum())} abstentions in all; 95 % intervals by "
        f"jackknife over queries. {source}"
    )
    return finished(figure, title, note)


def power_figure(found: StudyTables, power: float, source: str) -> Figure | None:
    """Draw the queries that each lift needs against the repeats; None where it was not studied."""
    if found.power is None or found.pilot is None:
        return None
    table, pilot = found.power, found.pilot
    small = table[table["lift"] == table["lift"].min()].iloc[-1]
    title = (
        f"To find a lift of {small['lift']:.2f} takes {small['queries']:,} queries even with "
        f"{small['repeats']} answers each"
    )
    figure, axes = _canvas(6.0)
    shades = sns.color_palette("flare", table["lift"].nunique())
    for shade, (lift, rows) in zip(shades, table.groupby("lift"), strict=True):
        axes.fill_between(rows["repeats"], rows["low"], rows["high"], color=shade, alpha=0.2)
        axes.plot(rows["repeats"], rows["queries"], "o-", color=shade, linewidth=3, markersize=9)
        last = rows.iloc[-1]
        axes.annotate(
            f"  lift {lift:.2f}: {last['queries']:,}", (last["repeats"], last["queries"]),
            color=shade, fontsize=16, va="center", annotation_clip=False,
        )  # fmt: skip
    axes.set(yscale="log", xlabel="answers a page", ylabel="queries needed")
    axes.set_xticks(sorted(set(table["repeats"])))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    longest = float(table["repeats"].max())
    axes.set_xlim(float(table["repeats"].min()) - 0.03 * longest, longest * 1.28)
    note = (
        f"Paired t-test over queries, power {power:.0%}. Pilot: {pilot.n_queries} queries, "
        f"{pilot.n_pairs} pairs of {label(pilot.method)}; bands: 95 % of bootstrap samples of its "
        f"queries. {source}"
    )
    return finished(figure, title, note)


_USEFUL = "useful groups in 1,000 calls,"


def _matrix_cell(rows: pd.DataFrame, row: str, engine: str) -> str:
    found = rows[(rows["row"] == row) & (rows["engine"] == engine)]
    if found.empty:
        return ""
    one = found.iloc[0]
    mean = "–" if pd.isna(one["lift"]) else f"{one['lift']:+.2f}"  # noqa: RUF001
    return mean if pd.isna(one["low"]) else f"{mean}\n[{one['low']:+.2f}, {one['high']:+.2f}]"


def _canvas(height: float) -> tuple[Figure, Axes]:
    sns.set_theme(style="white", font_scale=1.45)
    figure, axes = plt.subplots(figsize=(12, height), layout="constrained")
    plt.close(figure)  # shown once, by the cell that returns it
    return figure, axes


def _dots(
    axes: Axes, rows: Sequence[tuple[str, float, float, float, str]], signed: bool = False
) -> None:
    """Draw an estimate with its interval a row, the number beside it."""
    for y, (_, mean, low, high, shade) in enumerate(rows):
        if not np.isnan(low):
            axes.plot((low, high), (y, y), color=shade, linewidth=4, alpha=0.45)
        axes.plot(mean, y, "o", color=shade, markersize=11)
        axes.annotate(
            with_interval(mean, low, high, signed), (1.02, y),
            xycoords=("axes fraction", "data"), va="center", fontsize=14,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
