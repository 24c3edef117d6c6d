"""Whether training was worth it, on outcomes that are planted."""

import re

import numpy as np
import pandas as pd
import pytest

from geo_utils.certificate import Labels, correct
from geo_utils.grpo.comparison import (
    AFTER,
    BEFORE,
    DISTILLED,
    against_rivals,
    pasting_share,
    training_headline,
    verdict,
    where_it_helps,
)
from geo_utils.show.plots import rival_figure

PAID = pd.DataFrame({"calls": [8000.0], "minutes": [17.0]}, index=[AFTER])


def outcomes(queries=80, **rates):
    """Samples in which a method of the higher rate lands all that one of a lower rate does."""
    draw = np.random.default_rng(0).random((queries, 3))
    return pd.DataFrame(
        {"query_id": f"q{q}", "key_point_number": 1, "repeat": r, "method": name,
         "supported": float(draw[q, r] < rate), "unchanged": float(name == BEFORE and q < 20),
         "verdict": "no page" if name == BEFORE and q >= 76 else "omitted"}
        for name, rate in rates.items() for q in range(queries) for r in range(3)
    )  # fmt: skip


def told(samples, corrected=None):
    return verdict(samples, against_rivals(samples), PAID, corrected=corrected)


def rates(own, paste, after, original=0.2):
    return {"original": original, "paste_key_point": paste, BEFORE: own, AFTER: after}


class TestVerdict:
    @pytest.mark.parametrize(
        ("own", "paste", "after", "said"),
        [
            (0.3, 0.35, 0.6, "**Worth it**: training beats policy before GRPO and paste key"),
            (0.3, 0.6, 0.6, "**Not worth it**: training is not above paste key point by 0.05"),
            (0.6, 0.35, 0.6, "**Not worth it**: training is not above policy before GRPO by"),
            (0.6, 0.6, 0.3, "**Not worth it**: training is not above policy before GRPO and"),
        ],
    )
    def test_it_is_worth_it_only_above_all_that_is_cheaper(self, own, paste, after, said):
        found = told(outcomes(**rates(own, paste, after)))
        assert found.startswith(said)
        assert "17.0 minutes of training and 8,000 engine calls" in found
        assert "80 held-out queries, 240 pairs" in found
        assert "0% of the pages are the original, unchanged (before training 25%), and" in found
        assert "0% of the replies hold no page (before 5%)." in found

    def test_hand_labels_stand_beside_the_verdict(self):
        samples = outcomes(**rates(0.3, 0.35, 0.6))
        samples = samples.assign(key_point="", answer=samples["method"], answer_sha="")
        labels = samples[(samples["repeat"] == 0) & (samples["verdict"] != "no page")]
        says = np.where(labels["supported"] == 1, "supported", "omitted")  # as the judge does
        labels = labels.assign(reader_a=says, reader_b=says)
        found = correct(samples, Labels({}, labels), BEFORE)
        assert "of answers.\n\n- **By how much**" in told(samples)
        assert "\n- **By hand labels** (80 of its answers): +0.288 [+0.2" in told(samples, found)
        bare = correct(samples, Labels({}, labels[labels["method"] != AFTER]), BEFORE)
        assert "hand labels" not in told(samples, bare) + told(samples)

    def test_what_any_owner_can_paste_is_cheaper_too(self):
        found = told(outcomes(**rates(0.3, 0.35, 0.6) | {"repeat_key_point": 0.6}))
        assert found.startswith("**Not worth it**: training is not above repeat key point by 0.05")

    def test_a_policy_taught_by_the_best_of_n_is_cheaper_too(self):
        found = told(outcomes(**rates(0.3, 0.35, 0.6) | {DISTILLED: 0.6}))
        assert found.startswith("**Not worth it**: training is not above distilled from best of n")

    @pytest.mark.parametrize(("queries", "after"), [(12, 0.4), (8, 0.3)])
    def test_few_queries_decide_nothing_also_where_none_differs(self, queries, after):
        found = told(outcomes(queries, **rates(0.3, 0.3, after)))
        assert found.startswith("**Not decided**: training is not clearly above policy before")

    def test_rows_of_unlike_length_are_told_as_a_range(self):
        samples = outcomes(**rates(0.3, 0.35, 0.6))
        lost = (samples["method"] == "paste_key_point") & (samples["query_id"] == "q7")
        samples.loc[lost, "supported"] = np.nan
        assert "79 to 80 held-out queries, 237 to 240 pairs" in told(samples)

    def test_without_pairs_there_is_no_verdict(self):
        samples = outcomes(**rates(0.3, 0.3, 0.6))
        samples.loc[samples["method"] == AFTER, "supported"] = np.nan
        assert told(samples).startswith("**No verdict**")

    def test_a_policy_that_writes_no_page_leaves_none_unchanged_and_none_changed(self):
        samples = outcomes(**rates(0.3, 0.3, 0.0))
        samples.loc[samples["method"] == AFTER, "unchanged"] = np.nan
        assert "– of the pages are the original, unchanged (before training 25%)" in told(samples)

    def test_what_could_not_be_compared_is_not_beaten(self):
        samples = outcomes(**rates(0.3, 0.3, 0.6))
        samples.loc[samples["method"] == "paste_key_point", "supported"] = np.nan
        said = "**Not decided**: training could not be compared with paste key point."
        assert told(samples).startswith(said)
        samples.loc[samples["method"] == "original", "supported"] = np.nan
        assert told(samples).endswith("both): not known, as no original page was scored.")


