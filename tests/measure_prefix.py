"""Is the shared-prefix pass right and quick on this GPU? Prints a line a figure; about a minute.

    PYTHONPATH=. python3 tests/measure_prefix.py [SECONDS]

Needs PyTorch, Transformers, PEFT and TRL, and nothing else. Qwen3-1.7B's shape with random
weights; prompts of 1,300 tokens and eight completions of 512 each. What would begin after SECONDS
(75) is left out and said. On a CPU everything is small, and says nothing of a GPU.

Parity is to a pass each in float32: where the shared pass is wrong, its error is many times that
of a pass each in bfloat16. It fails where it is more than twice that. Where a way fails to compile
the others are still measured. Eager layers meet a second length after the parity's, so that their
FlexAttention is the one for all lengths; compiled layers have the one for their own.
"""

import os
import sys
import time
import traceback

import torch
import torch._inductor.config as inductor
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen3Config
from trl.trainer.utils import add_fused_lm_head

from geo_utils.grpo import shared_prefix
from geo_utils.grpo.trainer import row_scores

STARTED = time.monotonic()
UNTIL = float(sys.argv[1]) if len(sys.argv) > 1 else 75.0
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
PROMPT, WRITTEN, GROUP = (1300, 512, 8) if GPU else (130, 51, 4)
SHAPE = {
    "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 6144,
    "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
    "head_dim": 128, "tie_word_embeddings": True,
}  # fmt: skip
if not GPU:
    SHAPE |= {"vocab_size": 500, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    SHAPE |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
TWICE = 2.0


def say(*parts):
    print(f"{time.monotonic() - STARTED:6.1f} s ", *parts, flush=True)  # noqa: T201


def made():
    """The model as the trainer has it: bfloat16, an adapter in float32 that does something."""
    torch.manual_seed(0)
    with DEVICE:
        base = AutoModelForCausalLM.from_config(Qwen3Config(**SHAPE), dtype=torch.bfloat16)
    add_fused_lm_head(base, outputs=("log_probs", "entropy"))
    shared_prefix.take_block_masks(base)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora).train()
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.float()
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.01)
    model.enable_input_require_grads()
    return model


def rows(seed):
    """One group in TRL's layout; its completions are of unequal length, the first the longest."""
    dice = torch.Generator().manual_seed(seed)
    asked = torch.randint(SHAPE["vocab_size"], (1, PROMPT), generator=dice).expand(GROUP, -1)
    written = torch.randint(SHAPE["vocab_size"], (GROUP, WRITTEN), generator=dice)
    mask = torch.ones(GROUP, PROMPT + WRITTEN, dtype=torch.long)
    return torch.cat([asked, written], dim=1).to(DEVICE), mask.to(DEVICE)


def shorter(mask):
    """Cut the completions to unequal lengths."""
    mask = mask.clone()
    for row in range(1, GROUP):
        mask[row, PROMPT + WRITTEN - 37 * row :] = 0
    return mask


def scores(model, way, ids, mask):
    if way == "each":
        return row_scores(model, ids, mask, WRITTEN, ["log_probs", "entropy"])[0]
    return shared_prefix.scores(model, ids, mask, WRITTEN, ["log_probs", "entropy"], way)[0]


def trained_on(model, way, ids, mask, exact=False):
    """Log-probabilities, and the gradient of a loss like GRPO's."""
    model.zero_grad(set_to_none=True)
    weight = torch.linspace(-1, 1, GROUP, device=DEVICE)[:, None] / mask[:, PROMPT:].sum()
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=not exact):
        found = scores(model, way, ids, mask)
    (found * weight).sum().backward()
    return found.detach(), [p.grad for p in model.parameters() if p.grad is not None]


