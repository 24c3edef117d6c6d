"""The backends other than Gemini, against real models and servers."""

import asyncio
import os
import subprocess
import sys
import threading
from typing import ClassVar

import numpy as np
import pytest
import torch
from aiohttp import web
from conftest import SECRET, run
from headless import command, only_run, sets
from scipy.stats import chisquare
from servers import wait_until_up
from tiny_model import make_tiny_model

from geo_utils.cluster.servers import free_port
from geo_utils.models.base import (
    EMBEDDER,
    FatalError,
    Request,
    Sampling,
    TransientError,
    UnusableError,
)
from geo_utils.models.caller import Caller, Retries
from geo_utils.models.local import _own_draws, transformers_local, vllm_local
from geo_utils.models.loops import run_sync
from geo_utils.models.openai_server import OpenAIServer
from geo_utils.roles.by_model import ModelEngine, ModelJudge

SHORT = Sampling(0.0, 12)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def ask(prompt="the tide", **options):
    return Request("engine", prompt, **({"sampling": SHORT} | options))


class TestTransformersLocal:
    def test_a_batch_gives_what_single_calls_give(self, tiny_model):
        model = transformers_local(str(tiny_model), device="cpu")
        prompts = ["the tide", "a", "a longer prompt that needs no padding at all"]

        async def together():
            return await asyncio.gather(*(model.complete(ask(p)) for p in prompts))

        batch = run(together())
        single = [run(model.complete(ask(p))) for p in prompts]
        assert [c.text for c in batch] == [c.text for c in single]
        assert [c.tokens_in for c in batch] == [c.tokens_in for c in single]
        assert all(0 < c.tokens_out <= 12 for c in batch)
        assert {c.finish_reason for c in batch} <= {"stop", "length"}
        run(model.close())

    def test_a_draw_hangs_on_its_request_alone(self, tiny_model):
        """Not on who happened to be in its batch, which is a matter of milliseconds."""
        model, hot = transformers_local(str(tiny_model), device="cpu"), Sampling(1.0, 12, 0.9)
        asked = [ask("the tide", sampling=hot, sample_index=n) for n in range(6)]

        async def together():
            return await asyncio.gather(*(model.complete(request) for request in asked))

        batch, single = run(together()), [run(model.complete(request)) for request in asked]
        assert [c.text for c in batch] == [c.text for c in single]
        assert len({c.text for c in batch}) > 1
        run(model.close())

    def test_draws_follow_the_probabilities(self):
        """4,000 draws from four tokens at temperature 0.5; top-p of 0.85 leaves the least out."""
        shares = torch.tensor([0.4, 0.3, 0.2, 0.1])
        asked = [ask(sampling=Sampling(0.5, 1), sample_index=n) for n in range(4000)]
        drawn = _own_draws(asked, "cpu")(None, shares.log().expand(4000, 4)).argmax(dim=1)
        squared = np.array([16, 9, 4, 1]) / 30 * 4000
        assert chisquare(np.bincount(drawn, minlength=4), squared).pvalue > 0.001
        asked = [ask(sampling=Sampling(1.0, 1, 0.85), sample_index=n) for n in range(400)]
        drawn = _own_draws(asked, "cpu")(None, shares.log().expand(400, 4)).argmax(dim=1)
        assert set(drawn.tolist()) == {0, 1, 2}

    def test_choices_get_probabilities(self, tiny_model):
        model = transformers_local(str(tiny_model), device="cpu")
        found = run(model.complete(ask(choices=("yes", "no"))))
        assert set(found.logprobs) == {"yes", "no"}
        assert all(value < 0 for value in found.logprobs.values())
        verdict = run(ModelJudge(Caller(model), soft=True).judge("A claim.", "An answer."))
        assert verdict.label in ("supported", "omitted") and 0 <= verdict.score <= 1
        run(model.close())

    def test_different_sampling_goes_into_different_batches(self, tiny_model):
        model = transformers_local(str(tiny_model), device="cpu")

        async def mixed():
            calls = (model.complete(ask(sampling=Sampling(0.0, n))) for n in (2, 5, 2, 5))
            return await asyncio.gather(*calls)

        found = run(mixed())
        assert [c.tokens_out for c in found] == [2, 5, 2, 5]
        run(model.close())

    def test_a_missing_model_is_fatal(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(FatalError, match="cannot be loaded"):
            run(transformers_local(str(tmp_path / "nowhere")).complete(ask()))


def test_vllm_that_is_not_installed_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)  # also where it is installed
    with pytest.raises(FatalError, match=r"pip install -e '\.\[gpu\]'"):
        run(vllm_local("any").probe())


