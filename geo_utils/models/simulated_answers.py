"""What the Gemini look-alike says: the offline roles' answers to the shipped prompts."""

from __future__ import annotations

import json
import re
from typing import Any

from geo_utils.corpus import Example, KeyPoint
from geo_utils.engines import ExtractiveEngine
from geo_utils.judges import LexicalJudge
from geo_utils.rewriters import EDITS
from geo_utils.text import sentences


async def reply(prompt: str, schema: dict[str, Any] | None, draw: int) -> str:
    """Answer a prompt of the shipped templates by the offline role that it is for.

    Args:
        prompt: Its parts are found by their tags.
        schema: The JSON schema asked for, if any.
        draw: Seed of the answer's noise, so that repeats differ.
    """
    wanted = set((schema or {}).get("properties", {}))
    if "key_points" in wanted:
        found = [s for s in sentences(_part(prompt, "page")) if 6 <= len(s.split()) <= 30]
        return json.dumps({"key_points": [{"content": s, "quotes": [s]} for s in found[:8:2]]})
    if "verdicts" in wanted:
        points = re.findall(r"^(\d+)\. (.+)$", _part(prompt, "key_points"), re.MULTILINE)
        listed = [{"number": int(n), **await _verdict(point, prompt)} for n, point in points]
        return json.dumps({"verdicts": listed})
    if "verdict" in wanted:
        return json.dumps(await _verdict(_part(prompt, "key_point"), prompt))
    sources = re.findall(r'<source number="\d+">\n(.*?)\n</source>', prompt, re.DOTALL)
    if sources:
        answer = await ExtractiveEngine(seed=draw).answer(_part(prompt, "query"), sources)
        return answer.text or "The sources do not answer the question."
    if "You have no sources" in prompt:
        return f"From memory, about this question little can be said: {_part(prompt, 'query')}"
    page = _part(prompt, "page")
    if page:
        point = KeyPoint(1, _part(prompt, "key_point"))
        example = Example("simulated", _part(prompt, "query"), (page,), 0)
        method = "keyword_stuffing" if example.query else "easy_to_understand"
        method = "key_point" if point.content else method
        return EDITS[method](example, point)
    if "yes or no" in prompt:
        verdict = await _verdict(_part(prompt, "key_point"), prompt)
        return "yes" if verdict["verdict"] == "supported" else "no"
    return "This is a simulated answer to a prompt of unknown form."


async def _verdict(key_point: str, prompt: str) -> dict[str, str]:
    verdict = await LexicalJudge().judge(key_point, _part(prompt, "answer"))
    return {"reason": verdict.explanation, "verdict": str(verdict.label)}


def _part(prompt: str, tag: str) -> str:
    found = re.search(rf"<{tag}>\n(.*)\n</{tag}>", prompt, re.DOTALL)
    return found.group(1) if found else ""
