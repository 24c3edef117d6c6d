"""Claims against claims: is a rewritten page still the original, and nothing but the original?"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import pandas as pd
import regex

from geo_utils.corpus import Example, KeyPointChoice, choose_key_points
from geo_utils.lexical import SUPPORT_THRESHOLD, coverage, idf
from geo_utils.lint import new_instructions
from geo_utils.models.loops import gather_all, run_sync
from geo_utils.roles.by_model import ModelJudge
from geo_utils.roles.judges import Judge, Verdict
from geo_utils.roles.methods import is_arm
from geo_utils.text import NEGATORS, STOPWORDS, content_words, negated_words, sentences, stem, words

# Chosen on the open half of the pages that `fidelity` quotes. Share of two sentences' weight that
# they have in common: enough to be the same claim where the order of the pages agrees, and enough
# to be the same sentence, of which every changed word can be told. Share of one sentence's weight
# that another holds, wherever it stands: enough to be supported, and to be a repetition.
SAME, NEAR = 0.15, 0.75
HELD, SAID = 0.5, 0.6
# How often a page may say a claim: in its place, first, last and once more in between.
MOST_SAID = 4
# What a contradicted or repeated claim costs, so that one is enough to fail a gate of 0.8.
FLAW = 0.25
BY_WORDS, BY_MODEL = 0.8, 0.9  # see `least_fidelity`
# Of a word that a page has often, the places nearest to where the claim stands on its own page.
_PLACES = 16

# Dress, not content. Bullets and list numbers go too, since a rewrite may turn prose into a list.
_LINE_MARK = re.compile(r"(?m)^[ \t]*(?:(?:#+|[-+*>•]|\d{1,3}[.)])[ \t]+)+")
_EMPHASIS = re.compile(r"\*+|~~+|`+|(?<!\w)_+|(?<!_)_+(?!\w)")
# A reference mark is no figure: a page that loses its footnotes has changed no claim.
_REFERENCE = re.compile(r"\[\d{1,3}(?:\s*[,-]\s*\d{1,3})*\]")

_FIGURE = regex.compile(r"(?<![\p{L}\p{N}_])\d+(?:[.,]\d+|, \d{3}\b)*(?!\p{L})")
_RANGE = regex.compile(r"(\d{1,3})-? ?(?:to|[-\u2013]) ?(\d{1,3})(?!\d)")
_LABEL = re.compile(r"^[^:]{0,60}:\s")
# Upper case within a sentence; how a unit is written out is no matter.
_NAME = regex.compile(r"(?<=[\p{Ll}\p{N},;)]\s+)(?!Celsius|Fahrenheit)\p{Lu}[\p{L}\p{M}\p{N}]+")
# Words of order, where two things put the other way about turn a claim round.
_ORDERED = re.compile(r"\bthan\b|[,;] not\b|\bbut\b")
_CERTAIN = re.compile(r"(?i)\b(?:without (?:exception|fail)|bound to|no doubt)\b")
_LISTS: dict[str, Any] = json.loads(
    (Path(__file__).parent / "data" / "claim_words.json").read_text(encoding="utf-8")
)
_AMOUNTS = {word: float(n) for n, listed in _LISTS["amounts"].items() for word in listed.split()}
_OPPOSITES = [pair.split() for pair in _LISTS["opposites"]]
# Words beside NEGATORS that turn a claim round where one comes or goes; words that hold one beyond
# doubt, beyond exceptions, with exceptions or doubts, in doubt.
_TURNS, _SURE, _ALL, _UNSURE, _DOUBT = (
    frozenset(_LISTS[name].split()) for name in ("turns", "sure", "all", "unsure", "doubt")
)
_TURN_STEMS = frozenset(map(stem, _TURNS))


class Claim(NamedTuple):
    """A sentence of a page, and what became of it or where it comes from.

    Attributes:
        text: The sentence, without Markdown and reference marks.
        label: Of the original `kept`, `changed` or `lost`; of the rewritten page `supported`,
            `new`, `contradicted` or `repeated`.
        size: Its content words.
    """

    text: str
    label: str
    size: int


@dataclass(frozen=True)
class Fidelity:
    """How far a rewritten page says what its original says, claim by claim.

    Attributes:
        original: The original's claims.
        page: The rewritten page's.
    """

    original: tuple[Claim, ...]
    page: tuple[Claim, ...]

    @property
    def kept(self) -> float:
        """Share of the original that the page keeps, by content words; 1 if it claims nothing."""
        return _share(self.original, "kept")

    @property
    def grounded(self) -> float:
        """Share of the page that is supported, by content words; 1 if it claims nothing."""
        return _share(self.page, "supported")

    @property
    def flaws(self) -> int:
        """How many claims are contradicted or said too often."""
        before = Counter(claim.label for claim in self.original)
        after = Counter(claim.label for claim in self.page)
        return (after["contradicted"] or before["changed"]) + after["repeated"]

    @property
    def score(self) -> float:
        """The worse of kept and grounded, less FLAW for each flaw; at least 0."""
        return max(0.0, min(self.kept, self.grounded) - FLAW * self.flaws)

    def row(self) -> dict[str, float]:
        """Return the columns that a samples table has of it."""
        new = sum(claim.label == "new" for claim in self.page)
        values = self.kept, self.grounded, self.score, new, self.flaws
        return dict(zip(COLUMNS, map(float, values), strict=True))


# Of a samples table; `fidelity` is the score.
COLUMNS = ("kept", "grounded", "fidelity", "new_claims", "flaws")


def _share(claims: Iterable[Claim], label: str) -> float:
    sizes = Counter[bool]()
    for claim in claims:
        sizes[claim.label == label] += claim.size
    return sizes[True] / sizes.total() if sizes else 1.0


async def page_fidelity(
    original: str, page: str, also: Sequence[str], judge: Judge | None
) -> Fidelity | None:
    """Compare a rewritten page with its original by the judge, if that is a model, else by words.

    Args:
        original: The page before the rewrite.
        page: The page after it.
        also: Further texts, as in `fidelity`.
        judge: One that is a model and gives verdicts with a reason is asked about all claims of
            both pages by one call, unless the page is the original. What is repeated word by word
            is found without it all the same.

    On the pages that `fidelity` was measured on, with the verdicts of a large language model that
    saw claims alone (`tests/data/fidelity_verdicts.jsonl`; `measure_fidelity.py WHICH --judge
    told`), a gate of 0.9 is right on all 60 of the open half, on which it was chosen, all 60 of the
    sealed half, and 99 of 100 by another hand; the prompt was asked about repetitions only after
    a first reading of the last two had missed 17. Of 60 fresh pages by a third hand, read once and
    after that, it is right on all; by words alone on 51. A model of 1.5B parameters gave no
    readable verdict on any of the first 220.

    Returns:
        None where the judge gave no verdict on every claim.
    """
    found = fidelity(original, page, also)
    if page == original or not _compares(judge):
        return found
    claims = [claim.text for claim in found.original], [claim.text for claim in found.page]
    labels = await judge.judge_claims(claims[0], claims[1], also)
    if labels is None:
        return None
    judged = iter(labels)
    before = tuple(claim._replace(label=next(judged)) for claim in found.original)
    after = [claim._replace(label=next(judged)) for claim in found.page]
    return Fidelity(before, tuple(map(_repeated, found.page, after)))


def least_fidelity(judge: Judge | None, given: float | None = None) -> float:
    """Return the least fidelity of a page that is faithful, by what compares the pages.

    Chosen on the open half (see `fidelity`): by words, honest paraphrases stand near the lower
    figure; a model gives them 0.98 and more, and pages with three invented claims 0.84 and less.

    Args:
        judge: Of the comparison.
        given: What the user asked for.
    """
    if given is not None:
        return given
    return BY_MODEL if _compares(judge) else BY_WORDS


def _compares(judge: Judge | None) -> TypeGuard[ModelJudge]:
    return isinstance(judge, ModelJudge) and not judge.soft


def _repeated(by_words: Claim, judged: Claim) -> Claim:
    return by_words if by_words.label == "repeated" else judged


def fidelity(original: str, page: str, also: Sequence[str] = ()) -> Fidelity:
    """Compare a rewritten page with its original by words alone.

    Claims are sentences. Two pages of the same claims have them in much the same order, so pairs
    of sentences that share SAME of their weight (IDF) are chained in the order of both pages, and
    up to two sentences a side between two links are taken for each other. Beside the chain, a
    sentence is supported or kept where one sentence holds HELD of its weight, wherever it stands.
    A claim is contradicted or changed if

    - a figure, or a name within its sentence, stands nowhere on the original page,
    - a figure has gone from the page, and the sentence that says the rest has another,
    - it became certain (always, proved) where the original has exceptions or doubts,
    - in a sentence that shares NEAR of its weight: a number word is another, all or never stands
      for some or seldom, a doubt came in, or an odd number of negations, opposites and things put
      the other way about (than, but, not) does.

    Of the original a claim is changed where only contradicted sentences say it, and lost where
    its figure has gone from the page. A sentence that MOST_SAID sentences before it hold to SAID of
    its weight is repeated, unless the original says it as often.

    Measured by `python tests/measure_fidelity.py [open|sealed|others]` at a gate of 0.8, on 120
    rewrites of the sample's target pages that were written before the gate, by its author; a sealed
    half was measured once, when it was done. Judged rightly, open and sealed half, of 6 each:
    paraphrase 6 and 6, plain language 5 and 5, extension 6 and 6, omission 6 and 6, a claim pasted
    once or twice 6 and 6, a claim repeated seven times or more 6 and 5, changed number 6 and 4,
    changed name 4 and 5, negation 4 and 2, changed hedge 6 and 6. (The gate before this one passed
    none of the 24 paraphrases and plain pages, and was right on 53 of the 120.) What it misses are
    names in lower case, and claims turned round in pages that are freely worded. On 100 pages that
    another hand wrote afterwards, without knowing the gate, it is right on 68, of 10 each:
    paraphrase 9, plain language 8, extension 10, omission 8, pasted claim 8, repeated claim 2 (said
    eight times, each time in other words), changed number 7, name 5, negation 6, hedge 5. So by
    words alone, honest rewrites mostly pass, and so do 17 of 40 small lies. Other pages of the
    sample: of the same query a mean score of 0.03, of another query 0.01.

    Args:
        original: The page before the rewrite. Markdown marks do not matter.
        page: The page after it.
        also: Further texts that the page may draw on, such as the key point the rewrite is made
            for; none of them has to be kept.
    """
    before, after = _read(original), _read(page)
    further = [claim for text in also for claim in _read(text)]
    shared = _shared(before, after)
    known, given = _amounts([*before, *further]), _amounts(after)
    firm, loose, grounded = _aligned(before, after, shared)
    vouched = set()
    for j, claim in enumerate(after):
        for other in further:
            share = _weight(claim.stems & other.stems) / claim.weight
            if share >= HELD and not _conflict(other, claim, known):
                grounded.add(j)
                vouched |= {j} if share >= NEAR else set()
    names = {word.lower()[:4] for text in (original, *also) for word in words(text)}
    wrong = {
        j
        for j, claim in enumerate(after)
        if claim.figures - known or any(name[:4] not in names for name in claim.names)
    }
    wrong |= {j for i, j in firm if j not in vouched and _conflict(before[i], after[j], given)}
    said, right = {i for i, _ in firm | loose}, {i for i, j in firm | loose if j not in wrong}
    often = _said_too_often(after, shared)

    def label_before(i: int) -> str:
        if i in said and i not in right:
            return "changed"
        return "kept" if i in said and before[i].figures <= given else "lost"

    def label_after(j: int) -> str:
        if j in wrong or j in often:
            return "contradicted" if j in wrong else "repeated"
        return "supported" if j in grounded else "new"

    return Fidelity(_labelled(before, label_before), _labelled(after, label_after))


class _Sentence(NamedTuple):
    """What a sentence brings to a comparison."""

    text: str
    words: Counter[str]
    order: tuple[str, ...]  # of its content stems
    stems: frozenset[str]
    weight: float
    figures: frozenset[float]  # in digits
    amounts: frozenset[float]  # in digits or words
    names: frozenset[str]


def plain_sentences(page: str) -> list[str]:
    """Return a page's sentences that have content words, without Markdown and reference marks."""
    plain = _REFERENCE.sub("", _EMPHASIS.sub("", _LINE_MARK.sub("", page)))
    return [sentence for sentence in sentences(plain) if content_words(sentence)]


