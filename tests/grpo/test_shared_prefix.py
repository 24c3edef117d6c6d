"""With one pass over a group's prompt, figures, losses and gradients are those of a pass each."""

from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_model import make_tiny_model
from torch.nn.attention import flex_attention
from trainers import Sampler, adapter, logged, make, with_sampler
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from geo_utils.grpo import shared_prefix
from geo_utils.grpo.trainer import row_scores

WANTED = ["log_probs", "entropy"]
# Groups: tokens of the prompt, and of each completion; 0 for one that was masked as cut short.
GROUPS = [(17, (8, 1, 5, 6)), (3, (8, 8, 0, 2)), (1, (4, 3, 7, 1)), (9, (0, 0, 0, 0))]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def model(policy, tmp_path_factory):
    made, _ = make(policy, tmp_path_factory.mktemp("run"), "fused")
    with torch.no_grad():  # an adapter that does something
        for name, weight in made.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    return made.model


def batch(groups=GROUPS):
    """TRL's layout: prompts padded on their left, completions on their right."""
    dice = torch.Generator().manual_seed(0)
    width = max(prompt for prompt, _ in groups)
    kept = max(length for _, lengths in groups for length in lengths)
    ids, masks = [], []
    for prompt, lengths in groups:
        asked = torch.randint(5, 60, (width,), generator=dice)
        for length in lengths:
            written = torch.randint(5, 60, (kept,), generator=dice)
            mask = torch.zeros(width + kept, dtype=torch.long)
            mask[width - prompt : width + length] = 1
            ids.append(torch.cat([asked, written]).masked_fill(mask == 0, 0))
            masks.append(mask)
    return torch.stack(ids), torch.stack(masks), kept


def with_gradients(model, found):
    """Figures, and the gradient of a loss of all of them."""
    model.zero_grad()
    weight = torch.linspace(-1, 1, found[0].numel()).reshape(found[0].shape)
    sum((figures * weight).sum() for figures in found).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return [figures.detach() for figures in found], gradients


