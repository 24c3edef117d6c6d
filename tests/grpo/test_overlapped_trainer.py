"""What takes the waiting out of a step changes nothing else."""

import gc
import itertools
import os
import signal
import threading
import time
from collections import Counter
from statistics import fmean
from types import SimpleNamespace

import pytest
import torch
from tiny_model import make_tiny_model
from trainers import Answers, Sampler, Watched, adapter, logged, make, with_sampler
from transformers import AutoModelForCausalLM, AutoTokenizer

from geo_utils.files import read_jsonl
from geo_utils.grpo.checkpoints import Interrupts, checkpoint_step, save_now
from geo_utils.grpo.log import TrainingLog, timed
from geo_utils.roles.engines import Answer
from geo_utils.runs import RunInterrupted

MODES = ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


@pytest.fixture(scope="module", autouse=True)
def quick_collection():
    """The trainer collects garbage as it starts: a second each over all that pytest imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("policy"))


def trained(policy, folder, schedule, **options):
    trainer, _ = make(policy, folder, schedule, **options)
    trainer.unpadded = False  # rounds differently, which Adam makes large; see test_unpadded
    trainer.train()
    return trainer


def same_training(one, other):
    for ours, theirs in zip(logged(one), logged(other), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            if value is None:  # a mean over nothing
                assert ours[name] is None, name
            else:
                assert ours[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    weights = adapter(other)
    for name, weight in adapter(one).items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-4, atol=1e-6)


class TestFused:
    @pytest.mark.parametrize("micro", [1, 2])
    @pytest.mark.parametrize("mode", MODES)
    def test_the_correction_is_trls(self, policy, tmp_path, monkeypatch, mode, micro):
        found = {}
        for schedule in ("stock", "fused"):
            with_sampler(monkeypatch, Sampler(policy))
            found[schedule] = trained(
                policy, tmp_path, schedule, use_vllm=True, gradient_accumulation_steps=micro,
                per_device_train_batch_size=8 // micro, vllm_importance_sampling_mode=mode,
                vllm_importance_sampling_clip_min=0.9, vllm_importance_sampling_clip_max=1.1,
            )  # fmt: skip
        same_training(found["fused"], found["stock"])
        ratios = torch.cat([s["importance_sampling_ratio"] for _, s, _ in found["fused"].seen])
        outside = (ratios == 0) if mode.endswith("mask") else (ratios == 0.9) | (ratios == 1.1)
        assert outside.any() and not outside.all()  # else the bounds were never tried
        assert all(row["grad_norm"] > 0 for row in logged(found["stock"]))

    def test_what_vllm_could_not_score_or_was_cut_short_counts_as_in_trl(
        self, policy, tmp_path, monkeypatch
    ):
        found = {}
        for schedule in ("stock", "fused"):
            sampler = Sampler(policy)
            sampler.unknown = True
            with_sampler(monkeypatch, sampler)
            found[schedule] = trained(
                policy, tmp_path, schedule, use_vllm=True, max_steps=2, beta=0.1,
                mask_truncated_completions=True, gradient_accumulation_steps=2,
                per_device_train_batch_size=4, steps_per_generation=1,
            )  # fmt: skip
        same_training(found["fused"], found["stock"])

    @pytest.mark.parametrize(("schedule", "passes"), [("stock", 6), ("fused", 3)])
    def test_it_saves_a_pass(self, policy, tmp_path, monkeypatch, schedule, passes):
        with_sampler(monkeypatch, Sampler(policy))
        trainer, _ = make(policy, tmp_path, schedule, use_vllm=True)
        made = 0

        def count(*_):
            nonlocal made
            made += 1

        trainer.model.get_base_model().register_forward_hook(count)
        trainer.train()
        assert made == passes

    @pytest.mark.parametrize(
        ("options", "fused"),
        [
            ({"gradient_accumulation_steps": 4, "steps_per_generation": 2}, True),
            ({"gradient_accumulation_steps": 1, "steps_per_generation": 2}, False),
            ({"num_iterations": 2}, False),
        ],
    )
    def test_only_where_no_step_lies_between_generation_and_loss(
        self, policy, tmp_path, monkeypatch, options, fused
    ):
        found = {}
        for schedule in ("stock", "fused"):
            with_sampler(monkeypatch, Sampler(policy))
            found[schedule] = trained(
                policy, tmp_path, schedule, use_vllm=True, max_steps=4,
                per_device_train_batch_size=4, **options,
            )  # fmt: skip
        old = {"old_per_token_logps" in kept for _, kept, _ in found["fused"].seen}
        assert old == {not fused}
        same_training(found["fused"], found["stock"])


def answered(engine):
    return Counter((query, page) for query, page, _ in engine.asked)


def wait_for(condition):
    until = time.monotonic() + 120
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)


class TestEarly:
    def last_waits(self, sampler, engine, form):
        """What is written last is finished when somebody has asked about the others."""
        written = itertools.count()

        def asked():
            batch = sampler.told[len(sampler.told) // 8 * 8 :]
            return batch and engine.times and engine.times[-1] >= batch[0]

        if form == "server":  # one of two prompts
            sampler.sampled = lambda *_: next(written) % 2 or wait_for(asked)
        else:
            sampler.finishing = lambda: wait_for(asked)

    @pytest.mark.parametrize("form", ["colocate", "server"])
    def test_rewards_are_asked_for_while_others_are_written_and_never_twice(
        self, policy, tmp_path, monkeypatch, form
    ):
        found, engines, samplers = {}, {}, {}
        for schedule in ("stock", "early"):
            sampler, engine = Sampler(policy), Answers()
            samplers[schedule], engines[schedule] = sampler, engine
            with_sampler(monkeypatch, sampler)
            if schedule == "early":
                self.last_waits(sampler, engine, form)
            found[schedule] = trained(
                policy, tmp_path, schedule, engine=engines[schedule], use_vllm=True,
                vllm_mode=form, reward={"repeats": 2}, learning_rate=0.0,
            )  # fmt: skip
        same_training(found["early"], found["stock"])
        assert answered(engines["early"]) == answered(engines["stock"])
        assert all(row["reward_std"] > 0 for row in logged(found["early"]))
        for schedule, before in (("stock", False), ("early", True)):
            ends = sorted(samplers[schedule].told)[7::8]  # of each batch's last completion
            starts = sorted(samplers[schedule].told)[::8]
            for begun, ended in zip(starts, ends, strict=True):
                early = [t for t in engines[schedule].times if begun <= t < ended]
                assert bool(early) == before

    def test_without_vllm_it_is_the_stock_trainer(self, policy, tmp_path):
        found = {s: trained(policy, tmp_path, s, max_steps=4) for s in ("stock", "early")}
        same_training(found["early"], found["stock"])

    def test_a_placebo_asks_for_nothing_early(self, policy, tmp_path, monkeypatch):
        engine, sampler = Answers(), Sampler(policy, step_s=0.01)
        with_sampler(monkeypatch, sampler)
        trained(policy, tmp_path, "early", engine=engine, use_vllm=True, max_steps=1,
                reward={"placebo": True})  # fmt: skip
        assert engine.times and min(engine.times) > max(sampler.told)

    def test_an_early_call_that_fails_is_an_abstention(self, policy, tmp_path, monkeypatch):
        engine, batches = Answers(), []
        engine.failing = lambda number: Answer("", "503: down") if number == 2 else None
        with_sampler(monkeypatch, Sampler(policy, step_s=0.01))
        trainer = trained(
            policy, tmp_path, "early", engine=engine, use_vllm=True, max_steps=2,
            on_scored=lambda step, batch: batches.append((step, batch)),
        )  # fmt: skip
        (_, first), (_, second) = batches
        assert [r.abstention for r in first if r.abstention] == ["engine: 503: down"]
        assert not any(r.abstention for r in second)
        assert [row["reward/abstained"] for row in logged(trainer)] == [1 / 8, 0]

    def test_a_spent_budget_ends_the_training(self, policy, tmp_path, monkeypatch):
        engine = Answers()
        engine.failing = lambda number: RunInterrupted("spent") if number > 10 else None
        with_sampler(monkeypatch, Sampler(policy))
        with pytest.raises(RunInterrupted, match="spent"):
            trained(policy, tmp_path, "early", engine=engine, use_vllm=True, max_steps=9)


def completions(kept):
    """The completions of a micro-batch."""
    return [
        tuple(ids[mask.bool()].tolist())
        for ids, mask in zip(kept["completion_ids"], kept["completion_mask"], strict=True)
    ]


class TestAhead:
    def noted(self, trainer, sampler=None):
        """Note the step whose weights wrote each completion, and those weights."""
        notes, states = {}, {}
        if sampler is not None:
            at = {}
            sampler.loading = lambda number: at.__setitem__(number, trainer.state.global_step)
            sampler.sampled = lambda number, rows: notes.update(
                {tuple(tokens): at[number] for tokens, _ in rows}
            )
            return notes, states
        generate = trainer.model.generate

        def noting(*args, **kwargs):
            found, step = generate(*args, **kwargs), trainer.state.global_step
            states[step] = adapter(trainer)
            start = kwargs["input_ids"].size(1)
            notes.update({tuple(row[start:].tolist()): step for row in found})
            return found

        trainer.model.generate = noting
        return notes, states

    @pytest.mark.parametrize("form", ["transformers", "colocate", "server"])
    def test_a_batch_is_trained_on_one_step_after_its_weights(
        self, policy, tmp_path, monkeypatch, form
    ):
        sampler, vllm = Sampler(policy), {}
        if form != "transformers":
            with_sampler(monkeypatch, sampler)
            vllm = {"use_vllm": True, "vllm_mode": form}
        trainer, _ = make(policy, tmp_path, "ahead", max_steps=5, **vllm)
        notes, _ = self.noted(trainer, sampler if vllm else None)
        trainer.train()
        assert [step for step, *_ in trainer.seen] == [0, 1, 2, 3, 4]
        # three batches an epoch: the first of each is on policy
        for (_, kept, _), written in zip(trainer.seen, [0, 0, 1, 3, 3], strict=True):
            found = [
                {s for ids, s in notes.items() if ids[: len(tokens)] == tokens}
                for tokens in completions(kept)
            ]
            assert found == [{written}] * 8
        assert len(notes) == 5 * 8  # none is written in vain
        stock, _ = make(policy, tmp_path, "stock", max_steps=5)
        stock.train()
        for (_, ours, _), (_, theirs, _) in zip(trainer.seen, stock.seen, strict=True):
            assert sorted(ours["prompt_ids"].tolist()) == sorted(theirs["prompt_ids"].tolist())

    def test_the_ratio_is_to_the_weights_that_wrote_it(self, policy, tmp_path):
        trainer, _ = make(policy, tmp_path, "ahead", max_steps=5)
        _, states = self.noted(trainer)
        trainer.train()
        for (_, kept, _), written in zip(trainer.seen, [0, 0, 1, 3, 3], strict=True):
            for name, weight in trainer.model.named_parameters():
                if name in states[written]:
                    weight.data.copy_(states[written][name])
            ids = torch.cat([kept["prompt_ids"], kept["completion_ids"]], dim=1)
            mask = torch.cat([kept["prompt_mask"], kept["completion_mask"]], dim=1)
            with torch.no_grad():
                logits = trainer.model(ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
            direct = logits.gather(2, ids[:, 1:, None])[:, :, 0][
                :, -kept["completion_ids"].size(1) :
            ]
            known = kept["completion_mask"].bool()
            torch.testing.assert_close(
                kept["old_per_token_logps"][known], direct[known], rtol=1e-4, atol=1e-4
            )
        clipped = [row["clip_ratio/region_mean"] for row in logged(trainer)]
        assert clipped[0] == clipped[3] == 0 and len(clipped) == 5

    def test_a_server_writes_while_the_training_runs(self, policy, tmp_path, monkeypatch):
        """A loss waits until the server has begun the next batch, which then waits for the loss."""
        sampler = Sampler(policy)
        with_sampler(monkeypatch, sampler)
        trainer, _ = make(policy, tmp_path, "ahead", use_vllm=True, vllm_mode="server")
        trainer.unpadded = False

        def begun(trainer):
            wait_for(lambda: sampler.writing or len(trainer.times) == 2)  # the last has no next
            return 0.0

        def trained_on(*_):
            batch = (sampler.asked - 1) // 2  # of two prompts each
            wait_for(lambda: len(trainer.times) >= batch)

        monkeypatch.setattr(Watched, "slow", property(begun))
        sampler.sampled = trained_on
        trainer.train()
        main = threading.main_thread()
        spans = [(begun, ended) for begun, ended, thread in sampler.spans if thread is not main]
        assert len(spans) == len(sampler.spans) == 6 and sampler.loads == 2
        beside = [any(b < t < e for b, e in spans) for t in trainer.times]
        assert beside == [True, True, False]  # after the last step's batch there is none

    @pytest.mark.parametrize("call", [1, 3, 5])
    def test_a_failing_server_ends_the_training(self, policy, tmp_path, monkeypatch, call):
        with_sampler(monkeypatch, Sampler(policy, fail_at=call))
        with pytest.raises(RuntimeError, match="the server is gone"):
            trained(policy, tmp_path, "ahead", use_vllm=True, vllm_mode="server")

    @pytest.mark.parametrize("call", [1, 12])
    def test_a_failing_reward_ends_the_training(self, policy, tmp_path, call):
        engine = Answers()
        engine.failing = lambda number: RunInterrupted("spent") if number >= call else None
        with pytest.raises(RunInterrupted, match="spent"):
            trained(policy, tmp_path, "ahead", engine=engine)

    @pytest.mark.parametrize("form", ["transformers", "server"])
    def test_what_is_logged_of_a_step_is_of_the_batch_it_trained_on(
        self, policy, tmp_path, monkeypatch, form
    ):
        vllm = {}
        if form == "server":
            with_sampler(monkeypatch, Sampler(policy))
            vllm = {"use_vllm": True, "vllm_mode": "server"}
        engine, batches = Answers(), {}
        engine.failing = lambda number: Answer("", "503: down") if number % 5 == 0 else None
        trainer = trained(
            policy, tmp_path, "ahead", engine=engine, max_steps=5, logging_steps=1,
            on_scored=lambda step, batch: batches.setdefault(step, []).append(batch), **vllm,
        )  # fmt: skip
        assert {step: len(found) for step, found in batches.items()} == dict.fromkeys(
            range(1, 6), 1
        )
        for step, (row, (_, kept, _)) in enumerate(
            zip(logged(trainer), trainer.seen, strict=True), 1
        ):
            (batch,) = batches[step]
            lost = [r for r in batch if r.abstention]
            assert row["reward/abstained"] == pytest.approx(len(lost) / 8)
            scores = [r.rewards["key_point"] for r in batch if r.rewards]
            assert row["reward"] == pytest.approx(sum(scores) / len(scores), abs=1e-6)
            lengths = [len(tokens) for tokens in completions(kept)]
            assert row["completions/mean_length"] == sum(lengths) / 8
            assert sorted(lengths) == sorted(r.tokens for r in batch)

    def test_a_signal_while_rewards_are_awaited_saves_and_ends(self, policy, tmp_path):
        hanging, engine = threading.Event(), Answers()
        engine.failing = lambda number: engine.hang() if number > 24 else None

        def hang():
            engine.seconds = 3600
            hanging.set()

        engine.hang = hang
        interrupts = Interrupts()
        log = TrainingLog(tmp_path, SimpleNamespace(write=lambda folder: None), interrupts)
        trainer, _ = make(policy, tmp_path, "ahead", engine, max_steps=9, callbacks=[log])

        def send():
            hanging.wait(60)
            time.sleep(0.5)  # the main thread comes to wait for these rewards
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=send, daemon=True).start()
        with interrupts.listening():
            with pytest.raises(RunInterrupted, match="SIGTERM"):
                trainer.train()
            save_now(trainer, log)
        assert engine.given == 24 < len(engine.asked)  # nobody waits for what hangs
        saved = checkpoint_step(tmp_path / f"checkpoint-{trainer.state.global_step}")
        assert saved == trainer.state.global_step > 0


@pytest.mark.parametrize(("schedule", "read"), [("stock", 8), ("ahead", 2)])
def test_prompts_are_read_once_a_group_and_completions_decoded_once(
    policy, tmp_path, monkeypatch, schedule, read
):
    """Rewards need the text before TRL does, which would decode it anew."""
    with_sampler(monkeypatch, Sampler(policy))
    tokenizer = AutoTokenizer.from_pretrained(policy)
    calls = {"apply_chat_template": [], "batch_decode": []}
    for name, sizes in calls.items():
        own = getattr(tokenizer, name)

        def counted(*args, own=own, sizes=sizes, **options):
            sizes.append(len(args[0] if args else options["conversation"]))
            return own(*args, **options)

        setattr(tokenizer, name, counted)
    trainer, _ = make(policy, tmp_path, schedule, use_vllm=True, max_steps=3, tokenizer=tokenizer)
    trainer.train()
    assert calls["apply_chat_template"] == [read] * 3
    assert calls["batch_decode"] == [8] * 3


def test_ahead_learns_what_on_policy_learns(policy, tmp_path):
    """On the demo: `geo run 04 smoke reward.schedule=ahead`."""
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    model.model.embed_tokens.weight.data.mul_(10)  # else no adapter can move what it writes far
    model.save_pretrained(tmp_path / "policy")
    AutoTokenizer.from_pretrained(policy).save_pretrained(tmp_path / "policy")

    async def share(completion_ids, **_):
        return [sum(token < 200 for token in ids) / len(ids) for ids in completion_ids]

    curves = {}
    for schedule in ("early", "ahead"):
        trainer = trained(
            tmp_path / "policy", tmp_path, schedule, funcs=[share], max_steps=28,
            learning_rate=0.006, per_device_train_batch_size=32, num_generations=16,
            max_completion_length=4,
        )  # fmt: skip
        curves[schedule] = [row["reward"] for row in logged(trainer)]
    for curve in curves.values():
        assert fmean(curve[:2]) < 0.5 and fmean(curve[-6:]) > 0.9
    assert fmean(curves["ahead"][-6:]) == pytest.approx(fmean(curves["early"][-6:]), abs=0.05)
    assert curves["ahead"] != curves["early"]  # one of them is a step off


@pytest.mark.parametrize(("schedule", "vllm"), [("stock", True), ("early", True), ("early", False)])
def test_the_phases_add_up_to_the_step(policy, tmp_path, monkeypatch, schedule, vllm):
    if vllm:
        with_sampler(monkeypatch, Sampler(policy))
    log = TrainingLog(tmp_path, SimpleNamespace(write=lambda folder: None), Interrupts())
    trainer, _ = make(policy, tmp_path, schedule, Answers(0.05), max_steps=4, callbacks=[log],
                      use_vllm=vllm, gradient_accumulation_steps=2)  # fmt: skip
    with timed(log.clock):
        trainer.train()
    found = read_jsonl(tmp_path / "metrics.jsonl")
    steps = [row["phases"].pop("step") for row in found]
    sums = [sum(row["phases"].values()) for row in found]
    apart = [abs(1 - ours / step) for ours, step in zip(sums, steps, strict=True)]
    # The share of a step that no phase has. A busy machine may add to some, a phase that is left
    # out is missing in each.
    assert len(found) == 4 and min(apart) < 0.02
    generation, optimizer = (
        min(row["phases"][name] for row in found) for name in ("generation", "optimizer")
    )
    assert generation > optimizer > 0
    for row in found:  # a step that begins early may have its reward before it waits for it
        assert row["phases"]["reward"] > (0 if schedule == "early" and vllm else 0.04)
        assert ("old log-probabilities" in row["phases"]) == (schedule == "stock")