@pytest.fixture(scope="module")
def transformers_serve(tiny_model, tmp_path_factory):
    """`transformers serve`: a real OpenAI-compatible server with a real (random) model."""
    port = free_port()
    home = tmp_path_factory.mktemp("hub")
    (home / "hub").mkdir()
    process = subprocess.Popen(
        [
            os.path.join(os.path.dirname(sys.executable), "transformers"),
            "serve", str(tiny_model), "--device", "cpu", "--port", str(port),
        ],
        env=os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until_up(f"http://127.0.0.1:{port}/health", process)
    yield f"http://127.0.0.1:{port}/v1"
    process.kill()
    process.wait()


class TestTransformersServe:
    def test_it_serves_engine_and_judge(self, transformers_serve, tiny_model):
        model = OpenAIServer(str(tiny_model), [transformers_serve])
        caller = Caller(model, retries=Retries(max_tries=1, max_unusable=1))
        engine = ModelEngine(caller, Sampling(0.7, 24))
        answer = run(engine.answer("how do tides work?", ["The Moon does it.", "The Sun helps."]))
        # random weights rarely end a sentence: an answer, or an abstention that says why not
        assert answer.text or "truncated" in answer.abstention
        verdict = run(ModelJudge(caller).judge("The Moon does it.", "The Moon does it [1]."))
        assert verdict.label is None and "truncated" in verdict.abstention
        report = caller.usage.report()
        assert report["engine"]["tokens_in"] > 50 and report["judge"]["tokens_out"] > 0

    def test_one_loop_after_another_and_from_trls_own(self, transformers_serve, tiny_model):
        caller = Caller(OpenAIServer(str(tiny_model), [transformers_serve]))

        async def two():
            calls = (caller.complete(ask(p, choices=())) for p in ("a b", "c d"))
            return await asyncio.gather(*calls, return_exceptions=True)

        for _ in range(3):
            assert not [e for e in run(two()) if "closed" in str(e)]
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        there = asyncio.run_coroutine_threadsafe(two(), loop).result(60)
        assert not [e for e in there if "closed" in str(e)]
        loop.call_soon_threadsafe(loop.stop)


class Replica:
    """A small OpenAI-compatible server on loopback whose answers a test sets."""

    def __init__(self, reply=None, status=200, headers=None, models=("m",)):
        self.reply, self.status, self.headers = reply or {}, status, headers or {}
        self.models, self.bodies, self.texts = models, [], []
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"

    async def chat(self, request):
        self.bodies.append(await request.json())
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "fine"},
        } | self.reply
        body = {
            "id": "1", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 2,
            "total_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}},
        }  # fmt: skip
        if self.status != 200:
            body = {"error": {"message": "no", "code": self.status}}
        return web.json_response(body, status=self.status, headers=self.headers)

    async def embed(self, request):
        text = (await request.json())["input"]
        self.texts.append(text)
        vector = self.reply or {"embedding": [float(len(text)), 1.0]}
        usage = {"prompt_tokens": 3, "total_tokens": 3}
        return web.json_response({"data": [vector], "model": self.models[0], "usage": usage})

    async def list(self, request):
        data = [{"id": m, "object": "model", "created": 1, "owned_by": "x"} for m in self.models]
        return web.json_response({"object": "list", "data": data})

    async def __aenter__(self):
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/embeddings", self.embed)
        app.router.add_get("/v1/models", self.list)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self.port).start()
        return self

    async def __aexit__(self, *_):
        await self.runner.cleanup()


def served(replica, request=None):
    async def scene():
        async with replica:
            model = OpenAIServer("m", [replica.url])
            try:
                return await model.complete(request or ask())
            finally:
                await model.close()

    return run_sync(scene())