def parity(model):
    """Compare the ways' errors, by a pass each in float32 on the same weights."""
    ids, mask = rows(1)
    mask = shorter(mask)
    found = {}
    for way in ("each", *WAYS):
        found[way] = attempt(f"first pass, {way}", trained_on, model, way, ids, mask)
        if found[way]:
            found[way] = found[way][0], [gradient.clone() for gradient in found[way][1]]
    exact, frozen = model.get_base_model(), [p for p in model.parameters() if not p.requires_grad]
    for weight in frozen:
        weight.data = weight.data.float()
    exact.gradient_checkpointing_enable({"use_reentrant": False})
    truth, gradient = trained_on(model, "each", ids, mask, exact=True)
    exact.gradient_checkpointing_disable()
    size = torch.stack([g.norm() for g in gradient]).norm()
    known, errors = mask[:, PROMPT:].bool(), {}
    for way, told in found.items():
        if told is None:
            continue
        apart = (told[0] - truth).abs()[known]
        off = torch.stack([(g - e).norm() for g, e in zip(told[1], gradient, strict=True)]).norm()
        worst = max(float((g - e).abs().max()) for g, e in zip(told[1], gradient, strict=True))
        errors[way] = float(apart.mean()), float(off / size)
        say(f"parity, {way}: log-probabilities off by {apart.mean():.2e} (mean), {apart.max():.2e} "
            f"(most); gradient by {off / size:.2e} of its norm, {worst:.2e} (most)")  # fmt: skip
    for way in set(errors) - {"each"}:
        direct = (found[way][0] - found["each"][0]).abs()[known]
        say(f"parity, {way} and each: {direct.mean():.2e} (mean), {direct.max():.2e} (most)")
        if any(own > TWICE * plain for own, plain in zip(errors[way], errors["each"], strict=True)):
            say(f"FAILED: {way} is more than {TWICE:g} times as far off as a pass each")
            PROBLEMS.append(way)
    for weight in frozen:
        weight.data = weight.data.bfloat16()
    model.zero_grad(set_to_none=True)


def timed(model, way, groups, layers):
    """Seconds and peak memory of the loss and backward pass of a step, a group a micro-batch."""
    batches = [rows(seed) for seed in range(groups)]

    def step():
        model.zero_grad(set_to_none=True)
        for ids, mask in batches:
            weight = torch.linspace(-1, 1, GROUP, device=DEVICE)[:, None] / mask[:, PROMPT:].sum()
            with torch.autocast(DEVICE.type, torch.bfloat16):
                found = scores(model, way, ids, mask)
            (found * weight).sum().backward()

    batches, whole = batches[:1], batches
    step()  # compiles
    batches = whole
    if GPU:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(2):
        begun = time.monotonic()
        step()
        if GPU:
            torch.cuda.synchronize()
        seconds.append(time.monotonic() - begun)
    peak = torch.cuda.max_memory_allocated() / 2**30 if GPU else 0.0
    say(f"{groups * GROUP} completions, layers {layers}, {way}: {min(seconds):.3f} s, "
        f"{peak:.1f} GiB at most")  # fmt: skip
    TIMES[groups, layers, way] = min(seconds), peak


def attempt(what, work, *args):
    """Do it unless it is late; a failure is said and the rest goes on."""
    if time.monotonic() - STARTED > UNTIL:
        say(f"left out, late: {what}")
        return None
    try:
        return work(*args)
    except Exception as error:
        say(f"FAILED: {what}: {type(error).__name__}: {str(error)[:300]}")
        traceback.print_exc(limit=-3)
        PROBLEMS.append(what)
        return None


WAYS = ("flex", "dense") if GPU else ("dense",)
PROBLEMS, TIMES = [], {}
model = made()
say(torch.__version__, torch.cuda.get_device_name() if GPU else "CPU", "model made")
parity(model)
for way in (*WAYS, "each"):
    for groups in (2, 8):
        attempt(f"{way}, eager, {groups} groups", timed, model, way, groups, "eager")
inductor.compile_threads = len(os.sched_getaffinity(0))
for layer in model.get_base_model().model.layers:
    layer.compile()
for way in (WAYS[0], "each", *WAYS[1:]):
    for groups in (2, 8):
        attempt(f"{way}, compiled, {groups} groups", timed, model, way, groups, "compiled")
for (groups, layers, way), (seconds, peak) in TIMES.items():
    if way != "each" and (plain := TIMES.get((groups, layers, "each"))):
        say(f"{groups * GROUP} completions, layers {layers}: {way} takes {seconds / plain[0]:.2f} "
            f"of the time and {peak / plain[1] if GPU else 0:.2f} of the memory")  # fmt: skip
say("problems:", ", ".join(PROBLEMS) or "none")
sys.exit(bool(PROBLEMS))
