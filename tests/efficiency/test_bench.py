"""Servers that stay up between settings, and what a lost measurement says."""

import json
import os
import subprocess
import sys
import textwrap
import time

import pytest
from conftest import PROJECT
from test_efficiency import APART, SMALL, TWO, measuring, parameters, setting

from geo_utils.cluster.servers import ServerError, free_port
from geo_utils.cluster.supervisor import Supervised
from geo_utils.efficiency import bench as bench_module
from geo_utils.efficiency.bench import Bench, Server, Turn, servers_of, turns
from geo_utils.efficiency.recipes import Placement, place

# Stands for `vllm serve`: answers /health and notes what is asked of its prefix cache.
STAND_IN = """
    import sys
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200); self.end_headers()

        def do_POST(self):
            print("asked", self.path, flush=True)
            self.send_response(200); self.end_headers()

        def log_message(self, *_):
            pass

    print("serving", flush=True)
    HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """vLLM servers are small programs; returns those that were started, by model."""
    script = tmp_path / "stand_in.py"
    script.write_text(textwrap.dedent(STAND_IN))
    started = []

    def start(model, gpu, log, options=(), port=None):
        port = port or free_port()
        program = Supervised([sys.executable, str(script), str(port)], log)
        started.append((model, gpu, program))
        return program, f"http://127.0.0.1:{port}"

    monkeypatch.setattr(bench_module, "start_vllm", start)
    return started


def far():
    return time.monotonic() + 600


POLICY, ENGINE = Server("policy", "P", 1, ("--x",)), Server("engine", "E", 2)
MODELS = {"policy": "P", "engine": "E"}


class TestServers:
    def test_one_that_the_next_setting_wants_stays_up_and_forgets_its_prefixes(
        self, tmp_path, stand_in
    ):
        with Bench(parameters(tmp_path), tmp_path) as bench:
            first = bench._serve((POLICY,), MODELS, far())
            again = bench._serve((POLICY, ENGINE), MODELS, far())
            assert again["policy"] == first["policy"] and len(stand_in) == 2
            assert "asked /reset_prefix_cache" in stand_in[0][2].tail()
            assert "asked" not in stand_in[1][2].tail()
            bench._serve((ENGINE,), MODELS, far())
            assert [program.poll() is None for *_, program in stand_in] == [False, True]
        assert all(program.poll() is not None for *_, program in stand_in)

    @pytest.mark.parametrize(
        "other", [Server("policy", "P", 1, ("--y",)), Server("policy", "P", 0, ("--x",)),
                  Server("policy", "Q", 1, ("--x",))],
    )  # fmt: skip
    def test_another_model_gpu_or_option_is_another_server(self, tmp_path, stand_in, other):
        with Bench(parameters(tmp_path), tmp_path) as bench:
            bench._serve((POLICY,), MODELS, far())
            bench._serve((other,), MODELS, far())
            assert [program.poll() is None for *_, program in stand_in] == [False, True]

    def test_one_that_does_not_come_up_says_why(self, tmp_path, monkeypatch):
        def start(model, gpu, log, options=(), port=None):
            code = "print('CUDA out of memory'); raise SystemExit(3)"
            return Supervised([sys.executable, "-c", code], log), "http://127.0.0.1:9"

        monkeypatch.setattr(bench_module, "start_vllm", start)
        with (
            Bench(parameters(tmp_path), tmp_path) as bench,
            pytest.raises(ServerError, match=r"policy server .* status 3: CUDA out of memory") as e,
        ):
            bench._serve((POLICY,), MODELS, far())
        assert "CUDA out of memory" in e.value.log

    def test_settings_need_servers_by_their_placement(self, tmp_path):
        params = parameters(tmp_path, recipe={})
        given = setting("server", "gemini", gpus=TWO, reward_latency_s=3.0)
        policy, gemini = servers_of(Turn("s", given, place(given, params, [4, 7]), 0), params)
        assert (policy.role, policy.gpu, gemini) == (
            "policy", 7, Server("gemini", "constant:1.5"),
        )  # fmt: skip
        given = setting("colocate", "qwen_server", gpus=APART)
        (engine,) = servers_of(Turn("s", given, place(given, params, [0, 1]), 0), params)
        assert engine.options[:2] == ("--gpu-memory-utilization", "0.85")
        shared = Placement({"trainer": 0, "engine": 0}, "0")
        (engine,) = servers_of(Turn("s", given, shared, 0), params)
        assert engine.options[:2] == ("--gpu-memory-utilization", "0.3")

    def test_a_policy_s_server_has_the_arguments_of_its_recipe(self, tmp_path):
        params = parameters(tmp_path, recipe={"vllm_engine": {"async_scheduling": False}})
        drafts = {"method": "ngram", "num_speculative_tokens": 7}
        own = {"vllm_engine": {"speculative_config": drafts}}
        for recipe, options in (
            ({}, ["--no-async-scheduling"]),
            (own, ["--speculative-config", json.dumps(drafts)]),
        ):
            given = setting("server", gpus=TWO, recipe=recipe)
            (policy,) = servers_of(Turn("s", given, place(given, params, [0, 1]), 0), params)
            assert list(policy.options[-len(options) :]) == options

    def test_kept_servers_are_gone_when_a_sweep_is_killed(self, tmp_path):
        """By other signals: see test_supervisor."""
        script = tmp_path / "stand_in.py"
        script.write_text(textwrap.dedent(STAND_IN))
        sitting = tmp_path / "sitting.py"
        sitting.write_text(
            textwrap.dedent(f"""
            import sys, time
            from pathlib import Path
            from geo_utils.cluster.servers import free_port
            from geo_utils.cluster.supervisor import Supervised
            from geo_utils.efficiency import bench
            from geo_utils.notebooks import read_parameters

            def start(model, gpu, log, options=(), port=None):
                port = free_port()
                command = [sys.executable, {str(script)!r}, str(port)]
                return Supervised(command, log), f"http://127.0.0.1:{{port}}"
            bench.start_vllm = start
            params = read_parameters("01_efficiency", "smoke")[2]
            with bench.Bench(params, Path({str(tmp_path)!r})) as made:
                server = bench.Server("policy", "P", 1)
                made._serve((server,), {{"policy": "P"}}, time.monotonic() + 60)
                print("up", flush=True)
                time.sleep(600)
        """)
        )
        environment = {**os.environ, "GEO_UTILS_MEASURE": f"of {tmp_path}"}
        process = subprocess.Popen([sys.executable, str(sitting)], cwd=PROJECT, env=environment,
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # fmt: skip
        assert process.stdout.readline() == b"up\n"
        process.kill()
        process.wait()
        until = time.monotonic() + 60
        while measuring(f"of {tmp_path}") and time.monotonic() < until:
            time.sleep(0.05)
        assert not measuring(f"of {tmp_path}")


SETTINGS = {
    "none": {"policy": "colocate", "reward": "negative_length"},
    "served": {"policy": "server", "reward": "negative_length", "gpus": TWO},
    "asked": {"policy": "colocate", "reward": "qwen_server", "gpus": APART},
    "served_gemini": {"policy": "server", "reward": "gemini", "gpus": TWO},
    "three": {"policy": "server", "reward": "qwen_server",
              "gpus": {"trainer": 0, "policy": 1, "engine": 2}},
    "gemini": {"policy": "colocate", "reward": "gemini"},
}  # fmt: skip


class TestOrder:
    def turns(self, tmp_path, made=(), present=(0, 1), **changes):
        settings = {name: {"group": "g"} | given for name, given in SETTINGS.items()}
        params = parameters(tmp_path, recipe={}, settings=settings, **changes)
        return [(t.name, t.repeat, t.reference) for t in turns(params, made, present)]

    def test_settings_with_the_same_servers_follow_each_other(self, tmp_path):
        found = self.turns(tmp_path, repeats=2)
        assert [(name, repeat) for name, repeat, _ in found] == [
            ("three", 0),  # cannot be measured: a row with its reason, once
            ("none", 0), ("none", 1), ("gemini", 0), ("gemini", 1),
            ("served", 0), ("served", 1), ("served_gemini", 0), ("served_gemini", 1),
            ("asked", 0), ("asked", 1),
        ]  # fmt: skip

    def test_the_reference_is_first_and_last_in_every_sitting(self, tmp_path):
        found = self.turns(tmp_path, reference="none", only=["gemini", "served"])
        assert [(name, end) for name, _, end in found] == [
            ("none", "first"), ("served", None), ("gemini", None), ("none", "last"),
        ]  # fmt: skip
        again = self.turns(tmp_path, {("none", 0), ("served", 0)}, reference="none",
                           only=["gemini", "served"])  # fmt: skip
        assert [name for name, *_ in again] == ["none", "gemini", "none"]
        done = {("none", 0), ("served", 0), ("gemini", 0)}
        assert not self.turns(tmp_path, done, reference="none", only=["gemini", "served"])


def test_a_lost_measurement_says_how_far_it_came(tmp_path, monkeypatch):
    """One that ends without a word, and one that hangs in its third step."""
    only = {"s": {"group": "g", "policy": "transformers", "reward": "negative_length"}}
    params = parameters(tmp_path, settings=only, timeout_s=5.0, random_weights=[])
    turn = Turn("s", params.chosen["s"], place(params.chosen["s"], params, []), 0)
    script = tmp_path / "hangs.py"

    def process(self, turn):
        folder = self._folder(turn)
        folder.mkdir(parents=True, exist_ok=True)
        program = Supervised([sys.executable, str(script), str(folder)], folder / "log.txt")
        while not program.tail() and program.poll() is None:  # late on a busy machine
            time.sleep(0.01)
        return program

    monkeypatch.setattr(Bench, "_process", process)
    note = "import pathlib, sys, time; pathlib.Path(sys.argv[1], 'phase').write_text('step 3 of 6')"
    script.write_text(f"{note}; print('compiling graph 7', flush=True); time.sleep(60)")
    with Bench(params, tmp_path / "work") as bench:
        row = bench.measure(turn, None)
    assert row["status"] == "timed out" and row["phase"] == "step 3 of 6"
    assert row["reason"] == "not done after 5 s (while step 3 of 6)"
    assert "compiling graph 7" in row["log_tail"]
    script.write_text(f"{note}; print('Segmentation fault', flush=True); sys.exit(139)")
    with Bench(params, tmp_path / "work") as bench:
        row = bench.measure(turn, None)
    assert row["status"] == "failed" and row["reason"].endswith("(while step 3 of 6)")
    assert "Segmentation fault" in row["log_tail"] and json.dumps(row)


def test_a_process_that_measured_and_never_ends_is_a_measured_row(tmp_path, monkeypatch):
    """As vLLM's engine in it may be; what it takes to end is no part of the start."""
    only = {"s": {"group": "g", "policy": "transformers", "reward": "negative_length"}}
    params = parameters(tmp_path, settings=only, random_weights=[])
    turn = Turn("s", params.chosen["s"], place(params.chosen["s"], params, []), 0)
    result = {"status": "measured", "step_s": 2.0, "all_steps_s": 0.0, "window": [0.0, 1.0]}
    code = (
        "import pathlib, sys, time; folder = pathlib.Path(sys.argv[1]);"
        f"(folder / 'part').write_text({json.dumps(result)!r});"
        "(folder / 'part').rename(folder / 'result.json'); time.sleep(600)"
    )

    def process(self, turn):
        folder = self._folder(turn)
        folder.mkdir(parents=True)
        return Supervised([sys.executable, "-c", code, str(folder)], folder / "log.txt")

    monkeypatch.setattr(Bench, "_process", process)
    monkeypatch.setattr(bench_module, "_ENDING_S", 1.5)
    with Bench(params, tmp_path / "work") as bench:
        began = time.monotonic()
        row = bench.measure(turn, None)
        took = time.monotonic() - began
    assert row["status"] == "measured" and row["step_s"] == 2.0
    assert took > 1.5 and row["startup_s"] <= took - 1.4


def test_sizes_of_a_setting_win_over_the_run_s(tmp_path):
    only = {"s": {"group": "g", "policy": "transformers", "reward": "gemini", "steps": 5}}
    chosen = parameters(tmp_path, settings=only).chosen["s"]
    assert (chosen.steps, chosen.warmup_steps, chosen.completions) == (
        5,
        1,
        SMALL["work"]["completions"],
    )
