"""Measured steps as one table: read, checked, repeats put together, sittings told apart."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler
from pydantic import BaseModel, ConfigDict, ValidationError

from geo_utils.efficiency.params import Setting
from geo_utils.files import project_root, resolve_path
from geo_utils.parameters import read_yaml
from geo_utils.show.tables import DASH, styled
from geo_utils.statistics import with_interval

log = logging.getLogger(__name__)

# In the order of a step. "train" parts need no new completion and no reward to begin with.
TRAIN_PHASES = (
    "old log-probabilities",
    "loss forward",
    "backward",
    "optimizer",
    "batch preparation",
    "between steps",
)
PHASES = ("weight sync", "generation", "reward", *TRAIN_PHASES)
SAME = 1.05  # two measurements of one setting may differ by so much
SLIDE_ROWS = 12
# What columns of tables are called, where not by their name; which are texts; and how they are
# written, where not as they are or with two digits.
_TITLES: dict[Any, str] = {
    "amount": "work",
    "took": "s per step",
    "took_against": "s per step against",
    "longer": "ratio",
    "ahead": "one step ahead",
    "ratio": "measured / bound",
    "bench": "sitting",
    "cost": "US dollars",
    "gpus": "GPUs",
    "needed_gib": "needed GiB",
    "gpu_seconds_per_sample": "GPU seconds per sample",
}
_WORDS = ["setting", "setting_against", "change", "group", "amount", "schedule", "sitting", "bench"]
_WORDS += ["status", "reason", "note", "device", "reference", "shown_with", "limited_by", "rows"]
_LONG = ["setting_against", "change", "reason"]  # may take several lines
SPREAD = "Median seconds per step [quartiles over steps]; n = steps x repeats."


class Row(BaseModel):
    """A line of `rows.jsonl`: one setting, measured once. It becomes a row of `read_rows`.

    Figures are None where the setting was not measured, and where nothing could measure them. A
    line may say more, such as its packages' versions, which is kept under its own name.

    Attributes:
        setting: Its name.
        status: How the measurement ended.
        group: Settings that are compared with each other.
        reason: Why it did not end well, or was not begun.
        policy: How the policy generates.
        reward: What rewards it.
        trainers: Processes that trained, each on its share of the batch.
        schedule: When rewards are worked out.
        shared_prefix: How a group's prompt went through the policy: `each`, with every completion;
            `flex` or `dense`, once.
        direct_sync: Whether weights were written into colocated vLLM's own parameters.
        target_place: Where the target stood among an engine's sources: `drawn` or `last`.
        parallel: Whether an API is asked for a whole batch at once.
        sitting: What was measured in one go: one machine, one process tree.
        reference: `first` or `last`, where it is its sitting's reference.
        repeat: Number of the repeat.
        hardware: Such as `NVIDIA H200 x 1`.
        gpus: GPUs that the setting held.
        gpus_wanted: GPUs that it asks for.
        completions: Completions per step.
        new_tokens: Tokens of a completion, mean.
        prompt_tokens: Tokens of a prompt.
        natural_lengths: Whether completions ended where they end.
        reward_latency_s: Seconds of engine and judge together, where they were simulated.
        steps: Steps that count.
        step_s: Seconds per step: median; one step ahead the mean, as long and short steps take
            turns there: two batches wait for the same engine, and are done at once.
        step_s_all: Seconds of each step.
        step_s_spread: Quartiles of them.
        phases: Seconds per step of each phase of the main thread; they exclude each other.
            Medians; means where `phases_all` is missing.
        phases_all: Seconds of each phase in each step.
        background: Seconds of each phase that ran beside the main thread.
        engine_s: Seconds of a step in which the engine was asked.
        judge_s: Seconds in which only the judge was.
        abstained: Share of completions without a score.
        gpu_seconds_per_sample: Over all GPUs held.
        peak_memory_gib: By GPU.
        calls_per_1000: Calls for 1,000 rollouts.
        tokens_per_1000: Tokens of these calls, in and out.
        cost_per_1000: Their US dollars.
        simulated: What was no real service and no trained model.
        recipe: Fields of GRPOConfig that the setting named.
        models: Policy, engine, and the tokens of an answer and of a page.
        measured_at: When.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    setting: str
    status: Literal["measured", "not run", "out of memory", "failed", "timed out"]
    group: str = ""
    reason: str | None = None
    policy: str = ""
    reward: str = ""
    trainers: int = 1
    schedule: str = "stock"
    shared_prefix: str = "each"
    direct_sync: bool = False
    target_place: str = "drawn"
    parallel: bool = True
    sitting: str = ""
    reference: Literal["first", "last"] | None = None
    repeat: int = 0
    hardware: str = "unknown hardware"
    gpus: int = 1
    gpus_wanted: int = 1
    completions: float | None = None
    new_tokens: float | None = None
    prompt_tokens: float | None = None
    natural_lengths: bool = False
    reward_latency_s: float | None = None
    steps: int = 0
    step_s: float | None = None
    step_s_all: tuple[float, ...] | None = None
    step_s_spread: tuple[float, float] | None = None
    phases: dict[str, float] = {}
    phases_all: dict[str, tuple[float, ...]] | None = None
    background: dict[str, float] = {}
    engine_s: float | None = None
    judge_s: float | None = None
    abstained: float | None = None
    gpu_seconds_per_sample: float | None = None
    peak_memory_gib: tuple[float, ...] | None = None
    calls_per_1000: float | None = None
    tokens_per_1000: float | None = None
    cost_per_1000: float | None = None
    simulated: tuple[str, ...] = ()
    recipe: dict[str, Any] = {}
    models: dict[str, Any] = {}
    measured_at: str | None = None


