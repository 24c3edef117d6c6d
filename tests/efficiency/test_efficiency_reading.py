"""Reading measured steps: bounds, capacity, contrasts, tables and figures, and notebook 01."""

import json
import logging
import math
import re

import numpy as np
import pandas as pd
import pytest
from conftest import PROJECT
from hypothesis import given
from hypothesis import strategies as st
from test_headless import only_run, run_notebook

from geo_utils.efficiency.capacity import (
    best,
    efficiency_headline,
    plan,
    plan_findings,
    plan_table,
    planned_work,
    rewarded,
)
from geo_utils.efficiency.contrasts import (
    CHANGES,
    ablation,
    against_no_latency,
    changed,
    contrast_figure,
    contrast_table,
    study_contrasts,
    timeline_figure,
    vllm_findings,
)
from geo_utils.efficiency.params import CapacityOptions, EfficiencyParams
from geo_utils.efficiency.rows import (
    SLIDE_ROWS,
    Row,
    compared,
    each,
    laid_out,
    placed,
    pooled,
    read_rows,
    recorded_settings,
    sitting_table,
    sittings,
    table_of,
    unmeasured,
)
from geo_utils.efficiency.steps import (
    BOUND,
    STEP,
    bounds,
    gpu_figure,
    least_step,
    predicted_step,
    step_figure,
    step_findings,
    step_table,
)
from geo_utils.grpo.train import compile_layers
from geo_utils.notebooks import read_parameters

NB01 = "01_efficiency"
# S 0.2, G 2.0, O 0.8; T = O 0.8 + 0.4 + 0.6 + 0.1 + 0.05 + 0.05 = 2.0
PHASES = {
    "weight sync": 0.2, "generation": 2.0, "old log-probabilities": 0.8, "reward": 2.1,
    "loss forward": 0.4, "backward": 0.6, "optimizer": 0.1, "batch preparation": 0.05,
    "between steps": 0.05,
}  # fmt: skip


def raw(setting="s", seconds=6.3, **changes):
    row = {
        "setting": setting, "group": "beyond", "status": "measured", "reason": None,
        "policy": "colocate", "reward": "gemini", "schedule": "stock", "parallel": True,
        "repeat": 0, "hardware": "NVIDIA H200 x 2", "gpus": 1, "gpus_wanted": 1,
        "completions": 16, "new_tokens": 512.0, "reward_latency_s": 2.0, "warmup_steps": 2,
        "steps": 3, "step_s": seconds,
        "step_s_all": [seconds * 0.99, seconds, seconds * 1.01],
        "step_s_spread": [seconds * 0.995, seconds * 1.005], "phases": PHASES,
        "gpu_seconds_per_sample": seconds * (changes.get("gpus") or 1) / 16,
        "peak_memory_gib": [60.0, 20.5], "simulated": ["Gemini: constant 1 s a call"],
        "calls_per_1000": 2000.0, "tokens_per_1000": 7e6, "sitting": "monday",
    }  # fmt: skip
    return row | changes


def table(*lines):
    told = [{name: value for name, value in line.items() if value is not None} for line in lines]
    return table_of([Row.model_validate_json(json.dumps(line)).model_dump() for line in told])


def row(*args, **changes):
    return next(table(raw(*args, **changes)).itertuples())


def pairs(contrasts):
    return list(zip(contrasts["setting"], contrasts["setting_against"], strict=True))


def one_by_one(results):
    return changed(results, "parallel", True, False)


def broken(setting, status="not run", **changes):
    gone = {"step_s": None, "step_s_all": None, "step_s_spread": None, "phases": None,
            "peak_memory_gib": None, "gpu_seconds_per_sample": None, "simulated": []}  # fmt: skip
    return raw(setting, status=status, reason="needs 3 GPUs, <2> are here", **(gone | changes))


def study():
    """A little of everything, with two repeats of one setting and two amounts of work."""
    many = {"completions": 64, "reward_latency_s": 5.0}
    return [
        raw("stock"), raw("stock", 6.2, repeat=1),
        raw("one_by_one", 36.5, parallel=False, phases=PHASES | {"reward": 32.3}),
        raw("early", 5.5, schedule="early"),
        raw("ahead", 4.3, schedule="ahead", phases=PHASES | {"reward": 0.01}),
        raw("none", 4.25, reward="negative_length", reward_latency_s=None),
        raw("none_ahead", 4.2, reward="negative_length", schedule="ahead"),
        raw("qwen", 9.7, reward="qwen_server", gpus=2, engine_s=5.0, judge_s=0.5,
            reward_latency_s=None),
        broken("three", gpus=3, gpus_wanted=3),
        broken("memory", "out of memory"),
        raw("stock_64", 18.0, **many), raw("none_64", 12.5, reward="negative_length", **many),
        raw("ahead_64", 12.6, schedule="ahead", **many),
        raw("none_ahead_64", 12.4, schedule="ahead", reward="negative_length", **many),
    ]  # fmt: skip


QWEN = {"reward": "qwen_server", "reward_latency_s": None, "engine_s": 5.0, "judge_s": 0.5}


