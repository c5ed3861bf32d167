"""How a figure looks and how it is saved: one theme, one style per strategy, a mark in each file.

Nothing here imports torch: a figure is drawn from tidy tables. A function that draws one is a
`drawing`: it starts from `figure = panels(2)` and plots on each of `figure.axes`; what it returns
keeps the values that it was drawn from, so that it can be drawn again in another format.
"""

import io
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import Any, ParamSpec, cast

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from foredraft.errors import unknown
from foredraft.files import write_bytes
from foredraft.repro import values
from foredraft.repro.provenance import Mark

P = ParamSpec("P")

SINGLE = 3.5
"""Inches: one column of a two-column page."""
DOUBLE = 7.2
"""Inches: the full width of a page."""
DOTS_PER_INCH = 144
"""Of a saved picture: 1,036 across a page, more than a column of text on a screen has."""
PREVIEW_DOTS_PER_INCH = 84
"""Of the picture in a notebook, which links to the saved one."""

PALETTES = (16, 32, 64, 128, 256)
"""Sizes of a picture's palette that are tried: the fewer colours, the fewer bytes."""
FARTHEST, FAR, FEW = 64, 8, 0.005
"""Of 255: no pixel's colour may move by FARTHEST, and only a FEW of them by more than FAR."""

FORMATS = ("png", "svg", "pdf")

SEQUENTIAL = "cividis"
"""For heat maps and numbers: the same order to every eye, and in grey."""


@dataclass(frozen=True, slots=True)
class Style:
    """A strategy's colour, marker and dashes (on, off, ... in points; none: solid).

    Any one of the three tells strategies apart.
    """

    colour: str
    marker: str
    dashes: tuple[int, ...]


STYLES: Mapping[str, Style] = MappingProxyType(
    {
        "target": Style("#4D4D4D", "o", ()),
        "draft": Style("#E69F00", "s", (4, 2)),
        "foredraft": Style("#0072B2", "D", (12, 1)),
        "transformers": Style("#D55E00", "^", (1, 1)),
        "speculative": Style("#009E73", "v", (6, 2)),
        "self-speculative": Style("#CC79A7", "P", (3, 1, 1, 1)),
        "gated": Style("#56B4E9", "X", (5, 1, 1, 1, 1, 1)),
    }
)
"""One style a strategy, the same in every article, in Okabe and Ito's colours.

`target` is the target model decoding on its own, autoregressively. A new strategy is a row here.
"""


class Drawn(Figure):
    """A figure that knows the `drawing` and the encoded arguments that it came from."""

    drawing: str | None = None
    arguments: values.JSON = None


