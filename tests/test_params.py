import re
from pathlib import Path

import papermill
import pytest
from conftest import PROJECT

from geo_utils.baseline_rewrites.params import BaselineRewritesParams
from geo_utils.key_point_prompt.params import KeyPointPromptParams
from geo_utils.notebooks import NOTEBOOKS as NAMES
from geo_utils.notebooks import params_class, read_parameters
from geo_utils.parameters import (
    ParameterError,
    bound_names,
    default_parameters,
    described,
    from_yaml,
    read_yaml,
    to_yaml,
)
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
    spelled = read_parameters(name, "default")[1]
    assert set(spelled) == set(params_class(name).model_fields) and len(spelled) <= 18
    for group in ("corpus", "sampling", "paths", "work", "timing", "gemini", "models", "policy"):
        if group in spelled:
            kind = params_class(name).model_fields[group].annotation
            assert set(spelled[group]) == set(kind.model_fields), group


@pytest.mark.parametrize("name", NAMES)
def test_the_cell_and_default_yaml_agree_on_every_default(name):
    cell = params_class(name).check(default_parameters(NOTEBOOKS[name])).model_dump()
    spelled = read_parameters(name, "default")[2].model_dump()
    assert cell == spelled


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_described(name):
    """`geo params` says of each what it means."""
    lines = list(described(params_class(name), default_parameters(NOTEBOOKS[name])))
    assert len(lines) > len(params_class(name).model_fields)
    assert not [line for line in lines if "  " not in line]


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
            {"rewriter": "gemini/x", "sampling": {"temperature": 0.0}},
            "with sampling.temperature=0 the rewriter writes one page only",
        ),
        ({"transfer": {}}, {}, "studies.transfer: engines={}: a transfer needs a second engine"),
        (
            {"transfer": {"engines": {"same": {"word_budget": 300}}}},
            {},
            "studies.transfer.engines.same: the run's own engine",
        ),
        (
            {"transfer": {"engines": {"x": "openai"}}},
            {},
            "studies.transfer.engines.x.model: 'openai' lacks the model's id",
        ),
        (
            {"transfer": {"engines": {"x": {"model": "gemini/x", "emphasis": 0}}}},
            {},
            "emphasis: only the offline engine has such settings, not 'gemini/x'",
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
            {"judge": "gemini/x"},
            "'soft' needs log-probabilities; judge='gemini/x' is one of lexical, lex",
        ),
        (
            {"judges": {"judges": ["lexical", "batch"]}},
            {"judge": "entailment/x"},
            "'batch' needs a model; judge='entailment/x' is one of lexical, lex",
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
        ("a: 1\nb: {c: 1, c: 2}", "'c' is given twice"),
        ("a: 1\na: 2", "'a' is given twice"),
    ],
)
def test_a_wrong_parameter_file(tmp_path, content, message):
    (tmp_path / "other.yaml").write_text("a: 1")
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ParameterError, match=message):
        read_yaml(path)


def test_yaml_reads_exponents_as_numbers_and_merges_as_before():
    assert from_yaml("[1e-5, 1.5E3, -2e4, 1.0e-6]") == [1e-5, 1500.0, -2e4, 1e-6]
    assert from_yaml("[e5, 1e, x1e5]") == ["e5", "1e", "x1e5"]
    assert from_yaml("[1_000, 0x1F, -3, .5, 1.]") == [1000, 31, -3, 0.5, 1.0]
    assert from_yaml("[017, 1:30, 1:30.5, 0o17]") == ["017", "1:30", "1:30.5", "0o17"]
    assert from_yaml("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}")["d"] == {"b": 1, "c": 3}


@pytest.mark.parametrize(
    "text",
    ["1e3", "-2E5", "1e-5", "NO", "0o7", "12:30:45", "\x85a", "a\u2028b\r\nc", "\ufeff: #", "é 🎉"],
)
def test_a_text_that_is_written_is_read_as_it_was(text):
    values = {"method": text, "rate": 1e-5, "seeds": [1, 2], "corpus": {"path": None}}
    assert from_yaml(to_yaml(values)) == values


def test_a_value_that_no_branch_of_a_union_takes_is_named_as_it_is_written():
    with pytest.raises(ParameterError) as error:
        read_parameters("02", "smoke", [("sampling.thinking", "0")])
    lines = str(error.value).removeprefix("02_baseline_rewrites: ").splitlines()
    assert all(line.startswith("sampling.thinking=0: ") for line in lines) and len(lines) > 1
