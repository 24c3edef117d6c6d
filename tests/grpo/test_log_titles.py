"""What figures and examples of a training claim."""

import numpy as np
import pytest
from conftest import make_example

from geo_utils.grpo.log import phase_figure, reward_figure, rollout_page


def title(figure):
    return " ".join(figure.get_suptitle().split())


def metrics(rewards):
    return [{"step": i, "reward": float(r)} for i, r in enumerate(rewards, 1)]


NOISE = 0.02 * np.random.default_rng(0).standard_normal(60)


@pytest.mark.parametrize(
    ("rewards", "said", "peak"),
    [
        (np.linspace(0.2, 0.8, 60) + NOISE, "rose: 0.2", False),
        (np.linspace(0.8, 0.2, 60) + NOISE, "fell: 0.7", True),
        (np.full(60, 0.5) + NOISE, "did not clearly change: 0.5", False),
        # up, and down again: where it ended is not how high it came
        (np.r_[np.linspace(0.2, 0.9, 40), np.linspace(0.9, 0.5, 20)] + NOISE, "rose: 0.2", True),
        (np.r_[np.linspace(0.5, 0.9, 30), np.linspace(0.9, 0.5, 30)] + NOISE, "did not", True),
        ([0.1, 0.9], "did not clearly change", False),  # two steps tell nothing
        ([np.nan] * 20, "is missing", False),
    ],
)
def test_the_reward_s_title_is_what_its_steps_bear_out(rewards, said, peak):
    found = title(reward_figure(metrics(rewards), "s"))
    assert f"The training reward {said}" in found and ("highest" in found) == peak


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
