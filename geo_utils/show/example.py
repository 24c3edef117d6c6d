"""One example to read: what is asked, page and answers before and after, and the verdicts.

It is one of the corpus, or a page of one's own, which is rewritten, asked for and judged here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import HTML, display
from markupsafe import Markup

from geo_utils.citations import BRACKET, citation_numbers
from geo_utils.corpus import Example, KeyPoint, own_example
from geo_utils.evaluate import SourceOrder, draw_source_order
from geo_utils.files import write_atomic
from geo_utils.lexical import coverage
from geo_utils.models.base import Request
from geo_utils.plan import quiet
from geo_utils.roles.make import Roles, make_roles
from geo_utils.roles.methods import (
    METHODS,
    MODEL_FREE_METHODS,
    OFFLINE_METHODS,
    check_methods,
    known_method,
    label,
)
from geo_utils.show.jinja import filled, in_words, secured
from geo_utils.summary import PAIR
from geo_utils.text import STOPWORDS, capitalised, content_words, sentences, stem, word_spans, words

_SHOWN_CHARS = 20_000
_RULE = "---"  # parts one page from the next
# A character of a script written without spaces is a token of its own.
_UNSPACED = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"
_TOKEN = re.compile(rf"\s+|[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")
_SOURCE_COLOURS = ("#1b6ca8", "#b4540a", "#2e7d32", "#8e44ad", "#8a6d00", "#00838f", "#ad1457")
_VERDICT_COLOURS = {"supported": "#2e7d32", "omitted": "#707070", "contradicted": "#c1272d"}
_MARKED = Markup("<mark>{}</mark>")
_CITATION = Markup('<span class="geo-cite" style="--shade:{};text-decoration:{}">{}</span>')


def show(*outputs: object) -> None:
    """Show what there is: tables of analyses that are switched off are None."""
    for output in outputs:
        if output is not None:
            display(output)


def telling_example(
    samples: pd.DataFrame, examples: Iterable[Example], method: str, base: str = "original"
) -> tuple[Example, KeyPoint, int]:
    """Choose what to walk by hand: the first sample whose verdict the method turned to supported.

    Args:
        samples: As `evaluate.evaluate` returns it.
        examples: The corpus.
        method: The method to show; if it turned no verdict, its first scored sample is chosen,
            and if it has none, its first sample.
        base: Whose verdict it turned.

    Returns:
        The example, its key point under study, and the number of the answer.
    """
    own = samples[samples["method"] == method]
    scored = own[own["supported"].notna()]
    missed = samples[(samples["method"] == base) & (samples["supported"] == 0)]
    turned = scored[scored["supported"] == 1].merge(missed[PAIR], on=PAIR)
    chosen = next(part for part in (turned, scored, own) if not part.empty).iloc[0]
    example = next(e for e in examples if e.query_id == chosen["query_id"])
    number = chosen["key_point_number"]
    point = next(point for point in example.key_points if point.number == number)
    return example, point, int(chosen["repeat"])


def pipeline_view(roles: Roles) -> HTML:
    """Draw the way from a page to a verdict, with what does each step."""
    made = roles.params.roles
    steps = [
        ("target page", ""),
        ("rewriter", made.get("rewriter", "none")),
        ("page in its place among the sources", ""),
        ("engine", made["engine"]),
        ("answer", ""),
        ("judge", made["judge"]),
        ("supported, omitted or contradicted", ""),
    ]
    return _card(flow=steps)


def question_view(example: Example, key_point: KeyPoint, order: SourceOrder) -> HTML:
    """Show what is asked: the query, the key point, and the sources as the engine sees them."""
    return _card(
        head=[("Query", example.query), ("Key point", key_point.content)],
        folded=_sources(example, key_point, order),
        foot=Markup("{} of the key point").format(_MARKED.format("words")),
    )


def _sources(example: Example, key_point: KeyPoint, order: SourceOrder) -> list[tuple[str, Markup]]:
    folded = []
    for place, source in enumerate(order.order):
        page = example.sources[source]
        title = page.strip().partition("\n")[0].lstrip("# ")
        mark = ", the target page" if place == order.place else ""
        told = f"[{place + 1}] {title[:90]} ({len(words(page)):,} words{mark})"
        folded.append((told, _highlighted(_cut(page), _wanted(key_point.content))))
    return folded


def prompts_view(requests: Iterable[Request]) -> HTML:
    """Show the prompts that were sent, folded, the last one of each role.

    Without one it says so: edits, the offline engine and the offline judge are asked nothing.
    """
    last = {request.role: request.prompt for request in requests}
    folded = [
        (f"The prompt that the {role} got ({len(prompt):,} characters)", _cut(prompt))
        for role, prompt in last.items()
    ]
    none = "No model was asked: page, answers and verdicts here are made by offline roles."
    return _card(folded=folded, foot="" if folded else none)


def pages_view(example: Example, sample: Mapping[Hashable, Any]) -> HTML:
    """Show the target page before and after, with what changed marked.

    Args:
        example: The example.
        sample: A row of the samples table, or of `evaluate.Scorer.rewrite`.
    """
    found = _present(sample)
    wanted, page = _wanted(found["key_point"]), found["page"] or ""
    before, after = marked_changes(_cut(example.target), _cut(page), wanted)
    gone = found["abstention"] or found["explanation"]
    boxes = [
        _box(f"Original page, {len(words(example.target)):,} words", before),
        _box(
            f"{capitalised(label(found['method']))}, {len(words(page)):,} words",
            after if page else f"no page: {gone}",
        ),
    ]
    marks = "{} &nbsp; <ins>added</ins> &nbsp; <del>removed</del>"
    return _card(boxes=boxes, foot=Markup(marks).format(_MARKED.format("words of the key point")))


def answers_view(
    example: Example, *samples: Mapping[Hashable, Any], size: int | None = None
) -> HTML:
    """Show answers side by side, each with its verdict and the passage that it rests on.

    Args:
        example: The example.
        samples: Rows of the samples table on one key point, or of `evaluate.Scorer.rewrite`.
        size: Words of each answer to show, those around most of the key point, as on a slide;
            none for all.
    """
    rows, boxes = [_present(sample) for sample in samples], []
    for found in rows:
        verdict, place = found["verdict"] or "abstained", int(found["target_place"]) + 1
        given = str(found["abstention"] or found["explanation"] or "")
        reason = [f"{given[:1].upper()}{given[1:].rstrip('.')}."] if given else []
        if found["uncited"]:
            reason.append("The answer cites no source.")
        elif found["pawc"] is not None:
            reason.append(f"The target has {found['pawc']:.0%} of its visibility (PAWC).")
        wanted = _wanted(found["key_point"])
        answer = _excerpt(found["answer"] or "", wanted, size)
        body = _answer(answer, found["key_point"], wanted, place)
        name = "original page" if found["method"] == "original" else label(found["method"])
        shade = _VERDICT_COLOURS.get(verdict, "#b4540a")
        boxes.append(_box(f"Answer: {name}", body, (verdict, shade), " ".join(reason)))
    first = rows[0]
    target = int(first["target_place"]) + 1
    marks = [
        _CITATION.format(_source_colour(i), "underline" if i == target else "none", f"[{i}]")
        for i in range(1, len(example.sources) + 1)
    ]
    foot = Markup("{} &nbsp; <u>passage closest to it</u> &nbsp; sources {}, the target underlined")
    return _card(
        head=[("Query", example.query), ("Key point", first["key_point"])],
        boxes=boxes,
        foot=foot.format(_MARKED.format("words of the key point"), Markup(" ").join(marks)),
    )


@dataclass(frozen=True)
class Trial:
    """A page before and after a method.

    Attributes:
        example: The page with its query, key point and other sources.
        method: How it was rewritten.
        samples: As `evaluate.evaluate` returns it: of the original page, then of the rewrite.
        order: The sources as the engine sees them.
        requests: What the models were asked.
        source: What answered, as `Roles.source` says it.
    """

    example: Example
    method: str
    samples: pd.DataFrame
    order: SourceOrder
    requests: Sequence[Request]
    source: str

    @property
    def findings(self) -> list[str]:
        """What came out, in sentences: support and visibility before and after, and by whom."""
        told = []
        for method, rows in self.samples.groupby("method", sort=False):
            scored = rows["supported"].dropna()
            text = f"{capitalised(label(str(method)))}: the answer supports the key point in "
            text += f"{scored.sum():.0f} of {len(scored)} answers"
            if rows["pawc"].notna().any():
                text += f"; visibility (PAWC) {rows['pawc'].mean():.2f}"
            if lost := rows["abstention"].dropna().tolist():
                text += f"; {len(lost)} abstained: {lost[0]}"
            told.append(f"{text}.")
        if len(self.example.sources) == 1:
            told.append("The page is the engine's only source: it competes with no other.")
        return [*told, f"Source: {self.source}."]


def changing_method(name: str) -> str:
    """Return a method's name.

    Raises:
        ValueError: The method is unknown, or changes nothing.
    """
    if known_method(name) == "original":
        raise ValueError("method='original' changes nothing; choose another, such as 'key_point'")
    return name


def try_page(roles: Roles, example: Example, method: str, repeats: int = 1) -> Trial:
    """Rewrite an example's target page by one method, and ask and judge before and after.

    Args:
        roles: Engine, judge and rewriter. A record knows no page but its own: offline roles
            stand in for it.
        example: As `corpus.own_example` makes it; its first key point is the one.
        method: The method.
        repeats: Sampled answers a page.

    Raises:
        ValueError: The method is unknown, changes nothing, or is not the rewriter's.
        FatalError: A model could not be asked.
    """
    changing_method(method)
    if roles.params.recorded:
        offline = dict.fromkeys(("engine", "judge", "rewriter"), "offline")
        roles = make_roles(roles.params.model_copy(update=offline | {"record": None}))
    check_methods([method], roles.params.roles.get("rewriter", "offline"))
    noted, requests = roles.noted()
    samples = noted.evaluate([example], ["original", method], repeats, quiet)
    order = draw_source_order(example, roles.params.seed)
    return Trial(example, method, samples, order, requests, roles.source())


def trial_view(trial: Trial) -> HTML:
    """Show a page that was tried: what came out, both pages, the first answers, the prompts."""
    before, after = (trial.samples.iloc[i].to_dict() for i in (0, len(trial.samples) // 2))
    parts = [
        _card(head=[("", line) for line in trial.findings]),
        answers_view(trial.example, before, after),
        pages_view(trial.example, after),
        _card(folded=_sources(trial.example, trial.example.key_points[0], trial.order)),
        prompts_view(trial.requests),
    ]
    return HTML(Markup("\n").join(Markup(part.data) for part in parts))


def write_trial(trial: Trial, path: Path) -> None:
    """Write a page that was tried as one HTML file, which runs and loads nothing."""
    title = f"Tried: {label(trial.method)}"
    page = filled("trial.html", title=title, body=Markup(trial_view(trial).data))
    write_atomic(path, secured(page, []))


def page_form(roles: Roles) -> Any:
    """Return a form to try a page of one's own with these roles: paste texts, press run.

    It needs ipywidgets; without it, words that say so are returned.
    """
    try:
        import ipywidgets as widgets
    except ImportError:
        return in_words(
            "The form needs ipywidgets, which is not installed: `pip install ipywidgets`, and "
            "start the notebook's kernel anew. The cell above does the same without it."
        )
    offline = roles.params.recorded or roles.params.roles.get("rewriter", "offline") == "offline"
    known = [*MODEL_FREE_METHODS[1:], *OFFLINE_METHODS] if offline else METHODS[1:]
    wide = {"layout": widgets.Layout(width="98%"), "style": {"description_width": "8em"}}
    fields = {
        "page": widgets.Textarea(description="Your page", rows=8, **wide),
        "key_point": widgets.Text(description="Key point", **wide),
        "query": widgets.Text(description="Query", placeholder="the page's title", **wide),
        "others": widgets.Textarea(
            description="Other pages", rows=4, placeholder=f"each after a line of {_RULE}", **wide
        ),
    }
    methods = [(label(name), name) for name in known]
    method = widgets.Dropdown(description="Method", options=methods, value="key_point", **wide)
    button, result = widgets.Button(description="Run", button_style="primary"), widgets.HTML()

    def run(_: object) -> None:
        button.disabled, result.value = True, "Running …"
        try:
            given = {name: field.value for name, field in fields.items()}
            others = [part for part in given.pop("others").split(f"\n{_RULE}\n") if part.strip()]
            trial = try_page(roles, own_example(**given, others=others), method.value)
            result.value = str(trial_view(trial).data)
        except Exception as error:  # of whatever kind, it is to be read in the form
            result.value = Markup("<pre>{}</pre>").format(error)
        finally:
            button.disabled = False

    button.on_click(run)
    return widgets.VBox([*fields.values(), method, button, result])


def _present(sample: Mapping[Hashable, Any]) -> dict[str, Any]:
    """Return a row in which what is not there is None; parquet gives NaN for it."""
    return {
        str(name): None if np.ndim(value) == 0 and pd.isna(value) else value
        for name, value in sample.items()
    }


def _wanted(key_point: str) -> set[str]:
    return set(content_words(key_point))


def _box(
    title: str, body: str, verdict: tuple[str, str] | None = None, note: str = ""
) -> dict[str, Any]:
    """Return a box; one with a verdict is as high as its text, and not scrolled."""
    return {"title": title, "body": body, "verdict": verdict, "note": note}


def _card(**parts: Any) -> HTML:
    """Return a card: a flow of steps, lines, boxes side by side, texts that unfold, a last line.

    Its colours are of the page's scheme: JupyterLab's theme, in a report the reader's, else light.
    """
    empty: dict[str, Any] = {"flow": [], "head": [], "boxes": [], "folded": [], "foot": ""}
    return HTML(filled("example.html", **(empty | parts)))


def _cut(text: str) -> str:
    if len(text) <= _SHOWN_CHARS:
        return text
    return f"{text[:_SHOWN_CHARS]}\n[{len(text) - _SHOWN_CHARS:,} more characters are not shown]"


def marked_changes(before: str, after: str, wanted: set[str]) -> tuple[Markup, Markup]:
    """Return both texts as HTML, removed words in <del>, added ones in <ins>.

    Args:
        before: Text as it was.
        after: Text as it is.
        wanted: Stems to highlight in both.
    """
    old, new = _TOKEN.findall(before), _TOKEN.findall(after)
    # The junk heuristic blurs short texts, and a page of thousands of words needs it.
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=len(old) + len(new) > 4000)
    shown = []
    for tokens, tag in ((old, "del"), (new, "ins")):
        changed = Markup(f"<{tag}>{{}}</{tag}>")
        pieces: list[str] = []
        for kind, *ends in matcher.get_opcodes():
            start, end = ends[:2] if tag == "del" else ends[2:]
            text = _highlighted("".join(tokens[start:end]), wanted)
            pieces.append(text if kind == "equal" or not text else changed.format(text))
        shown.append(Markup().join(pieces))
    return shown[0], shown[1]


def _excerpt(text: str, wanted: set[str], size: int | None) -> str:
    """Return the stretch of so many words that holds most of the wanted ones."""
    tokens = _TOKEN.findall(text)
    places = [i for i, token in enumerate(tokens) if token[:1].isalnum()]
    if size is None or len(places) <= size:
        return text
    hits = [stem(tokens[i]) in wanted and tokens[i].lower() not in STOPWORDS for i in places]
    sums = np.concatenate(([0], np.cumsum(hits)))
    counts = sums[size:] - sums[:-size]
    best = np.flatnonzero(counts == counts.max())
    first = int(best[len(best) // 2])  # in the middle of equals, so that both sides are seen
    behind = len(places) - first - size
    start = places[first] if first else 0
    end = places[first + size - 1] + 1 if behind else len(tokens)
    left_out = [f"(… {count:,} word{'s' * (count > 1)})" * (count > 0) for count in (first, behind)]
    return " ".join(filter(None, [left_out[0], "".join(tokens[start:end]), left_out[1]]))


def _highlighted(text: str, wanted: set[str]) -> Markup:
    pieces, last = [], 0
    for start, end, word in word_spans(text):
        if word.lower() not in STOPWORDS and stem(word) in wanted:
            pieces += [text[last:start], _MARKED.format(text[start:end])]
            last = end
    return Markup().join([*pieces, text[last:]])


def _answer(answer: str, key_point: str, wanted: set[str], target: int) -> Markup:
    """Return an answer as HTML, the passage that says most of the key point underlined."""
    split, places, last = sentences(answer), [], 0
    for sentence in split:
        start = answer.find(sentence, last)
        last = max(start, last) + len(sentence)
        places.append((start, last))
    found = coverage(key_point, split)
    if not found.score:
        return _cited(answer, wanted, target)
    start, end = max(places[found.start][0], 0), places[found.end - 1][1]
    parts = (answer[:start], answer[start:end], answer[end:])
    before, passage, behind = (_cited(part, wanted, target) for part in parts)
    return Markup("{}<u>{}</u>{}").format(before, passage, behind)


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
    return "#707070" if number < 1 else _SOURCE_COLOURS[(number - 1) % len(_SOURCE_COLOURS)]
