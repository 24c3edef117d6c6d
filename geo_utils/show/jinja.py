"""Where text becomes HTML: escaped, sanitised, and on pages that run and load nothing else's."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable
from pathlib import Path

from IPython.display import Markdown
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from geo_utils.text import clean_text, singular

TEMPLATES = Path(__file__).resolve().parent / "templates"
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def filled(template: str, **values: object) -> Markup:
    """Fill in a template.

    Args:
        template: A file's name in `show/templates/`.
        values: What it asks for; a text that is no `Markup` is escaped.

    Raises:
        jinja2.UndefinedError: A value is missing.
    """
    text = _ENVIRONMENT.get_template(template).render(**values)
    return Markup(text.encode("utf-8", "replace").decode())  # half a character cannot be written


# Behind which a backslash keeps what follows from being a link or a picture.
_LINKS = re.compile(r"(!)(?=\[)|(?<=\])(?=[(\[:])|(?<=:)(?=//)|(?i:(?<=www)(?=\.))|(?=@)")


def in_words(text: str) -> Markdown:
    """Return computed words for a notebook cell: Markdown without HTML, links and pictures.

    They quote names of models, folders and reasons that come from elsewhere.
    """
    plain = singular(text).replace("&", "&amp;").replace("<", "&lt;")
    shown = Markdown("")  # made of a text, it would open the page or file that this names
    shown.data = _LINKS.sub(r"\1\\", plain)
    return shown


def from_markdown(text: str) -> Markup:
    """Return Markdown as HTML that runs nothing and loads nothing; links stay."""
    import bleach
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    renderer = IPythonRenderer(escape=False, exclude_anchor_links=True)
    rendered = MarkdownWithMath(renderer=renderer).render(text)
    return Markup(
        bleach.clean(rendered, _TAGS, _may_stay, ("http", "https", "mailto", "data"), strip=True)
    )


_STYLES = re.compile(r"<style\b[^>]*>([^<]*)</style>", re.IGNORECASE)
_LOADS = re.compile(r"(?i)url|image|src|@import|//|\\")  # what CSS fetches by, or hides it behind


def from_run(output: str) -> Markup:
    """Return an output of a run, HTML with its styles, so that it runs and loads nothing."""
    import bleach
    from bleach.css_sanitizer import CSSSanitizer

    def may_stay(tag: str, name: str, value: str) -> bool:
        own = name in ("class", "dir", "id") or (name == "style" and not _LOADS.search(value))
        return own or _may_stay(tag, name, value)

    shown = bleach.clean(
        _STYLES.sub("", clean_text(output)),
        _TAGS | {"caption", "u"},
        may_stay,
        ("http", "https", "data"),
        strip=True,
        css_sanitizer=CSSSanitizer(("background", "text-decoration", "--shade")),
    )
    styles = (f"<style>{css}</style>" for css in _STYLES.findall(output) if not _LOADS.search(css))
    return Markup("".join(styles) + shown)


_TAGS = frozenset(
    """a abbr b blockquote br code dd del div dl dt em h1 h2 h3 h4 h5 h6 hr i img ins kbd li mark ol
    p pre s span strong sub sup table tbody td th thead tr ul""".split()  # noqa: SIM905
)


def _may_stay(tag: str, name: str, value: str) -> bool:
    if tag == "img" and name == "src":
        return value.startswith("data:image/")
    if tag == "a" and name == "href":  # browsers skip control characters and spaces
        return not re.sub(r"[\x00-\x20]", "", html.unescape(value)).lower().startswith("data:")
    if name == "class":  # of the project's own pages
        return "geo-" not in value
    return name in ("align", "alt", "colspan", "rowspan", "start", "title")


def secured(page: str, scripts: Iterable[str]) -> str:
    """Return a page that runs these scripts alone and loads nothing, whatever else stands in it.

    Args:
        page: A whole page with a head.
        scripts: Texts of the project's own scripts.
    """
    own = {script.strip() for script in scripts}
    hashes = {
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        for script in re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
        if script.strip() in own
    }
    allowed = " ".join(f"'sha256-{value}'" for value in sorted(hashes)) or "'none'"
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "font-src data:; base-uri 'none'; form-action 'none'"
    )
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    page = page.encode("utf-8", "replace").decode()  # half a character cannot be written
    return re.sub(r"<head>", lambda head: head[0] + meta, page, count=1)