@pytest.mark.parametrize(
    ("changes", "synchronous", "streaming", "ahead"),
    [
        # S+G+R+T = .2+2+2+2; S+G+max(2, .8)+1.2; max(S+G+T, 5.4/2)
        ({}, 6.2, 5.4, 4.2),
        # the old log-probabilities are the longer wait: .2+2+.8+1.2
        ({"reward_latency_s": 0.5}, 4.7, 4.2, 4.2),
        # half of the way of a batch, 13.4/2, is more than the trainer's 4.2
        ({"reward_latency_s": 10.0}, 14.2, 13.4, 6.7),
        # a server: max(S+T 2.2, S+G 2.2, 5.4/2)
        ({"policy": "server", "gpus": 2}, 6.2, 5.4, 2.7),
        # 16 x 2 s: .2+2+32+2; .2+2+(32-2)+1.2; the service is busy for 32
        ({"parallel": False}, 36.2, 33.4, 32.0),
        # R 5.5: 9.7; .2+2+(5.5-2)+1.2; the engine is busy for 5.5
        (QWEN | {"gpus": 2}, 9.7, 6.9, 5.5),
        (QWEN | {"gpus": 3, "policy": "server"}, 9.7, 6.9, 5.5),
        # it shares the policy server's GPU: .2+2+5.5+1.2; S+G+R = 7.7
        (QWEN | {"gpus": 2, "policy": "server"}, 9.7, 8.9, 7.7),
        # everything on one GPU: nothing overlaps
        (QWEN | {"gpus": 1}, 9.7, 9.7, 9.7),
        # no reward to wait for but its own 0 s: the reward's phase counts
        ({"reward": "negative_length", "phases": PHASES | {"reward": 0.0}}, 4.2, 4.2, 4.2),
        # what runs in the background counts there; the main thread only waits
        ({"policy": "server", "gpus": 2, "schedule": "ahead",
          "phases": PHASES | {"generation": 0.3}, "background": {"generation": 2.0}},
         6.2, 5.4, 2.7),
    ],
)  # fmt: skip
def test_bounds_worked_by_hand(changes, synchronous, streaming, ahead):
    found = bounds(table(raw(seconds=6.3, **changes))).iloc[0]
    assert (found.synchronous, found.streaming, found.ahead) == pytest.approx(
        (synchronous, streaming, ahead)
    )
    hidden = changes.get("schedule") == "ahead"
    assert found.own == pytest.approx(ahead if hidden else synchronous)
    # over a bound that is the sum of the row's own phases, a ratio says nothing
    assert found.ratio == pytest.approx(6.3 / ahead if hidden else math.nan, nan_ok=True)


seconds_of = st.floats(0.0, 60.0)


@given(
    st.fixed_dictionaries({name: seconds_of for name in PHASES}), seconds_of,
    st.sampled_from(["colocate", "server", "transformers"]), st.integers(1, 3),
    st.sampled_from(["gemini", "qwen_server", "negative_length"]), st.booleans(),
)  # fmt: skip
def test_overlapping_more_never_bounds_higher(phases, latency, policy, gpus, reward, parallel):
    made = row(phases=phases, reward_latency_s=latency, policy=policy, gpus=gpus, reward=reward,
               parallel=parallel)  # fmt: skip
    found = least_step(made)
    assert found["ahead"] <= found["streaming"] + 1e-9
    assert found["streaming"] <= found["synchronous"] + 1e-9


@given(st.sampled_from(["stock", "early", "ahead"]), st.floats(0, 20), st.floats(0, 20))
def test_a_prediction_meets_its_own_measurement_and_grows(schedule, one, other):
    made = row(schedule=schedule, seconds=7.0)
    assert predicted_step(made, 2.0) == pytest.approx(7.0)
    low, high = sorted((one, other))
    assert predicted_step(made, low) <= predicted_step(made, high) + 1e-9


def test_predictions_worked_by_hand():
    assert predicted_step(row(seconds=6.3), 10.0) == pytest.approx(14.3)
    assert predicted_step(row(seconds=36.5, parallel=False), 3.0) == pytest.approx(52.5)
    # hidden until half the way, (.2+2+R+1.2)/2, is more than 4.2
    assert predicted_step(row(seconds=4.3, schedule="ahead"), 5.0) == pytest.approx(4.3)
    assert predicted_step(row(seconds=4.3, schedule="ahead"), 10.0) == pytest.approx(6.8)
    assert predicted_step(row(seconds=9.7, **QWEN), 20.0) == 9.7


def test_another_way_of_asking_is_predicted_too():
    assert predicted_step(row(seconds=6.3), 2.0, parallel=False) == pytest.approx(6.3 + 30.0)
    assert predicted_step(row(seconds=6.3), 1.0, parallel=False) == pytest.approx(6.3 + 14.0)
    slow = row(seconds=36.5, parallel=False)
    assert predicted_step(slow, 2.0, parallel=True) == pytest.approx(6.5)


def test_predictions_take_many_latencies_at_once():
    at = np.array([0.0, 2.0, 10.0])
    for made in (row(), row(schedule="ahead"), row(schedule="early", parallel=False)):
        assert predicted_step(made, at) == pytest.approx([predicted_step(made, s) for s in at])


def planned(line, options):
    return next(plan(table(line), options).itertuples())


def test_the_studys_numbers():
    """Two Gemini experiments under the API's limit, eight of three GPUs on 24.

    64 completions in 16 s are 240 rollouts a minute; at 7,000 tokens each, 4,000,000 tokens a
    minute carry 2.38 such experiments (4,000 requests a minute would carry 8.3).
    """
    options = CapacityOptions(gpus=24, requests_per_minute=4000, tokens_per_minute=4e6,
                              gpu_memory_gib=80, steps=500)  # fmt: skip
    gemini = planned(raw(seconds=16.0, completions=64, gpus=2), options)
    assert (gemini.at_once, gemini.limited_by, gemini.slowed) == (2, "tokens", False)
    assert gemini.hours == pytest.approx(500 * 16 / 3600)
    qwen = planned(raw(seconds=30.0, completions=64, policy="server", **QWEN | {"gpus": 3}),
                        options)  # fmt: skip
    assert (qwen.at_once, qwen.limited_by, qwen.cost) == (8, "GPUs", 0.0)
    assert qwen.sweep_hours == pytest.approx(3 * 500 * 30 / 3600)  # 24 in three rounds of eight
    assert qwen.per_day == pytest.approx(8 * 86400 / (500 * 30))
    few = options.model_copy(update={"requests_per_minute": 960.0, "tokens_per_minute": None})
    gemini = planned(raw(seconds=16.0, completions=64, gpus=2), few)
    assert (gemini.at_once, gemini.limited_by) == (2, "requests")  # 960 / (240 x 2), exactly


def test_calls_and_tokens_are_those_that_the_row_sent():
    options = CapacityOptions(requests_per_minute=4000, tokens_per_minute=4e6)
    one = planned(raw(seconds=16.0, completions=64), options)
    more = raw(seconds=16.0, completions=64, calls_per_1000=4000.0, tokens_per_1000=1e6)
    more = planned(more, options)
    assert (one.at_once, one.limited_by) == (2, "tokens")
    assert (more.at_once, more.limited_by) == (4, "requests")  # 240 rollouts of 4 calls: 4.17


