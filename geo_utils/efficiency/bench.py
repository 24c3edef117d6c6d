"""The speed of a GRPO step under every setting: each measured in a fresh process, one row each.

What is measured in one go, a sitting, has its GPUs and the servers that stay up in one `Bench`.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from geo_utils.cluster.servers import (
    POLICY_OPTIONS,
    ServerError,
    free_port,
    start_simulated_gemini,
    start_vllm,
    wait_until_up,
)
from geo_utils.cluster.supervisor import Supervised
from geo_utils.efficiency import recipes
from geo_utils.efficiency.params import EfficiencyParams, Setting
from geo_utils.efficiency.random_weights import is_made
from geo_utils.evaluate import Counter
from geo_utils.files import append_jsonl, read_jsonl, resolve_path, write_atomic
from geo_utils.grpo.engine import serve_options
from geo_utils.runs import Run, package_versions, told_by

log = logging.getLogger(__name__)
_KEY = "simulated-key"
_MEASURE, _RANDOM_WEIGHTS = "geo_utils.efficiency.measure", "geo_utils.efficiency.random_weights"
_TAIL = 1500  # characters of a log that a row keeps
_ENDING_S = 20.0  # in which a trainer leaves its policy's server
Reading = tuple[float, int, float]  # of one GPU: moment (as time.time), index, GiB that are held


def visible_gpus() -> dict[int, str]:
    """Return the names of this process's GPUs, by nvidia-smi's index; none without nvidia-smi.

    CUDA_VISIBLE_DEVICES says which of the machine's they are, and in which order.
    """
    lines = told_by("nvidia-smi", "--query-gpu=index,uuid,name", "--format=csv,noheader")
    found = [line.split(", ", 2) for line in (lines or "").splitlines()]
    names = {int(index): name for index, _, name in found}
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is None:
        return names
    given = [entry.strip() for entry in asked.split(",") if entry.strip()]
    of = [
        int(index)
        for entry in given
        for index, uuid, _ in found
        if entry == index or uuid.startswith(entry)  # as CUDA takes it
    ]
    return {index: names[index] for index in of}


@contextmanager
def gpu_readings() -> Iterator[list[Reading]]:
    """Read all GPUs five times a second into a list; nothing where there are none."""
    readings: list[Reading] = []
    if not visible_gpus():
        yield readings
        return
    query = ["nvidia-smi", "--query-gpu=index,memory.used", "--format=csv,noheader,nounits"]
    with subprocess.Popen(
        [*query, "-lms", "200"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as program:

        def read() -> None:
            for line in program.stdout or ():
                with suppress(ValueError):  # of a GPU that gives no figures
                    index, mib = line.split(",")
                    readings.append((time.time(), int(index), float(mib) / 1024))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            yield readings
        finally:
            program.kill()
            reader.join(5)


def peak_gib(
    readings: Sequence[Reading], began: float, ended: float, gpus: Sequence[int]
) -> list[float] | None:
    """Return the most memory of each GPU in a stretch of time; None where it was not read.

    Args:
        readings: Of all GPUs.
        began: As time.time.
        ended: Likewise.
        gpus: Indices.
    """
    held = [
        [gib for at, own, gib in readings if own == gpu and began <= at <= ended] for gpu in gpus
    ]
    return [round(max(row), 1) for row in held] if held and all(held) else None


@dataclass(frozen=True)
class Turn:
    """One measurement to make.

    Attributes:
        name: Of the setting.
        setting: The setting, its sizes filled in.
        placement: Where its roles run here.
        repeat: Number of the repeat.
        reference: `first` or `last`, where it is the sitting's reference.
    """

    name: str
    setting: Setting
    placement: recipes.Placement
    repeat: int
    reference: str | None = None


@dataclass(frozen=True)
class Server:
    """A server that a setting needs; settings that need an equal one share it.

    Attributes:
        role: `policy`, `engine` or `gemini`.
        model: What vLLM serves; the latency of a look-alike.
        gpu: Its GPU; None for none.
        options: Of `vllm serve`.
    """

    role: str
    model: str
    gpu: int | None = None
    options: tuple[str, ...] = ()


def servers_of(turn: Turn, params: EfficiencyParams) -> tuple[Server, ...]:
    """Return the servers that a measurement needs."""
    setting, of = turn.setting, turn.placement.of
    found = []
    if setting.policy == "server":
        room = str(params.work.prompt_tokens + 1024)
        # vLLM up to 0.27 strands up to 32 GiB beside its share (its issue 52950), and every trainer
        # that joins leaves a communicator behind; a GPU that is full refuses the next.
        policy = (*POLICY_OPTIONS, "--max-model-len", room, "--gpu-memory-utilization", "0.5")
        own = serve_options(params.recipe | setting.recipe)
        found.append(Server("policy", params.models.policy, of["policy"], policy + own))
    if setting.reward == "qwen_server":
        alone = list(of.values()).count(of["engine"]) == 1
        memory = "0.85" if alone else "0.3"
        engine = ("--gpu-memory-utilization", memory, "--max-model-len", "16384")
        found.append(Server("engine", params.models.engine, of["engine"], engine))
    if setting.reward == "gemini" and not recipes.real_gemini(params):
        found.append(Server("gemini", recipes.call_latency(setting, params)))
    return tuple(found)


class Bench:
    """Makes measurements one after the other, for a `with` block that leaves nothing behind.

    A server that the next measurement needs as well stays up. Where there are GPUs, the process
    of the next measurement is started with the present one, so that its imports, which need no
    GPU, are over when its turn comes.
    """

    def __init__(self, params: EfficiencyParams, work: Path) -> None:
        """Name the folder for logs and specifications; nothing is started yet."""
        self.params, self.work = params, work
        self._stack = ExitStack()
        self._up: dict[Server, tuple[Supervised, str]] = {}
        self._started = 0
        self._next: tuple[Turn, Supervised] | None = None

    def __enter__(self) -> Self:
        """Begin to read the GPUs."""
        self._readings = self._stack.enter_context(gpu_readings())
        return self

    def __exit__(self, *_: object) -> None:
        """Take everything down."""
        with self._stack:
            if self._next:
                self._next[1].stop()
            self._keep(())

    def measure(self, turn: Turn, following: Turn | None) -> dict[str, Any]:
        """Return the measured fields of a row; what does not end well has its reason.

        Args:
            turn: What to measure.
            following: What will be measured next.
        """
        began = time.monotonic()
        until = began + self.params.timing.timeout_s
        folder, ready = self._folder(turn), self._next and self._next[0] == turn
        program = self._next[1] if self._next and ready else self._process(turn)
        self._next = None
        try:
            if following and not following.placement.on_cpu:
                self._next = following, self._process(following)
            result = self._result(turn, program, folder, until)
            took = time.monotonic() - began
            if result["status"] == "measured":
                with suppress(subprocess.TimeoutExpired):
                    program.wait(_ENDING_S)
        finally:
            program.stop()
        if result["status"] != "measured":
            servers = [f"{server.role} server: {up.tail(_TAIL)}"
                       for server, (up, _) in self._up.items()]  # fmt: skip
            result = {"log_tail": "\n".join([program.tail(_TAIL), *servers])} | result
            self._keep(())  # a server may be in the midst of something
        window = result.pop("window", None)
        if window:
            startup = took - result.pop("all_steps_s")
            gpus, size = sorted(set(turn.placement.of.values())), turn.setting.completions or 1
            result |= {
                "startup_s": round(startup, 1),
                "gpu_seconds_per_sample": len(gpus) * result["step_s"] / size if gpus else None,
                "peak_memory_gib": peak_gib(self._readings, window[0], window[1], gpus),
            }
        return result

    def _result(
        self, turn: Turn, program: Supervised, folder: Path, until: float
    ) -> dict[str, Any]:
        """Let a process measure, and return what it wrote, or what became of it while what."""
        setting, params = turn.setting, self.params
        phase = "making random weights"
        try:
            models = self._models(setting)
            phase = "starting its servers"
            urls = self._serve(servers_of(turn, params), models, until)
            phase = "making its recipe"
            values = recipes.recipe(setting, params, turn.placement, models, urls, folder)
            spec = {"recipe": values, "warmup_steps": setting.warmup_steps,
                    "answer_tokens": params.work.answer_tokens,
                    "page_tokens": params.work.prompt_tokens,
                    "same_length": not params.work.natural_lengths}  # fmt: skip
            write_atomic(folder / "spec.json", json.dumps(spec))
            phase = ""
            path = folder / "result.json"
            # Not for the process's end: vLLM as an engine inside it may never let it come.
            while not path.is_file() and program.poll() is None:
                if time.monotonic() > until:
                    raise subprocess.TimeoutExpired(_MEASURE, params.timing.timeout_s)
                time.sleep(0.02)
            told = {"status": "failed", "reason": f"ended with status {program.poll()}"}
            result: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else told
            if result["status"] == "measured":
                return result
        except subprocess.TimeoutExpired:
            reason = f"not done after {params.timing.timeout_s:g} s"
            result = {"status": "timed out", "reason": reason}
        except ServerError as error:
            result = recipes.failure(str(error)[-600:]) | {"log_tail": error.log}
        except (ValueError, subprocess.CalledProcessError) as error:  # of this setting alone
            result = {"status": "failed", "reason": str(error)[-600:]}
        phase = phase or (folder / "phase").read_text(encoding="utf-8")
        return result | {"phase": phase, "reason": f"{result['reason']} (while {phase})"}

    def _folder(self, turn: Turn) -> Path:
        return self.work / f"{turn.name}-{turn.repeat}"

    def _process(self, turn: Turn) -> Supervised:
        """Start the process of a measurement; it waits for its specification."""
        folder = self._folder(turn)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_atomic(folder / "phase", "starting the process")
        env = {"CUDA_VISIBLE_DEVICES": turn.placement.visible, "GEO_UTILS_MEASURE": turn.name}
        env |= {} if recipes.real_gemini(self.params) else {"GEMINI_API_KEY": _KEY}
        many = ["-m", "torch.distributed.run", f"--nproc-per-node={turn.setting.trainers}",
                f"--master-port={free_port()}"] * (turn.setting.trainers > 1)  # fmt: skip
        command = [sys.executable, *many, "-m", _MEASURE, str(folder)]
        return Supervised(command, folder / "log.txt", env)

    def _models(self, setting: Setting) -> dict[str, str]:
        """Return policy and engine model, made with random weights where that is asked for."""
        found = {}
        for role, model in recipes.asked_models(setting, self.params).items():
            if shape := recipes.made_shape(model, self.params):
                folder = resolve_path(self.params.paths.output) / "random_weights" / shape
                seed = self.params.seed
                if not is_made(shape, folder, seed):  # in a process whose GPU is then free again
                    command = [_RANDOM_WEIGHTS, shape, str(folder), str(seed)]
                    subprocess.run([sys.executable, "-m", *command], check=True)
                model = str(folder)
            found[role] = model
        return found

    def _serve(
        self, wanted: Sequence[Server], models: dict[str, str], until: float
    ) -> dict[str, str]:
        """Return the servers' addresses, those up that are not up yet; take down all others."""
        self._keep(wanted)
        for server in self._up:
            if server.gpu is not None:  # what the last setting asked is not to be found there
                url = f"{self._up[server][1]}/reset_prefix_cache"
                urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=60)
        fresh = [server for server in wanted if server not in self._up]
        for server in fresh:
            self._started += 1
            log = self.work / "servers" / f"{self._started}-{server.role}.txt"
            if server.gpu is None:
                self._up[server] = start_simulated_gemini(server.model, _KEY, log)
            else:
                model = models[server.role]
                self._up[server] = start_vllm(model, server.gpu, log, server.options)
        for server in fresh:
            program, url = self._up[server]
            at = f"{url}/v1/models" if server.gpu is None else f"{url}/health"
            name = f"{server.role} server ({server.model})"
            wait_until_up(program, at, name, max(until - time.monotonic(), 1.0))
        return {server.role: self._up[server][1] for server in wanted}

    def _keep(self, wanted: Sequence[Server]) -> None:
        """Take down every server that is not wanted."""
        for server in [server for server in self._up if server not in wanted]:
            self._up.pop(server)[0].stop()


