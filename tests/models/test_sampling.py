"""How completions are drawn, by which model, and that both are what was asked for."""

from dataclasses import replace
from datetime import date

import pytest
from aiohttp import web
from conftest import run
from test_caller import QUICK, Scripted
from test_models import Replica

from geo_utils.cluster.servers import free_port
from geo_utils.models.base import (
    SERVICE_DEFAULT,
    Completion,
    FatalError,
    Request,
    Sampling,
    Takes,
    UnusableError,
)
from geo_utils.models.cache import AnswerCache
from geo_utils.models.caller import Caller, is_version
from geo_utils.models.gemini import Gemini
from geo_utils.models.known import DEFAULT_MODEL, MODELS, gemini_takes, retirement
from geo_utils.models.local import chat_text
from geo_utils.models.loops import run_sync
from geo_utils.models.openai_server import OpenAIServer
from geo_utils.notebooks import read_parameters
from geo_utils.roles import simulated_gemini
from geo_utils.roles.by_model import ModelJudge
from geo_utils.roles.params import SamplingOptions
from geo_utils.runs import provenance


def ask(prompt="a", role="engine", **sampling):
    return Request(role, prompt, sampling=Sampling(**sampling))


class TestTakes:
    def test_whatever_the_model_takes_is_sent_and_the_rest_is_the_services(self):
        everything = Takes().sent(Sampling(0.7))
        assert everything == {
            "temperature": 0.7, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0,
            "thinking": "off",
        }  # fmt: skip
        hosted = gemini_takes("gemini-3.5-flash-lite")
        assert hosted.sent(Sampling(0.7)) == {"thinking": "minimal"}
        told = hosted.told(Sampling(0.7, 9))
        assert told["temperature"] == told["top_k"] == SERVICE_DEFAULT
        assert (told["thinking"], told["max_tokens"]) == ("minimal", 9)

    @pytest.mark.parametrize(
        ("model", "sampling", "message"),
        [
            ("gemini-3.1-flash-lite", {}, None),
            ("gemini-3.5-flash-lite", {}, "temperature=0.7: it takes none; set it to null"),
            ("gemini-3.1-flash-lite", {"top_k": 20}, "top_k=20: it takes none"),
            ("gemini-3.1-flash-lite", {"thinking": "off"}, "choose minimal, low, medium, high"),
            ("gemini-3.8-flash", {"temperature": None, "thinking": "minimal"}, "choose low, med"),
            ("gemini-3.1-flash-lite", {"thinking": 512}, "thinking=512: choose minimal"),
            ("gemini-2.5-flash-lite", {"thinking": 512}, None),
            ("gemini-2.5-pro", {"thinking": "off"}, "choose a number of tokens"),
            ("gemini-9-flash", {"thinking": "low"}, None),
        ],
    )
    def test_a_value_that_it_does_not_take_is_named(self, model, sampling, message):
        problem = gemini_takes(model).problem(Sampling(**sampling))
        assert (
            problem is None
            if message is None
            else problem.startswith(message) or (message in problem)
        )


class TestOpenAIServer:
    @pytest.mark.parametrize("owner", ["vllm", "x"])
    def test_a_server_that_takes_all_is_sent_all(self, owner):
        """Else it would draw by the model's own generation_config, which penalises repetition."""
        replica = Replica()

        async def listed(request):
            data = [{"id": "m", "object": "model", "created": 1, "owned_by": owner}]
            return web.json_response({"object": "list", "data": data})

        replica.list = listed

        async def scene():
            async with replica:
                model = OpenAIServer("m", [replica.url])
                await model.probe()
                await model.complete(ask())
                await model.complete(replace(ask(thinking=300), choices=("yes",)))
                await model.close()
                return model.takes

        takes = run_sync(scene())
        first, second = replica.bodies
        assert (first["temperature"], first["top_p"]) == (0.7, 1.0)
        extra = {"top_k", "repetition_penalty", "chat_template_kwargs"}
        if owner == "x":
            assert not extra & first.keys()
            assert takes.problem(Sampling(top_k=5)) and takes.problem(Sampling(thinking="off"))
        else:
            assert (first["top_k"], first["repetition_penalty"]) == (-1, 1.0)
            assert first["chat_template_kwargs"] == {"enable_thinking": False}
            assert second["chat_template_kwargs"] == {"enable_thinking": True}
        assert second["structured_outputs"] == {"choice": ["yes"]}

    def test_weights_under_another_name_are_part_of_the_version(self):
        replica = Replica()

        async def listed(request):
            card = {"id": "m", "object": "model", "created": 1, "owned_by": "vllm"}
            data = [card | {"root": "/checkpoints/7"}]
            return web.json_response({"object": "list", "data": data})

        replica.list = listed

        async def scene():
            async with replica:
                model = OpenAIServer("m", [replica.url])
                await model.probe()
                found = await model.complete(ask())
                await model.close()
                return found

        assert run_sync(scene()).served_by == "m@/checkpoints/7"

    def test_thoughts_that_a_server_takes_out_are_counted(self):
        message = {"role": "assistant", "content": None, "reasoning_content": "hm " * 9}
        replica = Replica({"message": message, "finish_reason": "length"})

        async def scene():
            async with replica:
                caller = Caller(OpenAIServer("m", [replica.url]), retries=QUICK)
                with pytest.raises(FatalError, match=r"judge m: cut off .* 2 of them thoughts"):
                    await caller.complete(ask(role="judge"))

        run_sync(scene())


