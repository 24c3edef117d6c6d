"""Groups that teach nothing are replaced within the step, and nothing is mixed up by it."""

import pytest
import torch
from conftest import run
from tiny_model import make_tiny_model
from trainers import NAMES, Answers, Sampler, Verdicts, adapter, logged, make, rows, with_sampler

from geo_utils.grpo.groups import others, prompt_of, silent

SILENT = NAMES[:4]  # of six prompts; two make a batch


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("policy"))


@pytest.mark.parametrize(
    ("rewards", "found"),
    [
        ([0, 0, 0, 0, 0, 1, 0, 0], [0]),
        ([1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5], [0, 1]),
        ([0, None, None, 1, None, None, None, 1], [1]),  # one score is no comparison
        ([0.2, 0.2005, 0.2, 0.2, None, None, None, None], [0, 1]),
    ],
)
def test_a_group_without_two_scores_that_differ_is_silent(rewards, found):
    column = torch.tensor([torch.nan if r is None else float(r) for r in rewards])
    assert silent(column, 4) == found


def test_others_are_prompts_that_were_not_tried():
    tried = set(map(prompt_of, rows()[:2]))
    drawn = {tuple(row["query_id"] for row in others(rows(), tried, 2, str(i))) for i in range(9)}
    assert len(drawn) > 1 and all(len(set(names) - set(NAMES[:2])) == 2 for names in drawn)
    assert others(rows(), tried, 2, "0") == others(rows(), tried, 2, "0")
    assert len(others(rows(), tried, 9, "0")) == 4  # no more than there are


FORMS = ["transformers", "colocate", "server"]


def trained(policy, folder, monkeypatch, schedule, form, without, refills=4, **options):
    if form != "transformers":
        with_sampler(monkeypatch, Sampler(policy, off=0.0))
        options |= {"use_vllm": True, "vllm_mode": form}
    engine = Answers()
    engine.silent = without
    trainer, _ = make(policy, folder, schedule, engine, refills=refills, scale_rewards="none",
                      learning_rate=0.0, max_steps=4, gradient_accumulation_steps=2,
                      per_device_train_batch_size=4, **options)  # fmt: skip
    trainer.unpadded = False  # rounds differently
    trainer.train()
    return trainer, engine


class TestRefill:
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("schedule", ["early", "ahead"])
    def test_what_is_trained_on_belongs_together(
        self, policy, tmp_path, monkeypatch, schedule, form
    ):
        """Prompt, completion, reward, and the log-probabilities of whoever wrote it."""
        trainer, engine = trained(policy, tmp_path, monkeypatch, schedule, form, SILENT)
        assert sum(row["groups/replaced"] for row in logged(trainer)) >= 4
        assert all(row["groups/silent"] == 0 for row in logged(trainer))
        decode, by_group = trainer.processing_class.decode, {}
        for step, kept, _ in trainer.seen:
            ids = torch.cat([kept["prompt_ids"], kept["completion_ids"]], dim=1)
            mask = torch.cat([kept["prompt_mask"], kept["completion_mask"]], dim=1)
            with torch.no_grad():
                logits = trainer.model(ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
            direct = logits.gather(2, ids[:, 1:, None])[:, :, 0][:, -kept["completion_ids"].size(1):]  # fmt: skip # noqa: E501
            known = kept["completion_mask"].bool()
            for name in {"old_per_token_logps", "sampling_per_token_logps"} & kept.keys():
                torch.testing.assert_close(kept[name][known], direct[known], rtol=1e-4, atol=1e-4)
            for i, row in enumerate(ids):
                prompt = decode(row[: kept["prompt_ids"].size(1)], skip_special_tokens=True)
                name = prompt.split("Write of ")[1].split()[0]
                text = decode(kept["completion_ids"][i][known[i]], skip_special_tokens=True)
                group = by_group.setdefault((step, name), [])
                group.append((text, kept["advantages"][i].item()))
        for (_, name), group in by_group.items():
            assert len(group) == 4
            earned = [score(engine, name, text) for text, _ in group]
            mean = sum(earned) / 4
            assert max(earned) > min(earned)
            assert [a for _, a in group] == pytest.approx([e - mean for e in earned], abs=1e-5)

    def test_the_cap_holds_and_what_is_silent_all_the_same_moves_nothing(
        self, policy, tmp_path, monkeypatch
    ):
        trainer, engine = trained(
            policy, tmp_path, monkeypatch, "early", "transformers", NAMES, refills=1
        )
        assert [row["groups/replaced"] for row in logged(trainer)] == [2] * 4
        assert all(not kept["advantages"].any() for _, kept, _ in trainer.seen)
        assert [row["groups/silent"] for row in logged(trainer)] == [2] * 4
        assert len(engine.asked) <= 4 * 2 * 8  # a round asks no more than the step
        calls = [row["reward/engine_calls"] for row in logged(trainer)]
        assert all(8 < asked <= 16 for asked in calls)  # equal pages are one

    def test_a_step_whose_groups_all_teach_is_as_without(self, policy, tmp_path, monkeypatch):
        with_it, _ = trained(policy, tmp_path, monkeypatch, "early", "transformers", ())
        without, _ = make(policy, tmp_path, "early", scale_rewards="none", learning_rate=0.0,
                          max_steps=4, gradient_accumulation_steps=2,
                          per_device_train_batch_size=4)  # fmt: skip
        without.unpadded = False
        without.train()
        assert not any(row["groups/replaced"] for row in logged(with_it))
        for ours, theirs in zip(logged(with_it), logged(without), strict=True):
            assert {n: v for n, v in ours.items() if n in theirs} == theirs


def score(engine, name, text):
    """What a completion earns: by the engine's and judge's own rule."""
    from trainers import EXAMPLES, POINT

    from geo_utils.grpo.rewards import RewardOptions, Rewards
    from geo_utils.roles.by_model import RewriteTask

    options = RewardOptions(funcs=["key_point"], soft=True)
    made = Rewards(EXAMPLES, RewriteTask("key_point"), engine, Verdicts(), options)
    batch = {"query_id": [name], "key_point_number": [POINT[0].number], "shown": [-1]}
    (found,) = run(made.score(completions=[text], **batch))
    return found.rewards["key_point"]


def test_what_is_written_between_steps_changes_no_training(policy, tmp_path):
    """And is written by the weights of that moment."""
    plain, _ = make(policy, tmp_path, "early", max_steps=2)
    plain.train()
    disturbed, _ = make(policy, tmp_path, "early", max_steps=2)
    texts = [disturbed.write_now(rows()[:3], 5) for _ in range(2)]
    disturbed.train()
    assert texts[0] == texts[1] != disturbed.write_now(rows()[:3], 6) and len(texts[0]) == 3
    for name, weight in adapter(plain).items():
        assert torch.equal(weight, adapter(disturbed)[name])


def test_recipes_that_cannot_be_had_are_refused():
    from conftest import PROJECT
    from test_training_params import OWN

    from geo_utils.grpo.params import GrpoParams
    from geo_utils.parameters import ParameterError, default_parameters

    plain = default_parameters(PROJECT / "notebooks/04_grpo.ipynb") | OWN
    for reward in ({"schedule": "stock"}, {"funcs": ["format"]}):
        said = "refills=1 needs schedule 'early' or 'ahead' and a reward of key_point or visib"
        with pytest.raises(ParameterError, match=said):
            GrpoParams.check(plain | {"reward": {"refills": 1} | reward})