def sweep(params: EfficiencyParams, run: Run) -> list[dict[str, Any]]:
    """Measure the chosen settings and append a row each to `rows.jsonl`.

    All that one call measures is one sitting: one machine, one process tree. The reference is
    measured first and last in it. A sweep that was cut short goes on at the next setting, as a
    new sitting. What fails is a row with its reason.

    Args:
        params: Settings and what they are measured with.
        run: The run.

    Returns:
        All rows of the run.
    """
    path = run.folder / "rows.jsonl"
    rows = read_jsonl(path)
    present = visible_gpus()
    made = {(row["setting"], row["repeat"]) for row in rows}
    todo = turns(params, made, list(present))
    show = Counter("settings")
    sitting = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    with Bench(params, run.folder / "work") as bench:
        for place_, turn in enumerate(todo):
            show(place_, len(todo))
            row = _labels(turn, params, list(present.values())) | {"sitting": sitting}
            if turn.placement.refused:
                row |= {"status": "not run", "reason": turn.placement.refused}
            else:
                row |= bench.measure(turn, next(iter(todo[place_ + 1 :]), None))
            row |= {"measured_at": datetime.now(UTC).isoformat(timespec="seconds")}
            log.info("%s: %s %s", turn.name, row["status"], row.get("step_s") or row.get("reason"))
            append_jsonl(path, [row])
            rows.append(row)
        show(len(todo), len(todo))
    return rows


