import pytest
from hypothesis import given
from hypothesis import strategies as st

from geo_utils import citations
from geo_utils.citations import citation_numbers, parse_answer, strip_citations


@pytest.mark.parametrize(
    ("answer", "citations"),
    [
        ("Tides rise [1].", [(0,)]),
        ("Tides rise [1][2].", [(0, 1)]),
        ("Tides rise [1, 2].", [(0, 1)]),
        ("Tides rise [1,2,5].", [(0, 1, 4)]),
        ("Tides rise [1-3].", [(0, 1, 2)]),
        ("Tides rise [1–3].", [(0, 1, 2)]),
        ("Tides rise [Source 1].", [(0,)]),
        ("Tides rise [source 2, source 3].", [(1, 2)]),
        ("Tides rise [Sources 1 and 4].", [(0, 3)]),
        ("Tides rise 【1】.", [(0,)]),
        ("Tides rise 【1】【2】。", [(0, 1)]),
        ("Tides rise [^2].", [(1,)]),
        ("Tides rise [1](https://example.org/a).", [(0,)]),
        ("Tides rise. [1] Boats wait. [2]", [(0,), (1,)]),
        ("Tides rise.[1][2] Boats wait.[3]", [(0, 1), (2,)]),
        ("Tides rise.[1]\nBoats wait.", [(0,), ()]),
        ('He said "it rises."[1] Boats wait.', [(0,), ()]),
        ("Tides rise [1] and fall [1] twice [2].", [(0, 1)]),
        ("- Tides rise [3]\n- Boats wait [4]", [(2,), (3,)]),
        ("Nothing is cited here.", [()]),
        ('It was "caused by the moon." [1]. Winds matter here [2].', [(0,), (1,)]),
        ("潮汐每天两次。[1]风也有影响。[2]", [(0,), (1,)]),
        ("Приливы растут.[1]Ветер важен.[2]", [(0,), (1,)]),
        ("[1] says tides come. [2] reports that winds matter.", [(0,), (1,)]),
        ("The study by Smith et al. [1] found tides.", [(0,)]),
        ("Tides rise [1].\n\nReferences:\n[1] Tides.\n[2] Winds.", [(0,)]),
        ("Tides rise [1].\n\n[1]: http://a\n[2]: http://b", [(0,)]),
        ("Tides rise [1]–[3].", [(0, 1, 2)]),
        ("Tides rise \\[1\\].", [(0,)]),
        ("Tides rise [[2]](https://example.org/a_(b)).", [(1,)]),
        ("Tides rise **[2]**.", [(1,)]),
        ("Tides rise<sup>[1]</sup>. Boats wait.", [(0,), ()]),
        ("Tides rise 【2†source】.", [(1,)]),
        ("Tides rise ［1］.", [(0,)]),
        ("Tides rise [Source: 1] and [cite: 2].", [(0, 1)]),
        ("Tides rise [1 2].", [(0, 1)]),
        ("[1][2]", [(0, 1)]),
        ("潮水上涨[1]。船在等[2]。", [(0,), (1,)]),
        ("", []),
        # a raised number is a citation after a word, a mark or a year; else it is a power
        ("Tides rise.³ Boats wait.", [(2,), ()]),
        ("Tides rise<sup>1,2</sup>. Boats wait.", [(0, 1), ()]),
        ("It began in 2019³ here.", [(2,)]),
        ("It rose by 40 %⁵ in a year.", [(4,)]),
        ("Some 5 km², 10³ tonnes, x² and 12² of them.", [()]),
        ("The 4<sup>th</sup> m<sup>2</sup> of Ca²⁺.", [()]),
        ('Linked<sup><a href="#r2">2</a></sup> it is.', [(1,)]),
        # brackets of code and mathematics are none
        ("Use `items[2]` for this [3].", [(2,)]),
        ("```python\nx = items[2]\n```\nIt works [1].", [(), (), (), (0,)]),
        ("If $a[1] + b_2[3]$ is 1, stop [2].", [(1,)]),
        ("It costs $5 [1] or $7 [2].", [(0, 1)]),
        (r"With \(y[2]\) and \[ x[1] = 3 \] it holds [4].", [(3,)]),
        ("The field my_list[2] and x[1] == 3 are set [1].", [(0,)]),
        ("On the interval [1, 2] it grows [3].", [(2,)]),
        ("The Moon[2] pulls.", [(1,)]),
        ("AB² + BC² = AC², E = mc², σ², χ² = 4, 30 hectares² and 1024² [1].", [(0,)]),
        ("At 9.81 m·s⁻² and 10⁻³ mol it holds [2].", [(1,)]),
        ("Tides rise <sup>1</sup>. The Moon ² pulls. It is ¹⁴C [3].", [(0,), (1,), (2,)]),
        ("The rate was 3 (95 % CI: [2, 5]) [1].", [(0,)]),
        ("A score in [1, 5], x in [1, 2], v = [1, 2, 3], a rating of [1-5] stars [4].", [(3,)]),
        ("The matrix [[1, 2], [3, 4]] is one [2].", [(1,)]),
        ("~~~\nx = items[2]\n~~~\nIt works [1].", [(), (), (), (0,)]),
        ("<code>items[2]</code>, sys.argv[1], foo(x)[1] and M[1,2] are code [3].", [(2,)]),
        ("a[1] + b[2] = c[3] is said by [4].", [(3,)]),
        (r"\begin{equation} q[1] \end{equation} holds [2].", [(1,)]),
        ("Tides rise ([1], [2]). They fall [1], [2], and [3].", [(0, 1), (0, 1, 2)]),
        ("Tides rise __[1]__ and *[2]*.", [(0, 1)]),
        ("Tides rise… [1] Boats wait.", [(0,), ()]),
        ("Tides rise (source #2) or （来源1） or 〔3〕.", [(1, 0, 2)]),
        # in parentheses with a word
        ("Tides rise (Source 2). Boats wait (sources 1 and 3).", [(1,), (0, 2)]),
        ("Tides rise (ref. 2; source: 4).", [(1, 3)]),
        ("Tides rise (page 3).", [()]),
        # before a name in lower case a sentence begins, before a verb it goes on
        ("It costs less. [1] iPhones cost more [2].", [(0,), (1,)]),
        ("It costs less.[1] eBay sells it.[2] macOS runs.", [(0,), (1,), ()]),
        ('He said "no." [1] de Gaulle left [2]. von Braun stayed. [3]', [(0,), (1,), (2,)]),
        ("It is fast. [1] pandas is a library. [2] adidas has shoes.", [(0,), (1,), ()]),
        ("It is fast. [1] which is so. Smith et al. [2] also are sure.", [(), (0, 1)]),
        # an address has brackets of its own; what stands at its end is a citation
        ("See https://example.org/a[1]/b and www.example.org/?q[2]=3&r[1][2]=4 [3].", [(2,)]),
        ("See https://example.org/x[1], or (https://example.org/my_page[2]).[3]", [(0, 1, 2)]),
        ("It is at http://[::1]:8080/ and doi:10.1016/S0140-6736[05]67889-1 [2].", [(1,)]),
        ("Read https://example.org/a.[1][2] Boats wait.", [(0, 1), ()]),
        ("[1](https://example.org/a)[2](https://example.org/b[3].html) say so.", [(0, 1)]),
        (
            "Tides rise ([Tides](https://example.org/a[4]/b))[2]. Is it https://a.org[1]?",
            [(1,), (0,)],
        ),
        (
            "Die Flut steigt [Quellen 1, 2]. 船在等【来源：3】。 Она растёт [источник 4].",
            [(0, 1), (2,), (3,)],
        ),
        ("Rise &lsqb;1&rsqb; and &#x5B;2&#x5D; [[3], [4]].", [(0, 1, 2, 3)]),
        ("Tides rise¹·². Boats wait⁽³⁾.", [(0, 1), (2,)]),
        ("In the U.S. [1] tides are low, at approx. [2] 3 m.", [(0, 1)]),
        (
            "It ends. [1] 3 boats came. [2] mRNA is new. [3] e-mail is old.",
            [(0,), (1,), (2,), ()],
        ),
        ("Some say it rises.[1], others that it falls.[2]", [(0,), (1,)]),
        # a mark at the head of a paragraph is its first sentence's
        ("[1]\nTides rise.\n\n[2]\nBoats wait.\n\n[3]", [(0,), (1, 2)]),
        # arrays, prompts of IPython, paths and measures
        ("The array [3, 1], the vector [1, 2], x=[1] and [[1, 2], [3]] are [4].", [(3,)]),
        ("In [1]: x = b_[2]\nOut[1]: b[2]\nx = a[1]\nIt works [3].", [(), (), (), (2,)]),
        (r"D:\a[1]\b, page[2].html, /usr/x[3]/y and see a.org/x[4].", [(3,)]),
        ("A dose of [5-10] mg at [20, 25] °C for [1–2] hours helps [3].", [(2,)]),
        ("It takes 3 days[1] and 4 h[2], or [3,\n4] with a break.", [(0, 1, 2, 3)]),
        (
            "Rise<sup>1</sup><sup>2</sup> here.<sup><a href='#3'>3</a></sup> <sup>[4]</sup>",
            [(0, 1, 2, 3)],
        ),
        ("Tides rise [1\u20113] and fall [4\u22125].", [(0, 1, 2, 3, 4)]),
        # raised marks in LaTeX and HTML; in brackets they are citations after any word
        ("Rise$^{[1, 2]}$ on 3 m$^{2}$ and $10^{3}$ of km<sup>[4]</sup>.", [(0, 1, 3)]),
        ("Rise\\textsuperscript{2} and fall&sup1;.", [(1, 0)]),
        ('Rise<sup id="r"><a href="#a"><b>[3]</b></a></sup><sup>,</sup><sup>4</sup>.', [(2, 3)]),
        ("Rise ¹ ² in the USA³, after COVID-19⁴. Miles² and R³ are none.", [(0, 1, 2, 3), ()]),
        ("潮汐²上升。", [(1,)]),
        ("Tides rise¹ and fall².\n\n¹ NOAA\n² Winds", [(0, 1), (), ()]),
        # a mark in odd dress
        ("Rise [^1^], [2\n], \\\\[3\\\\], [Source [4]], [[5] [1]].", [(0, 1, 2, 3, 4)]),
        (
            "Rise \\[[1](https://a.org)\\], [2](./a.html), [3](https://a.org 'A')^[4].",
            [(0, 1, 2, 3)],
        ),
        # code and mathematics
        ("Use [1-3]+, [2-4]{2}, max([1, 2]) and {'a': [3, 4]} [5].", [(4,)]),
        ("<kbd>items[1]</kbd> and <code class='py'>items[2]</code> [3].", [(2,)]),
        ("````\nitems[1]\n```\nitems[2]\n````\nIt works [3].", [(), (), (), (), (), (2,)]),
        ("A fence is opened by ``` [1]. So it is [2].", [(0,), (1,)]),
        ("_It rises_[1], __always__[2], the tide(s)[3].", [(0, 1, 2)]),
        ("Rise ![2](https://a.org/2.png) [1].", [(0,)]),
        # a fence around prose
        ("```markdown\nTides rise [1]. Boats wait [2].\n```", [(0,), (1,)]),
        ("```\nTides rise [1].\n```\n", [(0,)]),
        # marks that lead, and marks behind quotation marks of other languages
        ("[1] Tides rise. [2] Boats wait.", [(0,), (1,)]),
        ("[1] NASA says so. [2] It falls. [3]", [(0, 1), (2,)]),
        ("Er sagte: „Die Flut steigt.“ [1] Danach fiel sie. [2]", [(0,), (1,)]),
        ("Il dit « la marée monte. » [1] Puis elle baisse. [2]", [(0,), (1,)]),
    ],
)
def test_citations_of_sentences(answer, citations):
    assert [s.citations for s in parse_answer(answer, 5).sentences] == citations