def told_of(rows, options):
    return plan_findings(plan(rows, options), rows, rows, recorded_settings("study"), options)


def test_a_training_of_autogeo_s_size_is_projected_from_the_fastest_step_on_one_gpu():
    rows = table(
        raw("slow", seconds=16.0, completions=64, gpus=1),
        raw("fast", seconds=6.0, completions=16, gpus=1),
        raw("floor", seconds=3.6, completions=64, gpus=1, reward="negative_length"),
        raw("two", seconds=1.0, completions=64, gpus=2),
    )
    said = told_of(rows, CapacityOptions())
    for setting, seconds, completions in (("slow", 16.0, 64), ("floor", 3.6, 64)):
        hours = 9_998 * 8 / completions * seconds / 3600
        assert re.search(rf"\b{setting} \(.*\), {hours:.2f} h \[", said)
    assert said.count("AutoGEO") == 2


def test_a_row_that_does_not_say_what_it_sent_is_not_planned():
    rows = table(raw("old", tokens_per_1000=None), raw("new"))
    assert list(plan(rows, CapacityOptions())["setting"]) == ["new"]
    free = CapacityOptions(tokens_per_minute=None)
    assert list(plan(rows, free)["setting"]) == ["old", "new"]
    told = told_of(rows, CapacityOptions())
    assert "Not planned, as their rows do not say what they sent: old." in told


def test_a_setting_that_needs_more_memory_than_a_gpu_has_is_not_recommended():
    large = raw("large", 3.0, peak_memory_gib=[121.8], **QWEN | {"gpus": 1})
    fits = raw("fits", 9.0, peak_memory_gib=[79.9], **QWEN | {"gpus": 2})
    rows = table(large, fits)
    plans = plan(rows, CapacityOptions(gpu_memory_gib=80.0))
    assert list(plans["at_once"]) == [0, 12] and plans["limited_by"][0] == "memory"
    assert best(plans, "hours").setting == best(plans, "sweep_hours").setting == "fits"
    roomy = plan(rows, CapacityOptions(gpu_memory_gib=140.0))
    assert best(roomy, "hours").setting == "large"
    # a vLLM server takes the share of a GPU that it is told to, whatever the GPU's size
    served = row("served", peak_memory_gib=[57.6, 137.1], policy="server", gpus=2)
    assert served.needed_gib == 57.6
    own = row("own", peak_memory_gib=[50.0, 97.0], **QWEN | {"reward": "qwen_transformers"})
    assert own.needed_gib == 97.0


def test_where_nothing_was_measured_everything_is_empty():
    nothing = pooled(table_of([]))
    for found in (bounds(nothing), against_no_latency(nothing), study_contrasts(nothing)):
        assert found.empty


def test_the_study_s_counts_follow_from_gpus_and_limits():
    served = raw("server_gemini_parallel", 16.0, policy="server", gpus=2, completions=64)
    told = told_of(table(served), CapacityOptions())
    assert "fit, by the GPUs of one experiment: 24 of 1, 12 of 2, 8 of 3, 6 of 4." in told
    assert "960 to 1,440 requests or 3,360,000 to 5,040,000 tokens a minute" in told


def test_limits_below_one_experiment_slow_it_down():
    # 16 completions in 6.4 s are 150 rollouts a minute, 300 requests; 150 are half of that
    options = CapacityOptions(requests_per_minute=150, tokens_per_minute=None, steps=100,
                              experiments=3, gpus=2)  # fmt: skip
    found = planned(raw(seconds=6.4), options)
    assert found.slowed and found.at_once == 1 and found.limited_by == "requests"
    assert found.hours == pytest.approx(100 * 12.8 / 3600)
    assert found.sweep_hours == pytest.approx(3 * 100 * 12.8 / 3600)  # two at once gain nothing
    assert found.per_day == pytest.approx(86400 / 1280)


def test_more_side_by_side_than_the_limit_carries_slow_each_other():
    # the limit carries 2.5 of them, 24 hold: four as three would take 2 rounds of 3/2.5
    options = CapacityOptions(requests_per_minute=750, tokens_per_minute=None, steps=100,
                              experiments=3)  # fmt: skip
    found = planned(raw(seconds=6.4), options)
    assert found.at_once == 2
    assert found.sweep_hours == pytest.approx(3 / 2.5 * 640 / 3600)  # one round of three


def test_a_setting_that_wants_more_gpus_than_there_are_does_not_fit():
    wide = table(raw(seconds=30.0, policy="server", **QWEN | {"gpus": 3}))
    plans = plan(wide, CapacityOptions(gpus=2))
    found = plans.iloc[0]
    assert found.at_once == 0 and found.limited_by == "GPUs" and math.isnan(found.sweep_hours)
    assert best(plans, "hours") is None and best(plans, "sweep_hours") is None


def test_cost_is_what_was_measured():
    plans = plan(table(raw(cost_per_1000=1.0), raw("q", **QWEN)), CapacityOptions(steps=100))
    assert list(plans["cost"]) == pytest.approx([1.6, 0.0])
    assert math.isnan(planned(raw(), CapacityOptions()).cost)


def test_of_settings_that_no_measurement_tells_apart_the_one_with_the_fewest_gpu_hours_is_chosen():
    # the tokens carry either sweep at the same pace, but for what rounds leave over
    options = CapacityOptions(requests_per_minute=None, tokens_per_minute=1e6, experiments=24)
    plans = plan(table(raw("slow", 6.3), raw("fast", 3.0)), options)
    slow, fast = plans.itertuples()
    assert slow.sweep_hours == pytest.approx(fast.sweep_hours, rel=0.01)
    assert slow.step_gpu_s > fast.step_gpu_s and best(plans, "sweep_hours").setting == "fast"
    near = plan(table(raw("held", 6.2, gpus=2), raw("near", 6.3)), CapacityOptions())
    assert best(near, "hours").setting == "near"  # 2 % slower, with half the GPUs


