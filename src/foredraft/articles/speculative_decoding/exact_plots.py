"""Figures of article 02 about the exact distribution on nine words."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from foredraft.articles.speculative_decoding.plots import (
    DRAFT,
    LIGHT,
    OURS,
    TARGET,
    THEIRS,
    WRONG,
    draw_steps,
)
from foredraft.viz import figures

NOISE = 1e-17
"""Where a distance of exactly zero is drawn on a logarithmic axis."""


@figures.drawing
def nine_words(laws: pd.DataFrame) -> Figure:
    """Overlap of p and q; the residual; what a round emits, right and wrong.

    Columns: word, p, q, overlap, residual, right, wrong.
    """
    figure = figures.panels(3, height=2.4)
    left, middle, right = figure.axes
    places = np.arange(len(laws))
    left.bar(places, laws["overlap"], color=LIGHT, width=0.9, label="min(p, q): accepted")
    draw_steps(left, laws["p"].to_numpy(), TARGET.colour, "-", "p, the target")
    draw_steps(left, laws["q"].to_numpy(), DRAFT.colour, "--", "q, the draft")
    middle.bar(places, laws["residual"], color=OURS.colour, width=0.6, label="norm(max(0, p − q))")
    draw_steps(middle, laws["p"].to_numpy(), TARGET.colour, "-", "p")
    right.bar(places, laws["wrong"], color=WRONG, width=0.9, alpha=0.45, label="p drawn from again")
    right.bar(places, laws["right"], color=OURS.colour, width=0.45, label="residual")
    draw_steps(right, laws["p"].to_numpy(), TARGET.colour, "-", "p")
    titles = ("a draft survives where p covers q", "a rejected one is replaced", "what comes out")
    for axes, title in zip(figure.axes, titles, strict=True):
        axes.set_title(f"   {title}", loc="center")
        axes.set_xticks(places, laws["word"], rotation=60, ha="right", rotation_mode="anchor")
        axes.grid(visible=False, axis="x")
        axes.legend(loc="upper right")
    left.set_ylabel("probability")
    figure.suptitle("Drafts that stand and the residual add up to p; drawing from p again does not")
    return figure


@figures.drawing
def mistakes(table: pd.DataFrame) -> Figure:
    """Total variation between the joint law of three words and the target's, by variant."""
    figure = figures.panels(width=figures.DOUBLE * 0.75, height=1.9)
    (axes,) = figure.axes
    places = np.arange(len(table))[::-1]
    far = table["total_variation"].clip(lower=NOISE)
    for exact, style, name in ((True, OURS, "shipped"), (False, THEIRS, "with a mistake")):
        chosen = (table["exact"] == exact).to_numpy()
        dots: dict[str, Any] = {"color": style.colour, "marker": style.marker, "linestyle": "none"}
        axes.plot(far[chosen], places[chosen], **dots, markersize=6, label=name)
    axes.hlines(places, NOISE, far, color=LIGHT, linewidth=1.2, zorder=0)
    for place, value in zip(places, table["total_variation"], strict=True):
        axes.annotate(
            f"{value:.1g}",
            (max(value, NOISE), place),
            (7, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    axes.set(xscale="log", xlim=(NOISE, 30), ylim=(-0.6, len(table) - 0.4))
    axes.set_yticks(places, table["variant"])
    axes.set_xlabel("total variation from the target's law of three words")
    axes.grid(visible=False, axis="y")
    figure.suptitle("Both rules are exact to rounding; each mistake shows at once")
    return figure
