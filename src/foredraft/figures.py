"""How a figure looks and how it is saved: one theme, one style a strategy, a stamp in each file.

Nothing here imports torch: a figure is drawn from a tidy table that has been written already.
A notebook's figure is `figure = panels(2)`, a plot on each of `figure.axes`, then `save(...)`.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from foredraft import paths
from foredraft.files import write_bytes
from foredraft.provenance import Stamp

SINGLE = 3.5
"""Inches: one column of a two-column page."""
DOUBLE = 7.2
"""Inches: the full width of a page."""
DOTS_PER_INCH = 300

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
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
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


def save(figure: Figure, slug: str, name: str, stamp: Stamp) -> Figure:
    """Write a figure as PNG, SVG and PDF with its stamp inside; the same bytes each time.

    The stamp is PNG's text key Provenance, SVG's Description, PDF's Keywords. Returns the figure,
    closed, so that a notebook whose cell ends in it shows it once.
    """
    text = stamp.to_json()
    about: Mapping[str, dict[str, str | None]] = {
        "png": {"Software": None, "Provenance": text},
        "svg": {"Date": None, "Creator": None, "Description": text},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None, "Keywords": text},
    }
    with mpl.rc_context({"svg.hashsalt": "foredraft", "pdf.fonttype": 42}):
        for ending, metadata in about.items():
            drawn = io.BytesIO()
            figure.savefig(drawn, format=ending, dpi=DOTS_PER_INCH, metadata=metadata)
            content = drawn.getvalue()
            if ending == "png":
                content = _in_few_colours(content)
            write_bytes(paths.figures(slug) / f"{name}.{ending}", content)
    plt.close(figure)
    return figure


def _in_few_colours(png: bytes) -> bytes:
    """Give it a palette of 256 colours: two fifths of the bytes, and nobody sees it."""
    written, about = io.BytesIO(), PngInfo()
    with PngImageFile(io.BytesIO(png)) as image:
        for key, text in image.text.items():
            about.add_text(key, text)
        few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(written, "png", optimize=True, pnginfo=about, dpi=image.info["dpi"])
    return written.getvalue()


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
