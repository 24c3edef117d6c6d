"""Rollouts to read: what the policy wrote early, late, at its best, at its worst."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from IPython.display import HTML

from geo_utils.corpus import Example
from geo_utils.text import content_words
from geo_utils.view import CSS, marked_changes

_TITLES = {
    "early": "Early",
    "late": "Late",
    "best": "Best reward",
    "worst": "Worst reward",
    "abstained": "Without a score",
}


def chosen_rollouts(rollouts: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Choose the rollouts to show from the rows of rollouts.jsonl.

    Returns:
        The first and last of those drawn without regard to reward, the best and worst of the
        whole training, and the last without a score, as far as there are any.
    """
    drawn = [row for row in rollouts if row["kind"] == "first"]
    scored = [row for row in rollouts if row["rewards"]]
    lost = [row for row in rollouts if row["kind"] == "abstained"]
    chosen = {"early": drawn[0], "late": drawn[-1]} if drawn else {}
    if scored:
        chosen |= {"best": max(scored, key=_reward), "worst": min(scored, key=_reward)}
    return chosen | ({"abstained": lost[-1]} if lost else {})


def rollout_page(
    rollouts: Sequence[dict[str, Any]], examples: Iterable[Example], *kinds: str
) -> HTML:
    """Show chosen rollouts: the reply, the page it makes with its changes, answer and rewards.

    Args:
        rollouts: Rows of rollouts.jsonl.
        examples: The corpus.
        kinds: Which of `chosen_rollouts`, such as `early`; two fit a slide.
    """
    by_id = {example.query_id: example for example in examples}
    chosen = chosen_rollouts(rollouts)
    parts = [
        _section(_TITLES[kind], chosen[kind], by_id[chosen[kind]["query_id"]])
        for kind in kinds
        if kind in chosen
    ] or [f"<p>None of these: {html.escape(', '.join(kinds))}.</p>"]
    return HTML(f'<style>{CSS}</style><div class="geo-view">{"".join(parts)}</div>')


def _section(title: str, row: dict[str, Any], example: Example) -> str:
    points = (p for p in example.key_points if p.number == row["key_point_number"])
    point = next(points).content
    wanted = set(content_words(point))
    _, page = marked_changes(example.target, row["page"] or example.target, wanted)
    rewards = ", ".join(f"{name} {value:.3f}" for name, value in row["rewards"].items())
    scored = rewards or f"no score: {row['abstention']}"
    verdict = f"; {row['verdict']}" if row["verdict"] else ""
    made = page if row["page"] else f"<i>no page: {html.escape(str(row['problem']))}</i>"
    boxes = (
        (f"Reply, {row['tokens']} tokens", html.escape(row["reply"][:4000])),
        ("Page", made),
        (f"Answer{html.escape(verdict)}", html.escape((row["answer"] or "")[:4000])),
    )
    columns = "".join(
        f'<div><h4>{name}</h4><div class="geo-box geo-low" dir="auto">{body}</div></div>'
        for name, body in boxes
    )
    return (
        f'<h4>{title}: step {row["step"]}, <span class="geo-small">{html.escape(scored)}</span>'
        f'</h4><div dir="auto"><b>Query</b> {html.escape(example.query)} '
        f'<b>Key point</b> {html.escape(point)}</div><div class="geo-columns">{columns}</div>'
    )


def _reward(row: dict[str, Any]) -> float:
    return float(next(iter(row["rewards"].values())))