def test_a_reward_that_asks_nothing_is_never_chosen():
    assert list(rewarded(table(*study()[4:8]))["setting"]) == ["ahead", "qwen"]


def test_a_row_that_hardly_asked_its_engine_is_named_and_not_chosen():
    # completions that hold no page cost no call: such a step is no step with an engine
    idle = raw("idle", 4.2, engine_s=0.0, judge_s=0.0)
    busy = raw("busy", 6.3, engine_s=1.0, judge_s=1.0)
    rows = table(idle, busy, raw("untold"))
    assert list(rows["unasked"]) == [True, False, False]
    assert list(rewarded(rows)["setting"]) == ["busy", "untold"]
    assert one_by_one(table(raw("slow", 36.0, parallel=False), idle)).empty
    assert against_no_latency(table(idle, raw("free", 4.2, reward="negative_length"))).empty
    assert "hardly asked its engine" in text_of(step_table(rows))
    assert "hardly asked" not in text_of(step_table(table(busy)))
    assert "25%" in text_of(step_table(table(raw(abstained=0.25))))


def test_repeats_are_put_together():
    one, *rest = pooled(
        table(raw(), raw(seconds=6.5, repeat=1), broken("s", "failed", repeat=2))
    ).itertuples()
    assert (one.repeats, one.lost, one.steps, rest) == (2, 1, 6, [])
    assert one.step_s == pytest.approx(6.4, abs=0.1) and one.peak_memory_gib == (60.0, 20.5)
    # one that was not run is no loss
    gone = broken("s", "timed out", gpus=None)
    one, *rest = pooled(table(gone, raw(), broken("s"))).itertuples()
    assert (one.repeats, one.lost, one.gpus, rest) == (1, 1, 1, [])
    apart = table(raw(), raw(completions=64), raw(reward_latency_s=5.0), raw(hardware="CPU"))
    assert len(pooled(apart)) == 4  # other work, another latency, another machine


def test_a_setting_that_was_measured_elsewhere_is_not_shown_as_not_run():
    lines = [broken("s", hardware="CPU"), raw(), broken("t"), broken("u", "timed out")]
    found = pooled(table(*lines))
    assert list(zip(found["setting"], found["status"], strict=True)) == [
        ("s", "measured"), ("t", "not run"), ("u", "timed out"),
    ]  # fmt: skip


class TestSittings:
    """What was measured on one machine, in one process tree, with its reference first and last."""

    def sitting(self, name, first, last=None, **changes):
        at = {"sitting": name, "measured_at": f"2026-11-2{len(name)}T10:00:00"} | changes
        ends = [("first", first), ("last", last)]
        return [raw("ref", s, reference=end, repeat=i, **at)
                for i, (end, s) in enumerate(ends) if s]  # fmt: skip

    def test_those_that_agree_on_the_reference_are_shown_together(self):
        rows = table(*self.sitting("a", 4.0, 4.1), *self.sitting("bb", 4.1, 4.0),
                     *self.sitting("ccc", 4.5, 4.4), raw("x", sitting="dddd"))  # fmt: skip
        found = sittings(rows).set_index("sitting")
        assert found["bench"].to_dict() == {
            "a": "a", "bb": "a", "ccc": "ccc", "dddd": "dddd",
        }  # fmt: skip
        assert found["drift"]["a"] == pytest.approx(0.025) and math.isnan(found["drift"]["dddd"])
        together = pooled(placed(rows)).itertuples()
        assert [(r.setting, r.repeats) for r in together] == [("ref", 4), ("ref", 2), ("x", 1)]
        assert len(pooled(rows)) == 4  # for ratios, each sitting by itself
        told = text_of(sitting_table(rows))
        assert "+2.5%" in told and "shown with" in told

    def test_another_recipe_or_device_is_another_reference(self):
        rows = table(*self.sitting("a", 4.0), *self.sitting("bb", 4.0, hardware="NVIDIA H100 x 2"),
                     *self.sitting("ccc", 4.0, recipe={"torch_compile": True}))  # fmt: skip
        assert list(sittings(rows)["bench"]) == ["a", "bb", "ccc"]

    def test_no_ratio_spans_two_sittings(self):
        stock, sleep = raw("stock", 4.47, sitting="a"), raw("sleep", 4.07, sitting="bb")
        again = raw("stock", 3.83, sitting="bb")
        names = ["stock", "sleep"]
        assert ablation(table(stock, sleep), names)["setting"][0] == "stock"
        found = ablation(table(again, sleep), names)["ratio"]
        # sleep mode costs time; pooled, it "gains"
        assert list(found) == pytest.approx([1.0, 4.07 / 3.83])
        slow = raw("slow", 36.0, parallel=False, sitting="a")
        assert one_by_one(table(slow, raw("fast", sitting="bb"))).empty
        assert len(one_by_one(table(slow, raw("fast", sitting="a")))) == 1

    def test_a_file_of_an_earlier_harness_is_one_sitting(self, tmp_path):
        for name in ("one", "two"):
            made = {k: v for k, v in raw(name).items() if k != "sitting"}
            (tmp_path / f"{name}.jsonl").write_text(json.dumps(made) + "\n")
        assert list(read_rows([tmp_path])["sitting"]) == ["one", "two"]


