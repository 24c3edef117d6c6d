"""A figure's title states only what its intervals support."""

import pandas as pd
import pytest

from geo_utils.show.plots import difference_figure, probability_figure, visibility_figure


def summary(*rows):
    """Rows of (method, probability, difference, clear, PAWC)."""
    made = []
    for method, share, difference, clear, pawc in rows:
        row = {
            "method": method,
            "key_point_probability": share,
            "difference": difference,
            "clear": clear,
            "pawc": pawc,
            "n_examples": 9,
            "n_samples": 27,
            "abstentions": 0,
        }
        for name, value in (("ci", share), ("difference", difference), ("pawc", pawc)):
            row |= {f"{name}_low": value - 0.05, f"{name}_high": value + 0.05}
        made.append(row)
    return pd.DataFrame(made).set_index("method")  # fmt: skip


def title(figure):
    return " ".join(figure.get_suptitle().split())


ORIGINAL = ("original", 0.2, float("nan"), False, 0.2)


@pytest.mark.parametrize(
    ("rows", "probability", "difference", "visibility"),
    [
        # a method with p = 1 is no headline, however it looks
        ([ORIGINAL, ("fluency", 0.3, 0.1, False, 0.25)],
         "No method clearly puts the key point into more answers than the original page into 20%",
         "0 of 1 methods clearly raise", "No method's visibility lies clearly above"),
        # the best that is clear, not the best
        ([ORIGINAL, ("fluency", 0.5, 0.3, False, 0.2), ("key_point", 0.4, 0.2, True, 0.5)],
         "puts the key point into 40% of answers", "clearly raises", "more visibility: PAWC at m"),
        # one that is clearly worse
        ([ORIGINAL, ("fluency", 0.1, -0.1, True, 0.1)],
         "No method clearly puts", "0 of 1 methods clearly raise", "No method's visibility"),
    ],
)  # fmt: skip
def test_titles_claim_what_is_clear(rows, probability, difference, visibility):
    table = summary(*rows)
    assert probability in title(probability_figure(table, "s"))
    assert difference in title(difference_figure(table, "s"))
    assert visibility in title(visibility_figure(table, "s"))
