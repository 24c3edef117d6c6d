"""The speed of a GRPO step under every setting: each measured in a fresh process, one row each."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from geo_utils.cluster.servers import POLICY_OPTIONS, ServerError, simulated_gemini, vllm_server
from geo_utils.cluster.supervisor import Supervised
from geo_utils.efficiency.gpus import GpuWatch, visible_gpus
from geo_utils.efficiency.measure import NO_MEMORY
from geo_utils.efficiency.params import EfficiencyParams, Setting
from geo_utils.efficiency.random_weights import shape_name
from geo_utils.efficiency.recipes import Placement, place, recipe
from geo_utils.files import read_jsonl, resolve_path, write_atomic
from geo_utils.notebooks import read_parameters
from geo_utils.parameter_errors import ParameterError
from geo_utils.runs import Run, package_versions, start_run

log = logging.getLogger(__name__)
_KEY = "simulated-key"
_MEASURE, _RANDOM_WEIGHTS = "geo_utils.efficiency.measure", "geo_utils.efficiency.random_weights"


def sweep(params: EfficiencyParams, run: Run) -> list[dict[str, Any]]:
    """Measure the chosen settings, repeats interleaved, and append a row each to `rows.jsonl`.

    A sweep that was cut short goes on at the next setting. What fails is a row with its reason.

    Args:
        params: Settings and what they are measured with.
        run: The run.

    Returns:
        All rows of the run.
    """
    path = run.folder / "rows.jsonl"
    rows = read_jsonl(path)
    done = {(row["setting"], row["repeat"]) for row in rows}
    present = visible_gpus()
    for repeat in range(params.repeats):
        for name, setting in params.chosen.items():
            placement = place(setting, params, list(present))
            if (name, repeat) in done or (placement.refused and repeat):
                continue
            names = list(present.values())
            row = _labels(name, setting, params, placement, names) | {"repeat": repeat}
            if placement.refused:
                row |= {"status": "not run", "reason": placement.refused}
            else:
                row |= _measured(name, setting, params, placement, run.folder / "work")
            row |= {"measured_at": datetime.now(UTC).isoformat(timespec="seconds")}
            log.info("%s: %s %s", name, row["status"], row.get("step_s") or row.get("reason"))
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            rows.append(row)
    return rows


def _labels(
    name: str, setting: Setting, params: EfficiencyParams, placement: Placement, present: list[str]
) -> dict[str, Any]:
    """Return what a row says of its setting, whatever becomes of it."""
    kinds = sorted(set(present))
    gpus = f"{' and '.join(kinds)} x {len(present)}" if present else ""
    on_cpu = placement.on_cpu or not present
    return {
        "setting": name, "group": setting.group, "policy": setting.policy,
        "reward": setting.reward, "schedule": setting.schedule, "parallel": setting.parallel,
        "hardware": f"CPU, {os.cpu_count()} cores" if on_cpu else gpus,
        "gpus": placement.gpus, "gpus_wanted": 0 if placement.on_cpu else setting.gpus_wanted,
        "shared": placement.shared, "completions": setting.completions or params.completions,
        "new_tokens": setting.new_tokens or params.new_tokens,
        "prompt_tokens": params.prompt_tokens, "natural_lengths": params.natural_lengths,
        "reward_latency_s": latency_s(setting, params), "on_policy": setting.on_policy,
        "warmup_steps": params.warmup_steps, "steps": params.steps, "reason": None,
        "recipe": params.recipe | setting.recipe, "simulated": simulated(setting, params),
        "models": _asked(setting, params) | {"answer_tokens": params.answer_tokens},
        "versions": package_versions(),
    }  # fmt: skip


def simulated(setting: Setting, params: EfficiencyParams) -> list[str]:
    """Say what in a setting is not the real thing."""
    found = [f"random weights of {name}'s shape" for name in _random(setting, params)]
    if setting.reward == "gemini" and not real_gemini(params):
        found.append(f"Gemini: {_latency(setting, params)} s a call")
    return found


def _asked(setting: Setting, params: EfficiencyParams) -> dict[str, str]:
    """Return the models that a setting needs on this machine, by role."""
    engine = {"engine": params.engine_model} if setting.reward.startswith("qwen") else {}
    return {"policy": params.policy_model} | engine


def _random(setting: Setting, params: EfficiencyParams) -> list[str]:
    known = params.random_weights
    models = _asked(setting, params).values()
    return [shape_name(m) for m in models if known and shape_name(m) in known]


def real_gemini(params: EfficiencyParams) -> bool:
    """Tell whether Gemini's own service is asked."""
    return params.gemini == "auto" and bool(os.environ.get("GEMINI_API_KEY"))


def latency_s(setting: Setting, params: EfficiencyParams) -> float | None:
    """Return the seconds of a simulated engine and judge together; None for any other reward."""
    if setting.reward == "negative_length":
        return 0.0
    if setting.reward != "gemini" or real_gemini(params):
        return None
    own = setting.reward_latency_s
    return params.reward_latency_s if own is None else own


def _latency(setting: Setting, params: EfficiencyParams) -> str:
    half = (latency_s(setting, params) or 0.0) / 2
    if params.latency_sigma:
        return f"lognormal:{half:g},{params.latency_sigma:g}"
    return f"constant:{half:g}"


