"""Where replies enter: whatever a service sends becomes a `Completion`, or an error by its kind.

Nothing of a reply is trusted: not its shape, nor its types, nor that its text can be written to a
file. What has an unexpected shape is tried again, and in the end an abstention that says what was
read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from geo_utils.models.base import (
    Completion,
    FatalError,
    Request,
    TransientError,
    UnusableError,
    redacted,
    without_secrets,
)

_STOPPED = {"stop", "eos", "eos_token", "end_turn", "stop_sequence", "finish_reason_unspecified"}
_LENGTH = {"length", "max_tokens", "max_length", "model_length"}
_BLOCKED = {"content_filter", "safety", "blocklist", "prohibited_content", "recitation", "spii"}
_SECONDS = re.compile(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*", re.ASCII)
# What a service says when no call of this run can succeed, whatever its prompt.
_HOPELESS = re.compile(
    r"location is not supported|region|billing|insufficient[ _](?:quota|balance|"
    r"funds|credits?)|(?:model\b.{0,80}\b(?:not (?:found|exist|available)|does not exist|unknown|"
    r"deprecated|retired|no longer))|(?:unsupported|unknown|unrecognized|unexpected|invalid|not "
    r"supported|not permitted)[ _'\"]{1,3}(?:parameter|argument|field|value|name)|unknown name|"
    r"(?:parameter|argument|field)s?\b.{0,60}\b(?:not supported|not permitted|unsupported|not "
    r"allowed)|extra (?:inputs|fields) are not|does not support",
    re.IGNORECASE | re.DOTALL,
)
_PROMPT_FIELDS = ("messages", "contents", "prompt", "input")
_ABOUT_PROMPT = re.compile(r"context|too (?:long|large)|maximum.{0,40}tokens", re.IGNORECASE)

THOUGHTS = (
    r"think(?:ing)?|thoughts?|reasoning(?:_content)?|reflection|scratchpad|analysis|plan"
    r"|\w{1,10}[:_]think"
)
# A block of thoughts, in the marks of most models and of Mistral, Cohere, Kimi, MedGemma.
_BLOCKS = (
    rf"<(?:{THOUGHTS})(?:\s[^<>]{{0,40}})?>|\[THINK(?:ING)?\]|◁think▷|<unused94>"
    r"|<\|(?:think|(?:start|begin)_(?:of_)?(?:thought|thinking))\|>",
    rf"</(?:{THOUGHTS})\s{{0,9}}>|\[/THINK(?:ING)?\]|◁/think▷|<unused95>"
    r"|<\|(?:/think|end_(?:of_)?(?:thought|thinking))\|>",
)
_OPENED = re.compile(rf"\s*(?:{_BLOCKS[0]})", re.IGNORECASE)
_OPENS, _CLOSES = (re.compile(block, re.IGNORECASE) for block in _BLOCKS)
# What some models put around the answer after their thoughts.
_ANSWER = re.compile(
    r"\s*<(?:(answer|response|solution)|\|(?:begin|start)_(?:of_)?(solution|response|answer)\|)>"
    r"(.*?)(?:</\1>|<\|end_(?:of_)?\2\|>|\Z)\s*\Z",
    re.DOTALL | re.IGNORECASE,
)
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]{0,80}(?:<\|constrain\|>[^<]{0,80})?<\|message\|>")
_CHANNEL_END = re.compile(r"<\|(?:end|return|start|channel)\|>")


def received(
    *, text: Any, finish_reason: Any, latency_s: float, tokens_in: Any = 0, tokens_out: Any = 0,
    tokens_cached: Any = 0, tokens_thought: Any = 0, logprobs: Mapping[str, float] | None = None,
    served_by: Any = "", counted: bool = True,
) -> Completion:  # fmt: skip
    """Return what a service sent as a completion that can be scored, kept and written to a file.

    Args:
        text: A text, a list of parts that hold texts, or None.
        finish_reason: The service's own word.
        latency_s: Seconds from sending to receiving.
        tokens_in: Of the prompt; what is no number counts as 0.
        tokens_out: Of the answer, thoughts included.
        tokens_cached: Of the prompt, that the service had cached.
        tokens_thought: Of the answer, that are thoughts.
        logprobs: Log-probability of each allowed choice.
        served_by: The model as the service names it.
        counted: Whether the service reported tokens at all.

    Raises:
        TransientError: The text has an unexpected shape.
        UnusableError: The answer was blocked, or ended for a reason that leaves it torn.
    """
    # Both at once: the environment is read for each look. No NUL is left in what can be written.
    named = writable(served_by) if isinstance(served_by, str) else ""
    clean, _, named = without_secrets(f"{writable(_joined(text))}\0{named}").rpartition("\0")
    found = Completion(
        text=clean,
        tokens_in=_count(tokens_in),
        tokens_out=_count(tokens_out),
        tokens_cached=_count(tokens_cached),
        tokens_thought=_count(tokens_thought),
        latency_s=latency_s,
        logprobs=dict(logprobs) if logprobs else None,
        served_by=named[:300],
    )
    word = str(getattr(finish_reason, "value", finish_reason)).lower()
    if word in _LENGTH:
        return replace(found, finish_reason="length")
    if word in _STOPPED:
        return found
    counts = found if counted else None
    said = redacted(writable(str(getattr(finish_reason, "value", finish_reason))), 80)
    if word in _BLOCKED or "safety" in word:
        raise UnusableError(f"answer blocked: {said}", "blocked", counts=counts)
    raise UnusableError(f"torn: the answer ended with {said!r}", "torn", again=True, counts=counts)


def unreadable(read: object, why: object) -> TransientError:
    """Return the error for a reply of an unexpected shape, with what was read of it."""
    told = f"{type(why).__name__}: {why}" if isinstance(why, Exception) else str(why)
    said = redacted(writable(f"{told}; read {without_secrets(str(read))[:120]!r}"))
    return TransientError(f"unreadable answer: {said}", "unreadable")


def refusal(
    code: int, said: str, retry_after_s: float | None = None, parameter: str | None = None
) -> Exception:
    """Return what a caller should do about a refused call.

    Args:
        code: HTTP status, or the code of an error inside a body.
        said: The service's own words.
        retry_after_s: How long it asks to wait.
        parameter: The request's field that it refuses, where it names one.
    """
    told = redacted(writable(said))
    if code == 401 or re.search(r"\bapi[ _]?key\b", said, re.IGNORECASE):
        return FatalError(f"the key is refused: {told}")
    if 300 <= code < 400:
        return FatalError(f"sent on to another address, which gets no key; name that one: {told}")
    if code == 402:
        return FatalError(f"the service wants to be paid first: {told}")
    if code == 403:
        return FatalError(f"the key is refused, or may not be used here: {told}")
    if code == 404:
        return FatalError(f"not served: {told}")
    if code in (408, 409, 425, 429) or code >= 500:
        return TransientError(told, str(code), retry_after_s)
    field = re.split(r"[.\[]", parameter or "")[0]
    about_prompt = field in _PROMPT_FIELDS or _ABOUT_PROMPT.search(said)
    if (field or _HOPELESS.search(said)) and not about_prompt:
        return FatalError(f"the service refuses every such call: {told}")
    return UnusableError(told, str(code))


def seconds(text: object) -> float | None:
    """Return the seconds that a Retry-After header asks for; None for a date or nonsense."""
    found = _SECONDS.fullmatch(str(text or ""))
    return float(found.group(1)) if found else None


def writable(value: Any) -> Any:
    """Return a value of JSON's kinds in which every text can be written as UTF-8.

    Half a character, such as a lone surrogate out of a torn escape, becomes U+FFFD; a NUL, which
    ends a text for many programs, goes.
    """
    if isinstance(value, str):
        value = value.replace("\0", "")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return value
    if isinstance(value, list):
        return [writable(item) for item in value]
    if isinstance(value, dict):
        return {writable(name): writable(item) for name, item in value.items()}
    return value


def usable(completion: Completion, request: Request) -> Completion:
    """Return a completion with its parsed value.

    Raises:
        UnusableError: It is cut off, empty, or has not the schema's shape.
    """
    if request.as_is:
        return completion
    if completion.finish_reason == "length" and not request.choices:
        thought, most = completion.tokens_thought, request.sampling.max_tokens
        if thought or (completion.text and not strip_thoughts(completion.text)):
            raise UnusableError(
                f"cut off at {completion.tokens_out} tokens, {thought or 'all'} of them thoughts: "
                + (f"raise sampling.judge_tokens={most}, or " if request.role == "judge" else "")
                + "set sampling.thinking to less",
                "thoughts",
            )
        raise UnusableError(f"cut off: {request.sampling}", "truncated", again=True)
    if request.choices and not completion.logprobs:
        raise UnusableError("the server gave no log-probabilities", "no_logprobs", again=True)
    if not completion.text.strip() and completion.logprobs is None:
        raise UnusableError("an empty answer", "empty", again=True)
    if request.schema is not None:
        parsed = parse_json(completion.text, request.schema, request.prompt)
        return replace(completion, parsed=writable(parsed))
    return completion


def strip_thoughts(text: str) -> str:
    """Return an answer without the thoughts before it; empty where it holds nothing else.

    Thoughts are what stands in a block at the beginning (`<think>`, `[THINK]`), also an unclosed
    one; what stands before a closing mark whose opening the server has cut off; and every channel
    but the final one, in answers that have channels. A tag around the answer behind them goes too.
    """
    channels = list(_CHANNEL.finditer(text))
    if channels:
        last = channels[-1]
        end = _CHANNEL_END.search(text, last.end())
        final = last.group(1).lower() == "final"
        return text[last.end() : end.start() if end else len(text)].strip() if final else ""
    place, opened = 0, _OPENED.match(text)
    while closing := _CLOSES.search(text, place):
        if not opened and _OPENS.search(text, place, closing.start()):
            break  # an answer that speaks of such a block
        place = closing.end()
        opened = _OPENED.match(text, place)
    if opened and closing is None:
        return ""
    wrapped = _ANSWER.match(text, place) if place else None
    return (wrapped[3] if wrapped else text[place:]).strip()


def parse_json(text: str, schema: dict[str, Any], prompt: str = "") -> Any:
    """Read the JSON value of an answer, also out of a fence or from between words.

    Args:
        text: The answer.
        schema: A schema of the kinds that the roles use: nested objects, arrays, strings with
            `enum`, numbers, booleans.
        prompt: What was asked; a value that stands in it word for word is a quotation and no
            answer.

    Returns:
        The last value in the text that has the schema's shape: what comes before is a draft.

    Raises:
        UnusableError: None has, or several that differ in what they choose.
    """
    from jsonschema import Draft202012Validator  # an import that takes a while

    bare, shape = strip_thoughts(text), Draft202012Validator(schema)
    asked = " ".join(prompt.split())
    decoder = json.JSONDecoder(strict=False, object_pairs_hook=_object)
    found: list[Any] = []
    problem, place, tries = "no JSON", 0, 0
    opens = re.compile(r"\{" if schema.get("type", "object") == "object" else r"[\[{]")
    while tries < 200 and (start := opens.search(bare, place)):
        tries, place = tries + 1, start.start() + 1
        try:
            value, end = decoder.raw_decode(bare, start.start())
            wrong = next(shape.iter_errors(value), None)
        except (ValueError, RecursionError):
            continue
        if wrong is not None:
            problem = wrong.message[:200]
        else:
            place = end
            if " ".join(bare[start.start() : end].split()) not in asked or not asked:
                found.append(value)
    if not found:
        raise UnusableError(f"{problem} in {text[:200]!r}", "unparsable", again=True)
    if len({json.dumps(_choices(value, schema)) for value in found}) > 1:
        said = f"{len(found)} verdicts that differ in {text[:200]!r}"
        raise UnusableError(said, "unparsable", again=True)
    return found[-1]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, of which no name is given two values."""
    found = dict(pairs)
    # NaN is not equal to itself.
    if any(found[name] is not value and found[name] != value for name, value in pairs):
        raise ValueError("a name has two values")
    return found


