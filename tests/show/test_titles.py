"""A figure's title states only what its intervals support."""

import io

import pandas as pd
import pytest
from matplotlib.text import Text

from geo_utils.show.plots import probability_figure, visibility_figure
from geo_utils.show.tables import method_table


def summary(*rows, leads=None, seen=None):
    """Rows of (method, probability, difference, clear, PAWC); who leads in support and in PAWC."""
    made = []
    for method, share, difference, clear, pawc in rows:
        row = {
            "method": method,
            "key_point_probability": share,
            "difference": difference,
            "clear": clear,
            "pawc": pawc,
            "leads": method == leads,
            "pawc_leads": method == seen,
            "n_examples": 9,
            "n_samples": 27,
            "abstentions": 0,
        }
        for name, value in (("ci", share), ("difference", difference), ("pawc", pawc)):
            row |= {f"{name}_low": value - 0.05, f"{name}_high": value + 0.05}
        made.append(row)
    return pd.DataFrame(made).set_index("method")


def title(figure):
    return " ".join(figure.get_suptitle().split())


ORIGINAL = ("original", 0.2, float("nan"), False, 0.2)


FLUENCY, KEY_POINT = ("fluency", 0.5, 0.3, True, 0.3), ("key_point", 0.6, 0.4, True, 0.5)


@pytest.mark.parametrize(
    ("rows", "leads", "probability"),
    [
        # a method with p = 1 is no headline, however it looks
        ([ORIGINAL, ("fluency", 0.3, 0.1, False, 0.25)], None,
         "No method differs clearly from the original page: key point in 20% of its answers"),
        # two that are both above the original page, and not apart
        ([ORIGINAL, FLUENCY, KEY_POINT], None,
         "Fluency and key-point rewrite clearly raise the key-point probability over the original "
         "page's 20%; no method is clearly above all others"),
        # one that is above all others
        ([ORIGINAL, FLUENCY, KEY_POINT], "key_point",
         "Key-point rewrite puts the key point into 60% of answers, more than all others, the "
         "original page into 20%"),
        # one that is clearly worse
        ([ORIGINAL, ("fluency", 0.1, -0.1, True, 0.1)], None,
         "No method is clearly above the original page"),
        ([("original", 1.0, float("nan"), False, 0.2), ("fluency", 1.0, 0.0, False, 0.2)], None,
         "Ceiling: every answer carries the key point"),
        ([("original", 0.0, float("nan"), False, 0.2), ("fluency", 0.0, 0.0, False, 0.2)], None,
         "Floor: no answer carries the key point"),
    ],
)  # fmt: skip
def test_titles_claim_what_is_clear(rows, leads, probability):
    table = summary(*rows, leads=leads)
    assert title(probability_figure(table, "s")).startswith(probability)


def test_visibility_names_who_leads():
    rows = [ORIGINAL, FLUENCY, KEY_POINT]
    assert title(visibility_figure(summary(*rows), "s")).startswith("No method clearly gives")
    led = title(visibility_figure(summary(*rows, seen="key_point"), "s"))
    assert led.startswith("Key-point rewrite gives the target page more visibility than all others")


@pytest.mark.parametrize("leads", [None, "key_point"])
def test_a_row_is_bold_if_it_leads(leads):
    columns = dict.fromkeys(["uncited", "uncited_low", "uncited_high", "p_holm", "page_words"], 0.5)
    table = method_table(summary(ORIGINAL, KEY_POINT, leads=leads).assign(**columns), "s")
    assert ("font-weight: bold" in table.to_html()) == (leads is not None)
    assert ("No row is bold" in table.caption) == (leads is None)


def test_dollar_signs_of_names_are_no_formulas():
    figure = probability_figure(summary(ORIGINAL, KEY_POINT), "a$x_{$b, $3 to $4")
    figure.savefig(io.BytesIO())  # a formula that cannot be read would end the run
    assert not any(text.get_parse_math() for text in figure.findobj(Text) if text.get_text())


def test_the_name_of_a_folder_keeps_its_capitals_and_one_is_one():
    rows = [ORIGINAL, ("policy/Run-A/Step-50", 0.6, 0.4, True, 0.5)]
    table = summary(*rows, leads=rows[1][0]).assign(n_examples=1, n_samples=1, abstentions=[1, 0])
    figure = probability_figure(table, "src")
    assert title(figure).startswith("Policy Run-A/Step-50 puts the key point into 60%")
    assert figure.get_supxlabel().startswith("n = 1 query, 1 sample a method, 1 abstention in")
