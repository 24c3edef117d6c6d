import re
from pathlib import Path

import papermill
import pytest
from conftest import PROJECT

from geo_utils.baseline_rewrites.params import BaselineRewritesParams
from geo_utils.grpo.params import field_names
from geo_utils.key_point_prompt.params import KeyPointPromptParams
from geo_utils.notebooks import NOTEBOOKS as NAMES
from geo_utils.notebooks import params_class, read_parameters
from geo_utils.parameters import ParameterError, bound_names, default_parameters, read_yaml
from geo_utils.roles.methods import METHODS, MODEL_METHODS
from geo_utils.roles.rewriters import EDITS

NOTEBOOKS = {name: PROJECT / "notebooks" / f"{name}.ipynb" for name in NAMES}
DEFAULTS = default_parameters(NOTEBOOKS["02_baseline_rewrites"])


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_and_its_model_have_the_same_parameters(name):
    # what Papermill's own parser sees, which an annotation or a comment can blind
    seen = papermill.inspect_notebook(str(NOTEBOOKS[name]))
    assert set(seen) == set(params_class(name).model_fields)
    assert set(default_parameters(NOTEBOOKS[name])) == set(seen)


@pytest.mark.parametrize("path", sorted(PROJECT.glob("params/*/*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_parameter_file_is_valid(path: Path):
    name = path.parent.name
    values = read_yaml(path)
    params = params_class(name).check(default_parameters(NOTEBOOKS[name]) | values, values)
    assert params.passed == values
    assert params.variant == path.stem


@pytest.mark.parametrize("name", NAMES)
def test_default_yaml_spells_out_every_parameter(name):
    spelled = set(read_parameters(name, "default")[1])
    if name == "04_grpo":  # TRL's names stand for the groups that they are folded into
        spelled -= field_names("grpo") - {"seed", "temperature"}
        spelled -= {"lora_r", "lora_alpha", "lora_target_modules", "use_peft", "reward_funcs"}
        spelled = spelled - {"dataset_name"} | {"grpo_options", "lora_options"}
    assert spelled == set(params_class(name).model_fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repeat": 3}, "'repeat' is no parameter; did you mean 'repeats'?"),
        ({"repeats": 0}, "repeats=0: input should be greater than or equal to 1"),
        ({"repeats": "3"}, "repeats='3': input should be a valid integer (a quoted number is text"),
        ({"repeats": 2.5}, "repeats=2.5: input should be a valid integer"),
        ({"repeats": True}, "repeats=True: input should be a valid integer (YAML reads yes, no"),
        ({"seed": "1e-5"}, "write 1.0e-5"),
        ({"seed": -1}, "seed=-1: input should be greater"),
        ({"limit": 0}, "limit=0: input should be greater"),
        ({"engine": "ofline"}, "engine='ofline': choose from offline, gemini, openai"),
        ({"corpus": "smaple"}, "corpus='smaple': choose from sample"),
        ({"corpus": "jsonl"}, "corpus_path=None: corpus='jsonl' needs the path"),
        ({"corpus_path": "x.jsonl"}, "corpus_path='x.jsonl': corpus='sample' takes no path"),
        ({"methods": "original"}, "methods='original': input should be a valid list"),
        ({"methods": ["original", 3]}, "methods[1]=3: input should be a valid string"),
        (
            {"methods": ["original", "keyword_stufing"]},
            "unknown method 'keyword_stufing'; did you mean 'keyword_stuffing'? Choose from",
        ),
        (
            {"methods": ["original", "fluency"]},
            "method 'fluency' needs a model; rewriter='offline'",
        ),
        ({"methods": ["key_point", "paste_key_point"]}, "'original' must be among them"),
        ({"methods": ["original"]}, "methods=['original']: name a method to compare"),
        ({"methods": []}, "methods=[]: name a method to compare"),
        ({"engine": "openai"}, "engine='openai' needs a model id"),
        ({"engine": "openai", "models": {"engine": "m"}}, "engine='openai' needs an address"),
        ({"models": {"egine": "m"}}, "choose from engine, judge, rewriter; did you mean 'engine'?"),
        (
            {"calls": {"max_concurency": 3}},
            "'calls.max_concurency' is no parameter; did you mean 'max_concurrency'? Known are",
        ),
        ({"calls": {"timeout_s": 0}}, "calls.timeout_s=0: input should be greater than 0"),
        ({"calls": {"prices": {"m": {"tokens_in": 1}}}}, "calls.prices.m.tokens_out is missing"),
        ({"judge_mode": "soft"}, "judge_mode='soft': judge='offline' gives no log-probabilities"),
        ({"calls": {"max_calls": 0}}, "calls.max_calls=0"),
        ({"calls": {"max_calls": "3"}}, "calls.max_calls='3': input should be a valid integer"),
        ({"dry_run": "yes"}, "dry_run='yes': input should be a valid boolean"),
        ({"methods": ["original", "original"]}, "original named more than once"),
        ({"variant": "../x"}, "variant='../x': string should match"),
        ({"output_root": ""}, "output_root='': string should have at least 1"),
        ({"key_points": "both"}, "key_points='both': choose from one, all, exclusive"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_is_allowed(changes, message):
    with pytest.raises(ParameterError, match=re.escape(message)):
        BaselineRewritesParams.check(DEFAULTS | changes)


def test_all_problems_are_reported_at_once():
    with pytest.raises(ParameterError) as caught:
        BaselineRewritesParams.check(DEFAULTS | {"repeats": 0, "seed": -1, "sed": 1})
    assert len(str(caught.value).splitlines()) == 3


def test_a_missing_parameter_is_named():
    values = {k: v for k, v in DEFAULTS.items() if k != "seed"}
    with pytest.raises(ParameterError, match="seed is missing from the parameters cell"):
        BaselineRewritesParams.check(values)


def test_notebook_03_compares_its_method_with_the_baselines():
    values = default_parameters(NOTEBOOKS["03_key_point_prompt"])
    assert KeyPointPromptParams.check(values).methods[-1] == "key_point"
    with pytest.raises(ParameterError, match="key_point named more than once"):
        KeyPointPromptParams.check(values | {"baseline_methods": ["original", "key_point"]})


@pytest.mark.parametrize(
    ("studies", "changes", "message"),
    [
        ({"headrom": {}}, {}, "'studies.headrom' is no parameter; did you mean 'headroom'?"),
        ({"headroom": {"rewrites": 1}}, {}, "studies.headroom: rewrites=1: a best of them and"),
        ({"headroom": {"answers": 1}}, {}, "studies.headroom: answers=1: the answer noise"),
        ({"headroom": {"rewrites": 17}}, {}, "studies.headroom.rewrites=17: input should be less"),
        ({"headroom": {"groups": [1]}}, {}, "studies.headroom.groups[0]=1"),
        (
            {"headroom": {}},
            {"method": "paste_key_point", "baseline_methods": ["original"]},
            "studies.headroom: method='paste_key_point' has no k rewrites: it edits",
        ),
        (
            {"headroom": {}},
            {"method": "easy_to_understand", "baseline_methods": ["original"]},
            "offline only method='key_point' has several edits",
        ),
        (
            {"headroom": {}},
            {"rewriter": "gemini", "temperature": 0.0},
            "with temperature=0 the rewriter writes one page only",
        ),
        ({"transfer": {}}, {}, "studies.transfer: engines={}: a transfer needs a second engine"),
        (
            {"transfer": {"engines": {"same": {"word_budget": 300}}}},
            {},
            "studies.transfer.engines.same: the run's own engine",
        ),
        (
            {"transfer": {"engines": {"x": {"backend": "openai", "model": "m"}}}},
            {},
            "servers=[]: backend='openai' needs an address",
        ),
        (
            {"transfer": {"engines": {"x": {"backend": "gemini", "emphasis": 0}}}},
            {},
            "emphasis: only backend='offline' has such settings, not 'gemini'",
        ),
        (
            {"transfer": {"engines": {"x": {"emphasis": 0}}, "methods": ["fluency"]}},
            {},
            "method 'fluency' needs a model",
        ),
        ({"judges": {"judges": ["lexical"]}}, {}, "judges=['lexical']: an agreement needs two"),
        (
            {"judges": {"judges": ["lexical", "batch"]}},
            {},
            "studies.judges.judges: 'batch' needs a model; judge='offline'",
        ),
        (
            {"judges": {"judges": ["lexical", "soft"]}},
            {"judge": "gemini"},
            "'soft' needs log-probabilities, which judge='gemini' does not give",
        ),
        ({"power": {"lifts": [0]}}, {}, "studies.power.lifts[0]=0: input should be greater"),
        ({"power": {"repeats": []}}, {}, "studies.power: repeats=[]: name at least one"),
    ],
)
def test_wrong_studies_are_refused_by_name(studies, changes, message):
    values = default_parameters(NOTEBOOKS["03_key_point_prompt"])
    with pytest.raises(ParameterError, match=re.escape(message)):
        KeyPointPromptParams.check(values | changes | {"studies": studies})


def test_the_vocabulary_of_methods_matches_the_edits():
    assert set(METHODS) - set(MODEL_METHODS) == set(EDITS)


class TestFromNotebook:
    own = "\n".join(f"{name} = {value!r}" for name, value in DEFAULTS.items())

    def namespace(self, *cells, **values):
        return DEFAULTS | values | {"In": ["", *cells], "Out": {}, "exit": exit}

    def test_the_cells_values_are_read(self):
        params = BaselineRewritesParams.from_notebook(self.namespace(self.own, repeats=7))
        assert params.repeats == 7 and params.passed == {}

    def test_an_injected_cell_is_what_was_passed(self):
        cells = self.own, "# Parameters\nrepeats = 7\n"
        params = BaselineRewritesParams.from_notebook(self.namespace(*cells, repeats=7))
        assert params.passed == {"repeats": 7}

    def test_an_injected_misspelling_is_found(self):
        cells = self.own, "# Parameters\nrepeat = 7\n"
        with pytest.raises(ParameterError, match="'repeat' is no parameter"):
            BaselineRewritesParams.from_notebook(self.namespace(*cells, repeat=7))

    def test_a_misspelling_in_the_own_cell_is_found_and_forgiven_once_mended(self):
        wrong = self.own + "\nrepeat = 7"
        with pytest.raises(ParameterError, match="'repeat' is no parameter"):
            BaselineRewritesParams.from_notebook(self.namespace(wrong, repeat=7))
        mended = BaselineRewritesParams.from_notebook(self.namespace(wrong, self.own, repeat=7))
        assert mended.repeats == DEFAULTS["repeats"]

    def test_variables_of_other_cells_are_no_parameters(self):
        cells = self.own, "n = 5\nn += 1", "import math", "x = 3", "not python ("
        namespace = self.namespace(*cells, n=6, x=3)
        assert BaselineRewritesParams.from_notebook(namespace).seed == DEFAULTS["seed"]

    def test_outside_a_notebook_every_plain_name_counts(self):
        assert bound_names({"a": 1, "_b": 2, "c": print}, {"a"}) == (["a"], [])
        with pytest.raises(ParameterError, match="'repeat' is no parameter"):
            BaselineRewritesParams.from_notebook(DEFAULTS | {"repeat": 1})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no parameter file .*; there are: other"),
        ("- a\n- b", "must map parameter names to values"),
        ("a: [1", "not YAML"),
        ("", "must map parameter names to values"),
    ],
)
def test_a_wrong_parameter_file(tmp_path, content, message):
    (tmp_path / "other.yaml").write_text("a: 1")
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ParameterError, match=message):
        read_yaml(path)
