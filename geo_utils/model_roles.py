"""Engine and judge in their model-backed form, and key points for pages that bring none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from geo_utils.corpus import Example, KeyPoint
from geo_utils.engines import Answer
from geo_utils.judges import Verdict
from geo_utils.models.base import Completion, ModelError, Request, Sampling
from geo_utils.models.replies import strip_thoughts
from geo_utils.prompts import Template, load_template

ANSWER = Sampling(temperature=0.7, max_tokens=2048)
_VERDICT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "reason": {"type": "string"},
        "verdict": {"type": "string", "enum": ["supported", "omitted", "contradicted"]},
    },
    "required": ["reason", "verdict"],
}
_VERDICTS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "verdicts": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"number": {"type": "integer"}} | _VERDICT["properties"],
                "required": ["number", "reason", "verdict"],
            },
        }
    },
    "required": ["verdicts"],
}
_KEY_POINTS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "key_points": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "content": {"type": "string"},
                    "quotes": {"type": "array", "items": {"type": "string"}},
                },
                "required": ["content", "quotes"],
            },
        }
    },
    "required": ["key_points"],
}


class Completes(Protocol):
    """A caller, or a planner in its place."""

    async def complete(self, request: Request) -> Completion:
        """Answer a request; see `models.caller.Caller`."""
        ...


@dataclass(frozen=True)
class ModelEngine:
    """Engine that lets a model answer from numbered sources.

    Attributes:
        caller: What it calls.
        sampling: Temperature and longest answer.
        prompts: Folder of the user's own templates.
    """

    caller: Completes
    sampling: Sampling = ANSWER
    prompts: Path | None = None

    async def answer(self, query: str, sources: Sequence[str], sample_index: int = 0) -> Answer:
        """Return one sampled answer, or an abstention with its reason.

        Without sources the model is asked what it knows, by a prompt that speaks of none.
        """
        numbered = "\n\n".join(
            f'<source number="{i}">\n{text}\n</source>' for i, text in enumerate(sources, 1)
        )
        template = load_template("engine_answer" if sources else "engine_no_sources", self.prompts)
        values = {"query": query} | ({"sources": numbered} if sources else {})
        prompt = template.fill(values, needs=values)
        request = Request("engine", prompt, template.hash, self.sampling, sample_index=sample_index)
        try:
            text = strip_thoughts((await self.caller.complete(request)).text)
        except ModelError as error:
            return Answer("", f"{error.kind}: {error}")
        return Answer(text) if text else Answer("", "empty: nothing but thoughts")


@dataclass(frozen=True)
class ModelJudge:
    """Judge that lets a model decide; it sees key point and answer, never the page.

    Attributes:
        caller: What it calls.
        soft: Ask for one word and take P(yes) / (P(yes) + P(no)) as the score; the label is
            `supported` from 0.5 on. Needs a server that gives log-probabilities.
        prompts: Folder of the user's own templates.
    """

    caller: Completes
    soft: bool = False
    prompts: Path | None = None

    async def judge(self, key_point: str, answer: str) -> Verdict:
        """Return the verdict on one key point, or an abstention with its reason."""
        name, schema = ("judge_soft", None) if self.soft else ("judge_verdict", _VERDICT)
        values = {"key_point": key_point, "answer": answer}
        template = load_template(name, self.prompts)
        sampling = Sampling(0.0, 1 if self.soft else 512)
        request = Request(
            "judge",
            template.fill(values, needs=values),
            template.hash,
            sampling,
            schema,
            ("yes", "no") if self.soft else (),
        )
        try:
            found = await self.caller.complete(request)
        except ModelError as error:
            return Verdict(None, abstention=f"{error.kind}: {error}")
        if self.soft:
            return _soft_verdict(found)
        return Verdict(found.parsed["verdict"], found.parsed["reason"])

    async def judge_all(self, key_points: Sequence[KeyPoint], answer: str) -> list[Verdict]:
        """Return the verdicts on all key points of a page by one call.

        A point that the model left out, or judged twice, is an abstention of its own.
        """
        listed = "\n".join(f"{i}. {point.content}" for i, point in enumerate(key_points, 1))
        values = {"key_points": listed, "answer": answer}
        template = load_template("judge_all_points", self.prompts)
        sampling = Sampling(0.0, 256 + 96 * len(key_points))
        prompt = template.fill(values, needs=values)
        try:
            found = await self.caller.complete(
                Request("judge", prompt, template.hash, sampling, _VERDICTS)
            )
        except ModelError as error:
            return [Verdict(None, abstention=f"{error.kind}: {error}") for _ in key_points]
        verdicts = []
        for i in range(1, len(key_points) + 1):
            own = [v for v in found.parsed["verdicts"] if v["number"] == i]
            verdicts.append(
                Verdict(own[0]["verdict"], own[0]["reason"])
                if len(own) == 1
                else Verdict(None, abstention=f"unparsable: {len(own)} verdicts on point {i}")
            )
        return verdicts


async def extract_key_points(
    example: Example, caller: Completes, prompts: Path | None = None
) -> Example:
    """Return the example with key points that a model read off its target page.

    A point is kept only if a quote of it stands in the page, character for character but for
    white space; such quotes become its spans. An example that already has points is returned
    as it is.

    Raises:
        ModelError: The model could not be had; the corpus would silently shrink.
    """
    if example.key_points:
        return example
    template: Template = load_template("extract_key_points", prompts)
    prompt = template.fill({"page": example.target}, needs=("page",))
    sampling = Sampling(0.0, 4096)
    found = await caller.complete(
        Request("extractor", prompt, template.hash, sampling, _KEY_POINTS)
    )
    page = " ".join(example.target.split())
    points: list[KeyPoint] = []
    for point in found.parsed["key_points"]:
        quotes = tuple(q for q in point["quotes"] if q.strip() and " ".join(q.split()) in page)
        if quotes and point["content"].strip():
            points.append(KeyPoint(len(points) + 1, point["content"].strip(), quotes))
    return replace(example, key_points=tuple(points))


def _soft_verdict(found: Completion) -> Verdict:
    logprobs = found.logprobs or {}
    if not logprobs:
        return Verdict(None, abstention="unparsable: the server gave no log-probabilities")
    yes, no = (math.exp(logprobs.get(word, -math.inf)) for word in ("yes", "no"))
    if not yes + no:
        return Verdict(None, abstention="unparsable: neither yes nor no among the tokens")
    score = yes / (yes + no)
    return Verdict("supported" if score >= 0.5 else "omitted", f"P(supported) = {score:.3f}", score)