_FIGURES = [name for name, field in Row.model_fields.items() if field.annotation == float | None]
_MEANS = [name for name in _FIGURES if name not in ("step_s", "reward_latency_s", "prompt_tokens")]


def read_rows(folders: Iterable[str | Path]) -> pd.DataFrame:
    """Read every `*.jsonl` of some folders; the same measurement counts once.

    Rows that name no sitting are those of an earlier harness: each file is one sitting. A line
    that is torn or holds no measurement is left out with a warning.

    Returns:
        As `table_of`.
    """
    found = []
    for folder in folders:
        for file in sorted(resolve_path(folder).glob("*.jsonl")):
            for number, line in enumerate(file.read_bytes().splitlines(), 1):
                try:
                    if line.strip():
                        values = Row.model_validate_json(line).model_dump()
                        found.append(values | {"sitting": values["sitting"] or file.stem})
                except ValidationError as error:
                    first = error.errors()[0]
                    where = ".".join(map(str, first["loc"]))
                    log.warning(
                        "%s, line %d left out: %s %s", file.name, number, where, first["msg"]
                    )
    rows = table_of(found)
    same = ["bench", "condition", "status", "repeat", "measured_at"]
    return rows.drop_duplicates(same, keep="last", ignore_index=True)


def table_of(rows: Sequence[Mapping[Any, Any]]) -> pd.DataFrame:
    """Return a table of rows, with what follows from their figures.

    Args:
        rows: Fields of `Row`; once put together, `bench`, `repeats` and `lost` as well.

    Returns:
        The fields as columns, numbers NaN where there are none, and:

        - `bench`: sittings that are shown together, as `sittings` finds them;
        - `repeats`: how many stand behind the figures, and `lost`: how many more did not end well;
        - `on_policy`: whether the weights that generated are those that are trained;
        - `low`, `high`: quartiles of the seconds per step;
        - `mean_s`: their mean;
        - `typical_s`: seconds per step as the phases are given: `step_s`, or the mean with an
          earlier harness;
        - `measured`: whether there is a step time;
        - `unasked`: whether the engine was asked for less than half of its stated latency.
          Completions that hold no page are rewarded without a call, and a step that waits for none
          says nothing about one that does;
        - `asked_s`: the stated latency, of a service alone;
        - `needed_gib`: the most memory of one GPU that the setting needs. A vLLM server that has a
          GPU to itself takes the share of it that it is told to, whatever the GPU's size, and does
          not count;
        - `device`: the kind of hardware, without how many of it there were;
        - `compiled`: whether layers were compiled, as the recipe says;
        - `work`: bench, device, completions, tokens, natural lengths and prompt: what compares.
          Lengths that end where they end differ from repeat to repeat and are no part of it;
        - `asked`: what was to be measured, which a row that did not end well knows as well;
        - `condition`: what repeats of one measurement have in common beside the bench;
        - as it is written: `label` (setting), `amount` (work), `took` (seconds), `latency` and `n`.
    """
    every = pd.DataFrame(list(rows))
    names = [*Row.model_fields, "bench", "repeats", "lost", *every]
    every = every.reindex(columns=list(dict.fromkeys(names)))
    if every.empty:
        every = every.astype(object)  # which no row has given its type
    every = every.fillna({"repeats": 1, "lost": 0})
    every = every.astype({**dict.fromkeys(_FIGURES, float), "repeats": int, "lost": int})
    every["bench"] = every["bench"].astype(object).fillna(every["sitting"])
    every["on_policy"] = every["schedule"].ne("ahead")
    spread = [row.step_s_spread or (row.step_s,) * 2 for row in each(every)]
    every[["low", "high"]] = np.array(spread, dtype=float).reshape(len(every), 2)
    means = every["step_s_all"].map(lambda steps: np.mean(steps) if steps else np.nan)
    every["mean_s"] = means.astype(float)
    turns = ~every["on_policy"] & every["mean_s"].notna()
    every["step_s"] = every["step_s"].mask(turns, every["mean_s"])
    every["typical_s"] = every["mean_s"].where(every["phases_all"].isna()).fillna(every["step_s"])
    phased = every["phases"].map(bool).astype(bool)
    every["measured"] = every["status"].eq("measured") & every["step_s"].gt(0) & phased
    every["asked_s"] = every["reward_latency_s"].where(every["reward"].eq("gemini"))
    asked = every["engine_s"] + every["judge_s"].fillna(0)
    every["unasked"] = every["measured"] & asked.lt(0.5 * every["asked_s"].fillna(0))
    every["device"] = every["hardware"].map(lambda name: name.rpartition(" x ")[0] or name)
    every["compiled"] = every["recipe"].map(lambda recipe: bool(recipe.get("torch_compile")))
    every["page_tokens"] = every["models"].map(lambda models: models.get("page_tokens"))
    every["label"] = every["setting"].map(named)
    every["took"] = written(every["step_s"], every["low"], every["high"])
    derived = pd.DataFrame(map(_derived, each(every)), columns=_DERIVED, index=every.index)
    return every.assign(**derived).copy()  # in one piece


