"""Small trainings by TRL's own code, with Transformers in vLLM's place: engine or server."""

import threading
import time
import zlib
from types import SimpleNamespace

import torch
from conftest import make_example
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl import GRPOConfig
from trl.generation.vllm_generation import VLLMGeneration

from geo_utils.corpus import KeyPoint
from geo_utils.grpo.params import RewardOptions
from geo_utils.grpo.rewards import Rewards
from geo_utils.grpo.trainer import OverlappedTrainer
from geo_utils.roles.by_model import RewriteTask
from geo_utils.roles.engines import Answer
from geo_utils.roles.judges import Verdict

NAMES = ("tides", "boats", "moons", "ports", "winds", "waves")
POINT = (KeyPoint(1, "The Moon raises two bulges of water."),)
# Pages of two words: what a model of random weights writes is long enough for one.
SOURCES = ("The sea rises twice a day.", "Tides rise.", "Fishermen sail with the ebb.")
EXAMPLES = [
    make_example(name, query=f"what of {name}?", key_points=POINT, sources=SOURCES)
    for name in NAMES
]


class Sampler:
    """In vLLM's place: a copy of the policy, sampled from, and a little off in its log-probs.

    What it writes hangs on the prompt, its weights, and how often they were sent.
    """

    def __init__(self, path, off=0.1, fail_at=None, step_s=0.0):
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self.off, self.fail_at, self.step_s = off, fail_at, step_s
        self.told = []  # when each completion was finished
        self.loading = self.sampled = self.finishing = lambda *_: None
        self.asked, self.writing, self.loads, self.spans = 0, 0, 0, []
        self.unknown = False  # whether the first token's log-probability is NaN
        self._lock = threading.Lock()

    def load_weights(self, pairs):
        assert not self.writing, "the weights change while a completion is written"
        own = dict(self.model.named_parameters())
        for name, weight in pairs:
            own[name].data.copy_(weight)
        self.loads += 1
        self.loading(self.loads)

    @torch.no_grad()
    def sample(self, prompt, n, length):
        with self._lock:
            self.asked += 1
            self.writing += 1
            number = self.asked
        begun = time.monotonic()
        try:
            if number == self.fail_at:
                raise RuntimeError("the server is gone")
            found = self._sample(prompt, n, length)
            self.sampled(self.loads, found)
            return found
        finally:
            with self._lock:
                self.writing -= 1
                self.spans.append((begun, time.monotonic(), threading.current_thread()))

    def _sample(self, prompt, n, length):
        seed = zlib.crc32(repr((list(prompt), self.loads)).encode())
        dice = torch.Generator().manual_seed(seed)
        ids = torch.tensor([list(prompt)] * n)
        told = torch.zeros(n, 0)
        for _ in range(length):
            scores = self.model(ids).logits[:, -1].float().log_softmax(-1)
            token = torch.multinomial(scores.exp(), 1, generator=dice)
            ids = torch.cat([ids, token], dim=1)
            noise = self.off * torch.randn(n, 1, generator=dice)
            told = torch.cat([told, scores.gather(1, token) + noise], dim=1)
        end, found = self.model.config.eos_token_id, []
        for tokens, logps in zip(ids[:, len(prompt) :].tolist(), told.tolist(), strict=True):
            # lengths differ, as they would if it knew when to end
            size = tokens.index(end) + 1 if end in tokens else length - tokens[0] % 3
            logps = [float("nan"), *logps[1:]] if self.unknown else logps
            found.append((tokens[:size], logps[:size]))
        return found


