"""Slides as PowerPoint, to be edited: text and tables as text, figures as pictures."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from geo_utils.text import clean_text

# Inches of a slide and of its margin; what a character and a line take, a point of their size.
_WIDE, _HIGH, _EDGE, _CHAR, _LINE = 13.333, 7.5, 0.35, 0.0072, 0.0172
_TEXT, _SMALL, _HEADS = 14.0, 12.0, {"h2": 22.0, "h3": 17.0}  # points
_GAP, _CELL, _LEAST_PICTURE = 0.02, 0.04, 2.5  # inches
_ROOM, _WIDTH = _HIGH - 2 * _EDGE, _WIDE - 2 * _EDGE
_HOLDERS = {"div", "ul", "ol", "li", "p", "pre", "table", "img", "h4", "blockquote"}


class Item(NamedTuple):
    """What stands on a slide: a text, rows of a table or bytes of a PNG; its size in points."""

    content: Any
    size: float = _TEXT
    bold: bool = False

    def height(self, scale: float) -> float:
        """The inches that it takes, of a picture the least, with text of so much its size."""
        if isinstance(self.content, bytes):
            return _LEAST_PICTURE
        if isinstance(self.content, list):
            return sum(self.row_heights(scale))
        size = self.size * scale
        return _lines(self.content, _WIDTH, size) * size * _LINE + 2 * _CELL

    def widths(self, scale: float) -> list[float]:
        """The inches of a table's columns: as their longest texts want, if there is room."""
        columns = zip(*self.content, strict=True)
        # A capital takes a third more than other letters, or `GPUs` breaks.
        capitals = ([len(text) + sum(map(str.isupper, text)) / 3 for text in c] for c in columns)
        longest = [min(max(lengths), 70) for lengths in capitals]
        wanted = [most * self.size * scale * _CHAR + 4 * _CELL for most in longest]
        return [own * min(_WIDTH / sum(wanted), 1.0) for own in wanted]

    def row_heights(self, scale: float) -> list[float]:
        """The inches of a table's rows."""
        size, widths = self.size * scale, [width - 3 * _CELL for width in self.widths(scale)]
        cells = (zip(row, widths, strict=True) for row in self.content)
        most = (max(_lines(text, width, size) for text, width in row) for row in cells)
        return [lines * size * _LINE + 2 * _CELL for lines in most]


def write_pptx(slides: Sequence[str], path: Path) -> Path:
    """Write slides as a PowerPoint file, and return its path.

    Args:
        slides: The HTML of each, as the week's deck makes it.
        path: Where to write.

    Raises:
        ModuleNotFoundError: The extra `pptx` is not installed.
    """
    from lxml import html
    from pptx import Presentation
    from pptx.util import Inches

    made = Presentation()
    made.slide_width, made.slide_height = Inches(_WIDE), Inches(_HIGH)
    for slide in slides:
        shapes = made.slides.add_slide(made.slide_layouts[6]).shapes  # the empty layout
        body = html.fromstring(f"<div>{slide}</div>").find_class("geo-slide")[0]
        _place(shapes, list(_items(body)))
    made.save(str(path))
    return path


def _items(parent: Any) -> Iterator[Item]:
    """Read what stands on a slide, from top to bottom."""
    for node in parent.iterchildren("*"):
        kind, children = node.get("class", ""), list(node.iterchildren("*"))
        if kind == "geo-head":
            for child in children:
                if text := _text(child):
                    yield Item(text, _HEADS.get(child.tag, _SMALL), child.tag in _HEADS)
        elif node.tag == "img":
            yield _picture(node)
        elif node.tag == "table" or kind == "geo-columns":
            lines = node.iter("tr") if node.tag == "table" else zip(*children, strict=True)
            rows = [[_text(cell) for cell in line] for line in lines]
            most = max(map(len, rows), default=0)
            if most:
                yield Item([row + [""] * (most - len(row)) for row in rows], _SMALL)
            yield from (Item(_text(caption), _SMALL) for caption in node.iter("caption"))
        elif any(child.tag in _HOLDERS for child in children):
            yield from _items(node)
        elif node.tag != "style" and (text := _text(node)):
            small = kind in ("geo-foot", "geo-small")
            yield Item("• " * (node.tag == "li") + text, _SMALL if small else _TEXT)


def _picture(node: Any) -> Item:
    """Return a picture; what it shows in words where PowerPoint has none of its kind."""
    from pptx.parts.image import Image

    try:
        found = base64.b64decode(node.get("src", "").partition(",")[2])
        if Image.from_blob(found).ext:
            return Item(found)
    except (OSError, ValueError):  # no picture, of another kind, or of somewhere else
        pass
    return Item(clean_text(node.get("alt", "")) or "(picture)", _SMALL)


def _text(node: Any) -> str:
    """Return an element's text; its lines where they count."""
    text = clean_text(node.text_content()).strip()
    keep = node.tag == "pre" or node.get("class") == "geo-box"
    return text if keep else re.sub(r"\s+", " ", text)


def _lines(text: str, width: float, size: float) -> int:
    most = max(int(width / (size * _CHAR)), 1)
    return sum(max(-(-len(line) // most), 1) for line in text.split("\n"))


def _place(shapes: Any, items: list[Item]) -> None:
    """Put items one below the other; pictures share the room that the others leave."""
    from pptx.util import Inches, Pt

    pictures = sum(isinstance(item.content, bytes) for item in items)
    scales = (step / 20 for step in range(20 if pictures else 25, 5, -1))
    fits = (s for s in scales if sum(item.height(s) + _GAP for item in items) <= _ROOM)
    scale, top = next(fits, 0.3), _EDGE
    spare = _ROOM - sum(item.height(scale) + _GAP for item in items) + pictures * _LEAST_PICTURE
    for item in items:
        high, size = item.height(scale), Pt(item.size * scale)
        place = [Inches(length) for length in (_EDGE, top, _WIDTH, high)]
        if isinstance(item.content, bytes):
            shown = shapes.add_picture(io.BytesIO(item.content), *place[:3])
            share = min(shown.height, Inches(spare / pictures))
            shown.width, shown.height = int(shown.width * share / shown.height), share
            high = share / Inches(1)
        elif isinstance(item.content, list):
            widths, heights = item.widths(scale), item.row_heights(scale)
            table = shapes.add_table(len(heights), len(widths), *place).table
            for column, length in zip(table.columns, widths, strict=True):
                column.width = Inches(length)
            for row, length in zip(table.rows, heights, strict=True):
                row.height = Inches(length)
            for cell, text in zip(table.iter_cells(), chain(*item.content), strict=True):
                _write(cell, cell.text_frame, text, size)
        else:
            frame = shapes.add_textbox(*place).text_frame
            _write(frame, frame, item.content, size, item.bold)
        top += high + _GAP


def _write(edge: Any, frame: Any, text: str, size: Any, bold: bool = False) -> None:
    """Fill a frame; `edge` is what has its margins, which a table's cell has itself."""
    from pptx.util import Inches

    edge.margin_left = edge.margin_right = edge.margin_top = edge.margin_bottom = Inches(_CELL)
    frame.word_wrap, frame.text = True, text
    for paragraph in frame.paragraphs:
        paragraph.font.size, paragraph.font.bold, paragraph.font.name = size, bold, "Arial"
