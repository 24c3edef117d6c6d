"""Notebook 01's harness: settings placed, measured in processes of their own, and taken down."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PROJECT

from geo_utils.cluster.supervisor import Supervised
from geo_utils.efficiency.bench import (
    Bench,
    gpu_readings,
    peak_gib,
    sweep,
    visible_gpus,
)
from geo_utils.efficiency.measure import measure
from geo_utils.efficiency.params import EfficiencyParams, Setting
from geo_utils.efficiency.random_weights import SHAPES
from geo_utils.efficiency.recipes import Placement, made_shape, place, recipe
from geo_utils.efficiency.rows import Row
from geo_utils.files import read_jsonl
from geo_utils.grpo.params import GrpoParams
from geo_utils.notebooks import read_parameters
from geo_utils.parameters import ParameterError
from geo_utils.runs import Run, start_run

CPU = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}
SMALL = {
    "recorded": [], "timing": {"repeats": 1, "warmup_steps": 1, "steps": 2, "timeout_s": 900.0},
    "work": {"completions": 4, "new_tokens": 8, "prompt_tokens": 640},
    "gemini": {"service": "simulated", "latency_s": 0.2},
    "models": {"policy": "small", "random_weights": ["small"]}, "recipe": CPU,
}  # fmt: skip


GROUPS = {
    "timing": {"repeats", "warmup_steps", "steps", "timeout_s"},
    "work": {"completions", "new_tokens", "prompt_tokens", "natural_lengths", "answer_tokens"},
    "models": {"random_weights", "policy", "engine"},
}


def parameters(tmp_path, **changes):
    values = SMALL | {"paths": {"output": str(tmp_path / "outputs")}}
    for name, value in changes.items():
        group = next((g for g, own in GROUPS.items() if name in own), None)
        values[group or name] = values[group] | {name: value} if group else value
    file = tmp_path / "given.yaml"
    file.write_text(json.dumps({"variant": "given"} | values))  # JSON is YAML
    return read_parameters("01_efficiency", str(file))[2]


def setting(policy="transformers", reward="negative_length", **more):
    return Setting(group="g", policy=policy, reward=reward, **more)


def filled(given, params):
    """A setting with the run's sizes, as a sweep has it."""
    return params.model_copy(update={"settings": {"s": given}, "only": []}).chosen["s"]


