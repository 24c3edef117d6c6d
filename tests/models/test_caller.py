"""The caller: against a scripted model where order matters, a real server where faults do."""

import asyncio
import hashlib
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import run
from google.genai import types
from headless import command
from servers import Gathering

from geo_utils.models.base import (
    Completion,
    FatalError,
    Price,
    Request,
    Sampling,
    TransientError,
    UnusableError,
    redacted,
)
from geo_utils.models.cache import AnswerCache, request_key
from geo_utils.models.caller import Caller, RateLimit, Retries, ServiceDown
from geo_utils.models.gemini import Gemini, _completion
from geo_utils.models.loops import run_sync
from geo_utils.models.usage import BudgetReached, Usage

MODEL = "gemini-2.5-flash-lite"
QUICK = Retries(backoff_s=0.01, max_backoff_s=0.02, timeout_s=60, breaker_s=0.2)
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


class Scripted:
    """A model that does what it is told for each call, in order; then answers."""

    model = cache_id = "scripted"

    def __init__(self, *script, latency=0.0):
        self.script, self.latency = list(script), latency
        self.prompts, self.times, self.now, self.most = [], [], 0, 0

    async def complete(self, request):
        self.prompts.append(request.prompt)
        self.times.append(time.monotonic())
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.latency)
            step = self.script.pop(0) if self.script else None
            if isinstance(step, Exception):
                raise step
            text = step if isinstance(step, str) else f"answer to {request.prompt}"
            return step if isinstance(step, Completion) else Completion(text, tokens_in=10)
        finally:
            self.now -= 1

    async def probe(self):
        pass

    async def close(self):
        pass


def ask(prompt="a", **options):
    return Request("engine", prompt, **options)


class TestKey:
    base = ask("a", template="t", sampling=Sampling(0.7, 100))

    @pytest.mark.parametrize(
        "other",
        [
            replace(base, prompt="a "),
            replace(base, role="judge"),
            replace(base, template="u"),
            replace(base, sampling=Sampling(0.7, 101)),
            replace(base, sampling=Sampling(0.71, 100)),
            replace(base, sample_index=1),
            replace(base, schema=SCHEMA),
            replace(base, choices=("yes", "no")),
        ],
    )
    def test_whatever_an_answer_depends_on_is_in_it(self, other):
        assert request_key("m", other) != request_key("m", self.base)

    def test_the_model_is_and_the_try_is_not(self):
        assert request_key("n", self.base) != request_key("m", self.base)
        assert request_key("m", replace(self.base, attempt=2)) == request_key("m", self.base)