@pytest.mark.parametrize("groups", [GROUPS, GROUPS[:1], GROUPS[2:]])
def test_figures_and_gradients_are_those_of_a_pass_each(model, groups):
    rows = batch(groups)
    each, ours = (
        with_gradients(model, found)
        for found in (
            row_scores(model, *rows, WANTED),
            shared_prefix.scores(model, *rows, WANTED, "dense"),
        )
    )
    for one, other in zip(ours[0], each[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert (one == 0).eq(rows[1][:, -rows[2] :] == 0).all()
    assert ours[1].keys() == each[1].keys() and len(ours[1]) > 4
    for name, gradient in ours[1].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, each[1][name], rtol=1e-3, atol=1e-5)


def test_a_prompt_is_there_once_and_its_last_token_with_each_completion():
    ids, mask, kept = batch([(5, (2, 3)), (2, (1, 0))])
    packed = shared_prefix.pack(ids, mask, kept, multiple=8)
    before = ids.size(1) - kept
    first, second = ids[0, :before], ids[2, before - 2 : before]
    last = first[-1:]
    lines = [first[:-1], last, ids[0, before : before + 1], last, ids[1, before : before + 2]]
    lines += [second[:-1], second[-1:]]
    assert packed.ids[0, :11].tolist() == torch.cat(lines).tolist()
    assert packed.positions[0, :11].tolist() == [0, 1, 2, 3, 4, 5, 4, 5, 6, 0, 1]
    spoken = packed.labels[0, :11] != -100
    assert spoken.tolist() == [False] * 4 + [True] * 5 + [False, True]
    assert packed.ids.size(1) == 16 and (packed.labels[0, 11:] == -100).all()


def test_nothing_of_a_micro_batch_that_was_cut_short_counts(model):
    ids, mask, kept = batch([(4, (3, 3)), (6, (3, 3))])
    mask[:, -kept:] = 0
    (found,) = shared_prefix.scores(model, ids, mask, kept, ["log_probs"], "dense")
    assert found.shape == (4, 3) and (found == 0).all()
    found.sum().backward()  # TRL's loss of it is a zero that has a gradient


def adapted(policy):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    add_fused_lm_head(base, outputs=tuple(WANTED))
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(base, lora).train()


def test_flex_attention_and_compiled_layers_say_the_same_by_two_graphs(policy, monkeypatch):
    """FlexAttention refuses a gradient on a CPU, where only its reference can have one."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    graphs = []

    def note(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    plain, compiled = adapted(policy), adapted(policy)
    shared_prefix.take_block_masks(compiled)
    compiled.enable_input_require_grads()
    for layer in compiled.get_base_model().model.layers:
        layer.compile(backend=note)
    for groups in (
        [(300, (150, 7, 90)), (70, (30, 400, 1))],
        [(20, (50, 70, 0, 9))],
        [(100, (300, 20)), (90, (80, 3)), (44, (5, 6))],
    ):
        rows = batch(groups)
        each = with_gradients(plain, row_scores(plain, *rows, WANTED))
        ours = with_gradients(compiled, shared_prefix.scores(compiled, *rows, WANTED, "flex"))
        for one, other in zip(ours[0], each[0], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        for name, gradient in ours[1].items():
            torch.testing.assert_close(gradient, each[1][name], rtol=1e-3, atol=1e-4)
    assert len(graphs) == 2  # of the first length, and of any


def test_blocks_are_those_of_the_mask(monkeypatch):
    monkeypatch.setattr(shared_prefix, "_SLAB", 256)
    rows = batch([(300, (150, 7, 90)), (70, (30, 400, 1))])
    packed = shared_prefix.pack(*rows, multiple=shared_prefix.BLOCK)
    length = packed.ids.size(1)
    blocks, dense = shared_prefix.block_mask(packed), shared_prefix.dense_mask(packed)
    assert blocks.shape == (1, 1, length, length) and length % 128 == 0
    assert flex_attention.create_mask(blocks.mask_mod, 1, 1, length, length, "cpu").equal(dense)
    counts = dense.view(length // 128, 128, length // 128, 128).sum(dim=(1, 3))
    for numbers, columns, meant in (
        (blocks.kv_num_blocks, blocks.kv_indices, (counts > 0) & (counts < 128 * 128)),
        (blocks.full_kv_num_blocks, blocks.full_kv_indices, counts == 128 * 128),
    ):
        assert meant.any()
        for row, number in enumerate(numbers[0, 0].tolist()):
            assert columns[0, 0, row, :number].tolist() == meant[row].nonzero()[:, 0].tolist()


LOSSES = ["grpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"]  # bnpo is refused


@pytest.fixture(scope="module")
def trainers(policy, tmp_path_factory):
    """A trainer of each way, and the adapter that both begin with."""
    folder = tmp_path_factory.mktemp("trainers")
    made = {way: make(policy, folder, "early", prompts=way)[0] for way in ("dense", "each")}
    return made, adapter(made["each"])


@pytest.mark.parametrize("loss", LOSSES)
def test_at_twenty_steps_of_each_loss_the_gradients_are_the_same(trainers, loss):
    """Both ways at the weights that one of them comes to: small roundings would grow on two paths.

    Two micro-batches a step, by plain gradients.
    """
    made, start = trainers
    ids, mask, kept = batch(GROUPS[:2] + GROUPS[:2])
    dice = torch.Generator().manual_seed(1)
    rows = {
        "prompt_ids": ids[:, :-kept], "prompt_mask": mask[:, :-kept],
        "completion_ids": ids[:, -kept:], "completion_mask": mask[:, -kept:],
        "advantages": torch.randn(len(ids), generator=dice),
        "old_per_token_logps": torch.randn(len(ids), kept, generator=dice) / 10 - 5.5,
    }  # fmt: skip
    halves = [
        {name: value[part] for name, value in rows.items()} for part in (slice(8), slice(8, 16))
    ]

    def step(trainer, at):
        trainer.loss_type, trainer.current_gradient_accumulation_steps = loss, 2
        weights = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
        for name, weight in weights.items():
            weight.data.copy_(at[name])
        trainer.model.zero_grad()
        losses = []
        for half in halves:
            told = trainer._compute_loss(
                trainer.model, half | {"num_items_in_batch": mask[:, -kept:].sum()}
            )
            told.backward()
            losses.append(told.item())
        return losses, {name: weight.grad.clone() for name, weight in weights.items()}

    at, seen = {name: value.clone() for name, value in start.items()}, []
    for _ in range(20):
        (ours, one), (theirs, other) = (step(made[way], at) for way in ("dense", "each"))
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
        for name, value in other.items():
            torch.testing.assert_close(one[name], value, rtol=1e-4, atol=1e-6)
            at[name] -= 0.05 * value / value.norm().clamp(min=1e-4)
        seen += theirs
    assert abs(seen[-1] - seen[1]) > 1e-3  # it went somewhere


def trained(policy, folder, monkeypatch, schedule, vllm, prompts):
    if vllm:
        with_sampler(monkeypatch, Sampler(policy))
    made, _ = make(
        policy, folder, schedule, prompts=prompts, use_vllm=vllm, optim="sgd", learning_rate=2.0,
        max_steps=4, gradient_accumulation_steps=2, beta=0.1 if schedule == "early" else 0.0,
    )  # fmt: skip
    made.train()
    return made


@pytest.mark.parametrize(
    ("schedule", "vllm"), [("fused", True), ("early", True), ("ahead", True), ("ahead", False)]
)
def test_trainings_are_the_same_and_micro_batches_hold_whole_groups(
    policy, tmp_path, monkeypatch, schedule, vllm
):
    ours, theirs = (
        trained(policy, tmp_path, monkeypatch, schedule, vllm, prompts)
        for prompts in ("auto", "each")
    )
    assert (ours.prompts, theirs.prompts) == ("dense", "each")
    for one, other in zip(logged(ours), logged(theirs), strict=True):
        assert one["reward"] == other["reward"]  # each token that was written is the same
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
    assert any(row["grad_norm"] > 0 for row in logged(ours))
    weights = adapter(theirs)
    for name, weight in adapter(ours).items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-3, atol=1e-5)
    for trainer, most in ((ours, 2), (theirs, 4)):  # prompts of a micro-batch of 8, groups of 4
        prompts = [len({tuple(row) for row in kept["prompt_ids"].tolist()})
                   for _, kept, _ in trainer.seen]  # fmt: skip
        assert max(prompts) == most and len(prompts) == 8


def test_groups_are_shuffled_and_nothing_parts_from_its_row():
    """A group comes where its first row was."""
    numbers = torch.tensor([2, 0, 2, 1, 0, 1])
    rows = {"group": numbers, "place": torch.arange(6), "all": torch.tensor(7), "none": None}
    parts = [
        {name: value[3 * i : 3 * i + 3] if name in ("group", "place") else value
         for name, value in rows.items()} for i in range(2)
    ]  # fmt: skip
    found = shared_prefix.whole_groups(parts)
    assert [part["group"].tolist() for part in found] == [[2, 2, 0], [0, 1, 1]]
    assert [part["place"].tolist() for part in found] == [[0, 2, 1], [4, 3, 5]]
    assert [(part["all"].item(), part["none"]) for part in found] == [(7, None)] * 2


def of_dropout(base):
    base.config.attention_dropout = 0.1


def of_window(base):
    base.config.layer_types = ["full_attention", "sliding_attention"]


def of_eager(base):
    base.config._attn_implementation = "eager"


@pytest.mark.parametrize(
    ("change", "named"),
    [(of_dropout, "attention_dropout=0.1"), (of_window, "sliding_attention"), (of_eager, "eager")],
)
def test_a_model_that_it_would_change_is_refused_by_name(policy, change, named):
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    assert shared_prefix.obstacle(model) is None
    change(model)
    assert named in shared_prefix.obstacle(model)


def test_dropout_of_the_adapter_is_refused_or_leaves_it_off(policy, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("trainers.LoraConfig", partial(LoraConfig, lora_dropout=0.1))
    made, _ = make(policy, tmp_path, "early", prompts="auto")
    assert made.prompts == "each" and "dropout of 0.1" in caplog.text
    with pytest.raises(ValueError, match=r"reward.shared_prefix='dense': dropout of 0.1"):
        make(policy, tmp_path, "early", prompts="dense")
    assert make(policy, tmp_path, "stock", prompts="auto")[0].prompts == "each"
