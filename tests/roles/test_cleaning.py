"""From a rewriter's reply to its page."""

import json

import pytest
from conftest import make_example

from geo_utils.corpus import KeyPoint
from geo_utils.prompts import load_rules
from geo_utils.roles.by_model import RewriteTask
from geo_utils.roles.cleaning import clean_rewrite
from geo_utils.roles.rewriters import Rewrite

PAGE = "The Moon raises two bulges of water. A harbour sees a new tide every 12 hours. " * 6


class TestCleaning:
    @pytest.mark.parametrize(
        "reply",
        [
            PAGE,
            f"```\n{PAGE}\n```",
            f"```markdown\n{PAGE}\n```",
            f"<think>Let me see. Sorry, no.</think>\n\n{PAGE}",
            f"Let me think about it.\n</think>\n{PAGE}",
            f"{PAGE}\n<think>Now check",
            f"Here is the rewritten text:\n\n{PAGE}",
            f"Sure! Here's the page with the key point stressed:\n\n```\n{PAGE}\n```",
            f"**Rewritten text:**\n\n{PAGE}",
            f"<page>\n{PAGE}\n</page>",
            f"Here is the rewritten text:\n\n<page>\n{PAGE}\n</page>",
            f"```markdown\n{PAGE}\n```\n\nI stressed the key point.",
            f"~~~\n{PAGE}\n~~~",
            f"<page>\n{PAGE}\n</page>\nLet me know if it should be shorter.",
            f"{PAGE}\n\n---\n\n**Changes made:**\n\n- The key point leads.\n- It is in bold.",
            f"{PAGE}\n\n### Summary of the changes\n1. One.\n2. Two.\n\nI hope this helps!",
            f"{PAGE}\n\nPlease note that I preserved all facts of the original text.",
            f"{PAGE}\n\nIn this version, the key point leads.",
            f"{PAGE}\n\nI placed the key point first.",
            f"{PAGE}\n\nDo you want me to make it shorter?",
            f"Here is the rewritten text:\r\n\r\n{PAGE}\r\n\r\nLet me know if it should be longer.",
            f"I've rewritten the page as asked:\n\n{PAGE}",
            f"{PAGE}\n\nNote: I kept the original meaning.",
            f"{PAGE}\n\n***\n\nI've emphasized the key point and kept all facts.",
            f"{PAGE}\n\nThis version keeps every fact of the text.",
            f"{PAGE}\n\nIf you'd like another tone, I can write one.\n\n[End of page]",
            f"<output>\n{PAGE}\n</output>",
            f"<rewritten>{PAGE}</rewritten>\n\nI led with the key point.",
            f"<page title='x'>\n{PAGE}",
            f"{PAGE}\n</rewritten_text>",
            f"[TEXT]\n{PAGE}\n[/TEXT]",
            f"My plan is to stress it.\n\n<answer>\n{PAGE}\n</answer>",
            f"```markdown\n<page>\n{PAGE}\n</page>\n```",
            f"```\n{PAGE}",
            f"```{PAGE}```",
            f"{PAGE}\n```",
            f"Let me do this in one go:\n\n```text\n{PAGE}\n```\nDone.",
            f"=== REWRITTEN PAGE ===\n{PAGE}\n=== END ===",
            f'"""\n{PAGE}\n"""',
            f"---\n\n{PAGE}\n\n---",
            json.dumps({"page": PAGE}),
            json.dumps([{"rewritten_text": PAGE, "notes": "It leads."}]),
            f"```json\n{json.dumps({'text': PAGE}, indent=2)}\n```",
            f'{{"page": "{PAGE}',
            f'{{"title": "Tides", "content": "{PAGE}", "done": true,}}',
            f"Sure.\n{PAGE}",
            f"Sure! I'd be happy to help.\n\nHere you go.\n\n{PAGE}",
            f"Certainly, here's the rewrite\n\n{PAGE}",
            f"# Rewritten page\n\n{PAGE}",
            f"**Output**\n\n{PAGE}",
            f"Answer: {PAGE}",
            f"<|im_start|>assistant\n{PAGE}<|im_end|>\n<|im_start|>user\nMore, please.",
            f"{PAGE}</s>",
            f"{PAGE}\n\n### Explanation\n\nThe key point leads.",
            f"{PAGE}\nNote: I kept the original meaning.\n\nBest regards,\nYour assistant",
            f"{PAGE}\n\nBy leading with the key point, the page is more likely to be cited.",
            # what a second campaign found
            f"Thank you for the text. Here is my rewrite:\n\n{PAGE}",
            f"Assistant: {PAGE}",
            f"Step 1: I will read the text.\nStep 2: I will rewrite it.\n\nRewritten text:\n{PAGE}",
            f"Sure, here you go! 😊\n\n{PAGE}",
            f"Here is the text rewritten so that the key point stands out: {PAGE}",
            f"I've given the page a makeover:\n\n{PAGE}",
            f"TEXT\n----\n{PAGE}",
            f"New page ->\n\n{PAGE}",
            json.dumps({"result": {"page": PAGE}}),
            f'{{"answer": ["{PAGE}"]}}',
            f"Here is the JSON:\n\n{json.dumps({'page': PAGE})}\n\nLet me know if you need more.",
            f'page = """{PAGE}"""',
            f"```yaml\npage: |\n  {PAGE}\n```",
            f"```\n{PAGE}\n```\n```",
            f"```markdown\n{PAGE}\n```\n```\nNote: I kept all facts.\n```",
            f"<<<REWRITTEN TEXT>>>\n{PAGE}\n<<<END>>>",
            f"> {PAGE}",
            f"<div class='page'>\n{PAGE}\n</div>\n\nNote: bold lead.",
            f"{PAGE}</answer>\n\nDone.",
            f"{PAGE}\n\nI believe this version meets your requirements.",
            f"{PAGE}\n\n### What I did\n- moved it up",
            f"{PAGE}\n\n---\n*Total words: 96*",
            f"{PAGE}\n\nDoes this work for you?",
            f"{PAGE}\n\nThe rest was kept as it is.",
            f"{PAGE}\n\nUser: thanks\nAssistant: You are welcome!",
            f"  ```markdown\n{PAGE}\n  ```",
            f"<plan>\n1. lead\n2. bold\n</plan>\n\n{PAGE}",
            f"assistant\n\n{PAGE.strip()}assistant\n\nIs there more?",  # marks of turns not shown
            f"<start_of_turn>model\n{PAGE}<end_of_turn>",
            f"\ufeff{PAGE}\x1b",
            f"\\boxed{{{PAGE}}}",
            f"Sure.\n\n$$\\boxed{{\\text{{{PAGE}}}}}$$",
            f"<page><![CDATA[\n{PAGE}\n]]></page>",
            f"Reply:\n\n{PAGE}",
            f"**Reply:** {PAGE}",
            # the chat's other turns, where a server or model gives them too
            f"<|im_start|>user\nRewrite it.<|im_end|>\n<|im_start|>assistant\n{PAGE}<|im_end|>",
            f"<|start_header_id|>assistant<|end_header_id|>\n\n{PAGE}<|eot_id|>",
            f"<start_of_turn>user\nRewrite it.<end_of_turn>\n<start_of_turn>model\n{PAGE}",
            f"<s>[INST] Rewrite it. [/INST] {PAGE}</s>[INST] More. [/INST] Here is more of it.",
            f"<｜User｜>Rewrite it.<｜Assistant｜>{PAGE}<｜end▁of▁sentence｜>",
            f"Human: Rewrite it.\n\nAssistant: {PAGE}<eos>",
            # between a beginning and an end; keys without quotation marks; a label behind remarks
            f"BEGIN PAGE\n{PAGE}\nEND PAGE",
            f"--- START ---\n\n{PAGE}\n\n--- END ---",
            f'{{page: "{PAGE}"}}',
            f"Thought: I should move it.\nAction: rewrite\n\nFinal Answer: {PAGE}",
            # paragraphs that talk, with words beside talk that are none of the page's
            f"{PAGE}\n\nI trust this meets your expectations.",
            f"{PAGE}\n\n---\n\nThis version keeps the tone while the claim is foregrounded.",
            f"{PAGE}\n\n### Note\n\nThe opening sentence was reworked to surface the claim.",
            f"{PAGE}\n\n**Key enhancements:**\n\n* Bold type on the claim\n* Smoother transitions",
            f"{PAGE}\n\nAs an AI, I cannot verify the claims made here.\n\nCheers!",
            f"Absolutely. Below you'll find a stronger take on it.\n\n{PAGE}",
            f"Here's a polished take that puts the spotlight on the claim:\n\n{PAGE}",
            f"Plan:\n- rewrite the opening\n- emphasise the claim\n\n{PAGE}",
            # the more signs, the more other words; with none, only words that are nobody's
            f"{PAGE}\n\nHopefully that's closer to what you had in mind!",
            f"{PAGE}\n\nAs an AI, I have no opinions on this; the above reflects your request.",
            f"{PAGE}\n\nDoes that sound good?",
            f"{PAGE}\n\nThis rewritten page says more of the Moon and of sailors.",
            # lines that are no sentences, as one; a table; a title of the rewriting
            f"Action: rewrite_page\nAction Input: page\nObservation: rewritten\n\n{PAGE}",
            f"{PAGE}\n\nConfidence: high\nReadability: 8/10\nFidelity to source: 10/10",
            f"{PAGE}\n\nKey edits:\n\n| Section | Change |\n|---|---|\n| Title | Reworded |",
            f"Title: Improved Page\n\n{PAGE}",
            f"**Optimised passage**\n\n{PAGE}",
            # no word that means something; a heading with nothing below; what is counted; a name
            f"Got it!\n\n{PAGE}",
            f"{PAGE}\n\nWhy this works\n\nReaders skim. The claim meets them at once now.",
            f"{PAGE}\n\nLength: about 320 words.",
            f"{PAGE}\n\n— Claude",
            f"{PAGE}\n\nP.S. I left the links and captions alone.",
            f"{PAGE}\n\nACTION: return_page\nRESULT: success\nNEXT STEP: none",
            f"{PAGE}\n\n[Writer agent] Handing over to: reviewer\n[Writer agent] Open issues: none",
            f"{PAGE}\n\nWhere it stands:\nTitle – yes\nConclusion – yes",
        ],
    )
    def test_the_page_is_taken_out(self, reply):
        found = clean_rewrite(reply, PAGE)
        assert (found.text, found.abstention) == (PAGE.strip(), None)

    @pytest.mark.parametrize(
        "page",
        [
            "Here is how tides work: the Moon raises water.\n\nIt does so twice a day for all.",
            "Sure signs of a tide:\n- water comes\n- water goes and comes again every day",
            "```\ncode\n```\nand words around it that make the page a page of some length",
            "Here are the 10 best laptops of this year:\n\n- one that is light\n- one that lasts",
            "```\nfirst\n```\nwords between two blocks of code on this page\n```\nlast\n```",
            "Models write <think> before they answer, and </think> where the thought ends, often.",
            "I can't recommend this harbour enough. Sorry, London, but the tides here are better.",
            "The tables are for 2024 and the harbour.\n\nChanges made:\n\n- new hours of tides",
            "Boats need water and so do I when I sail.\n\nI made this page for all who sail.",
            "Tide tables for all harbours of the coast.\n\nNote: the hours in summer are others.",
            "The harbour has a long story.\n\nImprovements made in 1990 doubled the quay.",
            "Bills of the harbour, all of them.\n\nThe revised version of it is in force.",
            "Release 2.0 of the tide table is out.\n\n**Key changes:**\n\n- all hours are new",
            "On tides and what they do to us.\n\nExplanation: the Moon, says Newton, raises them.",
            "Tide tables for all who sail here.\n\nWould you like one? Call the harbour today.",
            "Here is why tides matter to you:\n\n- they float your boat and all others",
            "~~~\ntide --now\n~~~\n\nThat shows the tide, in words\n\n~~~\nlast\n~~~",
            "How to ask us for a table of tides.\n\nLet me know what you think of it, sailors.",
            "<output>12 m</output> is what the tide gauge prints on each of its lines, always.",
            "{'page': 'tides'} is the reply of our service, and sailors read it every morning.",
            '{"page": "Tides", "text": "They come twice a day and go twice a day, as all know."}',
            "Sure.\n\nThat is what my grandfather said whenever one asked him for the next tide.",
            "Final version\n\nThe text of the law of tides, in the version that is now in force.",
            '"Tides," he said, "are due to the Moon, and to nothing else in the world, my boy"',
            "\\boxed{x} is how a model marks the answer to a sum, and \\boxed{y} another one",
            "User: how do tides work?\n\nAssistant: they come twice a day. So went our first chat.",
            "BEGIN AT THE QUAY\nThe walk goes along the harbour and back, twice.\nEND AT THE QUAY",
            "The chat ends its turns with <|im_end|>, and a page on tides says so, more than once.",
        ],
    )
    def test_a_page_that_looks_like_a_preamble_or_refusal_is_kept(self, page):
        assert clean_rewrite(page, page) == Rewrite(page, echoes=0)
        found = clean_rewrite(
            f"Certainly! Here is the rewritten page:\n\n{page}\n\nHope it helps!", page
        )
        assert found == Rewrite(page, echoes=0)

    @pytest.mark.parametrize(
        ("page", "reply"),
        [
            (
                "潮汐由月亮引起。海水每天涨两次。",
                "海水每天涨落两次。\n\n潮汐是由月亮的引力引起的。\n\n水手随潮出海。",
            ),
            ("月が潮を引く。", "潮は月が引く。\n\n一日に二回です。"),
            ("การขึ้นลงของน้ำเกิดจากดวงจันทร์", "ดวงจันทร์ทำให้น้ำขึ้นลง\n\nวันละสองครั้ง"),
            ("Луна вызывает приливы.", "Приливы вызывает Луна.\n\nМоряки уходят с отливом."),
            ("Der Mond zieht das Meer an.", "Das Meer zieht der Mond an.\n\nSo ist es."),
        ],
    )
    def test_a_rewrite_in_another_language_is_kept_whole(self, page, reply):
        assert clean_rewrite(reply, page) == Rewrite(reply, echoes=0)

    def test_what_the_page_says_to_its_reader_stays_in_other_words(self):
        page = f"{PAGE}\n\nI hope this helps. Tell me what you think, and please edit it."
        kept = f"{PAGE}\n\nI hope this helps you. Please tell me what you think, or edit it."
        assert clean_rewrite(kept, page) == Rewrite(kept, echoes=0)
        assert clean_rewrite(kept, PAGE).text == PAGE.strip()

    def test_a_fence_around_a_page_with_fences_of_its_own_goes_alone(self):
        page = "How to print a tide.\n\n```\ntide --now\n```\n\nThat prints it.\n\n```\nlast\n```"
        for reply in (f"```markdown\n{page}\n```", f"Sure!\n\n````\n{page}\n````\n\nDone."):
            assert clean_rewrite(reply, page).text == page

    def test_a_table_that_is_the_whole_page_keeps_its_tags(self):
        table = f"<table><tr><td>{PAGE}</td></tr></table>"
        assert clean_rewrite(f"Here it is:\n\n{table}", PAGE).text == table

    @pytest.mark.parametrize(
        ("reply", "problem"),
        [
            ("", "empty"),
            ("   \n", "empty"),
            ("<think>I never stop thinking about this page", "empty"),
            ("I'm sorry, but I can't help with that.", "refused"),
            (
                "I cannot rewrite this text as it contains claims that I am unable to check.",
                "refused",
            ),
            ("The Moon raises bulges.", "short"),
        ],
    )
    def test_what_is_no_page_is_an_abstention(self, reply, problem):
        found = clean_rewrite(reply, PAGE)
        assert found.text == "" and found.abstention.startswith(problem)