@lru_cache(maxsize=2048)
def _read(page: str) -> tuple[_Sentence, ...]:
    return tuple(map(_sentence, plain_sentences(page)))


def _sentence(text: str) -> _Sentence:
    order, found = content_words(text), words(text)
    stems, lowered = frozenset(order), Counter(word.lower() for word in found)
    figures = frozenset(map(_value, _FIGURE.findall(text)))
    amounts = {_AMOUNTS[word] for word in lowered.keys() & _AMOUNTS.keys()}
    for first, last in _RANGE.findall(text):  # 8- to 10-speed: 9 as well
        amounts |= set(map(float, range(int(first), min(int(last), int(first) + 20))))
    names = {name.lower() for name in _NAME.findall(_LABEL.sub("", text))} - STOPWORDS
    if 2 * sum(word[0].isupper() for word in found) > len(found):  # a title, where all are
        names = set()
    return _Sentence(
        text, lowered, order, stems, _weight(stems), figures, figures | amounts, frozenset(names)
    )


def _value(figure: str) -> float:
    whole = regex.sub(r",(?=\d{3}\b)", "", figure.replace(" ", ""))
    first, *rest = re.split("[.,]", whole)
    return float(f"{first}.{''.join(rest)}")


def _weight(stems: Iterable[str]) -> float:
    return sum(map(idf, sorted(stems)))


