"""The three roles of a run, made from its parameters."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from geo_utils.corpus import Corpus, Example
from geo_utils.evaluate import Counter, Progress, Scorer, evaluate
from geo_utils.files import resolve_path
from geo_utils.models.base import (
    EMBEDDER,
    Completion,
    FatalError,
    LanguageModel,
    ModelError,
    Request,
    Sampling,
)
from geo_utils.models.cache import AnswerCache
from geo_utils.models.caller import Caller, Planner, RateLimit, Retries
from geo_utils.models.known import retirement
from geo_utils.models.local import entailment_local, transformers_local, vllm_local
from geo_utils.models.loops import gather_all, run_sync
from geo_utils.models.record import Recorded, open_record
from geo_utils.models.usage import Usage
from geo_utils.prompts import load_template
from geo_utils.roles import by_model
from geo_utils.roles.by_model import Completes, NamedRewriters
from geo_utils.roles.engines import Engine, ExtractiveEngine
from geo_utils.roles.judges import STRICT, Judge, LexicalJudge
from geo_utils.roles.methods import MODEL_FREE_METHODS, is_policy
from geo_utils.roles.params import IN_PROCESS, ModelName, Role, RunParams
from geo_utils.roles.policies import policy_rewriter
from geo_utils.roles.rewriters import EditRewriter, Rewriter
from geo_utils.runs import Run, provenance

log = logging.getLogger(__name__)
_PATIENCE_S = 30 * 86_400.0  # with a model in this process
Models = dict[tuple[str, tuple[str, ...]], Caller]  # by name and addresses


@dataclass(frozen=True)
class Roles:
    """What a run is made with.

    Attributes:
        engine: Answers.
        judge: Gives verdicts.
        rewriter: Rewrites.
        callers: What each model-backed role calls, by role.
        usage: Counts and budget of the run.
        params: What they were made from.
        models: The callers by model and servers.
    """

    engine: Engine
    judge: Judge
    rewriter: Rewriter
    callers: Mapping[str, by_model.Completes]
    usage: Usage
    params: RunParams
    models: Models = field(default_factory=dict)

    @property
    def extractor(self) -> by_model.Completes | None:
        """What reads key points off pages that bring none: the judge's model, else another's."""
        writes = () if isinstance(self.judge, by_model.EntailmentJudge) else ("judge",)
        found = (self.callers.get(role) for role in (*writes, "rewriter", "engine"))
        return next((caller for caller in found if caller is not None), None)

    @property
    def prompts(self) -> Path | None:
        """The folder of the user's own templates."""
        return self.params.paths.templates

    def planned(self) -> Roles:
        """Return roles that count what these would call, and call nothing."""
        callers = [(r, c) for r, c in self.callers.items() if isinstance(c, Caller)]
        return _roles(self.params, {role: Planner(caller) for role, caller in callers}, Usage())

    def noted(self) -> tuple[Roles, list[Request]]:
        """Return the same roles, and a list that gets every request that they send to a model.

        What a trained policy is asked is not among them.
        """
        requests: list[Request] = []
        callers = {role: _Noted(caller, requests) for role, caller in self.callers.items()}
        made = _roles(self.params, callers, self.usage, models=self.models)
        if isinstance(self.rewriter, NamedRewriters):
            made = replace(made, rewriter=replace(self.rewriter, others=made.rewriter))
        return made, requests

    def evaluate(
        self,
        examples: Iterable[Example],
        methods: Sequence[str],
        repeats: int | None = None,
        progress: Progress | None = None,
    ) -> pd.DataFrame:
        """Run an experiment with these roles and parameters; see `evaluate.evaluate`.

        Args:
            examples: The corpus.
            methods: The methods to compare.
            repeats: Sampled answers a page, if not the run's.
            progress: As there.
        """
        return evaluate(
            examples,
            methods,
            self.engine,
            self.judge,
            repeats or self.params.repeats,
            rewriter=self.rewriter,
            key_points=self.params.key_points,
            seed=self.params.seed,
            progress=progress or self.counter("samples"),
        )

    def counter(self, what: str) -> Counter:
        """Return what shows how far a work of these roles is, and what was spent on it."""
        return Counter(what, lambda: self.usage.spent)

    @property
    def scorer(self) -> Scorer:
        """What scores a page with this engine and judge."""
        return Scorer(self.engine, self.judge, self.params.seed)

    def source(self) -> str:
        """Say what the figures come from, for captions and the manifest."""
        return provenance(self.params, self.usage.served_by)

    def caption(self) -> str:
        """Say under a table or figure what it rests on."""
        p = self.params
        about = open_record(p.recorded).about if p.recorded else {}
        corpus = about.get("corpus", f"Corpus {p.corpus.name}")
        return f"{corpus}, {p.repeats} repeats, seed {p.seed}. Source: {self.source()}."

    def template_hashes(self, also: Mapping[str, Sequence[str]] | None = None) -> dict[str, str]:
        """Return the hash of every prompt template in use, for the manifest.

        Args:
            also: Further templates by role.
        """
        soft = self.params.sampling.judge_mode == "soft"
        prompted = [m for m in self.params.methods if m not in MODEL_FREE_METHODS]
        names = {
            "engine": ["engine_answer"],
            "judge": ["judge_soft"] if soft else ["judge_verdict", "judge_claims"],
            "rewriter": [f"rewrite_{m}" for m in prompted if not is_policy(m)],
            EMBEDDER: [],
        }
        for role, further in (also or {}).items():
            names[role] += further
        if isinstance(self.judge, by_model.EntailmentJudge):  # is asked no prompt
            del names["judge"]
        return {
            n: load_template(n, self.prompts).hash for r in self.callers for n in names.get(r, ())
        }