@pytest.mark.parametrize(
    ("answer", "out_of_range", "unparsed"),
    [
        ("A [0] b [6] c [2].", (0, 6), ()),
        ("See [Figure 2a] and [12 May].", (), ("[Figure 2a]", "[12 May]")),
        ("An aside [sic] is no citation.", (), ()),
        ("Odd [3-1] and [1-9999].", (), ("[3-1]", "[1-9999]")),
        ("It lies in [0, 1] or [0-3] or [0].", (0,), ("[0, 1]", "[0-3]")),
        (
            "Tides rise (2). Boats wait (1, 3). In 2019 (12 of them) they did.",
            (),
            ("(2)", "(1, 3)"),
        ),
        (
            "See [page 2], [doc 1, page 3] and \u2460.",
            (),
            ("[page 2]", "[doc 1, page 3]", "\u2460"),
        ),
        ("In [2019], [3.5] and [1, p. 3].", (2019,), ("[3.5]", "[1, p. 3]")),
        # what may be an index or an interval, and marks in other brackets
        ("The letter b[1], f(x)[2] and my_list[3].", (), ("[1]", "[2]", "[3]")),
        ("Rise (1)(2); fall ((3)).", (), ("(1)", "(2)", "(3)")),
        ("Rise ⟦1⟧, «2», <ref>3</ref>.", (), ("⟦1⟧", "«2»", "<ref>3</")),
        ('Rise <source id="2"> (as in Source 1).', (), ('<source id="2">', "(as in Source 1)")),
    ],
)
def test_what_went_wrong_is_reported(answer, out_of_range, unparsed):
    parsed = parse_answer(answer, 5)
    assert parsed.out_of_range == out_of_range
    assert parsed.unparsed == unparsed


