"""Parameters of every notebook that runs roles: corpus, models, and how they are called."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from geo_utils.files import resolve_path
from geo_utils.models.base import EMBEDDER, Price, Sampling, Takes, redacted
from geo_utils.models.known import DEFAULT_MODEL, gemini_takes
from geo_utils.parameters import LocalServer, Name, NotebookParams, Options, Paths, nearest
from geo_utils.roles.methods import check_methods, is_policy

KeyPointChoice = Literal["one", "all", "exclusive"]  # as `corpus.choose_key_points`
Role = Literal["engine", "judge", "rewriter", "embedder"]
ROLES: tuple[Role, ...] = ("engine", "judge", "rewriter")
IN_PROCESS = ("vllm", "transformers", "entailment")
BACKENDS = ("offline", "gemini", "openai", *IN_PROCESS)
WITHOUT_LOGPROBS = ("offline", "gemini", "entailment")
_FORMS = (
    f"offline; gemini/ID, such as gemini/{DEFAULT_MODEL}; openai/ID, a model of any "
    "OpenAI-compatible server, with its address under servers; vllm/ID or transformers/ID, a Hub "
    "id or folder in this process, on another GPU as vllm/ID@cuda:1; for a judge also "
    "entailment/ID, a sequence-classification model trained on natural language inference"
)


class ModelName(NamedTuple):
    """What a role is made of, as one string says it.

    Attributes:
        backend: One of `BACKENDS`.
        id: Of the model: at the service, on the Hub, or its folder; empty for `offline`.
        gpu: The GPU that holds a model of this process, as `cuda:1`; none for the first.
    """

    backend: str
    id: str = ""
    gpu: str | None = None

    @classmethod
    def read(cls, text: str) -> ModelName:
        """Read `backend/ID`.

        Raises:
            ValueError: It cannot be read; the message names the forms that exist.
        """
        backend, _, name = text.partition("/")
        if backend not in BACKENDS:
            raise ValueError(f"{text!r} names no model{nearest(backend, BACKENDS)} Write {_FORMS}")
        if backend == "offline":
            if name not in ("", "strict"):
                raise ValueError(f"{text!r}: offline roles take no id; write {_FORMS}")
            return cls(backend, name)
        if backend == "gemini" and name.endswith("-latest"):
            raise ValueError(
                f"{text!r} is whichever model is newest, and no result could be repeated; name "
                f"one, such as gemini/{DEFAULT_MODEL}"
            )
        name, at, gpu = name.partition("@cuda:")
        if not name.strip("/ ") or (at and not (gpu.isdecimal() and backend in IN_PROCESS)):
            raise ValueError(f"{text!r} lacks the model's id, or its GPU is none; write {_FORMS}")
        return cls(backend, name, f"cuda:{gpu}" if at else None)


def _readable(text: str) -> str:
    ModelName.read(text)
    return text


_ADDRESS = re.compile(r"https?://[^/\s]+\S*")


def read_addresses(given: Any) -> Any:
    """Return one address, or several, as a list.

    Raises:
        ValueError: It is none, or holds a password or key, which the message does not show.
    """
    found = [given] if isinstance(given, str) else given
    text = str(given)
    if re.search(r"[@?#;=%\uff20]", text) or redacted(text, len(text)) != text:
        raise ValueError(
            "an address holds no name, password or key, since it is kept with the results; write "
            "http://HOST:PORT/v1 and set the key in the environment (OPENAI_API_KEY)"
        )
    if isinstance(found, list) and found and all(_ADDRESS.fullmatch(str(url)) for url in found):
        return found
    raise ValueError(
        f"{given!r} is no address; write one such as http://127.0.0.1:8000/v1, or a list of them"
    )


Model = Annotated[str, AfterValidator(_readable)]


class CallOptions(Options):
    """How models are called; see `models.caller.Retries` and `models.caller.RateLimit`.

    Attributes:
        max_concurrency: Calls in flight at once; 1 makes them one by one.
        timeout_s: Longest wait for one try.
        deadline_s: Longest time for one call, tries and pauses together.
        max_tries: Most tries of one call that fails transiently.
        max_retries: Most retries of the whole run; after them, the first failure is the last.
        requests_per_minute: Limit that the processes of a host share; none for no limit.
        tokens_per_minute: Likewise, of prompts and answers together.
        max_calls: Most requests that the run may send.
        max_cost: Most US dollars that the run may spend.
        prices: Prices by model id, over the shipped table.
    """

    max_concurrency: Annotated[int, Field(ge=1, le=1024)] = 32
    timeout_s: Annotated[float, Field(gt=0)] = 90.0
    deadline_s: Annotated[float, Field(gt=0)] = 300.0
    max_tries: Annotated[int, Field(ge=1)] = 8
    max_retries: Annotated[int, Field(ge=0)] = 5_000
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    tokens_per_minute: Annotated[float, Field(gt=0)] | None = None
    max_calls: Annotated[int, Field(ge=1, strict=True)] | None = None
    max_cost: Annotated[float, Field(gt=0, strict=True)] | None = None
    prices: dict[str, Price] = {}


class CorpusOptions(Options):
    """Which queries.

    Attributes:
        name: The shipped sample, a file of rows, or a corpus of the Hugging Face Hub.
        path: File or folder, where it needs one.
        split: Split of a Hub dataset.
        limit: How many queries, drawn from the seed; none for all.
    """

    model_config = ConfigDict(strict=True)

    name: Literal["sample", "jsonl", "researchy-geo", "e-commerce", "geo-bench"] = "sample"
    path: str | None = None
    split: Name = "test"
    limit: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _place(self) -> Self:
        if self.name == "jsonl" and self.path is None:
            raise ValueError("path=None: name='jsonl' needs the path of its file")
        if self.name in ("sample", "geo-bench") and self.path is not None:
            raise ValueError(
                f"path={self.path!r}: name={self.name!r} takes no path; set name='jsonl' to read "
                "your own file"
            )
        return self


def _off(given: Any) -> Any:
    """Undo YAML, in which an unquoted off is false."""
    if isinstance(given, dict):
        return {role: _off(value) for role, value in given.items()}
    return "off" if given is False else given


Thinking = Annotated[int, Field(ge=1)] | Literal["off", "minimal", "low", "medium", "high"]


class SamplingOptions(Options):
    """How answers are drawn; a value that the model does not take is refused.

    What is none stays out of the way where the model lets it (all tokens are drawn from, nothing
    is penalised, least thinking), and is the service's default where not; the manifest says which.

    Attributes:
        temperature: Of engine and rewriter, as the next three; judges answer at 0.
        top_p: Probability mass that tokens are drawn from.
        top_k: How many of the likeliest tokens are drawn from.
        repetition_penalty: Divides the scores of tokens that are there already.
        thinking: `off`, a level's name, or the most tokens of thought; by role, or for all.
        judge_mode: `verdict` with a reason, or `soft`: P(supported) by log-probabilities.
        judge_tokens: Longest verdict in tokens.
    """

    model_config = ConfigDict(strict=True)

    temperature: Annotated[float, Field(ge=0, le=2)] | None = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    thinking: Annotated[Thinking | dict[Role, Thinking] | None, BeforeValidator(_off)] = None
    judge_mode: Literal["verdict", "soft"] = "verdict"
    judge_tokens: Annotated[int, Field(ge=16)] = 512

    def asked(self, role: Role) -> dict[str, Any]:
        """Return what was asked for of a role's `models.base.Sampling`."""
        if role == EMBEDDER:
            return {}
        shared = self.thinking.get(role) if isinstance(self.thinking, dict) else self.thinking
        if role == "judge":
            return {"thinking": shared, "max_tokens": self.judge_tokens}
        fields = ("temperature", "top_p", "top_k", "repetition_penalty")
        return {name: getattr(self, name) for name in fields} | {"thinking": shared}


