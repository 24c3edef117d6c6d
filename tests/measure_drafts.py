"""What drafts save a colocated policy on one GPU, with real weights and natural lengths.

    python tests/measure_drafts.py FOLDER [--kinds V2 V1 ngram page V2] [--temperature 1.0]
    python tests/measure_drafts.py FOLDER --profile

Each kind is measured in a process of its own, the next one's imports under way meanwhile; name the
reference first and last. A line of JSON for each batch that counts, on standard output: `seconds`,
`tokens`, `longest` completion, `steps` of the engine, and `tokens_a_step` that a sequence gained.
Prompts are key-point prompts of the sample corpus, a group of 8 completions each, as TRL asks.
`--profile` prints which kernels a step of 16 sequences without drafts spends its time in.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from itertools import islice
from types import SimpleNamespace

REPEATS = {16: 3, 64: 1}  # batches that count, by size; one of each size warms up
GROUP = 8
LONGEST = 1024  # tokens of a completion
ROOM = 4096  # of prompt and completion
NGRAM = {"prompt_lookup_min": 2, "prompt_lookup_max": 5}
# Fields of `grpo`; the runner is another where there is a draft.
KINDS = {
    "V2": {},
    "V1": {},
    "ngram": {"method": "ngram", "num_speculative_tokens": 7, **NGRAM},
    "ngram_gpu": {"method": "ngram_gpu", "num_speculative_tokens": 7, **NGRAM},
    "suffix": {"method": "suffix", "num_speculative_tokens": 7},
    "page": {"method": "page", "num_speculative_tokens": 7},
    "page_15": {"method": "page", "num_speculative_tokens": 15},
}
WIDE = {"max_cudagraph_capture_size": 1024}  # 64 sequences of 16 tokens; else graphs end at 512


def key_point_prompts(tokenizer):
    """Return the tokens of the corpus's key-point prompts, one of each page first."""
    from geo_utils.corpus import load_corpus
    from geo_utils.models.local import chat_text
    from geo_utils.roles.by_model import RewriteTask

    task, found = RewriteTask("key_point"), []
    for example in load_corpus("sample"):
        for point in example.key_points:
            text = chat_text(tokenizer, task.prompt(example, point))
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            found.append((point.number, ids))
    return [ids for _, ids in sorted(found, key=lambda pair: pair[0])]


def make_engine(folder, kind):
    """Return vLLM's engine as TRL makes a colocated one."""
    from vllm import LLM

    from geo_utils.grpo.engine import engine_arguments

    arguments = {}
    if drafts := KINDS[kind]:
        arguments = engine_arguments({"vllm_engine": {"speculative_config": drafts}})
        arguments["disable_log_stats"] = False
        if drafts["num_speculative_tokens"] > 7:
            arguments["compilation_config"] = WIDE
    return LLM(
        model=folder, gpu_memory_utilization=0.3, max_model_len=ROOM, max_num_seqs=64,
        max_num_batched_tokens=4096, logprobs_mode="processed_logprobs", seed=0, **arguments,
    )  # fmt: skip


def generated(llm, prompts, temperature):
    """Write a group for each prompt; returns seconds and how many tokens each completion has."""
    from vllm import SamplingParams

    asked = [{"prompt_token_ids": prompt} for prompt in prompts for _ in range(GROUP)]
    sampling = SamplingParams(
        temperature=temperature, max_tokens=LONGEST, logprobs=0, detokenize=False
    )
    llm.reset_prefix_cache()
    began = time.perf_counter()
    outputs = llm.generate(asked, sampling, use_tqdm=False)
    return time.perf_counter() - began, [len(o.outputs[0].token_ids) for o in outputs]