class TestOpenAIServer:
    def test_an_embedder_answers_with_the_prompts_vector(self):
        asked = Request(EMBEDDER, "the tide")
        found = served(Replica(), asked)
        assert (found.text, found.tokens_in, found.served_by) == ("[8.0, 1.0]", 3, "m")
        with pytest.raises(UnusableError, match="no vector"):
            served(Replica({"embedding": []}), asked)
        with pytest.raises(TransientError):
            served(Replica({"embedding": ["x"]}), asked)

    def test_usage_and_text(self):
        found = served(Replica())
        assert (found.text, found.tokens_in, found.tokens_out, found.tokens_cached) == (
            "fine", 7, 2, 4,
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("status", "headers", "error", "message"),
        [
            (401, {}, FatalError, "key is refused"),
            (403, {}, FatalError, "key is refused"),
            (404, {}, FatalError, "not served"),
            (400, {}, UnusableError, "400"),
            (429, {"Retry-After": "3"}, TransientError, "429"),
            (500, {}, TransientError, "500"),
            (503, {}, TransientError, "503"),
        ],
    )
    def test_what_a_status_means(self, status, headers, error, message):
        with pytest.raises(error, match=message) as caught:
            served(Replica(status=status, headers=headers))
        if status == 429:
            assert caught.value.retry_after_s == 3

    def test_an_idle_connection_is_left_before_the_server_leaves_it(self):
        """Which uvicorn does after 5 s; a request that goes out at that moment is lost."""
        connections = []

        class Counting(Replica):
            async def chat(self, request):
                connections.append(request.transport)
                return await super().chat(request)

        async def scene():
            async with Counting() as replica:
                model = OpenAIServer("m", [replica.url])
                for pause in (0.0, 0.0, 3.5):
                    await asyncio.sleep(pause)
                    await model.complete(ask())
                await model.close()

        run_sync(scene())
        assert connections[0] is connections[1] and connections[1] is not connections[2]

    def test_a_connection_that_is_cut_is_no_timeout(self):
        class Cutting(Replica):
            async def chat(self, request):
                request.transport.abort()

        with pytest.raises(TransientError) as caught:
            served(Cutting())
        assert caught.value.kind == "connection"

    def test_a_filtered_answer_is_blocked_and_its_tokens_are_known(self):
        with pytest.raises(UnusableError, match="blocked") as caught:
            served(Replica({"finish_reason": "content_filter"}))
        assert (caught.value.counts.tokens_in, caught.value.counts.tokens_out) == (7, 2)

    def test_structured_output_is_asked_for_in_the_servers_fields(self):
        replica = Replica({"message": {"role": "assistant", "content": '{"a": 1}'}})
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
        served(replica, ask(schema=schema))
        assert replica.bodies[0]["response_format"]["json_schema"]["schema"] == schema

    def test_choices_bring_their_log_probabilities(self):
        top = [{"token": t, "logprob": p, "bytes": None} for t, p in ((" Yes", -0.2), ("no", -1.8))]
        content = [{"token": " Yes", "logprob": -0.2, "bytes": None, "top_logprobs": top}]
        replica = Replica({"logprobs": {"content": content, "refusal": None}})
        found = served(replica, ask(choices=("yes", "no")))
        assert found.logprobs == {"yes": -0.2, "no": -1.8}
        body = replica.bodies[0]
        assert body["structured_outputs"] == {"choice": ["yes", "no"]}
        assert body["max_tokens"] == 1 and body["logprobs"] is True

    def test_replicas_share_the_calls_and_a_dead_one_is_left_out(self):
        async def scene():
            async with Replica() as left:
                async with Replica() as right:
                    model = OpenAIServer("m", [left.url, right.url])
                    caller = Caller(model, retries=Retries(backoff_s=0.01))
                    for i in range(10):
                        await caller.complete(ask(f"both {i}"))
                    shared = len(left.bodies), len(right.bodies)
                for i in range(10):
                    await caller.complete(ask(f"one {i}"))
                failures = caller.usage.report()["engine"]["failures"]
                await model.close()
                return shared, len(left.bodies), failures

        shared, left, failures = run_sync(scene())
        assert shared == (5, 5) and left == 15
        assert sum(failures.values()) == 1  # one call met the dead replica, no second did

    def test_a_replica_that_hangs_is_left_out_after_one_timeout(self):
        class Hanging(Replica):
            async def chat(self, request):
                self.bodies.append(None)
                await over.wait()

        over = asyncio.Event()

        async def scene():
            async with Hanging() as stuck, Replica() as well:
                model = OpenAIServer("m", [stuck.url, well.url])
                retries = Retries(timeout_s=2, backoff_s=0.01, max_concurrency=1)
                caller = Caller(model, retries=retries)
                for i in range(6):
                    await caller.complete(ask(str(i)))
                over.set()
                await model.close()
                return len(stuck.bodies), len(well.bodies)

        assert run_sync(scene()) == (1, 6)

    def test_probing_names_what_is_wrong(self):
        async def scene(replica, model, urls=None):
            async with replica:
                asked = OpenAIServer(model, urls or [replica.url])
                try:
                    await asked.probe()
                finally:
                    await asked.close()

        run_sync(scene(Replica(), "m"))
        with pytest.raises(FatalError, match="does not serve 'other' but m"):
            run_sync(scene(Replica(), "other"))
        with pytest.raises(FatalError, match=r"no server can be asked: .* is it up"):
            run_sync(scene(Replica(), "m", ["http://127.0.0.1:9/v1"]))
        with pytest.raises(FatalError, match="openai/m needs its server's address"):
            OpenAIServer("m", [])