class Watched:
    """The Gemini look-alike in the test's event loop, and the bodies that it got."""

    def __init__(self, **settings):
        self.settings = simulated_gemini.Settings(latency="constant:0", **settings)
        self.bodies, self.url = [], f"http://127.0.0.1:{free_port()}"

    async def __aenter__(self):
        @web.middleware
        async def noted(request, handler):
            if request.method == "POST":
                self.bodies.append((await request.json())["generationConfig"])
            return await handler(request)

        app = simulated_gemini.SimulatedGemini(self.settings).app
        app.middlewares.append(noted)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", int(self.url.rpartition(":")[2])).start()
        return self

    async def __aexit__(self, *_):
        await self._runner.cleanup()


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "any")


class TestGemini:
    @pytest.mark.parametrize(
        ("model", "sampling", "sent"),
        [
            ("gemini-3.1-flash-lite", {"temperature": 0.3},
             {"temperature": 0.3, "topP": 1.0, "maxOutputTokens": 2048,
              "thinkingConfig": {"thinking_level": "MINIMAL"}}),
            ("gemini-3.5-flash-lite", {"temperature": None, "thinking": "low"},
             {"maxOutputTokens": 2048, "thinkingConfig": {"thinking_level": "LOW"}}),
            ("gemini-2.5-flash-lite", {},
             {"temperature": 0.7, "topP": 1.0, "maxOutputTokens": 2048,
              "thinkingConfig": {"thinking_budget": 0}}),
            ("gemini-2.5-flash", {"thinking": 100, "max_tokens": 50},
             {"temperature": 0.7, "topP": 1.0, "maxOutputTokens": 150,
              "thinkingConfig": {"thinking_budget": 100}}),
        ],
    )  # fmt: skip
    def test_each_family_gets_its_own_fields(self, key, model, sampling, sent):
        async def scene():
            async with Watched() as server:
                asked = Gemini(model, server.url)
                await asked.complete(ask(**sampling))
                await asked.close()
                return server.bodies[0]

        body = run_sync(scene())
        body.pop("seed")
        assert body == sent

    def test_another_model_that_answers_stops_the_run_at_the_first_call(self, key, tmp_path):
        async def scene():
            async with Watched(served_as="gemini-3.5-flash-lite") as server:
                model = Gemini("gemini-2.5-flash", server.url)
                caller = Caller(model, AnswerCache(tmp_path), QUICK)
                said = r"'gemini-2.5-flash' was asked and 'simulated-gemini-3.5-flash-lite'"
                with pytest.raises(FatalError, match=said) as caught:
                    await caller.complete(ask("one"))
                assert MODELS["gemini-2.5-flash"].then in str(caught.value)
                with pytest.raises(FatalError, match=said):
                    await caller.complete(ask("two"))
                return len(server.bodies)

        assert run_sync(scene()) == 1
        assert not list(AnswerCache(tmp_path).entries())

    @pytest.mark.parametrize("role", ["judge", "engine"])
    def test_a_budget_spent_on_thoughts_is_refused_by_that_word(self, key, role):
        async def scene():
            async with Watched(thoughts=600) as server:
                caller = Caller(Gemini("gemini-2.5-flash", server.url), retries=QUICK)
                asked = ask(role=role, temperature=0.0, max_tokens=512, thinking=600)
                stingy = replace(asked, sampling=replace(asked.sampling, max_tokens=0))
                said = f"{role} gemini-2.5-flash: cut off .* 600 of them thoughts"
                with pytest.raises(FatalError, match=said) as caught:
                    await caller.complete(stingy)
                assert ("judge_tokens" in str(caught.value)) == (role == "judge")
                return len(server.bodies)

        assert run_sync(scene()) == 1

    def test_once_it_has_answered_it_is_one_abstention_billed_once(self):
        gone = Completion("", tokens_thought=9, tokens_out=9, finish_reason="length")
        model = Scripted("fine", gone)
        caller = Caller(model, retries=QUICK)
        run(caller.complete(ask("one")))
        with pytest.raises(UnusableError) as caught:
            run(caller.complete(ask("two")))
        assert caught.value.kind == "thoughts" and len(model.prompts) == 2
        assert caller.usage.report()["engine"]["failures"] == {"thoughts": 1}

    def test_least_thinking_is_the_judges_own(self, key):
        async def scene():
            async with Watched(thoughts=600) as server:
                judge = ModelJudge(Caller(Gemini(DEFAULT_MODEL, server.url), retries=QUICK))
                return await judge.judge("Tides come twice a day.", "Tides come twice a day [1].")

        assert run_sync(scene()).label == "supported"


