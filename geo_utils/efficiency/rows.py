"""Measured steps as one table: read, checked, repeats put together, sittings told apart."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from geo_utils.efficiency.params import Setting
from geo_utils.files import project_root, resolve_path
from geo_utils.parameters import ParameterError, read_yaml
from geo_utils.show.plots import canvas, finished
from geo_utils.show.tables import DASH, styled

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
ABLATION = "ablation"  # group of settings that change one thing at a time
SAME = 1.05  # two measurements of one setting may differ by so much
SLIDE_ROWS = 12
# Columns of tables that are texts.
_WORDS = {"setting", "against", "group", "work", "policy", "schedule", "status", "limited by"}
_WORDS |= {"rows", "note", "reason", "sitting", "device", "reference", "shown with", "what differs"}
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
        schedule: When rewards are worked out.
        parallel: Whether an API is asked for a whole batch at once.
        micro_batch: Completions of one pass of the training.
        checkpointing: Whether layers were computed again for the backward pass.
        compiled: Whether layers were compiled.
        sitting: What was measured in one go: one machine, one process tree.
        reference: `first` or `last`, where it is its sitting's reference.
        repeat: Number of the repeat.
        hardware: Such as `NVIDIA H200 x 1`.
        gpus: GPUs that the setting held.
        gpus_wanted: GPUs that it asks for.
        shared: Whether roles shared a GPU.
        completions: Completions per step.
        new_tokens: Tokens of a completion, mean.
        prompt_tokens: Tokens of a prompt.
        natural_lengths: Whether completions ended where they end.
        reward_latency_s: Seconds of engine and judge together, where they were simulated.
        on_policy: Whether the weights that generated are those that are trained.
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
        samples_per_s: Completions per second.
        peak_memory_gib: By GPU.
        calls_per_1000: Calls for 1,000 rollouts.
        tokens_per_1000: Tokens of these calls, in and out.
        cost_per_1000: Their US dollars.
        startup_s: Seconds of the measurement beside its steps.
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
    schedule: str = "stock"
    parallel: bool = True
    micro_batch: float | None = None
    checkpointing: bool | None = None
    compiled: bool | None = None
    sitting: str = ""
    reference: Literal["first", "last"] | None = None
    repeat: int = 0
    hardware: str = "unknown hardware"
    gpus: int = 1
    gpus_wanted: int = 1
    shared: bool = False
    completions: float | None = None
    new_tokens: float | None = None
    prompt_tokens: float | None = None
    natural_lengths: bool = False
    reward_latency_s: float | None = None
    on_policy: bool = True
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
    samples_per_s: float | None = None
    peak_memory_gib: tuple[float, ...] | None = None
    calls_per_1000: float | None = None
    tokens_per_1000: float | None = None
    cost_per_1000: float | None = None
    startup_s: float | None = None
    simulated: tuple[str, ...] = ()
    recipe: dict[str, Any] = {}
    models: dict[str, Any] = {}
    measured_at: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_missing(cls, values: Any) -> Any:
        """Drop what is null; rows of an earlier harness say of their training what was default."""
        if not isinstance(values, dict):
            return values
        known = {name: value for name, value in values.items() if value is not None}
        recipe = known.get("recipe")
        earlier: dict[str, Any] = {}
        if recipe:
            earlier["micro_batch"] = recipe.get("per_device_train_batch_size")
            earlier["checkpointing"] = recipe.get("gradient_checkpointing", True)
            earlier["compiled"] = recipe.get("torch_compile", False)
        return earlier | known


_FIGURES = [name for name, field in Row.model_fields.items() if field.annotation == float | None]
_MEANS = [name for name in _FIGURES if name not in ("step_s", "reward_latency_s", "prompt_tokens")]


def read_rows(folders: Iterable[str | Path]) -> pd.DataFrame:
    """Read every `*.jsonl` of some folders; the same measurement counts once.

    Rows that name no sitting are those of an earlier harness: each file is one sitting. A line
    that is torn or holds no measurement is left out with a warning.

    Returns:
        As `table_of`.

    Raises:
        ParameterError: A folder does not exist.
    """
    found = []
    for folder in folders:
        path = resolve_path(folder)
        if not path.is_dir():
            raise ParameterError(
                f"recorded={str(folder)!r}: no such folder; name one that holds the rows.jsonl of "
                "measurements, or leave it out"
            )
        for file in sorted(path.glob("*.jsonl")):
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
        - `low`, `high`: quartiles of the seconds per step;
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
        - `work`: bench, device, completions, tokens, natural lengths and prompt: what compares.
          Lengths that end where they end differ from repeat to repeat and are no part of it;
        - `condition`: what repeats of one measurement have in common beside the bench;
        - as it is written: `label` (setting), `amount` (work), `took` (seconds), `latency` and `n`.
    """
    columns = [
        *Row.model_fields,
        "bench",
        "repeats",
        "lost",
        *(name for row in rows for name in row),
    ]
    every = pd.DataFrame(list(rows), columns=list(dict.fromkeys(columns)))
    every = every.astype(dict.fromkeys(_FIGURES, float))
    every["bench"] = every["bench"].astype(object).fillna(every["sitting"])
    every["repeats"] = every["repeats"].fillna(1).astype(int)
    every["lost"] = every["lost"].fillna(0).astype(int)
    spread = [row.step_s_spread or (row.step_s,) * 2 for row in each(every)]
    every[["low", "high"]] = np.array(spread, dtype=float).reshape(len(every), 2)
    means = every["step_s_all"].map(lambda steps: np.mean(steps) if steps else np.nan)
    every["mean_s"] = means.astype(float)
    turns = every["schedule"].eq("ahead") & every["mean_s"].notna()
    every["step_s"] = every["step_s"].mask(turns, every["mean_s"])
    every["typical_s"] = every["mean_s"].where(every["phases_all"].isna()).fillna(every["step_s"])
    phased = every["phases"].map(bool).astype(bool)
    every["measured"] = every["status"].eq("measured") & every["step_s"].gt(0) & phased
    gemini, latency = every["reward"].eq("gemini"), every["reward_latency_s"]
    asked = every["engine_s"] + every["judge_s"].fillna(0)
    every["unasked"] = every["measured"] & gemini & asked.lt(0.5 * latency.fillna(0))
    every["asked_s"] = latency.where(gemini)
    every["device"] = every["hardware"].map(lambda name: name.rpartition(" x ")[0] or name)
    every["page_tokens"] = every["models"].map(lambda models: models.get("page_tokens"))
    derived = [_derived(row) for row in each(every)]
    names = ["needed_gib", "work", "condition", "label", "amount", "took", "latency", "n"]
    known = every.drop(columns=names, errors="ignore").copy()
    return known.join(pd.DataFrame(derived, columns=names, index=every.index))


