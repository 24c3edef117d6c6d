"""A small version of `measure_verdicts.py`: intervals hold planted truths, verdicts are right."""

import pytest
from measure_verdicts import KINDS

SEEDS = range(40)


@pytest.mark.parametrize("kind", KINDS)
def test_planted_truths(kind):
    """Of 40 intervals at least 34 hold the truth in 99 series of 100, if 95 % do."""
    for found in KINDS[kind](SEEDS):
        least = 0.0 if "one look" in found["what"] else 0.8 if "90 %" in found["what"] else 0.85
        assert found["covered"] is None or found["covered"] >= least, found
        assert found.get("wrong", 0) <= 0.05, found