def turns(
    params: EfficiencyParams, made: Collection[tuple[str, int]], present: Sequence[int]
) -> list[Turn]:
    """Return what is left to measure, in the order in which servers are started least often.

    Settings that need the same servers follow each other, their repeats interleaved; the
    reference is first and last. Settings that cannot be measured here come before all.

    Args:
        params: Settings and repeats.
        made: Settings and repeats that have a row.
        present: Indices of the GPUs that may be used.
    """
    every = [
        Turn(name, setting, recipes.place(setting, params, present), repeat)
        for name, setting in params.chosen.items()
        for repeat in range(params.timing.repeats)
    ]
    left = [turn for turn in every if (turn.name, turn.repeat) not in made]
    refused = [turn for turn in left if turn.placement.refused and turn.repeat == 0]
    good = [turn for turn in left if not turn.placement.refused]
    todo = [turn for turn in good if turn.name != params.reference]
    vllm = list(dict.fromkeys(_vllm_servers(turn, params) for turn in todo))
    other = list(dict.fromkeys(servers_of(turn, params) for turn in todo))
    todo.sort(key=lambda turn: (vllm.index(_vllm_servers(turn, params)),
                                other.index(servers_of(turn, params)), turn.repeat))  # fmt: skip
    ends = [
        replace(turn, repeat=repeat, reference=end)
        for turn in every
        if turn.name == params.reference and turn.repeat == 0 and not turn.placement.refused
        for repeat, end in enumerate(("first", "last"))
        if todo or turn in left
    ]
    return [*refused, *ends[:1], *todo, *ends[1:]]