class OllamaLike(Replica):
    """Names models with a tag and counts no cached tokens."""

    name, served_by = "qwen2.5:7b", "qwen2.5:7b"

    def __init__(self):
        super().__init__(models=(self.name, "another:1b"))

    def refused(self, request, body):
        """Return the error that the service answers with, if it does."""

    async def chat(self, request):
        body = await request.json()
        if error := self.refused(request, body):
            status, message, param = error
            error = {"message": message, "type": "invalid_request_error", "param": param}
            return web.json_response({"error": error | {"code": None}}, status=status)
        self.bodies.append(body)
        text = "Tides come twice a day [1]."
        if "response_format" in body:
            text = '{"verdict": "omitted", "reason": "it is not there"}'
        choice = {"index": 0, "finish_reason": "stop"}
        choice["message"] = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": 31, "completion_tokens": 8, "total_tokens": 39}
        told = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1}
        return web.json_response(
            told | {"model": self.served_by, "choices": [choice], "usage": usage} | self.beside
        )

    beside: ClassVar = {"system_fingerprint": "fp_ollama"}


class LMStudioLike(OllamaLike):
    """Takes a JSON schema or text as format, and tells more of itself than OpenAI does."""

    name = served_by = "qwen2.5-7b-instruct"
    beside: ClassVar = {"stats": {}, "system_fingerprint": "qwen2.5-7b-instruct"}

    def refused(self, request, body):
        kind = body.get("response_format", {"type": "text"})["type"]
        if kind not in ("json_schema", "text"):
            return 400, "'response_format.type' must be 'json_schema' or 'text'", None
        return None


class OpenAILike(OllamaLike):
    """A newer model of OpenAI's: wants a key, and `max_completion_tokens`."""

    name, served_by = "gpt-5-mini", "gpt-5-mini-2025-08-07"
    beside: ClassVar = {"service_tier": "default", "system_fingerprint": None}

    def refused(self, request, body):
        if request.headers.get("Authorization") != f"Bearer {SECRET}":
            return 401, "Incorrect API key provided.", None
        if "max_tokens" in body:
            said = (
                "Unsupported parameter: 'max_tokens' is not supported with this model. "
                "Use 'max_completion_tokens' instead."
            )
            return 400, said, "max_tokens"
        return None


@pytest.mark.parametrize("kind", [OllamaLike, LMStudioLike, OpenAILike])
def test_the_servers_that_the_readme_names(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    name = f"openai/{kind.name}"

    async def scene():
        async with kind() as service:
            address = f"http://127.0.0.1:{service.port}/v1"
            check = ("models", "check", name, "--server", address)
            checked = await asyncio.to_thread(command, "geo_utils", *check)
            if kind is not OpenAILike:  # which is the oddest of them
                return checked, None, service.bodies
            roles = sets(
                ("engine", name), ("judge", name),
                ("servers", {"engine": address, "judge": address}), ("corpus.limit", 3),
                ("repeats", 1), ("methods", "[original, paste_key_point]"),
                ("paths.output", tmp_path), ("paths.cache", tmp_path / "cache"),
            )  # fmt: skip
            work = ("geo_utils", "run", "02", "smoke", *roles)
            return checked, await asyncio.to_thread(command, *work), service.bodies

    checked, ran, bodies = run_sync(scene())
    assert checked.returncode == 0, checked.stderr
    assert f"{name} answers as {kind.served_by}" in checked.stdout
    assert "31 tokens in, 8 out" in checked.stdout
    if ran:
        assert ran.returncode == 0, ran.stderr
        usage = only_run(tmp_path, "02_baseline_rewrites").manifest["usage"]["roles"]
        assert usage["engine"]["answered"] == 6 and usage["judge"]["answered"] >= 1
        assert not usage["engine"]["failures"] and not usage["judge"]["failures"]
    limit = "max_completion_tokens" if kind is OpenAILike else "max_tokens"
    assert all(limit in body for body in bodies)
