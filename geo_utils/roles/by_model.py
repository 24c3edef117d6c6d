"""Engine, judge and rewriters that ask a language model, and what they take from its replies."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from geo_utils.corpus import Example, KeyPoint
from geo_utils.models.base import GUESSED, Completion, ModelError, Request, Sampling
from geo_utils.models.local import ENTAILMENT, entailment_prompt
from geo_utils.models.loops import gather_all
from geo_utils.models.replies import strip_thoughts
from geo_utils.prompts import Template, load_rules, load_template
from geo_utils.roles.cleaning import Asked, clean_rewrite
from geo_utils.roles.engines import Answer
from geo_utils.roles.judges import Verdict, answer_sentences
from geo_utils.roles.methods import MODEL_FREE_METHODS
from geo_utils.roles.rewriters import EditRewriter, Rewrite, Rewriter, arrange, numbered, page_units

ANSWER = Sampling(temperature=0.7, max_tokens=2048)
PAGE = Sampling(temperature=0.7, max_tokens=8192)
VERDICT = Sampling(temperature=0.0, max_tokens=512)
REPLY_ROOM = 1.25  # tokens of a reply that writes a page anew, to those of the page
_PASSAGE = 4  # sentences, about as long as the texts that such models were trained on
_LIKELY = 0.5
_TEXT = {"type": "string"}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_LABELS = _TEXT | {"enum": ["supported", "omitted", "contradicted"]}
_VERDICT = _object(reason=_TEXT, verdict=_LABELS)
_NUMBERED = _object(number={"type": "integer"}, reason=_TEXT, verdict=_LABELS)
_VERDICTS = _object(verdicts=_array(_NUMBERED))
_BEFORE = "kept", "changed", "lost"
_AFTER = "supported", "new", "contradicted", "repeated"
_KEY_POINTS = _object(key_points=_array(_object(content=_TEXT, quotes=_array(_TEXT))))


class Completes(Protocol):
    """A caller, or a planner in its place."""

    async def complete(self, request: Request) -> Completion:
        """Answer a request; see `models.caller.Caller`."""


@dataclass(frozen=True)
class ModelEngine:
    """Engine that lets a model answer from numbered sources.

    How often an answer cites hangs on the prompt, which shows a small answer with its sources:
    Qwen2.5-Coder-1.5B-Instruct cited in 58 % of its answers and 30 % of their sentences, in 5 % and
    2 % with a prompt that only asked for citations (n = 720 answers to 120 development queries,
    original and pasted pages, vLLM 0.24 on one H200, November 2026). Of its recorded answers
    16 % copy some of that prompt, its example or its last lines (1,050 of 6,586).

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
        values = {"query": query} | ({"sources": sources} if sources else {})
        name = "engine_answer" if sources else "engine_no_sources"
        request = _request("engine", name, self.prompts, values, self.sampling)
        try:
            found = await self.caller.complete(replace(request, sample_index=sample_index))
        except ModelError as error:
            return Answer("", f"{error.kind}: {error}")
        text = strip_thoughts(found.text)
        if not text:
            return Answer("", "empty: nothing but thoughts")
        copied = load_template(name, self.prompts).is_copied_in(text)
        return Answer(text, prompt_copied=float(copied))


