"""The components of a reward that cost no call."""

from __future__ import annotations

from geo_utils.arrangement import is_tidy, page_units
from geo_utils.fidelity import fidelity
from geo_utils.lint import new_instructions
from geo_utils.rollouts import Rollout
from geo_utils.text import words
from geo_utils.training_options import RewardOptions


def free_rewards(
    rollout: Rollout, donor: Rollout, options: RewardOptions, method: str
) -> dict[str, float | None]:
    """Return those of the components asked for that need neither engine nor judge.

    Args:
        rollout: What is rewarded.
        donor: Whose reply it is rewarded for: itself, but for the placebo.
        options: Name the components.
        method: What the policy was asked to do.
    """
    original, page = rollout.example.target, donor.page
    values: dict[str, float] = {"negative_length": -float(donor.tokens)}
    if page is None:
        names = ("fidelity", "length_budget", "no_instructions", "format")
        values |= dict.fromkeys(names, 0.0)
    else:
        if "fidelity" in options.funcs:
            values["fidelity"] = fidelity(original, page, [rollout.key_point.content]).score
        slack = options.length_slack
        over = len(words(page)) / max(len(words(original)), 1) - 1 - slack
        values["length_budget"] = min(max(1 - over / max(slack, 0.1), 0.0), 1.0)
        values["no_instructions"] = float(not new_instructions(original, page))
        values["format"] = 1.0 if _is_plain(donor, page, method) else 0.5
    return {name: values[name] for name in options.funcs if name in values}


def _is_plain(rollout: Rollout, page: str, method: str) -> bool:
    """Tell whether the reply is what was asked for, with nothing around it."""
    if method != "arrange_key_point":
        return page.startswith(rollout.reply.strip())
    known = rollout.shown
    if known is None:
        known = len(page_units(rollout.example.target))
    return is_tidy(rollout.reply, known)