class FusedSampler(Sampler):
    """With weights laid out as vLLM lays them out: some of several layers in one.

    What it writes hangs on how often it was told that its weights are others.
    """

    def __init__(self, path, fused=None, **options):
        super().__init__(path, **options)
        self.packed_modules_mapping = fused or {
            "qkv_proj": ["q_proj", "k_proj", "v_proj"],
            "gate_up_proj": ["gate_proj", "up_proj"],
        }
        self.sent, self.weights, self._of = 0, {}, {}
        for name, weight in self.model.named_parameters():
            parent, _, own = name.removesuffix(".weight").rpartition(".")
            self._of[name] = (name, 0)
            for together, parts in self.packed_modules_mapping.items():
                if own in parts:
                    sizes = [len(self.model.get_parameter(f"{parent}.{p}.weight")) for p in parts]
                    place = parts.index(own)
                    self._of[name] = f"{parent}.{together}.weight", sum(sizes[:place])
                    whole = torch.zeros(sum(sizes), weight.size(1))
                    self.weights.setdefault(self._of[name][0], torch.nn.Parameter(whole, False))
            if self._of[name][0] == name:
                self.weights[name] = torch.nn.Parameter(torch.zeros_like(weight), False)

    def named_parameters(self):
        return self.weights.items()

    def _rows(self, name, length):
        whole, first = self._of[name]
        return self.weights[whole].data[first : first + length]

    def load_weights(self, pairs):
        self.sent += 1
        for name, weight in pairs:
            self._rows(name, len(weight)).copy_(weight)

    def changed(self):
        self.loads += 1
        for name, weight in self.model.named_parameters():
            weight.data.copy_(self._rows(name, len(weight)))


class Engine:
    """vLLM's `LLM` as far as TRL's colocated generation and its own loop go."""

    def __init__(self, sampler):
        self.sampler, self.waiting = sampler, []
        runner = SimpleNamespace(model=sampler)
        worker = SimpleNamespace(model_runner=runner)
        executor = SimpleNamespace(driver_worker=worker)
        self.llm_engine = SimpleNamespace(step=self.step, model_executor=executor)

    def reset_prefix_cache(self):
        if isinstance(self.sampler, FusedSampler):
            self.sampler.changed()

    def generate(self, prompts, sampling_params, use_tqdm):
        places = {}
        for number, prompt in enumerate(prompts):
            places.setdefault(tuple(prompt["prompt_token_ids"]), []).append(number)
        for prompt, numbers in places.items():
            found = self.sampler.sample(prompt, len(numbers), sampling_params.max_tokens)
            self.waiting += zip(numbers, [prompt] * len(numbers), found, strict=True)
        found = []
        while self.waiting:
            found += [output for output in self.llm_engine.step() if output.finished]
        return sorted(found, key=lambda output: output.request_id)

    def step(self):
        time.sleep(self.sampler.step_s)
        if len(self.waiting) == 1:
            self.sampler.finishing()
        number, prompt, (tokens, logps) = self.waiting.pop()  # the last is finished first
        self.sampler.told.append(time.monotonic())
        ranked = [
            {token: SimpleNamespace(logprob=logp, rank=1)}
            for token, logp in zip(tokens, logps, strict=True)
        ]
        one = SimpleNamespace(token_ids=tokens, logprobs=ranked)
        half = SimpleNamespace(finished=False, prompt_token_ids=list(prompt), outputs=[one])
        whole = SimpleNamespace(
            finished=True, prompt_token_ids=list(prompt), outputs=[one], request_id=number
        )
        return [half, whole]


class Client:
    """TRL's client of a vLLM server."""

    def __init__(self, sampler):
        self.sampler = sampler

    def get_server_info(self):
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def update_named_params(self, metadata, pairs):
        self.sampler.load_weights(pairs)

    def reset_prefix_cache(self):
        pass

    def generate(self, prompts, features=None, n=1, max_tokens=16, **_):
        rows = [row for prompt in prompts for row in self.sampler.sample(prompt, n, max_tokens)]
        self.sampler.told += [time.monotonic()] * len(rows)
        return {
            "prompt_ids": prompts,
            "completion_ids": [tokens for tokens, _ in rows],
            "logprobs": [[[logp] for logp in logps] for _, logps in rows],
            "logprob_token_ids": None,
        }