class RunPaths(Paths):
    """Where files are.

    Attributes:
        cache: Folder of the answers, shared by runs.
        prompts: Folder of templates that replace the shipped ones.
    """

    cache: Annotated[str, Field(min_length=1)] = "outputs/cache"
    prompts: str | None = None

    @property
    def templates(self) -> Path | None:
        """The folder of the user's own templates, absolute."""
        return None if self.prompts is None else resolve_path(self.prompts)


class RunParams(NotebookParams):
    """Parameters that every notebook that runs roles has, beside its variant.

    Attributes:
        corpus: Which queries.
        engine: The model that answers: `offline`, or `gemini/ID`, `openai/ID`, `vllm/ID` or
            `transformers/ID`.
        judge: The model that gives verdicts; `offline/strict` wants the point's words in one
            sentence, `entailment/ID` is a cross-encoder that tells whether the answer entails it.
        seed: Seed of every draw.
        servers: Addresses, one or several, by role or by a model's name, which wins: for `openai/`
            those of the server and its replicas, most end in `/v1`; for `gemini/` one that stands
            in for the service.
        sampling: How answers are drawn.
        calls: How models are called.
        paths: Where files are.
        record: Folder of what was recorded of models, or of a whole training, and stands in for
            them: nothing is called, and what it does not hold stops the run.
        labels: File of hand labels, as `geo labels import` makes it, that probabilities are
            corrected with; empty for none.
        dry_run: Stop before the first call, with calls, tokens and cost counted.
    """

    corpus: Annotated[CorpusOptions, Field(strict=False)]
    engine: Model
    judge: Model
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    servers: dict[str, Annotated[list[str], BeforeValidator(read_addresses)]]
    sampling: Annotated[SamplingOptions, Field(strict=False)]
    calls: Annotated[CallOptions, Field(strict=False)]
    paths: Annotated[RunPaths, Field(strict=False)]
    record: Annotated[str, Field(min_length=1)] | None
    labels: str
    dry_run: bool

    @field_validator("labels")
    @classmethod
    def _there(cls, labels: str) -> str:
        if labels and not resolve_path(labels).is_file():
            raise ValueError(
                f"{labels!r}: no such file; make it by `geo labels import`, or go without: ''"
            )
        return labels

    if TYPE_CHECKING:  # fields of some notebooks, made from other fields in the rest

        @property
        def methods(self) -> list[str]:
            """The methods to compare, `original` among them."""

        @property
        def repeats(self) -> int:
            """Sampled answers a page."""

        @property
        def key_points(self) -> KeyPointChoice:
            """Which key points of a page."""

    @property
    def roles(self) -> dict[Role, str]:
        """The model of each role."""
        return {"engine": self.engine, "judge": self.judge}

    def addresses(self, role: Role) -> tuple[str, ...]:
        """Return the addresses of a role's server; none for the service's own."""
        return tuple(self.servers.get(self.roles[role]) or self.servers.get(role) or ())

    @property
    def recorded(self) -> Path | None:
        """The folder of a record that stands in for all models; None if they are asked."""
        return None if self.record is None else resolve_path(self.record)

    @property
    def in_manifest(self) -> dict[str, Any]:
        """Seeds and models, for the manifest."""
        return {"seeds": {"seed": self.seed}, "models": dict(self.roles)}

    @property
    def policy_source(self) -> str:
        """What the trained policy is, for captions; empty where none is trained."""
        return ""

    @property
    def corpus_options(self) -> dict[str, Any]:
        """The arguments of `corpus.load_corpus` that these parameters ask for."""
        given = self.corpus.model_dump(include=set(CorpusOptions.model_fields))
        path = None if self.corpus.path is None else resolve_path(self.corpus.path)
        return given | {"path": path, "seed": self.seed}

    @property
    def servers_here(self) -> list[LocalServer]:
        """The model servers that the run expects on its own host, each once."""
        asked = [(role, ModelName.read(text)) for role, text in self.roles.items()]
        found = [
            server
            for role, name in asked
            if name.backend == "openai"
            for url in self.addresses(role)
            for server in LocalServer.at(url, name.id)
        ]
        return list({server.address: server for server in found}.values())

    @property
    def gpus_needed(self) -> int:
        """How many GPUs the run needs: its own, if it loads a model, and one a local server."""
        backends = {ModelName.read(text).backend for text in self.roles.values()}
        own = bool(backends.intersection(IN_PROCESS)) and not self.recorded
        own = own or any(map(is_policy, self.methods))
        return int(own) + len(self.servers_here)

    def saved_work(self, folder: Path) -> list[int]:
        """Return the size of the cache, which other runs may add to as well."""
        answers = resolve_path(self.paths.cache).glob("*.answers.jsonl")
        return [sum(path.stat().st_size for path in answers)]

    @field_validator("servers")
    @classmethod
    def _known_places(cls, servers: dict[str, Any]) -> dict[str, Any]:
        for name in servers:
            if name not in ROLES and "/" not in name:
                raise ValueError(
                    f"{name!r} is no role{nearest(name, ROLES)} Choose from {', '.join(ROLES)}, or "
                    "name a model, such as openai/Qwen/Qwen2.5-7B-Instruct"
                )
        return servers

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        for role, text in self.roles.items():
            backend, name, _ = ModelName.read(text)
            if backend == "offline" and name and role != "judge":
                raise ValueError(f"{role}={text!r}: only a judge is strict; write offline")
            if backend == "entailment" and role != "judge":
                raise ValueError(
                    f"{role}={text!r}: an entailment model writes nothing and can only judge; "
                    "name a language model"
                )
            if backend == "openai" and not self.addresses(role) and not self.recorded:
                raise ValueError(
                    f"servers={self.servers!r}: {role}={text!r} needs an address, such as "
                    f"servers={{{role!r}: 'http://127.0.0.1:8000/v1'}}"
                )
            if backend not in ("offline", "openai"):  # a server's are known when it was asked
                takes = gemini_takes(name) if backend == "gemini" else Takes()
                asked = Sampling(**({"temperature": None} | self.sampling.asked(role)))
                if problem := takes.problem(asked):
                    raise ValueError(f"{role}={text!r}, sampling.{problem}")
        soft = self.sampling.judge_mode == "soft"
        if soft and self.sampling.asked("judge")["thinking"] not in (None, "off"):
            raise ValueError(
                f"sampling.thinking={self.sampling.thinking!r}: a soft judge answers with one "
                "token; set judge_mode='verdict', or thinking to 'off' for the judge"
            )
        if soft and ModelName.read(self.judge).backend in WITHOUT_LOGPROBS:
            raise ValueError(
                f"sampling.judge_mode='soft': judge={self.judge!r} gives no log-probabilities; "
                "choose openai/, vllm/ or transformers/, or judge_mode='verdict'"
            )
        return self


