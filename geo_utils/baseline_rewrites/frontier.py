"""Lift against what it costs: fidelity, length, instructions, and the rest of the answer."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from geo_utils.collateral import FIGURES
from geo_utils.roles.methods import is_arm, label
from geo_utils.show.plots import (
    basis,
    canvas,
    claim,
    draw_interval,
    finished,
    interval_figure,
    listed,
    method_rows,
    name_rows,
    points,
    probability_figure,
)
from geo_utils.show.tables import intervals, styled
from geo_utils.summary import contrasts, estimates, leading
from geo_utils.text import capitalised


def frontier(samples: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Put every method's lift beside its price.

    Args:
        samples: With the columns of `fidelity.check_pages`.
        seed: Seed of the resampling.

    Returns:
        Indexed by method, the original page left out: the lift as `summary.contrasts` has it
        (`difference`, `low`, `high`, ...); `fidelity`, `grounded`, `new_claims`, `flaws`,
        `words_added` (a share of the original's words), each a mean over samples with `_low` and
        `_high`; `flagged` (share of samples whose page has a new instruction), `faithful` (share
        that passes the gate), `strict` (the strict probability, with its interval) and `efficient`:
        no other method has at least its lift and fidelity and at most its added words and flags,
        and is better in one of them; `leads`, as `summary.leading`, of those without a flag.
    """
    own = samples[~samples["method"].map(is_arm)].copy()
    own["words_added"] = (own["page_words"] - own["original_words"]) / own["original_words"]
    own["flagged"] = own["instructions"].gt(0).astype(float).where(own["instructions"].notna())
    found = contrasts(own, "supported", "original", seed=seed)
    columns = ["fidelity", "grounded", "new_claims", "flaws", "words_added", "strict"]
    shares = {"fidelity": (0.0, 1.0), "grounded": (0.0, 1.0)}
    costs = estimates(own, "method", columns, ["strict"], shares)
    found = found.join(costs[[f"{name}{end}" for name in columns for end in ("", "_low", "_high")]])
    found = found.join(own.groupby("method")[["flagged", "faithful"]].mean())
    gains = found[["difference", "fidelity", "words_added", "flagged"]] * [1, 1, -1, -1]
    as_good = {m: (gains >= gains.loc[m]).all(axis=1) for m in gains.index}
    better = {m: (gains > gains.loc[m]).any(axis=1) for m in gains.index}
    found["efficient"] = [not (as_good[m] & better[m]).any() for m in gains.index]
    clean = found.index[found["flagged"] == 0]
    return found.assign(leads=leading(own, "supported", seed, clean).reindex(found.index))


def strict_figure(summary: pd.DataFrame, strict: pd.DataFrame | None, source: str) -> Figure:
    """Draw key-point probability and strict probability of each method.

    Args:
        summary: As `summary.summarise` returns it.
        strict: As `summary.means` returns it for the column `strict`, with `leads`; None leaves it
            out.
        source: Where the figures come from.
    """
    if strict is None:
        return probability_figure(summary, source)
    leader = strict.index[strict["leads"]]
    most = f"{label(str(leader[0]))} leads with" if len(leader) else "the most is"
    count = "with unfaithful rewrites as failures"
    title = claim(summary)
    if strict["mean"].notna().any():
        title += f"; {count}, {most} {strict['mean'].max():.0%}"
    texts = [f"{text} strict" for text in intervals(strict)]
    held = method_rows(strict).assign(marker="D", hollow=True, text=texts)
    rows = pd.concat([method_rows(summary, "key_point_probability", "ci"), held])
    marks = "Dots: all rewrites; diamonds: strict, a rewrite that fails the fidelity gate fails."
    note = basis(summary, source, marks)
    return interval_figure(rows, title, "key-point probability", note, limits=(-0.02, 1.0))


def frontier_figure(found: pd.DataFrame, source: str, gate: float) -> Figure | None:
    """Draw lift, fidelity, length and instructions of all methods, a panel each.

    Args:
        found: As `frontier.frontier` returns it.
        source: Where the figures come from.
        gate: Least fidelity of a rewrite that counts.
    """
    found = found.dropna(subset=["difference", "fidelity"])
    if found.empty:
        return None
    clean = found[found["flagged"] == 0]
    title = "Every method's pages carry instructions to the engine"
    if len(clean):
        gains = clean[clean["clear"] & (clean["difference"] > 0)]
        title = "No method without instructions clearly gains"
        if len(gains):
            verb = f"clearly gain{'s' * (len(gains) == 1)}"
            title = f"{len(gains)} of {len(clean)} methods without instructions {verb}"
            title += f", at most {points(gains['difference'].max())}; none clearly leads"
        for name, best in gains[gains["leads"]].iterrows():
            title = (
                f"{capitalised(label(str(name)))} gains most of the methods without instructions: "
                f"{points(best['difference'])} at fidelity {best['fidelity']:.2f} and "
                f"{best['words_added']:+z.0%} words"
            )
    fidelity = "fidelity: kept and grounded, less flaws"
    shown = {
        "lift over the original page": ("difference", None, "{:+z.2f}"),
        fidelity: ("fidelity", "fidelity", "{:.2f}"),
        "words added": ("words_added", "words_added", "{:+z.0%}"),
        "pages with an instruction": ("flagged", "flagged", "{:.0%}"),
    }
    found = found.assign(flagged_low=np.nan, flagged_high=np.nan)
    panels = {
        name: method_rows(found, column, ends).assign(
            hollow=~found["efficient"].to_numpy(), text=found[column].map(form.format).to_numpy()
        )
        for name, (column, ends, form) in shown.items()
    }
    marks = (
        f"Filled: no other method beats it in all four. The line of fidelity: the gate, {gate:g}."
    )
    figure = panel_figure(panels, title, basis(found, source, marks), {fidelity: gate})
    figure.axes[-1].set_xlim(-0.25, 1.25)
    return figure