def _choices(value: Any, schema: dict[str, Any]) -> Any:
    """Return what a value chooses among a schema's allowed words, and the numbers it is for."""
    if "enum" in schema or schema.get("type") in ("integer", "boolean"):
        return value
    if isinstance(value, dict):
        parts = schema.get("properties", {})
        found = [_choices(value[name], parts[name]) for name in sorted(parts) if name in value]
    elif isinstance(value, list):
        found = [_choices(item, schema["items"]) for item in value]
    else:
        return None
    return [part for part in found if part not in (None, [])]


def _joined(content: Any) -> str:
    """Return the text of a reply's content; parts that hold none, such as thoughts, are left out.

    Raises:
        TransientError: It is of no kind that holds a text.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Collection) and not isinstance(content, Mapping):
        texts = []
        for part in content:
            if isinstance(part, str):
                texts.append(part)
            elif isinstance(part, Mapping) and part.get("type", "text") in ("text", "output_text"):
                texts.append(_joined(part.get("text")))
            elif not isinstance(part, Mapping):
                raise unreadable(content, f"a part of the content is {type(part).__name__}")
        return "".join(texts)
    raise unreadable(content, f"the content is {type(content).__name__}")


def _count(value: Any) -> int:
    """Return a number of tokens; 0 for what is none."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,12}", value, re.ASCII):
        return int(value)
    whole = isinstance(value, int | float) and not isinstance(value, bool)
    return max(int(value), 0) if whole and abs(value) < 1e12 else 0