def with_sampler(monkeypatch, sampler):
    """Let TRL's own VLLMGeneration reach the sampler instead of vLLM."""

    class Generation(VLLMGeneration):
        def _init_vllm(self):
            self.llm, self.vllm_client = Engine(sampler), Client(sampler)

    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", Generation)
    monkeypatch.setattr(
        "trl.generation.vllm_generation.SamplingParams", SimpleNamespace, raising=False
    )


class Answers:
    """An engine whose answer says which page it read; counts what it is asked."""

    def __init__(self, seconds=0.0):
        self.seconds, self.asked, self.times, self.given = seconds, [], [], 0
        self.silent = ()  # prompts whose completions all earn nothing
        self.failing = lambda number: None

    async def answer(self, query, sources, sample_index=0):
        import asyncio

        page = " ".join(sources)  # the target has any place
        if query.removeprefix("what of ").removesuffix("?") in self.silent:
            page += " SAME"
        self.asked.append((query, page, sample_index))
        self.times.append(time.monotonic())
        error = self.failing(len(self.asked))
        await asyncio.sleep(self.seconds)
        if isinstance(error, BaseException):
            raise error
        self.given += 1
        return error or Answer(f"{page} [2].")


class Verdicts:
    """A judge whose score is any number, but always the same for an answer."""

    async def judge(self, key_point, answer):
        score = 0.0 if "SAME" in answer else zlib.crc32(answer.encode()) % 101 / 100
        return Verdict("supported", score=score)


class Watched(OverlappedTrainer):
    """Notes what each step was trained on, and when."""

    slow = 0.0  # seconds that each loss takes more

    def __init__(self, *args, **kwargs):
        self.seen, self.times = [], []
        super().__init__(*args, **kwargs)

    def _compute_loss(self, model, inputs):
        time.sleep(self.slow)
        self.times.append(time.monotonic())
        loss = super()._compute_loss(model, inputs)
        kept = {k: v.clone() for k, v in inputs.items() if isinstance(v, torch.Tensor)}
        self.seen.append((self.state.global_step, kept, loss.item()))
        return loss


def rows():
    return [
        {
            "prompt": [{"role": "user", "content": f"Write of {name} " + "the tide " * i}],
            "query_id": name, "key_point_number": 1, "shown": -1,
        }
        for i, name in enumerate(NAMES)
    ]  # fmt: skip


def make(path, folder, schedule, engine=None, reward=None, on_scored=None,
         callbacks=(), funcs=None, prompts="each", tokenizer=None, refills=0,
         **options):  # fmt: skip
    """Return trainer and rewards."""
    settings = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "seed": 3,
        "gradient_checkpointing": False, "learning_rate": 0.02, "max_steps": 3,
        "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 8,
        "lr_scheduler_type": "constant", "report_to": "none", "logging_steps": 1,
        "save_strategy": "no", "disable_tqdm": True, "beta": 0.0,
    }  # fmt: skip
    reward = {"funcs": ["key_point"], "soft": True} | (reward or {})
    made = Rewards(EXAMPLES, RewriteTask("key_point"), engine or Answers(), Verdicts(),
                   RewardOptions(**reward), on_scored=on_scored)  # fmt: skip
    trainer = Watched(
        schedule=schedule, begin=made.begin, saving=lambda: None, model=str(path), prompts=prompts,
        refills=refills,
        reward_funcs=funcs or made.functions, args=GRPOConfig(**settings | options),
        train_dataset=Dataset.from_list(rows()), callbacks=list(callbacks),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    return trainer, made


def adapter(trainer):
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def logged(trainer):
    """The figures of each step, but for those of time."""
    return [
        {k: v for k, v in row.items() if not ("second" in k or "wall" in k or "time" in k)}
        for row in trainer.state.log_history
        if "reward" in row
    ]
