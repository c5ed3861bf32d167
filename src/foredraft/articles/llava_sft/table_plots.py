"""Single tables of article 06: their pictures, tokens and Markdown, what was read, and from where.

A page is laid out in inches from its left top corner, so that texts of known width meet nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Patch, Rectangle
from PIL.Image import Image

from foredraft.viz import figures

SIDE = 1.45
"""Inches: the side of a picture."""
GAP = 0.12
"""Inches: between a picture and its text, and between rows."""
TOP = 0.34
"""Inches: the title's."""
POINTS = 5.5
"""The size of Markdown."""
ADVANCE = 0.65 * POINTS / 72
"""Inches: how wide each of its characters is at most; 0.602 em, but rounded to a screen's dots."""
LINE = 1.45 * POINTS / 72
"""Inches: how far its lines are apart."""

INK, FAINT, UNLIKE = "#222222", "#767676", "#D55E00"
MISSING = "^"
"""What stands below the place of characters that a text lacks."""
UNKNOWN = "\ufffd"
"""What is shown of a character that the font lacks."""

ROLES: Mapping[str, tuple[str, str]] = {
    "prompt": ("prompt", "#DDDDDD"),
    "image": ("image", "#CBB7DD"),
    "answer": ("answer", "#A8D5F2"),
    "end": ("end of the answer", "#F7C87A"),
}
"""What each role of a token is called, and its ground."""

LOSS = "#0072B2"
"""The bar below what carries loss."""

COLUMNS, TOKENS = 112, 0.2
"""Characters in a line of tokens, and its height in inches."""

MOST_MAPS = 5
"""How many heat maps fit on a page."""
HEAT = LinearSegmentedColormap.from_list("heat", [(0.835, 0.369, 0, 0), (0.835, 0.369, 0, 0.8)])
"""From clear to the orange of what differs."""


@runtime_checkable
class Case(Protocol):
    """A table's picture, its Markdown, and what was read of it before and after fine-tuning."""

    @property
    def image(self) -> Image:
        """The picture."""
        ...

    @property
    def reference(self) -> str:
        """The table's Markdown."""
        ...

    @property
    def before(self) -> str:
        """What the base read."""
        ...

    @property
    def after(self) -> str:
        """What the fine-tuned model read."""
        ...


@figures.drawing
def levels(examples: Sequence[tuple[int, Image, str]]) -> Figure:
    """Show tables, level by level, a row each: the pictures, and below them their Markdown."""
    if not examples:
        raise ValueError("there are 0 examples to draw: give at least one")
    ordered = sorted(examples, key=lambda example: example[0])
    rows = {level: list(row) for level, row in groupby(ordered, lambda example: example[0])}
    left, columns = 0.3, max(map(len, rows.values()))
    width = (figures.DOUBLE - left) / columns
    n_characters = int((width - GAP) / ADVANCE)
    longest = max(len(line) for *_, text in examples for line in text.split("\n"))
    block = max(SIDE, ADVANCE * min(longest, n_characters))
    heights = {
        level: SIDE + GAP / 2 + LINE * max(len(_spans(text, n_characters)) for *_, text in row)
        for level, row in rows.items()
    }
    page = _page(TOP + sum(heights.values()) + GAP * len(rows))
    y = TOP
    for level, row in rows.items():
        look: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "center", "fontsize": 8}
        page.text(left / 2, y + SIDE / 2, f"level {level}", fontweight="bold", **look)
        for i, (_, image, text) in enumerate(row):
            x = left + i * width + (width - block) / 2
            _picture(page, image, x, y)
            _write(page, (x, y + SIDE + GAP / 2), text, _Marks(), n_characters=n_characters)
        y += heights[level] + GAP
    told = ", ".join(f"{level}: {_lengths(row)}" for level, row in rows.items())
    return _titled(page, f"Tables and the Markdown to be written, in characters, at level {told}")


