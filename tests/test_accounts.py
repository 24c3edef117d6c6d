"""What a run spends, over all its starts; and a run that has nothing to show."""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from conftest import PROJECT, run
from headless import only_run, run_command, run_notebook
from test_caller import QUICK, Scripted, ask
from test_replies import Service
from test_runs import NAME, params  # noqa: F401
from tiny_model import make_tiny_model

from geo_utils.baseline_rewrites.params import BaselineRewritesParams
from geo_utils.models.base import Completion, FatalError, Price, Sampling
from geo_utils.models.cache import AnswerCache
from geo_utils.models.caller import Caller
from geo_utils.models.usage import BudgetReached, Usage
from geo_utils.notebooks import read_parameters
from geo_utils.parameters import default_parameters
from geo_utils.roles.make import make_roles
from geo_utils.runs import NothingScored, RunHeld, locate_run, start_run

CALL = {"role": "engine", "model": "m", "failure": None, "tokens_in": 10, "tokens_out": 5,
        "tokens_cached": 0, "latency_s": 0.1, "served_by": "scripted"}  # fmt: skip
DEAR = {"scripted": Price(tokens_in=0, tokens_out=100_000)}  # 0.1 $ a token that is answered

NB02 = "02_baseline_rewrites"


class Short(Scripted):
    """Answers with one token, however many it may write."""

    async def complete(self, request):
        found = await super().complete(request)
        return Completion(found.text, tokens_in=1, tokens_out=1, served_by="scripted")


class TestBudget:
    def test_what_calls_in_flight_may_give_back_is_waited_for(self):
        """Each may cost 0.4 and costs 0.1: two at a time, and nine of them for one dollar."""
        usage = Usage(max_cost=1.0, prices=DEAR)
        caller = Caller(Short(latency=0.02), retries=QUICK, usage=usage)

        async def many():
            asked = (caller.complete(ask(str(i), sampling=Sampling(0.0, 4))) for i in range(20))
            return await asyncio.gather(*asked, return_exceptions=True)

        results = run(many())
        answered = [r for r in results if isinstance(r, Completion)]
        assert len(answered) == 7  # after seven, the next may cost more than the 0.3 that are left
        stopped = [r for r in results if isinstance(r, BudgetReached)]
        assert len(stopped) == 13 and "0.7000 spent" in str(stopped[0])

    def test_it_is_the_run_s_and_not_the_start_s(self, tmp_path):
        ledger = tmp_path / "usage.jsonl"

        def start(count, **limits):
            usage = Usage(prices=DEAR, ledger=ledger, **limits)
            caller = Caller(Short(), AnswerCache(tmp_path / "cache"), QUICK, usage)

            async def many():
                asked = (caller.complete(ask(str(i))) for i in range(count))
                return await asyncio.gather(*asked, return_exceptions=True)

            return usage, [isinstance(r, Completion) for r in run(many())]

        assert start(4, max_calls=6)[1] == [True] * 4
        usage, answered = start(9, max_calls=6)  # four are held, two may be asked
        assert sum(answered) == 6 and usage.report()["engine"]["answered"] == 6
        with ledger.open("a") as file:
            file.write('{"role": "engine", "torn')  # killed in the midst of a line
        usage, _ = start(9)
        report = usage.report()["engine"]
        assert report["answered"] == 9 and report["cost_usd"] == pytest.approx(0.9)
        assert report["cached"] == 6 and usage.served_by == {"scripted"}

    @pytest.mark.parametrize(
        "foreign",
        ["3", "[1]", "null", '{"role": "engine"}', "\0" * 300]
        + [{"tokens_in": n} for n in (-1, None, "x", float("nan"), float("inf"), 10**400)]
        + [{"role": ["e"]}, {"failure": {}}, {"latency_s": "x"}, {"served_by": None}],
    )
    def test_a_line_that_is_no_call_is_left_out(self, tmp_path, foreign):
        line = foreign if isinstance(foreign, str) else json.dumps(CALL | foreign)
        (tmp_path / "usage.jsonl").write_text(f"{json.dumps(CALL)}\n{line}\n")
        usage = Usage(max_calls=2, prices=DEAR, ledger=tmp_path / "usage.jsonl")
        assert usage.report()["engine"]["calls"] == 1
        usage.reserve("m", ask())
        with pytest.raises(BudgetReached):
            usage.reserve("m", ask())

    def test_a_call_after_a_torn_line_is_counted_by_the_next_start(self, tmp_path):
        ledger = tmp_path / "usage.jsonl"
        ledger.write_text(f"{json.dumps(CALL)}\n" + '{"role": "eng')
        for count in (2, 3, 4):
            usage = Usage(ledger=ledger)
            run(Caller(Short(), retries=QUICK, usage=usage).complete(ask()))
            assert usage.report()["engine"]["calls"] == count

    def test_a_ledger_that_cannot_be_written_stops_the_run_and_loses_no_answer(self, tmp_path):
        (tmp_path / "usage.jsonl").symlink_to("/dev/full")
        model, cache = Short(), AnswerCache(tmp_path / "cache")
        caller = Caller(model, cache, QUICK, Usage(ledger=tmp_path / "usage.jsonl"))
        answer = run(caller.complete(ask("a")))
        with pytest.raises(FatalError, match=r"usage.jsonl cannot be written \(No space left"):
            run(caller.complete(ask("b")))
        assert model.prompts == ["a"]
        assert run(Caller(model, cache, QUICK).complete(ask("a"))) == answer
        assert model.prompts == ["a"]


