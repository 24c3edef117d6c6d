"""With real vLLM on a GPU: drafts change how fast a text is written, and nothing else.

A small model of random weights, in fp32, so that a batch's shape moves no score by more than 1e-4.
"""

import gc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency
from transformers import Qwen3Config, Qwen3ForCausalLM

from geo_utils.grpo.engine import engine_arguments

vllm = pytest.importorskip("vllm")
if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

METHODS = ["ngram", "page"]
WORDS = 16  # few tokens, so that a draft is often right and a table of counts is full
DRAWS = 4_096


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A model that is sure enough to copy at times and unsure enough to break off."""
    folder = tmp_path_factory.mktemp("policy")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=WORDS, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=64, tie_word_embeddings=False,
        max_position_embeddings=512, initializer_range=0.2, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


class Written:
    """What an engine writes with one kind of drafts, asked once for all tests."""

    def __init__(self, policy: Path, method: str | None):
        drafts = {"method": method, "num_speculative_tokens": 4}
        drafts |= {"prompt_lookup_min": 1, "prompt_lookup_max": 3} if method == "ngram" else {}
        arguments = engine_arguments({"vllm_engine": {"speculative_config": drafts}})
        self.llm = vllm.LLM(
            model=str(policy), skip_tokenizer_init=True, dtype="float32", enforce_eager=True,
            max_model_len=256, max_num_seqs=64, gpu_memory_utilization=0.1, seed=0,
            logprobs_mode="processed_logprobs", disable_log_stats=False,
            **(arguments if method else {}),
        )  # fmt: skip

    def write(self, prompts, **sampling):
        given = vllm.SamplingParams(logprobs=0, detokenize=False, ignore_eos=True, **sampling)
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self.llm.generate(asked, given, use_tqdm=False)
        return [one for output in outputs for one in output.outputs]

    @property
    def kept(self):
        """Drafted tokens that were accepted so far."""
        name = "vllm:spec_decode_num_accepted_tokens"
        return sum(metric.value for metric in self.llm.get_metrics() if metric.name == name)


def prompts(count):
    dice = np.random.default_rng(0)
    return [dice.integers(1, WORDS, 40).tolist() * 2 for _ in range(count)]


@pytest.fixture(scope="module")
def found(policy):
    """Greedy and sampled texts by method; one engine after the other."""
    texts = {}
    for method in (None, *METHODS):
        engine = Written(policy, method)
        greedy = engine.write(prompts(8), temperature=0.0, max_tokens=32)
        sampled = engine.write(prompts(1), temperature=1.0, max_tokens=6, n=DRAWS, seed=1)
        texts[method] = greedy, sampled, engine.kept if method else 0
        del engine
        gc.collect()
        torch.cuda.empty_cache()
    return texts


@pytest.mark.parametrize("method", METHODS)
class TestDrafts:
    def test_they_are_kept_at_times(self, found, method):
        assert found[method][2] > 100

    def test_the_likeliest_tokens_are_the_same(self, found, method):
        wanted, greedy = ([one.token_ids for one in found[m][0]] for m in (None, method))
        assert [list(ids) for ids in greedy] == [list(ids) for ids in wanted]

    def test_sampled_tokens_have_the_same_distribution(self, found, method):
        """Pairs of tokens, those behind the first, which no draft wrote."""
        for place in range(1, 5):
            counts = [
                Counter(tuple(one.token_ids[place : place + 2]) for one in found[m][1])
                for m in (None, method)
            ]
            pairs = sorted(counts[0] | counts[1])
            table = np.array([[count[pair] for pair in pairs] for count in counts])
            often = table.sum(axis=0) >= 20
            rare = table[:, ~often].sum(axis=1, keepdims=True)
            table = np.hstack([table[:, often], rare[:, rare.sum(axis=0) > 0]])
            assert chi2_contingency(table).pvalue > 1e-4, place

    @pytest.mark.parametrize("kind", [0, 1])
    def test_their_log_probabilities_are_the_policy_s(self, policy, found, method, kind):
        model = Qwen3ForCausalLM.from_pretrained(policy, dtype=torch.float32).cuda()
        asked = prompts(8) if kind == 0 else prompts(1) * DRAWS
        apart = {}
        for name in (None, method):
            differences = []
            for prompt, one in list(zip(asked, found[name][kind], strict=True))[:256]:
                ids = torch.tensor([[*prompt, *one.token_ids]], device="cuda")
                with torch.no_grad():
                    scores = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                own = scores.gather(1, ids[0, len(prompt) :, None])[:, 0].tolist()
                told = [
                    step[token].logprob
                    for token, step in zip(one.token_ids, one.logprobs, strict=True)
                ]
                differences += [abs(a - b) for a, b in zip(own, told, strict=True)]
            apart[name] = max(differences)
        # At temperature 0, vLLM's processed log-probabilities are those of temperature 1 as well.
        assert apart[method] < max(2 * apart[None], 1e-3), apart
