"""Training: it survives signals and torn checkpoints, and moves nothing without scores.

Killed with -9: see test_kills.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT
from train_many import SMALL, once

from geo_utils.files import read_jsonl
from geo_utils.grpo.checkpoints import rewind
from geo_utils.parameters import ParameterError
from geo_utils.roles.engines import Answer
from geo_utils.runs import Run

TESTS = PROJECT / "tests"
QUIET = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}


def train_many(root, what, *changes):
    done = subprocess.run(
        [sys.executable, TESTS / "train_many.py", root, what, *changes],
        capture_output=True, text=True, timeout=600, env=QUIET,
    )  # fmt: skip
    logs = "".join(p.read_text()[-1500:] for p in Path(root).glob("*.log"))
    assert done.returncode == 0, done.stderr[-2000:] + logs
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed")
    found = train_many(root, "undisturbed")
    assert found["code"] == 0 and "final" in found["checkpoints"]
    return found | {"root": root}


def test_the_undisturbed_run_is_worth_comparing_with(undisturbed):
    rewards = [reward for _, reward, _ in undisturbed["rewards"]]
    assert [step for step, _, _ in undisturbed["rewards"]] == list(range(1, 17))
    assert len(set(rewards)) == 16  # nothing is compared that could not differ


def test_each_step_has_the_same_rewards_where_a_prompt_is_computed_with_each_completion(
    undisturbed, tmp_path
):
    (folder,) = undisturbed["root"].glob("04_grpo/smoke/2*")
    assert Run(folder).manifest["prompts"] == {"pass": "dense", "why": None}
    found = train_many(tmp_path, "undisturbed", "reward.shared_prefix=each")
    assert [row[:2] for row in found["rewards"]] == [row[:2] for row in undisturbed["rewards"]]
    assert found["rollouts"] == undisturbed["rollouts"]


def test_a_signal_saves_at_once_and_the_rest_is_the_same(undisturbed, tmp_path):
    """SIGTERM: see test_headless_grpo."""
    found = train_many(tmp_path, "SIGUSR1")
    between = found["between"]
    assert between["code"] == 4  # ended as interrupted, saved
    steps = [step for step, _, _ in between["rewards"]]
    assert len(steps) <= between["done"] + 1  # the step that was under way, and no other
    assert f"checkpoint-{steps[-1]}" in between["checkpoints"] and steps[-1] < 16
    assert found["code"] == 0
    assert found["rewards"] == undisturbed["rewards"]
    assert found["rollouts"] == undisturbed["rollouts"]


def test_a_second_epoch_goes_on_with_its_own_order_of_prompts(undisturbed, tmp_path):
    """Each epoch has another; 12 steps are one here."""
    shutil.copytree(undisturbed["root"], tmp_path / "again")
    (folder,) = (tmp_path / "again").glob("04_grpo/smoke/2*/checkpoints")
    for name in ("final", "checkpoint-16", "checkpoint-15"):
        shutil.rmtree(folder / name)
    found = train_many(tmp_path / "again", "undisturbed")
    assert found["code"] == 0 and "final" in found["checkpoints"]
    assert found["rewards"] == undisturbed["rewards"]
    assert found["rollouts"] == undisturbed["rollouts"]


def test_a_training_cut_off_after_its_last_step_takes_none_more(undisturbed, tmp_path):
    """The last checkpoint's adapter becomes the result; the demonstrations end likewise."""
    shutil.copytree(undisturbed["root"], tmp_path / "again")
    (folder,) = (tmp_path / "again").glob("04_grpo/smoke/2*")
    result, policy = folder / "checkpoints/final", folder / "policy"
    shutil.move(result, tmp_path / "final")
    (policy / "policy.json").unlink()
    policy_before = (policy / "model.safetensors").read_bytes()
    (policy / "model.safetensors").unlink()
    found = train_many(tmp_path / "again", "undisturbed")
    assert found == {name: undisturbed[name] for name in found}
    assert (policy / "model.safetensors").read_bytes() == policy_before
    for name in ("adapter_model.safetensors", "policy.json"):
        assert (result / name).read_bytes() == (tmp_path / "final" / name).read_bytes()
    one, other = (json.loads((folder / "adapter_config.json").read_text())
                  for folder in (result, tmp_path / "final"))  # fmt: skip
    differs = {"base_model_name_or_path", "target_modules"}  # another place; a set, as JSON
    assert {k: one[k] for k in one.keys() - differs} == {
        k: other[k] for k in other.keys() - differs
    }
    assert {p.name for p in result.iterdir()} == {p.name for p in (tmp_path / "final").iterdir()}