@figures.drawing
def roles(tokens: pd.DataFrame) -> Figure:
    """Draw a conversation as a box a token, and a bar below each that carries loss.

    Columns: text, role ("prompt", "image", "answer", "end"), has_loss. A run of image tokens is one
    box; new lines are shown as ↵ and end a line.
    """
    boxes, n_lines = _placed(_boxes(tokens))
    figure = figures.panels(width=figures.DOUBLE, height=0.7 + TOKENS * n_lines)
    (axes,) = figure.axes
    for line, column, text, role, has_loss in boxes:
        width, ground = len(text) + 0.7, ROLES[role][1]
        axes.add_patch(Rectangle((column, line), width, 0.68, facecolor=ground, lw=0))
        if has_loss:
            axes.add_patch(Rectangle((column, line + 0.72), width, 0.14, facecolor=LOSS, lw=0))
        letter: dict[str, Any] = {"ha": "center", "va": "center", "family": "monospace"}
        for i, character in enumerate(text):
            at = (column + 0.85 + i, line + 0.34)
            axes.text(*at, character, fontsize=6, parse_math=False, **letter)
    axes.set(xlim=(0, COLUMNS), ylim=(n_lines, 0))
    axes.set_axis_off()
    shown = [role for role in ROLES if role in set(tokens["role"])]
    handles = [Patch(facecolor=ROLES[role][1], label=ROLES[role][0]) for role in shown]
    look: dict[str, Any] = {"loc": "outside lower center", "ncols": len(shown) + 1, "fontsize": 6}
    figure.legend(handles=[*handles, Patch(facecolor=LOSS, label="bar: carries loss")], **look)
    told = tokens.groupby("role", sort=False)["has_loss"].agg(["sum", "size"])
    by_role = [f"{told.loc[role, 'sum']} of {told.loc[role, 'size']} {role}" for role in shown]
    figure.suptitle(
        f"{tokens['has_loss'].sum()} of {len(tokens)} tokens carry loss: {', '.join(by_role)}",
        fontsize=8,
    )
    return figure


def _boxes(tokens: pd.DataFrame) -> Iterable[tuple[str, str, bool]]:
    """Give text, role and loss of each box: a token, or a run of equal image tokens."""
    rows = tokens[["text", "role", "has_loss"]].itertuples(index=False, name=None)
    for (text, role, has_loss), run in groupby(rows):
        n = sum(1 for _ in run)
        as_one = role == "image" and n > 1
        yield from [(f"{text} × {n}", role, has_loss)] if as_one else [(text, role, has_loss)] * n


def _placed(
    boxes: Iterable[tuple[str, str, bool]],
) -> tuple[list[tuple[int, int, str, str, bool]], int]:
    """Give the line and the column of each box, its text as shown; and the number of lines."""
    placed: list[tuple[int, int, str, str, bool]] = []
    line = column = 0
    for text, role, has_loss in boxes:
        shown = text.replace("\n", "↵").replace(" ", "·") if role != "image" else text
        shown = shown if len(shown) < COLUMNS else f"{shown[: COLUMNS - 2]}…"
        if column + len(shown) + 1 > COLUMNS:
            line, column = line + 1, 0
        placed.append((line, column, shown, role, has_loss))
        column += len(shown) + 1
        if text.endswith("\n"):
            line, column = line + 1, 0
    return placed, line + (column > 0)


