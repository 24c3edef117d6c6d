"""How often the fidelity gate is right: `python tests/measure_fidelity.py [--sealed]`.

The pages of `data/fidelity_pages.jsonl` were written for it, before the gate and without running
it: each a rewrite of a target page of the sample, of one kind, and faithful or not. They fall in
halves by a hash of the page's query. The open half is for choosing the gate's figures, the sealed
one is measured when they are chosen.
"""

import argparse
import hashlib
import json
from collections import defaultdict
from pathlib import Path

from geo_utils.corpus import load_corpus
from geo_utils.fidelity import fidelity

GATE = 0.8
PAGES = Path(__file__).parent / "data" / "fidelity_pages.jsonl"


def fidelity_pages(sealed):
    """Return (original, rewritten page, kind, whether it is faithful) of one half."""
    originals = {example.query_id: example.target for example in load_corpus("sample")}
    rows = map(json.loads, PAGES.read_text(encoding="utf-8").splitlines())
    return [
        (originals[row["query_id"]], row["text"], row["kind"], row["faithful"])
        for row in rows
        if int(hashlib.sha256(row["query_id"].encode()).hexdigest(), 16) % 2 == sealed
    ]


def rates(pages, passes):
    """Return by kind how many pages are judged rightly, and of how many."""
    found = defaultdict(lambda: [0, 0])
    for original, page, kind, faithful in pages:
        found[kind][0] += passes(original, page) == faithful
        found[kind][1] += 1
    return dict(found)


def main():
    """Measure the gate on the written pages and print how many it judges rightly, by kind."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--sealed", action="store_true")
    args = parser.parse_args()
    pages = fidelity_pages(args.sealed)
    found = rates(pages, lambda original, page: fidelity(original, page).score >= GATE)
    lines = [f"{kind}: {right} of {n}" for kind, (right, n) in found.items()]
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    main()