def measure(folder, kind, temperature):
    """Measure one kind in this process and print its lines."""
    from geo_utils.grpo.engine import draft_counts

    began = time.perf_counter()
    llm = make_engine(folder, kind)
    start_s, steps = time.perf_counter() - began, 0
    step = llm.llm_engine.step

    def counted():
        nonlocal steps
        steps += 1
        return step()

    llm.llm_engine.step = counted
    prompts = iter(key_point_prompts(llm.get_tokenizer()))
    generation = SimpleNamespace(mode="colocate", llm=llm)  # as TRL's, for the counts
    for size, repeats in REPEATS.items():
        for batch in range(-1, repeats):
            asked = list(islice(prompts, size // GROUP))
            before = draft_counts(generation) if KINDS[kind] else {}
            steps = 0
            seconds, lengths = generated(llm, asked, temperature)
            if batch < 0:
                continue
            told = {
                "kind": kind, "model": os.path.basename(folder.rstrip("/")), "completions": size,
                "batch": batch, "temperature": temperature, "seconds": round(seconds, 3),
                "tokens": sum(lengths), "longest": max(lengths), "steps": steps,
                "start_s": round(start_s, 1),
            }  # fmt: skip
            if KINDS[kind]:
                after = draft_counts(generation)
                new = {name: after[name] - before.get(name, 0) for name in after}
                told["tokens_a_step"] = round((sum(lengths) - size) / new["steps"], 3)
                told["accepted"] = round(new["accepted"] / new["drafted"], 3)
            sys.stdout.write(f"{json.dumps(told)}\n")
            sys.stdout.flush()


def profile(folder):
    """Print the kernels of decode steps, 16 sequences without drafts, in ms a step."""
    import torch
    from vllm import SamplingParams

    llm = make_engine(folder, "V2")
    prompts = key_point_prompts(llm.get_tokenizer())[:2]
    asked = [{"prompt_token_ids": prompt} for prompt in prompts for _ in range(GROUP)]

    def write(tokens):
        given = SamplingParams(
            temperature=1.0, max_tokens=tokens, ignore_eos=True, logprobs=0, detokenize=False
        )
        llm.generate(asked, given, use_tqdm=False)

    write(64)
    spent = {}
    for tokens in (65, 1):  # the prompts' own pass is taken off
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
            began = time.perf_counter()
            write(tokens)
            torch.cuda.synchronize()
            spent[tokens] = {"(wall)": time.perf_counter() - began}
        for event in found.key_averages():
            spent[tokens][event.key] = event.self_device_time_total / 1e6
    a_step = {
        name: 1000 * (seconds - spent[1].get(name, 0.0)) / 64 for name, seconds in spent[65].items()
    }
    on_gpu = sum(ms for name, ms in a_step.items() if name != "(wall)")
    sys.stdout.write(f"{a_step['(wall)']:8.3f} ms a step, profiled; {on_gpu:.3f} in kernels\n")
    for name, ms in sorted(a_step.items(), key=lambda item: -item[1])[1:26]:
        sys.stdout.write(f"{ms:8.3f} {name[:110]}\n")


def main():
    """Measure kind after kind, each in a process that waits for its turn."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", help="a model's folder")
    standard = ["V2", "V1", "ngram", "page", "V2"]
    parser.add_argument("--kinds", nargs="+", default=standard, choices=KINDS)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # one process, as in a training
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if args.profile:
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
        return profile(args.folder)
    if args.one:
        import vllm  # noqa: F401

        if sys.stdin.readline():
            measure(args.folder, args.one, args.temperature)
        return None

    def started(kind):
        # Drafts need the V1 runner. Of Qwen2.5, vLLM 0.24 would take it anyway.
        runner = {"VLLM_USE_V2_MODEL_RUNNER": str(int(kind == "V2"))}
        command = [sys.executable, __file__, args.folder, "--one", kind]
        command += ["--temperature", str(args.temperature)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, env=os.environ | runner, text=True)

    following = started(args.kinds[0])
    for place, kind in enumerate(args.kinds):
        process = following
        if place + 1 < len(args.kinds):
            following = started(args.kinds[place + 1])
        process.communicate("go\n")
        if process.returncode:
            line = {"kind": kind, "failed": process.returncode}
            sys.stdout.write(f"{json.dumps(line)}\n")
            sys.stdout.flush()
    return None


if __name__ == "__main__":
    main()
