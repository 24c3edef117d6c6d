"""Prompt templates: one Markdown file each, loaded by name, hashed, replaceable by a folder.

Those of the previous methods, GEO's nine and AutoGEO's `rules`, demand in our words what the
published prompts demand; where these ask for additions, a rewrite may invent them. The
`_truthful` ones forbid that.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from geo_utils.text import inert, words

_SHIPPED = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Template:
    """A prompt with `$name` in place of what changes (`$$` for a dollar sign).

    Attributes:
        name: File name without ending.
        text: The file's text.
    """

    name: str
    text: str

    @property
    def hash(self) -> str:
        """Hash of the text, part of cache key and manifest."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def fill(self, values: Mapping[str, str | Sequence[str]], needs: Iterable[str]) -> str:
        """Return the prompt: the one place where text becomes part of one.

        A value is put in byte for byte, but for what would end it there (`text.inert`): it can
        neither close the template's tags nor open new ones, nor begin another turn of the chat.

        Args:
            values: What the role can put in; several texts become numbered sources, and
                `$source_numbers` what an answer cites them by, for a reminder below them. It
                quotes none of them: what stands first on a page would be said twice.
            needs: What the prompt would be pointless without, such as the page.

        Raises:
            ValueError: The template asks for a value that this role does not have, or leaves
                a needed one out, which would silently hide it from the model.
        """
        template, used, tags = self._read
        put = {name: _put(value, tags) for name, value in values.items()}
        for value in values.values():
            if not isinstance(value, str):
                put["source_numbers"] = ", ".join(f"[{i}]" for i in range(1, len(value) + 1))
        if template is None or not set(needs) <= used <= set(put):
            raise ValueError(
                f"prompt template {self.name!r} uses {_names(used)}; it must use "
                f"{_names(needs)} and may use {_names(put)} (and $$ for a dollar sign)"
            )
        return template.substitute(put)

    def is_copied_in(self, text: str) -> bool:
        """Tell whether a text has eight words in a row that the template itself says."""
        return not self._runs.isdisjoint(_runs(text))

    @cached_property
    def _runs(self) -> frozenset[tuple[str, ...]]:
        parts = re.split(r"\$\w+", self.text)
        return frozenset(run for part in parts for run in _runs(part))

    @cached_property
    def _read(self) -> tuple[string.Template | None, set[str], tuple[str, ...]]:
        """The template, if it is a valid one, the names it uses, and its tags."""
        template = string.Template(self.text)
        tags = tuple(re.findall(r"</?([A-Za-z][\w-]*)", self.text))
        return template if template.is_valid() else None, set(template.get_identifiers()), tags


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    said = words(text.lower())
    return zip(*(said[start:] for start in range(8)), strict=False)


def _put(value: str | Sequence[str], tags: tuple[str, ...]) -> str:
    if isinstance(value, str):
        return inert(value, tags)
    each = (inert(text, tags) for text in value)
    return "\n\n".join(
        f'<source number="{i}">\n{text}\n</source>' for i, text in enumerate(each, 1)
    )


def load_template(name: str, folder: Path | None = None) -> Template:
    """Return a template, from the user's folder where that has it, else the shipped one.

    Raises:
        ValueError: The folder does not exist, or no such template is shipped.
    """
    if folder is not None and not folder.is_dir():
        raise ValueError(f"prompts={str(folder)!r}: no such folder")
    for place in (folder, _SHIPPED):
        path = place / f"{name}.md" if place else None
        if path is not None and path.is_file():
            status = path.stat()
            return _template(path, status.st_mtime_ns, status.st_size)
    known = ", ".join(sorted(p.stem for p in _SHIPPED.glob("*.md")))
    raise ValueError(f"no prompt template {name!r}; there are {known}")


@lru_cache(maxsize=256)
def _template(path: Path, *_changed: int) -> Template:
    return Template(path.stem, path.read_text(encoding="utf-8"))


def load_rules(folder: Path | None = None) -> list[str]:
    """Return the preference rules: `rules.json` of the user's folder, else our own.

    The file is a JSON object with a list under `filtered_rules`, as AutoGEO writes them.

    Raises:
        ValueError: The file holds no such list.
    """
    own = folder / "rules.json" if folder else None
    path = own if own is not None and own.is_file() else _SHIPPED / "rules.json"
    try:
        rules = json.loads(path.read_text(encoding="utf-8"))["filtered_rules"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"rules file {path}: no list under filtered_rules ({error!r})") from None
    if not isinstance(rules, list) or not all(isinstance(rule, str) for rule in rules):
        raise ValueError(f"rules file {path}: filtered_rules must be a list of texts")
    return rules


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"${name}" for name in sorted(names)) or "nothing"
