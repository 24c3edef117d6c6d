"""Checkpoints that can be trusted: complete, of this very policy, on a base that stays frozen."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from geo_utils.parameter_errors import ParameterError
from geo_utils.policies import CARD, TRAINER_FILES, torn_file

_STATE = "trainer_state.json"


def newest_complete(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a training, or None.

    The trainer writes `trainer_state.json` last: a checkpoint whose state is missing or torn was
    cut short, and the one before it counts. One whose other files are torn or missing, as after a
    full disk or a power cut, is passed over with a warning: nothing could go on from it, or only
    without what the optimizer knew. Its step is what its state says; a copy may have any name.
    """
    steps = {path: checkpoint_step(path) for path in folder.glob("checkpoint-*")}
    complete = [(step, path) for path, step in steps.items() if step is not None]
    for _, path in sorted(complete, reverse=True):
        if (problem := torn_file(path) or _missing_file(path)) is None:
            return path
        warnings.warn(f"{path} is passed over: {problem}", stacklevel=2)
    return None


def _missing_file(folder: Path) -> str | None:
    """Say which file of a checkpoint is missing, without which the trainer would begin anew."""
    needed = [name for name in TRAINER_FILES if name != "scaler.pt"]  # only of half precision
    needed += ["adapter_config.json"] * (folder / "adapter_model.safetensors").is_file()
    lost = [name for name in needed if not any(folder.glob(name))]
    return f"{', '.join(lost)} missing" if lost else None


def checkpoint_step(folder: Path) -> int | None:
    """Return the step that a checkpoint was saved after; None if it is not complete."""
    try:
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        step = int(state["global_step"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    return step if step >= 0 else None


def copy_policy(checkpoint: Path, folder: Path) -> None:
    """Copy what a checkpoint holds of a policy, without its card and the trainer's own state."""
    left_out = shutil.ignore_patterns(*TRAINER_FILES, _STATE, CARD)
    shutil.copytree(checkpoint, folder, ignore=left_out, dirs_exist_ok=True)


def keep_prompt_order(sampler: Any, resumed: Path | None) -> Any:
    """Return a trainer's sampler, moved on to the epoch that a checkpoint was saved in.

    It draws an order of prompts for every epoch; a training that goes on would begin again with
    the first epoch's.
    """
    import torch

    if resumed is not None:
        state = json.loads((resumed / _STATE).read_text(encoding="utf-8"))
        for _ in range(int(state["epoch"] + 1e-6)):
            torch.randperm(sampler.num_samples, generator=sampler.generator)
    return sampler


def free_memory() -> None:
    """Give the memory of what is no longer used back to the GPU."""
    import torch

    gc.unfreeze()  # what `SettledHeap` took out
    gc.collect()
    torch.cuda.empty_cache()


def check_adapter(folder: Path, base: str, lora: dict[str, Any], max_steps: int) -> None:
    """Refuse a checkpoint that this training could not go on from.

    Args:
        folder: The checkpoint.
        base: Model that the training starts from.
        lora: The training's LoraConfig fields.
        max_steps: The training's last step.

    Raises:
        ParameterError: No complete checkpoint, another base or rank, or no step left to train.
    """
    name = f"resume_from_checkpoint={str(folder)!r}"
    if not folder.is_dir():
        raise ParameterError(f"{name}: no such folder")
    step = checkpoint_step(folder)
    if step is None:
        raise ParameterError(
            f"{name}: {_STATE} is missing or torn; name an earlier checkpoint, or leave it out to "
            "go on from the newest complete one"
        )
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise ParameterError(f"{name}: an adapter without adapter_config.json; copy it whole")
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise ParameterError(f"{name}: adapter_config.json is torn; copy it whole") from None
    if problem := torn_file(folder) or _missing_file(folder):
        raise ParameterError(f"{name}: {problem}; copy it whole, or name an earlier checkpoint")
    found = str(config.get("base_model_name_or_path"))
    if Path(found).name != Path(base).name:
        raise ParameterError(
            f"{name}: trained on {found!r}, not on model_name_or_path={base!r}; name that model"
        )
    if config.get("r") != lora["r"]:
        raise ParameterError(
            f"{name}: its LoRA rank is r={config.get('r')}, not {lora['r']}; set "
            f"lora_r: {config.get('r')}"
        )
    if step >= max_steps:
        raise ParameterError(
            f"{name}: it was saved after step {step}, and max_steps={max_steps} leaves nothing to "
            f"train; set max_steps above {step}"
        )


def base_checksum(model: Any) -> str:
    """Return a hash of all weights that training must not change."""
    import torch

    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        if not weight.requires_grad:
            digest.update(name.encode())
            plain = weight.detach().contiguous().reshape(-1).view(torch.uint8).cpu()
            digest.update(plain.numpy().data)
    return digest.hexdigest()


def keep_base_exact(trainer: Any) -> None:
    """Let every weight sync leave the frozen base bit for bit as it was.

    TRL merges the adapter into the base to send it to vLLM and subtracts it again, which rounds:
    in bfloat16 the base drifts. Here the base is copied before a sync and put back after it, at
    the price of one more copy of the adapted weights while the sync lasts.
    """
    engine = getattr(trainer, "vllm_generation", None)
    if engine is None:
        return
    own: Callable[[], None] = engine.sync_weights
    at_once = getattr(engine, "mode", None) == "colocate" and trainer.accelerator.num_processes == 1

    def exact_sync() -> None:
        with _restored(trainer.accelerator.unwrap_model(trainer.model)):
            if at_once:
                _load_at_once(engine)
            else:
                own()

    engine.sync_weights = exact_sync


def _load_at_once(engine: Any) -> None:
    """Hand colocated vLLM all weights in one call; TRL's call for each weight costs 0.2 s more."""
    import torch

    if engine.enable_sleep_mode:
        torch.cuda.empty_cache()
        engine.llm.wake_up(tags=["weights"])
        engine._llm_weights_sleeping = False
    runner = engine.llm.llm_engine.model_executor.driver_worker.model_runner
    runner.model.load_weights(engine._iter_named_params())
    engine.llm.reset_prefix_cache()


@contextmanager
def _restored(model: Any) -> Iterator[None]:
    import torch

    kept = [
        (weight, weight.detach().clone())
        for name, weight in model.named_parameters()
        if ".base_layer." in name and not weight.requires_grad
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before in kept:
                weight.copy_(before)
