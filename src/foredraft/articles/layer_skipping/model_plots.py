"""Figures of article 03 about the model alone: its bytes, and how alike its layers are."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from foredraft.articles.layer_skipping.plots import LOOKS, MODELS, TARGET, THEIRS, summarised
from foredraft.viz import figures
from foredraft.viz.axes import SHARE, TIMES

PARTS = {"attention": ("#56B4E9", ""), "MLP": ("#0072B2", "////"), "head": ("#E69F00", "....")}


@figures.drawing
def stack(cosines: pd.DataFrame, threes: pd.DataFrame) -> Figure:
    """How alike layers are by distance, and what three layers cost by where they lie in the stack.

    `cosines`: model, distance, cosine. `threes`: model, kind, joint, gap.
    """
    figure = figures.panels(2, height=2.5)
    left, right = figure.axes
    models = list(cosines["model"].unique())
    for model, (colour, marker, line) in zip(models, MODELS, strict=False):
        part = figures.where(cosines, model=model)
        left.plot(
            part["distance"], part["cosine"], marker=marker, color=colour, ls=line, label=model
        )
    left.set(xlabel="distance between two layers", ylabel="cosine of their weights")
    left.set_ylim(-0.05, 1.25)
    left.xaxis.set_major_locator(MultipleLocator(3))
    left.legend(loc="upper right", fontsize=6)
    kinds = [kind for kind in LOOKS if kind in set(threes["kind"])]
    for place, kind in enumerate(kinds):
        for (colour, marker, _), model, shift in zip(
            MODELS, models, (-0.13, 0.13, 0.3), strict=False
        ):
            gaps = figures.where(threes, model=model, kind=kind)["gap"].to_numpy()
            jitter = shift + np.linspace(-0.07, 0.07, len(gaps))
            right.plot(place + jitter, gaps, marker, color=colour, markersize=3, alpha=0.6)
            right.hlines(np.mean(gaps), place + shift - 0.11, place + shift + 0.11, color=colour)
    right.axhline(0, color=TARGET.colour, linewidth=0.8, linestyle=":")
    right.set_xticks(range(len(kinds)), kinds)
    right.set(xlabel="three layers skipped", ylabel="log(joint β ÷ product)")
    right.grid(visible=False, axis="x")
    means = {kind: np.exp(gap) for kind, gap in summarised(threes, "kind", "gap").items()}
    figure.suptitle(
        f"Three layers off: β is {means['a run']:.2f} × the product of their own if they are a "
        f"run, {means['one origin']:.2f} × if copies of one"
    )
    return figure


@figures.drawing
def bytes_read(shares: pd.DataFrame, article: pd.DataFrame, got: float) -> Figure:
    """Bytes of a decode step by part; what the article's plan could bring, and what it `got`.

    `shares`: model, part, share. `article`: acceptance, length, speedup, cost (one for all).
    """
    figure = figures.panels(2, height=2.4)
    left, right = figure.axes
    models = list(shares["model"].unique())[::-1]
    start = np.zeros(len(models))
    for part, (colour, hatch) in PARTS.items():
        own = summarised(figures.where(shares, part=part), "model", "share")
        wide = np.array([own[model] for model in models])
        look = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0}
        left.barh(models, wide, left=start, label=part, height=0.7, **look)
        if part == "head":
            for place, (at, share) in enumerate(zip(start + wide, wide, strict=True)):
                left.text(at + 0.01, place, f"c ≥ {share:.2f}", va="center", fontsize=6)
        start += wide
    left.set(xlim=(0, 1.2), xlabel="share of the bytes of a decode step")
    left.set_xticks(np.linspace(0, 1, 5))
    left.xaxis.set_major_formatter(SHARE)
    left.grid(visible=False, axis="y")
    left.legend(loc="upper center", bbox_to_anchor=(0.42, 1.17), ncols=3, fontsize=6)
    colours = sns.color_palette(figures.SEQUENTIAL, len(set(article["acceptance"])) + 1)
    for (alpha, part), colour, marker in zip(
        article.groupby("acceptance"), colours, "osDv", strict=False
    ):
        look = {"color": colour, "marker": marker, "label": f"α = {alpha:g}"}
        right.plot(part["length"], part["speedup"], **look)
    right.axhline(1, color=TARGET.colour, linewidth=0.8, linestyle=":")
    right.axhline(got, color=THEIRS.colour, linewidth=1, linestyle="--", label="what it got")
    right.set(xlabel="draft length γ (0: do not draft)", ylabel="speed-up")
    right.yaxis.set_major_formatter(TIMES)
    right.legend(fontsize=6, loc="lower left")
    cost, alpha = article["cost"].iloc[0], article["acceptance"].iloc[0]
    figure.suptitle(
        f"The article's plan, c = {cost:.3f}: with α = {alpha:.2f} no draft length gains anything"
    )
    return figure