class TestChanges:
    def test_each_is_found_where_one_thing_differs(self):
        served = {"policy": "server", "gpus": 2}
        eager, compiled = {"torch_compile": False}, {"torch_compile": True}
        rows = [
            raw("slow", 36.0, parallel=False),
            raw("fast"),
            raw("written", 27.0, policy="transformers"),
            raw("served", 5.0, **served),
            raw("ahead", 4.0, schedule="ahead"),
            raw("early", 5.5, schedule="early"),
            raw("own", 20.0, **served | QWEN | {"reward": "qwen_transformers", "gpus": 3}),
            raw("vllm", 10.0, **served | QWEN | {"reward": "qwen_vllm", "gpus": 3}),
            raw("qwen", 9.0, **served | QWEN | {"gpus": 3}),
            raw("halves", 3.0, **served | {"trainers": 2, "gpus": 3}),
        ]
        rows = [r | {"recipe": eager} for r in rows]
        found = study_contrasts(table(*rows, raw("compiled", 5.8, recipe=compiled)))
        named = zip(found["change"], found["setting"], found["setting_against"], strict=True)
        assert list(named) == [
            (CHANGES[0][0], "served", "written"), (CHANGES[1][0], "fast", "written"),
            (CHANGES[2][0], "vllm", "own"), (CHANGES[3][0], "fast", "slow"),
            (CHANGES[4][0], "served", "fast"), (CHANGES[5][0], "qwen", "vllm"),
            (CHANGES[7][0], "early", "fast"), (CHANGES[8][0], "ahead", "fast"),
            (CHANGES[9][0], "ahead", "early"), (CHANGES[10][0], "halves", "served"),
            (CHANGES[11][0], "compiled", "fast"),
        ]  # fmt: skip
        told = text_of(contrast_table(found, "Each."))
        assert "0.17 [0.17, 0.18]" in told and "TRL&#39;s order" in told
        figure = contrast_figure(found)
        assert "Asked in parallel, not one by one: a step is 5.7 times as" in figure.get_suptitle()
        (axes,) = figure.axes
        assert len(axes.get_yticklabels()) == len(set(found["change"]))
        assert sum(text.get_text().startswith("5.71 [") for text in axes.texts) == 1
        slower = found.assign(ratio=1.2, ratio_low=0.9, ratio_high=1.5)
        said = "No change makes a step faster beyond the quartiles of both"
        assert contrast_figure(slower).get_suptitle() == said

    @pytest.mark.parametrize(
        "other", [{"recipe": {"per_device_train_batch_size": 4}},
                  {"recipe": {"gradient_checkpointing": True}},
                  {"recipe": {"torch_compile": True}}, {"models": {"page_tokens": 640}}],
    )  # fmt: skip
    def test_none_where_something_else_differs_as_well(self, other):
        slow, fast = raw("slow", 36.0, parallel=False), raw("fast")
        assert len(one_by_one(table(slow, fast))) == 1
        assert one_by_one(table(slow | other, fast)).empty

    def test_the_gain_of_vllm_over_the_latency(self):
        # S+G+T 4.2 with vLLM, 25.4 + R with Transformers: below double from R = 17 s on
        rows = table(raw("served", 6.2, policy="server", gpus=2),
                     raw("written", 27.4, policy="transformers"))  # fmt: skip
        told = vllm_findings(rows)
        assert "**4.42 [" in told and "Asked one by one, 1.59 times at the same latency" in told
        for how, latency in (("parallel", "17.1"), ("one by one", "1.1")):
            assert re.search(f"{how}, .* less than double from {latency} s a completion", told)
        slow = raw("written", 500.0, policy="transformers")
        assert "double at no latency up to 120 s" in vllm_findings(table(slow, raw("served", 6.2)))


def test_a_timeline_is_laid_out_from_what_the_rows_say():
    waits = PHASES | {"reward": 0.3, "old log-probabilities": 0.0}  # 3.7 s in all
    own = {"engine_s": 1.4, "judge_s": 0.5}
    lines = [
        raw("stock", **own),
        raw("ahead", 3.7, schedule="ahead", phases=waits, background={"reward": 2.0}, **own),
        raw("less", 4.0, schedule="ahead", phases=waits, recipe={"top_p": 0.9}, **own),
    ]
    figure = timeline_figure(pooled(table(*lines)))
    (axes,) = figure.axes
    bars = [[], [], [], []]
    for patch in axes.patches:
        if patch.get_width():
            bars[round(patch.get_y() + 0.375)].append((patch.get_x(), patch.get_width()))
    ends = [max(left + width for left, width in row) for row in bars]
    # TRL's order: 6.3 s; its rewards wait for what is before them, 0.05 + 0.2 + 2.0 + 0.8
    assert ends == pytest.approx([6.3, 3.05 + 2.1, 7.4, 7.4])
    assert bars[1] == [pytest.approx(bar) for bar in [(3.05, 1.4), (4.45, 0.5), (4.95, 0.2)]]
    # Written at 2.25 of each step, rewards of 2 s go on into the next one, 0.55 s of it.
    beside = [(0, 0.45), (0.45, 0.1), (2.25, 1.4), (3.65, 0.5), (4.15, 0.1), (5.95, 1.4)]
    assert bars[3] == [pytest.approx(bar) for bar in [*beside, (7.35, 0.05)]]
    assert "1.7 of 2.0 s of rewards run beside the trainer: 3.7 s a step, not 6.3 s" in (
        " ".join(figure.get_suptitle().split())
    )
    alone = pooled(table(raw("stock"), raw("ahead", 3.7, schedule="ahead", policy="server")))
    assert timeline_figure(alone) is None


def test_only_like_is_pooled():
    other = [
        raw(prompt_tokens=4096.0),
        raw(simulated=["Gemini: lognormal:1,0.4 s a call"]),
        raw(models={"policy": "Qwen/Qwen3-4B"}),
        raw(recipe={"per_device_train_batch_size": 4}),
    ]
    assert len(pooled(table(raw(), *other))) == 5
    assert len(pooled(table(raw(), raw(repeat=1)))) == 1


def test_what_ran_out_of_memory_stays_a_row_of_its_own_recipe():
    lost = broken("s", "out of memory", recipe={"per_device_train_batch_size": 16})
    found = pooled(table(raw(), lost))
    assert (list(found["measured"]), list(found["lost"])) == ([True, False], [0, 1])
    longer = broken("s", "out of memory", new_tokens=4096)
    assert list(pooled(table(raw(), longer))["lost"]) == [0, 1]
    assert list(pooled(table(raw(), broken("s", "failed")))["lost"]) == [1]


