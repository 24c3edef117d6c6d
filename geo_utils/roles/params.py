"""Parameters of every notebook that runs roles: corpus, roles, and how models are called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from geo_utils.files import resolve_path
from geo_utils.models.base import Price
from geo_utils.parameters import LocalServer, Name, NotebookParams
from geo_utils.roles.methods import check_methods, is_policy


class CallOptions(BaseModel):
    """How models are called; see `models.caller.Retries` and `models.caller.RateLimit`.

    Attributes:
        max_calls: Most requests that the run may send.
        max_cost: Most US dollars that the run may spend.
        prices: Prices by model id, over the shipped table.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_concurrency: Annotated[int, Field(ge=1, le=4096)] = 32
    timeout_s: Annotated[float, Field(gt=0)] = 90.0
    deadline_s: Annotated[float, Field(gt=0)] = 300.0
    max_tries: Annotated[int, Field(ge=1)] = 8
    max_retries: Annotated[int, Field(ge=0)] = 5_000
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    tokens_per_minute: Annotated[float, Field(gt=0)] | None = None
    max_calls: Annotated[int, Field(ge=1, strict=True)] | None = None
    max_cost: Annotated[float, Field(gt=0, strict=True)] | None = None
    prices: dict[str, Price] = {}


Backend = Literal["offline", "gemini", "openai", "vllm", "transformers"]
Role = Literal["engine", "judge", "rewriter"]
NO_ID_NEEDED = ("offline", "offline_strict", "gemini")