class TestLocalModels:
    def test_a_model_in_this_process_is_waited_for_and_gets_everything_at_once(
        self, tmp_path, monkeypatch
    ):
        folder = make_tiny_model(tmp_path / "tiny")
        values = default_parameters(PROJECT / "notebooks" / f"{NB02}.ipynb") | {
            "engine": f"transformers/{folder}", "paths": {"cache": str(tmp_path / "cache")},
            "calls": {"timeout_s": 0.001, "deadline_s": 0.001, "max_concurrency": 1,
                      "requests_per_minute": 1.0},
        }  # fmt: skip
        roles = make_roles(BaselineRewritesParams.check(values))
        caller = roles.callers["engine"]
        sizes = []
        generate = caller.model._generate

        def noted(loaded, requests):
            sizes.append(len(requests))
            time.sleep(0.05)  # longer than the service's time-outs
            return generate(loaded, requests)

        monkeypatch.setattr(caller.model, "_generate", noted)

        async def many():
            short = Sampling(0.0, 4)
            asked = (caller.complete(ask(str(i), sampling=short, as_is=True)) for i in range(12))
            return await asyncio.gather(*asked)

        assert len(run(many())) == 12 and sum(sizes) == 12  # none is asked again
        assert max(sizes) > 4
        assert roles.usage.report()["engine"]["retries"] == 0
        run(caller.model.close())


class TestNothingScored:
    def samples(self, *rows):
        return pd.DataFrame(rows, columns=["method", "supported", "abstention"])

    @pytest.mark.parametrize(
        ("rows", "told"),
        [
            ([("original", None, "engine: 402: pay first")] * 3,
             "of original nothing could be scored, 3 samples: engine: 402: pay first (3 times)"),
            ([("original", 1.0, None), ("key_point", None, "rewriter: refused")],
             "of key_point nothing could be scored, 1 samples: rewriter: refused"),
        ],
    )  # fmt: skip
    def test_a_run_or_a_method_without_a_score_does_not_finish(self, params, rows, told):
        made = start_run(NAME, params())
        made.save_samples(self.samples(*rows).astype({"supported": float}))
        with pytest.raises(NothingScored) as failed:
            made.finish({"methods": {}})
        assert told in str(failed.value)
        assert made.manifest["status"] == "started" and made.manifest["headline"] is None
        made.save_samples(self.samples(("original", 0.0, None), ("original", None, "x")))
        made.finish({"methods": {}})
        assert made.manifest["status"] == "finished"

    @pytest.mark.parametrize(
        ("body", "status", "told"),
        [
            ({"error": {"message": "Insufficient credits"}}, 402, "Insufficient credits"),
            ({"error": {"message": "The page is odd"}}, 400, "The page is odd"),
        ],
    )  # fmt: skip
    def test_the_command_fails_with_the_service_s_own_words(self, tmp_path, body, status, told):
        service = Service(body, status)
        plain = {"object": "list", "data": [{"id": "m", "object": "model"}]}
        good = service.answer

        async def answer(request):
            if request.method == "POST":
                return await good(request)
            from aiohttp import web

            return web.json_response(plain)

        service.answer = answer

        async def scene():
            async with service:
                url = f"http://127.0.0.1:{service.port}/v1"
                extra = (
                    ("corpus.limit", "2"), ("repeats", "1"),
                    ("methods", "[original, keyword_stuffing]"),
                    ("engine", "openai/m"), ("servers", f"{{engine: {url}}}"),
                    ("paths.cache", str(tmp_path / "cache")),
                )  # fmt: skip
                return await asyncio.to_thread(
                    run_notebook, NB02, "smoke", tmp_path / "out", *extra
                )

        done = asyncio.run(scene())
        assert done.returncode == 1 and told in done.stderr, done.stderr
        manifest = only_run(tmp_path / "out", NB02).manifest
        assert manifest["status"] == "failed" and told in manifest["reason"]
        if status == 402:
            assert service.calls <= 4  # those in flight; the first refusal stops the rest


