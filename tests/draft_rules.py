"""Rules that draft a rewrite's next tokens, and kept rewrites that they are replayed on."""

from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace

import numpy as np

from geo_utils.corpus import choose_key_points, load_corpus
from geo_utils.grpo.cold_start import byte_level_tokenizer, with_chat
from geo_utils.grpo.drafts import PageProposer
from geo_utils.models.local import chat_text
from geo_utils.models.loops import run_sync
from geo_utils.notebooks import read_parameters
from geo_utils.roles.make import make_roles
from geo_utils.roles.methods import MODEL_FREE_METHODS

GROUP = 8
_VOCABULARY = 12_000


def ngram_draft(tokens, size, least=2, most=5):
    """vLLM's rule: what followed the earliest of the longest earlier copies of the last tokens."""
    for length in range(min(most, len(tokens) - 1), least - 1, -1):
        ending = tokens[-length:]
        starts = np.flatnonzero(tokens[:-length] == ending[0])
        for i in range(1, length):
            starts = starts[tokens[starts + i] == ending[i]]
        if len(starts):
            return tokens[starts[0] + length :][:size].tolist()
    return []


def suffix_draft(tokens, size, depth=24, least=0.1):
    """Suffix decoding (arXiv 2411.04975) within one text, with vLLM's settings.

    Behind every earlier copy of the last tokens, what followed most often is gone along, no longer
    than the copy. That draft is taken whose probabilities, by these counts, have the largest sum.
    """
    best, best_sum = [], 0.0
    last, length = len(tokens) - 1, 1
    ends = np.flatnonzero(tokens[:last] == tokens[last]) + 1
    while len(ends) and length < depth:
        here, found, probability, total = ends, [], 1.0, 0.0
        while len(found) < min(size, length, depth - length):
            here, before = here[here <= last], len(here)
            if not len(here):
                break
            values, counts = np.unique(tokens[here], return_counts=True)
            probability *= counts.max() / before
            if probability < least:
                break
            found.append(int(values[counts.argmax()]))
            total += probability
            here = here[tokens[here] == found[-1]] + 1
        if total >= best_sum:
            best, best_sum = found, total
        ends = ends[ends > length]
        ends = ends[tokens[ends - length - 1] == tokens[last - length]]
        length += 1
    return best


def page_proposer(size, longest=10**6):
    """The project's own proposer, as vLLM makes it."""
    drafts = SimpleNamespace(num_speculative_tokens=size)
    model = SimpleNamespace(max_model_len=longest)
    return PageProposer(SimpleNamespace(speculative_config=drafts, model_config=model))


class Text:
    """A kept rewrite that is written anew, with drafts.

    Attributes:
        tokens: The prompt's and the completion's, the end mark included.
        written: How many of them are there; the first comes with the prompt.
        new: Those of the last step.
        steps: Steps so far, each of which wrote what was accepted of a draft and one token more.
    """

    def __init__(self, prompt, completion):
        assert len(completion) > 1, "the first token needs no step"
        self.tokens = np.array([*prompt, *completion], dtype=np.int32)
        self.first = self.written = len(prompt) + 1
        self.new, self.steps = self.tokens[len(prompt) : self.written].tolist(), 0

    @property
    def done(self):
        return self.written == len(self.tokens)

    def check(self, draft):
        """Accept what of a draft stands there, and write one token more."""
        ahead = self.tokens[self.written :].tolist()
        kept = next((i for i, (a, b) in enumerate(zip(draft, ahead, strict=False)) if a != b), None)
        kept = min(len(draft), len(ahead)) if kept is None else kept
        self.new = ahead[: kept + 1]
        self.written += len(self.new)
        self.steps += 1

    @property
    def tokens_a_step(self):
        return (self.written - self.first) / self.steps


def replayed(texts, propose):
    """Write texts to their ends as one batch; returns them.

    Args:
        texts: Each `Text`.
        propose: As `PageProposer.propose`.
    """
    rows = np.zeros((len(texts), max(len(text.tokens) for text in texts)), dtype=np.int32)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text.tokens)] = text.tokens
    while not all(text.done for text in texts):
        sampled = [[] if text.done else text.new for text in texts]
        lengths = np.array([text.written for text in texts])
        for text, draft in zip(texts, propose(sampled, lengths, rows), strict=True):
            if not text.done:
                text.check(draft)
    return texts


def by_text(rule, size):
    """A rule that looks at one text, as a proposer."""

    def propose(sampled, lengths, rows):
        found = zip(sampled, lengths, rows, strict=True)
        return [rule(row[:length], size) if new else [] for new, length, row in found]

    return propose


PROPOSERS = {
    "n-gram": lambda size: by_text(ngram_draft, size),
    "suffix": lambda size: by_text(suffix_draft, size),
    "page": lambda size: page_proposer(size).propose,
}


@lru_cache(maxsize=1)
def kept_rewrites():
    """Prompt and completion of recorded rewrites, as tokens, by method.

    One of each page, and `GROUP` of each page's key point, one after the other. The model's own
    tokenizer is not there; a byte-level BPE of 12,000 tokens that learned the sample's pages
    stands in for it (with Qwen's, key-point rewrites gain 3.7 instead of 3.8 tokens a step).
    """
    params = read_parameters("03", "recorded")[2]
    corpus = load_corpus(**params.corpus_options)
    pages = [page for example in corpus for page in example.sources]
    tokenizer = with_chat(byte_level_tokenizer(pages, _VOCABULARY))
    roles, kept = make_roles(params), {}

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    class Noting:
        async def complete(self, request):
            found = await roles.callers["rewriter"].complete(request)
            prompt = ids(chat_text(tokenizer, request.prompt))
            kept[method].append((prompt, [*ids(found.text), tokenizer.eos_token_id]))
            return found

    rewriter = replace(roles.rewriter, caller=Noting())
    for method in [name for name in params.methods if name not in MODEL_FREE_METHODS]:
        kept[method] = []
        for example, point in choose_key_points(corpus, params.key_points, params.seed):
            for index in range(GROUP if method == "key_point" else 1):
                run_sync(rewriter.rewrite(method, example, point, index))
    return kept