class RunParams(NotebookParams):
    """Parameters that every notebook that runs roles has, beside its variant and place.

    Attributes:
        corpus: Which corpus, as `corpus.load_corpus` names them.
        corpus_path: File or folder of the corpus, where it needs one; relative as output_root.
        split: Split of a Hub dataset.
        limit: How many queries, drawn from the seed; none for all.
        engine: What answers.
        judge: What gives verdicts.
        seed: Seed of every draw.
        models: Model id by role, where it is not the backend's default; a local model's may end
            in the GPU that holds it, as `Qwen/Qwen2.5-7B-Instruct@cuda:1`.
        servers: Addresses by role: for `openai` those of the server and its replicas, each ending
            in `/v1`; for `gemini` one that stands in for the service.
        temperature: Of whatever answers or rewrites.
        judge_mode: `verdict` with a reason, or `soft`: P(supported) by log-probabilities.
        prompts: Folder of templates that replace the shipped ones.
        calls: How models are called.
        cache_root: Folder of the answers, shared by runs.
        dry_run: Stop before the first call, with calls, tokens and cost counted.
    """

    corpus: Literal["sample", "jsonl", "researchy-geo", "e-commerce", "geo-bench"]
    corpus_path: str | None
    split: Name
    limit: Annotated[int, Field(ge=1)] | None
    engine: Backend
    judge: Backend
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    models: dict[Role, str]
    servers: dict[Role, list[str]]
    temperature: Annotated[float, Field(ge=0, le=2)]
    judge_mode: Literal["verdict", "soft"]
    prompts: str | None
    calls: Annotated[CallOptions, Field(strict=False)]
    cache_root: Annotated[str, Field(min_length=1)]
    dry_run: bool

    if TYPE_CHECKING:  # fields of some notebooks, made from other fields in the rest

        @property
        def methods(self) -> list[str]:
            """The methods to compare, `original` among them."""

        @property
        def repeats(self) -> int:
            """Sampled answers a page."""

        @property
        def key_points(self) -> Literal["one", "all", "exclusive"]:
            """Which key points of a page."""

    @property
    def backends(self) -> dict[Role, str]:
        """The backend of each role."""
        return {"engine": self.engine, "judge": self.judge}

    @property
    def in_manifest(self) -> dict[str, Any]:
        """Seeds and models, for the manifest."""
        roles = self.backends.items()
        return {
            "seeds": {"seed": self.seed},
            "models": {r: {"backend": b, "model": self.models.get(r)} for r, b in roles},
        }

    @property
    def policy_source(self) -> str:
        """What the trained policy is, for captions; empty where none is trained."""
        return ""

    @property
    def corpus_options(self) -> dict[str, Any]:
        """The arguments of `corpus.load_corpus` that these parameters ask for."""
        path = None if self.corpus_path is None else resolve_path(self.corpus_path)
        shared = {name: getattr(self, name) for name in ("split", "limit", "seed")}
        return {"name": self.corpus, "path": path} | shared

    @property
    def servers_here(self) -> list[LocalServer]:
        """The model servers that the run expects on its own host, each once."""
        urls = {
            url: self.models[role]
            for role, backend in self.backends.items()
            if backend == "openai"
            for url in self.servers.get(role, ())
        }
        found = [server for url, model in urls.items() for server in LocalServer.at(url, model)]
        return list({server.address: server for server in found}.values())

    @property
    def gpus_needed(self) -> int:
        """How many GPUs the run needs: its own, if it loads a model, and one a local server."""
        loaded = {"vllm", "transformers"} & set(self.backends.values())
        own = bool(loaded) or any(is_policy(method) for method in self.methods)
        return int(own) + len(self.servers_here)

    def saved_work(self, folder: Path) -> list[int]:
        """Return the size of the cache, which other runs may add to as well."""
        answers = resolve_path(self.cache_root).glob("*.answers.jsonl")
        return [sum(path.stat().st_size for path in answers)]

    @model_validator(mode="after")
    def _check_corpus(self) -> Self:
        if self.corpus == "jsonl" and self.corpus_path is None:
            raise ValueError("corpus_path=None: corpus='jsonl' needs the path of its file")
        if self.corpus in ("sample", "geo-bench") and self.corpus_path is not None:
            raise ValueError(
                f"corpus_path={self.corpus_path!r}: corpus={self.corpus!r} takes no path; "
                "set corpus='jsonl' to read your own file"
            )
        return self

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        for role, backend in self.backends.items():
            if backend not in NO_ID_NEEDED and role not in self.models:
                raise ValueError(
                    f"models={self.models!r}: {role}={backend!r} needs a model id, such as "
                    f"models={{{role!r}: 'Qwen/Qwen2.5-7B-Instruct'}}"
                )
            if backend == "openai" and not self.servers.get(role):
                raise ValueError(
                    f"servers={self.servers!r}: {role}='openai' needs an address, such as "
                    f"servers={{{role!r}: ['http://127.0.0.1:8000/v1']}}"
                )
        if self.judge_mode == "soft" and self.judge in NO_ID_NEEDED:
            raise ValueError(
                f"judge_mode='soft': judge={self.judge!r} gives no log-probabilities; choose "
                "from openai, vllm, transformers, or judge_mode='verdict'"
            )
        return self


class EvaluationParams(RunParams):
    """Parameters that every evaluation notebook has.

    Attributes:
        key_points: `one` a page drawn from the seed, `all`, or one that is `exclusive` to it.
        rewriter: What rewrites.
        repeats: Sampled answers a page.
    """

    key_points: Literal["one", "all", "exclusive"]
    rewriter: Backend
    repeats: Annotated[int, Field(ge=1, le=1000)]

    @property
    def backends(self) -> dict[Role, str]:
        """The backend of each role."""
        return super().backends | {"rewriter": self.rewriter}

    @model_validator(mode="after")
    def _check_methods(self) -> Self:
        """Refuse methods that the rewriter cannot do, and a comparison without its reference."""
        methods = self.methods
        if len(methods) < 2:
            raise ValueError(f"methods={methods!r}: name a method to compare with 'original'")
        if "original" not in methods:
            raise ValueError(
                f"methods={methods!r}: 'original' must be among them, as every paired "
                "difference is taken to it"
            )
        check_methods(methods, self.rewriter)
        return self
