"""The three roles of a run, made from its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from geo_utils.corpus import Corpus, Example
from geo_utils.files import resolve_path
from geo_utils.models.base import LanguageModel, ModelError
from geo_utils.models.cache import AnswerCache
from geo_utils.models.caller import Caller, Planner, RateLimit, Retries
from geo_utils.models.local import transformers_local, vllm_local
from geo_utils.models.loops import gather_all, run_sync
from geo_utils.models.usage import Usage
from geo_utils.prompts import load_template
from geo_utils.roles.by_model import (
    ANSWER,
    PAGE,
    Completes,
    ModelEngine,
    ModelJudge,
    ModelRewriter,
    NamedRewriters,
    extract_key_points,
)
from geo_utils.roles.engines import Engine, ExtractiveEngine
from geo_utils.roles.judges import Judge, LexicalJudge
from geo_utils.roles.methods import MODEL_FREE_METHODS, is_policy
from geo_utils.roles.params import RunParams
from geo_utils.roles.policies import policy_rewriter
from geo_utils.roles.rewriters import EditRewriter, Rewriter
from geo_utils.runs import Run, provenance

_PATIENCE_S = 30 * 86_400.0  # with a model in this process


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
        models: The callers by backend, model and servers.
    """

    engine: Engine
    judge: Judge
    rewriter: Rewriter
    callers: Mapping[str, Completes]
    usage: Usage
    params: RunParams
    models: dict[tuple[Any, ...], Caller] = field(default_factory=dict)

    @property
    def extractor(self) -> Completes | None:
        """What reads key points off pages that bring none: the judge's model, else another's."""
        found = (self.callers.get(role) for role in ("judge", "rewriter", "engine"))
        return next((caller for caller in found if caller is not None), None)

    @property
    def prompts(self) -> Path | None:
        """The folder of the user's own templates."""
        return prompts_folder(self.params)

    def planned(self) -> Roles:
        """Return roles that count what these would call, and call nothing."""
        callers = [(r, c) for r, c in self.callers.items() if isinstance(c, Caller)]
        return _roles(self.params, {role: Planner(caller) for role, caller in callers}, Usage())

    def source(self) -> str:
        """Say what the figures come from, for captions and the manifest."""
        return provenance(self.params, self.usage.served_by)

    def caption(self) -> str:
        """Say under a table or figure what it rests on."""
        p = self.params
        return f"Corpus {p.corpus}, {p.repeats} repeats, seed {p.seed}. Source: {self.source()}."

    def template_hashes(self, also: Mapping[str, Sequence[str]] | None = None) -> dict[str, str]:
        """Return the hash of every prompt template in use, for the manifest.

        Args:
            also: Further templates by role.
        """
        folder = prompts_folder(self.params)
        names = {
            "engine": ["engine_answer"],
            "judge": ["judge_soft" if self.params.judge_mode == "soft" else "judge_verdict"],
            "rewriter": [
                f"rewrite_{m}"
                for m in self.params.methods
                if m not in MODEL_FREE_METHODS and not is_policy(m)
            ],
        }
        for role, further in (also or {}).items():
            names[role] += further
        return {n: load_template(n, folder).hash for role in self.callers for n in names[role]}