_DERIVED = ["needed_gib", "work", "asked", "condition", "amount", "latency", "n"]


def _derived(row: Any) -> dict[str, Any]:
    """Return what is worked out row by row: what compares, and how it is written."""
    peaks = row.peak_memory_gib or (np.nan,)
    fixed = 0 if row.natural_lengths or np.isnan(row.new_tokens) else round(row.new_tokens)
    prompt = 0 if np.isnan(row.prompt_tokens) else round(row.prompt_tokens, -1)  # within a word
    work = row.device, np.nan_to_num(row.completions), fixed, row.natural_lengths
    asked = str((row.setting, *work, row.asked_s)) + json.dumps(row.recipe, sort_keys=True)
    more = json.dumps([row.models, row.simulated], sort_keys=True)
    size, tokens = (f"{n:.0f}" if n > 0 else "?" for n in (row.completions, row.new_tokens))
    latency = f"{row.asked_s:g} s{'' if row.parallel else ' each'}"
    return {
        "needed_gib": max(peaks) if row.reward == "qwen_transformers" else peaks[0],
        "work": (row.bench, *work, prompt),
        "asked": asked,
        "condition": asked + str((prompt, row.gpus)) + more,
        "amount": f"{size} × {tokens} tokens{', natural lengths' * row.natural_lengths}",  # noqa: RUF001
        "latency": DASH if np.isnan(row.asked_s) else latency,
        "n": f"{row.steps // max(row.repeats, 1)} x {row.repeats}"
        + f", {row.lost} lost" * (row.lost > 0),
    }


def each(rows: pd.DataFrame) -> Iterator[Any]:
    """Return the rows of a table one by one, its columns their attributes."""
    return rows.itertuples()


def named(setting: str) -> str:
    """Return a setting's name as figures and tables write it."""
    return setting.replace("_", " ")


def written(means: pd.Series, lows: pd.Series, highs: pd.Series) -> list[str]:
    """Write numbers with their intervals."""
    return [with_interval(*ends, digits=2) for ends in zip(means, lows, highs, strict=True)]


def recorded_settings(variant: str) -> dict[str, Setting]:
    """Return the settings of a parameter file of notebook 01, in their order.

    Args:
        variant: Name of a file in `params/01_efficiency/`.
    """
    values = read_yaml(project_root() / "params" / "01_efficiency" / f"{variant}.yaml")
    return {name: Setting(**fields) for name, fields in values["settings"].items()}


