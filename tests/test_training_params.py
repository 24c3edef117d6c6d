"""A recipe of notebook 04: TRL's names folded, and every wrong value refused at once, by name."""

import re
import subprocess
import sys
from dataclasses import fields

import pytest
import yaml
from conftest import PROJECT

from geo_utils.grpo.params import GrpoParams, field_names
from geo_utils.notebooks import read_parameters
from geo_utils.parameters import ParameterError

OWN = {
    "variant": "mine",
    "engine": "offline",
    "judge": "offline",
    "evaluation": {"judge": "offline_strict"},
}


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe of these values, own ones under `env`, and read it."""

    def read(values=(), *overrides, **own):
        path = tmp_path / "mine.yaml"
        values = {"env": {"GEO_UTILS": OWN | own}} | dict(values)
        path.write_text(yaml.safe_dump(values))
        params = read_parameters("04_grpo", str(path), overrides)[2]
        assert isinstance(params, GrpoParams)
        return params

    return read


class TestFolding:
    @pytest.mark.parametrize(
        ("given", "found"),
        [
            ({"learning_rate": 3e-6}, lambda p: p.grpo["learning_rate"] == 3e-6),
            ({"grpo_options": {"beta": 0.1}}, lambda p: p.grpo["beta"] == 0.1),
            ({"lora_r": 4}, lambda p: p.lora["r"] == 4 and p.lora["lora_alpha"] == 32),
            ({"lora_target_modules": ["q_proj"]}, lambda p: p.lora["target_modules"] == ["q_proj"]),
            ({"use_dora": True}, lambda p: p.lora["use_dora"] is True),
            (
                {"reward_funcs": ["geo_utils.grpo.rewards.format", "fidelity"]},
                lambda p: p.reward.funcs == ["format", "fidelity"],
            ),
            (
                {"reward_funcs": ["format", "fidelity"], "reward_weights": [1.0, 0.5]},
                lambda p: p.reward.weights == [1.0, 0.5],
            ),
            ({"dataset_name": "x/y"}, lambda p: p.data.dataset_name == "x/y"),
            (
                {"dtype": "bfloat16", "attn_implementation": "eager"},
                lambda p: (
                    p.grpo["model_init_kwargs"]
                    == {"dtype": "bfloat16", "attn_implementation": "eager"}
                ),
            ),
            (
                {"dtype": "float16", "model_init_kwargs": {"device_map": "auto"}},
                lambda p: p.grpo["model_init_kwargs"] == {"dtype": "float16", "device_map": "auto"},
            ),
            ({"use_peft": True}, lambda p: not p.grpo_options and not p.lora_options),
            ({"seed": 7}, lambda p: p.seed == 7 and "seed" not in p.grpo_options),
        ],
        ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
    )
    def test_trls_names_go_where_they_belong(self, recipe, given, found):
        assert found(recipe(given))

    def test_own_parameters_stand_under_env(self, recipe):
        params = recipe(seed=3)
        assert (params.variant, params.seed, params.engine) == ("mine", 3, "offline")
        assert params.passed["seed"] == 3 and "env" not in params.passed

    def test_what_is_passed_wins_over_env(self, recipe):
        assert recipe({"seed": 4}, seed=3).seed == 4
        assert recipe({}, ("seed", "5"), seed=3).seed == 5
        assert recipe({"seed": 4}, ("seed", "5"), seed=3).seed == 5

    def test_an_injected_cell_may_hold_env_and_what_it_names_wins(self, recipe):
        values = recipe().model_dump() | {"env": {"GEO_UTILS": {"seed": 3, "split": "test"}}}
        values["seed"] = 4
        params = GrpoParams.check(values, ["env", "seed"])
        assert (params.seed, params.split) == (4, "test")

    @pytest.mark.parametrize("env", [[1], "x", None, {"CUDA_VISIBLE_DEVICES": "1"}])
    def test_an_env_of_others_is_left_alone(self, tmp_path, env):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({"env": env, "variant": "mine"}))
        assert read_parameters("04_grpo", str(path))[2].variant == "mine"


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

    def test_a_name_of_trls_reaches_its_config(self):
        params = read_parameters("04_grpo", "default", [("learning_rate", "1.0e-6")])[2]
        assert params.grpo["learning_rate"] == 1e-6
        params = read_parameters("04_grpo", "default", [("lora_r", "8")])[2]
        assert params.lora["r"] == 8

    @pytest.mark.parametrize(
        ("key", "value", "name"),
        [
            ("grpo_options.learning_rate", "1.0e-6", "learning_rate"),
            ("lora_options.r", "8", "lora_r"),
            ("reward.funcs", "[format]", "reward_funcs"),
            ("reward.weights", "[1.0, 1.0, 1.0]", "reward_weights"),
            ("data.dataset_name", "x", "dataset_name"),
        ],
    )
    def test_a_setting_given_twice_is_refused_not_dropped(self, key, value, name):
        with pytest.raises(ParameterError, match=f"given twice; name only {name}"):
            read_parameters("04_grpo", "default", [(key, value)])

    def test_the_nearest_mapping_is_named(self):
        with pytest.raises(ParameterError, match="'reword' is no mapping; did you mean 'reward'"):
            read_parameters("04_grpo", "smoke", [("reword.placebo", "true")])


@pytest.mark.parametrize(
    ("values", "own", "message"),
    [
        (
            {"num_generations": 8, "per_device_train_batch_size": 12},
            {},
            "per_device_train_batch_size=12 x 1 steps = 12 completions do not divide into groups "
            "of num_generations=8; choose a multiple, such as 16",
        ),
        (
            {"num_generations": 8, "per_device_train_batch_size": 2, "steps_per_generation": 3},
            {},
            "2 x 3 steps = 6 completions do not divide into groups of num_generations=8",
        ),
        ({"num_generations": 1}, {}, "num_generations=1: a group needs at least 2 completions"),
        ({"num_generations": "8"}, {}, "num_generations='8': a whole number of at least 1"),
        ({"max_steps": -1}, {}, "max_steps=-1: a whole number of at least 1"),
        (
            {"gradient_accumulation_steps": 0},
            {},
            "gradient_accumulation_steps=0: a whole number of at least 1",
        ),
        (
            {"generation_batch_size": 12},
            {},
            "generation_batch_size=12 must be a multiple of per_device_train_batch_size=8",
        ),
        (
            {"generation_batch_size": 16, "steps_per_generation": 2},
            {},
            "steps_per_generation and generation_batch_size say the same: name one",
        ),
        ({"learning_rate": "1e-5"}, {}, "learning_rate='1e-5': a number is needed"),
        (
            {"learning_rte": 1e-5},
            {},
            "'learning_rte' is no parameter; did you mean 'learning_rate'?",
        ),
        ({"top_k": 20}, {}, "top_k: the comparison samples without it"),
        ({"scale_rewards": "batch"}, {}, "scale_rewards='batch' compares completions of different"),
        ({"save_steps": 3, "steps_per_generation": 4}, {}, "save_steps=3: 4 steps share"),
        ({"lora_alfa": 1}, {}, "'lora_alfa' is no parameter; did you mean 'lora_alpha'?"),
        (
            {"grpo_options": {"learning_rte": 1e-5}},
            {},
            "grpo_options: 'learning_rte' is no field of GRPOConfig; did you mean 'learning_rate'?",
        ),
        (
            {"lora_options": {"lora_alfa": 1}},
            {},
            "lora_options: 'lora_alfa' is no field of LoraConfig; did you mean 'lora_alpha'?",
        ),
        (
            {"reward_funcs": ["geo_utils.grpo.rewards.fidelty"]},
            {},
            "unknown reward 'fidelty'; did you mean 'fidelity'? Choose from key_point,",
        ),
        ({"reward_funcs": []}, {}, "reward.funcs=[]"),
        (
            {"reward_funcs": ["format", "fidelity"], "reward_weights": [1.0]},
            {},
            "weights=[1.0]: 2 rewards need as many weights",
        ),
        (
            {},
            {"evaluation": {"judge": "offline"}},
            "evaluation.judge='offline' is the judge that trained the policy: name another",
        ),
        (
            {},
            {
                "judge": "gemini",
                "models": {"judge": "a"},
                "evaluation": {"judge": "gemini", "models": {"judge": "a"}},
            },
            "evaluation.judge='gemini' is the judge that trained the policy",
        ),
        (
            {},
            {"judge": "gemini", "models": {"judge": "a"}, "evaluation": {"judge": "gemini"}},
            "evaluation.judge='gemini' is the judge that trained the policy",
        ),
        (
            {},
            {"method": "arrange_key_point", "cold_start": {"steps": 5, "pairs": "rewrites"}},
            "method='arrange_key_point' does not write; choose pairs: edits",
        ),
        (
            {},
            {"cold_start": {"small_model": {}}},
            "cold_start.steps=0: a small_model of random weights has to learn to write first",
        ),
        ({}, {"method": "original"}, "method: 'original' is no prompt that a policy can learn"),
        ({}, {"method": "arrange_keypoint"}, "did you mean 'arrange_key_point'?"),
        (
            {},
            {"evaluation": {"judge": "offline_strict", "methods": ["key_point"]}},
            "evaluation.methods=['key_point']: 'original' must be among them",
        ),
        (
            {},
            {"evaluation": {"judge": "offline_strict", "methods": ["original", "fluencyy"]}},
            "evaluation.methods: unknown method 'fluencyy'; did you mean 'fluency'?",
        ),
        (
            {},
            {"evaluation": {"judge": "offline_strict", "methods": ["original", "fluency"]}},
            "evaluation: method 'fluency' needs a model; rewriter='offline' has original,",
        ),
        (
            {},
            {"evaluation": {"judge": "openai"}},
            "evaluation: models={}: judge='openai' needs a model id",
        ),
        (
            {},
            {"evaluation": {"judge": "offline_strict", "judge_mode": "soft"}},
            "evaluation: judge_mode='soft': judge='offline_strict' gives no log-probabilities",
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
            "'ahead' trains on completions of older weights; leave vllm_importance_sampling_corr",
        ),
        (
            {"torch_compile": True},
            {},
            "torch_compile=True: Transformers would compile anew for each token that it generates",
        ),
        (
            {"save_only_model": True},
            {},
            "save_only_model=True: a training could not go on from its checkpoints; leave it out",
        ),
        ({"logging_steps": 5}, {}, "logging_steps=5: a line of metrics.jsonl is a step"),
        ({"use_peft": False}, {}, "use_peft: only true; the policy is trained as an adapter"),
        ({"env": {"GEO_UTILS": 3}}, {}, "env: GEO_UTILS=3 must map this project's parameters"),
    ],
)
def test_a_wrong_value_is_named_with_the_way_out(recipe, values, own, message):
    with pytest.raises(ParameterError, match=re.escape(message)):
        recipe(values, **own)


def test_a_group_of_the_wrong_type_hides_no_right_names(recipe):
    with pytest.raises(ParameterError) as caught:
        recipe({"reward": 3, "learning_rate": 1e-5, "lora_r": 4})
    assert str(caught.value).startswith("04_grpo: reward=3") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "final",
    [
        {"judge": "offline_strict"},
        {"judge": "gemini"},
        {"judge": "openai", "models": {"judge": "m"}, "servers": {"judge": ["http://h/v1"]}},
    ],
)
def test_another_judge_at_the_end_is_fine(recipe, final):
    params = recipe(evaluation=final)
    assert params.judge == "offline" and params.for_evaluation().judge == final["judge"]
    assert params.for_evaluation().models == final.get("models", {})


def test_the_same_judge_may_compare_what_no_judge_trained(recipe):
    recipe({"reward_funcs": ["visibility"]}, evaluation={"judge": "offline"})


@pytest.mark.parametrize("schedule", ["stock", "fused", "early", "ahead"])
@pytest.mark.parametrize(
    "values", [{}, {"gradient_accumulation_steps": 4}, {"use_vllm": True, "vllm_mode": "server"}]
)
def test_every_schedule_takes_a_plain_recipe(recipe, values, schedule):
    params = recipe(values, reward={"schedule": schedule})
    assert params.reward.schedule == schedule
    assert recipe(values).reward.schedule == "early"  # on policy, unless the recipe says else


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

    assert field_names("grpo") == {field.name for field in fields(GRPOConfig)}
    assert field_names("lora") == {field.name for field in fields(LoraConfig)}


class TestAtOnce:
    def test_a_wrong_recipe_ends_the_command_before_anything_is_loaded(self, heavy_imports):
        command = ["-m", "geo_utils.run", "04_grpo", "smoke", "-p", "num_generations", "1"]
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
