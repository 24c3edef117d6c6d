"""Rewriters that let a model rewrite: any model by prompt, or a policy trained to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from geo_utils.arrangement import arrange, numbered, page_units
from geo_utils.cleaning import clean_rewrite
from geo_utils.corpus import Example, KeyPoint
from geo_utils.methods import MODEL_FREE_METHODS
from geo_utils.model_roles import Completes
from geo_utils.models.base import GUESSED, ModelError, Request, Sampling
from geo_utils.models.replies import strip_thoughts
from geo_utils.prompts import Template, load_rules, load_template
from geo_utils.rewriters import EditRewriter, Rewrite, Rewriter

PAGE = Sampling(temperature=0.7, max_tokens=8192)


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
        units = page_units(example.target)[:shown]
        page = example.target
        if shown is not None and units:
            page = page[: units[-1].end]
        needs: tuple[str, ...] = ("page",)
        values = {"page": page, "query": example.query}
        if self.method in ("key_point", "arrange_key_point"):
            values["key_point"] = key_point.content
            needs = ("page", "key_point")
        if self.method == "arrange_key_point":
            values["page"] = numbered(units)
        elif self.method == "rules":
            values["rules"] = "\n".join(f"- {rule}" for rule in load_rules(self.prompts))
            needs = ("page", "rules")
        return self.template.fill(values, needs)

    def page(
        self, reply: str, example: Example, key_point: KeyPoint, shown: int | None = None
    ) -> Rewrite:
        """Return the page that a reply stands for; an abstention with the reason if it has none."""
        if self.method == "arrange_key_point":
            asked = strip_thoughts(reply)
            page, problem = arrange(example.target, key_point.content, asked, shown)
            return Rewrite("", problem) if problem else Rewrite(page)
        units = page_units(example.target)
        rest = ""
        if shown is not None and shown < len(units):
            rest = example.target[units[shown].start :]
        page, problem = clean_rewrite(reply, example.target[: len(example.target) - len(rest)])
        if problem:
            return Rewrite("", problem)
        return Rewrite(f"{page}\n\n{rest}" if rest else page)


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
        request = _request(task, example, key_point, None, self.sampling, sample_index)
        try:
            found = await self.caller.complete(request)
        except ModelError as error:
            return Rewrite("", f"{error.kind}: {error}")
        if found.finish_reason == GUESSED:  # no arrangement, though it may have to stand for one
            return Rewrite(found.text)
        return task.page(found.text, example, key_point)


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
            return Rewrite("", "short: no sentence of the page fits the policy's prompt")
        request = _request(self.task, example, key_point, shown, self.sampling, sample_index)
        try:
            found = await self.caller.complete(replace(request, as_is=True))
        except ModelError as error:
            return Rewrite("", f"{error.kind}: {error}")
        made = self.task.page(found.text, example, key_point, shown)
        return replace(made, own_failure=bool(made.abstention))


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


def fitting_units(
    task: RewriteTask,
    example: Example,
    key_point: KeyPoint,
    max_tokens: int,
    count: Callable[[str], int],
    max_reply: int | None = None,
) -> int | None:
    """Return how many of the page's units leave the prompt within a budget of tokens.

    Args:
        task: Makes the prompt.
        example: Brings the page.
        key_point: What the rewrite is for.
        max_tokens: Budget, instructions and chat template included.
        count: Counts a prompt's tokens, chat template included.
        max_reply: Longest reply; one that writes the page anew needs room for what it is shown,
            and a quarter more.

    Returns:
        The number of units; None if the whole page fits; 0 if not even one sentence does.
    """
    units = page_units(example.target)
    writes = task.method != "arrange_key_point" and max_reply is not None

    def fits(shown: int | None) -> bool:
        head = example.target if shown is None else example.target[: units[shown - 1].end]
        if writes and 1.25 * count(head) > (max_reply or 0):
            return False
        return count(task.prompt(example, key_point, shown)) <= max_tokens

    if fits(None):
        return None
    low, high = 0, len(units)
    while low < high - 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _request(
    task: RewriteTask, example: Example, key_point: KeyPoint, shown: int | None,
    sampling: Sampling, sample_index: int,
) -> Request:  # fmt: skip
    prompt = task.prompt(example, key_point, shown)
    return Request("rewriter", prompt, task.template.hash, sampling, sample_index=sample_index)
