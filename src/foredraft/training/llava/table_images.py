"""Tables drawn as images, and loose words too: which ink is which character stands beside them.

Text is set one character after the other at whole pixels, from the fonts that ship with matplotlib,
so that a character of a font and size looks the same wherever it stands and on any machine.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from foredraft.errors import unknown
from foredraft.training.llava.pipe_table import Table

Rules = Literal["grid", "horizontal", "header", "none"]
Header = Literal["plain", "bold", "shaded", "underlined"]
Colour = tuple[int, int, int]
Length = int | float
Box = tuple[Length, Length, Length, Length]
"""Left, top, right, bottom in pixels; the last two lie just outside."""
Font = ImageFont.FreeTypeFont

SIZE = 160
"""The side of an image in pixels."""
BOLD = {
    "DejaVuSans": "DejaVuSans-Bold",
    "DejaVuSansMono": "DejaVuSansMono-Bold",
    "DejaVuSerif": "DejaVuSerif-Bold",
}
"""The bold sister of a font; a font that is not here is its own."""


@dataclass(frozen=True, slots=True)
class Style:
    """How one table is drawn; lengths in pixels, `rotation` in degrees against the clock.

    `shift` is the table's left top corner before it is rotated about the image's centre; `noise` is
    a standard deviation in grey levels of 255, `blur` a Gaussian's.
    """

    font: str = "DejaVuSans"
    text_size: int = 10
    rules: Rules = "grid"
    header: Header = "plain"
    padding: int = 3
    shift: tuple[int, int] = (1, 1)
    ink: Colour = (0, 0, 0)
    paper: Colour = (255, 255, 255)
    rotation: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    noise_seed: int = 0


@dataclass(frozen=True, slots=True)
class Glyph:
    """A character and the box around its ink."""

    character: str
    left: Length
    top: Length
    right: Length
    bottom: Length


@dataclass(frozen=True, slots=True)
class Drawing:
    """An image, and for each cell, row by row, its box and the glyphs of its text."""

    image: Image.Image
    boxes: tuple[tuple[Box, ...], ...]
    glyphs: tuple[tuple[tuple[Glyph, ...], ...], ...]


def draw(table: Table, style: Style, size: int = SIZE) -> Image.Image:
    """Draw a table into an RGB image of size × size pixels; ValueError if it does not fit."""
    return trace(table, style, size).image


def trace(table: Table, style: Style, size: int = SIZE) -> Drawing:
    """Draw a table and tell where its cells and characters stand; ValueError if it does not fit."""
    if not fits(table, style, size):
        told = ", ".join(f"{edge:.0f}" for edge in _outline(table, style, size))
        raise ValueError(
            f"the table reaches over the image: left, top, right, bottom are {told}, the image has "
            f"{size} pixels a side: give fewer or shorter cells, smaller text or a larger image"
        )
    image = Image.new("RGB", (size, size), style.paper)
    pen = ImageDraw.Draw(image)
    columns, rows = edges(table, style)
    _draw_rules(pen, columns, rows, style)
    boxes = tuple(
        tuple((left, top, right, bottom) for left, right in pairwise(columns))
        for top, bottom in pairwise(rows)
    )
    glyphs = tuple(
        tuple(_write_cell(pen, table, style, (row, column), box) for column, box in enumerate(line))
        for row, line in enumerate(boxes)
    )
    if style.rotation:
        boxes = tuple(tuple(_turned(box, style, size) for box in line) for line in boxes)
        glyphs = tuple(
            tuple(tuple(_turned_glyph(glyph, style, size) for glyph in cell) for cell in line)
            for line in glyphs
        )
    return Drawing(_spoilt(image, style), boxes, glyphs)


def fits(table: Table, style: Style, size: int) -> bool:
    """Whether the table lies wholly inside an image of size × size pixels."""
    outline = _outline(table, style, size)
    return min(outline) >= 0 and max(outline) <= size


def edges(table: Table, style: Style) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where the columns and the rows of a table not yet rotated begin, and where the last ends."""
    texts = zip(*text_widths(table, style), strict=True)
    widths = [max(column) + 2 * style.padding + 1 for column in texts]
    height = sum(font(style.font, style.text_size).getmetrics()) + style.padding
    columns = accumulate(widths, initial=style.shift[0])
    rows = accumulate([height] * len(table.cells), initial=style.shift[1])
    return tuple(columns), tuple(rows)


def text_widths(table: Table, style: Style) -> list[list[int]]:
    """The width of each cell's text in pixels, row by row."""
    return [
        [width(cell, _font_of_row(style, row)) for cell in line]
        for row, line in enumerate(table.cells)
    ]