def _amounts(claims: Iterable[_Sentence]) -> frozenset[float]:
    return frozenset[float]().union(*(claim.amounts for claim in claims))


def _labelled(claims: Sequence[_Sentence], label: Callable[[int], str]) -> tuple[Claim, ...]:
    return tuple(Claim(c.text, label(i), len(c.order)) for i, c in enumerate(claims))


def _shared(
    before: Sequence[_Sentence], after: Sequence[_Sentence]
) -> dict[tuple[int, int], float]:
    """Return the weight that two sentences have in common, of pairs that have any.

    A word that a page has often counts at its _PLACES nearest places only, so that the time grows
    with the length of the pages; sentences that are the same are found however often they stand.
    """
    places, same = defaultdict(list), defaultdict(list)
    for i, claim in enumerate(before):
        same[claim.text].append(i)
        for word in claim.stems:
            places[word].append(i)
    shared: defaultdict[tuple[int, int], float] = defaultdict(float)
    for j, claim in enumerate(after):
        for word in claim.stems & places.keys():
            near, weight = bisect_left(places[word], j * len(before) / len(after)), idf(word)
            for i in places[word][max(near - _PLACES // 2, 0) : near + _PLACES // 2]:
                shared[i, j] += weight
    seen = Counter[str]()
    for j, claim in enumerate(after):
        if claim.text in same:
            copies = same[claim.text]
            shared[copies[min(seen[claim.text], len(copies) - 1)], j] = claim.weight
            seen[claim.text] += 1
    return shared


def _aligned(
    before: Sequence[_Sentence],
    after: Sequence[_Sentence],
    shared: Mapping[tuple[int, int], float],
) -> tuple[set[tuple[int, int]], set[tuple[int, int]], set[int]]:
    """Return the pairs of sentences that say the same.

    Returns:
        The pairs that their words tell: chained in the order of both pages, or of a sentence and
        the one that holds most of it; those that their place between two links alone tells; and
        the sentences of the second page that either supports.
    """
    best: tuple[dict[int, Any], dict[int, Any]] = ({}, {})
    most: tuple[dict[int, Any], dict[int, Any]] = ({}, {})
    for (i, j), common in shared.items():
        alike = round(2 * common / (before[i].weight + after[j].weight), 9)
        off = -abs(i / len(before) - j / len(after))
        for side, own, other, whole in ((0, i, j, before[i]), (1, j, i, after[j])):
            if alike >= SAME:
                best[side][own] = max(best[side].get(own, (0, 0, 0)), (alike, off, other))
            if common >= HELD * whole.weight - 1e-9:
                most[side][own] = max(most[side].get(own, (0, 0, 0)), (common, off, other))
    pairs = {(i, j) for i, (_, _, j) in best[0].items()}
    chain = _longest_chain(sorted(pairs | {(i, j) for j, (_, _, i) in best[1].items()}))
    ends = [(-1, -1), *chain, (len(before), len(after))]
    between = {
        (i, j)
        for (i0, j0), (i1, j1) in pairwise(ends)
        if 2 <= i1 - i0 <= 3 and 2 <= j1 - j0 <= 3
        for i in range(i0 + 1, i1)
        for j in range(j0 + 1, j1)
    }
    held = {(i, j) for i, (_, _, j) in most[0].items()}
    supporting = {*chain, *((i, j) for j, (_, _, i) in most[1].items())}
    return held | supporting, between, {j for _, j in supporting | between}


def _longest_chain(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the longest run of sorted pairs in which the second numbers never fall."""
    ends: list[int] = []  # the least end of a run of each length, and which pair that is
    last: list[int] = []
    before: list[int] = []
    for k, (_, j) in enumerate(pairs):
        length = bisect_right(ends, j)
        before.append(last[length - 1] if length else -1)
        ends[length : length + 1], last[length : length + 1] = [j], [k]
    run, k = [], last[-1] if last else -1
    while k >= 0:
        run.append(pairs[k])
        k = before[k]
    return run[::-1]


def _conflict(a: _Sentence, b: _Sentence, given: Container[float]) -> bool:
    """Tell whether a sentence says otherwise what another says; see `fidelity`.

    Args:
        a: The original's.
        b: The rewritten page's.
        given: All amounts of that page.
    """
    if a.text == b.text:
        return False
    if b.amounts - a.amounts and any(figure not in given for figure in a.figures):
        return True
    lost, added = a.words - b.words, b.words - a.words
    certain = bool(_CERTAIN.search(b.text)) > bool(_CERTAIN.search(a.text))
    if lost.keys() & _UNSURE and (certain or added.keys() & _SURE):
        return True
    if 2 * _weight(a.stems & b.stems) < NEAR * (a.weight + b.weight):
        return False
    if (added.keys() & _ALL and lost.keys() & _UNSURE) or (
        added.keys() & _DOUBT and not a.words.keys() & _UNSURE
    ):
        return True
    if lost.keys() & _AMOUNTS.keys() and added.keys() & _AMOUNTS.keys() and a.amounts != b.amounts:
        return True
    opposites = sum((x in lost and y in added) or (y in lost and x in added) for x, y in _OPPOSITES)
    turned = opposites + len(_TURNS & (lost.keys() | added.keys()))
    if a.order != b.order and sorted(a.order) == sorted(b.order) and _ORDERED.search(a.text):
        turned += 1
    negated = _negations(a.words) + _negations(b.words)
    # A clause that came or went brought or took its own negation.
    flipped = negated % 2 and (_negated(a.text) ^ _negated(b.text)) & a.stems & b.stems
    others = len((a.stems ^ b.stems) - _TURN_STEMS)
    clear = opposites or (flipped and others <= 2) or (turned and not others)
    return (turned + negated) % 2 == 1 and bool(clear)


def _negations(found: Mapping[str, int]) -> int:
    negating = (w for w in found if w in NEGATORS or w.endswith(("n't", "n\u2019t")))
    return sum(found[word] for word in negating) - min(found["neither"], found["nor"])


def _negated(text: str) -> frozenset[str]:
    return negated_words(text.replace(". ", "; "))


def _said_too_often(page: Sequence[_Sentence], shared: Mapping[tuple[int, int], float]) -> set[int]:
    """Return the sentences of a page whose claim it has said often enough before.

    Args:
        page: The rewritten page.
        shared: Of the original and that page.
    """
    said, original = Counter[int](), Counter[int]()
    for counts, table in ((said, _shared(page, page)), (original, shared)):
        for (i, j), common in table.items():
            if common >= SAID * page[j].weight and (counts is original or i < j):
                counts[j] += 1
    return {
        j
        for j, claim in enumerate(page)
        if len(claim.stems) > 2 and said[j] >= max(MOST_SAID, original[j])
    }


def original_support(
    examples: Iterable[Example], judge: Judge, key_points: KeyPointChoice = "one", seed: int = 0
) -> dict[tuple[str, int], float]:
    """Ask the judge whether each original page supports its own key point.

    Returns:
        1.0, 0.0, or NaN for an abstention, by query and number of the key point.
    """
    pairs = choose_key_points(examples, key_points, seed)

    async def everything() -> list[Verdict]:
        return await gather_all(judge.judge(p.content, e.target) for e, p in pairs)

    verdicts = run_sync(everything())
    return {
        (e.query_id, p.number): np.nan if v.label is None else float(v.label == "supported")
        for (e, p), v in zip(pairs, verdicts, strict=True)
    }


def check_pages(samples: pd.DataFrame, examples: Iterable[Example], gate: float) -> pd.DataFrame:
    """Check each rewritten page: is it faithful, and does it neither instruct nor plant?

    Args:
        samples: As `evaluate.evaluate` returns it, with `original_supports` (NaN where nobody
            asked: the point then counts as the page's own).
        examples: The corpus.
        gate: Least fidelity.

    Returns:
        A row a sample: `instructions` (new ones, by the lint), `plants` (1.0 if the page says more
        of the key point than its original, which does not support it), `faithful` (1.0 if
        fidelity is at least the gate, and it neither instructs nor plants) and `strict` (supported
        by an answer to a faithful page). NaN where there is no page; `faithful` and `strict` also
        where the judge could not compare it.
    """
    corpus = {example.query_id: example for example in examples}

    def said(key_point: str, page: str) -> float:
        return coverage(key_point, sentences(page)).support()

    @cache
    def checked(query_id: str, key_point: str, page: str, own: bool) -> tuple[float, float]:
        original = corpus[query_id].target
        known = max(said(key_point, original), SUPPORT_THRESHOLD - 1e-9)
        plants = not own and said(key_point, page) > known
        return float(len(new_instructions(original, page))), float(plants)

    each: Iterable[Any] = samples.itertuples(index=False)
    rows = [
        checked(row.query_id, row.key_point, row.page, bool(row.original_supports != 0))
        if isinstance(row.page, str) and not is_arm(row.method)
        else (np.nan, np.nan)
        for row in each
    ]
    found = pd.DataFrame(rows, columns=["instructions", "plants"], index=samples.index)
    clean = found["instructions"].eq(0) & found["plants"].eq(0)
    passes = samples["fidelity"].ge(gate - 1e-9) & clean
    found["faithful"] = passes.astype(float).where(samples["fidelity"].notna() | ~clean)
    found.loc[found["plants"].isna(), "faithful"] = np.nan
    # A policy that wrote no page has failed, whatever the page would have been.
    found.loc[samples["verdict"].eq("no page"), "faithful"] = 0.0
    found["strict"] = samples["supported"] * found["faithful"]
    return found
