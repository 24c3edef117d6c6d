"""What figures and examples of a training claim."""

import numpy as np
import pytest
from conftest import make_example

from geo_utils.grpo.figures import health_figure, phase_figure, reward_figure, rollout_page
from geo_utils.grpo.log import hush


def title(figure):
    return " ".join(figure.get_suptitle().split())


def metrics(rewards):
    return [{"step": i, "reward": float(r)} for i, r in enumerate(rewards, 1)]


NOISE = 0.02 * np.random.default_rng(0).standard_normal(60)


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        (np.linspace(0.2, 0.8, 60) + NOISE, "rose: 0.2"),
        (np.linspace(0.8, 0.2, 60) + NOISE, "fell: 0.7"),
        (np.full(60, 0.5) + NOISE, "did not clearly change: 0.5"),
        # up, and down again: where it ended is not how high it came
        (np.r_[np.linspace(0.2, 0.9, 40), np.linspace(0.9, 0.5, 20)] + NOISE, "rose to 0.8"),
        (np.r_[np.linspace(0.5, 0.9, 30), np.linspace(0.9, 0.5, 30)] + NOISE, "rose to 0.8"),
        ([0.1, 0.9], "did not clearly change"),  # two steps tell nothing
        ([np.nan] * 20, "is missing"),
    ],
)
def test_the_reward_s_title_is_what_its_steps_bear_out(rewards, said):
    found = title(reward_figure(metrics(rewards), "s"))
    assert f"The training reward {said}" in found
    assert ("and fell again: 0." in found) == (said == "rose to 0.8")


def test_the_reward_is_drawn_of_all_that_a_step_drew():
    rows = [
        {"step": i, "reward": 0.5, "drawn/reward": 0.1 + i / 100, "drawn/key_point": 0.1,
         "drawn/key_point/low": 0.0, "drawn/key_point/high": 0.2, "drawn/format": 1.0}
        for i in range(60)
    ]  # fmt: skip
    figure = reward_figure(rows, "s")
    assert "The training reward rose: 0.1" in title(figure)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["reward, weighted", "key_point", "format"]


def test_what_a_training_s_health_is_stands_in_its_title():
    row = {"entropy": 1.0, "completions/clipped_ratio": 0.125, "completions/mean_length": 90.0}
    plain = title(health_figure([row | {"step": 1}, row | {"step": 2, "entropy": 0.4}], "s"))
    assert "Entropy went from 1.00 to 0.40" in plain and "at most 12%" in plain
    assert "vLLM" not in plain
    gap = {"sampling/sampling_logp_difference/mean": 0.02, "effective_sample_size": 0.97}
    served = title(health_figure([row | gap | {"step": 1}], "s"))
    assert "differ by 0.020 nats a token, and at least 97%" in served


def test_a_policy_that_comes_to_copy_its_page_is_told():
    row = {"entropy": 1.0, "completions/clipped_ratio": 0.1, "completions/mean_length": 90.0}
    older = [row | {"step": step} for step in (1, 2)]  # of a run from before this was logged
    rows = [
        row | {"step": n, "reward/unchanged": n / 10, "reward/pasted": 0.0} for n in range(3, 8)
    ]
    told = title(health_figure(older + rows, "s"))
    assert "unchanged pages went from 30% to 70% of replies (counted since step 3)" in told
    assert "of replies." in f"{title(health_figure(rows, 's'))}."


@pytest.mark.parametrize(
    ("entropies", "said"),
    [
        (
            [1.0, 0.5, None],
            "Entropy went from 1.00 to 0.50 nats a token; it is no number in 1 of 3",
        ),
        ([None, None], "No step has an entropy that is a number"),
    ],
)
def test_a_health_that_is_no_number_is_said(entropies, said):
    rows = [{"step": i, "entropy": entropy, "completions/clipped_ratio": None,
             "completions/mean_length": 9.0} for i, entropy in enumerate(entropies)]  # fmt: skip
    told = title(health_figure(rows, "s"))
    assert told.startswith(said) and "nan" not in told


def test_a_reward_about_0_has_no_sign():
    rows = [{"step": i, "reward": -0.001} for i in range(9)]
    assert title(reward_figure(rows, "s")).endswith("0.00 (first 1 step), 0.00 (last)")


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ({"backward": 0.33, "generation": 0.32, "reward": 0.3}, "the largest part backward (33%)"),
        ({"backward": 0.1, "generation": 0.9}, "most of it generation (90%)"),
    ],
)
def test_most_of_a_step_is_more_than_half(phases, said):
    steps = [{"phases": phases | {"step": 1.0}}] * 5
    assert said in title(phase_figure(steps, "s"))


def test_a_step_takes_the_median_step_and_not_the_sum_of_median_phases():
    phases = [(9.0, 1.0), (1.0, 8.0), (1.0, 1.0), (9.0, 2.0), (5.0, 5.0)]
    steps = [{"phases": {"generation": g, "reward": r, "step": g + r}} for g, r in phases]
    assert title(phase_figure([*steps[:2], *steps], "s")).startswith("A step takes 10.00 s,")


def test_the_best_rollout_is_the_one_of_the_highest_weighted_reward():
    example = make_example()
    rows = [
        {"step": step, "kind": "first", "query_id": example.query_id, "key_point_number": 1,
         "reply": f"reply {step}", "tokens": 1, "page": None, "problem": "p", "answer": None,
         "verdict": None, "abstention": None, "reward": reward,
         "rewards": {"key_point": first, "format": 0.0}}
        for step, first, reward in ((1, 1.0, 0.2), (2, 0.5, 0.9), (3, 0.1, 0.5))
    ]  # fmt: skip
    best = rollout_page(rows, [example], "best", "worst").data
    assert "Best: step 2" in best and "Worst: step 1" in best


def test_trl_prints_no_prompt_whose_completion_has_no_score(caplog):
    from accelerate import PartialState
    from accelerate.logging import get_logger

    PartialState()
    hush()
    trl = get_logger("trl.trainer.grpo_trainer")
    trl.warning("All reward functions returned None for the following kwargs:\n{'prompt': 'Sea'}")
    trl.warning("something else")
    assert "something else" in caplog.text and "Sea" not in caplog.text