def test_only_one_thing_differs_in_a_contrast():
    tuned, asleep = {"torch_compile": True}, {"vllm_enable_sleep_mode": True}
    stock, fused = raw("stock", 6.0), raw("fused", 5.0, schedule="fused", recipe=tuned)
    assert study_contrasts(table(stock, fused)).empty
    found = study_contrasts(table(stock, raw("tuned", 5.2, recipe=tuned), fused))
    assert ("fused", "tuned") in pairs(found) and ("fused", "stock") not in pairs(found)
    slow = raw("one_by_one", 36.5, parallel=False)
    assert study_contrasts(table(slow, raw("early", 5.5, schedule="early"))).empty
    none = [raw("none", 2.0, reward="negative_length"),
            raw("none_asleep", 4.0, reward="negative_length", recipe=asleep)]  # fmt: skip
    found = against_no_latency(table(raw("asleep", 6.0, recipe=asleep), *none))
    assert pairs(found) == [("asleep", "none_asleep")]


def test_the_real_service_keeps_its_measured_time():
    real = row("real", 5.5, schedule="early", reward_latency_s=None, engine_s=1.5, judge_s=0.5)
    assert [predicted_step(real, at) for at in (0.0, 2.0, 20.0)] == [5.5] * 3


def covered(row):
    """The share of the main thread's phases in a step."""
    return sum(row.phases.values()) / row.typical_s


def test_one_step_ahead_a_step_is_the_mean_of_long_and_short_ones():
    known = raw("t", 4.7, schedule="ahead", step_s_all=[6.9, 2.4, 9.5, 2.4])
    (found,) = table(known).itertuples()
    assert found.step_s == found.typical_s == pytest.approx(5.3)
    assert found.took.startswith("5.30 [")


def test_the_engine_s_work_one_step_ahead_is_that_of_the_same_row_in_order():
    """Two batches are at the engine at once, and the time of each holds the other's."""
    same = {"reward": "qwen_server", "reward_latency_s": None, "gpus": 2, "gpus_wanted": 2,
            "policy": "colocate", "judge_s": 0.0}  # fmt: skip
    stock = raw("stock", 8.0, engine_s=5.4, **same)
    ahead = raw("ahead", 5.5, schedule="ahead", engine_s=7.6, **same)
    assert bounds(table(ahead)).own.item() == pytest.approx(7.6)
    assert bounds(table(stock, ahead)).own.iloc[1] == pytest.approx(5.4)


def test_means_are_held_against_means_and_medians_against_medians():
    uneven = row("s", 2.0, step_s_all=[2.0, 2.0, 2.0, 8.0], reward="negative_length",
                 reward_latency_s=None, phases={"generation": 3.0, "backward": 0.5})  # fmt: skip
    assert covered(uneven) == pytest.approx(1.0)  # of an earlier harness: mean phases, mean step
    known = raw("t", 2.0, step_s_all=[2.0, 2.0, 2.0, 8.0], phases={"generation": 2.0},
                phases_all={"generation": [2.0, 2.0, 2.0, 8.0]})  # fmt: skip
    (found,) = table(known).itertuples()
    assert covered(found) == pytest.approx(1.0)  # medians against medians
    again = raw("t", 3.0, repeat=1, step_s_all=[3.0], phases={"generation": 3.0},
                phases_all={"generation": [3.0]})  # fmt: skip
    (both,) = pooled(table(known, again)).itertuples()
    assert both.phases == {"generation": 2.0} and len(both.phases_all["generation"]) == 5


def test_contrasts_worked_by_hand():
    results = pooled(table(*study()))
    (slow,) = one_by_one(results).itertuples()
    assert (slow.setting, slow.setting_against) == ("one_by_one", "stock")
    assert slow.ratio == pytest.approx(36.5 / 6.25, rel=0.01)
    assert slow.ratio_low < slow.ratio < slow.ratio_high
    found = against_no_latency(results).set_index("setting")
    free, ratio = found["setting_against"], found["ratio"]
    assert (free["ahead_64"], free["stock_64"]) == ("none_ahead_64", "none_64")
    assert ratio["ahead_64"] == pytest.approx(12.6 / 12.4)
    assert ratio["stock_64"] == pytest.approx(18.0 / 12.5)
    assert "early" not in free  # without an early or fused one that waits for nothing
    changes = study_contrasts(results)
    assert dict(pairs(changes[changes["change"].str.endswith("TRL's order")])) == {
        "early": "stock", "ahead": "stock", "none_ahead": "none",
        "ahead_64": "stock_64", "none_ahead_64": "none_64",
    }  # fmt: skip
    found = ablation(results, ["none", "none_ahead", "absent", "none_64"])
    assert pairs(found) == [
        ("none", "none"), ("none_ahead", "none"), ("none_64", "none_64"),
    ]  # fmt: skip


def test_early_is_held_against_fused_where_nothing_can_begin_early():
    free = {"reward": "negative_length", "group": "other"}
    rows = [raw("early", 5.5, schedule="early"), raw("fused", 4.0, schedule="fused", **free)]
    assert pairs(against_no_latency(table(*rows))) == [("early", "fused")]
    slow = raw("free_early", 4.1, schedule="early", **free)
    assert pairs(against_no_latency(table(*rows, slow))) == [("early", "free_early")]


def test_compared_shows_the_fastest_and_the_slowest():
    rows = [raw(str(i), 1.0 + i) for i in range(20)]
    assert list(compared(table(*rows), 4)["setting"]) == ["0", "1", "2", "19"]


