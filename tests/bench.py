"""Figures of speed beside their targets; `make bench`, no part of the tests.

    python tests/bench.py [quick] [WORD ...]

`quick` leaves out what takes minutes; words choose the figures whose names hold one of them. A
target is for a machine that does nothing else: where another program runs, or the machine is
slow, a figure may miss it, and nothing is wrong with the code. So it always exits with 0.
"""

import asyncio
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from itertools import combinations, pairwise
from pathlib import Path

import nbformat
from conftest import PROJECT
from draft_rules import GROUP, PROPOSERS, Text, kept_rewrites, replayed
from run_folders import make_run
from servers import SimulatedGemini
from test_caller import MODEL, QUICK, Scripted, ask, evaluation
from test_scoring import PAGE, FakeEngine, columns, forever, rewards

from geo_utils.citations import parse_answer
from geo_utils.corpus import load_corpus
from geo_utils.fidelity import fidelity
from geo_utils.models.base import Request, TransientError
from geo_utils.models.cache import AnswerCache
from geo_utils.models.caller import Caller, Retries
from geo_utils.models.gemini import Gemini
from geo_utils.models.loops import gather_all, run_sync
from geo_utils.roles.by_model import ModelEngine, ModelJudge
from geo_utils.show.pages import write_index
from geo_utils.visibility import visibility

REAL_ROWS = (PROJECT / "../shared/data/researchy-geo-dev.jsonl").resolve()
FIGURES = []


class NotHere(Exception):
    """This machine lacks what a figure needs."""


def figure(what, target, unit="s", at_least=False, minutes=False):
    """Register a function that takes a folder of its own and returns a figure."""

    def register(measure):
        FIGURES.append((what, target, unit, at_least, minutes, measure))
        return measure

    return register