@cache
def font(name: str, size: int) -> Font:
    """Open one of matplotlib's fonts, such as DejaVuSans, in pixels; ValueError if unknown."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    known = sorted(path.stem for path in folder.glob("*.ttf"))
    if name not in known:
        raise unknown("font", name, known)
    # the other engine, where there is one, would kern
    return ImageFont.truetype(folder / f"{name}.ttf", size, layout_engine=ImageFont.Layout.BASIC)


def write(
    pen: ImageDraw.ImageDraw,
    xy: tuple[int, int],
    text: str,
    font: Font,
    ink: Colour = (0, 0, 0),
) -> tuple[Glyph, ...]:
    """Write a line of text from its left top corner `xy`; return the glyphs that have ink."""
    glyphs, (x, y) = [], xy
    for character in text:
        stamp = _stamp(font, character)
        if stamp.mask is not None:
            left, top = x + stamp.left, y + stamp.top
            pen.bitmap((left, top), stamp.mask, fill=ink)
            right, bottom = left + stamp.mask.width, top + stamp.mask.height
            glyphs.append(Glyph(character, left, top, right, bottom))
        x += stamp.advance
    return tuple(glyphs)


def width(text: str, font: Font) -> int:
    """How far `write` moves on for a text, in pixels."""
    return sum(_stamp(font, character).advance for character in text)


@dataclass(frozen=True, slots=True)
class _Stamp:
    """A character's ink (None for a space), where it lies, and the way to the next character."""

    mask: Image.Image | None
    left: int
    top: int
    advance: int


@cache
def _stamp(font: Font, character: str) -> _Stamp:
    left, top, right, bottom = font.getbbox(character)
    x, y = math.floor(left) - 1, math.floor(top) - 1
    mask = Image.new("L", (math.ceil(right) + 1 - x, math.ceil(bottom) + 1 - y))
    ImageDraw.Draw(mask).text((-x, -y), character, fill=255, font=font)
    advance = round(font.getlength(character))
    if (ink := mask.getbbox()) is None:
        return _Stamp(None, 0, 0, advance)
    return _Stamp(mask.crop(ink), x + ink[0], y + ink[1], advance)


def _font_of_row(style: Style, row: int) -> Font:
    is_bold = style.header == "bold" and row == 0
    return font(BOLD.get(style.font, style.font) if is_bold else style.font, style.text_size)


def _write_cell(
    pen: ImageDraw.ImageDraw, table: Table, style: Style, place: tuple[int, int], box: Box
) -> tuple[Glyph, ...]:
    row, column = place
    text, face = table.cells[row][column], _font_of_row(style, row)
    slack = int(box[2] - box[0]) - 1 - 2 * style.padding - width(text, face)
    indent = {"centre": slack // 2, "right": slack}.get(table.alignments[column], 0)
    x, y = int(box[0]) + 1 + style.padding + indent, int(box[1]) + 1 + style.padding // 2
    if style.header == "underlined" and row == 0 and text:
        line = y + face.getmetrics()[0] + 1
        pen.line((x, line, x + width(text, face) - 1, line), fill=style.ink)
    return write(pen, (x, y), text, face, style.ink)


def _draw_rules(
    pen: ImageDraw.ImageDraw, columns: Sequence[int], rows: Sequence[int], style: Style
) -> None:
    left, top, right, bottom = columns[0], rows[0], columns[-1], rows[-1]
    if style.header == "shaded":
        pen.rectangle((left, top, right, rows[1]), fill=_mixed(style, 0.18))
    lines = {"none": (), "header": rows[1:2]}.get(style.rules, rows)
    for y in lines:
        pen.line((left, y, right, y), fill=style.ink)
    for x in columns if style.rules == "grid" else ():
        pen.line((x, top, x, bottom), fill=style.ink)


def _mixed(style: Style, share: float) -> Colour:
    """The paper's colour with a share of the ink's."""
    red, green, blue = (
        round(paper + share * (ink - paper))
        for paper, ink in zip(style.paper, style.ink, strict=True)
    )
    return red, green, blue


def _outline(table: Table, style: Style, size: int) -> Box:
    columns, rows = edges(table, style)
    return _turned((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), style, size)


def _turned(box: Box, style: Style, size: int) -> Box:
    """The upright box around a box that turns with the image."""
    cosine, sine = (turn(math.radians(style.rotation)) for turn in (math.cos, math.sin))
    left, top, right, bottom = (edge - size / 2 for edge in box)
    corners = [(x, y) for x in (left, right) for y in (top, bottom)]
    xs = [x * cosine + y * sine + size / 2 for x, y in corners]
    ys = [y * cosine - x * sine + size / 2 for x, y in corners]
    return min(xs), min(ys), max(xs), max(ys)


def _turned_glyph(glyph: Glyph, style: Style, size: int) -> Glyph:
    box = (glyph.left, glyph.top, glyph.right, glyph.bottom)
    return Glyph(glyph.character, *_turned(box, style, size))


def _spoilt(image: Image.Image, style: Style) -> Image.Image:
    """Rotate, blur and add noise, in this order, as far as the style says."""
    if style.rotation:
        image = image.rotate(style.rotation, Image.Resampling.BICUBIC, fillcolor=style.paper)
    if style.blur:
        image = image.filter(ImageFilter.GaussianBlur(style.blur))
    if style.noise:
        pixels = np.asarray(image, dtype=np.float32)
        noise = np.random.default_rng(style.noise_seed).standard_normal(pixels.shape, np.float32)
        noisy = (pixels + style.noise * noise).round().clip(0, 255)
        image = Image.fromarray(noisy.astype(np.uint8))
    return image