@pytest.mark.parametrize(
    "references",
    [
        "Sources:\n[1] Tides\n[2] Winds",
        "#Sources\n- [2] Winds, 2019.",
        "## References\n\n1. Tides (https://example.org).\n2. Winds.",
        "### Works cited\n* Smith. https://example.org/a_(b)\n* [2] Jones",
        "**References:** [1], [2]",
        "Sources: [1] Tides, [2] Winds",
        "Source list:\n(1) Tides\n(2) Winds",
        "[^1]: Tides\n[^2]: Winds",
        "[1] https://example.org\n[2] Winds, www.example.org",
        "1. https://example.org/1\n2. https://example.org/2",
        "Quellen:\n[1] Gezeiten\n[2] Wind",
        "**Références**\n\n- [2](https://example.org)",
        "Fuentes: [2]",
        "参考文献：\n[1] 潮汐\n[2] 风",
        "出典\n【2】 風",
        "Источники:\n1. Приливы\n2. Ветер",
        "المصادر:\n[2] الرياح",
        "Source: [2]",
        "**Sources used:**\n[2] Winds",
        "Sources (5):\n+ [2] Winds",
        "SOURCES\n=======\n[2] Winds",
        "<h2>References</h2>\n[2] Winds",
        "Fuentes consultadas:\n[2] Vientos",
        "Список литературы:\n[2] Ветер",
        "[2] doi:10.1000/182",
        "[2] [Winds](https://example.org)",
        "Sources:\n\n| # | Title |\n|---|---|\n| [2] | Winds |",
        "---\n\n*Sources*\n\n[2]: Winds\n    of the coast",
        "Source(s):\n[2] Winds",
        "Sources: NOAA [1], The Winds [2]",
        "Ouvrages cités :\n[2] Vents",
        "Zitierte Quellen:\n- [2] Wind",
        "Referências bibliográficas\n[2] Ventos",
        "参考网站：\n1. 潮汐\n2. 风",
        "## 5. Bibliography and links\n- [2] Winds",
        "---\n[1] NOAA: Tides\n[2] Winds, a survey.",
        "Referenced sources: [2]",
        "Reference(s):\n[2] Winds",
        "For further reading:\n[2] Winds",
        "Sources cited in this answer:\n[2] Winds",
        "*Sources: 1, 2, 3*",
        "<details><summary>Sources</summary>\n\n[2] Winds\n</details>",
        "<references>\n[2] Winds\n</references>",
        "References (APA style)\n**[2]** Winds",
        "Lista de referencias\n・[2] Vientos",
        "Sources → [2]",
        "Sources: [Tides](https://a.org) [1], [Winds](https://b.org) [2]",
        "Sources:\n［2］Winds\n[[3]] Boats\n\\[4\\] Men\n`[5]` Sea",
        "Sources:\n<sup>2</sup> Winds\n³ Boats\n④ Men\n5 - Sea",
        "[Source 1]: Tides\n[Source 2]: Winds",
        "## Источники и литература\n1. Приливы [1]\n2. Ветер [2]",
        "Källförteckning:\n[2] Vind",
        "引用来源\n1. 潮汐[1]\n2. 风[2]",
        "Šaltiniai:\n[2] Vėjas",
        "[^1]: Tides\n\n    A second paragraph.\n[^2]: Winds",
        "[1] noaa.gov\n[2] winds.org/a",
        "[1] NOAA Tides\n    a.org\n\n[2] Winds of the coast",  # of which half are cited
    ],
)
def test_a_list_of_sources_at_the_end_credits_nobody(references):
    parsed = parse_answer(f"Tides rise [1]. Boats wait.\n\n{references}\n", 5)
    assert [s.citations for s in parsed.sentences] == [(0,), ()]
    assert not parsed.unparsed and not parsed.out_of_range


