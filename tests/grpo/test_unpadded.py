"""Without padding before the tokens, log-probabilities, entropies and gradients are TRL's."""

import pytest
import torch
from tiny_model import make_tiny_model
from trainers import make

# Tokens of each prompt and completion; the third prompt is the longest, the first completion too.
PROMPTS, COMPLETIONS = (3, 9, 17, 12), (8, 1, 5, 6)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    made, _ = make(make_tiny_model(folder), folder, "fused")
    with torch.no_grad():  # an adapter that does something
        for name, weight in made.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    return made


def batch(cut=None):
    """TRL's layout: prompts padded on their left, completions on their right."""
    dice = torch.Generator().manual_seed(0)
    width, kept = max(PROMPTS), max(COMPLETIONS)
    ids = torch.randint(5, 60, (len(PROMPTS), width + kept), generator=dice)
    mask = torch.zeros_like(ids)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        mask[row, width - prompt : width + (0 if row == cut else completion)] = 1
    return ids.masked_fill(mask == 0, 0), mask, kept


def scored(trainer, unpadded, cut=None, **options):
    """Log-probabilities, entropies, and the gradient of a loss of both; and what the model saw."""
    ids, mask, kept = batch(cut)
    seen = []

    def watch(_, args, given):
        seen.append((given["input_ids"].shape, given.get("attention_mask")))

    trainer.unpadded = unpadded
    hook = trainer.model.get_base_model().register_forward_pre_hook(watch, with_kwargs=True)
    logps, entropies, aux = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids, mask, kept, compute_entropy=True, **options
    )
    hook.remove()
    assert aux is None
    trainer.model.zero_grad()
    weight = torch.linspace(-1, 1, logps.numel()).reshape(logps.shape)
    (logps * weight + entropies.detach() * weight).sum().backward()
    gradients = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
    return logps.detach(), entropies.detach(), gradients, seen


@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"batch_size": 1}])
@pytest.mark.parametrize("cut", [None, 0, 1])  # a completion that was masked as cut short
def test_figures_and_gradients_are_trls(trainer, cut, options):
    ours, theirs = (scored(trainer, unpadded, cut, **options) for unpadded in (True, False))
    for one, other in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert (ours[0] == 0).eq(batch(cut)[1][:, -max(COMPLETIONS) :] == 0).all()
    assert ours[2].keys() == theirs[2].keys() and len(ours[2]) > 4
    for name, gradient in ours[2].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, theirs[2][name], rtol=1e-3, atol=1e-5)


def test_the_model_gets_no_mask_and_no_more_columns_than_tokens(trainer):
    *_, seen = scored(trainer, True, batch_size=2)
    lengths = [p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert seen == [((2, max(lengths[:2])), None), ((2, max(lengths[2:])), None)]


@pytest.mark.parametrize(("schedule", "unpadded"), [("stock", False), ("early", True)])
def test_stock_is_trls_own(trainer, tmp_path, schedule, unpadded):
    made, _ = make(trainer.model.get_base_model().name_or_path, tmp_path, schedule)
    assert made.unpadded == unpadded