def seconds(act):
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def command(*arguments, code=0):
    """Run one of the project's commands, which has to end with a code."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr[-2000:]
    return done


def notebook(folder, name, variant, *pairs, code=0):
    extra = [f"{key}={value}" for key, value in pairs]
    return command("geo_utils", "run", name, variant, f"paths.output={folder}", *extra, code=code)


def cell_seconds(executed):
    """Seconds from the first code cell's start to the last executed cell's end."""
    cells = [c for c in nbformat.read(executed, as_version=4).cells if c.cell_type == "code"]
    times = [c.metadata.papermill for c in cells if c.metadata.get("papermill", {}).get("end_time")]
    start, end = times[0]["start_time"], times[-1]["end_time"]
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


@contextmanager
def look_alike(folder, latency):
    os.environ["GEMINI_API_KEY"] = "any"
    with SimulatedGemini(folder / "server.jsonl", latency=latency) as server:
        yield server


@figure("a misspelt parameter is refused by the command line", 5.0)
def refusal(folder):
    return seconds(
        lambda: notebook(folder, "02_baseline_rewrites", "smoke", ("repeat", "3"), code=2)
    )


@figure("a wrong recipe of GRPO is refused", 6.0)
def wrong_recipe(folder):
    return seconds(
        lambda: notebook(folder, "04_grpo", "smoke", ("grpo.num_generations", "1"), code=2)
    )


@figure("a wrong parameter stops bare Papermill's cells", 2.0)
def bare_papermill(folder):
    out = folder / "out.ipynb"
    place = f"paths: {{output: {folder}}}"
    command("papermill", "notebooks/02_baseline_rewrites.ipynb", out, "-y", place,
            "-p", "engine", "ofline", "--no-progress-bar", code=1)  # fmt: skip
    return cell_seconds(out)


@figure("a corpus that is not there is refused by the command line", 5.0)
def wrong_corpus(folder):
    missing = ("corpus.path", folder / "missing.jsonl")
    return seconds(
        lambda: notebook(
            folder, "02_baseline_rewrites", "smoke", ("corpus.name", "jsonl"), missing, code=2
        )
    )


@figure("64 engine calls of 1 s and their judge calls of 1 s", 2.3)
def calls_at_once(folder):
    with look_alike(folder, "constant:1") as server:
        caller = Caller(Gemini(MODEL, server.url), retries=replace(QUICK, max_concurrency=64))

        async def rollout(i):
            answer = await caller.complete(ask(f"question {i}"))
            return await caller.complete(Request("judge", f"{i} {answer.text}"))

        async def batch():
            await caller.complete(ask("warm-up: connection and imports"))
            started = time.perf_counter()
            await asyncio.gather(*(rollout(i) for i in range(64)))
            return time.perf_counter() - started

        return asyncio.run(batch())


@figure("rewards of 64 completions, engine 1 s and judge 1 s", 2.3)
def rewards_at_once(folder):
    with look_alike(folder, "constant:1") as server:
        caller = Caller(Gemini(MODEL, server.url), retries=Retries(max_concurrency=64))
        made = rewards(["key_point"], ModelEngine(caller), ModelJudge(caller))
        pages = [f"{PAGE} Copy {i}." for i in range(64)]

        async def batch():
            await caller.model.probe()  # imports and the first connection are no part of a step
            started = time.perf_counter()
            await made.functions[0](**columns(pages))
            return time.perf_counter() - started

        return asyncio.run(batch())


@figure("throughput of the caller over the bare SDK's", 0.7, "", at_least=True)
def throughput(folder):
    from google import genai
    from google.genai import types

    n, width = 400, 32
    with look_alike(folder, "constant:0") as server:

        async def bare(turn):
            options = types.HttpOptions(base_url=server.url)
            client = genai.Client(api_key="k", http_options=options)
            config = types.GenerateContentConfig(temperature=0.7, max_output_tokens=100)
            places = asyncio.Semaphore(width)

            async def one(i):
                async with places:
                    await client.aio.models.generate_content(
                        model=MODEL, contents=f"bare {turn} {i}", config=config
                    )

            started = time.perf_counter()
            await asyncio.gather(*(one(i) for i in range(n)))
            return n / (time.perf_counter() - started)

        async def ours(turn):
            cache = AnswerCache(folder / f"cache-{turn}")
            retries = replace(QUICK, max_concurrency=width)
            caller = Caller(Gemini(MODEL, server.url), cache, retries)
            started = time.perf_counter()
            await gather_all(caller.complete(ask(f"ours {turn} {i}")) for i in range(n))
            return n / (time.perf_counter() - started)

        run_sync(bare("warm-up"))
        run_sync(ours("warm-up"))
        return statistics.median(run_sync(ours(turn)) / run_sync(bare(turn)) for turn in range(5))


@lru_cache(maxsize=1)
def crowd():
    """20,000 calls at once: rate over the SDK's, longest block of the loop in ms, and MB."""
    from google import genai
    from google.genai import types

    n, width = 20_000, 32
    with tempfile.TemporaryDirectory() as folder, look_alike(Path(folder), "constant:0") as server:

        async def bare():
            client = genai.Client(api_key="k", http_options=types.HttpOptions(base_url=server.url))
            config = types.GenerateContentConfig(temperature=0.7, max_output_tokens=100)
            places = asyncio.Semaphore(width)

            async def one(i):
                async with places:
                    await client.aio.models.generate_content(
                        model=MODEL, contents=f"bare {i}", config=config
                    )

            started = time.perf_counter()
            await asyncio.gather(*(one(i) for i in range(n // 5)))
            return n / 5 / (time.perf_counter() - started)

        async def ours(turn="once"):
            cache = AnswerCache(Path(folder) / "cache")
            caller = Caller(Gemini(MODEL, server.url), cache, replace(QUICK, max_concurrency=width))
            await caller.complete(ask("warm-up"))

            over = []

            async def watch():
                longest, last = 0.0, time.perf_counter()
                while not over:
                    await asyncio.sleep(0.005)
                    now = time.perf_counter()
                    longest, last = max(longest, now - last - 0.005), now
                return longest

            watching = asyncio.create_task(watch())
            await asyncio.sleep(0.1)
            started = time.perf_counter()
            await gather_all(caller.complete(ask(f"{turn} {i}")) for i in range(n))
            rate = n / (time.perf_counter() - started)
            over.append(True)
            return rate, 1000 * await watching

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        rate, blocked = run_sync(ours())  # as an evaluation makes them
        megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        first = run_sync(bare())  # in turns, as a machine's speed drifts
        again, _ = run_sync(ours("again"))
        return (rate + again) / (first + run_sync(bare())), blocked, megabytes


@figure("20,000 calls at once: rate over the bare SDK's", 0.7, "", at_least=True, minutes=True)
def crowd_rate(folder):
    return crowd()[0]


@figure("20,000 calls at once: the loop's longest block", 100.0, "ms", minutes=True)
def crowd_block(folder):
    return crowd()[1]


@figure("20,000 calls at once: memory above the import", 300.0, "MB", minutes=True)
def crowd_memory(folder):
    return crowd()[2]


@figure("a call beside 500 segments of the cache, over one beside none", 1.1, "")
def many_segments(folder):
    def spent(cache):
        caller = Caller(Scripted(), cache, QUICK)

        async def batch():
            started = time.process_time()
            await asyncio.gather(*(caller.complete(ask(f"{cache.folder} {i}")) for i in range(500)))
            return time.process_time() - started

        return asyncio.run(batch())

    def made(turn, segments):
        place = folder / f"{turn}-{segments}"
        place.mkdir()
        for i in range(segments):
            (place / f"{i}.answers.jsonl").write_text(f"{i:064x} {{}}\n")
        return AnswerCache(place)

    return statistics.median(spent(made(t, 500)) / spent(made(t, 0)) for t in range(7))


@figure("a finished evaluation of 1,080 samples runs again", 8.0)
def evaluation_again(folder):
    with look_alike(folder, "constant:0") as server:
        asked = (server, folder / "cache", 12, 60)
        assert evaluation(*asked, str(folder / "first")).wait() == 0
        return seconds(lambda: evaluation(*asked, str(folder / "second")).wait())


@figure("a call that hangs ends, its deadline being 0.5 s", 1.0)
def hanging_call(folder):
    retries = replace(QUICK, timeout_s=0.2, deadline_s=0.5)

    def call():
        try:
            asyncio.run(Caller(Scripted(latency=3600), retries=retries).complete(ask()))
        except TransientError:
            return
        raise AssertionError("it was answered")

    return seconds(call)


@figure("a batch whose engine hangs ends, its deadline being 0.4 s", 1.5)
def hanging_engine(folder):
    made = rewards(["key_point"], FakeEngine({"hang": forever}), deadline_s=0.4)
    return seconds(lambda: asyncio.run(made.functions[0](**columns([PAGE, f"{PAGE} hang"]))))


@figure("a training that gets SIGTERM has saved and ended", 30.0, minutes=True)
def signal_saves(folder):
    done = subprocess.run(
        [sys.executable, PROJECT / "tests/train_many.py", folder / "training", "SIGTERM"],
        cwd=PROJECT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])["between"]["seconds"]


@figure("visibility of an answer of 1,000 words, the slowest convention", 5.0, "ms")
def visibility_of_a_thousand_words(folder):
    draw = random.Random(0)
    vocabulary = ["tide", "moon", "harbour", "water", "rises", "every", "boat", "of", "the"]
    answer = " ".join(
        f"The {' '.join(draw.choices(vocabulary, k=18))} [{draw.randint(1, 5)}]." for _ in range(50)
    )
    return 1000 * max(
        min(seconds(lambda c=convention: visibility(answer, 5, c)) for _ in range(7))
        for convention in ("corrected", "geo", "autogeo")
    )


@figure("fidelity of a page, mean", 20.0, "ms")
def fidelity_of_a_page(folder):
    pages = [f"{e.sources[0]}\n\n{e.sources[1][:600]}" for e in load_corpus("sample")]
    fidelity(PAGE, PAGE)  # tables that are made once
    spent = seconds(lambda: [fidelity(original, page) for original, page in pairwise(pages)])
    return 1000 * spent / (len(pages) - 1)


@figure("parsing a hostile answer of 40,000 to 120,000 characters, the slowest", 5.0)
def hostile_answers(folder):
    hostile = ("[" * 50_000, "[1" * 20_000, "[1][2]" * 20_000, ".[1] " * 10_000)
    return max(seconds(lambda a=answer: parse_answer(a, 5)) for answer in hostile)


@figure("the index page of 800 runs", 2.0)
def index_of_many_runs(folder):
    for i in range(800):
        make_run(folder, f"20260101-{i:09d}-aaaaaaaa", variant=f"v{i % 40}")
    write_index(folder)  # the defaults are read once a process
    return seconds(lambda: write_index(folder))


@figure("evaluation of 3,600 samples of real rows", 90.0, minutes=True)
def real_rows(folder):
    if not REAL_ROWS.exists():
        raise NotHere("no real rows here")
    methods = "[original, keyword_stuffing, easy_to_understand, key_point, paste_key_point, "
    notebook(
        folder, "02_baseline_rewrites", "default", ("corpus.name", "jsonl"),
        ("corpus.path", REAL_ROWS), ("methods", f"{methods}repeat_key_point]"), ("analyses", "{}"),
    )  # fmt: skip
    (executed,) = folder.glob("02_baseline_rewrites/*/*/notebook.ipynb")
    return float(re.search(r"3,600 of 3,600 samples, (\d+) s", executed.read_text()).group(1))


@figure("notebook 03 with all studies, CPU time", 70.0, minutes=True)
def all_studies(folder):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    notebook(folder, "03_key_point_prompt", "full")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def tokens_a_step(kind, size=7):
    """Write kept rewrites anew with drafts; a line a method.

    Returns the harmonic mean over key-point rewrites: of their tokens over their steps, as if all
    were of one length. How much shorter generation gets hangs on what a step of so many tokens
    costs, and on the sequence that takes most steps: see the last line.
    """
    for method, kept in kept_rewrites().items():
        texts = replayed([Text(*tokens) for tokens in kept], PROPOSERS[kind](size))
        gained = [text.tokens_a_step for text in texts]
        harmonic = statistics.harmonic_mean(gained)
        figures = statistics.fmean(gained), harmonic, min(gained)
        told = [f"{n} {f:.2f}" for n, f in zip(("mean", "harmonic", "worst"), figures, strict=True)]
        row(f"  {method}, {len(texts)} rewrites", *told)
        if method == "key_point":
            groups = [texts[i : i + GROUP] for i in range(0, len(texts), GROUP)]
            pairs = [one + other for one, other in combinations(groups, 2)]
            plain = sum(max(text.written - text.first for text in pair) for pair in pairs)
            steps = sum(max(text.steps for text in pair) for pair in pairs)
            row("  key_point, two groups of 8: steps without drafts / with", f"{plain / steps:.2f}")
            found = harmonic
    return found


@figure("tokens a step by vLLM's n-gram rule, drafts of 7", 3.4, "", at_least=True)
def ngram_drafts(folder):
    return tokens_a_step("n-gram")


@figure("tokens a step by a suffix rule, drafts of 7", 3.4, "", at_least=True, minutes=True)
def suffix_drafts(folder):
    return tokens_a_step("suffix")


@figure("tokens a step by the page's place, drafts of 7", 3.6, "", at_least=True)
def page_drafts(folder):
    return tokens_a_step("page")


@figure("tokens a step by the page's place, drafts of 15", 4.4, "", at_least=True)
def long_page_drafts(folder):
    return tokens_a_step("page", 15)


@figure("notebook 01 on a CPU, params smoke", 120.0, minutes=True)
def steps_on_a_cpu(folder):
    return seconds(lambda: notebook(folder, "01_efficiency", "smoke"))


@figure("notebook 04 on a CPU, params smoke", 180.0, minutes=True)
def training_on_a_cpu(folder):
    return seconds(lambda: notebook(folder, "04_grpo", "smoke"))


def row(*cells):
    cells += ("",) * (4 - len(cells))
    sys.stdout.write("{:<68}  {:>10}  {:>14}  {}\n".format(*cells))
    sys.stdout.flush()


def main(*words):
    """Measure and print, one line a figure."""
    quick, words = "quick" in words, [word for word in words if word != "quick"]
    row("what", "measured", "target", "met")
    for what, target, unit, at_least, minutes, measure in FIGURES:
        if (minutes and quick) or (words and not any(word in what for word in words)):
            continue
        wanted = f"{'at least' if at_least else 'at most'} {target:g} {unit}".strip()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            try:
                found = measure(Path(folder))
            except NotHere as reason:
                row(what, "-", wanted, reason)
            except Exception:
                traceback.print_exc()
                row(what, "-", wanted, "not measured, see above")
            else:
                met = found >= target if at_least else found <= target
                row(what, f"{found:.2f} {unit}".strip(), wanted, "yes" if met else "NO")


if __name__ == "__main__":
    main(*sys.argv[1:])
