"""A recipe of notebook 04: TRL's names folded, and every wrong value refused at once, by name."""

import re
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import PackageNotFoundError

import pytest
import yaml
from conftest import PROJECT

from geo_utils.grpo import params
from geo_utils.grpo.params import GrpoParams, field_types
from geo_utils.notebooks import read_parameters
from geo_utils.parameters import ParameterError

OWN = {
    "variant": "mine",
    "engine": "offline",
    "judge": "offline",
    "evaluation": {"judge": "offline/strict"},
}


VLLM = {"use_vllm": True}


def engine(**arguments):
    return VLLM | {"vllm_engine": arguments}


def drafts(**changes):
    given = {"method": "page", "num_speculative_tokens": 7} | changes
    return engine(speculative_config=given)


def test_a_folder_that_is_called_vllm_is_not_vllm(tmp_path, monkeypatch):
    (tmp_path / "vllm").mkdir()
    monkeypatch.syspath_prepend(tmp_path)

    def distribution(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(params, "distribution", distribution)
    assert params.field_types.__wrapped__("vllm_engine") == {}


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe of these fields of TRL's and own ones, and read it."""

    def read(grpo=(), **own):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(OWN | own | {"grpo": dict(grpo)}))
        params = read_parameters("04_grpo", str(path))[2]
        assert isinstance(params, GrpoParams)
        return params

    return read


class TestSections:
    def test_they_hold_any_field_over_defaults(self, recipe):
        params = recipe({"learning_rate": 3e-6, "beta": 0.1}, lora={"r": 4, "use_dora": True})
        assert (params.grpo["learning_rate"], params.grpo["beta"]) == (3e-6, 0.1)
        assert params.grpo["num_generations"] == 8 and params.lora["lora_alpha"] == 32
        assert params.lora["r"] == 4 and params.lora["use_dora"] is True


class TestOverrides:
    def test_one_entry_of_a_mapping_leaves_the_others(self):
        before = read_parameters("04_grpo", "smoke")[2]
        _, passed, after = read_parameters("04_grpo", "smoke", [("reward.placebo", "true")])
        assert not before.reward.placebo and after.reward.placebo
        assert after.reward == before.reward.model_copy(update={"placebo": True})
        assert after.reward.repeats == 2 and after.reward.funcs == ["key_point", "format"]
        assert passed["reward"]["placebo"] is True

    @pytest.mark.parametrize("name", ["default", "colocate", "gemini", "visibility"])
    def test_the_placebo_of_every_recipe_keeps_its_rewards(self, name):
        before = read_parameters("04_grpo", name)[2]
        after = read_parameters("04_grpo", name, [("reward.placebo", "true")])[2]
        assert after.reward == before.reward.model_copy(update={"placebo": True})

    def test_any_depth_is_reached(self):
        changes = [("grpo.learning_rate", "1e-6"), ("policy.cold_start.small_model.layers", "3")]
        before, after = (read_parameters("04_grpo", "smoke", c)[2] for c in ([], changes))
        assert after.grpo == before.grpo | {"learning_rate": 1e-6}
        small = before.policy.cold_start.small_model
        assert after.policy.cold_start.small_model == small.model_copy(update={"layers": 3})

    def test_what_is_no_mapping_has_no_entries(self):
        with pytest.raises(ParameterError, match=r"seed\.x: 'x' is no entry of 0, which is no map"):
            read_parameters("04_grpo", "smoke", [("seed.x", "1")])
        with pytest.raises(ParameterError, match="'reword' is no parameter; did you mean 'reward'"):
            read_parameters("04_grpo", "smoke", [("reword.placebo", "true")])


