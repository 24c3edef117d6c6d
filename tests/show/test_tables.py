"""What the tables of samples count, and by what."""

import numpy as np
import pandas as pd

from geo_utils.show.tables import abstention_table, verdict_table


def test_abstentions_of_a_kind_are_one_line_with_an_example():
    lost = [
        "rewriter: refused: I cannot do that: it is\n wrong.",
        "rewriter: refused: Sorry, I cannot.",
        "rewriter: short: under a fifth of the page's words",
        "judge: unparsable: no JSON in '{'",
        "judge: unparsable: no JSON in '['",
        "judge: gave no verdict",
        None,
    ]
    found = abstention_table(pd.DataFrame({"method": "key_point", "abstention": lost}))
    assert found.drop(columns="method").values.tolist() == [
        ["rewriter: refused", 2, "I cannot do that: it is wrong."],
        ["rewriter: short", 1, "under a fifth of the page's words"],
        ["judge: unparsable", 2, "no JSON in '{'"],
        ["judge: gave no verdict", 1, ""],
    ]
    none = abstention_table(pd.DataFrame({"method": "key_point", "abstention": [None]}))
    assert none.loc["", "abstentions"] == "none"


def test_the_share_of_replies_with_echoes_stands_beside_the_verdicts():
    """Of the replies of a model: an edit has none."""
    samples = pd.DataFrame(
        {"method": ["original", *["key_point"] * 4], "echoes": [np.nan, 0.0, 2.0, 1.0, np.nan]}
    ).assign(verdict="omitted", uncited=False, citations_out_of_range=0, citations_unparsed=0)
    table = verdict_table(samples, "").data
    assert table["replies with echoes removed"].tolist() == ["–", "67%"]