def _vllm_servers(turn: Turn, params: EfficiencyParams) -> tuple[Server, ...]:
    return tuple(server for server in servers_of(turn, params) if server.gpu is not None)


def _labels(turn: Turn, params: EfficiencyParams, present: list[str]) -> dict[str, Any]:
    """Return what a row says of its setting, whatever becomes of it."""
    setting, placement = turn.setting, turn.placement
    on_cpu = placement.on_cpu or not present
    gpus = f"{' and '.join(sorted(set(present)))} x {len(present)}"
    return {
        **setting.model_dump(),
        "setting": turn.name, "repeat": turn.repeat, "reference": turn.reference,
        "hardware": f"CPU, {os.cpu_count()} cores" if on_cpu else gpus,
        "gpus": len(set(placement.of.values())), "trainers": setting.trainers,
        "gpus_wanted": 0 if placement.on_cpu else setting.gpus_wanted,
        "prompt_tokens": params.work.prompt_tokens, "natural_lengths": params.work.natural_lengths,
        "reward_latency_s": recipes.latency_s(setting, params),
        "recipe": params.recipe | setting.recipe, "simulated": recipes.simulated(setting, params),
        "models": recipes.asked_models(setting, params)
        | {"answer_tokens": params.work.answer_tokens, "page_tokens": params.work.prompt_tokens},
        "versions": package_versions(),
    }  # fmt: skip
