"""Demonstrations for the supervised start, and their export to LLaMA-Factory."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import PROJECT, make_example, run

from geo_utils.cli import app
from geo_utils.corpus import KeyPoint
from geo_utils.grpo.cold_start import demonstrations, export
from geo_utils.grpo.params import ColdStart
from geo_utils.models.base import Completion, UnusableError
from geo_utils.models.usage import Usage
from geo_utils.notebooks import read_parameters
from geo_utils.roles.by_model import ModelRewriter, RewriteTask
from geo_utils.roles.engines import ExtractiveEngine
from geo_utils.roles.judges import LexicalJudge
from geo_utils.roles.make import Roles, make_caller
from geo_utils.roles.policies import policy_rewriter, read_card
from geo_utils.roles.rewriters import is_tidy, page_units

POINT = KeyPoint(1, "The Moon raises two bulges of water.")
LANDS = "The Moon raises two bulges of water. A harbour sees a new tide every 12 hours."
MISSES = "A harbour is a place where boats lie. Many of them are white, and some are blue."


class Replies:
    """A caller whose reply depends on the sample; an error is raised."""

    def __init__(self, *replies):
        self.replies, self.requests = replies, []

    async def complete(self, request):
        self.requests.append(request)
        reply = self.replies[request.sample_index]
        if isinstance(reply, Exception):
            raise reply
        return Completion(reply, None)


def shown_rewrites(*replies, fits=None):
    caller, params = Replies(*replies), SimpleNamespace(seed=0, repeats=2)
    roles = Roles(ExtractiveEngine(), LexicalJudge(), ModelRewriter(caller), {}, Usage(), params)
    options = ColdStart(steps=1, pairs="rewrites", best_of=len(replies))
    pairs = [(make_example(), POINT)]
    found = demonstrations(pairs, RewriteTask("key_point"), lambda *_: fits, options, roles, 0)
    return found, caller


def shown_edits(method, fits, n=60):
    options = ColdStart(steps=n // 4, batch_size=4, pairs="edits")
    pairs = [(make_example(), POINT)]
    return demonstrations(pairs, RewriteTask(method), lambda *_: fits, options, None, 0)


class TestEdits:
    @pytest.mark.parametrize("fits", [None, 1])
    def test_arrangements_are_valid(self, fits):
        task, example = RewriteTask("arrange_key_point"), make_example()
        known = len(page_units(example.target)[:fits])
        found = shown_edits("arrange_key_point", fits)
        assert len(found) == 60 and len({reply for _, reply in found}) > 4
        for prompt, reply in found:
            assert prompt == task.prompt(example, POINT, fits)
            assert is_tidy(reply, known)
            page = task.page(reply, example, POINT, fits)
            assert page.abstention is None and "every 12 hours" in page.text

    @pytest.mark.parametrize("fits", [None, 1])
    def test_pages_are_valid(self, fits):
        task, example = RewriteTask("key_point"), make_example()
        found = shown_edits("key_point", fits)
        assert len(found) == 60 and len({reply for _, reply in found}) == 4
        for prompt, reply in found:
            assert prompt == task.prompt(example, POINT, fits)
            assert ("every 12 hours" in reply) == (fits is None)  # only what it was shown
            page = task.page(reply, example, POINT, fits)
            assert page.abstention is None and page.text.count("every 12 hours") == 1

    @pytest.mark.parametrize("method", ["key_point", "arrange_key_point"])
    def test_a_page_that_does_not_fit_shows_nothing(self, method):
        with pytest.raises(ValueError, match="no page fits the prompt"):
            shown_edits(method, 0)


class TestBestRewrite:
    @pytest.mark.parametrize("best", range(4))
    def test_the_rewrite_whose_answer_supports_the_point_is_chosen(self, best):
        replies = [MISSES, UnusableError("SAFETY", "blocked"), "I'm sorry, but I can't."]
        replies.insert(best, LANDS)
        found, caller = shown_rewrites(*replies)
        prompt = RewriteTask("key_point").prompt(make_example(), POINT)
        assert found == [(prompt, LANDS)]
        assert sorted(request.sample_index for request in caller.requests) == [0, 1, 2, 3]

    def test_none_is_better_than_a_bad_one(self):
        with pytest.raises(ValueError, match="use pairs: edits, or a larger best_of"):
            shown_rewrites(MISSES, MISSES)

    def test_no_rewrite_is_asked_for_where_the_page_is_cut(self):
        with pytest.raises(ValueError, match="no page fits the prompt"):
            shown_rewrites(LANDS, fits=1)


def geo(arguments):
    """The exit code of `geo cold-start`."""
    return app(["cold-start", *arguments], standalone_mode=False) or 0


def short_recipe(folder, **changes):
    """The smoke recipe with five steps of a smaller model."""
    recipe = yaml.safe_load((PROJECT / "params" / "04_grpo" / "smoke.yaml").read_text())
    recipe["policy"]["cold_start"] |= {
        "steps": 5,
        "batch_size": 4,
        "small_model": {"hidden_size": 32, "layers": 1, "vocabulary": 1024},
    } | changes
    recipe["paths"] = {"cache": str(folder / "cache")}
    path = folder / "short.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """What the command line leaves for LLaMA-Factory."""
    folder = tmp_path_factory.mktemp("export")
    assert geo(["export", str(short_recipe(folder)), str(folder / "out")]) == 0
    return folder / "out"


class TestExport:
    def test_the_files_have_the_documented_form(self, exported):
        info = json.loads((exported / "dataset_info.json").read_text())
        assert info["key_points"] == {
            "file_name": "demonstrations.json",
            "formatting": "sharegpt",
            "columns": {"messages": "conversations"},
        }
        rows = json.loads((exported / "demonstrations.json").read_text())
        assert len(rows) == 5 * 4
        for row in rows:
            human, gpt = row["conversations"]
            assert (human["from"], gpt["from"]) == ("human", "gpt")
            assert human["value"].startswith("Put the sentences") and gpt["value"]
        recipe = yaml.safe_load((exported / "sft.yaml").read_text())
        wanted = {
            "model_name_or_path": str(exported / "random"), "stage": "sft", "do_train": True,
            "finetuning_type": "lora", "lora_target": "all", "lora_rank": 16, "max_steps": 5,
            "template": "qwen3_nothink", "dataset": "key_points", "dataset_dir": str(exported),
            "output_dir": str(exported / "adapter"), "per_device_train_batch_size": 4,
            "use_cpu": True, "bf16": False,
        }  # fmt: skip
        assert recipe | wanted == recipe
        assert read_card(exported / "adapter").method == "arrange_key_point"

    def test_a_model_that_can_think_gets_the_template_that_does_not(self, exported, tmp_path):
        import trl

        base = shutil.copytree(exported / "random", tmp_path / "thinks")
        shutil.copy(
            Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja",
            base / "chat_template.jinja",
        )
        lora = {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 8, "use_dora": True}
        changes = {"policy.base": base, "grpo.use_cpu": "false", "lora": json.dumps(lora)}
        changes |= {"policy.cold_start.small_model": "null", "policy.cold_start.steps": 5}
        given = [(name, str(value)) for name, value in changes.items()]
        path, _ = export(read_parameters("04_grpo", "smoke", given)[2], tmp_path)
        recipe = yaml.safe_load(path.read_text())
        assert (recipe["template"], recipe["enable_thinking"]) == ("qwen3", False)
        assert (recipe["lora_target"], recipe["bf16"]) == ("q_proj,v_proj", True)
        assert recipe["use_dora"] and "use_cpu" not in recipe

    def test_the_command_is_printed(self, tmp_path, capsys):
        assert geo(["export", str(short_recipe(tmp_path, steps=1)), str(tmp_path / "out")]) == 0
        recipe = tmp_path / "out" / "sft.yaml"
        assert capsys.readouterr().out == (
            f"4 demonstrations: {recipe}\nllamafactory-cli train {recipe}\n"
        )

    @pytest.mark.parametrize(
        ("recipe", "said"),
        [("default", "the recipe has no cold start"), ("nowhere", "nowhere")],
    )
    def test_what_cannot_be_exported_is_refused(self, tmp_path, capsys, recipe, said):
        assert geo(["export", recipe, str(tmp_path / "out")]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_llamafactory_trains_on_it(tmp_path):
    cli = os.environ.get("LLAMAFACTORY_CLI")
    if not cli:
        pytest.skip("skipped: set LLAMAFACTORY_CLI to the llamafactory-cli of its environment")
    recipe, folder = short_recipe(tmp_path), tmp_path / "out"
    assert geo(["export", str(recipe), str(folder)]) == 0
    done = subprocess.run(
        [cli, "train", str(folder / "sft.yaml")],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        cwd=tmp_path, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (folder / "adapter" / "trainer_log.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
    assert len(losses) == 5 and losses[-1] < losses[0]
    check_merge(folder)
    check_reply(recipe, folder)


def check_merge(folder):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder / "random", dtype=torch.float32)
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    merged = PeftModel.from_pretrained(base, str(folder / "adapter")).merge_and_unload()
    after = merged.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert len(changed) == 7 and all("_proj" in name for name in changed)  # all linear layers


def check_reply(recipe, folder):
    _, _, params = read_parameters("04_grpo", str(recipe))
    usage = Usage()
    policy = policy_rewriter(str(folder / "adapter"), lambda m: make_caller(m, params, usage))
    found = run(policy.rewrite("policy", make_example(), POINT))  # five steps teach no arranging
    assert found.text or found.abstention.startswith(("unparsable", "truncated"))
