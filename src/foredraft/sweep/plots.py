"""The figure of a sweep: values over a parameter, a line a value of another."""

from collections.abc import Sequence
from textwrap import fill

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foredraft.viz import figures
from foredraft.viz.figures import where

ACROSS, CHARACTERS = 3, 40
"""Panels side by side at most, and how many characters of a claim go into a line above one."""


@figures.drawing
def panels(table: pd.DataFrame, *, x: str, hue: str | None, keys: Sequence[str]) -> Figure:
    """Draw a panel for each key of a tidy table: columns x, hue, key, value, spread, claim.

    Where a mark is one point, its bar is the 95 % interval that the point's own claim states.
    """
    columns = min(ACROSS, len(keys))
    rows = -(-len(keys) // columns)
    width = figures.SINGLE if columns == 1 else figures.DOUBLE
    figure = figures.panels(columns, rows, width=width, height=2.4)
    for axes, key in zip(figure.axes, keys, strict=False):
        _panel(axes, where(table, key=key), x, hue)
    for axes in figure.axes[len(keys) :]:
        axes.remove()
    return figure


def _panel(axes: Axes, frame: pd.DataFrame, x: str, hue: str | None) -> None:
    names = frame[x].tolist()
    is_number = all(type(name) in (int, float) for name in names)
    drawn = frame.assign(
        value=[float(value) for value in frame["value"]],
        **{x: names if is_number else [str(name) for name in names]},
    )
    if not drawn.duplicated([x] if hue is None else [x, hue]).any():
        _spreads(axes, drawn, x)
    figures.lines(axes, drawn, x=x, y="value", hue=hue)
    axes.set(xlabel=x.replace("_", " "), ylabel=str(frame["key"].iloc[0]))
    claim = frame["claim"].iloc[0]
    if isinstance(claim, str):
        axes.set_title(fill(claim, CHARACTERS), fontsize=6)
    if hue is not None:
        axes.legend(title=hue.replace("_", " "), fontsize=6, title_fontsize=6)
    if not is_number:
        axes.tick_params(axis="x", labelrotation=20)


def _spreads(axes: Axes, frame: pd.DataFrame, x: str) -> None:
    known = frame[frame["spread"].notna()]
    axes.errorbar(
        known[x], known["value"], yerr=known["spread"].astype(float), fmt="none", ecolor="0.7"
    )