def _derived(row: Any) -> dict[str, Any]:
    """Return what is worked out row by row, and how figures, tables and sentences write it."""
    peaks = row.peak_memory_gib or (np.nan,)
    fixed = 0 if row.natural_lengths or np.isnan(row.new_tokens) else round(row.new_tokens)
    prompt = 0 if np.isnan(row.prompt_tokens) else round(row.prompt_tokens, -1)  # within a word
    work = (row.bench, row.device, row.completions, fixed, row.natural_lengths, prompt)
    same = [row.recipe, row.models, row.simulated]
    size = "?" if np.isnan(row.completions) else f"{row.completions:.0f}"
    tokens = f"{row.new_tokens:.0f}" if row.new_tokens > 0 else "?"
    natural = ", natural lengths" if row.natural_lengths else ""
    return {
        "needed_gib": max(peaks) if row.reward == "qwen_transformers" else peaks[0],
        "work": tuple(0 if value != value else value for value in work),
        "condition": str((row.setting, *work[1:], row.asked_s, row.shared, row.gpus))
        + json.dumps(same, sort_keys=True),
        "label": named(row.setting),
        "amount": f"{size} × {tokens} tokens{natural}",  # noqa: RUF001
        "took": f"{row.step_s:.2f} [{row.low:.2f}, {row.high:.2f}]" if row.measured else DASH,
        "latency": DASH
        if np.isnan(row.asked_s)
        else f"{row.asked_s:g} s{'' if row.parallel else ' each'}",
        "n": f"{row.steps // max(row.repeats, 1)} x {row.repeats}"
        + (f", {row.lost} lost" if row.lost else ""),
    }


def each(rows: pd.DataFrame) -> Iterator[Any]:
    """Return the rows of a table one by one, its columns their attributes."""
    return rows.itertuples()


def named(setting: str) -> str:
    """Return a setting's name as figures and tables write it."""
    return setting.replace("_", " ")


def recorded_settings(*variants: str) -> dict[str, Setting]:
    """Return the settings of parameter files of notebook 01, in their order.

    Args:
        variants: Names of files in `params/01_efficiency/`.
    """
    settings: dict[str, Setting] = {}
    for variant in variants:
        values = read_yaml(project_root() / "params" / "01_efficiency" / f"{variant}.yaml")
        named: Mapping[str, Any] = values.get("settings", {})
        settings |= {name: Setting(**fields) for name, fields in named.items()}
    return settings