@dataclass(frozen=True)
class ModelJudge:
    """Judge that lets a model decide; it sees key point and answer, never the page.

    Attributes:
        caller: What it calls.
        soft: Ask for one word and take P(yes) / (P(yes) + P(no)) as the score; the label is
            `supported` from 0.5 on. Needs a server that gives log-probabilities.
        prompts: Folder of the user's own templates.
        sampling: Thinking and longest verdict.
    """

    caller: Completes
    soft: bool = False
    prompts: Path | None = None
    sampling: Sampling = VERDICT

    async def judge(self, key_point: str, answer: str) -> Verdict:
        """Return the verdict on one key point, or an abstention with its reason."""
        values = {"key_point": key_point, "answer": answer}
        if self.soft:
            one = replace(self.sampling, max_tokens=1)
            request = _request("judge", "judge_soft", self.prompts, values, one)
            request = replace(request, choices=("yes", "no"))
        else:
            request = _request("judge", "judge_verdict", self.prompts, values, self.sampling)
            request = replace(request, schema=_VERDICT)
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
        contents = (" ".join(point.content.split()) for point in key_points)  # a line each
        listed = "\n".join(f"{i}. {content}" for i, content in enumerate(contents, 1))
        values = {"key_points": listed, "answer": answer}
        longest = max(256 + 96 * len(key_points), self.sampling.max_tokens)
        sampling = replace(self.sampling, max_tokens=longest)
        request = _request("judge", "judge_all_points", self.prompts, values, sampling)
        try:
            found = await self.caller.complete(replace(request, schema=_VERDICTS))
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

    async def judge_claims(
        self, original: Sequence[str], page: Sequence[str], known: Sequence[str] = ()
    ) -> list[str] | None:
        """Return what became of each claim of a page, and where each of its rewrite comes from.

        Args:
            original: The original's claims.
            page: The rewritten page's.
            known: Further texts that it may draw on.

        Returns:
            First of the original `kept`, `changed` or `lost`, then of the page `supported`,
            `contradicted`, `repeated` or `new`, by one call; None if the model could not be had,
            or its reply is not one line of JSON for each claim.
        """
        asked: dict[str, tuple[str, tuple[str, ...]]]
        asked = {f"O{i}": (text, _BEFORE) for i, text in enumerate(original, 1)}
        asked |= {f"R{i}": (text, _AFTER) for i, text in enumerate(page, 1)}
        lines = [f"{name}. {' '.join(text.split())}" for name, (text, _) in asked.items()]
        values = {
            "original": "\n".join(lines[: len(original)]),
            "known": "\n".join(known) or "none",
        }
        values |= {"page": "\n".join(lines[len(original) :])}
        sampling = replace(self.sampling, max_tokens=max(256 + 24 * len(asked), 512))
        request = _request("judge", "judge_claims", self.prompts, values, sampling)
        try:
            found = await self.caller.complete(request)
        except ModelError:
            return None
        told = [line for line in strip_thoughts(found.text).splitlines() if line[:3] != "```"]
        try:
            verdicts = [json.loads(line) for line in told if line.strip()]
            named = {verdict["claim"]: verdict["verdict"] for verdict in verdicts}
            fits = len(verdicts) == len(asked) and all(
                named[name] in allowed for name, (_, allowed) in asked.items()
            )
        except (ValueError, TypeError, KeyError):  # no JSON, no object, a claim left out
            return None
        return [named[name] for name in asked] if fits else None


@dataclass(frozen=True)
class EntailmentJudge:
    """Judge that asks a cross-encoder for natural language inference about each passage.

    The answer supports the point if one of its passages, four sentences that overlap by two,
    entails it with a probability of at least one half; else it contradicts the point if one
    contradicts it with as much. No such model's agreement with hand labels has been measured here.

    Attributes:
        caller: Calls the cross-encoder; see `models.local.entailment_local`.
    """

    caller: Completes

    async def judge(self, key_point: str, answer: str) -> Verdict:
        """Return the verdict, or an abstention with its reason."""
        passages = _passages(answer)
        if not passages:
            return Verdict("omitted", "the answer holds no sentence", 0.0)
        requests = (
            Request(
                "judge",
                entailment_prompt(passage, key_point),
                sampling=Sampling(temperature=0.0, max_tokens=1),
                choices=ENTAILMENT,
            )
            for passage in passages
        )
        try:
            found = await gather_all(map(self.caller.complete, requests))
        except ModelError as error:
            return Verdict(None, abstention=f"{error.kind}: {error}")

        def best(label: str) -> tuple[float, str]:
            chances = [math.exp((c.logprobs or {}).get(label, -math.inf)) for c in found]
            return max(zip(chances, passages, strict=True), key=lambda pair: pair[0])

        (entailed, where), (denied, against) = best("entailment"), best("contradiction")
        reason = f"P(entailment) = {entailed:.2f}, most in: {where}"
        if entailed >= _LIKELY:
            return Verdict("supported", reason, entailed)
        if denied >= _LIKELY:
            reason = f"P(contradiction) = {denied:.2f} in: {against}"
            return Verdict("contradicted", reason, entailed)
        return Verdict("omitted", reason, entailed)