@pytest.mark.parametrize(
    "ending",
    [
        "Steps:\n1. Wait [1].\n2. Sail [2].",
        "Sources of water are many [2].",
        "The references\n\nA letter is wanted [2].",
        "[1] says so. [2] does not.",
        "---\n\n[1] says so. [2] does not.",
        "Sources: NOAA says tides rise [2].",
        "**Sources:**\n- Sunlight gives most of it [2]\n- Fish has some [3]",
        "[2] reports winds (see https://example.org).",
        "References: employers check them, as [2] found.",
        "Fonts\n\n- Arial is one [2].",
        "Overview:\n\n[1] Rise is twice\n[2] Wind is strong",
        "They rise [1] and blow [2].\n\n- [1] Tides rise twice a day.\n- [2] Winds are strong.",
        "Energy sources:\n1. Sun gives most [2].\n2. Wind gives some [3].\n\nBoth are clean.",
    ],
)
def test_what_an_answer_says_last_is_no_list_of_sources(ending):
    parsed = parse_answer(f"Tides rise.\n\n{ending}", 5)
    assert 1 in {c for s in parsed.sentences for c in s.citations}


def test_what_stands_around_a_list_of_sources_stays():
    parsed = parse_answer("Tides rise [1].\n\nSources:\n[2] Winds\n\nI hope this helps!", 5)
    assert [s.citations for s in parsed.sentences] == [(0,), ()]
    behind = parse_answer("Tides rise [1]. References: [2] Winds, 2019. [3] Boats.", 5)
    assert [s.citations for s in behind.sentences] == [(0,)]
    nothing_else = parse_answer("[1]: According to it, tides rise.", 5)
    assert [s.citations for s in nothing_else.sentences] == [(0,)]