def measuring(name="", among=None):
    """The processes that measure a setting, found by the mark in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            mark = f"GEO_UTILS_MEASURE={name}".encode()
            if mark in environment and (among or "").encode() in environment:
                found.append(int(entry.name))
    return found


TWO = {"trainer": 0, "policy": 1}
THREE = {"trainer": 0, "policy": 1, "engine": 2}
APART = {"trainer": 0, "engine": 1}
SHARED = {"trainer": 0, "engine": 0}


class TestPlaces:
    @pytest.mark.parametrize(
        ("given", "present", "of"),
        [
            (setting("colocate"), 1, {"trainer": 0}),
            (setting("server", gpus=TWO), 2, TWO),
            (setting("server", "qwen_server", gpus=THREE), 4, THREE),
            (setting("colocate", "qwen_server", gpus=SHARED), 1, SHARED),
        ],
    )
    def test_roles_get_their_gpus(self, tmp_path, given, present, of):
        found = place(given, parameters(tmp_path, recipe={}), range(present))
        assert (found.of, found.refused, found.visible) == (of, None, "0")

    @pytest.mark.parametrize("reward", ["qwen_vllm", "qwen_transformers"])
    def test_an_engine_in_the_trainer_s_process_lends_it_its_gpu(self, tmp_path, reward):
        params = parameters(tmp_path, recipe={})
        assert place(setting("colocate", reward, gpus=APART), params, [3, 5]).visible == "3,5"
        back = {"trainer": 1, "engine": 0}  # the trainer sees its own as the first
        assert place(setting("colocate", reward, gpus=back), params, [0, 2]).visible == "2,0"
        assert place(setting("colocate", reward, gpus=SHARED), params, [4]).visible == "4"

    def test_two_trainers_hold_a_gpu_each(self, tmp_path):
        given = setting("server", "qwen_server", gpus=THREE | {"second_trainer": 3})
        found = place(given, parameters(tmp_path, recipe={}), [2, 4, 5, 7])
        assert (found.of["second_trainer"], found.visible) == (7, "2,7")
        few = place(given, parameters(tmp_path, recipe={}), range(3))
        assert "needs 4 GPUs, 3 here" in few.refused

    @pytest.mark.parametrize(
        ("given", "present", "reason"),
        [
            (setting("colocate"), 0, "not run: needs 1 GPU, 0 here"),
            (setting("server", gpus=TWO), 1, "not run: needs 2 GPUs, 1 here"),
            (setting("server", "qwen_server", gpus=THREE), 2, "needs 3 GPUs, 2 here"),
        ],
    )
    def test_or_a_reason_why_not(self, tmp_path, given, present, reason):
        found = place(given, parameters(tmp_path, recipe={}), range(present))
        assert reason in found.refused and found.of == {}

    def test_they_are_those_that_may_be_used(self, tmp_path):
        found = place(setting("server", gpus=TWO), parameters(tmp_path, recipe={}), [5, 3])
        assert found.of == {"trainer": 5, "policy": 3}

    def test_a_cpu_takes_what_needs_no_gpu(self, tmp_path):
        params = parameters(tmp_path)
        assert place(setting(), params, []) == Placement({}, on_cpu=True)
        assert place(setting("colocate"), params, range(8)).refused == "not run: needs a GPU"

    def test_a_setting_names_a_gpu_for_each_of_its_roles(self):
        with pytest.raises(ValueError, match="places trainer, policy, engine; give each a GPU"):
            setting("server", "qwen_server", gpus=TWO)
        both = {"trainer": 0, "second_trainer": 1}
        for more in ({"schedule": "ahead"}, {"reward": "qwen_vllm"}):
            with pytest.raises(ValueError, match="is for one trainer; with a second one choose"):
                setting(**more, gpus=both | {"engine": 2} if "reward" in more else both)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"only": ["stok"], "settings": {"stock": {"group": "g", "policy": "colocate",
              "reward": "negative_length"}}}, "only: 'stok' is unknown; did you mean 'stock'?"),
            ({"random_weights": ["Qwen3-17B"]}, "'Qwen3-17B': choose from small, Qwen3-1.7B"),
            ({"reference": "odd"}, "reference: 'odd' is unknown"),
            ({"settings": {"a": {"group": "g", "policy": "colocated", "reward": "gemini"}}},
             "choose from transformers, colocate, server"),
            ({"steps": 1}, "timing.steps=1: input should be greater than or equal to 2"),
            ({"settings": {"a": {"group": "g", "policy": "colocate", "reward": "gemini",
              "recipe": {"vllm_engine": {"seed": 1}}}}},
             "settings.a: grpo.vllm_engine.seed=1: it is set for the training"),
            ({"settings": {"a": {"group": "g", "policy": "colocate", "reward": "gemini",
              "new_tokens": 9000, "recipe": {"vllm_max_model_length": 9000, "vllm_engine": {
                  "speculative_config": {"method": "page", "num_speculative_tokens": 7}}}}}},
             "settings.a: grpo.vllm_max_model_length=9000: near it, drafts stop"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_is_refused_by_name(self, tmp_path, changes, message):
        with pytest.raises(ParameterError, match=message.replace("?", r"\?")):
            parameters(tmp_path, **changes)


class TestRecipes:
    def recipe(self, tmp_path, given, urls=None, **changes):
        params = parameters(tmp_path, **changes)
        given, placement = filled(given, params), place(given, params, range(3))
        models = {"policy": "POLICY", "engine": "ENGINE"}
        return recipe(given, params, placement, models, urls or {}, tmp_path)

    def test_the_work_is_fixed(self, tmp_path):
        made = self.recipe(
            tmp_path, setting("colocate", completions=64, new_tokens=512), recipe={}, steps=3
        )
        grpo = GrpoParams.check(made).grpo
        assert grpo["max_steps"] == 4 and grpo["generation_kwargs"] == {"ignore_eos": True}
        assert grpo["per_device_train_batch_size"] * grpo["gradient_accumulation_steps"] == 64
        assert grpo["max_completion_length"] == 512 and grpo["save_strategy"] == "no"
        natural = self.recipe(tmp_path, setting(), natural_lengths=True)
        assert "generation_kwargs" not in natural["grpo"]

    def test_ahead_trains_one_step_more_for_the_one_that_is_not_counted(self, tmp_path):
        grpo = self.recipe(tmp_path, setting(schedule="ahead"), steps=3)["grpo"]
        assert grpo["max_steps"] == 1 + 3 + 1

    def test_a_setting_is_trained_as_the_recorded_ones_unless_it_says_else(self, tmp_path):
        """The recorded rows are older than these switches."""
        plain = {"shared_prefix": "each", "direct_sync": False, "target_place": "drawn"}
        changed = {"shared_prefix": "flex", "direct_sync": True, "target_place": "last"}
        for given, expected in (({}, plain), (changed, changed)):
            reward = self.recipe(tmp_path, setting(**given))["reward"]
            assert {name: reward[name] for name in expected} == expected
        lines = (PROJECT / "outputs/reference/01_efficiency/h200_16.jsonl").read_bytes()
        row = Row.model_validate_json(lines.splitlines()[0])
        assert {name: getattr(row, name) for name in plain} == plain

    def test_one_by_one_is_one_call_at_a_time(self, tmp_path):
        calls = self.recipe(tmp_path, setting(reward="gemini", parallel=False))["calls"]
        assert calls["max_concurrency"] == 1

    @pytest.mark.parametrize("schedule", ["stock", "fused", "early", "ahead"])
    def test_every_schedule_is_trained_alike(self, tmp_path, schedule):
        grpo = self.recipe(tmp_path, setting(reward="gemini", schedule=schedule))["grpo"]
        assert (grpo["per_device_train_batch_size"], grpo["gradient_checkpointing"]) == (4, False)

    def test_an_engine_in_the_trainer_s_process_names_its_gpu(self, tmp_path):
        given = setting(reward="qwen_transformers", gpus=APART)
        made = GrpoParams.check(self.recipe(tmp_path, given, recipe={}))
        assert made.engine == "transformers/ENGINE@cuda:1"
        assert made.judge == made.engine and made.sampling.judge_mode == "soft"

    def test_servers_are_where_they_were_started(self, tmp_path):
        given = setting("server", "qwen_server", gpus=THREE)
        urls = {"policy": "http://p:1", "engine": "http://e:2"}
        made = GrpoParams.check(self.recipe(tmp_path, given, urls, recipe={}))
        assert made.addresses("engine") == made.addresses("judge") == ("http://e:2/v1",)
        assert made.grpo["vllm_server_base_url"] == "http://p:1"

    def test_a_batch_that_does_not_divide_is_refused(self, tmp_path):
        given = setting(recipe={"per_device_train_batch_size": 3})
        with pytest.raises(ParameterError, match="completions=4 are no multiple of"):
            self.recipe(tmp_path, given)
        given = setting(gpus={"trainer": 0, "second_trainer": 1}, completions=6,
                        recipe={"per_device_train_batch_size": 2})  # fmt: skip
        with pytest.raises(ParameterError, match="size=2 for each of 2 trainers"):
            self.recipe(tmp_path, given)

    def test_a_model_is_known_by_its_shape(self, tmp_path):
        made = parameters(tmp_path, random_weights=list(SHAPES))
        assert made_shape("Qwen/Qwen2.5-7B-Instruct", made) == "Qwen2.5-7B"
        assert {made_shape(name, made) for name in SHAPES} == set(SHAPES)
        assert made_shape("/models/another", made) is None  # it is there: nothing is made
        assert made_shape("Qwen/Qwen3-1.7B", parameters(tmp_path, random_weights=[])) is None


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (None, {0: "H200", 1: "A100", 2: "H200"}),
        ("2,1", {2: "H200", 1: "A100"}),
        ("GPU-bb", {1: "A100"}),
        ("", {}),
        ("7", {}),
    ],
)
def test_only_this_process_s_gpus_are_used(tmp_path, monkeypatch, asked, found):
    fake = tmp_path / "nvidia-smi"
    lines = "0, GPU-aa11, H200\\n1, GPU-bb22, A100\\n2, GPU-cc33, H200\\n"
    fake.write_text(f"#!/bin/sh\nprintf '{lines}'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if asked is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", asked)
    assert list(visible_gpus().items()) == list(found.items())


class TestGpuReadings:
    def test_only_the_window_counts(self):
        read = [(at, 0, float(at)) for at in range(10)]
        assert peak_gib(read, 2.0, 4.0, [0]) == [4.0]
        assert peak_gib(read, 20.0, 30.0, [0]) is peak_gib(read, 2.0, 4.0, [0, 1]) is None
        assert peak_gib(read, 2.0, 4.0, []) is None

    def test_they_are_read_until_the_block_ends(self, tmp_path, monkeypatch):
        fake = tmp_path / "nvidia-smi"
        fake.write_text(
            "#!/bin/sh\ncase $1 in\n*uuid*) echo '0, GPU-aa, H200';;\n"
            "*) while sleep 0.02; do echo 0, 2048; echo 1, [N/A]; echo it failed; done;;\nesac\n"
        )
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        until = time.monotonic() + 60
        with gpu_readings() as read:
            while len(read) < 3 and time.monotonic() < until:
                time.sleep(0.01)
        count = len(read)
        assert count >= 3 and peak_gib(read, 0, time.time(), [0]) == [2.0]
        time.sleep(0.1)
        assert len(read) == count


SETTINGS = {
    "negative": {"group": "CPU", "policy": "transformers", "reward": "negative_length"},
    "wrong": {"group": "CPU", "policy": "transformers", "reward": "negative_length",
              "recipe": {"num_generations": 1}},
    "gemini": {"group": "CPU", "policy": "transformers", "reward": "gemini"},
    "halves": {"group": "CPU", "policy": "transformers", "reward": "gemini", "schedule": "fused",
               "gpus": {"trainer": 0, "second_trainer": 1},
               "recipe": {"num_generations": 2}},
    "colocate": {"group": "GPU", "policy": "colocate", "reward": "gemini"},
}  # fmt: skip


# A notebook's two lines, in a program that can be killed.
SWEEP = """
import sys
from geo_utils.efficiency.bench import sweep
from geo_utils.notebooks import read_parameters
from geo_utils.runs import start_run