@pytest.mark.parametrize(
    ("values", "own", "message"),
    [
        (
            {"num_generations": 8, "per_device_train_batch_size": 12},
            {},
            "grpo: 12 completions do not divide by per_device_train_batch_size=12 and "
            "num_generations=8; choose a multiple of 24",
        ),
        (
            {"num_generations": 8, "per_device_train_batch_size": 2, "steps_per_generation": 3},
            {},
            "grpo: 6 completions do not divide by per_device_train_batch_size=2 and "
            "num_generations=8; choose a multiple of 8",
        ),
        ({"num_generations": 1}, {}, "num_generations=1: a group needs at least 2 completions"),
        ({"num_generations": "8"}, {}, "num_generations='8': a whole number of at least 1"),
        ({"max_steps": -1}, {}, "max_steps=-1: a whole number of at least 1"),
        ({"max_completion_length": "9"}, {}, "max_completion_length='9': a whole number of at"),
        (
            {"gradient_accumulation_steps": 0},
            {},
            "gradient_accumulation_steps=0: a whole number of at least 1",
        ),
        (
            {"generation_batch_size": 12},
            {},
            "grpo: 12 completions do not divide by per_device_train_batch_size=8 and "
            "num_generations=8; choose a multiple of 8",
        ),
        (
            {"generation_batch_size": 16, "steps_per_generation": 2},
            {},
            "steps_per_generation and generation_batch_size say the same: name one",
        ),
        ({"learning_rate": "0.1"}, {}, "grpo.learning_rate='0.1': a number is needed"),
        (
            {"learning_rte": 1e-5},
            {},
            "grpo.learning_rte: no such field; did you mean 'learning_rate'?",
        ),
        ({"top_k": 20}, {}, "grpo.top_k=20: the comparison samples without it"),
        (
            {"scale_rewards": "batch"},
            {},
            "scale_rewards='batch': rewards are normalised within the group of one prompt, or not",
        ),
        (
            {"report_to": ["tensorboard", "neptune"]},
            {},
            "'neptune' is none of tensorboard, trackio, wandb",
        ),
        (
            {},
            {"data": {"held_out": 0}},
            "data.held_out=0.0 and evaluation.corpus=None: held-out queries are a share of the cor",
        ),
        (
            {},
            {"evaluation": {"judge": "offline/strict", "corpus": {"name": "sample"}}},
            "held-out queries are a share of the corpus, or a corpus of their own",
        ),
        (
            {},
            {"lora": {"lora_alfa": 1}},
            "lora.lora_alfa: no such field; did you mean 'lora_a",
        ),
        ({"output_dir": "x"}, {}, "grpo.output_dir='x': checkpoints lie in the run folder"),
        ({"seed": 3}, {}, "grpo.seed=3: the run's seed counts"),
        (
            {},
            {"reward": {"funcs": ["fidelty"]}},
            "reward.funcs[0]='fidelty': choose from key_point, visibility, fidelity, "
            "length_budget, no_instructions, format, negative_length; did you mean 'fidelity'?",
        ),
        ({}, {"reward": {"funcs": []}}, "reward.funcs=[]"),
        (
            {},
            {"reward": {"funcs": ["visibility"]}, "data": {"prefilter": {"trials": 4}}},
            "data.prefilter tries how often a key point lands, no aim of reward.funcs=['visibi",
        ),
        (
            {},
            {"reward": {"funcs": ["format", "fidelity"], "weights": [1.0]}},
            "reward: weights=[1.0]: 2 rewards need as many weights",
        ),
        (
            {},
            {"evaluation": {"judge": "offline"}},
            "evaluation.judge='offline' is the judge that trained the policy: name another",
        ),
        (
            {},
            {"judge": "gemini/a", "evaluation": {"judge": "gemini/a"}},
            "evaluation.judge='gemini/a' is the judge that trained the policy",
        ),
        (
            {},
            {"policy": {"method": "arrange_key_point", "cold_start": {"steps": 5}}},
            "policy.cold_start.pairs='rewrites' are no arrangements; choose pairs: edits",
        ),
        (
            {},
            {"policy": {"cold_start": {"small_model": {}}}},
            "cold_start.steps=0: a small_model of random weights must learn to write",
        ),
        (
            {},
            {"policy": {"method": "original"}},
            "policy.method='original': choose from key_point, unique_words, fluency,",
        ),
        ({}, {"policy": {"method": "arrange_keypoint"}}, "did you mean 'arrange_key_point'?"),
        (
            {},
            {"evaluation": {"judge": "offline/strict", "methods": ["key_point"]}},
            "evaluation.methods=['key_point']: 'original' must be among them",
        ),
        (
            {},
            {"evaluation": {"judge": "offline/strict", "methods": ["original", "fluencyy"]}},
            "evaluation: unknown method 'fluencyy'; did you mean 'fluency'?",
        ),
        (
            {},
            {"evaluation": {"judge": "offline/strict", "methods": ["original", "fluency"]}},
            "evaluation: method 'fluency' needs a model; rewriter='offline' has original,",
        ),
        (
            {},
            {"evaluation": {"judge": "openai/m"}},
            "evaluation: servers={}: judge='openai/m' needs an address",
        ),
        (
            {},
            {"evaluation": {"judge": "offline/strict", "judge_mode": "soft"}},
            "evaluation: sampling.judge_mode='soft': judge='offline/strict' gives no log-prob",
        ),
        ({}, {"reward": {"schedule": "soon"}}, "reward.schedule"),
        *(
            (
                {"per_device_train_batch_size": 8} | options,
                {"reward": {"schedule": "ahead"}},
                "reward.schedule='ahead' generates anew for every step; leave num_iterations,",
            )
            for options in (
                {"num_iterations": 2},
                {"steps_per_generation": 2},
                {"gradient_accumulation_steps": 2, "steps_per_generation": 1},
                {"generation_batch_size": 32},
            )
        ),
        (
            {"use_vllm": True, "vllm_importance_sampling_correction": False},
            {"reward": {"schedule": "ahead"}},
            "'ahead' trains on completions of older weights; set vllm_importance_sampling_corr",
        ),
        *(
            (
                {"per_device_train_batch_size": 8} | options,
                {"reward": {"shared_prefix": "dense"} | own} | more,
                f"reward.shared_prefix='dense': {named}",
            )
            for options, own, more, named in (
                ({}, {"schedule": "stock"}, {}, "reward.schedule='stock' is TRL's own"),
                ({"loss_type": "bnpo"}, {}, {}, "grpo.loss_type='bnpo' weighs a completion by the"),
                ({"top_entropy_quantile": 0.2}, {}, {}, "grpo.top_entropy_quantile=0.2 weighs"),
                ({"entropy_coef": 0.1}, {}, {}, "grpo.entropy_coef=0.1 weighs"),
                ({"use_adaptive_entropy": True}, {}, {}, "grpo.use_adaptive_entropy=True weighs"),
                (
                    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
                    {},
                    {},
                    "grpo.per_device_train_batch_size=4 splits groups of 8; choose auto or each",
                ),
                ({"steps_per_generation": 2}, {}, {}, "a generation lasts for several optimizer"),
                ({}, {}, {"lora": {"lora_dropout": 0.05}}, "lora.lora_dropout=0.05 would be drawn"),
            )
        ),
        (
            {"use_cpu": True},
            {"reward": {"shared_prefix": "flex"}},
            "reward.shared_prefix='flex' has no backward pass on a CPU; choose auto or dense",
        ),
        (
            {"torch_compile": True},
            {},
            "torch_compile=True needs use_vllm: true, else each token would be compiled",
        ),
        (
            {"save_only_model": True},
            {},
            "save_only_model=True: a training could not go on from its checkpoints; leave it out",
        ),
        ({"logging_steps": 5}, {}, "logging_steps=5: a line of metrics.jsonl is a step"),
        ({"vllm_engine": {}}, {}, "grpo.vllm_engine={} needs use_vllm: true"),
        (VLLM | {"vllm_engine": ["x"]}, {}, "grpo.vllm_engine=['x']: arguments of vLLM's engine"),
        (engine(model="m"), {}, "vllm_engine.model='m': it is set for the training; leave it out"),
        (
            engine(speculative_config={"num_speculative_tokens": 7}),
            {},
            "speculative_config={'num_speculative_tokens': 7}: name a method; choose from ngram,",
        ),
        (drafts(method="eagle"), {}, "name a method; choose from ngram, ngram_gpu, suffix, page"),
        (
            drafts(num_speculative_tokens=0),
            {},
            "num_speculative_tokens=0: a whole number of at least 1 is needed",
        ),
        (
            drafts(rejection_sample_method="synthetic"),
            {},
            "rejection_sample_method='synthetic' changes what is written; drop it",
        ),
        *(
            (
                drafts() | {"generation_kwargs": {name: value}},
                {},
                f"grpo.generation_kwargs.{name}={value!r}: vLLM refuses it with drafts; drop one",
            )
            for name, value in (("min_p", 0.1), ("logit_bias", {"3": 1.0}))
        ),
        (
            drafts() | {"vllm_max_model_length": 1124, "max_completion_length": 100},
            {"data": {"max_prompt_tokens": 1024}},
            "grpo.vllm_max_model_length=1124: near it, drafts stop for the whole batch; set it to "
            "at least 1131, the longest prompt, completion and draft",
        ),
    ],
)
def test_a_wrong_value_is_named_with_the_way_out(recipe, values, own, message):
    with pytest.raises(ParameterError, match=re.escape(message)):
        recipe(values, **own)