class TestIdentity:
    """The parameters and the content of what they name."""

    @pytest.mark.parametrize(
        "kind", ["prompts", "corpus folder", "corpus file", "adapter", "model on a GPU", "link"]
    )
    def test_what_is_edited_is_another_run(self, params, tmp_path, kind):
        place = tmp_path / "named"
        inside = place / "deep" / "file.md"
        inside.parent.mkdir(parents=True)
        inside.write_text("one")
        Path(os.fsdecode(os.fsencode(place) + b"/no text \xff")).touch()
        if kind == "link":  # to a folder, and one that leads in a circle
            inside = tmp_path / "elsewhere" / "file.md"
            inside.parent.mkdir()
            (place / "deep" / "link").symlink_to(inside.parent)
            (inside.parent / "back").symlink_to(place)
            inside.write_text("one")
        if kind in ("prompts", "link"):
            given = {"paths": {"prompts": str(place)}}
        elif kind == "model on a GPU":
            given = {"engine": f"transformers/{place}@cuda:1"}
        elif kind == "adapter":
            (place / "adapter_config.json").write_text("{}")
            inside = place / "adapter_model.safetensors"
            inside.write_text("one")
            given = {"methods": ["original", str(place)]}
        else:
            inside = inside if "file" in kind else place / "rows.arrow"
            inside.write_text("one")
            path = str(inside if kind == "corpus file" else place)
            given = {"corpus": {"name": "jsonl", "path": path}}
        first = locate_run(NAME, params(**given)).folder.name[-8:]
        assert locate_run(NAME, params(**given)).folder.name[-8:] == first
        inside.write_text("two")
        assert locate_run(NAME, params(**given)).folder.name[-8:] != first

    @pytest.mark.parametrize(
        "changes",
        [
            {
                "policy.base": "{}",
                "policy.cold_start.small_model": "null",
                "policy.cold_start.steps": "0",
            },
            {"evaluation.methods": "[original, '{}']"},
            {"evaluation.judge": "transformers/{}"},
        ],
    )
    def test_what_a_training_names_is_edited(self, tmp_path, changes):
        folder = tmp_path / "adapter"
        folder.mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / name).write_text("{}")
        given = [(name, value.format(folder)) for name, value in changes.items()]
        _, _, read = read_parameters("04_grpo", "smoke", [("paths.output", str(tmp_path)), *given])
        first = locate_run("04_grpo", read).folder.name[-8:]
        assert locate_run("04_grpo", read).folder.name[-8:] == first
        (folder / "adapter_model.safetensors").write_text("trained again")
        assert locate_run("04_grpo", read).folder.name[-8:] != first

    def test_an_adapter_that_notebook_03_compares_is_edited(self, tmp_path):
        weights = tmp_path / "adapter_model.safetensors"
        weights.write_text("one")
        (tmp_path / "adapter_config.json").write_text("{}")
        methods = ("baseline_methods", f"[original, '{tmp_path}']")
        _, _, read = read_parameters("03_key_point_prompt", "smoke", [methods])
        first = locate_run("03_key_point_prompt", read).folder.name[-8:]
        weights.write_text("two")
        assert locate_run("03_key_point_prompt", read).folder.name[-8:] != first

    def test_where_a_small_model_is_made_is_nothing_that_a_run_reads(self, tmp_path):
        made = [("policy.base", str(tmp_path / "m")), ("paths.output", str(tmp_path))]
        _, _, read = read_parameters("04_grpo", "smoke", made)
        first = locate_run("04_grpo", read).folder.name[-8:]
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "config.json").write_text("{}")
        assert locate_run("04_grpo", read).folder.name[-8:] == first

    def test_a_finished_run_of_other_content_is_not_taken_for_it(self, params, tmp_path):
        (tmp_path / "mine").mkdir()
        rule = tmp_path / "mine" / "rules.json"
        rule.write_text("[]")
        made = start_run(NAME, params(paths={"prompts": str(tmp_path / "mine")}))
        made.finish({})
        rule.write_text('["another"]')
        assert (
            start_run(NAME, params(paths={"prompts": str(tmp_path / "mine")})).folder != made.folder
        )