def drawing(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Let a function draw from its arguments as they are kept, and note them on its figure.

    They are tables, arrays, pictures and plain values (`values.encode`); floats arrive with six
    significant digits, so that the last ones, in which processors differ, are not seen.
    """

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        encoded = values.encode([list(args), dict(kwargs)])
        figure = draw_again(draw, encoded)
        if isinstance(figure, Drawn):
            figure.drawing = f"{draw.__module__}.{draw.__name__}"
            figure.arguments = encoded
        return figure

    return drawn


def draw_again(draw: Callable[..., Figure], encoded: values.JSON) -> Figure:
    """Call what draws a figure with arguments that were encoded."""
    args, kwargs = values.decode(encoded)
    return draw(*args, **kwargs)


def theme() -> None:
    """Set the look from matplotlib's own defaults up, whatever the user's matplotlibrc says."""
    mpl.rcdefaults()
    sns.set_theme(style="ticks", palette="colorblind", font="DejaVu Sans", rc=_SETTINGS)


def panels(
    columns: int = 1, rows: int = 1, *, width: float | int = DOUBLE, height: float | int = 2.6
) -> Figure:
    """A themed figure with `rows` times `columns` axes (inches; `height` is that of one row).

    Several panels are lettered a, b, c in reading order, left of a title that the caller may set.
    """
    theme()
    size = (width, height * rows)
    figure, grid = plt.subplots(
        rows, columns, figsize=size, layout="constrained", squeeze=False, FigureClass=Drawn
    )
    if grid.size > 1:
        for letter, axes in zip("abcdefghijklmnop", grid.flat, strict=False):
            axes.set_title(letter, loc="left", fontweight="bold")
    return figure


def lines(axes: Axes, frame: pd.DataFrame, *, x: str, y: str, hue: str | None = None) -> Axes:
    """Mean of `y` over `x`, one line a value of `hue`, with a 95 % bootstrap interval (fixed seed).

    A `hue` of strategies has their styles, one of numbers a sequence of colours.
    """
    apart = _told_apart(frame, hue)
    return sns.lineplot(frame, x=x, y=y, ax=axes, errorbar=("ci", 95), seed=0, **apart)


def bars(axes: Axes, frame: pd.DataFrame, *, x: str, y: str, hue: str | None = None) -> Axes:
    """Mean of `y` for each `x`, one bar a value of `hue`, with a 95 % bootstrap interval."""
    palette = _told_apart(frame, hue).get("palette")
    look = {"palette": palette, "saturation": 1, "err_kws": {"linewidth": 0.8}}
    return sns.barplot(frame, x=x, y=y, hue=hue, ax=axes, errorbar=("ci", 95), seed=0, **look)


def heatmap(axes: Axes, frame: pd.DataFrame, *, x: str, y: str, value: str) -> Axes:
    """The mean of `value` on the grid of `x` and `y`, each cell with its number, `y` upwards."""
    grid = frame.pivot_table(index=y, columns=x, values=value).sort_index(ascending=False)
    text = {"annot": True, "fmt": ".3g", "annot_kws": {"size": 6}, "cbar_kws": {"label": value}}
    sns.heatmap(grid, ax=axes, cmap=SEQUENTIAL, **text)
    axes.tick_params(axis="y", labelrotation=0)
    return axes


def where(frame: pd.DataFrame, **columns: object) -> pd.DataFrame:
    """The rows in which all these columns have these values."""
    chosen = pd.Series(True, index=frame.index)
    for column, wanted in columns.items():
        chosen &= frame[column] == wanted
    return cast("pd.DataFrame", frame.loc[chosen])


def page(height: float) -> Figure:
    """A themed figure of a page's width without axes, for what is laid out by hand (inches)."""
    theme()
    return plt.figure(figsize=(DOUBLE, height), FigureClass=Drawn)


def save(
    figure: Figure, folder: Path, mark: Mark, formats: Collection[str] = ("png",)
) -> list[Path]:
    """Write a figure in some formats with its mark inside, the same bytes each time; close it.

    The mark is PNG's text key Provenance, SVG's Description, PDF's Keywords.
    """
    text = mark.to_json()
    about: Mapping[str, dict[str, str | None]] = {
        "png": {"Software": None, "Provenance": text},
        "svg": {"Date": None, "Creator": None, "Description": text},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None, "Keywords": text},
    }
    written = []
    with mpl.rc_context({"svg.hashsalt": "foredraft", "pdf.fonttype": 42}):
        for ending in formats:
            if ending not in about:
                raise unknown("format of a figure", ending, FORMATS)
            drawn = io.BytesIO()
            figure.savefig(drawn, format=ending, dpi=DOTS_PER_INCH, metadata=about[ending])
            content = drawn.getvalue()
            if ending == "png":
                content = in_few_colours(content)
            written.append(folder / f"{mark.name}.{ending}")
            write_bytes(written[-1], content)
    plt.close(figure)
    return written


def preview(figure: Figure) -> bytes:
    """A small PNG of a figure, for a notebook."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=PREVIEW_DOTS_PER_INCH, metadata={"Software": None})
    plt.close(figure)
    return in_few_colours(drawn.getvalue())


def in_few_colours(png: bytes) -> bytes:
    """Give a PNG the smallest palette that looks like it, or the largest; keep what it says."""
    written, about = io.BytesIO(), PngInfo()
    with PngImageFile(io.BytesIO(png)) as image:
        for key, text in image.text.items():
            about.add_text(key, text)
        full = image.convert("RGB")
        tried = [full.quantize(n, dither=Image.Dither.NONE) for n in PALETTES]
        few = next((each for each in tried if _looks_like(full, each)), tried[-1])
        few.save(written, "png", optimize=True, pnginfo=about, dpi=image.info["dpi"])
    return written.getvalue()


def _looks_like(full: Image.Image, few: Image.Image) -> bool:
    before, after = (np.asarray(each.convert("RGB"), dtype=int) for each in (full, few))
    moved = np.abs(after - before).max(axis=-1)
    return bool(moved.max() < FARTHEST and (moved > FAR).mean() < FEW)


_SETTINGS = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "figure.dpi": 144,
}


def _told_apart(frame: pd.DataFrame, hue: str | None) -> dict[str, Any]:
    if hue is None:
        return {"marker": "o"}
    if pd.api.types.is_numeric_dtype(frame[hue]):
        return {"hue": hue, "palette": SEQUENTIAL, "legend": "full", "marker": "o"}
    values = list(frame[hue].unique())
    if not set(values) <= set(STYLES):
        return {"hue": hue, "style": hue, "markers": True}
    return {
        "hue": hue,
        "palette": {value: STYLES[value].colour for value in values},
        "style": hue,
        "markers": {value: STYLES[value].marker for value in values},
        "dashes": {value: STYLES[value].dashes or "" for value in values},
    }