@dataclass(frozen=True)
class _Noted:
    """Passes requests on to a caller, and keeps them."""

    caller: Completes
    requests: list[Request]

    async def complete(self, request: Request) -> Completion:
        self.requests.append(request)
        return await self.caller.complete(request)


def make_roles(params: RunParams, like: Roles | None = None, run: Run | None = None) -> Roles:
    """Make the roles and check, before any money is spent, that their models are there.

    Args:
        params: Name models and servers by role; methods that are folders are policies.
        like: Roles whose models, where they are the same, and whose budget are shared.
        run: The run whose calls are counted over all its starts; None to begin at zero.

    Raises:
        FatalError: A key is missing or refused, a model unknown, a server down; a dry run does
            not ask.
        ValueError: A prompt template is missing, or the record is none.
    """
    ledger = run.folder / "usage.jsonl" if run and not params.dry_run else None
    calls = params.calls
    usage = like.usage if like else Usage(calls.max_calls, calls.max_cost, calls.prices, ledger)
    callers: dict[Role, Caller] = {}
    models = like.models if like else {}
    for role, text in params.roles.items():
        key = text, params.addresses(role)
        name = ModelName.read(text)
        if name.backend == "offline":
            continue
        if key not in models and params.recorded:
            record = open_record(params.recorded)
            models[key] = Caller(Recorded(name.id, record), record, usage=usage)
        elif key not in models:  # roles on one model share its limits and its breaker
            if name.backend == "gemini" and (note := retirement(name.id)):
                log.warning("%s", note)
            model = make_model(name, key[1])
            models[key] = make_caller(model, params, usage, name.backend)
            if not params.dry_run:
                run_sync(model.probe())
        callers[role] = models[key]
        asked = {"temperature": None} | params.sampling.asked(role)  # of a judge, nobody's wish
        problem = models[key].model.takes.problem(Sampling(**asked))
        if problem and not params.dry_run:
            raise FatalError(f"{role}={text!r}, sampling.{problem}")
    policies = {
        method: policy_rewriter(str(resolve_path(method)), lambda m: make_caller(m, params, usage))
        for method in params.methods
        if is_policy(method)
    }
    if run:
        drawn = {r: c for r, c in callers.items() if not params.roles[r].startswith("entailment/")}
        told = {r: c.model.takes.told(_sampling(params, r)) for r, c in drawn.items()}
        run.update(sampling=told)
    return _roles(params, callers, usage, policies, models)


