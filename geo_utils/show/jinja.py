"""HTML from the templates beside this module; every value that is put in is escaped."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

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