def pooled(rows: pd.DataFrame) -> pd.DataFrame:
    """Put the repeats of each condition together, in order of first appearance.

    The step time is the median over the steps of all repeats, with their quartiles, and so are
    the phases; other figures are means over repeats. Repeats that did not end well are counted
    in `lost`, and shown only where a condition has no other. Rows of sittings that `placed` puts
    on one bench are put together; for contrasts, which hold within a sitting, pass rows that
    were not placed.
    """
    conditions = rows["bench"] + rows["condition"]
    good = list(each(rows[rows["measured"]]))
    for lost in each(rows[~rows["measured"]]):
        same = next((row for row in good if _measured_as(lost, row)), None)
        if same is not None:
            told = lost.status != "not run"
            conditions[lost.Index] = same.bench + same.condition if told else None
    together = [_together(group) for _, group in rows.groupby(conditions, sort=False)]
    found = table_of(together)
    known = set(found.loc[found["measured"], "setting"])
    elsewhere = found["status"].eq("not run") & found["setting"].isin(known)
    return found[~elsewhere].reset_index(drop=True)


def _measured_as(lost: Any, row: Any) -> bool:
    """Return whether a row is what a lost one would have been; that one may lack figures."""
    return (
        (row.setting, row.device, row.natural_lengths)
        == (lost.setting, lost.device, lost.natural_lengths)
        and (np.isnan(lost.completions) or lost.completions == row.completions)
        and (
            lost.natural_lengths
            or np.isnan(lost.new_tokens)
            or lost.new_tokens == round(row.new_tokens)
        )
        and lost.recipe in ({}, row.recipe)
        and (np.isnan(lost.asked_s) or lost.asked_s == row.reward_latency_s)
    )