@figures.drawing
def before_and_after(cases: Sequence[Case]) -> Figure:
    """Show pictures with what was read of them before and after; marked where it is unlike.

    A text that is longer than its picture is high ends in a line that says how much is left out.
    """
    if not cases:
        raise ValueError("there are 0 cases to draw: give at least one")
    width = (figures.DOUBLE - SIDE - 3 * GAP) / 2
    n_characters, n_lines = int(width / ADVANCE) - 2, int((SIDE - 0.12) / LINE)
    page = _page(TOP + len(cases) * (SIDE + GAP) + 0.2)
    for row, case in enumerate(cases):
        y = TOP + row * (SIDE + GAP)
        _picture(page, case.image, GAP, y)
        for i, (stage, text) in enumerate((("before", case.before), ("after", case.after))):
            x, marks = SIDE + 2 * GAP + i * width, _marks(text, case.reference)
            told = f"characters unlike: {marks.n}" if marks.n else "as it should be"
            page.text(x, y, f"{stage}, {told}", fontsize=6, fontweight="bold", va="top")
            _write(page, (x, y + 0.12), text, marks, n_characters=n_characters, most=n_lines)
    about = f"bold and orange: unlike the table's Markdown; {MISSING}: something is missing here"
    bottom = TOP + len(cases) * (SIDE + GAP) + 0.07
    page.text(figures.DOUBLE / 2, bottom, about, fontsize=6, ha="center", va="center")
    right = [
        sum(case.before == case.reference for case in cases),
        sum(case.after == case.reference for case in cases),
    ]
    told = f"{right[0]} before fine-tuning, {right[1]} after"
    return _titled(page, f"Of {len(cases)} held-out tables, written as they should be: {told}")


@figures.drawing
def saliency(image: Image, maps: Sequence[np.ndarray], labels: Sequence[str]) -> Figure:
    """Show a table, and for each of its cells the patches that its text was read from.

    maps: [patch, patch] in [0, 1] each; labels: what each is of. ValueError beyond five.
    """
    if not 1 <= len(maps) <= MOST_MAPS or len(maps) != len(labels):
        raise ValueError(
            f"there are {len(maps)} maps and {len(labels)} labels: give 1 to {MOST_MAPS} maps, "
            "and a label each"
        )
    n = 1 + len(maps)
    width = min(figures.DOUBLE, 1.4 * n + 0.8)
    figure = figures.panels(n, width=width, height=(width - 0.6) / n + 0.4)
    whole = (0, image.width, image.height, 0)
    for axes, label in zip(figure.axes, ("picture", *labels), strict=True):
        axes.set_title(f"   {_cut(_shown(label), 12)}", loc="center", parse_math=False)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color="#BBBBBB")
        axes.grid(visible=False)
    figure.axes[0].imshow(image, extent=whole)
    panels = figure.axes[1:]
    for axes, heat in zip(panels, maps, strict=True):
        axes.imshow(image.convert("L"), cmap="gray", vmin=0, vmax=255, extent=whole, alpha=0.7)
        axes.imshow(heat, HEAT, vmin=0, vmax=1, extent=whole, interpolation="bilinear")
    look: dict[str, Any] = {"shrink": 0.7, "aspect": 14, "pad": 0.01, "ticks": [0, 0.5, 1]}
    bar = figure.colorbar(panels[-1].images[-1], ax=panels, label="saliency", **look)
    bar.ax.tick_params(labelsize=6)
    told = f"{_span([_half(heat) for heat in maps])} of {maps[0].size} patches"
    figure.suptitle(f"Half of a cell's saliency lies in {told}", fontsize=8)
    return figure


def _half(heat: np.ndarray) -> int:
    """Count the patches, the strongest first, that make up half of a map."""
    strongest = np.sort(heat, axis=None)[::-1].cumsum()
    return int((strongest < strongest[-1] / 2).sum()) + 1


@dataclass(frozen=True, slots=True)
class _Marks:
    """Where a text is unlike another, where it lacks something, and by how many characters."""

    unlike: frozenset[int] = frozenset()
    missing: frozenset[int] = frozenset()
    n: int = 0


def _marks(text: str, reference: str) -> _Marks:
    unlike: set[int] = set()
    missing: set[int] = set()
    n = 0
    matcher = SequenceMatcher(None, reference, text, autojunk=False)
    for tag, start, stop, read_start, read_stop in matcher.get_opcodes():
        if tag != "equal":
            n += max(stop - start, read_stop - read_start)
            unlike |= set(range(read_start, read_stop))
        if tag == "delete":
            missing.add(read_start)
    return _Marks(frozenset(unlike), frozenset(missing), n)