class TestRows:
    def test_a_torn_line_is_left_out_with_a_warning(self, tmp_path, caplog):
        lines = [json.dumps(raw()), "", '{"setting": "torn", "sta', json.dumps(raw(status="odd"))]
        (tmp_path / "rows.jsonl").write_text("\n".join(lines))
        (tmp_path / "other.txt").write_text("no rows")
        with caplog.at_level(logging.WARNING):
            assert list(read_rows([tmp_path])["setting"]) == ["s"]
        assert "rows.jsonl, line 3 left out" in caplog.text
        assert "line 4 left out: status" in caplog.text

    def test_unknown_fields_do_no_harm_and_missing_ones_are_empty(self, tmp_path):
        lines = ['{"setting": "a", "status": "failed", "colour": 3}', json.dumps(raw())]
        (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
        rows = read_rows([tmp_path, tmp_path])  # twice the same folder: once each
        assert rows["step_s"].isna()[0] and list(rows["measured"]) == [False, True]
        assert list(unmeasured(pooled(rows[:1]), {})["status"]) == ["failed"]


def text_of(table):
    return re.sub(r"<[^>]+>", " ", table.to_html())


class TestShown:
    results = pooled(table(*study()))
    options = CapacityOptions()

    def test_every_planned_setting_is_a_row(self):
        planned = recorded_settings("study")
        columns = "setting group gpus_wanted status reason"
        missing = text_of(laid_out(unmeasured(self.results, planned), columns, ""))
        text = text_of(step_table(self.results)) + missing
        assert all(name.replace("_", " ") in text for name in planned)
        assert "no row was recorded" in missing
        assert "needs 3 GPUs, &lt;2&gt; are here" in text  # escaped
        assert "6.25 [" in text and "3 x 2" in text and "SIMULATED" in text

    def test_a_slide_has_few_rows(self):
        many = pooled(table(*(raw(f"s{i}", 5.0 + i) for i in range(30))))
        for columns in (STEP, BOUND):
            shown = step_table(many, columns, SLIDE_ROWS)
            assert shown.to_html().count("<tr>") == SLIDE_ROWS + 1
        plans = plan(planned_work(many), self.options)
        assert plan_table(plans, many, self.options).to_html().count("<tr>") == SLIDE_ROWS + 1

    def test_words_name_n_spread_hardware_and_what_was_simulated(self):
        free = text_of(contrast_table(against_no_latency(self.results), ""))
        assert "1.02 [" in free  # 12.6 / 12.4, the latency hidden
        for text in (step_findings(self.results), free):
            assert re.search("n =? ", text) and "NVIDIA H200" in text and "SIMULATED" in text
        assert "Fastest on policy: **none**, 4.25 [" in step_findings(self.results)
        rows = planned_work(self.results)
        assert "**One urgent experiment**: ahead" in told_of(rows, self.options)
        shown = plan_table(plan(rows, self.options), rows, self.options)
        assert "4,000,000 tokens a minute" in text_of(shown)

    def test_tables_of_nothing_say_so(self):
        nothing = pooled(table(broken("a"), broken("b", "failed")))
        empty = table()
        contrasts = contrast_table(one_by_one(nothing), "x")
        plans = plan_table(plan(nothing, self.options), nothing, self.options)
        ablated = contrast_table(ablation(nothing, ["a"]), "x")
        for shown in (step_table(nothing), contrasts, ablated, plans, sitting_table(empty)):
            assert "none was measured" in shown.to_html()
        assert "nothing to plan" in told_of(empty, self.options)
        assert "Nothing was measured" in step_findings(empty)
        assert "No two settings differ in vLLM alone" in vllm_findings(empty)

    @pytest.mark.parametrize(
        "results", [results, table(), pooled(table(broken("a")))], ids=["all", "none", "failed"]
    )
    def test_figures_are_drawn_of_what_was_measured_alone(self, results):
        figures = (contrast_figure(study_contrasts(results)), timeline_figure(results),
                   step_figure(results), step_figure(results, 1), gpu_figure(results))  # fmt: skip
        drawn = [f for f in figures if f and f.get_suptitle() and f.get_supxlabel()]
        assert len(drawn) == 5 * (results is self.results)
        if results is self.results:
            assert "ahead is fastest" in step_figure(results[3:4]).get_suptitle()
            apart = step_figure(results.assign(low=results["step_s"], high=results["step_s"]))
            tied = step_figure(results.assign(low=0.0, high=1e6))
            titles = [" ".join(figure.get_suptitle().split()) for figure in (apart, tied)]
            assert "is fastest" in titles[0] and "has the lowest median" in titles[1]

    def test_the_headline_is_plain_json(self):
        plans, planned = plan(planned_work(self.results), self.options), recorded_settings("study")
        missing = unmeasured(self.results, planned)
        head = efficiency_headline(self.results, plans, missing, study_contrasts(self.results))
        read = json.loads(json.dumps(head, allow_nan=False))
        steps, lost = read["seconds per step, median [quartiles]"], read["settings not measured"]
        fastest = read["fastest"]
        assert fastest["setting"] == "ahead" and fastest["instead of"] == "stock"
        ahead, stock = (steps[f"{name}, {fastest['work']}"]["mean"] for name in ("ahead", "stock"))
        assert fastest["share of the time"]["mean"] == pytest.approx(ahead / stock)
        assert read["urgent"] == "ahead" and len(steps) == self.results["measured"].sum()
        assert lost == len(missing) > len(planned) - len(self.results)


@pytest.mark.parametrize("variant", ["study", "ablation", "smoke"])
def test_shipped_settings_are_measured_with_whole_groups(variant):
    params = read_parameters(NB01, variant)[2]
    assert isinstance(params, EfficiencyParams) and params.chosen
    for setting in params.settings.values():
        assert (setting.completions or params.work.completions) % 8 == 0


def test_the_study_has_the_issues_groups():
    settings = recorded_settings("study")
    groups = {setting.group for setting in settings.values()}
    assert {"without vLLM", "with vLLM", "beyond", "hidden", "one GPU"} <= groups
    assert {s.gpus_wanted for s in settings.values()} == {1, 2, 3, 4}


def test_the_notebook_renders_recorded_rows_without_a_gpu(tmp_path):
    recorded = tmp_path / "recorded"
    recorded.mkdir()
    lines = [json.dumps(line) for line in study()]
    (recorded / "h200.jsonl").write_text("\n".join([*lines, '{"torn']))
    done = run_notebook(
        NB01, "default", tmp_path / "out", ("recorded", json.dumps([str(recorded)]))
    )
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "out", NB01)
    assert run.manifest["status"] == "finished" and "H200" in run.manifest["provenance"]
    assert run.manifest["headline"]["urgent"] == "ahead"
    for name in ("contrasts", "steps", "steps_second_size", "timeline", "gpu_seconds"):
        assert (run.folder / "figures" / f"{name}.png").is_file()
    report = (run.folder / "report.html").read_text()
    assert "line 15 left out" in report and "no row was recorded" in report
    slides = (run.folder / "slides.html").read_text()
    latency, changes = "over without an engine.", "Over the first row of a size."
    assert latency in report and latency not in slides  # there, its figure stands for it
    assert changes in report and changes in slides
    assert "stock" in done.stderr and "per step" in done.stderr