HOLDS = """
import json, sys, time
from geo_utils.baseline_rewrites.params import BaselineRewritesParams
from geo_utils.runs import start_run
values = json.loads(sys.argv[1])
start_run("02_baseline_rewrites", BaselineRewritesParams.check(values))
print("held", flush=True)
time.sleep(600)
"""


class TestOneAtATime:
    """One live process an identity, whoever its parent is."""

    def test_a_second_process_is_refused_until_the_first_is_gone(self, params, monkeypatch):
        values = json.dumps(params().model_dump())
        first = subprocess.Popen([sys.executable, "-c", HOLDS, values], cwd=PROJECT,
                                 stdout=subprocess.PIPE)  # fmt: skip
        assert first.stdout.readline() == b"held\n"
        monkeypatch.setattr("geo_utils.runs.time.sleep", lambda _: None)
        monkeypatch.setattr("geo_utils.runs.time.monotonic", iter(range(0, 10**6, 5)).__next__)
        with pytest.raises(RunHeld, match="another process is running it"):
            start_run(NAME, params())
        first.kill()
        first.wait()
        made = start_run(NAME, params())
        assert start_run(NAME, params()).folder == made.folder  # the same process, again
        made.finish({})

    def test_one_that_has_ended_holds_nothing(self, params):
        for end in (lambda made: made.finish({}), lambda made: made.end("failed", "x")):
            given = params(seed=3)
            end(start_run(NAME, given))
            code = f"{HOLDS.replace('time.sleep(600)', '')}"
            done = subprocess.run([sys.executable, "-c", code, json.dumps(given.model_dump())],
                                  cwd=PROJECT, capture_output=True, text=True)  # fmt: skip
            assert done.stdout == "held\n", done.stderr

    def test_what_a_killed_run_has_started_ends_and_the_next_goes_on(self, tmp_path, gemini_server):
        """`run` is killed alone: Papermill, kernel and client end with it, and nothing is lost."""
        server = gemini_server(latency="constant:0.05")
        served = ", ".join(f"{role}: {server.url}" for role in ("engine", "judge", "rewriter"))
        command = run_command(
            NB02, "gemini", tmp_path, ("paths.cache", tmp_path / "c"), ("corpus.limit", 3),
            ("calls", "{max_concurrency: 1, timeout_s: 600, deadline_s: 1200}"),
            ("servers", f"{{{served}}}"),
        )  # fmt: skip
        environment = {**os.environ, "GEMINI_API_KEY": "a-key-of-this-test"}
        first = psutil.Popen(command, cwd=PROJECT, env=environment, stderr=subprocess.PIPE)
        until = time.monotonic() + 600
        while not any(entry["outcome"] == "answered" for entry in server.entries()):
            assert time.monotonic() < until and first.poll() is None
            time.sleep(0.05)
        started = first.children(recursive=True)
        assert len(started) >= 2, started  # Papermill, the kernel
        first.kill()
        assert not psutil.wait_procs([first, *started], timeout=120)[1]
        made, asked = only_run(tmp_path, NB02), len(server.entries())
        assert made.manifest["status"] != "finished"
        subprocess.run(command, cwd=PROJECT, env=environment, check=True, timeout=600)
        assert only_run(tmp_path, NB02).folder == made.folder
        assert made.manifest["status"] == "finished"
        seen = [(entry["prompt"], entry["seed"]) for entry in server.entries()]
        assert 0 < asked < len(seen) <= len(set(seen)) + 1  # the one in flight may be asked again


def test_a_failed_rerun_leaves_the_finished_report(tmp_path, monkeypatch):
    done = run_notebook(NB02, "smoke", tmp_path, ("corpus.limit", "3"))
    assert done.returncode == 0, done.stderr
    made = only_run(tmp_path, NB02)
    kept = {name: (made.folder / name).read_bytes() for name in ("report.html", "notebook.ipynb")}
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import sys\nif 'ipykernel_launcher' in ' '.join(sys.orig_argv): raise SystemExit(9)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(broken))
    failed = run_notebook(NB02, "smoke", tmp_path, ("corpus.limit", "3"))
    assert failed.returncode == 1, failed.stderr
    assert made.manifest["status"] == "finished" and "failed" in made.manifest["rerun"]
    assert {name: (made.folder / name).read_bytes() for name in kept} == kept
    monkeypatch.delenv("PYTHONPATH")
    again = run_notebook(NB02, "smoke", tmp_path, ("corpus.limit", "3"))
    assert again.returncode == 0 and "report:" in again.stdout
    assert not (made.folder / "notebook.rerun.ipynb").exists()