def _spans(text: str, n_characters: int) -> list[tuple[int, int]]:
    """Give where each line begins and ends if a text is broken at new lines and at a width."""
    spans, start = [], 0
    for line in text.split("\n"):
        spans += [
            (start + at, start + min(at + n_characters, len(line)))
            for at in range(0, max(1, len(line)), n_characters)
        ]
        start += len(line) + 1
    return spans


def _write(
    page: Axes,
    xy: tuple[float, float],
    text: str,
    marks: _Marks,
    *,
    n_characters: int,
    most: int = 99,
) -> None:
    """Write a text line by line from a left top corner, in layers of as wide characters."""
    (x, y), spans = xy, _spans(text, n_characters)
    kept = spans if len(spans) <= most else spans[: most - 1]
    for i, (start, stop) in enumerate(kept):
        down, ends = y + (i + 0.8) * LINE, text[stop : stop + 1] in ("", "\n")
        places, shown = range(start, stop + ends), _shown(text[start:stop]) + "↵" * ends
        unlike = [at in marks.unlike for at in places]
        plain = (" " if is_unlike else c for c, is_unlike in zip(shown, unlike, strict=True))
        marked = (c if is_unlike else " " for c, is_unlike in zip(shown, unlike, strict=True))
        missing = (MISSING if at in marks.missing else " " for at in places)
        _layer(page, x, down, "".join(plain).removesuffix("↵"), color=INK)
        _layer(page, x, down, "".join(marked), color=UNLIKE, fontweight="bold")
        below = (x - ADVANCE / 2, down + 0.75 * POINTS / 72)
        _layer(page, *below, "".join(missing), color=UNLIKE, fontweight="bold")
    left_out = len(text) - (kept[-1][1] if kept else 0)
    told = "(nothing)" if not text else f"… and {left_out} characters more" if left_out else ""
    _layer(page, x, y + (len(kept) - (not text) + 0.8) * LINE, told, color=FAINT)


def _layer(page: Axes, x: float, y: float, text: str, **ink: Any) -> None:
    """Write one line of characters of one width, if it has ink; y is its baseline."""
    if text.strip():
        look: dict[str, Any] = {"family": "monospace", "fontsize": POINTS, "parse_math": False}
        page.text(x, y, text.rstrip(), va="baseline", **look, **ink)


def _picture(page: Axes, image: Image, x: float, y: float) -> None:
    page.imshow(image, extent=(x, x + SIDE, y + SIDE, y), aspect="auto")
    frame: dict[str, Any] = {"fill": False, "edgecolor": "#BBBBBB", "linewidth": 0.6}
    page.add_patch(Rectangle((x, y), SIDE, SIDE, **frame))


def _page(height: float) -> Axes:
    """Make a figure as wide as a page, and axes all over it whose unit is an inch, y downwards."""
    page = figures.page(height).add_axes((0, 0, 1, 1))
    page.set(xlim=(0, figures.DOUBLE), ylim=(height, 0), autoscale_on=False)
    page.set_axis_off()
    return page


def _titled(page: Axes, title: str) -> Figure:
    figure = page.figure
    assert isinstance(figure, Figure)
    figure.suptitle(title, fontsize=8, y=1 - TOP / 2 / figure.get_figheight(), va="center")
    return figure


def _lengths(row: Sequence[tuple[int, Image, str]]) -> str:
    """Say how long the Markdown of these is."""
    return _span([len(text) for *_, text in row])


def _span(values: Sequence[int]) -> str:
    """Say the least and the most of these values, or the one that all are."""
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def _shown(text: str) -> str:
    """Give as many characters, all of which the font of Markdown has."""
    known = font_manager.get_font(font_manager.findfont(FontProperties(family="monospace")))
    return "".join(c if c.isprintable() and known.get_char_index(ord(c)) else UNKNOWN for c in text)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