def test_sentences_lose_their_marks_and_keep_their_paragraph():
    parsed = parse_answer("Tides rise. [1]\n\nBoats wait [2], always.", 2)
    assert [(s.text, s.paragraph) for s in parsed.sentences] == [
        ("Tides rise.", 0),
        ("Boats wait, always.", 1),
    ]


PIECES = [*"[]()<>{}`~$\\!^=∈:;,.–-'_/aI \n", "In", "12", "[1]", "range", "www", "doi", "x.py"]


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_code_and_addresses_are_looked_for_wherever_one_may_be(text):
    if not citations._MAYBE_CODE.search(text):
        assert citations._CODE.split(text) == [text]
    if not citations._MAYBE_ADDRESS.search(text):
        assert not citations._ADDRESS.search(text)


@pytest.mark.parametrize(
    ("inside", "numbers"),
    [
        ("1", [1]),
        ("2-4", [2, 3, 4]),
        ("1; 3 & 5", [1, 3, 5]),
        ("a1", None),
        ("", None),
        ("1.5", None),
    ],
)
def test_citation_numbers(inside, numbers):
    assert citation_numbers(inside) == numbers


def test_stripping_keeps_code_powers_and_other_brackets():
    code = "`items[2]`, a[0] = 1, [0, 1], 10³ and $x[1]$"
    assert strip_citations(f"{code} [1]") == code
    address = "See http://[::1]/?sort[1]=up and https://example.org/my_page"
    assert strip_citations(f"{address}[1], now.") == f"{address}, now."
    assert strip_citations("In 2019³ and 2020<sup>4</sup>.") == "In 2019 and 2020."
    assert strip_citations("Rise [1], fall [2]. See [note].") == "Rise, fall. See [note]."


@given(st.lists(st.lists(st.integers(1, 5), max_size=4), min_size=1, max_size=6))
def test_what_is_written_is_read(groups):
    answer = " ".join(
        f"Sentence number {i} ends here {''.join(f'[{c}]' for c in group)}."
        for i, group in enumerate(groups)
    )
    expected = [tuple(dict.fromkeys(c - 1 for c in group)) for group in groups]
    assert [s.citations for s in parse_answer(answer, 5).sentences] == expected


@given(st.text(max_size=300))
def test_any_text_can_be_parsed(text):
    for sentence in parse_answer(text, 3).sentences:
        assert all(0 <= c < 3 for c in sentence.citations)
