"""One example to read: page before and after, the answer, its citations and the verdict."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

import numpy as np
import pandas as pd
from IPython.display import HTML, display
from markupsafe import Markup

from geo_utils.citations import BRACKET, citation_numbers
from geo_utils.corpus import Example
from geo_utils.roles.methods import label
from geo_utils.show.jinja import filled
from geo_utils.summary import PAIR
from geo_utils.text import STOPWORDS, content_words, stem, word_spans

_SHOWN_CHARS = 20_000
# A character of a script written without spaces is a token of its own.
_UNSPACED = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"
_TOKEN = re.compile(rf"\s+|[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")
_SOURCE_COLOURS = ("#1b6ca8", "#b4540a", "#2e7d32", "#8e44ad", "#8a6d00", "#00838f", "#ad1457")
_VERDICT_COLOURS = {"supported": "#2e7d32", "omitted": "#777777", "contradicted": "#c1272d"}
_MARKED = Markup("<mark>{}</mark>")
_CITATION = Markup('<span class="geo-cite" style="color:{};text-decoration:{}">{}</span>')


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
    verdict = sample["verdict"] or "abstained"
    view = filled(
        "example.html",
        query=example.query,
        key_point=sample["key_point"],
        verdict=verdict,
        verdict_colour=_VERDICT_COLOURS.get(verdict, "#b4540a"),
        reason=sample["abstention"] or sample["explanation"],
        method=label(str(sample["method"])),
        repeat=int(sample["repeat"]),
        source_colours=[_source_colour(i + 1) for i in range(len(example.sources))],
        target=target,
        before=before,
        after=after,
        answer=_cited(_excerpt(sample["answer"] or "", wanted, words), wanted, target),
    )
    return HTML(view)


def _cut(text: str) -> str:
    if len(text) <= _SHOWN_CHARS:
        return text
    return f"{text[:_SHOWN_CHARS]}\n[{len(text) - _SHOWN_CHARS:,} more characters are not shown]"


def marked_changes(
    before: str, after: str, wanted: set[str], words: int | None = None
) -> tuple[Markup, Markup]:
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
    shown = []
    for tokens, tag, side in ((old, "del", 1), (new, "ins", 3)):
        low, high, before_it, behind_it = _window(tokens, wanted, words)
        changed = Markup(f"<{tag}>{{}}</{tag}>")
        pieces: list[str] = [before_it]
        for opcode in matcher.get_opcodes():
            start, end = (opcode[1], opcode[2]) if side == 1 else (opcode[3], opcode[4])
            text = _highlighted("".join(tokens[max(start, low) : min(end, high)]), wanted)
            pieces.append(text if opcode[0] == "equal" or not text else changed.format(text))
        shown.append(Markup().join([*pieces, behind_it]))
    return shown[0], shown[1]


def _excerpt(text: str, wanted: set[str], words: int | None) -> str:
    """Return the stretch of a text that holds most of the wanted words."""
    tokens = _TOKEN.findall(text)
    low, high, before_it, behind_it = _window(tokens, wanted, words)
    return before_it + "".join(tokens[low:high]) + behind_it


def _window(tokens: list[str], wanted: set[str], words: int | None) -> tuple[int, int, str, str]:
    """Return where the stretch starts and ends, and notes on what is before and behind it."""
    places = [i for i, token in enumerate(tokens) if token[:1].isalnum()]
    if words is None or len(places) <= words:
        return 0, len(tokens), "", ""
    hits = [stem(tokens[i]) in wanted and tokens[i].lower() not in STOPWORDS for i in places]
    sums = np.concatenate(([0], np.cumsum(hits)))
    counts = sums[words:] - sums[:-words]
    best = np.flatnonzero(counts == counts.max())
    first = int(best[len(best) // 2])  # in the middle of equals, so that both sides are seen
    behind = len(places) - first - words
    start, end = places[first] if first else 0, places[first + words - 1] + 1
    before_it, behind_it = (
        f"(… {count:,} word{'s' * (count > 1)})" if count else "" for count in (first, behind)
    )
    return (
        start,
        end if behind else len(tokens),
        before_it and f"{before_it} ",
        behind_it and f" {behind_it}",
    )


def _highlighted(text: str, wanted: set[str]) -> Markup:
    pieces, last = [], 0
    for start, end, word in word_spans(text):
        if word.lower() not in STOPWORDS and stem(word) in wanted:
            pieces += [text[last:start], _MARKED.format(text[start:end])]
            last = end
    return Markup().join([*pieces, text[last:]])


def _cited(answer: str, wanted: set[str], target: int) -> Markup:
    pieces, last = [], 0
    for found in BRACKET.finditer(answer):
        numbers = citation_numbers(found.group(1)) or ()
        line = "underline" if target in numbers else "none"
        shade = _source_colour(numbers[0] if numbers else 0)
        pieces.append(_highlighted(answer[last : found.start()], wanted))
        pieces.append(_CITATION.format(shade, line, found.group()))
        last = found.end()
    return Markup().join([*pieces, _highlighted(answer[last:], wanted)])


def _source_colour(number: int) -> str:
    return "#777777" if number < 1 else _SOURCE_COLOURS[(number - 1) % len(_SOURCE_COLOURS)]