def test_a_torn_checkpoint_costs_the_steps_since_the_one_before(undisturbed, tmp_path):
    shutil.copytree(undisturbed["root"], tmp_path / "again")
    (folder,) = (tmp_path / "again").glob("04_grpo/smoke/2*/checkpoints")
    shutil.rmtree(folder / "final")
    os.truncate(folder / "checkpoint-16" / "optimizer.pt", 100)
    weights = folder / "checkpoint-15" / "adapter_model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    found = train_many(tmp_path / "again", "undisturbed")
    assert found == {name: undisturbed[name] for name in found}
    (said,) = [p.read_text() for p in (tmp_path / "again").glob("*.log") if "passed over" in
               p.read_text()]  # fmt: skip
    assert "checkpoint-16 is passed over: optimizer.pt is torn" in said
    assert "checkpoint-15 is passed over: adapter_model.safetensors is torn" in said


def test_the_base_is_frozen_and_the_adapter_is_not(undisturbed):
    (folder,) = undisturbed["root"].glob("04_grpo/smoke/2*")
    checksums = Run(folder).manifest["base_checksum"]
    assert checksums["before"] == checksums["after"]
    from safetensors.torch import load_file

    adapter = load_file(folder / "checkpoints/final/adapter_model.safetensors")
    assert any(weight.abs().max() > 0 for name, weight in adapter.items() if "lora_B" in name)


def test_a_prompt_whose_group_abstains_moves_nothing(undisturbed, tmp_path, monkeypatch):
    """Every answer is missing: the steps go on, and the adapter stays where it began."""

    class Nothing:
        async def answer(self, query, sources, sample_index=0):
            return Answer("", "503: down")

    monkeypatch.setattr("geo_utils.roles.make.ExtractiveEngine", lambda seed: Nothing())
    monkeypatch.setitem(SMALL, "grpo.max_steps", "3")
    monkeypatch.setitem(SMALL, "reward.funcs", "[key_point]")
    monkeypatch.setitem(SMALL, "reward.weights", "[1.0]")
    (folder,) = undisturbed["root"].glob("04_grpo/smoke/2*")
    target = tmp_path / "warm"
    shutil.copytree(folder / "policy", target)
    monkeypatch.setattr("train_many.prepare_policy", lambda *_: str(target))
    run, final = once(tmp_path, {})
    from safetensors.torch import load_file

    adapter = load_file(final / "adapter_model.safetensors")
    assert all(weight.abs().max() == 0 for name, weight in adapter.items() if "lora_B" in name)
    rows = read_jsonl(run.folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    # what is no page earns nothing, and a single score in a group is no comparison
    assert all(row["reward/abstained"] >= 0.75 and not row["reward"] for row in rows)


def test_too_few_prompts_are_refused_and_nothing_is_called_trained(tmp_path):
    """TRL would warn, train nothing, and leave an adapter."""
    changes = {"corpus.limit": "2", "data.key_points": "one", "policy.cold_start.steps": "1",
               "grpo.per_device_train_batch_size": "64"}  # fmt: skip
    with pytest.raises(ParameterError, match="fewer than the 16 of one batch"):
        once(tmp_path, changes)
    assert not list(tmp_path.glob("**/final"))


def test_a_log_is_rewound_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    rewind(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
