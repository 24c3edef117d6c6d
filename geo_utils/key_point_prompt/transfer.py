"""Rewrite with one model, answer with another, judge with a third: does the lift carry over?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from geo_utils.evaluate import Progress
from geo_utils.key_point_prompt.params import EngineOptions, TransferOptions, has_logprobs
from geo_utils.key_point_prompt.study import Setting
from geo_utils.roles.engines import Emphasis, Engine, ExtractiveEngine
from geo_utils.roles.make import Roles, make_roles
from geo_utils.roles.methods import label
from geo_utils.runs import Run
from geo_utils.show.plots import canvas, finished
from geo_utils.show.tables import DASH, count_range, intervals, over_queries, p_values
from geo_utils.statistics import with_interval
from geo_utils.summary import PAIR, adjusted, paired

OWN = "this run's"


def transfer_roles(own: Roles, options: TransferOptions) -> list[Roles]:
    """Make the roles of a transfer matrix; models that the run has already are shared.

    Args:
        own: The run's roles.
        options: What stands beside them.

    Returns:
        The run's own; then a set of roles for each engine, each rewriter, and the judge, if there
        is one.

    Raises:
        FatalError: A model cannot be had.
    """
    wanted = [("engine", engine.model) for engine in options.engines.values()]
    wanted += [("rewriter", model) for model in options.rewriters.values()]
    wanted += [("judge", options.judge)] if options.judge else []
    made = [own]
    for role, model in wanted:
        # Which loads no policy again; a judge without log-probabilities gives verdicts.
        changes: dict[str, Any] = {"baseline_methods": ["original"], "method": "key_point"}
        if role == "judge" and not has_logprobs(model):
            changes["sampling"] = own.params.sampling.model_copy(update={"judge_mode": "verdict"})
        params = own.params.model_copy(update=changes | {role: model})
        made.append(make_roles(params, like=own))
    return made


def ask(setting: Setting, progress: Progress | None = None) -> pd.DataFrame:
    """Evaluate every rewriter's pages under every engine, by one judge; see `study.Study`.

    Args:
        setting: With the roles that `transfer_roles` makes.
        progress: Called with (samples done, samples in all), for each engine and rewriter.

    Returns:
        Rows as `evaluate` returns them, with `engine` and `rewriter` by name. The original page,
        which no rewriter touches, is answered once an engine and stands under the first.
    """
    params, options, made = setting.params, setting.options, setting.roles
    others = iter(made[1:])
    engines: dict[str, Engine] = {OWN: made[0].engine}
    for name, option in options.engines.items():
        engine = next(others).engine
        engines[name] = (
            _offline_engine(option, params.seed) if option.model == "offline" else engine
        )
    rewriters = {OWN: made[0].rewriter} | {n: next(others).rewriter for n in options.rewriters}
    judge, parts = next(others, made[0]).judge, []
    for engine_name, engine in engines.items():
        for rewriter_name, rewriter in rewriters.items():
            methods = ["original"] * (rewriter_name == OWN) + (options.methods or [params.method])
            cell = replace(made[0], engine=engine, judge=judge, rewriter=rewriter)
            what = f"samples: {rewriter_name} rewrites, {engine_name} answers"
            show = progress or cell.counter(what)
            part = cell.evaluate(setting.drawn, methods, options.repeats, show)
            parts.append(part.assign(engine=engine_name, rewriter=rewriter_name))
    return pd.concat(parts, ignore_index=True)


def _offline_engine(options: EngineOptions, seed: int) -> ExtractiveEngine:
    """Return the offline engine with other settings."""
    usual = asdict(Emphasis())
    scaled = Emphasis(**{name: value * options.emphasis for name, value in usual.items()})
    return ExtractiveEngine(options.word_budget, 0.8, options.noise, scaled, seed)


def _label(option: EngineOptions) -> str:
    """Say what an engine is: its model, or that it is an offline stand-in with which settings."""
    if option.model != "offline":
        return option.model
    return (
        f"offline, {option.word_budget} words, emphasis x {option.emphasis:g}, "
        f"noise {option.noise:g}"
    )


def _pages(samples: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.Series, pd.Series]]:
    """Yield what was rewritten and answered by whom, its support, and the original page's."""
    for engine, part in samples.groupby("engine", sort=False):
        base = part[part["method"] == "original"].set_index(PAIR)["supported"]
        rewritten = part[part["method"] != "original"]
        for (rewriter, method), own in rewritten.groupby(["rewriter", "method"], sort=False):
            names = {"rewriter": rewriter, "method": method, "engine": engine}
            yield names, own.set_index(PAIR)["supported"].reindex(base.index), base