def _together(group: pd.DataFrame) -> dict[Any, Any]:
    """Return the fields of one row that stands for the repeats of a condition."""
    good = group[group["measured"]]
    if good.empty:
        return group.iloc[-1].to_dict() | {"repeats": 0, "lost": len(group)}
    steps = np.hstack([row.step_s_all or (row.step_s,) for row in each(good)])
    background = pd.DataFrame(list(good["background"])).fillna(0.0).mean()
    peaks = list(good["peak_memory_gib"].dropna())
    if peaks and len(set(map(len, peaks))) == 1:
        peaks = [tuple(np.max(peaks, axis=0))]
    phases: dict[str, Any] = {"phases_all": None}
    if good["phases_all"].isna().any():
        phases["phases"] = pd.DataFrame(list(good["phases"])).fillna(0.0).mean().to_dict()
    else:
        timed = [
            pd.DataFrame(row.phases_all, index=range(len(row.step_s_all))) for row in each(good)
        ]
        every = pd.concat(timed, ignore_index=True).fillna(0.0)
        phases["phases"] = every.median().to_dict()
        phases["phases_all"] = {name: tuple(every[name]) for name in every}
    return {
        **good.iloc[-1].to_dict(),
        **good[_MEANS].mean().to_dict(),
        **phases,
        "background": background.to_dict(),
        "repeats": len(good),
        "lost": len(group) - len(good),
        "steps": len(steps),
        "step_s": np.median(steps),
        "step_s_all": tuple(steps.tolist()),
        "step_s_spread": tuple(np.percentile(steps, (25, 75)).tolist()),
        "peak_memory_gib": peaks[-1] if peaks else None,
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
    absent = [
        (name, setting.group, setting.gpus_wanted, "not run", "no row was recorded")
        for name, setting in planned.items()
        if name not in set(results["setting"])
    ]
    lost = results.loc[~results["measured"], columns].values.tolist()
    every = pd.DataFrame([*lost, *absent], columns=columns)
    order = {name: place for place, name in enumerate(planned)}
    return every.sort_values(
        "setting", key=lambda names: names.map(order).fillna(len(order)), kind="stable"
    )


def works(results: pd.DataFrame) -> list[Any]:
    """Return what can be compared, that with most measured settings first."""
    counts = results[results["measured"]].groupby("work", sort=False).size()
    return list(counts.sort_values(ascending=False, kind="stable").index)


def of_work(results: pd.DataFrame, place: int = 0) -> pd.DataFrame:
    """Return what was measured with the same work on the same kind of hardware.

    Args:
        results: Put together by `pooled`.
        place: 0 for the work that most settings were measured at, 1 for the next.
    """
    chosen = works(results)[place : place + 1]
    return results[results["measured"] & results["work"].isin(chosen)]


def compared(rows: pd.DataFrame, most: int = SLIDE_ROWS) -> pd.DataFrame:
    """Return the fastest rows, and the slowest, in order of their step time.

    Of an ablation, whose rows differ little, only the fastest on and off policy are among them.
    """
    ordered = rows[rows["measured"]].sort_values("step_s", kind="stable")
    alike = ordered["group"].eq(ABLATION) & ordered.duplicated(["group", "on_policy"])
    kept = ordered[~alike]
    return kept if len(kept) <= most else pd.concat([kept.iloc[: most - 1], kept.iloc[-1:]])


def sittings(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the sittings that rows come from, in order of time.

    A sitting is one machine and one process tree, with the same setting measured first and last.
    Two agree where both measured the same reference, under the same conditions, and the medians of
    it differ by no more than `SAME`. One without a reference agrees with no other.

    Returns:
        `sitting`; `bench`, the first sitting that it agrees with, its own name if there is none;
        `device`; `date` of its first row; `settings`, how many were measured; `reference`, the
        setting that was measured first and last; `first_s` and `last_s`, its seconds per step;
        `drift`, the last over the first, less 1. NaN where there is none.
    """
    found = []
    known: list[tuple[Any, float, str]] = []
    timed = rows.assign(at=rows["measured_at"].fillna("")).sort_values("at", kind="stable")
    for name, group in timed.groupby("sitting", sort=False):
        measured = group[group["measured"]]
        marked = measured[measured["reference"].notna()]
        ends = {row.reference: row for row in each(marked)}
        first, last, bench = ends.get("first"), ends.get("last"), str(name)
        if first is not None:
            seconds = float(np.median([s for row in ends.values() for s in row.step_s_all or ()]))
            near = [
                b
                for other, s, b in known
                if other == first.condition and max(seconds, s) <= SAME * min(seconds, s)
            ]
            bench = near[0] if near else bench
            known.append((first.condition, seconds, bench))
        found.append(
            {
                "sitting": name,
                "bench": bench,
                "device": (measured if len(measured) else group)["device"].iloc[0],
                "date": group["at"].iloc[0][:10],
                "settings": measured["setting"].nunique(),
                "reference": first.setting if first is not None else None,
                "first_s": first.step_s if first is not None else np.nan,
                "last_s": last.step_s if last is not None else np.nan,
            }
        )
    names = ["sitting", "bench", "device", "date", "settings", "reference", "first_s", "last_s"]
    table = pd.DataFrame(found, columns=names)
    return table.assign(drift=table["last_s"] / table["first_s"] - 1)


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
    table = pd.DataFrame(
        {
            "sitting": found["sitting"],
            "date": found["date"],
            "device": found["device"],
            "settings": found["settings"],
            "reference": found["reference"].map(named, na_action="ignore").fillna(DASH),
            "first, s": numbers(found["first_s"]),
            "last, s": numbers(found["last_s"]),
            "last over first": numbers(found["drift"], "{:+.1%}"),
            "shown with": found["bench"].where(found["bench"] != found["sitting"], DASH),
        }
    )
    caption = (
        "A sitting is one machine and one process tree; the reference is its first and last "
        f"measurement. Sittings whose reference differs by more than {SAME - 1:.0%}, or that have "
        "none, are shown apart; ratios are always of one sitting."
    )
    return laid_out(table, caption)


def source(rows: pd.DataFrame) -> str:
    """Say what results were measured on, and what was simulated."""
    measured = rows[rows["measured"]]
    hardware = sorted(set(measured["hardware"])) or ["nothing measured"]
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
    counts = ", ".join(sorted(set(rows["n"])))
    return f"n = {counts} (steps x repeats); * one step off policy{missing}; {source(rows)}."


def sentence(text: str) -> str:
    """Return a text as a sentence begins."""
    return text[:1].upper() + text[1:]


def numbers(values: pd.Series, form: str = "{:.2f}") -> pd.Series:
    """Write a column of numbers; a dash where there is none."""
    return values.map(lambda value: DASH if pd.isna(value) else form.format(value))


def laid_out(table: pd.DataFrame, caption: str, marked: Sequence[object] = ()) -> Styler:
    """Lay out a table of measured steps, texts to the left.

    Args:
        table: Numbers are written already.
        caption: What it rests on.
        marked: Labels of the rows in bold.
    """
    if table.empty:
        table, caption, marked = pd.DataFrame({"rows": ["none was measured"]}), "", ()
    left: list[Any] = [
        {"selector": f"td.col{place}", "props": "text-align: left"}
        for place, column in enumerate(table)
        if column in _WORDS
    ]
    tight = {"white-space": "nowrap", "padding": ".25em .45em"}
    return (
        styled(table, marked, caption)
        .hide(axis="index")
        .set_properties(subset=[column for column in table if column != "reason"], **tight)
        .set_table_styles(left, overwrite=False)
    )


def nothing(title: str) -> Figure:
    """Return a figure that says what was not measured."""
    figure, axes = canvas(0)
    axes.set_axis_off()
    return finished(figure, title, "See the table of settings for the reasons.")