def _passages(answer: str) -> list[str]:
    split, step = answer_sentences(answer), _PASSAGE // 2
    starts = range(0, max(len(split) - step, min(len(split), 1)), step)
    return [" ".join(split[start : start + _PASSAGE]) for start in starts]


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
    values = {"page": example.target}
    request = _request("extractor", "extract_key_points", prompts, values, Sampling(0.0, 4096))
    found = await caller.complete(replace(request, schema=_KEY_POINTS))
    page = " ".join(example.target.split())
    points: list[KeyPoint] = []
    for point in found.parsed["key_points"]:
        quotes = tuple(q for q in point["quotes"] if q.strip() and " ".join(q.split()) in page)
        if quotes and point["content"].strip():
            points.append(KeyPoint(len(points) + 1, point["content"].strip(), quotes))
    return replace(example, key_points=tuple(points))


def _request(
    role: str,
    name: str,
    prompts: Path | None,
    values: Mapping[str, str | Sequence[str]],
    sampling: Sampling,
) -> Request:
    """Return the request that a template and its values make."""
    template = load_template(name, prompts)
    return Request(role, template.fill(values, needs=values), template.hash, sampling)


def _soft_verdict(found: Completion) -> Verdict:
    logprobs = found.logprobs or {}
    if not logprobs:
        return Verdict(None, abstention="unparsable: the server gave no log-probabilities")
    yes, no = (math.exp(logprobs.get(word, -math.inf)) for word in ("yes", "no"))
    if not yes + no:
        return Verdict(None, abstention="unparsable: neither yes nor no among the tokens")
    score = yes / (yes + no)
    return Verdict("supported" if score >= 0.5 else "omitted", f"P(supported) = {score:.3f}", score)


@dataclass(frozen=True)
class RewriteTask:
    """What a model is asked to do with a page, and how its reply becomes the new page.

    Attributes:
        method: The method that the prompt carries out.
        prompts: Folder of the user's own templates, `rewrite_<method>.md`, and `rules.json`.
    """

    method: str
    prompts: Path | None = None

    @property
    def template(self) -> Template:
        """The prompt template."""
        return load_template(f"rewrite_{self.method}", self.prompts)

    def prompt(self, example: Example, key_point: KeyPoint, shown: int | None = None) -> str:
        """Return the prompt, with only the page's first `shown` units in it, if that is given.

        The page is cut between sentences and the instructions never; `page` puts back what was
        not shown.
        """
        page = example.target
        if self.method == "arrange_key_point":
            page = numbered(page_units(page)[:shown])
        elif shown is not None and (units := page_units(page)[:shown]):
            page = page[: units[-1].end]
        needs = self._needs(key_point) | {"page": page}
        return self.template.fill(needs | {"query": example.query}, needs)

    def _needs(self, key_point: KeyPoint) -> dict[str, str]:
        """Return what the prompt cannot do without, beside the page."""
        if self.method in ("key_point", "arrange_key_point"):
            return {"key_point": " ".join(key_point.content.split())}
        if self.method in ("rules", "rules_truthful"):
            return {"rules": "\n".join(f"- {rule}" for rule in load_rules(self.prompts))}
        return {}

    def _asked(self, example: Example, key_point: KeyPoint) -> Asked:
        """Return what stands around the page in the prompt."""
        values = self._needs(key_point) | {"query": example.query}
        without = values | dict.fromkeys(("page", "key_point", "query"), "")
        tagged = re.findall(r"<(\w+)>\s*\$\{?(\w+)", self.template.text)
        named = {tag: values[name] for tag, name in tagged if name in values}
        return Asked(self.template.fill(without, ()), values | named)

    async def rewrite(
        self,
        caller: Completes,
        example: Example,
        key_point: KeyPoint,
        sampling: Sampling,
        sample_index: int,
        shown: int | None = None,
        as_is: bool = False,
    ) -> Rewrite:
        """Return the page that a model makes of the prompt, or an abstention with its reason.

        A page that the model is to blame for, as it answered, is its own failure if taken `as_is`.
        """
        prompt, template = self.prompt(example, key_point, shown), self.template.hash
        request = Request(
            "rewriter", prompt, template, sampling, sample_index=sample_index, as_is=as_is
        )
        try:
            found = await caller.complete(request)
        except ModelError as error:
            return Rewrite("", f"{error.kind}: {error}")
        if found.finish_reason == GUESSED:  # no arrangement, though it may have to stand for one
            return Rewrite(found.text)
        made = self.page(found.text, example, key_point, shown)
        return replace(made, own_failure=as_is and bool(made.abstention))

    def page(
        self, reply: str, example: Example, key_point: KeyPoint, shown: int | None = None
    ) -> Rewrite:
        """Return the page that a reply stands for; an abstention with the reason if it has none."""
        if self.method == "arrange_key_point":
            order = strip_thoughts(reply)
            page, problem = arrange(example.target, key_point.content, order, shown)
            return Rewrite("", problem) if problem else Rewrite(page)
        rest = ""
        if shown is not None and shown < len(units := page_units(example.target)):
            rest = example.target[units[shown].start :]
        asked = self._asked(example, key_point)
        made = clean_rewrite(reply, example.target.removesuffix(rest), asked)
        return replace(made, text=f"{made.text}\n\n{rest}") if rest and made.text else made