def pooled(rows: pd.DataFrame) -> pd.DataFrame:
    """Put the repeats of each condition together, in order of first appearance.

    The step time is the median over the steps of all repeats, with their quartiles, and so are
    the phases; other figures are means over repeats. Repeats that did not end well are counted
    in `lost`, and shown only where a condition has no other; what was not run in one sitting and
    measured in another is no loss. Rows of sittings that `placed` puts on one bench are put
    together; for contrasts, which hold within a sitting, pass rows that were not placed.
    """
    elsewhere = rows["setting"].isin(rows.loc[rows["measured"], "setting"])
    rows = rows[~(elsewhere & rows["status"].eq("not run"))]
    own = rows["bench"] + rows["condition"]
    good = own[rows["measured"]].groupby(rows["asked"]).first()
    conditions = own.where(rows["measured"], rows["asked"].map(good).astype(object).fillna(own))
    return table_of([_together(group) for _, group in rows.groupby(conditions, sort=False)])


def _together(group: pd.DataFrame) -> dict[Any, Any]:
    """Return the fields of one row that stands for the repeats of a condition."""
    good = group[group["measured"]]
    if good.empty:
        return group.iloc[-1].to_dict() | {"repeats": 0, "lost": len(group)}
    steps = np.hstack([row.step_s_all or (row.step_s,) for row in each(good)])
    peaks = zip(*good["peak_memory_gib"].dropna(), strict=False)
    phases, phases_all = pd.DataFrame(list(good["phases"])).fillna(0.0).mean(), None
    if good["phases_all"].notna().all():
        every = pd.concat(map(pd.DataFrame, good["phases_all"]), ignore_index=True).fillna(0.0)
        phases, phases_all = every.median(), {name: tuple(every[name]) for name in every}
    return {
        **good.iloc[-1].to_dict(),
        **good[_MEANS].mean().to_dict(),
        "phases": phases.to_dict(),
        "phases_all": phases_all,
        "background": pd.DataFrame(list(good["background"])).fillna(0.0).mean().to_dict(),
        "repeats": len(good),
        "lost": len(group) - len(good),
        "steps": len(steps),
        "step_s": np.median(steps),
        "step_s_all": tuple(steps.tolist()),
        "step_s_spread": tuple(np.percentile(steps, (25, 75)).tolist()),
        "peak_memory_gib": tuple(map(max, peaks)) or None,
    }


def unmeasured(results: pd.DataFrame, planned: Mapping[str, Setting]) -> pd.DataFrame:
    """Return what has no figure, in the plan's order: measured in vain, or never recorded.

    Args:
        results: Put together by `pooled`.
        planned: Settings that were to be measured.

    Returns:
        `setting`, `group`, `gpus_wanted`, `status` and `reason`.
    """
    columns = ["setting", "group", "gpus_wanted", "status", "reason"]
    lost = results.loc[~results["measured"], columns].values.tolist()
    absent = [
        (name, setting.group, setting.gpus_wanted, "not run", "no row was recorded")
        for name, setting in planned.items()
        if name not in set(results["setting"])
    ]
    every = pd.DataFrame([*lost, *absent], columns=columns)
    order = [*planned, *every["setting"]]
    return every.sort_values("setting", key=lambda names: names.map(order.index), kind="stable")


def of_work(results: pd.DataFrame, place: int = 0) -> pd.DataFrame:
    """Return what was measured with the same work on the same kind of hardware.

    Args:
        results: Put together by `pooled`.
        place: 0 for the work that most settings were measured at, 1 for the next.
    """
    measured = results[results["measured"]]
    counts = measured.groupby("work", sort=False).size()
    works = counts.sort_values(ascending=False, kind="stable").index
    return measured[measured["work"].isin(works[place : place + 1])]


def compared(rows: pd.DataFrame, most: int = SLIDE_ROWS) -> pd.DataFrame:
    """Return the fastest rows, and the slowest, in order of their step time."""
    kept = rows.sort_values("step_s", kind="stable")
    return kept if len(kept) <= most else pd.concat([kept.iloc[: most - 1], kept.iloc[-1:]])


