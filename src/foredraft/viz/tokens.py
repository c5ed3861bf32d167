"""A text, token by token: how sure the target was of each, and where it came from."""

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from foredraft.viz import figures

FATES = {
    "accepted": ("drafted and accepted", "#009E73"),
    "bonus": ("bonus, behind a draft that was accepted whole", "#0072B2"),
    "recovered": ("recovered, where a draft was rejected", "#D55E00"),
    "plain": ("decoded without a draft", "#8C8C8C"),
}
"""Where a token came from: in words, and the colour of the bar below it."""

COLUMNS, LINE = 96, 0.17
"""Characters in a line, and its height in inches."""

SURE = 0.5
"""The confidence from which on the target counts as sure: the article's threshold."""

SHADES = colormaps["Greys"]
"""The darker a token's ground, the less sure was the target of it."""


@figures.drawing
def fates(table: pd.DataFrame, lead: str = "") -> Figure:
    """Draw a text in lines of equal characters; a row a token: text, confidence, fate.

    New lines are shown as ↵ and end a line; a token's ground is dark where its confidence is low.
    The title says what became of the tokens, `lead` stands above it.
    """
    placed, n_lines = _placed([str(text) for text in table["text"]])
    n_titles = 1 + len(lead.splitlines())
    figure = figures.panels(width=figures.DOUBLE, height=0.45 + 0.15 * n_titles + LINE * n_lines)
    (axes,) = figure.axes
    for row, places in zip(table.to_dict("records"), placed, strict=True):
        sure = float(row["confidence"])
        ground, ink = SHADES(0.75 * (1 - sure)), "white" if sure < 0.3 else "black"
        for line, column, text in places:
            width, colour = len(text), FATES[row["fate"]][1]
            axes.add_patch(Rectangle((column, line), width, 0.86, facecolor=ground, lw=0))
            bar = Rectangle(
                (column + 0.06, line + 0.86), width - 0.12, 0.12, facecolor=colour, lw=0
            )
            axes.add_patch(bar)
            for i, letter in enumerate(text):
                _letter(axes, column + i + 0.5, line + 0.45, letter, ink)
    axes.set(xlim=(0, COLUMNS), ylim=(n_lines, 0))
    axes.set_axis_off()
    shown = [fate for fate in FATES if fate in set(table["fate"])]
    figure.legend(
        handles=[Patch(facecolor=FATES[fate][1], label=FATES[fate][0]) for fate in shown],
        loc="outside lower center",
        ncols=len(shown),
        fontsize=6,
        title="bar: where a token came from; dark ground: the target was not sure of it",
        title_fontsize=6,
    )
    sure = np.asarray(table["confidence"], float) >= SURE
    kept = np.isin(table["fate"].to_numpy(str), ("accepted", "bonus"))
    told = [f"{kept[rows].sum()} of {rows.sum()}" for rows in (sure, ~sure)]
    finding = f"Accepted or bonus: {told[0]} tokens that the target was sure of, {told[1]} others"
    figure.suptitle("\n".join([*lead.splitlines(), finding]), fontsize=8)
    return figure


def _letter(axes: Axes, x: float, y: float, letter: str, ink: str) -> None:
    axes.text(x, y, letter, color=ink, ha="center", va="center", family="monospace", fontsize=6)


def _placed(texts: list[str]) -> tuple[list[list[tuple[int, int, str]]], int]:
    """Give for each token its pieces as line, column and text; and the number of lines."""
    placed: list[list[tuple[int, int, str]]] = []
    line = column = 0
    for text in texts:
        pieces: list[tuple[int, int, str]] = []
        for piece in text.replace("\r", "").replace("\t", "    ").splitlines(keepends=True):
            shown = piece.replace("\n", "↵")
            while shown:
                if column == COLUMNS:
                    line, column = line + 1, 0
                part = shown[: COLUMNS - column]
                pieces.append((line, column, part))
                column, shown = column + len(part), shown[len(part) :]
            if piece.endswith("\n"):
                line, column = line + 1, 0
        placed.append(pieces)
    return placed, line + (column > 0)