class TestCache:
    def test_an_answer_outlives_its_process_and_is_never_asked_again(self, tmp_path):
        model = Scripted()
        first = run(Caller(model, AnswerCache(tmp_path)).complete(ask()))
        usage = Usage()
        again = run(Caller(model, AnswerCache(tmp_path), usage=usage).complete(ask()))
        assert again == first and len(model.prompts) == 1
        assert usage.report()["engine"]["cached"] == 1

    def test_what_another_process_adds_is_seen(self, tmp_path):
        early, late = AnswerCache(tmp_path), AnswerCache(tmp_path)
        late.put("k" * 64, "m", ask(), Completion("there"))
        assert early.get("k" * 64) is None
        early.refresh()
        assert early.get("k" * 64).text == "there"

    @pytest.mark.parametrize("cut", [1, 40, 70, 200])
    def test_a_torn_entry_is_a_miss_and_harms_no_other(self, tmp_path, cut):
        cache = AnswerCache(tmp_path)
        for key in "abc":
            cache.put(key * 64, "m", ask(), Completion(f"answer {key}"))
        (segment,) = tmp_path.glob("*.answers.jsonl")
        segment.write_bytes(segment.read_bytes()[:-cut])
        whole = AnswerCache(tmp_path)
        assert [whole.get(k * 64) and whole.get(k * 64).text for k in "abc"] == [
            "answer a",
            "answer b",
            None,
        ]

    @pytest.mark.parametrize("noise", [b"\x00" * 500, b"x" * 64 + b" {not json}\n", b"\xff\n\n"])
    def test_noise_in_a_segment_is_no_crash(self, tmp_path, noise):
        (tmp_path / "x.answers.jsonl").write_bytes(noise)
        cache = AnswerCache(tmp_path)
        assert cache.get("x" * 64) is None
        cache.put("y" * 64, "m", ask(), Completion("fine"))
        assert AnswerCache(tmp_path).get("y" * 64).text == "fine"

    def test_a_folder_that_cannot_be_written_is_refused_before_any_call(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match=r"cannot be written .* Set paths.cache"):
            AnswerCache(tmp_path / "file")

    def test_a_full_disk_stops_the_run_but_gives_the_answer_that_was_paid(
        self, tmp_path, monkeypatch
    ):
        model, cache = Scripted(), AnswerCache(tmp_path)
        caller = Caller(model, cache, QUICK)
        run(caller.complete(ask("kept")))
        real = os.write
        monkeypatch.setattr(os, "write", lambda d, line: real(d, line[: len(line) // 2]))
        assert run(caller.complete(ask("a"))).text == "answer to a"
        with pytest.raises(FatalError, match="cannot be written any more"):
            run(caller.complete(ask("b")))
        assert model.prompts == ["kept", "a"]
        monkeypatch.undo()
        cache.put("z" * 64, "m", ask(), Completion("after the torn one"))
        later = AnswerCache(tmp_path)
        assert later.get("z" * 64).text == "after the torn one"
        assert later.get(request_key("scripted", ask("kept"))).text == "answer to kept"
        assert later.get(request_key("scripted", ask("a"))) is None

    def test_a_pruned_folder_never_gives_another_keys_answer(self, tmp_path):
        writer = AnswerCache(tmp_path)
        for key in "abcd":
            writer.put(key * 64, "m", ask(), Completion(f"answer {key}"))
        reader = AnswerCache(tmp_path)
        os.close(writer._segment[0])  # as when its process has ended
        assert AnswerCache(tmp_path).prune({"a" * 64}) == (1, 0)
        for _ in range(2):
            found = [reader.get(key * 64) for key in "abcd"]
            assert [f.text for f in found if f] in ([], ["answer b", "answer c", "answer d"])
            reader.refresh()
        assert [reader.get(key * 64).text for key in "bcd"] == ["answer b", "answer c", "answer d"]

    @pytest.mark.parametrize("gone", ["segment", "folder"])
    def test_what_is_deleted_meanwhile_costs_only_what_it_held(self, tmp_path, gone):
        cache = AnswerCache(tmp_path / "cache")
        cache.put("a" * 64, "m", ask(), Completion("before"))
        (segment,) = cache.folder.glob("*.answers.jsonl")
        shutil.rmtree(cache.folder) if gone == "folder" else segment.unlink()
        cache.refresh()
        cache.put("b" * 64, "m", ask(), Completion("after"))
        for held in (cache, AnswerCache(cache.folder)):
            assert held.get("a" * 64) is None and held.get("b" * 64).text == "after"

    def test_a_segment_that_was_emptied_is_read_from_its_beginning(self, tmp_path):
        writer = AnswerCache(tmp_path)
        for key in "ab":
            writer.put(key * 64, "m", ask(), Completion("before"))
        reader = AnswerCache(tmp_path)
        os.truncate(writer._segment[1], 0)
        reader.refresh()
        for key in "bcd":
            writer.put(key * 64, "m", ask(), Completion("after"))
        reader.refresh()
        assert reader.get("a" * 64) is None
        assert [reader.get(key * 64).text for key in "bcd"] == ["after"] * 3

    def test_many_segments_become_one_and_nobody_loses_an_answer(self, tmp_path):
        reader = AnswerCache(tmp_path)  # from before they are put together
        for i in range(40):
            writer = AnswerCache(tmp_path)
            writer.put(f"{i:064x}", "m", ask(), Completion(f"answer {i}"))
            if i < 39:
                os.close(writer._segment[0])  # as when its process has ended
        reader.refresh()
        with next(iter(tmp_path.glob("*.jsonl"))).open("ab") as file:
            file.write(b"f" * 64 + b" torn")
        later = AnswerCache(tmp_path)
        assert len(list(tmp_path.glob("*.answers.jsonl"))) < 20  # and the one that is written to
        assert writer._segment[1].is_file()
        for cache in (reader, later, writer):
            cache.refresh()
            assert [cache.get(f"{i:064x}").text for i in range(40)] == [
                f"answer {i}" for i in range(40)
            ]
        assert later.get("f" * 64) is None

    def test_what_waits_for_its_turn_holds_no_lock(self, tmp_path):
        """20,000 of them in the operating system's list would freeze the loop for seconds."""
        held = []

        class Counting(Scripted):
            async def complete(self, request):
                mine = [line for line in Path("/proc/locks").read_text().splitlines()
                        if line.split()[4] == str(os.getpid()) and "POSIX" in line]  # fmt: skip
                held.append(len(mine))
                await asyncio.sleep(0.01)
                return await super().complete(request)

        caller = Caller(Counting(), AnswerCache(tmp_path), replace(QUICK, max_concurrency=4))

        async def many():
            await asyncio.gather(*(caller.complete(ask(str(i))) for i in range(100)))

        before = Path("/proc/locks").read_text().count(f" {os.getpid()} ")
        run(many())
        assert len(held) == 100 and max(held) <= before + 4

    def test_the_folder_is_looked_through_only_where_others_have_written(
        self, tmp_path, monkeypatch
    ):
        scans, real = [], os.scandir
        caller = Caller(Scripted(), AnswerCache(tmp_path), QUICK)
        other = AnswerCache(tmp_path)
        monkeypatch.setattr(os, "scandir", lambda path: scans.append(path) or real(path))

        async def many(name):
            await asyncio.gather(*(caller.complete(ask(f"{name} {i}")) for i in range(50)))

        run(many("a"))
        assert not scans
        other.put(request_key("scripted", ask("b 7")), "m", ask("b 7"), Completion("theirs"))
        run(many("b"))
        assert len(scans) == 1 and "b 7" not in caller.model.prompts

    def test_a_segment_that_cannot_be_read_is_a_miss(self, tmp_path, monkeypatch):
        AnswerCache(tmp_path).put("a" * 64, "m", ask(), Completion("fine"))
        closed = tmp_path / "another.answers.jsonl"
        closed.write_text(f"{'b' * 64} {{}}\n")
        (tmp_path / "loop.answers.jsonl").symlink_to("loop.answers.jsonl")
        opened = Path.open

        def refuse(path, *options):
            if path == closed:
                raise PermissionError(13, "Permission denied", str(path))
            return opened(path, *options)

        monkeypatch.setattr(Path, "open", refuse)
        cache = AnswerCache(tmp_path)
        assert cache.get("a" * 64).text == "fine" and cache.get("b" * 64) is None

    def test_a_folder_without_locks_is_refused_before_any_call(self, tmp_path, monkeypatch):
        def refuse(*_):
            raise OSError(37, "No locks available")

        monkeypatch.setattr("geo_utils.models.cache.fcntl.lockf", refuse)
        with pytest.raises(OSError, match=r"No locks available\); .* Set paths.cache to a folder"):
            AnswerCache(tmp_path)

    @pytest.mark.parametrize(
        "changes",
        [
            {"created": None}, {"created": "today"}, {"completion": [1]}, {"completion": None},
            {"completion": {"text": "x", "tokens_in": None}}, {"role": None, "model": ["m"]},
        ],
    )  # fmt: skip
    def test_the_command_counts_what_another_version_wrote(self, tmp_path, changes):
        entry = {"role": "engine", "model": "m", "created": 1.0, "completion": {"text": "x"}}
        line = f"{'a' * 64} {json.dumps(entry | changes)}\n"
        (tmp_path / "x.answers.jsonl").write_text(line)
        done = command("geo_utils", "cache", "--root", tmp_path)
        assert done.returncode == 0 and "1 answers held" in done.stdout, done.stderr

    def test_a_forked_child_writes_a_segment_of_its_own(self, tmp_path):
        cache = AnswerCache(tmp_path)
        cache.put("a" * 64, "m", ask(), Completion("parent"))
        child = os.fork()
        if child == 0:
            for i in range(300):
                cache.put(f"{i:064d}", "m", ask(), Completion(f"child {i}"))
            os._exit(0)
        for i in range(300):
            cache.put(f"{i:064x}".replace("0", "f"), "m", ask(), Completion(f"parent {i}"))
        os.waitpid(child, 0)
        later = AnswerCache(tmp_path)
        assert later.get("a" * 64).text == "parent" and len(list(tmp_path.glob("*.jsonl"))) == 2
        assert all(later.get(f"{i:064d}").text == f"child {i}" for i in range(300))

    def test_a_lone_surrogate_in_a_prompt_loses_nothing(self, tmp_path):
        model = Scripted()
        caller = Caller(model, AnswerCache(tmp_path))
        for _ in range(2):
            run(caller.complete(ask("bad \ud83d page")))
        assert len(model.prompts) == 1

    def test_errors_are_never_kept(self, tmp_path):
        model = Scripted(UnusableError("no", "blocked"))
        caller = Caller(model, AnswerCache(tmp_path))
        with pytest.raises(UnusableError):
            run(caller.complete(ask()))
        assert run(caller.complete(ask())).text == "answer to a"

    def test_the_command_counts_and_deletes(self, tmp_path):
        cache = AnswerCache(tmp_path)
        cache.put("a" * 64, "m", ask(), Completion("one", tokens_in=5))
        cache.put("b" * 64, "n", Request("judge", "x"), Completion("two", served_by="simulated-n"))

        def told(*arguments):
            done = command("geo_utils", "cache", *arguments, "--root", tmp_path)
            assert done.returncode == 0, done.stderr
            return done.stdout

        shown = told()
        assert "engine     m" in shown and "2 answers held" in shown
        assert "judge      simulated-n" in shown
        assert "1 answers held" in told("--role", "judge")
        assert "left alone" in told("--role", "judge", "--delete")  # we write to it
        descriptor, _ = cache._segment
        os.close(descriptor)
        assert "1 answers deleted" in told("--role", "judge", "--delete")
        left = AnswerCache(tmp_path)
        assert left.get("a" * 64).text == "one" and left.get("b" * 64) is None


class TestFlights:
    @pytest.mark.parametrize("cached", [True, False])
    def test_equal_requests_in_flight_make_one_call(self, tmp_path, cached):
        model = Scripted(latency=0.05)
        caller = Caller(model, AnswerCache(tmp_path) if cached else None)

        async def many():
            return await asyncio.gather(*(caller.complete(ask()) for _ in range(20)))

        assert {c.text for c in run_sync(many())} == {"answer to a"}
        assert len(model.prompts) == 1

    def test_also_over_event_loops_and_threads(self, tmp_path):
        model = Scripted(latency=0.2)
        caller = Caller(model, AnswerCache(tmp_path))
        found = []
        threads = [
            threading.Thread(target=lambda: found.append(run(caller.complete(ask()))))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4 and len(model.prompts) == 1

    def test_when_the_leader_is_cancelled_a_follower_takes_over(self, tmp_path):
        model = Scripted(latency=3600)
        caller = Caller(model, AnswerCache(tmp_path))

        async def scene():
            leader = asyncio.create_task(caller.complete(ask()))
            while not model.prompts:
                await asyncio.sleep(0.01)
            follower = asyncio.create_task(caller.complete(ask()))
            await asyncio.sleep(0.02)
            model.latency = 0
            leader.cancel()
            return await follower

        assert run(scene()).text == "answer to a"
        assert len(model.prompts) == 2

    def test_an_error_reaches_every_waiter(self, tmp_path):
        model = Scripted(UnusableError("no", "blocked"), latency=0.05)
        caller = Caller(model, AnswerCache(tmp_path))

        async def many():
            calls = (caller.complete(ask()) for _ in range(3))
            return await asyncio.gather(*calls, return_exceptions=True)

        assert [type(e) for e in run_sync(many())] == [UnusableError] * 3

    @pytest.mark.parametrize("places", [1, 5])
    def test_concurrency_is_bounded_and_used(self, places):
        model = Scripted(latency=0.01)
        caller = Caller(model, retries=replace(QUICK, max_concurrency=places))

        async def many():
            await asyncio.gather(*(caller.complete(ask(str(i))) for i in range(30)))

        run_sync(many())
        assert model.most == places

    def test_a_cancelled_waiter_keeps_no_place(self):
        model = Scripted(latency=0.05)
        caller = Caller(model, retries=replace(QUICK, max_concurrency=1))

        async def scene():
            tasks = [asyncio.create_task(caller.complete(ask(str(i)))) for i in range(4)]
            await asyncio.sleep(0.01)
            tasks[1].cancel()
            tasks[2].cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

        kinds = [type(result) for result in run_sync(scene())]
        assert kinds == [Completion, asyncio.CancelledError, asyncio.CancelledError, Completion]


class TestTries:
    def test_transient_faults_are_tried_again(self):
        model = Scripted(TransientError("x", "500"), TransientError("x", "reset"))
        usage = Usage()
        assert run(Caller(model, retries=QUICK, usage=usage).complete(ask())).text == "answer to a"
        report = usage.report()["engine"]
        assert report["failures"] == {"500": 1, "reset": 1}
        assert (report["calls"], report["answered"], report["retries"]) == (3, 1, 2)

    def test_retry_after_is_waited_for_by_all_calls(self, naps):
        model = Scripted(TransientError("busy", "429", retry_after_s=0.4))
        caller = Caller(model, retries=replace(QUICK, max_concurrency=2))

        async def two():
            first = asyncio.create_task(caller.complete(ask("a")))
            while not model.prompts or model.now:
                await asyncio.sleep(0)
            await asyncio.gather(first, caller.complete(ask("b")))  # which has not been refused

        run(two())
        refused, *later = model.times
        assert len(later) == 2 and all(again - refused >= 0.4 for again in later)
        assert max(naps) == 0.4  # and for no longer than asked

    def test_a_hanging_call_costs_at_most_the_deadline(self):
        model = Scripted(latency=3600)
        retries = replace(QUICK, timeout_s=0.2, deadline_s=0.5)
        with pytest.raises(TransientError, match="no answer within"):
            run(Caller(model, retries=retries).complete(ask()))
        assert len(model.prompts) <= 3 < retries.max_tries  # two whole tries and what is left

    def test_a_daily_quota_stops_the_run_instead_of_sleeping(self, naps):
        model = Scripted(TransientError("quota", "429", retry_after_s=3600))
        caller = Caller(model, retries=QUICK)

        with pytest.raises(TransientError, match="quota"):
            run(caller.complete(ask("a")))
        with pytest.raises(ServiceDown, match="asks to wait 3600 s"):
            run(caller.complete(ask("b")))
        assert model.prompts == ["a"] and not any(naps)

    def test_tries_and_the_runs_retries_are_bounded(self):
        faults = [TransientError("x", "500") for _ in range(50)]
        model = Scripted(*faults)
        retries = replace(QUICK, max_tries=4, max_retries=5, breaker_failures=1000)
        caller = Caller(model, retries=retries)
        for _ in range(3):
            with pytest.raises(TransientError):
                run(caller.complete(ask()))
        assert len(model.prompts) == 4 + 3 + 1  # 3 retries, then the last 2, then none

    @pytest.mark.parametrize(
        ("answer", "kind"),
        [
            (Completion("", finish_reason="stop"), "empty"),
            (Completion('{"a": 1', finish_reason="length"), "truncated"),
            ("no json here", "unparsable"),
            ('{"a": "one"}', "unparsable"),
            ('{"b": 1}', "unparsable"),
            ("[1, 2]", "unparsable"),
            ('{"a": true}', "unparsable"),
            ("[" * 100_000, "unparsable"),
            ("{ " * 50_000, "unparsable"),
            ('<think>{"a": 1}', "unparsable"),
        ],
    )
    def test_unusable_answers_are_tried_thrice_and_then_given_up(self, answer, kind):
        model = Scripted(answer, answer, answer)
        usage = Usage()
        with pytest.raises(UnusableError) as caught:
            run(Caller(model, retries=QUICK, usage=usage).complete(ask(schema=SCHEMA)))
        assert caught.value.kind == kind
        assert usage.report()["engine"]["failures"] == {kind: 3}

    @pytest.mark.parametrize(
        "answer",
        [
            '{"a": 7}',
            '```json\n{"a": 7}\n```',
            'Here it is: {"a": 7} Done.',
            '{x} {"a": 7}',
            '<think>{"a": 1} no</think>{"a": 7}',
        ],
    )
    def test_json_is_found_where_it_stands(self, answer):
        assert run(Caller(Scripted(answer)).complete(ask(schema=SCHEMA))).parsed == {"a": 7}

    def test_a_very_long_answer_is_an_answer(self):
        text = "word " * 20_000
        assert run(Caller(Scripted(text)).complete(ask())).text == text

    def test_a_refused_key_stops_all_calls_at_once(self):
        model = Scripted(FatalError("key refused"))
        caller = Caller(model, retries=QUICK)
        for _ in range(3):
            with pytest.raises(FatalError, match="key refused"):
                run(caller.complete(ask()))
        assert len(model.prompts) == 1

    def test_a_service_that_is_down_stops_the_run(self):
        model = Scripted(*(TransientError("refused", "connection") for _ in range(500)))
        retries = replace(QUICK, breaker_failures=10, breaker_s=0.05, max_tries=100)
        caller = Caller(model, retries=retries)
        with pytest.raises(ServiceDown, match=r"seems to be down: .* failures in a row"):
            run(caller.complete(ask()))
        assert 10 <= len(model.prompts) < 30
        with pytest.raises(ServiceDown):
            run(caller.complete(ask("b")))


class TestBudget:
    def test_max_calls_ends_the_run_and_keeps_the_answers(self, tmp_path):
        model = Scripted()
        caller = Caller(model, AnswerCache(tmp_path), QUICK, Usage(max_calls=3))

        async def many():
            calls = (caller.complete(ask(str(i))) for i in range(6))
            return await asyncio.gather(*calls, return_exceptions=True)

        results = run(many())
        assert sum(isinstance(r, BudgetReached) for r in results) == 3
        assert len(model.prompts) == 3
        assert len(list(AnswerCache(tmp_path).entries())) == 3
        assert run(caller.complete(ask("0"))).text == "answer to 0"  # held answers are free

    def test_max_cost_counts_what_is_in_flight(self):
        usage = Usage(
            max_cost=1.0, prices={"scripted": Price(tokens_in=100_000, tokens_out=0)}
        )  # 0.1 $ a token
        caller = Caller(Scripted(latency=0.02), retries=QUICK, usage=usage)

        async def many():
            calls = (caller.complete(ask(f"{i}ab")) for i in range(20))
            return await asyncio.gather(*calls, return_exceptions=True)

        answered = [r for r in run_sync(many()) if isinstance(r, Completion)]
        assert len(answered) == 10  # of 0.1 $ each as estimated

    def test_an_unknown_price_is_never_free(self):
        caller = Caller(Scripted(), retries=QUICK, usage=Usage(max_cost=1.0))
        with pytest.raises(BudgetReached, match="the price of 'scripted' is unknown"):
            run(caller.complete(ask()))
        usage = Usage()
        run(Caller(Scripted(), usage=usage).complete(ask()))
        assert usage.report()["engine"]["cost_usd"] is None


class TestAgainstAServer:
    """The unmodified google-genai client against the look-alike."""

    @pytest.mark.parametrize(
        ("options", "model", "message"),
        [
            ({"key": "another"}, "gemini-2.5-flash-lite", "the key is refused"),
            ({}, "gemini-1.0-pro", "not served .* gemini-2.5-flash, gemini-2.5-flash-lite"),
        ],
    )
    def test_a_wrong_key_and_a_retired_model_stop_before_money_is_spent(
        self, gemini_server, options, model, message
    ):
        server = gemini_server(**options)
        with pytest.raises(FatalError, match=message):
            run(Gemini(model, server.url).probe())
        caller = Caller(Gemini(model, server.url), retries=QUICK)
        with pytest.raises(FatalError, match=message):
            run(caller.complete(ask()))

    def test_no_key_and_no_network(self, monkeypatch):
        monkeypatch.delenv("GEMINI_API_KEY", raising=False)
        monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
        with pytest.raises(FatalError, match="set GEMINI_API_KEY"):
            run(Gemini(MODEL).probe())
        monkeypatch.setenv("GEMINI_API_KEY", "k")
        with pytest.raises(FatalError, match="cannot be reached"):
            run(Gemini(MODEL, "http://127.0.0.1:9").probe())

    @pytest.mark.parametrize(
        ("fault", "error", "kind"),
        [
            ("blocked", UnusableError, "blocked"),
            ("truncated", UnusableError, "truncated"),
            ("empty", UnusableError, "empty"),
            ("429", TransientError, "429"),
            ("500", TransientError, "500"),
            ("reset", TransientError, "connection"),
            ("hang", TransientError, "timeout"),
        ],
    )
    def test_every_fault_has_its_kind(self, gemini_server, fault, error, kind):
        server = gemini_server(faults={fault: 1}, retry_after_s=0.05)
        retries = replace(QUICK, max_tries=2, timeout_s=0.5 if kind == "timeout" else 60)
        with pytest.raises(error) as caught:
            run(Caller(Gemini(MODEL, server.url), retries=retries).complete(ask()))
        assert caught.value.kind == kind

    def test_a_reset_connection_is_sent_again_by_the_caller_alone(self, gemini_server):
        server = gemini_server(faults={"reset": 1})
        usage = Usage()
        caller = Caller(Gemini(MODEL, server.url), retries=replace(QUICK, max_tries=3), usage=usage)
        with pytest.raises(TransientError):
            run(caller.complete(ask()))
        assert usage.report()["engine"]["calls"] == len(server.entries()) == 3

    def test_a_stand_ins_answers_are_never_taken_for_the_services(self, monkeypatch):
        monkeypatch.setenv("GEMINI_API_KEY", "k")
        there = Gemini(MODEL, "http://127.0.0.1:9").cache_id
        assert there != Gemini(MODEL).cache_id
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://127.0.0.1:9")
        assert Gemini(MODEL).cache_id == there

    def test_a_key_that_the_service_echoes_is_not_shown(self, monkeypatch):
        monkeypatch.setenv("GEMINI_API_KEY", "AIza-echoed-by-the-service")
        message = "Consumer 'api_key:AIza-echoed-by-the-service' has been suspended"
        assert redacted(message) == "Consumer 'api_key:[GEMINI_API_KEY]' has been suspended"

    def test_retry_after_is_read_from_the_header(self, gemini_server):
        server = gemini_server(faults={"429": 1}, retry_after_s=7)
        with pytest.raises(TransientError) as caught:
            run(Gemini(MODEL, server.url).complete(ask()))
        assert caught.value.retry_after_s == 7
        silent = gemini_server(faults={"429": 1}, retry_after_s=None)
        with pytest.raises(TransientError) as caught:
            run(Gemini(MODEL, silent.url).complete(ask()))
        assert caught.value.retry_after_s is None

    def test_one_event_loop_after_another_and_two_at_once(self, gemini_server):
        server = gemini_server()
        model = Gemini(MODEL, server.url)
        caller = Caller(model, retries=QUICK)
        for i in range(3):
            run(caller.complete(ask(f"loop {i}")))
        loop = asyncio.new_event_loop()  # as TRL keeps one in a daemon thread
        threading.Thread(target=loop.run_forever, daemon=True).start()
        there = asyncio.run_coroutine_threadsafe(caller.complete(ask("there")), loop)
        run(caller.complete(ask("here")))
        assert there.result(timeout=60).served_by.startswith("simulated-")
        loop.call_soon_threadsafe(loop.stop)

    def test_usage_counts_tokens_latency_and_cost(self, gemini_server):
        server = gemini_server(latency="constant:0.05")
        usage = Usage()
        caller = Caller(Gemini(MODEL, server.url), retries=QUICK, usage=usage)
        started = time.monotonic()
        run(caller.complete(ask("a" * 400)))
        took = time.monotonic() - started
        row = usage.report()["engine"]
        assert row["tokens_in"] == 101 and row["tokens_out"] > 0
        assert 0.05 <= row["latency_p50_s"] <= took + 1e-4  # it is rounded
        assert row["cost_usd"] == pytest.approx((101 * 0.10 + row["tokens_out"] * 0.40) / 1e6)
        assert usage.served_by == {"simulated-gemini-2.5-flash-lite"}

    def test_what_is_blocked_counts_towards_the_budget(self, gemini_server):
        server = gemini_server(faults={"blocked": 1})
        usage = Usage(max_cost=0.0001)  # a call takes 0.0000101 of it
        caller = Caller(Gemini(MODEL, server.url), retries=QUICK, usage=usage)
        short = Sampling(max_tokens=1)
        for i in range(9):
            with pytest.raises(UnusableError, match="prompt blocked: SAFETY"):
                run(caller.complete(ask(f"{i}" * 400, sampling=short)))
        with pytest.raises(BudgetReached, match=r"0\.0001 is reached \(0\.0001 spent, "):
            run(caller.complete(ask("a" * 400, sampling=short)))
        row = usage.report()["engine"]
        assert (row["answered"], row["failures"]) == (0, {"blocked": 9})
        assert (row["tokens_in"], row["tokens_out"]) == (9 * 101, 0)
        assert row["cost_usd"] == pytest.approx(9 * 101 * 0.10 / 1e6)

    @pytest.mark.parametrize(
        ("body", "counts"),
        [
            ({"candidates": [{"finishReason": "SAFETY"}]}, (7, 12, 2)),
            ({"candidates": []}, (7, 12, 2)),
            ({"candidates": [{"finishReason": "SAFETY"}], "usageMetadata": None}, None),
        ],
    )
    def test_an_answer_that_is_lost_brings_its_counts(self, body, counts):
        used = {"promptTokenCount": 7, "candidatesTokenCount": 4, "thoughtsTokenCount": 8,
                "cachedContentTokenCount": 2}  # fmt: skip
        response = types.GenerateContentResponse.model_validate({"usageMetadata": used} | body)
        with pytest.raises(UnusableError) as caught:
            _completion(response, 0.5)
        told = pickle.loads(pickle.dumps(caught.value)).counts  # as from a process of its own
        assert (told and (told.tokens_in, told.tokens_out, told.tokens_cached)) == counts

    def test_64_engine_calls_overlap_and_so_do_their_judge_calls(self, monkeypatch):
        monkeypatch.setenv("GEMINI_API_KEY", "k")

        async def scene():
            async with Gathering(64, 64) as server:  # answers nothing before 64 are there
                model = Gemini(MODEL, server.url)
                retries = replace(QUICK, max_concurrency=64, max_tries=1, timeout_s=150)
                caller = Caller(model, retries=retries)

                async def rollout(i):
                    answer = await caller.complete(ask(f"question {i}"))
                    return await caller.complete(Request("judge", f"{i} {answer.text}"))

                await asyncio.gather(*(rollout(i) for i in range(64)))
                await model.close()
                return server.most, server.calls

        assert run(scene()) == (64, 128)

    @pytest.mark.parametrize("width", [1, 8])
    def test_a_call_is_one_request_and_connections_are_kept(self, monkeypatch, tmp_path, width):
        """What the caller's throughput hangs on; `make bench` measures it."""
        monkeypatch.setenv("GEMINI_API_KEY", "k")

        async def scene():
            async with Gathering(width) as server:
                model = Gemini(MODEL, server.url)
                retries = replace(QUICK, max_concurrency=width)
                caller = Caller(model, AnswerCache(tmp_path), retries)
                await asyncio.gather(*(caller.complete(ask(str(i))) for i in range(100)))
                await model.close()
                return server

        server = run(scene())
        assert (server.calls, server.most) == (100, width)
        assert len(server.connections) <= 2 * width  # a hundred, were each call to open its own


WORKER = """
import asyncio, json, sys, time
from types import SimpleNamespace
from pathlib import Path
from geo_utils.models.base import Request
from geo_utils.models.cache import AnswerCache
from geo_utils.models.caller import Caller
from geo_utils.models.gemini import Gemini
from geo_utils.models import caller as limits
from geo_utils.models.caller import RateLimit

url, folder, rpm, prompts = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]
limit = RateLimit(folder / "limits" / "shared", rpm or None)
caller = Caller(Gemini("gemini-2.5-flash-lite", url), AnswerCache(folder), limit=limit)
book, read, places = limit._book, [], []
since = time.time() - time.monotonic()  # the server's log has the time of day

def clock():
    read.append(time.monotonic())
    return read[-1]

def booking(*seconds):
    pause = book(*seconds)
    places.append(since + read[-1] + max(pause, 0.0))
    return pause

async def main():
    limits.time, limit._book = SimpleNamespace(monotonic=clock), booking
    await asyncio.gather(*(caller.complete(Request("engine", p)) for p in prompts))

asyncio.run(main())
print(json.dumps([caller.usage.report()["engine"]["answered"], places]))
"""


class TestRateLimit:
    @pytest.fixture
    def stopped(self, monkeypatch):
        """The limit's clock stands still: a pause hangs on what was booked, and on nothing else."""
        clock = SimpleNamespace(monotonic=lambda: 1e6)
        monkeypatch.setattr("geo_utils.models.caller.time", clock)

    def test_tokens_bind_as_requests_do(self, tmp_path, naps, stopped):
        limit = RateLimit(tmp_path / "limit", tokens_per_minute=60_000)  # 950 a second, 3 s burst

        async def book(n):
            started = time.monotonic()
            await asyncio.gather(*(limit.wait(500) for _ in range(n)))
            return time.monotonic() - started

        run(book(5))
        assert naps == []  # 2,500 tokens, of the burst's 2,850
        assert run(book(2)) >= 0.684
        assert naps == pytest.approx([3000 / 950 - 3, 3500 / 950 - 3])

    def test_what_was_not_used_is_given_back(self, tmp_path, naps, stopped):
        limit = RateLimit(tmp_path / "limit", tokens_per_minute=60_000)
        run(limit.wait(2_800))
        limit.correct(-2_800)
        run(limit.wait(500))
        assert naps == []
        run(limit.wait(2_800))
        assert naps == pytest.approx([3300 / 950 - 3])

    def test_a_clock_that_is_set_back_makes_nobody_wait(self, tmp_path, monkeypatch):
        limit = RateLimit(tmp_path / "limit", 60)
        before = [limit._book(1.0, 0.0) for _ in range(10)]
        monkeypatch.setattr(time, "time", lambda: 0.0)
        assert before[-1] < limit._book(1.0, 0.0) <= before[-1] + 1.0

    @pytest.mark.parametrize("ahead", [1e5, 1e9, float("inf"), float("nan")])
    def test_what_nobody_has_booked_is_no_booking(self, tmp_path, ahead):
        limit = RateLimit(tmp_path / "limit", 60)
        limit.path.write_bytes(struct.pack("dd", *[time.monotonic() + ahead] * 2))
        assert limit._book(1.0, 0.0) <= 0.0
        limit.path.write_bytes(b"torn")
        assert limit._book(1.0, 0.0) <= 0.0

    def test_an_earlier_start_of_the_machine_has_a_file_of_its_own(self, tmp_path, monkeypatch):
        """Its clock had come further than this one's."""
        earlier = RateLimit(tmp_path / "limit", 60)
        earlier.path.write_bytes(struct.pack("dd", *[time.monotonic() + 3000] * 2))
        assert earlier._book(1.0, 0.0) > 2900
        monkeypatch.setattr("geo_utils.models.caller._machine_start", lambda: "the next one")
        assert RateLimit(tmp_path / "limit", 60)._book(1.0, 0.0) <= 0.0


class TestTwoProcesses:
    def workers(self, server, folder, rpm, *prompts):
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(WORKER), server.url, folder, str(rpm), *own],
                stdout=subprocess.PIPE,
                text=True,
            )
            for own in prompts
        ]
        return [json.loads(process.communicate(timeout=600)[0]) for process in processes]

    def test_they_share_answers(self, gemini_server, tmp_path):
        server = gemini_server(latency="constant:0.1")
        prompts = [f"prompt {i}" for i in range(40)]
        found = self.workers(server, tmp_path / "cache", 0, prompts, prompts[::-1])
        assert sum(answered for answered, _ in found) == 40
        assert set(server.answered().values()) == {1} and len(server.answered()) == 40

    def test_they_stay_under_one_limit_together(self, gemini_server, tmp_path):
        server = gemini_server()
        rpm = 240  # 4 a second; 12 may go at once
        mine, yours = ([f"{who} {i}" for i in range(20)] for who in ("mine", "yours"))
        found = self.workers(server, tmp_path / "cache", rpm, mine, yours)
        places = sorted(place for _, booked in found for place in booked)
        times = sorted(entry["time"] for entry in server.entries())
        assert len(times) == len(places) == 40
        assert times[-1] - places[0] >= (40 - 12) / 4
        # A busy machine sends later than booked, never earlier (0.05 s: two clocks).
        assert all(at >= place - 0.05 for at, place in zip(times, places, strict=True))
        for i, start in enumerate(places):
            for j in range(i + 1, len(places)):
                assert j - i <= 12 + (places[j] - start) * rpm / 60 + 1  # the one at its start


EVALUATION = """
import json, sys
from pathlib import Path
from geo_utils.corpus import load_corpus
from geo_utils.evaluate import evaluate
from geo_utils.roles.by_model import ModelEngine, ModelJudge
from geo_utils.models.cache import AnswerCache
from geo_utils.models.caller import Caller, Retries
from geo_utils.models.gemini import Gemini

url, folder, repeats, timeout, table = sys.argv[1:]
retries = Retries(timeout_s=float(timeout), backoff_s=0.05, max_backoff_s=0.3)
caller = Caller(Gemini("gemini-2.5-flash-lite", url), AnswerCache(Path(folder)), retries)
methods = ["original", "paste_key_point", "repeat_key_point"]
samples = evaluate(load_corpus(), methods, ModelEngine(caller), ModelJudge(caller), int(repeats))
samples.to_pickle(table)
Path(table + ".json").write_text(json.dumps(caller.usage.report()))
"""


def evaluation(server, folder, repeats, timeout, table):
    return subprocess.Popen(
        [sys.executable, "-c", EVALUATION, server.url, folder, str(repeats), str(timeout), table],
        stderr=subprocess.DEVNULL,
    )


def prompts_held(folder):
    return Counter(entry["prompt_sha256"] for _, entry in AnswerCache(folder).entries())


def lines_held(folder):
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*.answers.jsonl"))


def calls_held(folder):
    entries = (entry for _, entry in AnswerCache(folder).entries())
    return {(entry["prompt_sha256"], entry["sample_index"]) for entry in entries}


def asked_of(entries):
    return {(entry["prompt"], entry["seed"] // 1000) for entry in entries}  # as `Request.seed`


def test_a_thousand_calls_with_faults_end_by_themselves(gemini_server, tmp_path):
    """Done when 1: every sample is scored or an abstention; answers and server log agree."""
    import pandas as pd

    faults = {"429": 0.05, "500": 0.02, "truncated": 0.02, "blocked": 0.01, "hang": 0.005}
    server = gemini_server(faults=faults, latency="constant:0.01", retry_after_s=0.1)
    table = tmp_path / "samples.pickle"
    process = evaluation(server, tmp_path / "cache", 6, 30, str(table))  # a busy server is late
    assert process.wait(timeout=600) == 0
    samples = pd.read_pickle(table)
    assert len(samples) == 540
    scored, lost = samples["supported"].notna(), samples["abstention"].notna()
    assert (scored ^ lost).all() and 0 < lost.sum() < 40
    assert lost[lost].index.size == samples.loc[lost, "abstention"].str.len().gt(0).sum()
    assert samples.loc[lost, "supported"].isna().all()
    outcomes = server.outcomes()
    assert sum(outcomes.values()) > 1000
    assert {"429", "500", "truncated", "blocked", "hang"} <= set(outcomes)
    assert prompts_held(tmp_path / "cache") == server.answered()
    usage = json.loads((tmp_path / "samples.pickle.json").read_text())
    assert sum(row["answered"] for row in usage.values()) == outcomes["answered"]


def test_a_finished_evaluation_of_hundreds_of_samples_runs_again_without_a_call(
    gemini_server, tmp_path
):
    """Done when 4."""
    import pandas as pd

    server = gemini_server()
    tables = [str(tmp_path / name) for name in ("first", "second")]
    assert evaluation(server, tmp_path / "cache", 6, 30, tables[0]).wait(600) == 0
    asked = len(server.entries())
    assert len(pd.read_pickle(tables[0])) == 540
    assert evaluation(server, tmp_path / "cache", 6, 30, tables[1]).wait(600) == 0
    assert len(server.entries()) == asked
    usage = json.loads((tmp_path / "second.json").read_text())
    assert all(row["calls"] == row["retries"] == 0 < row["cached"] for row in usage.values())
    pd.testing.assert_frame_equal(*map(pd.read_pickle, tables))


def test_the_key_shows_nowhere(gemini_server, tmp_path, caplog):
    from conftest import SECRET

    server = gemini_server(key="another", faults={"500": 0.5})
    caller = Caller(Gemini(MODEL, server.url), AnswerCache(tmp_path / "cache"), QUICK)
    with caplog.at_level("DEBUG"), pytest.raises(FatalError) as caught:
        run(caller.complete(ask()))
    assert SECRET not in str(caught.value) + caplog.text
    assert SECRET.encode() not in b"".join(
        path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
    )
    assert hashlib.sha256(SECRET.encode()).hexdigest() not in str(caught.value)