POINT = KeyPoint(1, "Two bulges of water follow the Moon around the Earth.")
EXAMPLE = make_example(sources=("a", PAGE.strip(), "b"), key_points=(POINT,))
KEY_POINT, QUERY, RULES = map(RewriteTask, ("key_point", "keyword_stuffing", "rules"))
PROMPT = KEY_POINT.prompt(EXAMPLE, POINT)
# What the prompt says itself, a line each, whatever it is.
LINES = KEY_POINT.template.text.split("\n")
SAID = [line for line in LINES if len(line.split()) > 3 and "$" not in line]
RULE = f"- {load_rules()[0]}"
BLOCK, KEY = f"<key_point>\n{POINT.content}\n</key_point>", POINT.content


class TestEchoes:
    """What a reply repeats of its prompt is no page text, and is counted."""

    @pytest.mark.parametrize(
        ("task", "echo"),
        [
            (KEY_POINT, BLOCK),
            (KEY_POINT, f"```xml\n{BLOCK}\n```"),
            (KEY_POINT, f"<key_point id='1'>{KEY}</key_point>"),
            (KEY_POINT, f"<KEY-POINT>**{KEY}**</KEY-POINT>"),
            (KEY_POINT, f"<key_point>\n{KEY}"),
            (KEY_POINT, "<key_point>\nIt is about bulges, the Moon and the Earth.\n</key_point>"),
            (KEY_POINT, f"&lt;key_point&gt;\n{KEY}\n&lt;/key_point&gt;"),
            (KEY_POINT, f"**<key_point>** {KEY} **</key_point>**"),
            (KEY_POINT, f"\\<key\\_point\\>{KEY}\\</key\\_point\\>"),
            (KEY_POINT, f"＜key_point＞{KEY}＜/key_point＞"),
            (KEY_POINT, f"[key_point]{KEY}[/key_point]"),
            (KEY_POINT, "<key_point/>"),
            (KEY_POINT, f"<claim>{KEY}</claim>"),
            (KEY_POINT, f"key_point>\n{KEY}\n</key_point"),
            (KEY_POINT, f"| Key point | {KEY} |"),
            (KEY_POINT, f"<b>Emphasized key point:</b> {KEY}"),
            (KEY_POINT, f"Task: {SAID[0]}"),
            (KEY_POINT, "<instructions>\n" + "\n".join(SAID) + "\n</instructions>"),
            (KEY_POINT, f"Instruction: {SAID[0]}\n\nInput:\n{PAGE}\n\nOutput:"),
            (KEY_POINT, f"Key point: {KEY}"),
            (KEY_POINT, f"## Rewritten page (key point: {KEY})"),
            (KEY_POINT, f"**Key Point:** *{KEY}*"),
            (KEY_POINT, f"## The key point\n\n> {KEY}"),
            (KEY_POINT, SAID[0]),
            (KEY_POINT, SAID[-1]),
            (KEY_POINT, "\n".join(SAID)),
            (KEY_POINT, "Instructions:\n\n" + "\n".join(f"- **{line}**" for line in SAID)),
            (KEY_POINT, PROMPT),
            (KEY_POINT, PROMPT.replace("key_point>", "Key Point>").upper()),
            (KEY_POINT, f"<page>\n{PAGE}\n</page>"),
            (KEY_POINT, f"Original text:\n\n{PAGE}\n\nRewritten text:"),
            (QUERY, f"<query>\n{EXAMPLE.query}\n</query>"),
            (QUERY, f"Search query: {EXAMPLE.query}"),
            (RULES, f"<rules>\n{RULE}\n</rules>"),
            (RULES, f"Rules:\n{RULE}"),
            (RULES, RULES.prompt(EXAMPLE, POINT)),
        ],
    )
    def test_it_is_taken_out_with_its_content_and_counted(self, task, echo):
        for reply in (f"{echo}\n\n{PAGE}", f"{echo}\n\n<page>\n{PAGE}\n</page>"):
            found = task.page(reply, EXAMPLE, POINT)
            assert (found.text, found.abstention) == (PAGE.strip(), None)
            assert found.echoes >= 1
        assert task.page(PAGE, EXAMPLE, POINT) == Rewrite(PAGE.strip(), echoes=0)

    def test_pieces_are_counted(self):
        reply = f"{BLOCK}\n\n<page>\n{PAGE}\n</page>\n\n{SAID[-1]}"
        assert KEY_POINT.page(reply, EXAMPLE, POINT).echoes == 3
        reply = json.dumps({"key_point": KEY, "page": PAGE})
        assert KEY_POINT.page(reply, EXAMPLE, POINT) == Rewrite(PAGE.strip(), echoes=1)

    def test_nothing_but_an_echo_is_no_page(self):
        for reply, problem in ((BLOCK, "empty"), (f"{BLOCK}\n\nTides rise.", "short")):
            found = KEY_POINT.page(reply, EXAMPLE, POINT)
            assert found.text == "" and found.abstention.startswith(problem) and found.echoes == 1

    @pytest.mark.parametrize(
        "page",
        [
            f"{KEY} {PAGE}",
            f"**{KEY}**\n\n{PAGE}\n\nIn short: {KEY}",
            f"## Key points\n\n- {KEY}\n- A harbour sees a tide every 12 hours.\n\n{PAGE}",
            f"{PAGE}\n\nThis point is key: {KEY}",
            f"{PAGE}\n\nQueries and rules of sailors are another page's <source>.",
            # what a rewriter may well write anew
            f"## Overview\n\n{PAGE}",
            f"Let us begin with the Moon.\n\n{PAGE}",
            f"The prompt answer is: the Moon.\n\n{PAGE}",
            f"{PAGE}\n\nWhat changed?\n\nThe Moon moved.",
            f"{PAGE}\n\nThis page was last edited in 2020.",
            f"{PAGE}\n\nEmphasis on safety is needed at sea.",
            f"{PAGE}\n\nCritics claim otherwise.",
            f"{PAGE}\n\nThe French version differs slightly.",
            f"{PAGE}\n\nFeedback from sailors has been positive, and their requests were met.",
            f"{PAGE}\n\nMy grandmother swore by it.",
            f"Have you ever been at sea? Welcome to our shop.\n\n{PAGE}",
            f"## The law\n\n{PAGE}\n\nA revised law came into force in May.",
            f"{PAGE}\n\nThis version of the tide table was changed in 2020 and edited twice.",
            f"{PAGE}\n\n## Structural use\n\nHarbours use thick walls.",
            f"The fee is <s>12</s> 10.\n\n{PAGE}",
            f"{PAGE}\n\nHave a question? Leave a comment, and our team will get back to you.",
            f"{PAGE}\n\nNote that I sail with the tide, and so should you.",
        ],
    )
    def test_the_key_point_in_the_page_is_no_echo(self, page):
        assert KEY_POINT.page(page, EXAMPLE, POINT) == Rewrite(page.strip(), echoes=0)

    def test_a_tag_around_the_pages_own_words_goes_and_the_words_stay(self):
        own = "A harbour sees a new tide every 12 hours."
        marked = PAGE.strip().replace(own, f"<key_point>{own}</key_point>", 1)
        found = KEY_POINT.page(marked, EXAMPLE, POINT)
        assert found.text.split() == PAGE.split() and found.echoes == 2
        whole = KEY_POINT.page(f"<key_point>\n{KEY}\n\n{PAGE}\n</key_point>", EXAMPLE, POINT)
        assert whole.text == PAGE.strip() and whole.echoes

    @pytest.mark.parametrize(
        "page",
        [
            "A prompt has <key_point> and </key_point>, and <page> before its page.\n\n"
            "<key_point>\nThe tide table is out.\n</key_point>\n\nSo it is written in all of them.",
            "Key point: the tide table of this year is out, and sailors can buy it in the harbour.",
            f"How to write prompts for tides.\n\n{SAID[-1]}\n\nThat line is in all of them.",
            f"{SAID[0]}\n\nThat is what the writer of a page on tides was asked to do by us.",
        ],
    )
    def test_a_page_on_such_things_keeps_what_it_says(self, page):
        example = make_example(sources=("a", page, "b"), key_points=(POINT,))
        assert KEY_POINT.page(page, example, POINT) == Rewrite(page, echoes=0)
        echoed = KEY_POINT.page(f"{BLOCK}\n\n{page}", example, POINT)
        assert echoed == Rewrite(page, echoes=1)

    def test_a_talk_that_quotes_the_key_point_goes_and_an_echo_at_a_lines_end(self):
        for reply in (
            f'Certainly! Here is the text with the key point "{KEY}" emphasized:\n\n{PAGE}',
            f'{PAGE}\n\nThe key point "{KEY}" has been emphasized.',
            f"{PAGE.strip()} (Key point: {KEY})",
        ):
            assert KEY_POINT.page(reply, EXAMPLE, POINT).text == PAGE.strip()

    def test_the_users_own_prompt_is_known_as_well(self, tmp_path):
        own = "Polish what stands below, sentence by sentence.\n<claim>$key_point</claim>\n$page"
        (tmp_path / "rewrite_key_point.md").write_text(own)
        task = RewriteTask("key_point", tmp_path)
        echo = f"Polish what stands below, sentence by sentence.\n<claim>{KEY}</claim>"
        assert task.page(f"{echo}\n{PAGE}", EXAMPLE, POINT) == Rewrite(PAGE.strip(), echoes=2)

    def test_what_the_model_was_not_shown_is_put_back_behind_a_cleaned_page(self):
        found = KEY_POINT.page(f"{BLOCK}\n\nTwo bulges rise.", EXAMPLE, POINT, 1)
        assert found.text.startswith("Two bulges rise.\n\nA harbour") and found.echoes == 1