def _measured(
    name: str, setting: Setting, params: EfficiencyParams, placement: Placement, work: Path
) -> dict[str, Any]:
    """Start a setting's servers and its training, and return the row's measured fields."""
    folder = work / name
    shutil.rmtree(folder, ignore_errors=True)
    until = time.monotonic() + params.timeout_s
    gpus = sorted(set(placement.of.values()))
    try:
        with ExitStack() as stack:
            watch = stack.enter_context(GpuWatch())
            models = _models(setting, params)
            urls = _servers(stack, setting, params, placement, models, folder)
            wanted = recipe(setting, params, placement, models, urls, folder)
            spec = {"recipe": wanted, "warmup_steps": params.warmup_steps,
                    "answer_tokens": params.answer_tokens,
                    "same_length": not params.natural_lengths}  # fmt: skip
            write_atomic(folder / "spec.json", json.dumps(spec))
            env = {"CUDA_VISIBLE_DEVICES": placement.visible, "GEO_UTILS_MEASURE": name}
            env |= {} if real_gemini(params) else {"GEMINI_API_KEY": _KEY}
            command = [sys.executable, "-m", _MEASURE, str(folder / "spec.json")]
            program = stack.enter_context(Supervised(command, folder / "log.txt", env))
            program.wait(max(until - time.monotonic(), 1.0))
            result = _read(folder, program)
    except subprocess.TimeoutExpired:
        return {"status": "timed out", "reason": f"not done after {params.timeout_s:g} s"}
    except ServerError as error:
        memory = any(sign in str(error).lower() for sign in NO_MEMORY)
        return {"status": "out of memory" if memory else "failed", "reason": str(error)[-600:]}
    window = tuple(result.pop("window", ()))
    if result["status"] == "measured":
        result |= _rates(result, placement, watch, window, gpus, setting, params)
    return result


def _read(folder: Path, program: Supervised) -> dict[str, Any]:
    path = folder / "result.json"
    if path.is_file():
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return result
    return {"status": "failed", "reason": f"ended with status {program.poll()}: {program.tail()}"}


def _models(setting: Setting, params: EfficiencyParams) -> dict[str, str]:
    """Return policy and engine model, made with random weights where the parameters say so."""
    found = {}
    for role, model in _asked(setting, params).items():
        known = params.random_weights
        if known and shape_name(model) in known:
            shape = shape_name(model)
            folder = resolve_path(params.output_root) / "random_weights" / shape
            command = [sys.executable, "-m", _RANDOM_WEIGHTS, shape, str(folder)]
            subprocess.run(command, check=True)  # in a process of its own: its GPU is free again
            model = str(folder)
        found[role] = model
    return found


def _servers(
    stack: ExitStack, setting: Setting, params: EfficiencyParams, placement: Placement,
    models: dict[str, str], folder: Path,
) -> dict[str, str]:  # fmt: skip
    """Start what a setting needs; each is taken down with the stack."""
    urls = {}
    if setting.policy == "server":
        options = [*POLICY_OPTIONS, "--max-model-len", str(params.prompt_tokens + 1024)]
        server = vllm_server(models["policy"], placement.of["policy"], folder / "policy.txt",
                             options, params.timeout_s)  # fmt: skip
        urls["policy"] = stack.enter_context(server)
    if setting.reward == "qwen_server":
        alone = list(placement.of.values()).count(placement.of["engine"]) == 1
        memory = "0.85" if alone else "0.3"
        options = ["--gpu-memory-utilization", memory, "--max-model-len", "16384"]
        server = vllm_server(models["engine"], placement.of["engine"], folder / "engine.txt",
                             options, params.timeout_s)  # fmt: skip
        urls["engine"] = stack.enter_context(server)
    if setting.reward == "gemini" and not real_gemini(params):
        latency = _latency(setting, params)
        urls["gemini"] = stack.enter_context(simulated_gemini(latency, _KEY, folder / "gemini.txt"))
    return urls


def _rates(
    result: dict[str, Any], placement: Placement, watch: GpuWatch, window: Sequence[float],
    gpus: list[int], setting: Setting, params: EfficiencyParams,
) -> dict[str, Any]:  # fmt: skip
    """Return throughput, and what the GPUs did while the counted steps ran."""
    step, size = result["step_s"], setting.completions or params.completions
    seen = {} if placement.on_cpu else watch.between(window[0], window[1], gpus)
    energy = seen.get("energy_j")
    return {
        "samples_per_s": size / step, "tokens_per_s": size * result["new_tokens"] / step,
        "gpu_seconds_per_sample": placement.gpus * step / size if placement.gpus else None,
        "peak_memory_gib": seen.get("peak_memory_gib"),
        "gpu_utilisation": seen.get("utilisation"),
        "energy_j_per_sample": sum(energy) / (result["steps"] * size) if energy else None,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Measure from the command line, without Jupyter."""
    parser = argparse.ArgumentParser(prog="python -m geo_utils.efficiency.sweep")
    parser.add_argument("parameters", help="name of a file in params/01_efficiency/, or a path")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--random-weights", action="append", default=[], metavar="MODEL",
                        help="make this model with random weights of its true shape")  # fmt: skip
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if args.random_weights:
            args.p.append(("random_weights", json.dumps(args.random_weights)))
        params = read_parameters("01_efficiency", args.parameters, [tuple(p) for p in args.p])[2]
        assert isinstance(params, EfficiencyParams)
        run = start_run(params.notebook, params)
    except ParameterError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    stopped = None
    try:
        sweep(params, run)
    except KeyboardInterrupt:
        stopped = "stopped by Ctrl-C; the same command goes on at the next setting"
    run.end("interrupted", stopped or "measured; run as a notebook, it goes on to the report")
    sys.stdout.write(f"{stopped or 'measured'}: {run.folder}/rows.jsonl\n")
    return 130 if stopped else 0


if __name__ == "__main__":
    sys.exit(main())
