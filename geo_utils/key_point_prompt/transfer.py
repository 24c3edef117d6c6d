"""Rewrite with one model, answer with another, judge with a third: does the lift carry over?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from geo_utils.evaluate import Progress
from geo_utils.key_point_prompt.params import EngineOptions, TransferOptions, has_logprobs
from geo_utils.key_point_prompt.study import Found, Setting, change_text, laid_out
from geo_utils.models.known import gemini_takes
from geo_utils.roles.engines import Emphasis, Engine, ExtractiveEngine
from geo_utils.roles.make import Roles, make_roles
from geo_utils.roles.methods import label
from geo_utils.roles.params import ModelName
from geo_utils.runs import Run
from geo_utils.show.plots import basis, interval_figure, method_rows
from geo_utils.show.tables import DASH, intervals, p_values
from geo_utils.summary import PAIR, adjusted, paired
from geo_utils.text import capitalised

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
        sampling: dict[str, Any] = {}
        if role == "judge" and not has_logprobs(model):
            sampling["judge_mode"] = "verdict"
        if "temperature" not in gemini_takes(ModelName.read(model).id).fields:
            sampling["temperature"] = None
        changes["sampling"] = own.params.sampling.model_copy(update=sampling)
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
        own, offline = next(others).engine, option.model == "offline"
        engines[name] = _offline_engine(option, params.seed) if offline else own
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
    settings = f"emphasis x {option.emphasis:g}, noise {option.noise:g}"
    return f"offline, {option.word_budget} words, {settings}"


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
        One row per rewriter x method x engine: `rewritten` and `original`, the probabilities of
        the two pages, and as `summary.paired` their difference; `p_holm` over all rows, `clear`.
    """
    rows = [
        names | {"original": base.mean(), "rewritten": own.mean()} | paired(own, base, seed)
        for names, own, base in _pages(samples)
    ]
    return adjusted(pd.DataFrame(rows))


def transfer_loss(samples: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Compare each lift under another engine with the lift under the first, on the same pairs.

    Returns:
        One row per rewriter x method x other engine: as `summary.paired`, of the two lifts;
        `p_holm` over all rows, `clear`.
    """
    first: dict[tuple[str, str], pd.Series] = {}
    rows = []
    for names, own, base in _pages(samples):
        key, lift = (names["rewriter"], names["method"]), own - base
        if key in first:
            rows.append(names | paired(lift, first[key], seed))
        first.setdefault(key, lift)
    return adjusted(pd.DataFrame(rows))


def read(setting: Setting, asked: pd.DataFrame, run: Run) -> Found:
    """Keep the samples of `ask` as `transfer.parquet`, and read off them what is left of a lift."""
    params, options, source = setting.params, setting.options, setting.roles[0].source()
    kept = run.save_table(asked, "transfer")
    table, loss = transfer_table(kept, params.seed), transfer_loss(kept, params.seed)
    engines = {name: _label(option) for name, option in options.engines.items()}
    named = {OWN: params.engine} | engines | options.rewriters
    note = "; ".join(f"{name}: {what}" for name, what in named.items())
    lines = []
    for row in loss.to_dict("records"):
        moved = change_text(row, "smaller", "larger", "not clearly another")
        lines.append(
            f"- {capitalised(label(row['method']))} ({row['rewriter']}) under *{row['engine']}*: "
            f"the lift is {moved} (p = {row['p_holm']:.4f} by Holm, {row['n_examples']} queries)."
        )
    lost = f"{table['abstentions'].sum()} pairs dropped for abstentions"
    lines += ["", f"{lost}. {note}. Source: {source}."]
    shares = table[["original", "rewritten"]].map("{:.3f}".format).replace("nan", DASH)
    shown = {
        "rewriter": table["rewriter"],
        "method": table["method"].map(label),
        "engine": table["engine"],
        "original": shares["original"],
        "rewritten": shares["rewritten"],
        "lift": intervals(table, "difference", signed=True),
        "p (Holm)": p_values(table["p_holm"]),
    }
    counts = ["n_examples", "n_samples", "abstentions"]
    told = f"{options.repeats} answers a page. {note}. Source: {source}."
    view = laid_out(shown, table, counts, told).hide(axis="index")
    figures = {"transfer": transfer_figure(table, loss, f"{source}. {note}")}
    tables = {"samples": kept, "transfer": table, "loss": loss}
    return Found("\n".join(lines), figures, [view], tables)


def transfer_figure(table: pd.DataFrame, loss: pd.DataFrame, note: str) -> Figure:
    """Draw each method's lift under each engine."""
    others = table[table["engine"] != table["engine"].iloc[0]]
    raised = (others["clear"] & (others["difference"] > 0)).sum()
    verb = "lifts are" if len(others) > 1 else "lift is"
    title = f"Under another engine {raised} of {len(others)} {verb} clearly there"
    if others.empty:
        title = "No other engine answered"
    fallen = loss[loss["clear"] & (loss["difference"] < 0)].sort_values("difference")
    if len(fallen):
        most = fallen.iloc[0]
        title += (
            f"; {label(most['method'])} under '{most['engine']}' clearly falls: "
            f"{most['difference']:+z.2f}"
        )
    table = table.sort_values(["rewriter", "method"], kind="stable")
    rows = method_rows(table.set_index("method"), "difference")
    several = table["rewriter"].nunique() > 1
    by = ", " + table["rewriter"] if several else ""
    rows.index = pd.Index(table["method"].map(label) + by + " under " + table["engine"])
    note = basis(table, note, each="row")
    quantity = "lift over the original page, paired"
    return interval_figure(rows, title, quantity, note, signed=True)
