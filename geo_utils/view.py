"""One example to read: page before and after, the answer, its citations and the verdict."""

from __future__ import annotations

import difflib
import html
import re
from collections.abc import Iterable, Iterator

import pandas as pd
from IPython.display import HTML, display

from geo_utils.citations import BRACKET, citation_numbers
from geo_utils.corpus import Example
from geo_utils.summary import PAIR
from geo_utils.tables import label
from geo_utils.text import STOPWORDS, content_words, stem, word_spans

_SHOWN_CHARS = 20_000
_TOKEN = re.compile(r"\s+|\w+|[^\w\s]")
_SOURCE_COLOURS = ("#1b6ca8", "#b4540a", "#2e7d32", "#8e44ad", "#8a6d00", "#00838f", "#ad1457")
_VERDICT_COLOURS = {"supported": "#2e7d32", "omitted": "#777777", "contradicted": "#c1272d"}
CSS = """
.geo-view{font:15px/1.45 system-ui,sans-serif;color:#222;text-align:left;max-width:1240px}
.geo-view .geo-columns{display:grid;grid-template-columns:1fr 1fr 1fr;gap:14px}
.geo-view .geo-box{border:1px solid #ccc;border-radius:6px;padding:8px 12px;overflow:auto;
max-height:400px;text-align:start;white-space:pre-wrap;overflow-wrap:anywhere}
.geo-view .geo-low{max-height:220px}
.geo-view h4{margin:.4em 0 .3em;font-size:15px}
.geo-view mark{background:#ffe58a;color:inherit;padding:0 1px}
.geo-view ins{background:#d9f2dc;text-decoration:none}
.geo-view del{background:#f8dcdc;color:#8a3030}
.geo-view .geo-cite{font-weight:700}
.geo-view .geo-badge{color:#fff;border-radius:4px;padding:1px 8px;font-weight:700}
.geo-view .geo-small{color:#555;font-size:14px}
"""


def show(*outputs: object) -> None:
    """Show what there is: tables of analyses that are switched off are None."""
    for output in outputs:
        if output is not None:
            display(output)


def telling_sample(samples: pd.DataFrame, method: str) -> pd.Series:
    """Choose the sample to show: the first whose verdict the method turned to supported.

    Args:
        samples: As `evaluate.evaluate` returns it.
        method: The method to show; if it turned no verdict, its first scored sample is chosen,
            and if it has none, its first sample.
    """
    own = samples[samples["method"] == method]
    scored = own[own["supported"].notna()]
    missed = samples[(samples["method"] == "original") & (samples["supported"] == 0)]
    turned = scored[scored["supported"] == 1].merge(missed[PAIR], on=PAIR)
    return next(part for part in (turned, scored, own) if not part.empty).iloc[0]


def example_view(sample: pd.Series, examples: Iterable[Example]) -> HTML:
    """Show one sample: original and rewritten page with changes, answer with citations, verdict.

    Args:
        sample: One row of the samples table.
        examples: The corpus that holds its example.

    Returns:
        HTML with its own style, for JupyterLab, the report and a slide.
    """
    sample = sample.astype(object).where(sample.notna(), None)  # parquet gives NaN for None
    example = next(e for e in examples if e.query_id == sample["query_id"])
    wanted = set(content_words(sample["key_point"]))
    before, after = marked_changes(_cut(example.target), _cut(sample["page"] or ""), wanted)
    target = int(sample["target_place"]) + 1
    missing = "abstained" if sample["verdict"] is None else str(sample["verdict"])
    badge = (
        f'<span class="geo-badge" style="background:'
        f'{_VERDICT_COLOURS.get(missing, "#b4540a")}">{missing}</span>'
    )
    reason = html.escape(str(sample["abstention"] or sample["explanation"]))
    answer = "".join(_cited(sample["answer"] or "", wanted, target))
    sources = ", ".join(
        f'<span class="geo-cite" style="color:{_source_colour(i)}">[{i}]'
        f"{' target' if i == target else ''}</span>"
        for i in range(1, len(example.sources) + 1)
    )
    boxes = (
        ("Original page", before),
        (f"Rewritten: {label(str(sample['method']))}", after),
        (f"Answer, repeat {int(sample['repeat'])}; sources {sources}", answer),
    )
    columns = "".join(
        f'<div><h4>{title}</h4><div class="geo-box" dir="auto">{body}</div></div>'
        for title, body in boxes
    )
    return HTML(
        f'<style>{CSS}</style><div class="geo-view">'
        f'<div dir="auto"><b>Query</b> {html.escape(example.query)}</div>'
        f'<div dir="auto"><b>Key point</b> {html.escape(sample["key_point"])} {badge} '
        f'<span class="geo-small">{reason}</span></div>'
        f'<div class="geo-columns">{columns}</div>'
        f'<div class="geo-small"><mark>words of the key point</mark> &nbsp; <ins>added</ins> '
        f"&nbsp; <del>removed</del></div></div>"
    )


def _cut(text: str) -> str:
    if len(text) <= _SHOWN_CHARS:
        return text
    return f"{text[:_SHOWN_CHARS]}\n[{len(text) - _SHOWN_CHARS:,} more characters are not shown]"


def marked_changes(before: str, after: str, wanted: set[str]) -> tuple[str, str]:
    """Return both texts as HTML, removed words in <del>, added ones in <ins>.

    Args:
        before: Text as it was.
        after: Text as it is.
        wanted: Stems to highlight in both.
    """
    old, new = _TOKEN.findall(before), _TOKEN.findall(after)
    # The junk heuristic blurs short texts, and a page of thousands of words needs it.
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=len(old) + len(new) > 4000)
    left, right = [], []
    for kind, i, j, k, m in matcher.get_opcodes():
        removed = _highlighted("".join(old[i:j]), wanted)
        added = _highlighted("".join(new[k:m]), wanted)
        left.append(removed if kind == "equal" or not removed else f"<del>{removed}</del>")
        right.append(added if kind == "equal" or not added else f"<ins>{added}</ins>")
    return "".join(left), "".join(right)


def _highlighted(text: str, wanted: set[str]) -> str:
    pieces, last = [], 0
    for start, end, word in word_spans(text):
        if word.lower() not in STOPWORDS and stem(word) in wanted:
            marked = f"<mark>{html.escape(text[start:end])}</mark>"
            pieces += [html.escape(text[last:start]), marked]
            last = end
    return "".join(pieces) + html.escape(text[last:])


def _cited(answer: str, wanted: set[str], target: int) -> Iterator[str]:
    last = 0
    for found in BRACKET.finditer(answer):
        numbers = citation_numbers(found.group(1))
        yield _highlighted(answer[last : found.start()], wanted)
        shade = _source_colour(numbers[0] if numbers else 0)
        line = "underline" if numbers and target in numbers else "none"
        text = html.escape(found.group())
        yield f'<span class="geo-cite" style="color:{shade};text-decoration:{line}">{text}</span>'
        last = found.end()
    yield _highlighted(answer[last:], wanted)


def _source_colour(number: int) -> str:
    return "#777777" if number < 1 else _SOURCE_COLOURS[(number - 1) % len(_SOURCE_COLOURS)]