def transfer_table(samples: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Estimate each method's lift over the original page, under each engine.

    Args:
        samples: As `ask` returns them.
        seed: Seed of the permutation test.

    Returns:
        One row per rewriter x method x engine: `probability` of the rewritten and of the
        `original` page, paired `lift` with `low` and `high`, `p_holm` over all rows, `clear`,
        `n_queries`, `n_pairs`, `pairs_dropped`.
    """
    rows = [
        names | {"probability": own.mean(), "original": base.mean()} | paired(own, base, seed)
        for names, own, base in _pages(samples)
    ]
    columns = {"difference": "lift", "n_examples": "n_queries", "n_samples": "n_pairs"}
    columns["abstentions"] = "pairs_dropped"
    return adjusted(pd.DataFrame(rows).rename(columns=columns))


def transfer_loss(samples: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Compare each lift under another engine with the lift under the first, on the same pairs.

    Returns:
        One row per rewriter x method x other engine: `difference` of the lifts with `low` and
        `high`, and `n_queries`.
    """
    first: dict[tuple[str, str], pd.Series] = {}
    rows = []
    for names, own, base in _pages(samples):
        key, lift = (names["rewriter"], names["method"]), own - base
        if key in first:
            rows.append(names | paired(lift, first[key], seed))
        first.setdefault(key, lift)
    return pd.DataFrame(rows).rename(columns={"n_examples": "n_queries"})


def read(setting: Setting, asked: pd.DataFrame, run: Run) -> Transfer:
    """Keep the samples of `ask` as `transfer.parquet`, and read off them what is left of a lift."""
    params, options = setting.params, setting.options
    kept = run.save_table(asked, "transfer")
    engines = {name: _label(option) for name, option in options.engines.items()}
    named = {OWN: params.engine} | engines | options.rewriters
    note = "; ".join(f"{name}: {what}" for name, what in named.items())
    return Transfer(kept, transfer_table(kept, params.seed), transfer_loss(kept, params.seed), note)


@dataclass(frozen=True)
class Transfer:
    """What is left of each lift under another engine.

    Attributes:
        samples: As `ask`.
        table: As `transfer_table`.
        loss: As `transfer_loss`.
        note: What each role is, by name.
    """

    samples: pd.DataFrame
    table: pd.DataFrame
    loss: pd.DataFrame
    note: str

    def figure(self, source: str) -> Figure:
        """Draw each method's lift under each engine as a matrix."""
        rows = self.table
        several = rows["rewriter"].nunique() > 1
        names = rows["method"].map(label) + (", " + rows["rewriter"] if several else "")
        texts = [
            DASH
            if pd.isna(lift)
            else f"{lift:+.2f}"
            if pd.isna(low)
            else f"{lift:+.2f}\n[{low:+.2f}, {high:+.2f}]"
            for lift, low, high in zip(rows["lift"], rows["low"], rows["high"], strict=True)
        ]
        rows = rows.assign(row=names, text=texts)
        order, engines = rows["row"].unique(), rows["engine"].unique()
        cells = rows.pivot(index="row", columns="engine", values=["lift", "text"]).loc[order]
        lifts, annotations = cells["lift"][engines].astype(float), cells["text"][engines]
        others = rows[rows["engine"] != engines[0]]
        raised = int((others["clear"] & (others["lift"] > 0)).sum())
        title = f"Under another engine {raised} of {len(others)} lifts are clearly there"
        if self.loss["difference"].notna().any():
            lost = self.loss.sort_values("difference").iloc[0]
            title += (
                f"; {label(lost['method'])} under '{lost['engine']}' moves most: "
                f"{lost['difference']:+.2f}"
            )
        figure, axes = canvas(1.6 * len(order) + 1)
        reach = float(np.nanmax(np.abs(lifts.to_numpy(float)))) if lifts.notna().any().any() else 1
        sns.heatmap(
            lifts,
            annot=annotations.to_numpy(),
            fmt="",
            cmap="RdBu_r",
            center=0,
            vmin=-reach,
            vmax=reach,
            cbar=False,
            ax=axes,
            annot_kws={"fontsize": 15},
            linewidths=2,
        )
        axes.set(xlabel="engine", ylabel="")
        axes.tick_params(axis="y", rotation=0)
        note = (
            f"Paired lift over the original page with 95 % intervals. n = "
            f"{count_range(rows['n_queries'])} queries, {count_range(rows['n_pairs'])} pairs a "
            f"cell, {rows['pairs_dropped'].sum()} dropped for abstentions. {self.note}. {source}"
        )
        return finished(figure, title, note)

    def findings(self, source: str) -> str:
        """Say in Markdown what is left of each lift under another engine."""
        lines = []
        for _, row in self.loss.iterrows():
            clear = row["high"] < 0 or row["low"] > 0
            verb = "smaller" if row["difference"] < 0 else "larger"
            moved = f"clearly {verb}" if clear else "not clearly another"
            change = with_interval(row["difference"], row["low"], row["high"], signed=True)
            lines.append(
                f"- {label(row['method']).capitalize()} ({row['rewriter']}) under "
                f"*{row['engine']}*: the lift is **{moved}**, {change}, {row['n_queries']} queries."
            )
        lost = self.table["pairs_dropped"].sum()
        noted = f"{lost} pairs dropped for abstentions. {self.note}. Source: {source}."
        return "\n".join([*lines, "", noted])

    def views(self, caption: str) -> list[Styler]:
        """Lay out the lift under each engine."""
        rows = self.table
        shares = rows[["original", "probability"]].map(
            lambda share: DASH if pd.isna(share) else f"{share:.3f}"
        )
        table = pd.DataFrame(
            {
                "rewriter": rows["rewriter"],
                "method": rows["method"].map(label),
                "engine": rows["engine"],
                "original": shares["original"],
                "rewritten": shares["probability"],
                "lift": intervals(rows, "lift", signed=True),
                "p (Holm)": p_values(rows["p_holm"]),
                "n queries": rows["n_queries"],
                "n pairs": rows["n_pairs"],
                "pairs dropped": rows["pairs_dropped"],
            }
        )
        told = f"{self.samples['repeat'].nunique()} answers a page. {self.note}. {caption}"
        return [over_queries(table, [], told).hide(axis="index")]

    def headline(self) -> dict[str, Any]:
        """Return the numbers that the manifest records: none."""
        return {}
