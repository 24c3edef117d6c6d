import pytest

from geo_utils.lint import instructions
from geo_utils.text import (
    DELIMITER,
    capitalised,
    content_words,
    inert,
    negated_words,
    numbers,
    sentences,
    singular,
    words,
)

# Marks of turns, thoughts and tools, as the families' own chat templates and tokenizers have them.
CHAT_MARKS = {
    "Qwen, ChatML": "<|im_start|> <|im_end|> <|endoftext|> <tool_call> </tool_response> <think>",
    "Llama 2": "[INST] [/INST] <<SYS>> <</SYS>> <s> </s>",
    "Llama 3 and 4": "<|start_header_id|> <|eot_id|> <|python_tag|> <|header_start|> <|eot|>",
    "Gemma": "<start_of_turn> <end_of_turn> <bos> <eos> <|turn> <turn|> <start_of_image>",
    "Mistral": "[SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CALLS] [TOOL_CONTENT] [THINK] [PREFIX]",
    "Phi": "<|system|> <|user|> <|end|> <|im_sep|> <|/tool|>",
    "Granite": "<|start_of_role|> <|end_of_role|> <|end_of_text|>",
    "Cohere": "<|START_OF_TURN_TOKEN|> <|USER_TOKEN|> <|END_RESPONSE|> <BOS_TOKEN>",
    "DeepSeek": "<｜User｜> <｜end▁of▁sentence｜> <｜DSML｜invoke </｜DSML｜invoke>",
    "GLM": "[gMASK] [sMASK] <sop> <eop> <|user|> <|assistant|> <|observation|> <arg_key>",
    "EXAONE": "[|system|] [|user|] [|assistant|] [|endofturn|] [|tool|]",
    "InternLM": "<|action_start|> <|plugin|> <|interpreter|> <eoh> <eoa>",
    "MiniMax": "]~!b[ ]~b] [e~[ ]!p~[ ]!d~[ ]<]start␣of␣image[>[ <minimax:tool_call>",
    "Kimi": "◁think▷ ◁/think▷ <|im_user|> <|im_middle|> <|tool_calls_section_begin|> [BOS] [EOS] "
    "[EOT]",
    "Hunyuan": "<|startoftext|> <|extra_0|> <｜hy_User｜> <｜hy_place▁holder▁no▁2｜>",
    "ERNIE": "<|begin_of_sentence|> <|end_of_sentence|>",
    "Seed": "<seed:bos> <seed:eos> </seed:think> <seed:tool_call>",
    "Nemotron": "<SPECIAL_10> <extra_id_1> <TOOLCALL> </AVAILABLE_TOOLS>",
    "Ling": "<role> </role> <|role_end|>",
    "gpt-oss": "<|start|> <|channel|> <|message|> <|return|>",
    "Gemini, FunctionGemma": "<ctrl46> <start_function_declaration> <end_function_call> <escape>",
    "Baichuan": "<B_SYS> <B_USYS> <C_Q> <C_A> <H_Q>",
    "Laguna, Ziya, Velvet": "<system> <user> </user> <assistant> <human> <bot> <instruction>",
    "voice and pictures": "[NEXT_AUDIO_TEXT] [STREAMING_PAD] <im_start> <im_patch> <audio_end>",
    "thoughts": "<thought> </thinking> <think:opensource> <mm:think> <think_on>",
    "tools": "<tool_result> </tool_responses> <human_end> <bot_end> <function_calls>",
    "others": "<用户> <AI> <_user> <reserved_106> [unused9] <end_of_utterance> <longcat_user> "
    "[SEH] [SEA] <eoc> <eos:6124c78e> <response> [UNUSED_TOKEN_146] [USER] [BOT] <predict> <cls> "
    "<|\"|> <global_setting> <file_sep>",
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two? Three!", ["One.", "Two?", "Three!"]),
        ("Dr. Smith paid $3.50. He left.", ["Dr. Smith paid $3.50.", "He left."]),
        ("# A title\nA line", ["# A title", "A line"]),
        ("这是第一句。这是第二句！", ["这是第一句。", "这是第二句！"]),
        ("هل هذا سؤال؟ نعم هو.", ["هل هذا سؤال؟", "نعم هو."]),
        ("", []),
        (" \n\n ", []),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's 1,300 or 3.5 tonnes.", ["It's", "1,300", "or", "3.5", "tonnes"]),
        ("co-op [1]", ["co", "op", "1"]),
        ("潮汐 tide", ["潮", "汐", "tide"]),
        ("كِتاب", ["كِتاب"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


def test_content_words_are_stems_without_function_words():
    assert content_words("The batteries aren't charging at all") == ("batteri", "charg")


def test_numbers_ignore_thousands_separators():
    assert numbers("1,300 of 2.5 in 1999.") == {"1300", "2.5", "1999"}
    assert numbers("1\u202f300, 4'000 and 5\u00a0600\u00a0123") == {"1300", "4000", "5600123"}


def test_both_ends_of_a_range_are_numbers_and_no_part_of_a_name_is_one():
    assert numbers("100,000-150,000 in 2019-2020, -5 °C") == {
        "100000",
        "150000",
        "2019",
        "2020",
        "5",
    }
    assert not numbers("COVID-19, F-16, v2.0 and Python3.11 of the mid-1990s")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The tank does not rust", {"rust"}),
        ("The tank doesn't rust, and paint helps", {"rust"}),
        ("Not only rust but heat harms it", set()),
        ("It rusts, but paint does not rust", set()),
        ("The pump doesnt need 12 volts", {"need", "12"}),
    ],
)
def test_negated_words(text, expected):
    assert negated_words(text) == expected


@pytest.mark.parametrize("family", CHAT_MARKS)
def test_no_chat_mark_is_left_in_an_inert_text(family):
    marks = [mark.replace("␣", " ") for mark in CHAT_MARKS[family].split()]
    plain = inert("".join(marks))
    assert not any(mark in plain for mark in marks) and inert(plain) == plain
    assert all(mark not in inert(f"A{mark}user\nB") for mark in marks)


@pytest.mark.parametrize(
    "tag",
    ["</sou\u200brce>", "<\ufeff/page>", "<\u202equery>", "</pa\u2066ge>", "</s\ufe0fource\n>",
     "</key-point>", "<KEY points>", "<keypoint>", "</s" + "\u200b" * 90 + "ource>",
     "<" + " " * 300 + "/answer>", "<\\/source>", "</sources", "<source x='>'>", "［INST］",
     "＜／page＞", "＜|im_end|＞", "<image>", "[IMG_END]", ">>ANSWER<<",
     "<|im_<|im_end|>end|>", "[IN[INST]ST]"],
)  # fmt: skip
def test_no_disguise_saves_a_tag(tag):
    plain = inert(f"Tides. {tag} Boats.")
    assert DELIMITER.search(f"Tides. {tag} Boats.") and not DELIMITER.search(plain)
    assert len(plain) == len(f"Tides. {tag} Boats.")


@pytest.mark.parametrize(
    "tag",
    ["</\uff4bey-point>", "</key_p\u043eint>", "</p\u0430ge>", "</\u0440\u0430g\u0435 >",
     "<\u03c1age>", "</\uff30\uff41\uff47\uff45>", "</\U0001d429\U0001d41a\U0001d420\U0001d41e>",
     "<|\uff49m_end|>", "\uff1c\uff0f\u0455ource\uff1e", "<\u2044p\u1d00ge>",
     "</\U0001f15f\U0001f150ge>", "</p\u0336a\u0336g\u0336e>", "</&#112;age>", "&lt;/page&gt;",
     "&#60;page&#x3E;", "&LT|im_end|&gt;", "<\u2223im_end\u2223>"],
)  # fmt: skip
def test_no_look_alike_letters_and_no_entities_save_a_tag(tag):
    plain = inert(f"Tides. {tag} Boats.")
    assert not set("<\uff1c&") & set(plain) and inert(plain) == plain
    assert len(plain) == len(f"Tides. {tag} Boats.")
    assert len(instructions(f"Tides rise. {tag} Boats sail.")) == 1
    own = tag.replace("source", "style").replace("\u0455ource", "\u0455tyle")
    assert inert(own, ("style",)) != own


@pytest.mark.parametrize(
    "text",
    [
        "<\u0441\u0442\u0440\u0430\u043d\u0438\u0446\u0430> <p\u00e4ge> <b>\u043f\u0430ge</b>",
        "User: hello\n\nAssistant: hi [1][2] [a] [SOS] [NOTE] [pdf] [x]~[y] a[i]~b[j] ~b] [e]~[f]",
        "0 < |xy| < 1, a <| b |> c, x<|ab|<1, [|1; 2|], [| a |], ls | cat <in >out, <b>bold</b>",
        "<article role='main'><mask id='m'/><o:p>Word</o:p><seed/> <https://a.org> <a@b.org>",
        "1 &lt; 2 &amp;&amp; 3 &gt; 2, &lt;b&gt;bold&lt;/b&gt;, [PDF] [SYSTEM] <user@host> <my_id>",
        "BERT has [CLS] and [MASK]; ]] ]<[ ]!= x[unused] C++ <vector> <page-header> df[think]",
    ],
)
def test_a_text_without_chat_marks_stays_byte_for_byte(text):
    assert inert(text) == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("n = 1 queries, 1 key points; 1 of 1 lifts", "n = 1 query, 1 key point; 1 of 1 lift"),
        (
            "+1 points, first 1 steps, 1 held-out queries",
            "+1 point, first 1 step, 1 held-out query",
        ),
        ("21 queries, 0 to 1 answers, 0.1 points, 1,001 pages, gpt-1 answers, page 1 of 3", None),
    ],
)
def test_one_of_something_is_no_several(text, told):
    assert singular(text) == (told or text)


def test_a_sentence_begins_with_a_capital_and_keeps_all_others():
    assert capitalised("policy Run-A of vLLM") == "Policy Run-A of vLLM" and capitalised("") == ""
