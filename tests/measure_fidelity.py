"""How often the fidelity gate is right: `python tests/measure_fidelity.py [WHICH]`, one of `SETS`.

With `--judge openai/ID --server URL` or `--judge gemini/ID` the model judges the claims; with
`--judge told` what a large language model said of them counts, a letter a claim, which read claims
and prompt in November 2026, and neither kinds nor code (`data/fidelity_verdicts.jsonl`).

The pages of `data/fidelity_pages.jsonl` were written for it, before the gate and without running
it: each a rewrite of a target page of the sample, of one kind, and faithful or not. They fall in
halves by a hash of the page's query. The open half is for choosing the gate's figures, the sealed
one is measured when they are chosen. The pages by others were written afterwards, by a hand that
knew the kinds and neither the gate nor its code; nothing was chosen on them. A first reading of
the sealed ones and of those led to a change of the judge's prompt, so a third hand wrote the fresh
ones, which were read once, after it.
"""

import argparse
import hashlib
import json
from collections import defaultdict
from functools import lru_cache
from pathlib import Path

from geo_utils.corpus import load_corpus
from geo_utils.fidelity import least_fidelity, page_fidelity
from geo_utils.models.caller import Caller
from geo_utils.models.loops import gather_all, run_sync
from geo_utils.roles.by_model import ModelJudge
from geo_utils.roles.make import make_model
from geo_utils.roles.params import ModelName

PAGES = Path(__file__).parent / "data" / "fidelity_pages.jsonl"
SETS = ("open", "sealed", "others", "fresh")
FILES = {"others": "fidelity_pages_by_others.jsonl", "fresh": "fidelity_pages_fresh.jsonl"}
LABELS = {"k": "kept", "c": "changed", "l": "lost", "s": "supported", "x": "contradicted",
          "r": "repeated", "n": "new"}  # fmt: skip


def fidelity_pages(which):
    """Return (original, rewritten page, kind, whether it is faithful) of one of `SETS`."""
    originals = {example.query_id: example.target for example in load_corpus("sample")}
    path = PAGES.with_name(FILES.get(which, PAGES.name))
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())

    def half(row):
        digest = hashlib.sha256(row["query_id"].encode()).hexdigest()
        return which if which in FILES else SETS[int(digest, 16) % 2]

    return [
        (originals[row["query_id"]], row["text"], row["kind"], row["faithful"])
        for row in rows
        if half(row) == which
    ]


def rates(pages, passes):
    """Return by kind how many pages are judged rightly, and of how many."""
    found = defaultdict(lambda: [0, 0])
    for original, page, kind, faithful in pages:
        found[kind][0] += passes(original, page) == faithful
        found[kind][1] += 1
    return dict(found)


class Told(ModelJudge):
    """What a model said of the claims of the written pages."""

    async def judge_claims(self, original, page, known=()):
        key = hashlib.sha256("\n".join([*original, *page]).encode()).hexdigest()[:16]
        return [LABELS[letter] for letter in verdicts()[key]]


@lru_cache
def verdicts():
    """Return the letters of both pages' claims, by a hash of their texts."""
    lines = PAGES.with_name("fidelity_verdicts.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["claims"]: row["original"] + row["page"] for row in map(json.loads, lines)}


def main():
    """Measure the gate on the written pages and print how many it judges rightly, by kind."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("which", nargs="?", choices=SETS, default="open")
    parser.add_argument("--judge")
    parser.add_argument("--server", nargs="*", default=[])
    args = parser.parse_args()
    judge, pages = None, fidelity_pages(args.which)
    if args.judge == "told":
        judge = Told(None)
    elif args.judge:
        judge = ModelJudge(Caller(make_model(ModelName.read(args.judge), tuple(args.server))))
    each = run_sync(gather_all(page_fidelity(o, p, (), judge) for o, p, _, _ in pages))
    known = {page[:2]: found for page, found in zip(pages, each, strict=True) if found}
    judged = [page for page in pages if page[:2] in known]
    found = rates(judged, lambda *both: known[both].score >= least_fidelity(judge))
    lines = [f"{kind}: {right} of {n}" for kind, (right, n) in found.items()]
    lines.append(f"abstentions: {len(pages) - len(judged)}")
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    main()
