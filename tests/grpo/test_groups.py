"""Groups that teach nothing are replaced within the step, and nothing is mixed up by it."""

import pytest
import torch
from conftest import run
from test_scoring import PAGE, FakeEngine, columns, rewards
from tiny_model import make_tiny_model
from trainers import NAMES, Answers, Sampler, Verdicts, adapter, logged, make, rows, with_sampler

from geo_utils.files import read_jsonl
from geo_utils.grpo.groups import Groups, prompt_of
from geo_utils.grpo.params import Dynamic
from geo_utils.roles.engines import Answer
from geo_utils.roles.judges import Verdict

SILENT = NAMES[:4]  # of six prompts; two make a batch


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("policy"))


def groups(folder, **options):
    return Groups(rows(), 4, 0, Dynamic(**options), 0, folder / "groups.jsonl")


class TestDraw:
    @pytest.mark.parametrize(
        ("rewards", "silent"),
        [
            ([0, 0, 0, 0, 0, 1, 0, 0], [0]),
            ([1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5], [0, 1]),
            ([0, None, None, 1, None, None, None, 1], [1]),  # one score is no comparison
            ([0.2, 0.2005, 0.2, 0.2, None, None, None, None], [0, 1]),
        ],
    )
    def test_a_group_without_two_scores_that_differ_is_silent(self, tmp_path, rewards, silent):
        column = torch.tensor([torch.nan if r is None else float(r) for r in rewards])
        both = torch.stack([column, torch.arange(8.0)], dim=1)  # other rewards do not count
        assert groups(tmp_path).silent(both) == silent

    def test_others_are_drawn_that_are_not_there_and_do_not_rest(self, tmp_path):
        own = groups(tmp_path, rest=2)
        batch = [row for row in rows()[:2] for _ in range(4)]
        own.note(batch, [0, 1], step=1)
        own.close(1, 0)
        assert own.rested(batch, 4) == batch  # they have rested
        for step in (2, 3):
            found = own.rested(batch, step)
            names = [row["query_id"] for row in found]
            assert not set(names) & set(NAMES[:2]) and names[:4] == [names[0]] * 4 != names[4:]
            assert found == groups(tmp_path, rest=2).rested(batch, step)  # a resumed training's
        assert len(own.draw(batch, 9, 2, 1)) == 4  # no more than there are

    def test_a_log_says_what_was_silent(self, tmp_path):
        own = groups(tmp_path)
        batch = [row for row in rows()[:2] for _ in range(4)]
        own.note(batch, [1], step=7)
        own.close(7, 3)
        (line,) = read_jsonl(tmp_path / "groups.jsonl")
        assert line == {"step": 7, "replaced": 3, "silent": [list(prompt_of(rows()[1]))]}


FORMS = ["transformers", "colocate", "server"]


def trained(policy, folder, monkeypatch, schedule, form, silent, rounds=3, **options):
    if form != "transformers":
        with_sampler(monkeypatch, Sampler(policy, off=0.0))
        options |= {"use_vllm": True, "vllm_mode": form}
    engine, own = Answers(), groups(folder, rounds=rounds, rest=0)
    engine.silent = silent
    trainer, _ = make(policy, folder, schedule, engine, groups=own, scale_rewards="none",
                      learning_rate=0.0, max_steps=4, gradient_accumulation_steps=2,
                      per_device_train_batch_size=4, **options)  # fmt: skip
    trainer.unpadded = False  # rounds differently
    trainer.train()
    return trainer, engine, read_jsonl(folder / "groups.jsonl")


