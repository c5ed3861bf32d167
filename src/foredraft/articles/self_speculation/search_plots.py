"""Figures of the searches of article 04."""

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from foredraft.articles.self_speculation.plots import (
    HALF,
    LIGHT,
    OURS,
    TARGET,
    cost_axes,
    gain_lines,
    needed_acceptance,
)
from foredraft.viz import figures
from foredraft.viz.axes import SHARE, TIMES, line_style
from foredraft.viz.figures import Style

ORIGINS = {
    "start": ("few branches off", Style("#4D4D4D", "s", ())),
    "sobol": ("quasi-random", Style("#E69F00", "v", ())),
    "model": ("asked for by the model", Style("#0072B2", "D", ())),
}
"""Under its name in a trial: why a plan was tried, and its look."""


METHODS = {
    "Ax": Style("#0072B2", "D", ()),
    "random": Style("#D55E00", "o", (4, 2)),
    "greedy": Style("#009E73", "v", (1, 1)),
    "uniform": Style("#E69F00", "s", (6, 1, 1, 1)),
}
"""The look of each way to search."""


@figures.drawing
def search(trials: pd.DataFrame) -> Figure:
    """One search as it went: what each plan was foretold to give, and the best so far.

    Columns: index, origin, speedup, speedup_sem, best.
    """
    figure = figures.panels(width=figures.DOUBLE * 0.75, height=2.5)
    (axes,) = figure.axes
    best_so_far = {"color": LIGHT, "linewidth": 2.5, "zorder": 1, "label": "best so far"}
    axes.step(trials["index"] + 1, trials["best"], where="post", **best_so_far)
    for origin, (name, look) in ORIGINS.items():
        part = figures.where(trials, origin=origin)
        dots = {"fmt": look.marker, "color": look.colour, "elinewidth": 0.8}
        axes.errorbar(part["index"] + 1, part["speedup"], HALF * part["speedup_sem"], **dots)
        axes.plot([], [], look.marker, color=look.colour, label=name)
    axes.axhline(1, color=TARGET.colour, linewidth=0.8, linestyle=":")
    axes.set(xlabel="trial", ylabel="foretold speed-up")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(TIMES)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    best = trials.loc[trials["speedup"].idxmax()]
    figure.suptitle(
        f"Best of {len(trials)} plans: {best['speedup']:.2f}× "
        f"± {HALF * best['speedup_sem']:.2f}, trial {int(best['index']) + 1}"
    )
    return figure


