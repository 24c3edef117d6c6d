"""Arguments of the policy's vLLM engine: where they go, and what drafts saved of each batch."""

import importlib
import json
import os
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
from tiny_model import make_tiny_model
from trainers import Engine, Sampler, logged, make, with_sampler
from trl.generation import vllm_generation

from geo_utils.grpo import engine
from geo_utils.grpo.drafts import PageProposer
from geo_utils.grpo.engine import colocated, draft_counts, log_drafts, serve_options

DRAFTS = {"method": "page", "num_speculative_tokens": 7}


def test_a_server_gets_them_as_options():
    given = {
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 7},
        "max_num_batched_tokens": 8192,
        "attention_backend": "FLASH_ATTN",
        "async_scheduling": False,
        "enable_prefix_caching": True,
    }
    assert serve_options({"vllm_engine": given}) == (
        "--speculative-config", '{"method": "ngram", "num_speculative_tokens": 7}',
        "--max-num-batched-tokens", "8192", "--attention-backend", "FLASH_ATTN",
        "--no-async-scheduling", "--enable-prefix-caching",
    )  # fmt: skip
    assert serve_options({}) == ()


def test_the_page_s_drafts_are_the_project_s_own_class():
    _, told = serve_options({"vllm_engine": {"speculative_config": DRAFTS}})
    config = json.loads(told)
    assert config == DRAFTS | {"method": "custom_class", "model": engine.PROPOSER}
    module, _, name = config["model"].rpartition(".")
    assert getattr(importlib.import_module(module), name) is PageProposer


def test_trl_makes_its_engine_with_them(monkeypatch):
    made = []
    monkeypatch.setattr(vllm_generation, "LLM", lambda **given: made.append(given), raising=False)
    with colocated({"vllm_engine": {"async_scheduling": False}}):
        vllm_generation.LLM(model="m")
    with colocated({"vllm_engine": {"speculative_config": DRAFTS}}):
        vllm_generation.LLM(model="m")
    with colocated({}):
        vllm_generation.LLM(model="m")
    assert made[0] == {"async_scheduling": False, "model": "m"} and made[2] == {"model": "m"}
    assert made[1]["disable_log_stats"] is False  # else nothing is counted
    assert made[1]["speculative_config"]["model"] == engine.PROPOSER


def test_trainings_that_start_together_meet_on_ports_of_their_own(monkeypatch):
    ports = []
    for _ in range(2):
        monkeypatch.delenv("MASTER_PORT", raising=False)
        with colocated({}):
            ports.append(int(os.environ["MASTER_PORT"]))
    assert ports[0] != ports[1]
    monkeypatch.setenv("MASTER_PORT", "4711")  # torchrun's
    with colocated({}):
        assert os.environ["MASTER_PORT"] == "4711"


METRICS = """
# HELP vllm:spec_decode_num_draft_tokens_total Number of draft tokens.
# TYPE vllm:spec_decode_num_draft_tokens_total counter
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} 70.0
vllm:spec_decode_num_draft_tokens_total{engine="1",model_name="m"} 210.0
vllm:spec_decode_num_draft_tokens_created{engine="0",model_name="m"} 1.7e+09
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 1.2e+02
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} 33.0
vllm:inter_token_latency_seconds_bucket{engine="0",le="0.01",model_name="m"} 30.0
vllm:inter_token_latency_seconds_count{engine="0",model_name="m"} 50.0
vllm:inter_token_latency_seconds_sum{engine="0",model_name="m"} 0.4
"""


@contextmanager
def answering(text):
    """A server whose every page is a text."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Counting(Engine):
    """vLLM's `LLM` that drafts: the n-th batch gets n + 1 tokens a step; of its 28 drafted, 4 n
    are accepted, as some steps had no draft.
    """

    def __init__(self, sampler):
        super().__init__(sampler)
        self.batches = self.accepted = self.steps = 0

    def generate(self, *args, **kwargs):
        self.batches += 1
        self.accepted += 4 * self.batches
        outputs = super().generate(*args, **kwargs)
        written = sum(len(one.token_ids) - 1 for output in outputs for one in output.outputs)
        self.steps += written / (self.batches + 1)
        return outputs

    def get_metrics(self):
        of = "vllm:spec_decode_num_"
        return [
            SimpleNamespace(name=f"{of}draft_tokens", value=28 * self.batches),
            SimpleNamespace(name=f"{of}accepted_tokens", value=self.accepted),
            SimpleNamespace(name=f"{of}accepted_tokens_per_pos", values=[1, 2]),
            SimpleNamespace(name="vllm:inter_token_latency_seconds", count=self.steps),
        ]


class TestCounts:
    def test_a_server_s_are_added_up_over_its_engines(self):
        with answering(METRICS) as url:
            client = SimpleNamespace(base_url=url)
            found = draft_counts(SimpleNamespace(mode="server", vllm_client=client))
        assert found == {"steps": 50.0, "drafted": 280.0, "accepted": 120.0}

    @pytest.mark.parametrize("schedule", ["stock", "early", "ahead"])
    def test_a_step_s_are_those_of_the_batch_that_it_trained_on(
        self, tmp_path_factory, tmp_path, monkeypatch, schedule
    ):
        policy = make_tiny_model(tmp_path_factory.mktemp("policy"))
        with_sampler(monkeypatch, Sampler(policy))
        monkeypatch.setattr("trainers.Engine", Counting)
        trainer, _ = make(policy, tmp_path, schedule, use_vllm=True, vllm_mode="colocate")
        log_drafts(trainer)
        trainer.train()
        rows = logged(trainer)
        assert [row["drafts/tokens_a_step"] for row in rows] == pytest.approx([2, 3, 4])
        assert [row["drafts/accepted"] for row in rows] == pytest.approx([1 / 7, 2 / 7, 3 / 7])
