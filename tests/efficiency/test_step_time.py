"""What is done for a step's time: layers compiled, the heap settled, equal work in each step."""

import asyncio
import gc
import json
import random
import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_model import make_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from geo_utils.corpus import load_corpus
from geo_utils.efficiency import random_weights
from geo_utils.efficiency.measure import _AnyReply, _unequal, prompts, resized, work_examples
from geo_utils.efficiency.random_weights import SHAPES
from geo_utils.grpo.data import free_memory
from geo_utils.grpo.log import SettledHeap
from geo_utils.grpo.train import compile_layers
from geo_utils.notebooks import read_parameters
from geo_utils.roles import simulated_gemini


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def policy(folder):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(model, lora).train()


def losses(model, lengths, padded=0):
    found = []
    for length in lengths:
        ids = torch.arange(2 * length).reshape(2, length) % 300
        mask = torch.ones_like(ids)
        mask[0, :padded] = 0
        loss = model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss
        loss.backward()
        found.append(loss.item())
    weights = [p for p in model.parameters() if p.requires_grad]
    return found, torch.cat([p.grad.flatten() for p in weights])


@pytest.mark.parametrize(("padded", "again"), [(0, False), (3, False), (3, True)])
def test_two_graphs_serve_all_layers_and_all_lengths(folder, monkeypatch, padded, again):
    graphs = []

    def note(graph, inputs):
        graphs.append(graph)
        return graph.forward

    own = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda layer: own(layer, backend=note))
    torch._dynamo.reset()
    plain, compiled = policy(folder), policy(folder)
    compile_layers(compiled)
    if again:  # a layer's forward pass is done again for its backward pass
        compiled.gradient_checkpointing_enable({"use_reentrant": False})
    lengths = (40, 41, 57, 40, 33)
    expected, gradient = losses(plain, lengths, padded)
    found, compiled_gradient = losses(compiled, lengths, padded)
    assert len(compiled.get_base_model().model.layers) == 2
    assert len(graphs) == 2  # of the first length, and of any
    assert found == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(gradient, compiled_gradient, rtol=1e-4, atol=1e-6)
    assert list(compiled.state_dict()) == list(plain.state_dict())


def test_the_heap_settles_after_the_first_steps_and_lets_go_in_the_end():
    settled = SettledHeap()
    frozen, kept = [], []
    for step in (31, 32, 33):  # of a training that was resumed
        kept += [{"token": [step]} for _ in range(1000)]
        settled.on_step_end(None, SimpleNamespace(global_step=step), None)
        frozen.append(gc.get_freeze_count())
    assert frozen[0] > 1000 and frozen[1] > frozen[0] + 1000 and frozen[2] <= frozen[1]
    free_memory()
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("same", [True, False])
def test_fixed_work_pads_nothing(folder, same):
    params = read_parameters("04_grpo", "smoke")[2]
    data = params.data.model_copy(update={"max_prompt_tokens": 1500})
    params = params.model_copy(update={"data": data})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    examples = work_examples(load_corpus("sample", limit=6), partial(resized, tokenizer, 1600))
    rows, mean = prompts(params, examples, str(folder), same)
    lengths = {
        len(tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"])
        for row in rows
    }  # fmt: skip
    filler = len(tokenizer(" and")["input_ids"])
    assert max(lengths) <= 1500 and (mean > 1500 - filler) == same
    assert (max(lengths) - min(lengths) < filler) == same


class TestWork:
    """An engine's prompt is as large as the study's: five pages of full size, none seen before."""

    def test_pages_have_the_size_that_is_asked_for(self, folder):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for tokens in (50, 2_000, 40_000):  # cut, and filled up
            resize = partial(resized, tokenizer, tokens)
            for page in ("# Tides\n\nTwo a day, in most places. ", "é" * 9000, " and" * 8000):
                count = len(tokenizer(resize(page), add_special_tokens=False)["input_ids"])
                assert count == pytest.approx(tokens, abs=4)

    def test_each_key_point_has_pages_of_its_own(self, folder):
        resize = partial(resized, AutoTokenizer.from_pretrained(folder), 700)
        corpus = load_corpus("sample", limit=3)
        examples = work_examples(corpus, resize)
        assert len(examples) == sum(len(e.key_points) for e in corpus)
        assert len({example.query_id for example in examples}) == len(examples)
        beginnings = [page[:40] for example in examples for page in example.sources]
        assert len(beginnings) == len(set(beginnings)) == 5 * len(examples)

    def test_a_reply_becomes_a_page_of_that_size(self, folder):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        resize = partial(resized, tokenizer, 300)
        (example, *_) = work_examples(load_corpus("sample", limit=1), resize)
        task = _AnyReply("key_point", resize=resize)
        for reply in ("A short page.", "tide " * 900, ""):
            page = task.page(reply, example, example.key_points[0]).text
            count = len(tokenizer(page, add_special_tokens=False)["input_ids"])
            assert count == pytest.approx(300, abs=4)
            assert not reply or page.startswith(reply[:10])


def test_words_that_a_random_model_makes_up_are_read_as_the_same_tokens(tmp_path):
    """Else its rewritten page, and an answer in a judge's prompt, would grow fivefold."""
    tiny = SHAPES["Qwen3-1.7B"] | {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 30_000,
    }  # fmt: skip
    texts = [page for example in load_corpus("sample", limit=5) for page in example.sources]
    random_weights._make(tiny, tmp_path, texts, 0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    learned = len(json.loads((tmp_path / "tokenizer.json").read_text())["model"]["merges"])
    made_up = random.Random(0).sample(range(learned + 300, 30_000), 400)
    assert tokenizer(tokenizer.decode(made_up))["input_ids"] == made_up


def test_rewards_of_a_group_differ_and_an_abstention_stays_one():
    async def negative_length(completions, **columns):
        return [-8.0, None, -8.0]

    reward = _unequal(negative_length)
    first, lost, last = asyncio.run(reward(["a", "b", "c"]))
    assert lost is None and first != last and first == pytest.approx(last, abs=0.01)
    assert reward.__name__ == "negative_length"


def test_the_look_alikes_own_work_is_part_of_its_latency(monkeypatch):
    server = simulated_gemini.SimulatedGemini(simulated_gemini.Settings(latency="constant:0.4"))
    now, slept = [0.0], []

    async def slow(*_):
        now[0] += 0.3
        return "An answer [1]."

    async def sleep(seconds):
        slept.append(seconds)

    async def body():
        return {"contents": [{"parts": [{"text": "what of tides?"}]}]}

    monkeypatch.setattr(simulated_gemini, "reply", slow)
    monkeypatch.setattr(simulated_gemini, "asyncio", SimpleNamespace(sleep=sleep))
    clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time)
    monkeypatch.setattr(simulated_gemini, "time", clock)
    request = SimpleNamespace(
        match_info={"model": server.settings.models[0]}, json=body, headers={}, query={},
        transport=SimpleNamespace(is_closing=lambda: False),
    )  # fmt: skip
    answer = asyncio.run(server._generate(request))
    assert answer.status == 200 and slept == [pytest.approx(0.4 - 0.3)]