def test_a_group_of_the_wrong_type_hides_no_right_names(recipe):
    with pytest.raises(ParameterError) as caught:
        recipe({"learning_rate": 1e-5}, reward=3)
    assert str(caught.value).startswith("04_grpo: reward=3") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "final",
    [
        {"judge": "offline/strict"},
        {"judge": "gemini/gemini-2.5-flash"},
        {"judge": "openai/m"},
    ],
)
def test_another_judge_at_the_end_is_fine(recipe, final):
    params = recipe(evaluation=final, servers={"openai/m": "http://h/v1"})
    assert params.judge == "offline" and params.for_evaluation().judge == final["judge"]
    asked = ("http://h/v1",) if final["judge"] == "openai/m" else ()
    assert params.for_evaluation().addresses("judge") == asked


def test_the_same_judge_may_compare_what_no_judge_trained(recipe):
    recipe(reward={"funcs": ["visibility"]}, evaluation={"judge": "offline"})


@pytest.mark.parametrize("schedule", ["stock", "fused", "early", "ahead"])
@pytest.mark.parametrize(
    "values", [{}, {"gradient_accumulation_steps": 4}, {"use_vllm": True, "vllm_mode": "server"}]
)
def test_every_schedule_takes_a_plain_recipe(recipe, values, schedule):
    params = recipe(values, reward={"schedule": schedule})
    assert params.reward.schedule == schedule
    assert recipe(values).reward.schedule == "early"  # on policy, unless the recipe says else