RECORDED = [PROJECT / "outputs/reference/01_efficiency"]


class TestRecordedRows:
    """What is shipped: does it hold, and is what is quoted of it what it says?"""

    rows = read_rows(RECORDED)
    present = rows[rows["startup_s"].notna()]  # of the present harness

    @property
    def found(self):
        return {row.setting: row for row in pooled(self.present).itertuples()}

    def test_every_step_time_of_the_readme_is_a_recorded_one(self):
        section = (PROJECT / "README.md").read_text().partition("## How fast is a step?")[2]
        section = section.partition("\n## ")[0]
        quoted = re.findall(
            r"\| `(\w+)` \| ([\d.]+) \[([\d.]+), ([\d.]+)\] \| (\d+) steps", section
        )
        assert len(quoted) == 5
        told = {  # a setting may be of several sittings
            (r.setting, *(f"{s:.2f}" for s in (r.step_s, *r.step_s_spread)), str(r.steps))
            for r in pooled(self.present)[lambda rows: rows["measured"]].itertuples()
        }
        assert set(quoted) <= told
        rest = re.sub(r"\| `\w+` \|.*", "", section)
        assert not re.search(r"\d+\.\d+ s\b", rest), "a step time that nothing recomputes"

    def test_the_docstring_of_compilation_quotes_recorded_phases(self):
        text = " ".join((compile_layers.__doc__ or "").split())
        quoted = re.findall(r"([\d.]+) s instead of ([\d.]+) s", text)
        rows = (
            self.found["server_gemini_parallel"],
            self.found["server_gemini_parallel_not_compiled"],
        )
        told = [tuple(f"{row.phases[phase]:.2f}" for row in rows)
                for phase in ("loss forward", "backward")]  # fmt: skip
        assert quoted == told

    def test_phases_of_fixed_synchronous_rows_add_up_to_the_step(self):
        fixed = self.rows["measured"] & ~self.rows["natural_lengths"]
        checked = self.rows[fixed & self.rows["schedule"].isin(["stock", "fused"])]
        assert len(checked) >= 20
        for row in checked.itertuples():
            uneven = row.setting == "graphs_of_every_size"  # 0.6 s of one step lie in no phase
            if row.phases_all:
                steps = np.sum(list(row.phases_all.values()), axis=0)
                assert (~np.isclose(steps, row.step_s_all, rtol=0.01)).sum() == uneven
            if not row.reward.startswith("qwen"):  # whose time differs from step to step
                assert abs(covered(row) - 1) < (0.06 if uneven else 0.02)

    def test_the_reference_of_each_sitting_agrees_with_itself(self):
        drift = sittings(self.rows)["drift"].dropna().abs()
        assert [round(d, 3) for d in sorted(drift)] == [
            0.004,
            0.016,
            0.033,
            0.052,
            0.053,
            0.117,
        ]  # three by more than wished for

    def test_rows_of_the_present_harness_say_what_they_were_measured_with(self):
        for r in self.present[self.present["measured"]].itertuples():
            assert r.versions and r.step_s_spread and r.phases_all and r.steps >= 2
            assert {"per_device_train_batch_size", "gradient_checkpointing"} <= set(r.recipe)
            assert pd.notna(r.logp_difference) == (r.policy != "transformers")
            assert r.steps >= 4 or r.step_s > 25
            if r.reward == "gemini":
                tokens_in, tokens_out = r.tokens_a_call["engine"]
                assert tokens_in > 5 * 1300 and 350 < tokens_out < 500
                assert r.tokens_per_1000 > 1000 * tokens_in


def test_the_log_of_measurements_says_what_the_rows_say():
    folder = PROJECT / "outputs" / "reference"
    said, files = (folder / "README.md").read_text(), set()
    for entry in re.findall(r"^- .*$", said, re.MULTILINE):
        rows = []
        for name in re.findall(r"`(h200_\w+)`", entry):
            path = folder / "01_efficiency" / f"{name}.jsonl"
            files.add(path)
            rows += [Row.model_validate_json(line).model_dump() for line in path.open()]
        told = {(row.setting, f"{row.step_s:.2f}") for row in each(table_of(rows))}
        found = set(re.findall(r"`([a-z]\w+)`,? (?:takes |)([\d.]+) s", entry))
        assert found <= told, found - told
        assert rows or not found
    assert files == set((folder / "01_efficiency").glob("*.jsonl"))
    record = json.loads((PROJECT / "geo_utils" / "data" / "record" / "record.json").read_text())
    assert f"{record['answers']:,} answers of {record['models'][0]}" in said


def test_the_log_s_table_of_drafts_says_what_the_lines_say():
    folder = PROJECT / "outputs" / "reference"
    lines = pd.read_json(folder / "drafts.jsonl", lines=True, dtype={"sitting": str})
    spent = lines.groupby(["sitting", "model", "completions", "kind", "turn"])[
        ["seconds", "tokens"]
    ]
    spent = spent.sum()
    told = (1000 * spent["seconds"] / spent["tokens"]).map("{:.3f}".format).to_dict()
    head, *rows = re.findall(r"^\| ([^-].*) \|$", (folder / "README.md").read_text(), re.MULTILINE)
    _, *kinds = head.split(" | ")
    cells = 0
    for label, *shown in (re.split(r" *\| *", row) for row in rows):
        short, size, *nth = label.split(", ")
        model = f"Qwen2.5-Coder-{short}-Instruct"
        sitting = sorted({s for s, m, *_ in told if m == model})[
            ["again", "third"].index(*nth) + 1 if nth else 0
        ]
        for place, (kind, cell) in enumerate(zip(kinds, shown, strict=True)):
            turn = int(place == len(kinds) - 1)  # the reference, last
            assert told.get((sitting, model, int(size), kind, turn), "") == cell, (label, kind)
            cells += cell != ""
    assert cells == len(told)
