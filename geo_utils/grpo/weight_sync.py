"""The policy's weights on their way to vLLM, which leave the frozen base bit for bit as it was.

TRL merges the adapter into the base, sends every weight and subtracts the adapter again, which
rounds: in bfloat16 the base drifts. Here the base is copied before that and put back after it.

Where vLLM shares the process (`colocate`) and its layout is known, nothing is merged at all: the
base and what the adapter adds to it are written together into vLLM's own parameters, `q_proj`,
`k_proj` and `v_proj` into the rows of one `qkv_proj`. Layers without an adapter never change and
are not sent again. The layout is not believed but looked at: after the first sync, which is TRL's,
every place must hold what would be written there.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

log = logging.getLogger(__name__)
Writes = list[tuple[Any, torch.Tensor]]  # adapted layers of PEFT, and where in vLLM each belongs


def base_checksum(model: Any) -> str:
    """Return a hash of all weights that training must not change."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        if not weight.requires_grad:
            digest.update(name.encode())
            plain = weight.detach().contiguous().reshape(-1).view(torch.uint8).cpu()
            digest.update(plain.numpy().data)
    return digest.hexdigest()


def keep_base_exact(trainer: Any, direct: bool = False) -> None:
    """Let every weight sync leave the frozen base bit for bit as it was.

    Args:
        trainer: TRL's; how it syncs is changed in place. Its `synced` then says how the last sync
            was done: `direct`, or `merged` and, where it might have been direct, why not.
        direct: Write into colocated vLLM's parameters where that is possible.
    """
    engine = getattr(trainer, "vllm_generation", None)
    trainer.synced = None
    if engine is None:
        return
    own = engine.sync_weights
    at_once = getattr(engine, "mode", None) == "colocate" and trainer.accelerator.num_processes == 1
    writes: Writes | None = None

    def merged_sync(model: Any) -> None:
        kept = [
            (weight, weight.detach().clone())
            for name, weight in model.named_parameters()
            if ".base_layer." in name and not weight.requires_grad
        ]
        try:
            if at_once:
                _load_at_once(engine)
            else:
                own()
        finally:
            with torch.no_grad():
                for weight, before in kept:
                    weight.copy_(before)

    def exact_sync() -> None:
        nonlocal writes
        model = trainer.accelerator.unwrap_model(trainer.model)
        if writes:
            write(writes)
            engine.llm.reset_prefix_cache()
            trainer.synced = "direct"
            return
        merged_sync(model)
        if trainer.synced is None:
            trainer.synced = "merged"
            if direct and at_once:
                try:
                    writes = _places(model, engine)
                except _UnknownLayoutError as error:
                    trainer.synced = f"merged: {error}"
                    log.warning("weights go to vLLM as TRL sends them: %s", error)

    engine.sync_weights = exact_sync


def _load_at_once(engine: Any) -> None:
    """Hand colocated vLLM all weights in one call; TRL's call for each weight costs 0.2 s more."""
    if engine.enable_sleep_mode:
        torch.cuda.empty_cache()
        engine.llm.wake_up(tags=["weights"])
        engine._llm_weights_sleeping = False
    _engine_model(engine).load_weights(engine._iter_named_params())
    engine.llm.reset_prefix_cache()


def _engine_model(engine: Any) -> Any:
    return engine.llm.llm_engine.model_executor.driver_worker.model_runner.model


@torch.no_grad()
def write(writes: Writes) -> None:
    """Write base and adapter of each layer into its place, rounded once and as PEFT does it."""
    for layer, place in writes:
        torch.add(layer.get_base_layer().weight, _added(layer), out=place)


def _added(layer: Any) -> torch.Tensor:
    """Return what an adapter adds to a layer's weight."""
    (name,) = layer.active_adapters
    found: torch.Tensor = layer.get_delta_weight(name)
    return found


class _UnknownLayoutError(Exception):
    """Where the weights belong is not known; the message says what about it."""


@torch.no_grad()
def _places(model: Any, engine: Any) -> Writes:
    """Find where in vLLM each adapted layer's weight belongs, by what lies there.

    Args:
        model: The policy with its adapter.
        engine: TRL's, whose vLLM holds the policy's weights.

    Raises:
        _UnknownLayoutError: A layer has no place, or another weight lies there.
    """
    if engine.enable_sleep_mode:
        raise _UnknownLayoutError("vllm_enable_sleep_mode drops all weights of vLLM")
    served = _engine_model(engine)
    try:
        weights = dict(served.named_parameters())
        fused = dict(served.packed_modules_mapping)
    except (AttributeError, TypeError, ValueError) as error:
        raise _UnknownLayoutError(f"vLLM's model does not tell its parts ({error})") from None
    found = []
    for name, layer in _adapted(model):
        place = _place(name, model.get_base_model(), weights, fused)
        merged = torch.add(layer.get_base_layer().weight, _added(layer)).to(place.dtype)
        if place.shape != merged.shape or not torch.allclose(place, merged, rtol=0.01, atol=1e-6):
            raise _UnknownLayoutError(f"another weight lies where {name} belongs in vLLM")
        found.append((layer, place))
    return found


def _adapted(model: Any) -> Iterator[tuple[str, Any]]:
    """Return the layers with an adapter by the names that Transformers gives them.

    Raises:
        _UnknownLayoutError: More is trained than plain LoRA of linear layers.
    """
    from peft.tuners.lora.layer import Linear

    count = 0
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, Linear):
            plain = not layer.lora_variant and not any(layer.lora_bias.values())
            if type(layer) is not Linear or not plain or len(layer.active_adapters) != 1:
                raise _UnknownLayoutError(f"the adapter of {name} is no plain LoRA")
            count += 2
            yield name, layer
    if count != sum(weight.requires_grad for weight in model.parameters()):
        raise _UnknownLayoutError("more is trained than adapters of linear layers")


def _place(
    name: str, model: Any, weights: Mapping[str, torch.Tensor], fused: Mapping[str, Sequence[str]]
) -> torch.Tensor:
    """Return vLLM's weight of a layer, or the rows of it in a weight of several.

    Args:
        name: Of the layer in Transformers.
        model: That of Transformers; knows the layers beside it.
        weights: Those of vLLM.
        fused: The layers that vLLM keeps in one, in their order.
    """
    if (whole := weights.get(f"{name}.weight")) is not None:
        return whole.data
    parent, _, own = name.rpartition(".")
    for together, parts in fused.items():
        whole = weights.get(f"{parent}.{together}.weight")
        if own in parts and whole is not None:
            sizes = [len(model.get_submodule(f"{parent}.{part}").weight) for part in parts]
            place = list(parts).index(own)
            if sum(sizes) == len(whole):
                return whole.data.narrow(0, sum(sizes[:place]), sizes[place])
    raise _UnknownLayoutError(f"vLLM has no weight for {name}")
