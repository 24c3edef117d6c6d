"""One example to read: page before and after, the answer, its citations and the verdict."""

from __future__ import annotations

import difflib
import html
import re
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
from IPython.display import HTML, display

from geo_utils.citations import BRACKET, citation_numbers
from geo_utils.corpus import Example
from geo_utils.summary import PAIR
from geo_utils.tables import label
from geo_utils.text import STOPWORDS, content_words, stem, word_spans

_SHOWN_CHARS = 20_000
# A character of a script written without spaces is a token of its own.
_UNSPACED = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"
_TOKEN = re.compile(rf"\s+|[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")
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


def example_view(sample: pd.Series, examples: Iterable[Example], words: int | None = None) -> HTML:
    """Show one sample: original and rewritten page with changes, answer with citations, verdict.

    Args:
        sample: One row of the samples table.
        examples: The corpus that holds its example.
        words: Words of each text to show, those around most of the key point; none for all.

    Returns:
        HTML with its own style, for JupyterLab, the report and a slide.
    """
    sample = sample.astype(object).where(sample.notna(), None)  # parquet gives NaN for None
    example = next(e for e in examples if e.query_id == sample["query_id"])
    wanted = set(content_words(sample["key_point"]))
    before, after = marked_changes(_cut(example.target), _cut(sample["page"] or ""), wanted, words)
    target = int(sample["target_place"]) + 1
    missing = "abstained" if sample["verdict"] is None else str(sample["verdict"])
    badge = (
        f'<span class="geo-badge" style="background:'
        f'{_VERDICT_COLOURS.get(missing, "#b4540a")}">{missing}</span>'
    )
    reason = html.escape(str(sample["abstention"] or sample["explanation"]))
    answer = "".join(_cited(_excerpt(sample["answer"] or "", wanted, words), wanted, target))
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


def marked_changes(
    before: str, after: str, wanted: set[str], words: int | None = None
) -> tuple[str, str]:
    """Return both texts as HTML, removed words in <del>, added ones in <ins>.

    Args:
        before: Text as it was.
        after: Text as it is.
        wanted: Stems to highlight in both.
        words: Words of each to show, where most of the wanted stand; none for all.
    """
    old, new = _TOKEN.findall(before), _TOKEN.findall(after)
    # The junk heuristic blurs short texts, and a page of thousands of words needs it.
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=len(old) + len(new) > 4000)
    opcodes = matcher.get_opcodes()
    removed = _marked(old, [(c[0], c[1], c[2]) for c in opcodes], "del", wanted, words)
    added = _marked(new, [(c[0], c[3], c[4]) for c in opcodes], "ins", wanted, words)
    return removed, added


def _marked(
    tokens: list[str], stretches: list[tuple[str, int, int]], tag: str, wanted: set[str],
    words: int | None,
) -> str:  # fmt: skip
    """Return the tokens of the window as HTML, changed stretches in the tag."""
    low, high, left_out = _window(tokens, wanted, words)
    pieces = []
    for kind, start, end in stretches:
        shown = "".join(tokens[max(start, low) : min(end, high)])
        text = _highlighted(shown, wanted)
        pieces.append(text if kind == "equal" or not text else f"<{tag}>{text}</{tag}>")
    return left_out[0] + "".join(pieces) + left_out[1]


def _excerpt(text: str, wanted: set[str], words: int | None) -> str:
    """Return the stretch of a text that holds most of the wanted words."""
    tokens = _TOKEN.findall(text)
    low, high, left_out = _window(tokens, wanted, words)
    return left_out[0] + "".join(tokens[low:high]) + left_out[1]


def _window(
    tokens: list[str], wanted: set[str], words: int | None
) -> tuple[int, int, tuple[str, str]]:
    """Return where the stretch starts and ends, and notes on what is before and behind it."""
    places = [i for i, token in enumerate(tokens) if token[:1].isalnum()]
    if words is None or len(places) <= words:
        return 0, len(tokens), ("", "")
    hits = [stem(tokens[i]) in wanted and tokens[i].lower() not in STOPWORDS for i in places]
    sums = np.concatenate(([0], np.cumsum(hits)))
    counts = sums[words:] - sums[:-words]
    best = np.flatnonzero(counts == counts.max())
    first = int(best[len(best) // 2])  # in the middle of equals, so that both sides are seen
    behind = len(places) - first - words
    notes = [
        f"(… {count:,} word{'s' * (count > 1)}) " if count else "" for count in (first, behind)
    ]
    end = places[first + words - 1] + 1 if behind else len(tokens)
    return places[first] if first else 0, end, (notes[0], f" {notes[1]}".rstrip())


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