def test_a_fixed_place_of_the_target_is_said_and_holds_for_no_comparison(recipe):
    params = recipe(reward={"target_place": "last"})
    assert params.policy_source.endswith("; the reward asked with the target as LAST source")
    final = params.for_evaluation()
    assert final.reward.target_place == "drawn" and "LAST" not in final.policy_source
    assert "LAST" not in recipe().policy_source


def test_where_prompts_cannot_be_shared_they_are_not_unless_that_was_asked_for(recipe):
    params = recipe({"loss_type": "bnpo"})
    assert params.reward.shared_prefix == "auto" and "bnpo" in params.prompts_apart
    assert recipe({"num_iterations": 2}).prompts_apart is None  # each step has all its completions


@pytest.mark.parametrize(
    ("values", "rollouts"),
    [
        # batch 8, groups of 8, 10 steps unless said otherwise
        ({}, 80),
        ({"gradient_accumulation_steps": 4}, 320),  # 10 times 32 completions
        ({"gradient_accumulation_steps": 4, "steps_per_generation": 4}, 320),
        # 32 completions last for 4 passes of 8: 10 passes take 3 generations
        ({"steps_per_generation": 4}, 96),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 1}, 160),
        ({"num_iterations": 2}, 40),  # every generation used for 2 steps
        ({"num_iterations": 4}, 24),  # 3 generations, the last half used
        ({"gradient_accumulation_steps": 4, "num_iterations": 2}, 160),
        ({"generation_batch_size": 32}, 96),  # as steps_per_generation: 4
        ({"gradient_accumulation_steps": 4, "generation_batch_size": 64}, 320),
    ],
)
def test_rollouts(recipe, values, rollouts):
    assert recipe({"max_steps": 10} | values).rollouts == rollouts