@figures.drawing
def race(table: pd.DataFrame) -> Figure:
    """The best plan so far of each way to search, a panel a space of plans.

    Columns: space, method, seed, index, value, best. "exhaustive" has one row, whose `best` is the
    optimum and whose `value` is the mean plan.
    """
    spaces = list(table["space"].unique())
    figure = figures.panels(len(spaces), height=2.6)
    for axes, space in zip(figure.axes, spaces, strict=True):
        rows = figures.where(table, space=space)
        for method, look in METHODS.items():
            part = figures.where(rows, method=method)
            if len(part):
                _progress(axes, part, look, method)
        for row in figures.where(rows, method="exhaustive").to_dict("records"):
            look = {"color": TARGET.colour, "linewidth": 0.8}
            axes.axhline(row["best"], **look, linestyle="--", label="best of all plans")
            axes.axhline(row["value"], **look, linestyle=":", label="mean of all plans")
        axes.set_title("   all branches" if space == "all" else "   a few branches", loc="center")
        axes.set(xlabel="plans tried", ylabel="best speed-up so far")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(TIMES)
    named = {
        name: handle
        for axes in figure.axes
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    about = {"title": "mean, least and most over seeds", "title_fontsize": 6, "fontsize": 6}
    figure.legend(
        list(named.values()), list(named), loc="outside lower center", ncols=len(named), **about
    )
    figure.suptitle(_race_told(figures.where(table, space="small")))
    return figure


def _race_told(small: pd.DataFrame) -> str:
    (every_plan,) = figures.where(small, method="exhaustive").to_dict("records")
    mean, optimum = every_plan["value"], every_plan["best"]
    shares = {}
    for method in ("Ax", "random"):
        by_seed = figures.where(small, method=method).pivot_table(
            index="seed", values="best", aggfunc="max"
        )
        shares[method] = (by_seed.to_numpy().mean() - mean) / (optimum - mean)
    tried = int(figures.where(small, method="Ax")["index"].to_numpy().max()) + 1
    size = int(every_plan["index"]) + 1
    return (
        f"After {tried} of {size:,} plans Ax has {shares['Ax']:.0%} of the best one's gain over "
        f"the mean, random {shares['random']:.0%}"
    )


@figures.drawing
def frequency(table: pd.DataFrame) -> Figure:
    """How often each branch is in the best plan of a search, over seeds.

    Columns: branch, layer, share.
    """
    figure = figures.panels(height=1.6)
    (axes,) = figure.axes
    grid = table.pivot_table(index="branch", columns="layer", values="share")
    few = grid.shape[1] <= 16
    text: dict[str, Any] = {"annot": few, "fmt": ".0%", "annot_kws": {"size": 6}}
    scale: dict[str, Any] = {"vmin": 0, "vmax": 1, "linewidths": 0.3, "cmap": figures.SEQUENTIAL}
    bar = {"label": "share of seeds", "format": SHARE, "ticks": [0, 0.5, 1]}
    sns.heatmap(grid, ax=axes, cbar_kws=bar, **text, **scale)
    axes.tick_params(axis="y", labelrotation=0, length=0)
    axes.tick_params(axis="x", labelrotation=0, length=0)
    axes.set(xlabel="layer", ylabel="")
    axes.grid(visible=False)
    share = table["share"].to_numpy()
    told = ", ".join(f"{branch} {mean:.0%}" for branch, mean in grid.mean(axis=1).items())
    figure.suptitle(
        f"{(share == 1).sum()} of {len(share)} branches are off in every seed's best plan, "
        f"{(share == 0).sum()} in none; on average {told}",
        fontsize=8,
    )
    return figure


@figures.drawing
def trade_off(front: pd.DataFrame, trials: pd.DataFrame, lines: pd.DataFrame) -> Figure:
    """The plans that no other beats in both c and β, among all that were tried.

    `front`: cost, overlap, plan. `trials`: cost, overlap. `lines`: gain, cost, acceptance.
    """
    figure = figures.panels(width=figures.DOUBLE * 0.6, height=3.4)
    (axes,) = figure.axes
    cost_axes(axes, "β at the first step of a draft")
    lines = lines.loc[lines["gain"] > 1]
    gains = sorted(set(lines["gain"]))
    gain_lines(axes, lines, ["#BBBBBB"] * len(gains))
    grey = {"color": "#999999", "marker": "o", "s": 10, "linewidths": 0, "zorder": 2}
    axes.scatter(trials["cost"], trials["overlap"], label="tried", **grey)
    front = front.sort_values("cost")
    look = {"color": OURS.colour, "marker": OURS.marker, "drawstyle": "steps-post", "zorder": 3}
    axes.plot(front["cost"], front["overlap"], **look, label="Pareto front")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    points = list(zip(front["cost"], front["overlap"], strict=True))
    above = sum(beta > cost for cost, beta in points)
    reached = [
        gain
        for gain in gains
        if any(beta >= needed_acceptance(lines, gain, cost) for cost, beta in points)
    ]
    best = f"the best of them beyond {max(reached):g}×" if reached else "none beyond a line"
    figure.suptitle(f"{above} of {len(front)} plans on the front have β > c, {best}", fontsize=8)
    return figure


def _progress(axes: Axes, rows: pd.DataFrame, look: Style, name: str) -> None:
    """Draw the best so far, its mean over seeds, and its range where there are several."""
    by_seed = rows.pivot_table(index="index", columns="seed", values="best").ffill()
    at = by_seed.index.to_numpy() + 1
    if by_seed.shape[1] > 1:
        ends = by_seed.min(axis=1), by_seed.max(axis=1)
        axes.fill_between(at, *ends, color=look.colour, alpha=0.15, linewidth=0)
    marks = {"marker": look.marker, "markevery": max(1, len(at) // 6)}
    line = {"color": look.colour, "linestyle": line_style(look), "label": name}
    axes.plot(at, by_seed.mean(axis=1), **marks, **line)
