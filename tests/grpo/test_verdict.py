"""Whether training was worth it, on outcomes that are planted."""

import numpy as np
import pandas as pd
import pytest

from geo_utils.grpo.comparison import (
    AFTER,
    BEFORE,
    DISTILLED,
    against_rivals,
    pasting_share,
    verdict,
    where_it_helps,
)

PAID = pd.DataFrame({"calls": [8000.0], "minutes": [17.0]}, index=[AFTER])


def outcomes(queries=60, **rates):
    """Samples in which a method of the higher rate lands all that one of a lower rate does."""
    draw = np.random.default_rng(0).random((queries, 3))
    return pd.DataFrame(
        {"query_id": f"q{q}", "key_point_number": 1, "repeat": r, "method": name,
         "supported": float(draw[q, r] < rate)}
        for name, rate in rates.items() for q in range(queries) for r in range(3)
    )  # fmt: skip


def told(samples, lifts=None):
    return verdict(samples, against_rivals(samples, lifts=lifts), PAID)


def rates(own, paste, after, original=0.2):
    return {"original": original, "paste_key_point": paste, BEFORE: own, AFTER: after}


class TestVerdict:
    @pytest.mark.parametrize(
        ("own", "paste", "after", "said"),
        [
            (0.3, 0.35, 0.6, "**Worth it**: training beats policy before training and paste key"),
            (0.3, 0.6, 0.6, "**Not worth it**: training is not above paste key point by 0.05"),
            (0.6, 0.35, 0.6, "**Not worth it**: training is not above policy before training by"),
            (0.6, 0.6, 0.3, "**Not worth it**: training is not above policy before training and"),
        ],
    )
    def test_it_is_worth_it_only_above_all_that_is_cheaper(self, own, paste, after, said):
        found = told(outcomes(**rates(own, paste, after)))
        assert found.startswith(said)
        assert "17 minutes of training and 8,000 engine calls" in found
        assert "60 held-out queries, 180 pairs; as judged" in found

    def test_a_policy_taught_by_the_best_of_n_is_cheaper_too(self):
        found = told(outcomes(**rates(0.3, 0.35, 0.6) | {DISTILLED: 0.6}))
        assert found.startswith("**Not worth it**: training is not above distilled from best of n")

    def test_what_is_not_decided_says_what_would(self):
        found = told(outcomes(queries=8, **rates(0.3, 0.3, 0.42)))
        assert found.startswith("**Not decided**: training is not clearly above")
        assert "more queries would tell" in found

    def test_without_pairs_there_is_no_verdict(self):
        samples = outcomes(**rates(0.3, 0.3, 0.6))
        samples.loc[samples["method"] == AFTER, "supported"] = np.nan
        assert told(samples).startswith("**No verdict**")

    def test_corrected_lifts_take_the_place_of_the_judges(self):
        """Of each reference, as `certificate.corrected_lifts` gives them."""
        samples = outcomes(**rates(0.3, 0.35, 0.6))
        low = {"corrected": 0.01, "corrected_low": -0.02, "corrected_high": 0.04}
        none = dict.fromkeys(low, np.nan)

        def lifts(reference):
            return pd.DataFrame([low if reference == BEFORE else none], index=[AFTER])

        found = told(samples, lifts)
        assert found.startswith("**Not worth it**: training is not above policy before training")
        assert "corrected for the judge's errors over policy before training" in found
        assert "+0.010 [-0.020, +0.040] over policy before training" in found


def test_what_share_of_the_lift_pasting_has():
    share = pasting_share(outcomes(queries=400, **rates(0.3, 0.4, 0.6)))
    assert share[0] == pytest.approx(0.5, abs=0.06) and share[1] < 0.5 < share[2]
    assert np.isnan(pasting_share(outcomes(**rates(0.3, 0.4, 0.1)))[0])


def test_where_it_helps_is_told_by_the_original_page():
    samples = outcomes(**rates(0.2, 0.3, 0.6))
    found = where_it_helps(samples)
    assert list(found.index) == ["never", "at times"]
    assert found["n_examples"].sum() == 60
    assert found.loc["never", "difference"] > found.loc["at times", "difference"] > 0
