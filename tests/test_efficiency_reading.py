"""Reading measured steps: bounds, capacity, contrasts, tables and figures, and notebook 01."""

import json
import logging
import math
import re

import pytest
from conftest import PROJECT
from hypothesis import given
from hypothesis import strategies as st
from test_headless import only_run, run_notebook

from geo_utils.efficiency.bounds import all_bounds, bounds, parts, predicted_step
from geo_utils.efficiency.capacity import (
    changes,
    limits_for,
    over_latency,
    over_limits,
    plan,
    plan_setting,
    planned_work,
    rewarded,
    sweep,
    urgent,
)
from geo_utils.efficiency.contrasts import (
    CHANGES,
    ablation,
    against_no_latency,
    against_stock,
    agreement,
    one_by_one,
    study_contrasts,
)
from geo_utils.efficiency.measurements import Measurement, read_rows, recorded_settings
from geo_utils.efficiency.params import CapacityOptions, EfficiencyParams
from geo_utils.efficiency.plots import (
    contrast_figure,
    gpu_figure,
    latency_figure,
    sensitivity_figure,
    step_figure,
    vllm_gain_figure,
)
from geo_utils.efficiency.pooling import compared, pooled, unmeasured
from geo_utils.efficiency.sittings import placed, sittings
from geo_utils.efficiency.tables import (
    SLIDE_ROWS,
    bound_table,
    contrast_table,
    missing_table,
    plan_table,
    repeat_table,
    sitting_table,
    step_table,
)
from geo_utils.efficiency.words import (
    count_findings,
    efficiency_headline,
    latency_findings,
    plan_findings,
    schedule_findings,
    step_findings,
    study_findings,
    vllm_gain_findings,
)
from geo_utils.notebooks import read_parameters
from geo_utils.parameter_errors import ParameterError
from geo_utils.training import compilation
from geo_utils.training.trl_fields import field_names

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
        "repeat": 0, "hardware": "NVIDIA H200 x 2", "gpus": 1, "gpus_wanted": 1, "shared": False,
        "completions": 16, "new_tokens": 512.0, "reward_latency_s": 2.0, "on_policy": True,
        "warmup_steps": 2, "steps": 3, "step_s": seconds,
        "step_s_all": [seconds * 0.99, seconds, seconds * 1.01],
        "step_s_spread": [seconds * 0.995, seconds * 1.005], "phases": PHASES,
        "gpu_seconds_per_sample": seconds * (changes.get("gpus") or 1) / 16,
        "samples_per_s": 16 / seconds, "peak_memory_gib": [60.0, 20.5],
        "simulated": ["Gemini: constant 1 s a call"], "apart": True,
        "calls_per_1000": 2000.0, "tokens_per_1000": 7e6, "sitting": "monday",
    }  # fmt: skip
    row |= changes
    row["on_policy"] = row["schedule"] != "ahead"
    return row


def row(*args, **changes):
    return Measurement.model_validate_json(json.dumps(raw(*args, **changes)))


def broken(setting, status="not run", **changes):
    gone = {"step_s": None, "step_s_all": None, "step_s_spread": None, "phases": None,
            "peak_memory_gib": None, "gpu_seconds_per_sample": None, "simulated": []}  # fmt: skip
    return row(setting, status=status, reason="needs 3 GPUs, <2> are here", **(gone | changes))