class TestVersions:
    @pytest.mark.parametrize(
        ("asked", "served", "same"),
        [
            ("gemini-2.5-flash", "gemini-2.5-flash", True),
            ("gemini-2.0-flash", "models/gemini-2.0-flash-001", True),
            ("gemini-2.5-flash", "gemini-2.5-flash-lite", False),
            ("gemini-2.5-flash", "gemini-3.5-flash-lite", False),
            ("gpt-5-mini", "gpt-5-mini-2025-08-07", True),
            ("gpt-5", "gpt-5-mini-2025-08-07", False),
            ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b-instruct", True),
            ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct@main", True),
            ("qwen2.5", "qwen2.5:latest", True),
            ("qwen2.5:7b", "qwen2.5:72b", False),
            ("policy", "policy@/checkpoints/7", True),
            ("/models/a@b", "/models/a@b", True),
            ("a.b", "acb", False),
        ],
    )
    def test_which_names_are_of_the_model_that_was_asked(self, asked, served, same):
        assert is_version(asked, served) == same

    def test_an_answer_of_another_version_is_a_miss_and_two_in_a_run_stop_it(self, tmp_path):
        cache = AnswerCache(tmp_path)
        old, new = (Completion("fine", served_by=f"scripted-00{n}") for n in (1, 2))
        run(Caller(Scripted(old), cache, QUICK).complete(ask("held")))
        later = Caller(Scripted(new, new), cache, QUICK)
        run(later.complete(ask("first")))  # which pins the version
        run(later.complete(ask("held")))
        assert len(later.model.prompts) == 2
        mixed = Caller(Scripted(new, old), None, QUICK)
        run(mixed.complete(ask("first")))
        with pytest.raises(FatalError, match=r"'scripted-001', and earlier .*'scripted-002'; set"):
            run(mixed.complete(ask("second")))

    def test_the_caption_shows_a_version_that_has_another_name(self):
        pairs = [("engine", "openai/gpt-5-mini"), ("servers", "{engine: 'http://127.0.0.1:9/v1'}")]
        params = read_parameters("03", "smoke", pairs)[2]
        assert provenance(params, {"gpt-5-mini-2025-08-07"}).endswith(
            "rewriter offline, answered as gpt-5-mini-2025-08-07"
        )
        assert "answered" not in provenance(params, {"gpt-5-mini"})


class TestKnown:
    def test_defaults_name_no_model_that_is_gone_or_about_to_go(self):
        assert retirement(DEFAULT_MODEL) is None, "choose another default, and read the table anew"

    @pytest.mark.parametrize(
        ("model", "today", "said"),
        [
            ("gemini-2.5-flash", date(2026, 11, 29), "will be taken out of service on 01 December"),
            ("gemini-2.5-flash", date(2026, 12, 1), "was taken out of service on 01 December 2026"),
            ("gemini-2.5-flash", date(2026, 6, 1), None),
            ("gemini-3.5-flash-lite", date(2030, 1, 1), None),
            ("gemini-2.5-flash-lite-preview", date(2026, 11, 29), "had the same weights"),
        ],
    )
    def test_what_becomes_of_a_model_is_said_in_time(self, model, today, said):
        found = retirement(model, today)
        assert found is None if said is None else said in found


class TestParameters:
    @pytest.mark.parametrize(
        ("pairs", "message"),
        [
            ({"engine": "gemini/gemini-3.5-flash-lite"}, "sampling.temperature=0.7: it takes none"),
            ({"judge": "gemini/gemini-3.5-flash-lite", "sampling.thinking": "off"},
             "judge='gemini/gemini-3.5-flash-lite', sampling.thinking='off': choose minimal"),
            ({"engine": "gemini/gemini-flash-lite-latest"}, "no result could be repeated"),
            ({"judge": "vllm/m", "sampling.judge_mode": "soft", "sampling.thinking": "9"},
             "a soft judge answers with one token"),
        ],
    )  # fmt: skip
    def test_what_a_model_does_not_take_is_refused_before_anything_is_made(self, pairs, message):
        with pytest.raises(ValueError, match=message.replace(".", r"\.")):
            read_parameters("03", "smoke", [*pairs.items()])

    def test_yaml_reads_an_unquoted_off_as_false(self):
        assert SamplingOptions(thinking=False).thinking == "off"
        by_role = SamplingOptions(thinking={"judge": False, "engine": 300})
        assert by_role.asked("judge")["thinking"] == "off"
        assert by_role.asked("engine")["thinking"] == 300
        assert by_role.asked("rewriter")["thinking"] is None


def test_thinking_reaches_the_chat_template():
    class Template:
        def apply_chat_template(self, messages, **options):
            return f"{messages[0]['content']} {options['enable_thinking']}"

    assert (chat_text(Template(), "a"), chat_text(Template(), "a", True)) == ("a False", "a True")