changes = [("variant", "killed"), ("only", "[colocate, gemini]")]
name, _, params = read_parameters("01", sys.argv[1], changes)
sweep(params, start_run(name, params))
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of four settings, one of them wrong and one that needs a GPU; then the same again."""
    folder = tmp_path_factory.mktemp("sweep")
    params = parameters(folder, settings=SETTINGS)
    run = start_run("01_efficiency", params)
    rows = sweep(params, run)
    return params, run, rows, sweep(params, run), folder


class TestSweep:
    def test_every_setting_is_a_row(self, swept):
        rows = {row["setting"]: row for row in swept[2]}
        assert {name: row["status"] for name, row in rows.items()} == {
            "negative": "measured", "wrong": "failed", "gemini": "measured", "halves": "measured",
            "colocate": "not run",
        }  # fmt: skip
        assert "grpo.num_generations=1: a group needs at least 2" in rows["wrong"]["reason"]
        assert rows["colocate"]["reason"] == "not run: needs a GPU"

    def test_a_measured_row_says_what_it_measured(self, swept):
        row = next(row for row in swept[2] if row["setting"] == "gemini")
        low, high = row["step_s_spread"]
        assert low <= row["step_s"] <= high and len(row["step_s_all"]) == row["steps"] == 2
        assert row["new_tokens"] == 8 and row["completions"] == 4
        assert row["simulated"] == [
            "random weights of small's shape",
            "Gemini: constant:0.1 s a call",
        ]
        assert row["calls_per_1000"] == 1000 * 2  # an engine and a judge call a completion
        sent = [sum(row["tokens_a_call"][role]) for role in ("engine", "judge")]
        assert row["tokens_per_1000"] == pytest.approx(1000 * sum(sent), rel=0.01)
        each = row["phases_all"].values()
        assert all(len(seconds) == 2 for seconds in each) and row["startup_s"] > 0
        assert row["gpus"] == 0 and row["gpu_seconds_per_sample"] is None
        assert row["phases"]["reward"] > 0.19 and row["abstained"] == 0
        assert 0.09 < row["engine_s"] <= row["phases"]["reward"] and row["judge_s"] >= 0.09
        assert row["hardware"].startswith("CPU")

    def test_two_trainers_share_the_work_of_one(self, swept):
        """Two real processes: together they train on one batch, and its calls are those of one."""
        one, two = (next(r for r in swept[2] if r["setting"] == n) for n in ("gemini", "halves"))
        assert (one["trainers"], two["trainers"]) == (1, 2)
        for name in ("completions", "new_tokens", "calls_per_1000", "steps", "abstained"):
            assert two[name] == one[name], name
        assert two["phases"]["reward"] > 0.19 and len(two["step_s_all"]) == 2

    def test_measured_settings_are_not_measured_again(self, swept):
        _, run, rows, again, _ = swept
        assert again == rows == read_jsonl(run.folder / "rows.jsonl")

    def test_a_killed_sweep_leaves_no_process_and_goes_on_at_the_next_setting(self, swept):
        folder = swept[4]
        command = [sys.executable, "-c", SWEEP, str(folder / "given.yaml")]
        environment = {**os.environ, "SWEEP_OF_TEST": str(folder)}
        process = subprocess.Popen(command, cwd=PROJECT, env=environment)
        runs = folder / "outputs/01_efficiency/killed"

        def rows():
            return [row for path in runs.glob("*/rows.jsonl") for row in read_jsonl(path)]

        until = time.monotonic() + 600
        while not (rows() and measuring("gemini", str(folder))):
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        until = time.monotonic() + 60
        while measuring(among=str(folder)) and time.monotonic() < until:
            time.sleep(0.05)
        assert not measuring(among=str(folder))
        assert [row["setting"] for row in rows()] == ["colocate"]
        subprocess.run(command, cwd=PROJECT, env=environment, check=True, capture_output=True)
        assert [(row["setting"], row["status"]) for row in rows()] == [
            ("colocate", "not run"), ("gemini", "measured"),
        ]  # fmt: skip
        assert not measuring(among=str(folder))

    def test_one_that_takes_too_long_is_a_row(self, swept, tmp_path):
        only = {"negative": SETTINGS["negative"]}
        params = parameters(tmp_path, settings=only, timeout_s=0.5)
        folder = Path(params.paths.output) / "random_weights"
        folder.parent.mkdir(parents=True)
        folder.symlink_to(Path(swept[0].paths.output) / "random_weights")
        (row,) = sweep(params, Run(Path(params.paths.output) / "run"))
        assert row["status"] == "timed out" and row["phase"]
        assert row["reason"] == f"not done after 0.5 s (while {row['phase']})"
        assert not measuring(among=str(tmp_path))


def test_a_model_whose_answers_are_all_cut_off_is_asked_once(swept, tmp_path):
    """As one of random weights, which ends only at its longest, and says neither yes nor no."""
    params = swept[0]
    small = str(Path(params.paths.output) / "random_weights/small")
    given = setting(reward="qwen_server", gpus=APART)
    models, urls = {"policy": small, "engine": small}, {"engine": "http://unused"}
    placement = Placement({}, on_cpu=True)
    values = recipe(filled(given, params), params, placement, models, urls, tmp_path)
    values |= {"engine": f"transformers/{small}", "judge": f"transformers/{small}", "servers": {}}
    values["grpo"]["max_steps"] = 6  # a training ends after 5 batches without a score
    spec = {"recipe": values, "warmup_steps": 1, "answer_tokens": 4, "page_tokens": 200,
            "same_length": True}  # fmt: skip
    result = measure(spec, tmp_path)
    tokens_in, tokens_out = result["tokens_a_call"]["engine"]
    assert tokens_in > 5 * 200 and tokens_out == 4
    assert (tmp_path / "phase").read_text() == "step 6 of 6"
    assert result["calls_per_1000"] == 1000 * 2 and result["abstained"] == 0
    assert result["engine_s"] > 0 and result["judge_s"] > 0


def test_a_setting_that_cannot_be_made_is_a_row_and_the_sweep_goes_on(tmp_path, monkeypatch):
    """One whose batch does not divide, and one whose model cannot be made."""
    settings = {"odd": SETTINGS["negative"] | {"completions": 20, "recipe": {"num_generations": 8}},
                "gone": SETTINGS["negative"], "colocate": SETTINGS["colocate"]}  # fmt: skip
    params = parameters(tmp_path, settings=settings, random_weights=[], policy="no/such-model")
    monkeypatch.setattr(Bench, "_process", lambda self, turn: Supervised(
        ["sleep", "60"], self._folder(turn) / "log.txt"))  # fmt: skip
    asked = []

    def models(self, setting):
        asked.append(setting)
        if len(asked) == 2:
            raise subprocess.CalledProcessError(1, ["random_weights"])
        return {"policy": "p", "engine": "e"}

    monkeypatch.setattr(Bench, "_models", models)
    (tmp_path / "run").mkdir()
    rows = {row["setting"]: row for row in sweep(params, Run(tmp_path / "run"))}
    assert {name: row["status"] for name, row in rows.items()} == {
        "colocate": "not run", "odd": "failed", "gone": "failed",
    }  # fmt: skip
    assert "completions=20" in rows["odd"]["reason"] and "random_weights" in rows["gone"]["reason"]


def test_the_seed_reaches_the_random_weights(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: made.append(command))
    params = parameters(tmp_path, settings={"s": SETTINGS["negative"]}, seed=7)
    Bench(params, tmp_path)._models(params.chosen["s"])
    assert made and all(command[-1] == "7" for command in made)


def test_smoke_and_study_are_parameters_of_this_notebook():
    for name in ("default", "smoke", "study", "ablation"):
        assert isinstance(read_parameters("01_efficiency", name)[2], EfficiencyParams)