@dataclass(frozen=True)
class ModelRewriter:
    """Rewriter that lets a model rewrite; edits that need no model stay edits.

    Attributes:
        caller: What it calls.
        sampling: Temperature and longest page.
        prompts: Folder of the user's own templates.
    """

    caller: Completes
    sampling: Sampling = PAGE
    prompts: Path | None = None

    async def rewrite(
        self, method: str, example: Example, key_point: KeyPoint, sample_index: int = 0
    ) -> Rewrite:
        """Return the rewritten page, or an abstention with its reason."""
        if method in MODEL_FREE_METHODS:
            return await EditRewriter().rewrite(method, example, key_point)
        task = RewriteTask(method, self.prompts)
        return await task.rewrite(self.caller, example, key_point, self.sampling, sample_index)


@dataclass(frozen=True)
class PolicyRewriter:
    """Rewriter that is a policy: a model trained, or about to be, on one task.

    Attributes:
        caller: Calls the policy.
        task: What it was trained to do.
        fit: From an example and a key point to how many of the page's units its prompt holds.
        sampling: As in training.
    """

    caller: Completes
    task: RewriteTask
    fit: Callable[[Example, KeyPoint], int | None]
    sampling: Sampling = PAGE

    async def rewrite(
        self, method: str, example: Example, key_point: KeyPoint, sample_index: int = 0
    ) -> Rewrite:
        """Return the page as the policy rewrites it, under whatever name it goes by."""
        shown = self.fit(example, key_point)
        if shown == 0:
            return Rewrite("", "not shown: no sentence of the page fits the policy's prompt")
        return await self.task.rewrite(
            self.caller, example, key_point, self.sampling, sample_index, shown, as_is=True
        )


@dataclass(frozen=True)
class NamedRewriters:
    """Rewriter that sends some methods to rewriters of their own.

    Attributes:
        others: Does all other methods.
        named: By method, such as a trained policy by its folder.
    """

    others: Rewriter
    named: Mapping[str, Rewriter]

    async def rewrite(
        self, method: str, example: Example, key_point: KeyPoint, sample_index: int = 0
    ) -> Rewrite:
        """Return the page as the method's own rewriter writes it."""
        rewriter = self.named.get(method, self.others)
        return await rewriter.rewrite(method, example, key_point, sample_index)