class TestRefill:
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("schedule", ["early", "ahead"])
    def test_what_is_trained_on_belongs_together(
        self, policy, tmp_path, monkeypatch, schedule, form
    ):
        """Prompt, completion, reward, and the log-probabilities of whoever wrote it."""
        trainer, engine, log = trained(policy, tmp_path, monkeypatch, schedule, form, SILENT)
        replaced = [line["replaced"] for line in log]
        assert [line["step"] for line in log] == [1, 2, 3, 4] and sum(replaced) >= 4
        assert [row["groups/replaced"] for row in logged(trainer)] == replaced
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
        trainer, engine, log = trained(
            policy, tmp_path, monkeypatch, "early", "transformers", NAMES, rounds=1
        )
        assert [line["replaced"] for line in log] == [2] * 4
        assert all(len(line["silent"]) == 4 for line in log)
        assert all(not kept["advantages"].any() for _, kept, _ in trainer.seen)
        assert [row["groups/silent"] for row in logged(trainer)] == [2] * 4
        assert len(engine.asked) <= 4 * 2 * 8  # a round asks no more than the step
        calls = [row["reward/engine_calls"] for row in logged(trainer)]
        assert all(8 < asked <= 16 for asked in calls)  # equal pages are one

    def test_a_step_whose_groups_all_teach_is_as_without(self, policy, tmp_path, monkeypatch):
        with_it, _, log = trained(policy, tmp_path, monkeypatch, "early", "transformers", ())
        without, _ = make(policy, tmp_path, "early", scale_rewards="none", learning_rate=0.0,
                          max_steps=4, gradient_accumulation_steps=2,
                          per_device_train_batch_size=4)  # fmt: skip
        without.unpadded = False
        without.train()
        assert not any(line["silent"] for line in log)
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


class TestScreen:
    """Calls are spent on the rest of a group only where its first completions differ."""

    def scored(self, said, early=()):
        class Judge:
            async def judge(self, key_point, answer):
                found = said.get(next((name for name in said if name in answer), None), 1.0)
                return Verdict("supported" if found else "omitted")

        engine = FakeEngine()
        made = rewards(["key_point"], engine, Judge())
        made.screen = (4, 2)
        replies = [f"{PAGE} Copy {i}." for i in range(8)]

        async def everything():
            for reply in early:
                row = {"query_id": "q1", "key_point_number": 1, "shown": -1}
                await made.begin(row, reply)
            told = {}
            ids = ["q1"] * 4 + ["q2"] * 4
            batch = columns(replies, ids=ids)
            return await made.score(**batch, log_metric=told.__setitem__), told

        found, told = run(everything())
        return found, told, engine

    def test_a_group_whose_first_agree_is_not_asked_about_further(self):
        found, told, engine = self.scored({"Copy 5": 0.0})
        assert [r.skipped for r in found] == [False] * 2 + [True] * 2 + [False] * 4
        assert [r.rewards.get("key_point") for r in found] == [1, 1, None, None, 1, 0, 1, 1]
        assert len(engine.asked) == told["reward/engine_calls"] == 6
        assert told["reward/abstained"] == 0 and told["drawn/key_point"] == 5 / 6

    def test_those_that_are_asked_about_already_come_first(self):
        early = [f"{PAGE} Copy {i}." for i in (3, 1, 0, 2)]  # in the order of their ends
        found, _, engine = self.scored({"Copy 5": 0.0}, early)
        assert [r.skipped for r in found[:4]] == [True, False, True, False]
        assert len(engine.asked) == 6

    def test_an_abstention_is_no_agreement_and_no_difference(self):
        engine = FakeEngine({"Copy 0": Answer("", "503: down")})
        made = rewards(["key_point"], engine)
        made.screen = (4, 2)
        found = run(made.score(**columns([f"{PAGE} Copy {i}." for i in range(4)])))
        assert [bool(r.abstention) for r in found] == [True, False, False, False]
        assert [r.skipped for r in found] == [False, False, True, True]


def test_recipes_that_cannot_be_had_are_refused():
    from conftest import PROJECT
    from test_training_params import OWN

    from geo_utils.grpo.params import GrpoParams
    from geo_utils.parameters import ParameterError, default_parameters

    plain = default_parameters(PROJECT / "notebooks/04_grpo.ipynb") | OWN
    for reward, said in (
        ({"schedule": "stock"}, "replaced only with schedule 'early' or 'ahead'"),
        ({"funcs": ["format"]}, "and a reward of key_point or visibility"),
        ({"dynamic": {"screen": 8}}, "screen=8: must be below num_generations=8"),
    ):
        with pytest.raises(ParameterError, match=said):
            GrpoParams.check(plain | {"reward": {"dynamic": {}} | reward})