def test_the_fields_are_those_of_trl_and_peft(recipe):
    from peft import LoraConfig
    from trl.trainer.grpo_config import GRPOConfig

    assert set(field_types("grpo")) == {field.name for field in fields(GRPOConfig)}
    assert set(field_types("lora")) == {field.name for field in fields(LoraConfig)}


class TestEngine:
    @pytest.mark.parametrize("method", ["ngram", "ngram_gpu", "suffix", "page"])
    def test_drafts_are_one_field_of_a_recipe(self, recipe, method):
        given = drafts(method=method) | {"vllm_max_model_length": 4096 + 1024 + 7}
        found = recipe(given | {"generation_kwargs": {"min_p": 0.0}}).grpo["vllm_engine"]
        assert found["speculative_config"]["method"] == method

    def test_a_server_here_is_started_with_its_arguments(self, recipe):
        server = {"vllm_mode": "server", "vllm_server_base_url": "http://127.0.0.1:8001"}
        (found,) = recipe(engine(async_scheduling=False) | server).servers_here
        assert found.policy and found.options == ("--no-async-scheduling",)

    def test_a_name_that_the_installed_vllm_lacks_is_refused(self, recipe, tmp_path, monkeypatch):
        about = tmp_path / "vllm-0.24.0.dist-info" / "METADATA"
        source = tmp_path / "vllm" / "engine" / "arg_utils.py"
        for path, text in (
            (about, "Metadata-Version: 2.1\nName: vllm\nVersion: 0.24.0\n"),
            (tmp_path / "vllm" / "__init__.py", ""),
            (source, "class EngineArgs:\n    async_scheduling: bool | None = None\n"),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        field_types.cache_clear()
        try:
            recipe(engine(async_scheduling=True))
            message = "vllm_engine.async_schedulin: vLLM has no such argument; did you mean 'async_"
            with pytest.raises(ParameterError, match=re.escape(message)):
                recipe(engine(async_schedulin=True))
        finally:
            field_types.cache_clear()


class TestAtOnce:
    def test_a_wrong_recipe_ends_the_command_before_anything_is_loaded(self, heavy_imports):
        command = ["-m", "geo_utils", "run", "04", "smoke", "grpo.num_generations=1"]
        done = subprocess.run(
            [sys.executable, *command], cwd=PROJECT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2 and not heavy_imports()
        assert "num_generations=1: a group needs at least 2" in done.stderr
        assert "Traceback" not in done.stderr

    def test_reading_a_recipe_imports_no_torch(self):
        code = (
            "import sys\n"
            "from geo_utils.notebooks import read_parameters\n"
            "assert read_parameters('04_grpo', 'smoke')[2].rollouts == 60 * 64\n"
            "print({'torch', 'transformers', 'trl', 'peft'} & set(sys.modules))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "set()"


def test_further_gpus_are_not_trained_on(tmp_path, monkeypatch):
    """Transformers would train on every GPU that it sees, and TRL refuses that."""
    from trl.trainer.grpo_config import GRPOConfig

    from geo_utils.grpo.train import grpo_config

    found = GRPOConfig.n_gpu.fget
    monkeypatch.setattr(GRPOConfig, "n_gpu", property(lambda self: 2 * max(found(self), 1)))
    assert grpo_config(read_parameters("04_grpo", "smoke")[2], tmp_path)._n_gpu == 1
