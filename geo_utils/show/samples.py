"""Every sample of a run to browse, inside its report: a map, a list, and each one's texts."""

from __future__ import annotations

import base64
import gzip
import json

import pandas as pd
from markupsafe import Markup

from geo_utils.roles.methods import label
from geo_utils.show.jinja import TEMPLATES, filled

_TEXTS = ("query_id", "query", "key_point", "page", "answer", "verdict", "method", "repeat")
_NEEDS = {*_TEXTS, "explanation", "abstention", "supported", "pawc"}


def sample_browser(samples: pd.DataFrame) -> Markup:
    """Return a part of a page that lists every sample, to be filtered and opened.

    The texts are packed into the page (JSON, gzip, base64), each page and query once, and unpacked
    by the browser when the list is opened: nothing is asked for.

    Args:
        samples: As `evaluate.evaluate` returns it; of another table nothing is returned.
    """
    if samples.empty or not _NEEDS.issubset(samples.columns):
        return Markup()
    codes: dict[str, list[int]] = {}
    texts: dict[str, list[str]] = {}
    for name in ("query_id", "key_point", "page", "method"):
        places, found = pd.factorize(samples[name])  # -1 for a page that is missing
        codes[name], texts[name] = places.tolist(), [str(text) for text in found]
    queries = samples.drop_duplicates("query_id").set_index("query_id")["query"]
    reasons = samples["abstention"].fillna(samples["explanation"]).fillna("")
    figures = samples[["supported", "pawc"]].astype(float).round(3).astype(object)
    figures = figures.where(figures.notna(), None)
    rows = zip(
        *(codes[name] for name in ("query_id", "method", "key_point", "page")),
        samples["repeat"].tolist(),
        samples["verdict"].fillna("abstained").tolist(),
        samples["answer"].fillna("").tolist(),
        reasons.tolist(),
        *(figures[name].tolist() for name in figures),
        strict=True,
    )
    told = {
        "queries": [[name, str(queries[name])] for name in texts["query_id"]],
        "methods": [label(name) for name in texts["method"]],
        "points": texts["key_point"],
        "pages": texts["page"],
        "rows": [list(row) for row in rows],
    }
    packed = gzip.compress(json.dumps(told, ensure_ascii=False).encode("utf-8", "replace"), mtime=0)
    return filled("samples.html", count=len(samples), packed=base64.b64encode(packed).decode())


def browser_script() -> str:
    """Return the text of the script that a page with a `sample_browser` runs."""
    return (TEMPLATES / "samples.js").read_text(encoding="utf-8")