class ChosenCorpus(CorpusOptions):
    """Which queries, and which key points of their target pages.

    Attributes:
        key_points: `one` a page drawn from the seed, `all`, or one that is `exclusive` to it.
    """

    key_points: KeyPointChoice = "one"


class EvaluationParams(RunParams):
    """Parameters that every evaluation notebook has.

    Attributes:
        rewriter: The model that rewrites.
        repeats: Sampled answers a page.
    """

    corpus: Annotated[ChosenCorpus, Field(strict=False)]
    rewriter: Model
    repeats: Annotated[int, Field(ge=1, le=1000)]

    @property
    def roles(self) -> dict[Role, str]:
        """The model of each role."""
        return super().roles | {"rewriter": self.rewriter}

    @property
    def key_points(self) -> KeyPointChoice:
        """Which key points of a page."""
        return self.corpus.key_points

    @model_validator(mode="after")
    def _check_methods(self) -> Self:
        """Refuse methods that the rewriter cannot do, and a comparison without its reference."""
        if len(self.methods) < 2:
            raise ValueError(f"methods={self.methods!r}: name a method to compare with 'original'")
        if "original" not in self.methods:
            raise ValueError(
                f"methods={self.methods!r}: 'original' must be among them, as every paired "
                "difference is taken to it"
            )
        check_methods(self.methods, self.rewriter)
        return self