def make_caller(
    model: LanguageModel, params: RunParams, usage: Usage, backend: str | None = None
) -> Caller:
    """Return a caller of a model, as the run's parameters want it.

    Args:
        model: What it calls.
        params: Bring cache folder and call options.
        usage: Counts and budget.
        backend: Names the rate limit that processes share. None, or the backend of a model in
            this process: it has no limit, is waited for however slow it is, and gets everything
            at once, which it batches.
    """
    options, folder, limit = params.calls, resolve_path(params.paths.cache), None
    tries = {"max_tries": options.max_tries, "max_retries": options.max_retries}
    if backend is None or backend in IN_PROCESS:
        retries = Retries(1024, _PATIENCE_S, _PATIENCE_S, **tries)
    else:
        retries = Retries(options.max_concurrency, options.timeout_s, options.deadline_s, **tries)
        path = folder / "limits" / f"{backend}-{model.model.replace('/', '--')}"
        limit = RateLimit(path, options.requests_per_minute, options.tokens_per_minute)
    return Caller(model, AnswerCache(folder), retries, usage, limit)


def with_key_points(corpus: Corpus, roles: Roles) -> Corpus:
    """Let a model read key points off target pages for which the corpus brings none.

    Args:
        corpus: Returned as it is if it is complete, if no role has a model, or on a dry run.
        roles: The run's roles.

    Returns:
        The corpus with the points found; what could not be had is counted in its notes.
    """
    bare = sum(not example.key_points for example in corpus)
    if not bare or roles.extractor is None or roles.params.dry_run:
        return corpus
    caller = roles.extractor

    async def one(example: Example) -> Example:
        try:
            return await by_model.extract_key_points(example, caller, roles.prompts)
        except ModelError:
            return example

    examples = tuple(run_sync(gather_all(one(example) for example in corpus)))
    found = sum(bool(e.key_points) for e in examples) - (len(corpus) - bare)
    note = ("pages whose key points a model read off them", found)
    return replace(corpus, examples=examples, notes=(*corpus.notes, note))


def make_model(name: ModelName, servers: tuple[str, ...] = ()) -> LanguageModel:
    """Return a language model; its libraries are imported here and nowhere above.

    Args:
        name: Of any backend but `offline`.
        servers: Addresses.

    Raises:
        FatalError: It cannot be made.
    """
    if name.backend == "gemini":
        from geo_utils.models.gemini import Gemini

        return Gemini(name.id, *servers[:1])
    if name.backend == "openai":
        from geo_utils.models.openai_server import OpenAIServer

        return OpenAIServer(name.id, servers)
    if name.backend == "entailment":
        return entailment_local(name.id, device=name.gpu)
    local = vllm_local if name.backend == "vllm" else transformers_local
    return local(name.id, device=name.gpu)


def _roles(
    params: RunParams,
    callers: Mapping[Any, by_model.Completes],
    usage: Usage,
    policies: Mapping[str, Rewriter] | None = None,
    models: Models | None = None,
) -> Roles:
    prompts = params.paths.templates
    engine: Engine = ExtractiveEngine(seed=params.seed)
    judge: Judge = STRICT if params.judge == "offline/strict" else LexicalJudge()
    rewriter: Rewriter = EditRewriter()
    if "engine" in callers:
        engine = by_model.ModelEngine(callers["engine"], _sampling(params, "engine"), prompts)
    if "judge" in callers and ModelName.read(params.judge).backend == "entailment":
        judge = by_model.EntailmentJudge(callers["judge"])
    elif "judge" in callers:
        soft = params.sampling.judge_mode == "soft"
        judge = by_model.ModelJudge(callers["judge"], soft, prompts, _sampling(params, "judge"))
    if "rewriter" in callers:
        drawn = _sampling(params, "rewriter")
        rewriter = by_model.ModelRewriter(callers["rewriter"], drawn, prompts)
    if policies:
        rewriter = NamedRewriters(rewriter, policies)
    return Roles(engine, judge, rewriter, callers, usage, params, models or {})


def _sampling(params: RunParams, role: Role) -> Sampling:
    """Return how a role's completions are drawn, as far as the parameters say."""
    own = {"engine": by_model.ANSWER, "judge": by_model.VERDICT, "rewriter": by_model.PAGE}
    return replace(own.get(role, Sampling(None)), **params.sampling.asked(role))