def make_roles(params: RunParams, like: Roles | None = None, run: Run | None = None) -> Roles:
    """Make the roles and check, before any money is spent, that their models are there.

    Args:
        params: Name backends, models and servers by role; methods that are folders are policies.
        like: Roles whose models, where they are the same, and whose budget are shared.
        run: The run whose calls are counted over all its starts; None to begin at zero.

    Raises:
        FatalError: A key is missing or refused, a model unknown, a server down; a dry run does
            not ask.
        ValueError: A prompt template is missing.
    """
    ledger = run.folder / "usage.jsonl" if run and not params.dry_run else None
    calls = params.calls
    usage = like.usage if like else Usage(calls.max_calls, calls.max_cost, calls.prices, ledger)
    callers: dict[str, Caller] = {}
    models = like.models if like else {}
    for role, backend in params.backends.items():
        if backend.startswith("offline"):
            continue
        key = backend, params.models.get(role), tuple(params.servers.get(role, ()))
        if key not in models:  # roles on one model share its limits and its breaker
            model = make_model(*key)
            models[key] = make_caller(model, params, usage, backend)
            if not params.dry_run:
                run_sync(model.probe())
        callers[role] = models[key]
    policies = {
        method: policy_rewriter(str(resolve_path(method)), lambda m: make_caller(m, params, usage))
        for method in params.methods
        if is_policy(method)
    }
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
    options, folder, limit = params.calls, resolve_path(params.cache_root), None
    tries = {"max_tries": options.max_tries, "max_retries": options.max_retries}
    if backend in (None, "transformers", "vllm"):
        retries = Retries(4096, _PATIENCE_S, _PATIENCE_S, **tries)
    else:
        retries = Retries(options.max_concurrency, options.timeout_s, options.deadline_s, **tries)
        limit = RateLimit(
            folder / "limits" / f"{backend}-{model.model.replace('/', '--')}",
            options.requests_per_minute,
            options.tokens_per_minute,
        )
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
            return await extract_key_points(example, caller, roles.prompts)
        except ModelError:
            return example

    examples = tuple(run_sync(gather_all(one(example) for example in corpus)))
    found = sum(bool(e.key_points) for e in examples) - (len(corpus) - bare)
    note = ("pages whose key points a model read off them", found)
    return replace(corpus, examples=examples, notes=(*corpus.notes, note))


def make_model(
    backend: str, name: str | None, servers: tuple[str, ...] = ()
) -> LanguageModel:
    """Return a language model; its libraries are imported here and nowhere above.

    Args:
        backend: Service or library.
        name: The model's id.
        servers: Addresses.

    Raises:
        ValueError: Unknown backend.
        FatalError: It cannot be made.
    """
    if backend == "gemini":
        from geo_utils.models.gemini import DEFAULT_MODEL, Gemini

        return Gemini(name or DEFAULT_MODEL, *servers[:1])
    if name is None:
        raise ValueError(f"backend {backend!r} needs a model id")
    if backend == "openai":
        from geo_utils.models.openai_server import OpenAIServer

        return OpenAIServer(name, servers)
    local: dict[str, Callable[..., LanguageModel]] = {
        "transformers": transformers_local,
        "vllm": vllm_local,
    }
    if backend not in local:
        choices = "gemini, openai, vllm, transformers"
        raise ValueError(f"backend {backend!r} is unknown; choose {choices}")
    name, at, place = name.partition("@cuda:")
    return local[backend](name, device=f"cuda:{place}" if at else None)


def _roles(
    params: RunParams,
    callers: Mapping[str, Completes],
    usage: Usage,
    policies: Mapping[str, Rewriter] | None = None,
    models: dict[tuple[Any, ...], Caller] | None = None,
) -> Roles:
    prompts = prompts_folder(params)
    engine: Engine = ExtractiveEngine(seed=params.seed)
    strict = params.backends["judge"] == "offline_strict"
    judge: Judge = LexicalJudge(0.7, 1) if strict else LexicalJudge()
    rewriter: Rewriter = EditRewriter()
    if "engine" in callers:
        sampling = replace(ANSWER, temperature=params.temperature)
        engine = ModelEngine(callers["engine"], sampling, prompts)
    if "judge" in callers:
        judge = ModelJudge(callers["judge"], params.judge_mode == "soft", prompts)
    if "rewriter" in callers:
        sampling = replace(PAGE, temperature=params.temperature)
        rewriter = ModelRewriter(callers["rewriter"], sampling, prompts)
    if policies:
        rewriter = NamedRewriters(rewriter, policies)
    return Roles(engine, judge, rewriter, callers, usage, params, models or {})


def prompts_folder(params: RunParams) -> Path | None:
    """Return the folder of the user's own templates."""
    return None if params.prompts is None else resolve_path(params.prompts)
