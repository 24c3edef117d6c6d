"""The components of a reward that cost no call."""

from __future__ import annotations

from geo_utils.arrangement import is_tidy, page_units
from geo_utils.fidelity import fidelity
from geo_utils.lint import new_instructions
from geo_utils.text import words
from geo_utils.training.options import RewardOptions
from geo_utils.training.rollouts import Rollout


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
    page = donor.page
    found: dict[str, float | None] = {}
    for name in options.funcs:
        if name == "negative_length":
            found[name] = -float(donor.tokens)
        elif name in _OF_PAGES:
            found[name] = 0.0 if page is None else _of_page(name, rollout, donor, options, method)
    return found


_OF_PAGES = ("fidelity", "length_budget", "no_instructions", "format")


def _of_page(
    name: str, rollout: Rollout, donor: Rollout, options: RewardOptions, method: str
) -> float:
    original, page = rollout.example.target, donor.page or ""
    if name == "fidelity":
        return float(fidelity(original, page, [rollout.key_point.content]).score)
    if name == "no_instructions":
        return float(not new_instructions(original, page))
    if name == "format":
        return 1.0 if _is_plain(donor, page, method) else 0.5
    slack = options.length_slack
    over = len(words(page)) / max(len(words(original)), 1) - 1 - slack
    return min(max(1 - over / max(slack, 0.1), 0.0), 1.0)


def _is_plain(rollout: Rollout, page: str, method: str) -> bool:
    """Tell whether the reply is what was asked for, with nothing around it."""
    if method != "arrange_key_point":
        return page.startswith(rollout.reply.strip())
    known = rollout.shown
    if known is None:
        known = len(page_units(rollout.example.target))
    return is_tidy(rollout.reply, known)
