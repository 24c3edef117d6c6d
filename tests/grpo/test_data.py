"""Which queries are trained on, judged by as the training goes, and held out."""

import pytest
from conftest import make_example

from geo_utils.corpus import KeyPoint, load_corpus
from geo_utils.grpo.data import split_queries
from geo_utils.notebooks import read_parameters

POINTS = (KeyPoint(1, "Tides rise."), KeyPoint(2, "Twice a day."))
EXAMPLES = [make_example(f"q{i}", key_points=POINTS) for i in range(6)]


def split(examples=EXAMPLES, **changes):
    return split_queries(examples, read_parameters("04_grpo", "default", list(changes.items()))[2])


def names(pairs):
    return {example.query_id for example, _ in pairs}


def test_validation_takes_queries_of_neither_part():
    plain = split(**{"data.held_out": "0.5"})
    found = split(**{"data.held_out": "0.5", "data.validation": "{queries: 2}"})
    assert found.held_out == plain.held_out
    assert names(found.train) | names(found.validation) == names(plain.train)
    assert len(names(found.validation)) == 2 and not names(found.train) & names(found.validation)
    with pytest.raises(ValueError, match="queries=3: it would leave none of 3 queries to train"):
        split(**{"data.held_out": "0.5", "data.validation": "{queries: 3}"})


def test_held_out_queries_may_be_a_corpus_of_their_own():
    apart = {"data.held_out": "0", "evaluation.corpus": "{name: sample}"}
    sample = load_corpus("sample")
    found = split(**apart)
    assert names(found.train) == {example.query_id for example in EXAMPLES}
    assert found.held_out == tuple(example for example in sample if example.key_points)
    with pytest.raises(ValueError, match=r"evaluation\.corpus: 30 of its queries are trained on"):
        split(sample, **apart)