def frontier_table(found: pd.DataFrame, caption: str) -> Styler:
    """Lay out lift, fidelity, length, flags and strict probability, one row a method.

    Args:
        found: As `frontier.frontier` returns it.
        caption: What the figures rest on.
    """
    table = pd.DataFrame(
        {
            "lift": intervals(found, "difference", signed=True),
            "fidelity": intervals(found, "fidelity"),
            "new claims a page": found["new_claims"].map("{:.2f}".format),
            "contradicted or repeated": found["flaws"].map("{:.2f}".format),
            "words added": found["words_added"].map("{:+z.1%}".format),
            "flagged": found["flagged"].map("{:.1%}".format),
            "passes the gate": found["faithful"].map("{:.1%}".format),
            "strict probability": intervals(found, "strict"),
            "n samples": found["n_samples"],
            "abstentions": found["abstentions"],
        }
    ).rename(index=label)
    marked = [label(str(method)) for method in found.index[found["efficient"]]]
    told = (
        "Bold: by these means, which are not tested, no other method is as good in lift, fidelity, "
        "words and flags and better in one"
    )
    return styled(table.rename_axis(None), marked, f"{told}. {caption}")


def panel_figure(
    panels: Mapping[str, pd.DataFrame], title: str, note: str, lines: Mapping[str, float]
) -> Figure:
    """Draw several estimates of each method, a panel a quantity, a row a method.

    Args:
        panels: By the quantity's name, as `plots.method_rows` makes them, with `hollow` (bool) and
            `text` (the number), each for the same methods.
        title: The claim.
        note: What the figure rests on.
        lines: The value that a panel's line stands at; 0 where none is given.
    """
    names = list(next(iter(panels.values())).index)
    figure, axes = canvas(len(names), extra=0.8, columns=len(panels), texts=1.8 * len(names))
    for panel, (quantity, rows) in zip(axes, panels.items(), strict=True):
        for y, row in enumerate(rows.to_dict("records")):
            values = row["mean"], row["low"], row["high"]
            draw_interval(panel, y, values, row["shade"], hollow=row["hollow"])
            if pd.notna(row["mean"]):
                above = {"xytext": (0, 9), "textcoords": "offset points", "ha": "center"}
                box = {"color": "white", "pad": 0}  # over the panel's line
                panel.annotate(row["text"], (row["mean"], y), fontsize=14, bbox=box, **above)
        panel.axvline(lines.get(quantity, 0), color="#555555", linewidth=1.5, zorder=0)
        panel.margins(x=0.25)
        panel.locator_params(axis="x", nbins=3)
        panel.set_xlabel("\n".join(textwrap.wrap(quantity, 18)), fontsize=15)
    name_rows(axes[0], names)
    return finished(figure, title, note)


def collateral_figure(found: pd.DataFrame, source: str) -> Figure:
    """Draw what each method changes beside the key point, a panel a figure.

    Args:
        found: As `collateral.collateral` returns it.
        source: Where the figures come from.
    """
    panels, claims = {}, []
    for figure in found.index.get_level_values("figure").unique():
        rows, name = found.loc[figure], FIGURES[figure]
        digits = 1 if figure == "answer_words" else 3
        panels[name] = method_rows(rows, "difference").assign(
            hollow=~rows["clear"].to_numpy(),
            text=rows["difference"].map(f"{{:+z.{digits}f}}".format).to_numpy(),
        )
        harmed = rows.index[rows["clear"] & (rows["difference"] < 0)]
        if len(harmed) and figure != "answer_words":
            by = listed(harmed) if len(harmed) < 3 else f"{len(harmed)} methods"
            claims.append(f"{name} by {by}")
    unharmed = " or ".join(name for name in panels if name != FIGURES["answer_words"])
    title = f"Clearly lowered: {'; '.join(claims)}"
    if not claims:
        title = f"No method clearly lowers {unharmed}"
    marks = "Differences to the original page, paired. Filled: clear after Holm; hollow: not."
    return panel_figure(panels, title, basis(found, source, marks), {})


def collateral_table(found: pd.DataFrame, caption: str) -> Styler:
    """Lay out what each method changes beside the key point.

    Args:
        found: As `collateral.collateral` returns it.
        caption: What the figures rest on.
    """
    stars = found["clear"].map({True: " *", False: ""})
    table = (intervals(found, "difference", signed=True) + stars).unstack("figure", sort=False)
    counts = found.groupby(level="method", sort=False)
    table = table.rename(columns=FIGURES).rename_axis(index=None, columns=None)
    table["n pairs"], table["abstentions"] = counts["n_samples"].min(), counts["abstentions"].max()
    told = (
        "Differences to the original page, paired; * p below 0.05 after Holm over the table. The "
        "other sources' points are the sentences of their pages closest to the query"
    )
    return styled(table.rename(index=label), [], f"{told}. {caption}")
