"""Weights written into vLLM's own parameters are those that TRL sends, and the base stays."""

import pytest
import torch
from tiny_model import make_tiny_model
from trainers import FusedSampler, Sampler, adapter, logged, make, with_sampler

from geo_utils.grpo.weight_sync import base_checksum, keep_base_exact

IN_ORDER = ["q_proj", "k_proj", "v_proj"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("policy"))


def synced(policy, folder, monkeypatch, sampler, direct, **options):
    """A trained trainer, and the checksum of its base before."""
    with_sampler(monkeypatch, sampler)
    trainer, _ = make(policy, folder, "fused", use_vllm=True, **options)
    keep_base_exact(trainer, direct)
    before = base_checksum(trainer.model)
    trainer.train()
    assert base_checksum(trainer.model) == before
    return trainer


def test_it_writes_what_trl_sends(policy, tmp_path, monkeypatch):
    found = {}
    for direct in (True, False):
        sampler = FusedSampler(policy)
        found[direct] = sampler, synced(policy, tmp_path, monkeypatch, sampler, direct)
    (ours, trainer), (theirs, other) = found[True], found[False]
    assert (trainer.synced, ours.sent, other.synced, theirs.sent) == ("direct", 1, "merged", 3)
    assert logged(trainer) == logged(other)
    for name, weight in adapter(trainer).items():
        assert weight.equal(adapter(other)[name])
    for name, weight in ours.named_parameters():
        assert weight.equal(theirs.weights[name]), name
    # The adapter moved, and what vLLM holds with it.
    start = FusedSampler(policy)
    start.load_weights(start.model.named_parameters())
    moved = {name for name, w in ours.named_parameters() if not w.equal(start.weights[name])}
    assert {name.split(".")[-2] for name in moved} == {
        "qkv_proj", "o_proj", "gate_up_proj", "down_proj"
    }  # fmt: skip


def test_a_bfloat16_base_is_rounded_once_and_as_trl_rounds_it(policy, tmp_path, monkeypatch):
    ours, theirs = FusedSampler(policy), FusedSampler(policy)
    for sampler, direct in ((ours, True), (theirs, False)):
        for name, weight in sampler.weights.items():
            sampler.weights[name] = torch.nn.Parameter(weight.data.bfloat16(), False)
        made = {"model_init_kwargs": {"dtype": "bfloat16"}}
        synced(policy, tmp_path, monkeypatch, sampler, direct, **made)
    assert ours.sent == 1
    for name, weight in ours.named_parameters():
        assert weight.equal(theirs.weights[name]), name


def test_an_order_of_its_own_is_followed(policy, tmp_path, monkeypatch):
    sampler = FusedSampler(policy, {"qkv_proj": IN_ORDER[::-1]})
    assert synced(policy, tmp_path, monkeypatch, sampler, True).synced == "direct"


def test_where_there_is_no_layout_weights_go_as_before(policy, tmp_path, monkeypatch):
    plain = synced(policy, tmp_path, monkeypatch, Sampler(policy), True)
    assert plain.synced.startswith("merged: vLLM's model does not tell its parts")
    served = synced(policy, tmp_path, monkeypatch, Sampler(policy), True, vllm_mode="server")
    assert served.synced == "merged"


def test_a_sleeping_engine_gets_all_weights(policy, tmp_path, monkeypatch):
    sampler = FusedSampler(policy)
    with_sampler(monkeypatch, sampler)
    trainer, _ = make(policy, tmp_path, "fused", use_vllm=True)
    keep_base_exact(trainer, True)
    engine = trainer.vllm_generation
    engine.enable_sleep_mode, engine.llm.wake_up = True, lambda tags: None
    for _ in range(3):
        engine.sync_weights()
    assert trainer.synced == "merged: vllm_enable_sleep_mode drops all weights of vLLM"
    assert sampler.sent == 3


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"qkv_proj": IN_ORDER[::-1]}, "another weight lies where model.layers.0.self_attn."),
        ({}, "vLLM has no weight for model.layers.0.self_attn.q_proj"),
    ],
)
def test_a_layout_is_looked_at_and_not_believed(policy, tmp_path, monkeypatch, told, said):
    sampler = FusedSampler(policy)
    sampler.packed_modules_mapping = told
    trainer = synced(policy, tmp_path, monkeypatch, sampler, True)
    assert trainer.synced.startswith(f"merged: {said}") and sampler.sent == 3