def sittings(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the sittings that rows come from, in order of time.

    A sitting is one machine and one process tree, with the same setting measured first and last.
    Two agree where both measured the same reference, under the same conditions, and the medians of
    it differ by no more than `SAME`. One without a reference agrees with no other.

    Returns:
        `sitting`; `device`; `date` of its first row; `settings`, how many were measured;
        `first_s` and `last_s`, seconds per step of `reference`, the setting that was measured
        first and last; `drift`, the last over the first, less 1; `bench`, the first sitting that
        it agrees with, its own name if there is none. NaN where there is none.
    """
    timed = rows.assign(
        date=rows["measured_at"].fillna("").astype(str),
        settings=rows["setting"].where(rows["measured"]),
    ).sort_values("date", kind="stable")
    how = {"device": "first", "date": "first", "settings": "nunique"}
    found = timed.groupby("sitting", sort=False).agg(how)
    ends = timed[timed["measured"] & timed["reference"].notna()]
    first = ends[ends["reference"] == "first"].drop_duplicates("sitting").set_index("sitting")
    last = ends[ends["reference"] == "last"].drop_duplicates("sitting").set_index("sitting")
    found["reference"] = first["setting"]
    found["first_s"], found["last_s"] = first["step_s"], last["step_s"]
    steps = ends.explode("step_s_all").astype({"step_s_all": float})
    seconds = steps.groupby("sitting")["step_s_all"].median()
    bench = {name: name for name in found.index}
    known = found.index[found.index.isin(first.index)]
    for place, name in enumerate(known):
        for other in known[:place]:
            pair = seconds[[name, other]]
            same = first["condition"][name] == first["condition"][other]
            if same and pair.max() <= SAME * pair.min():
                bench[name] = bench[other]
                break
    found["bench"] = pd.Series(bench)
    found["drift"] = found["last_s"] / found["first_s"] - 1
    return found.assign(date=found["date"].str[:10]).reset_index()


def placed(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows that know which other sittings they are shown together with."""
    benches = sittings(rows).set_index("sitting")["bench"]
    return table_of(rows.assign(bench=rows["sitting"].map(benches)).to_dict("records"))


def sitting_table(rows: pd.DataFrame) -> Styler:
    """List the sittings that rows come from, and how steady their machines were.

    Args:
        rows: Not yet put together.
    """
    found = sittings(rows)
    found["shown_with"] = found["bench"].where(found["bench"] != found["sitting"])
    columns = "sitting date device settings reference first_s last_s drift shown_with"
    caption = (
        f"Sittings whose reference differs by more than {SAME - 1:.0%}, or that have none, are "
        "shown apart; ratios are always of one sitting."
    )
    return laid_out(found, columns, caption)


def source(rows: pd.DataFrame) -> str:
    """Say what results were measured on, and what was simulated."""
    measured = rows[rows["measured"].astype(bool)]  # of no row, a join's columns have no type
    hardware = sorted(set(measured["hardware"])) or ["nothing"]
    stood_in = sorted({what for names in measured["simulated"] for what in names})
    simulated = f"; SIMULATED: {', '.join(stood_in)}" if stood_in else ""
    return f"measured on {', '.join(hardware)}{simulated}"


def basis(rows: pd.DataFrame, results: pd.DataFrame) -> str:
    """Say what a figure rests on.

    Args:
        rows: What it shows.
        results: What it was chosen from.
    """
    lost = results.loc[~results["measured"], "setting"].nunique()
    missing = f"; {lost} settings without a figure" if lost else ""
    counts = "; ".join(sorted(set(rows["n"])))
    return f"n = {counts} (steps x repeats); * one step off policy{missing}; {source(rows)}."


def laid_out(
    rows: pd.DataFrame, columns: str, caption: str, marked: Sequence[object] = ()
) -> Styler:
    """Lay out a table of measured steps, texts to the left.

    Args:
        rows: What to show.
        columns: Names of its columns, in a line.
        caption: What it rests on.
        marked: Labels of the rows in bold.
    """
    if rows.empty:
        rows, columns, caption = pd.DataFrame({"rows": ["none was measured"]}), "rows", ""
    table = rows[columns.split()]
    forms: dict[str, Any] = {"needed_gib": "{:.0f}", "abstained": "{:.0%}", "drift": "{:+z.1%}"}
    forms |= dict.fromkeys(("hours", "per_day", "sweep_hours", "gpu_hours"), "{:.1f}")
    forms |= dict.fromkeys(("setting", "setting_against", "reference"), named)
    looks: dict[Any, Any] = {}
    for name in table:
        place = "white-space: normal; min-width: 8em" if name in _LONG else "white-space: nowrap"
        side = "left" if name in _WORDS else "right"
        looks[name] = [
            {"selector": "", "props": f"padding: .25em .45em; text-align: {side}"},
            {"selector": "td", "props": place},
        ]
    return (
        styled(table, marked, caption)
        .format(forms, precision=2, na_rep=DASH, escape="html")
        .format_index(lambda name: _TITLES.get(name, named(str(name))), axis=1)
        .hide(axis="index")
        .set_table_styles(looks, overwrite=False)
    )