class TestVisibility:
    """A training that was rewarded for visibility is judged by it."""

    @staticmethod
    def seen(**shares):
        """Samples that never land their point, with a visibility that is planted by method."""
        samples = outcomes(**dict.fromkeys(shares, 0.0)).assign(verdict="omitted")
        noise = np.random.default_rng(1).normal(0, 0.02, 240)
        return samples.assign(
            pawc=samples["method"].map(shares) + np.tile(noise - noise.mean(), len(shares))
        )

    def told(self, samples):
        return verdict(samples, against_rivals(samples, 0, "pawc"), PAID, aim="pawc")

    def test_the_verdict_is_about_what_was_rewarded(self):
        samples = self.seen(**rates(0.2, 0.21, 0.3))
        found = self.told(samples)
        assert found.startswith(
            "**Worth it**: training beats policy before GRPO and paste key point in "
            "visibility, which was rewarded. The trained policy's pages have 30.0% of the answers' "
            "position-adjusted word count."
        )
        assert "+0.100 [+0.100, +0.100] over policy before GRPO" in found
        assert "- **Key-point probability**: 0.0% before, 0.0% after, +0.000" in found
        assert "where the original at times shows (80)" in found
        assert told(samples).startswith("**Not worth it**: training is not above policy before")
        assert "Key-point probability" not in told(samples)
        paste = self.told(self.seen(**rates(0.2, 0.3, 0.3)))
        assert paste.startswith("**Not worth it**: training is not above paste key point by 0.05")

    def test_the_headline_names_what_gained(self, tmp_path):
        samples = self.seen(**rates(0.2, 0.21, 0.3))
        summary = pd.DataFrame(columns=["key_point_probability", "ci_low", "ci_high", "n_examples",
            "n_samples", "abstentions", "word", "position", "pawc", "uncited"])  # fmt: skip
        found = against_rivals(samples, 0, "pawc")
        head = training_headline(samples, summary, found, self.told(samples), 0, "pawc")
        assert head["gain"]["mean"] == 0.0
        assert head["gain in position-adjusted word count"]["mean"] == pytest.approx(0.1)
        lifts = head["position-adjusted word count, lift over"]
        assert lifts["original"]["mean"] == pytest.approx(0.1) and "lift over" not in head
        assert head["verdict"].endswith("which was rewarded")
        title = rival_figure(found, AFTER, "s", "pawc").get_suptitle()
        assert " ".join(title.split()).endswith("in position-adjusted word count")


def test_a_gain_of_replies_that_hold_a_page_at_all_is_told_apart():
    samples = outcomes(**rates(0.3, 0.35, 0.3))
    none = (samples["method"] == BEFORE) & (samples["query_id"].str[1:].astype(int) < 40)
    samples.loc[none, ["supported", "verdict"]] = [0.0, "no page"]
    samples.loc[~none, "verdict"] = "omitted"
    said = "Where there is a page before and after (40 queries) the gain is +0.000"
    assert "over paste key point; +0." in told(samples) and said in told(samples)
    samples.loc[samples["method"] == AFTER, "verdict"] = "no page"
    assert "No key point has a page before and after." in told(samples)
    assert "before and after" not in told(samples.assign(verdict="omitted"))


def test_what_share_of_the_lift_pasting_has():
    share = pasting_share(outcomes(queries=400, **rates(0.3, 0.4, 0.6)))
    assert share[0] == pytest.approx(0.5, abs=0.06) and share[1] < 0.5 < share[2]
    assert np.isnan(pasting_share(outcomes(**rates(0.3, 0.4, 0.1)))[0])
    assert re.search(
        r"calls\. Pasting the key point has 0\.\d\d \[0", told(outcomes(**rates(0.3, 0.4, 0.6)))
    )
    for after in (0.1, 0.21):  # a lift that may be none has no shares
        assert "calls. Which share of its lift pasting has is not known" in told(
            outcomes(**rates(0.3, 0.4, after))
        )


def test_where_it_helps_is_told_by_the_original_page():
    samples = outcomes(**rates(0.2, 0.3, 0.6))
    found = where_it_helps(samples)
    assert list(found.index) == ["never", "at times"]
    assert found["n_examples"].sum() == 80
    assert found.loc["never", "difference"] > found.loc["at times", "difference"] > 0