def study():
    """A little of everything, with two repeats of one setting and two amounts of work."""
    many = {"completions": 64, "reward_latency_s": 5.0}
    return [
        row("stock"), row("stock", 6.2, repeat=1),
        row("one_by_one", 36.5, parallel=False, phases=PHASES | {"reward": 32.3}),
        row("early", 5.5, schedule="early"),
        row("ahead", 4.3, schedule="ahead", phases=PHASES | {"reward": 0.01}),
        row("none", 4.25, reward="negative_length", reward_latency_s=None),
        row("none_ahead", 4.2, reward="negative_length", schedule="ahead"),
        row("qwen", 9.7, reward="qwen_server", gpus=2, engine_s=5.0, judge_s=0.5,
            reward_latency_s=None),
        broken("three", gpus=3, gpus_wanted=3),
        broken("memory", "out of memory"),
        row("stock_64", 18.0, **many), row("none_64", 12.5, reward="negative_length", **many),
        row("ahead_64", 12.6, schedule="ahead", **many),
        row("none_ahead_64", 12.4, schedule="ahead", reward="negative_length", **many),
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
    found = bounds(row(seconds=6.3, **changes))
    assert (found.synchronous, found.streaming, found.ahead) == pytest.approx(
        (synchronous, streaming, ahead)
    )
    hidden = changes.get("schedule") == "ahead"
    assert found.own == pytest.approx(ahead if hidden else synchronous)
    # over a bound that is the sum of the row's own phases, a ratio says nothing
    assert found.ratio == (pytest.approx(6.3 / ahead) if hidden else None)


def test_the_reward_over_its_floor_is_for_a_reward_that_is_waited_for():
    assert bounds(row()).reward_ratio == pytest.approx(2.1 / 2.0)
    slow = row(parallel=False, phases=PHASES | {"reward": 33.6})
    assert bounds(slow).reward_ratio == pytest.approx(33.6 / 32)
    assert bounds(row(schedule="early")).reward_ratio is None
    assert bounds(row(**QWEN)).reward_ratio is None


seconds_of = st.floats(0.0, 60.0)


@given(
    st.fixed_dictionaries({name: seconds_of for name in PHASES}), seconds_of,
    st.sampled_from(["colocate", "server", "transformers"]), st.integers(1, 3),
    st.sampled_from(["gemini", "qwen_server", "negative_length"]), st.booleans(),
)  # fmt: skip
def test_overlapping_more_never_bounds_higher(phases, latency, policy, gpus, reward, parallel):
    made = row(phases=phases, reward_latency_s=latency, policy=policy, gpus=gpus, reward=reward,
               parallel=parallel)  # fmt: skip
    found = all_bounds(parts(made), made)
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


def test_the_studys_numbers():
    """Two Gemini experiments under the API's limit, eight of three GPUs on 24.

    64 completions in 16 s are 240 rollouts a minute; at 7,000 tokens each, 4,000,000 tokens a
    minute carry 2.38 such experiments (4,000 requests a minute would carry 8.3).
    """
    options = CapacityOptions(gpus=24, requests_per_minute=4000, tokens_per_minute=4e6,
                              gpu_memory_gib=80, steps=500)  # fmt: skip
    gemini = plan_setting(row(seconds=16.0, completions=64, gpus=2), options)
    assert (gemini.at_once, gemini.binds, gemini.slowed) == (2, "tokens", False)
    assert gemini.hours == pytest.approx(500 * 16 / 3600)
    qwen = plan_setting(row(seconds=30.0, completions=64, policy="server", **QWEN | {"gpus": 3}),
                        options)  # fmt: skip
    assert (qwen.at_once, qwen.binds, qwen.cost) == (8, "GPUs", 0.0)
    assert qwen.sweep_hours == pytest.approx(3 * 500 * 30 / 3600)  # 24 in three rounds of eight
    assert qwen.per_day == pytest.approx(8 * 86400 / (500 * 30))
    few = options.model_copy(update={"requests_per_minute": 960.0, "tokens_per_minute": None})
    gemini = plan_setting(row(seconds=16.0, completions=64, gpus=2), few)
    assert (gemini.at_once, gemini.binds) == (2, "requests")  # 960 / (240 x 2), exactly
    found = limits_for(row(seconds=16.0, completions=64, gpus=2), 2)
    assert found["requests"] == pytest.approx((960, 1440))
    assert found["tokens"] == pytest.approx((2 * 240 * 7000, 3 * 240 * 7000))


def test_calls_and_tokens_are_those_that_the_row_sent():
    options = CapacityOptions(requests_per_minute=4000, tokens_per_minute=4e6)
    one = plan_setting(row(seconds=16.0, completions=64), options)
    more = row(seconds=16.0, completions=64, calls_per_1000=4000.0, tokens_per_1000=1e6)
    more = plan_setting(more, options)
    assert (one.at_once, one.binds) == (2, "tokens")
    assert (more.at_once, more.binds) == (4, "requests")  # 240 rollouts of 4 calls: 4.17


def test_a_row_that_does_not_say_what_it_sent_is_not_planned():
    old, new = row("old", tokens_per_1000=None), row("new")
    assert [p.setting for p in plan([old, new], CapacityOptions())] == ["new"]
    free = CapacityOptions(tokens_per_minute=None)
    assert [p.setting for p in plan([old, new], free)] == ["old", "new"]
    told = count_findings([old, new], {}, CapacityOptions())
    assert "Not planned, as their rows do not say what they sent: old." in told


def test_a_setting_that_needs_more_memory_than_a_gpu_has_is_not_recommended():
    large = row("large", 3.0, peak_memory_gib=[121.8], **QWEN | {"gpus": 1})
    fits = row("fits", 9.0, peak_memory_gib=[79.9], **QWEN | {"gpus": 2})
    plans = plan([large, fits], CapacityOptions(gpu_memory_gib=80.0))
    assert (plans[0].at_once, plans[0].binds) == (0, "memory") and plans[1].at_once == 12
    assert urgent(plans).setting == sweep(plans).setting == "fits"
    assert urgent(plan([large, fits], CapacityOptions(gpu_memory_gib=140.0))).setting == "large"
    # a vLLM server takes the share of a GPU that it is told to, whatever the GPU's size
    served = row("served", peak_memory_gib=[57.6, 137.1], policy="server", gpus=2)
    assert served.needed_gib == 57.6
    own = row("own", peak_memory_gib=[50.0, 97.0], **QWEN | {"reward": "qwen_transformers"})
    assert own.needed_gib == 97.0


def test_the_study_s_counts_follow_from_gpus_and_limits():
    served = row("server_gemini_parallel", 16.0, policy="server", gpus=2, completions=64)
    told = count_findings([served], recorded_settings("study"), CapacityOptions())
    assert "8 experiments of 3 GPUs fit on 24 GPUs: 24 / 3." in told
    assert "960 to 1,440 requests or 3,360,000 to 5,040,000 tokens a minute" in told


def test_limits_below_one_experiment_slow_it_down():
    # 16 completions in 6.4 s are 150 rollouts a minute, 300 requests; 150 are half of that
    options = CapacityOptions(requests_per_minute=150, tokens_per_minute=None, steps=100,
                              experiments=3, gpus=2)  # fmt: skip
    found = plan_setting(row(seconds=6.4), options)
    assert found.slowed and found.at_once == 1 and found.binds == "requests"
    assert found.step_s == pytest.approx(12.8)
    assert found.sweep_hours == pytest.approx(3 * 100 * 12.8 / 3600)  # two at once gain nothing
    assert found.per_day == pytest.approx(86400 / 1280)


def test_more_side_by_side_than_the_limit_carries_slow_each_other():
    # the limit carries 2.5 of them, 24 hold: four as three would take 2 rounds of 3/2.5
    options = CapacityOptions(requests_per_minute=750, tokens_per_minute=None, steps=100,
                              experiments=3)  # fmt: skip
    found = plan_setting(row(seconds=6.4), options)
    assert found.at_once == 2
    assert found.sweep_hours == pytest.approx(3 / 2.5 * 640 / 3600)  # one round of three


def test_a_setting_that_wants_more_gpus_than_there_are_does_not_fit():
    found = plan_setting(row(seconds=30.0, policy="server", **QWEN | {"gpus": 3}),
                         CapacityOptions(gpus=2))  # fmt: skip
    assert found.at_once == 0 and found.binds == "GPUs" and math.isinf(found.sweep_hours)
    assert urgent([found]) is None and sweep([found]) is None


def test_cost_and_budget():
    options = CapacityOptions(price_per_1000_rollouts=2.0, steps=100, experiments=10, budget=30.0)
    gemini, qwen = plan([row("g"), row("q", 20.0, **QWEN | {"gpus": 2})], options)
    assert gemini.cost == pytest.approx(2.0 * 16 * 100 / 1000) and gemini.affordable is False
    assert urgent([gemini, qwen]) is gemini and sweep([gemini, qwen]) is qwen
    unknown = plan_setting(row(), options.model_copy(update={"price_per_1000_rollouts": None}))
    assert unknown.cost is None and unknown.affordable is None
    measured = plan_setting(row(cost_per_1000=1.0), CapacityOptions(steps=100))
    assert measured.cost == pytest.approx(1.6) and measured.affordable is True


def test_of_settings_that_no_measurement_tells_apart_the_one_with_the_fewest_gpu_hours_is_chosen():
    # the tokens carry either sweep at the same pace, but for what rounds leave over
    options = CapacityOptions(requests_per_minute=None, tokens_per_minute=1e6, experiments=24)
    slow, fast = plan([row("slow", 6.3), row("fast", 3.0)], options)
    assert slow.sweep_hours == pytest.approx(fast.sweep_hours, rel=0.01)
    assert slow.step_gpu_s > fast.step_gpu_s and sweep([slow, fast]) is fast
    near, held = plan([row("near", 6.3), row("held", 6.2, gpus=2)], CapacityOptions())
    assert urgent([held, near]) is near  # 2 % slower, with half the GPUs


def test_a_reward_that_asks_nothing_is_never_chosen():
    assert [r.setting for r in rewarded(study()[4:8])] == ["ahead", "qwen"]


def test_a_row_that_hardly_asked_its_engine_is_named_and_not_chosen():
    # completions that hold no page cost no call: such a step is no step with an engine
    idle = row("idle", 4.2, engine_s=0.0, judge_s=0.0)
    busy = row("busy", 6.3, engine_s=1.0, judge_s=1.0)
    assert idle.unasked and not busy.unasked and not row().unasked
    assert rewarded([idle, busy]) == [busy]
    assert one_by_one([row("slow", 36.0, parallel=False), idle]) == []
    assert against_no_latency([idle, row("free", 4.2, reward="negative_length")]) == []
    assert "**Idle hardly asked its engine**: 0.00 s per step of a stated 2 s" in step_findings(
        [idle]
    )
    assert "hardly asked its engine" in text_of(step_table([idle, busy]))
    assert "hardly asked" not in text_of(step_table([busy])) + step_findings([busy])
    assert "25%" in text_of(step_table([row(abstained=0.25)]))


def test_where_the_winner_changes():
    # alone, Gemini takes 4.3 s more than its latency, Qwen 9.7 s: it changes beyond 5.4 s, and
    # by more than the 5 % that repeats may differ by: (l + 4.3) > 1.05 x 9.7 from l = 5.885 on
    rows = [row("g"), row("q", 9.7, **QWEN | {"gpus": 2})]
    free = CapacityOptions(requests_per_minute=None, tokens_per_minute=None)
    frame = over_latency(rows, free, [s / 10 for s in range(201)])
    assert changes(frame, "urgent") == [(0.0, "g"), (5.9, "q")]
    frame = over_limits(rows, CapacityOptions(experiments=24), [0.01, 0.1, 1, 10, 100])
    assert changes(frame, "sweep")[0] == (0.01, "q")
    assert changes(frame, "sweep")[-1][1] == "g"
    assert changes(over_latency([], free, [0.0]), "urgent") == []


def test_repeats_are_put_together():
    found = pooled([row(), row(seconds=6.5, repeat=1), broken("s", "failed", repeat=2)])
    (one,) = found
    assert (one.repeats, one.lost, one.steps, one.seconds) == (2, 1, 6, pytest.approx(6.4, abs=0.1))
    assert one.peak_memory_gib == (60.0, 20.5)
    # a row that was lost early knows little; one that was not run is no loss
    gone = broken("s", "timed out", new_tokens=None, completions=None, gpus=None)
    (one,) = pooled([gone, row(), broken("s")])
    assert (one.repeats, one.lost, one.gpus) == (1, 1, 1)
    apart = pooled([row(), row(completions=64), row(reward_latency_s=5.0), row(hardware="CPU")])
    assert len(apart) == 4  # other work, another latency, another machine
    (agreed,) = agreement([row(), row(seconds=6.3 * 1.04, repeat=1)])
    assert agreed.apart == pytest.approx(0.04)
    assert agreed.covered[0] == pytest.approx(sum(PHASES.values()) / 6.3)


def test_a_setting_that_was_measured_elsewhere_is_not_shown_as_not_run():
    found = pooled([broken("s", hardware="CPU"), row(), broken("t"), broken("u", "timed out")])
    assert [(r.setting, r.status) for r in found] == [
        ("s", "measured"), ("t", "not run"), ("u", "timed out"),
    ]  # fmt: skip


class TestSittings:
    """What was measured on one machine, in one process tree, with its reference first and last."""

    def sitting(self, name, first, last=None, **changes):
        at = {"sitting": name, "measured_at": f"2026-11-2{len(name)}T10:00:00"} | changes
        ends = [("first", first), ("last", last)]
        return [row("ref", s, reference=end, repeat=i, **at)
                for i, (end, s) in enumerate(ends) if s]  # fmt: skip

    def test_those_that_agree_on_the_reference_are_shown_together(self):
        rows = [*self.sitting("a", 4.0, 4.1), *self.sitting("bb", 4.1, 4.0),
                *self.sitting("ccc", 4.5, 4.4), row("x", sitting="dddd")]  # fmt: skip
        found = {s.name: s for s in sittings(rows)}
        assert {name: s.bench for name, s in found.items()} == {
            "a": "a", "bb": "a", "ccc": "ccc", "dddd": "dddd",
        }  # fmt: skip
        assert found["a"].drift == pytest.approx(0.025) and found["dddd"].drift is None
        together = pooled(placed(rows))
        assert [(r.setting, r.repeats) for r in together] == [("ref", 4), ("ref", 2), ("x", 1)]
        assert len(pooled(rows)) == 4  # for ratios, each sitting by itself
        told = text_of(sitting_table(rows))
        assert "+2.5%" in told and "shown with" in told

    def test_another_recipe_or_device_is_another_reference(self):
        rows = [*self.sitting("a", 4.0), *self.sitting("bb", 4.0, hardware="NVIDIA H100 x 2"),
                *self.sitting("ccc", 4.0, recipe={"torch_compile": True})]  # fmt: skip
        assert [s.bench for s in sittings(rows)] == ["a", "bb", "ccc"]

    def test_no_ratio_spans_two_sittings(self):
        stock, sleep = row("stock", 4.47, sitting="a"), row("sleep", 4.07, sitting="bb")
        again = row("stock", 3.83, sitting="bb")
        assert ablation([stock, sleep], ["stock", "sleep"])[0].result.setting == "stock"
        (_, found) = ablation([again, sleep], ["stock", "sleep"])
        assert found.ratio == pytest.approx(
            4.07 / 3.83
        )  # sleep mode costs time; pooled, it "gains"
        slow = row("slow", 36.0, parallel=False, sitting="a")
        assert not one_by_one([slow, row("fast", sitting="bb")])
        assert one_by_one([slow, row("fast", sitting="a")])

    def test_a_file_of_an_earlier_harness_is_one_sitting(self, tmp_path):
        for name in ("one", "two"):
            made = {k: v for k, v in raw(name).items() if k not in ("sitting", "apart")}
            (tmp_path / f"{name}.jsonl").write_text(json.dumps(made) + "\n")
        assert [r.sitting for r in read_rows([tmp_path])] == ["one", "two"]
        early = Measurement.model_validate({"setting": "s", "status": "measured",
                                            "reward": "gemini", "schedule": "early"})  # fmt: skip
        assert early.apart is True  # that harness asked apart under early and ahead alone


class TestChanges:
    def test_each_is_found_where_one_thing_differs(self):
        served = {"policy": "server", "gpus": 2}
        rows = [
            row("slow", 36.0, parallel=False),
            row("fast"),
            row("written", 27.0, policy="transformers"),
            row("served", 5.0, **served),
            row("ahead", 4.0, schedule="ahead"),
            row("early", 5.5, schedule="early"),
            row("inside", 4.4, schedule="ahead", apart=False),
            row("own", 20.0, **served | QWEN | {"reward": "qwen_transformers", "gpus": 3}),
            row("vllm", 10.0, **served | QWEN | {"reward": "qwen_vllm", "gpus": 3}),
            row("qwen", 9.0, **served | QWEN | {"gpus": 3}),
        ]
        eager, compiled = {"torch_compile": False}, {"torch_compile": True}
        held = {"micro_batch": 8, "checkpointing": False}
        rows = [r.model_copy(update={"compiled": False, "recipe": eager} | held) for r in rows]
        rows.append(row("compiled", 5.8, compiled=True, recipe=compiled, **held))
        found = [(name, c.result.setting, c.against.setting) for name, c in study_contrasts(rows)]
        assert found == [
            (CHANGES[0].name, "served", "written"), (CHANGES[1].name, "fast", "written"),
            (CHANGES[2].name, "vllm", "own"), (CHANGES[3].name, "fast", "slow"),
            (CHANGES[4].name, "served", "fast"), (CHANGES[5].name, "qwen", "vllm"),
            (CHANGES[6].name, "ahead", "fast"), (CHANGES[7].name, "ahead", "early"),
            (CHANGES[8].name, "ahead", "inside"), (CHANGES[9].name, "compiled", "fast"),
        ]  # fmt: skip
        told = study_findings(rows)
        assert "**5.71 [" in told and "times as fast** (fast 6.30" in told
        assert "client apart" in told.lower()

    @pytest.mark.parametrize(
        "other", [{"apart": False}, {"micro_batch": 4}, {"checkpointing": True},
                  {"compiled": True}, {"shared": True}, {"models": {"page_tokens": 640}}],
    )  # fmt: skip
    def test_none_where_something_else_differs_as_well(self, other):
        held = {"micro_batch": 8, "checkpointing": False, "compiled": False}
        slow = row("slow", 36.0, parallel=False, **held | other)
        assert not one_by_one([slow, row("fast", **held)])

    def test_the_gain_of_vllm_over_the_latency(self):
        # S+G+T 4.2 with vLLM, 25.4 + R with Transformers: below double from R = 17 s on
        rows = [row("served", 6.2, policy="server", gpus=2),
                row("written", 27.4, policy="transformers")]  # fmt: skip
        told = vllm_gain_findings(rows)
        assert "**4.4 [" in told and "asked one by one at the same latency" in told.lower()
        assert "from 17.1 s a completion where they are asked in parallel or 1.1 s" in told
        assert "vLLM makes a step 4.4 times as fast" in vllm_gain_figure(rows).get_suptitle()


def test_only_like_is_pooled():
    other = [
        row(prompt_tokens=4096.0),
        row(simulated=["Gemini: lognormal:1,0.4 s a call"]),
        row(models={"policy": "Qwen/Qwen3-4B"}),
        row(recipe={"per_device_train_batch_size": 4}),
    ]
    assert len(pooled([row(), *other])) == 5
    assert len(pooled([row(), row(repeat=1)])) == 1


def test_what_ran_out_of_memory_stays_a_row_of_its_own_recipe():
    lost = broken("s", "out of memory", recipe={"per_device_train_batch_size": 16})
    found = pooled([row(), lost])
    assert [(r.measured, r.lost) for r in found] == [(True, 0), (False, 1)]
    longer = broken("s", "out of memory", new_tokens=4096)
    assert [r.lost for r in pooled([row(), longer])] == [0, 1]
    assert [r.lost for r in pooled([row(), broken("s", "failed")])] == [1]


def test_only_one_thing_differs_in_a_contrast():
    tuned, asleep = {"torch_compile": True}, {"vllm_enable_sleep_mode": True}
    stock, fused = row("stock", 6.0), row("fused", 5.0, schedule="fused", recipe=tuned)
    assert not against_stock([stock, fused])
    (found,) = against_stock([stock, row("tuned", 5.2, recipe=tuned), fused])
    assert found.against.setting == "tuned"
    slow = row("one_by_one", 36.5, parallel=False)
    assert not against_stock([slow, row("early", 5.5, schedule="early")])
    none = [row("none", 2.0, reward="negative_length"),
            row("none_asleep", 4.0, reward="negative_length", recipe=asleep)]  # fmt: skip
    (found,) = against_no_latency([row("asleep", 6.0, recipe=asleep), *none])
    assert found.against.setting == "none_asleep"


def test_the_real_service_keeps_its_measured_time():
    real = row("real", 5.5, schedule="early", reward_latency_s=None, engine_s=1.5, judge_s=0.5)
    assert [predicted_step(real, at) for at in (0.0, 2.0, 20.0)] == [5.5] * 3


def test_means_are_held_against_means_and_medians_against_medians():
    uneven = row("s", 2.0, step_s_all=[2.0, 2.0, 2.0, 8.0], reward="negative_length",
                 reward_latency_s=None, phases={"generation": 3.0, "backward": 0.5})  # fmt: skip
    (found,) = agreement([uneven])  # a row of an earlier harness: mean phases, mean step
    assert found.covered == (pytest.approx(1.0),)
    known = row("t", 2.0, step_s_all=[2.0, 2.0, 2.0, 8.0], phases={"generation": 2.0},
                phases_all={"generation": [2.0, 2.0, 2.0, 8.0]})  # fmt: skip
    (found,) = agreement([known])
    assert found.covered == (pytest.approx(1.0),)  # medians against medians
    both = pooled([known, row("t", 3.0, repeat=1, step_s_all=[3.0], phases={"generation": 3.0},
                              phases_all={"generation": [3.0]})])[0]  # fmt: skip
    assert both.phases == {"generation": 2.0} and len(both.phases_all["generation"]) == 5


def test_contrasts_worked_by_hand():
    results = pooled(study())
    (slow,) = one_by_one(results)
    assert (slow.result.setting, slow.against.setting) == ("one_by_one", "stock")
    assert slow.ratio == pytest.approx(36.5 / 6.25, rel=0.01) and slow.low < slow.ratio < slow.high
    free = {c.result.setting: (c.against.setting, c.ratio) for c in against_no_latency(results)}
    assert free["ahead_64"] == ("none_ahead_64", pytest.approx(12.6 / 12.4))
    assert free["stock_64"] == ("none_64", pytest.approx(18.0 / 12.5))
    assert "early" not in free  # without an early or fused one that waits for nothing
    stock = {c.result.setting: c.against.setting for c in against_stock(results)}
    assert stock == {"early": "stock", "ahead": "stock", "none_ahead": "none",
                     "ahead_64": "stock_64", "none_ahead_64": "none_64"}  # fmt: skip
    changed = ablation(results, ["none", "none_ahead", "absent", "none_64"])
    assert [(c.result.setting, c.against.setting) for c in changed] == [
        ("none", "none"), ("none_ahead", "none"), ("none_64", "none_64"),
    ]  # fmt: skip


def test_compared_shows_the_fastest_and_the_slowest():
    rows = [row(str(i), 1.0 + i) for i in range(20)]
    rows += [row(f"a{i}", 0.5 + i / 100, group="ablation") for i in range(5)]
    shown = [r.setting for r in compared(rows, 4)]
    assert shown == ["a0", "0", "1", "19"]


class TestRows:
    def test_a_torn_line_is_left_out_with_a_warning(self, tmp_path, caplog):
        lines = [json.dumps(raw()), "", '{"setting": "torn", "sta', json.dumps(raw(status="odd"))]
        (tmp_path / "rows.jsonl").write_text("\n".join(lines))
        (tmp_path / "other.txt").write_text("no rows")
        with caplog.at_level(logging.WARNING):
            assert [r.setting for r in read_rows([tmp_path])] == ["s"]
        assert "rows.jsonl, line 3 left out" in caplog.text
        assert "line 4 left out: status" in caplog.text

    def test_unknown_fields_are_ignored_and_missing_ones_are_none(self, tmp_path):
        lines = ['{"setting": "a", "status": "failed", "colour": 3}', json.dumps(raw())]
        (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
        first, second = read_rows([tmp_path, tmp_path])  # twice the same folder: once each
        assert first.step_s is None and not first.measured and second.measured
        assert missing_table(unmeasured(pooled([first]), {})).to_html()

    def test_a_folder_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(ParameterError, match=r"recorded='.*nowhere': no such folder"):
            read_rows([tmp_path / "nowhere"])


def text_of(table):
    return re.sub(r"<[^>]+>", " ", table.to_html())


class TestShown:
    results = pooled(study())
    options = CapacityOptions()

    def test_every_planned_setting_is_a_row(self):
        planned = recorded_settings("study")
        missing = text_of(missing_table(unmeasured(self.results, planned)))
        text = text_of(step_table(self.results)) + missing
        assert all(name.replace("_", " ") in text for name in planned)
        assert "no row was recorded" in missing
        assert "needs 3 GPUs, &lt;2&gt; are here" in text  # escaped
        assert "6.25 [" in text and "3 x 2" in text and "SIMULATED" in text

    def test_a_slide_has_few_rows(self):
        many = pooled([row(f"s{i}", 5.0 + i) for i in range(30)])
        for table in (step_table(many, SLIDE_ROWS), bound_table(many, SLIDE_ROWS)):
            assert table.to_html().count("<tr>") == SLIDE_ROWS + 1
        plans = plan(planned_work(many), self.options)
        assert plan_table(plans, many, self.options).to_html().count("<tr>") == SLIDE_ROWS + 1

    def test_words_name_n_spread_hardware_and_what_was_simulated(self):
        for text in (step_findings(self.results), latency_findings(self.results),
                     schedule_findings(self.results)):  # fmt: skip
            assert "n = " in text and "NVIDIA H200" in text and "SIMULATED" in text
        assert "Fastest on policy: **none**, 4.25 [" in step_findings(self.results)
        assert "**1.02 [" in latency_findings(self.results)  # 12.6 / 12.4, the latency hidden
        assert "(out of memory)" in step_findings(self.results)
        compared_rows = planned_work(self.results)
        plans = plan(compared_rows, self.options)
        text = plan_findings(plans, compared_rows, self.options)
        assert "**One urgent experiment**: ahead" in text and "(predicted)" in text
        assert "4,000,000 tokens a minute" in text

    def test_tables_of_nothing_say_so(self):
        nothing = [broken("a"), broken("b", "failed")]
        for table in (bound_table(nothing), contrast_table([], "x"), repeat_table(nothing),
                      plan_table([], nothing, self.options)):  # fmt: skip
            assert "none was measured" in table.to_html()
        assert "no measured row" in plan_findings([], [], self.options) or "nothing to plan" in (
            plan_findings([], [], self.options)
        )
        assert "Nothing was measured" in step_findings([])
        assert "none was measured" in text_of(sitting_table([]))

    @pytest.mark.parametrize("results", [results, [], [broken("a")]], ids=["all", "none", "failed"])
    def test_figures(self, results):
        for figure in (step_figure(results), step_figure(results, 1), latency_figure(results),
                       gpu_figure(results), sensitivity_figure(results, self.options),
                       contrast_figure(results), vllm_gain_figure(results)):  # fmt: skip
            assert figure.get_suptitle() and figure.get_supxlabel()
        if results is self.results:
            assert "ahead is fastest" in step_figure([results[3]]).get_suptitle()

    def test_the_headline_is_plain_json(self):
        plans, planned = plan(planned_work(self.results), self.options), recorded_settings("study")
        missing = unmeasured(self.results, planned)
        head = efficiency_headline(self.results, plans, missing)
        read = json.loads(json.dumps(head, allow_nan=False))
        steps, lost = read["seconds per step, median [quartiles]"], read["settings not measured"]
        assert read["urgent"] == "ahead" and len(steps) == sum(r.measured for r in self.results)
        assert lost == len(missing) > len(planned) - len(self.results)
        empty = row("zero", phases=dict.fromkeys(PHASES, 0.0), reward="negative_length")
        (only,) = efficiency_headline([empty], [], [])[
            "seconds per step, median [quartiles]"
        ].values()
        assert only["bound_ratio"] is None


@pytest.mark.parametrize("variant", ["study", "ablation", "smoke"])
def test_shipped_settings_use_fields_that_trl_has(variant):
    params = read_parameters(NB01, variant)[2]
    assert isinstance(params, EfficiencyParams) and params.chosen
    known = field_names("grpo")
    for setting in params.settings.values():
        assert set(params.recipe) | set(setting.recipe) <= known
        assert (setting.completions or params.completions) % 8 == 0


def test_the_study_has_the_issues_groups():
    settings = recorded_settings("study")
    groups = {setting.group for setting in settings.values()}
    assert {"without vLLM", "with vLLM", "beyond", "hidden", "one GPU"} <= groups
    assert {s.gpus_wanted for s in settings.values()} == {1, 2, 3}


def test_the_notebook_renders_recorded_rows_without_a_gpu(tmp_path):
    recorded = tmp_path / "recorded"
    recorded.mkdir()
    lines = [made.model_dump_json() for made in study()]
    (recorded / "h200.jsonl").write_text("\n".join([*lines, '{"torn']))
    done = run_notebook(
        NB01, "default", tmp_path / "out", ("recorded", json.dumps([str(recorded)]))
    )
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "out", NB01)
    assert run.manifest["status"] == "finished" and "H200" in run.manifest["provenance"]
    assert run.manifest["headline"]["urgent"] == "ahead"
    for name in ("contrasts", "vllm_gain", "steps", "latency", "gpu_seconds", "sensitivity"):
        assert (run.folder / "figures" / f"{name}.png").is_file()
    report = (run.folder / "report.html").read_text()
    assert "line 15 left out" in report and "no row was recorded" in report
    slides = (run.folder / "slides.html").read_text()
    for caption in (
        "Over the first row of a size.",
        "Least seconds per step by the measured parts",
    ):
        assert report.count(caption) == slides.count(caption) == 1  # the short one, or the whole
    assert "stock" in done.stderr and "per step" in done.stderr


RECORDED = [PROJECT / "outputs/reference/01_efficiency"]


class TestRecordedRows:
    """What is shipped: does it hold, and is what is quoted of it what it says?"""

    rows = tuple(read_rows(RECORDED))

    @property
    def found(self):
        return {r.setting: r for r in pooled([r for r in self.rows if r.startup_s])}

    def test_every_step_time_of_the_readme_is_a_recorded_one(self):
        section = (PROJECT / "README.md").read_text().partition("## How fast is a step?")[2]
        section = section.partition("\n## ")[0]
        quoted = re.findall(
            r"\| `(\w+)` \| ([\d.]+) \[([\d.]+), ([\d.]+)\] \| (\d+) steps", section
        )
        assert len(quoted) == 3
        for name, *numbers, n in quoted:
            result = self.found[name]
            told = (result.seconds, *result.step_s_spread)
            assert [f"{s:.2f}" for s in told] == numbers and result.steps == int(n)
        rest = re.sub(r"\| `\w+` \|.*", "", section)
        assert not re.search(r"\d+\.\d+ s\b", rest), "a step time that nothing recomputes"

    def test_the_readme_s_cost_of_a_setting_is_a_recorded_one(self):
        text = (PROJECT / "README.md").read_text()
        low, high = map(int, re.search(r"costs (\d+) to (\d+) s beside its steps", text).groups())
        warm = [r.startup_s for r in self.rows if r.startup_s and r.startup_s < 100]
        assert (round(min(warm)), round(max(warm))) == (low, high) and high <= 45
        cold = [r.startup_s for r in self.rows if r.startup_s and r.startup_s >= 100]
        assert all(105 < s < 135 for s in cold)  # about two minutes

    def test_the_docstring_of_compilation_quotes_recorded_phases(self):
        text = " ".join((compilation.__doc__ or "").split())
        quoted = re.findall(r"([\d.]+) s instead of ([\d.]+) s", text)
        rows = (
            self.found["server_gemini_parallel"],
            self.found["server_gemini_parallel_not_compiled"],
        )
        told = [tuple(f"{row.phases[phase]:.2f}" for row in rows)
                for phase in ("loss forward", "backward")]  # fmt: skip
        assert quoted == told

    def test_phases_of_fixed_synchronous_rows_add_up_to_the_step(self):
        checked = [
            a for a in agreement(self.rows)
            if a.result.schedule in ("stock", "fused") and not a.result.natural_lengths
        ]  # fmt: skip
        assert len(checked) >= 20
        assert all(abs(share - 1) < 0.02 for a in checked for share in a.covered)

    def test_the_reference_of_each_sitting_agrees_with_itself(self):
        known = [s for s in sittings(self.rows) if s.drift is not None]
        assert known and all(abs(s.drift) < 0.05 for s in known)

    def test_rows_of_the_present_harness_say_what_they_were_measured_with(self):
        for r in self.rows:
            if r.measured and r.startup_s:
                assert r.versions and r.step_s_spread and r.phases_all and r.steps >= 2
                assert None not in (r.micro_batch, r.checkpointing, r.compiled, r.startup_s)
                assert (r.logp_difference is not None) == (r.policy != "transformers")
                assert r.steps >= 4 or r.seconds > 25
                if r.reward == "gemini":
                    tokens_in, tokens_out = r.tokens_a_call["engine"]
                    assert tokens_in > 5 * 1300 and 350 < tokens_out < 500
                    assert r.tokens_per_1000 > 1000 * tokens_in and r.apart
