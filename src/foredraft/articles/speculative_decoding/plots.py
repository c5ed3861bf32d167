"""The figures of article 02."""

from collections.abc import Sequence
from itertools import cycle, pairwise
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from foredraft.viz import figures
from foredraft.viz.axes import SHARE, TIMES, share_limits
from foredraft.viz.figures import STYLES

WRONG = "#D55E00"


TARGET, DRAFT = STYLES["target"], STYLES["draft"]
OURS, THEIRS = STYLES["speculative"], STYLES["transformers"]
LIGHT = "#D9D9D9"

GAINS = [1, 1.05, 1.1, 1.25, 1.5, 2, 2.5, 3, 4, 6]
EDGES = [-0.5, 0.5, 1.5, 2.5, 3.5, 5.5, 8.5, 16.5, 40.5]
LENGTHS = ["0", "1", "2", "3", "4–5", "6–8", "9–16", "17+"]
"""The regions of the surface: speed-ups, and draft lengths with their edges and names."""


@figures.drawing
def acceptance(position: pd.DataFrame, kinds: pd.DataFrame, heat: pd.DataFrame) -> Figure:
    """Acceptance by position, by prompt kind and by temperature, with intervals over texts.

    `heat` has the measured acceptance and, under `measure`, overlap and favourite of the texts.
    """
    figure = figures.panels(3, height=2.5)
    left, middle, right = figure.axes
    _band(left, position, "position", TARGET.colour, "o")
    left.set(xlabel="position in the draft, k", ylabel="accepted, if k − 1 are")
    left.set_title("   by position", loc="center")
    left.set_xticks(sorted(set(position["position"])))
    order = kinds.sort_values("mean").reset_index(drop=True)
    error = [order["mean"] - order["low"], order["high"] - order["mean"]]
    middle.errorbar(order["mean"], order.index, xerr=error, fmt="o", color=OURS.colour, capsize=2)
    middle.set_yticks(order.index, order["kind"])
    middle.set_xlabel("accepted ÷ drafted")
    middle.set_title("   by prompt kind", loc="center")
    looks = {
        "acceptance": (OURS.colour, "v", "sampled drafts, in rounds"),
        "overlap": (TARGET.colour, "o", "Σ min(p, q), every position"),
        "favourite": (DRAFT.colour, "s", "p(argmax q), every position"),
    }
    for measure, (colour, marker, name) in looks.items():
        part = figures.where(heat, measure=measure)
        _band(right, part, "temperature", colour, marker, name)
    right.set(xlabel="temperature", ylabel="acceptance")
    right.set_title("   by temperature", loc="center")
    right.legend(loc="lower left", fontsize=6)
    for axes in (left, right):
        axes.yaxis.set_major_formatter(SHARE)
    middle.xaxis.set_major_formatter(SHARE)
    low, high = (
        figures.where(heat, measure=name)["mean"].to_numpy()[-1]
        for name in ("favourite", "overlap")
    )
    hottest = heat["temperature"].max()
    figure.suptitle(
        f"At temperature {hottest:g} a sampled draft stands with {high:.0%}, a greedy {low:.0%}"
    )
    return figure


@figures.drawing
def overlap(table: pd.DataFrame) -> Figure:
    """The distribution of β over positions: acceptance is no constant.

    Columns: overlap, kind.
    """
    figure = figures.panels(width=figures.DOUBLE * 0.62, height=2.2)
    (axes,) = figure.axes
    mean = float(table["overlap"].to_numpy().mean())
    share = np.full(len(table), 1 / len(table))
    bins = np.linspace(0, 1, 26).tolist()
    axes.hist(
        table["overlap"], bins=bins, weights=share, color=OURS.colour, edgecolor="white", lw=0.4
    )
    axes.axvline(mean, color=TARGET.colour, linestyle="--", linewidth=1, label=f"mean {mean:.2f}")
    axes.set(xlabel="β = Σ min(p, q) at one position", ylabel="share of positions", xlim=(0, 1))
    axes.yaxis.set_major_formatter(SHARE)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.legend(loc="upper left")
    figure.suptitle("Acceptance is no constant: each position has its own")
    return figure


@figures.drawing
def tokens(table: pd.DataFrame, rules: pd.DataFrame) -> Figure:
    """Tokens a pass against γ, measured and by formula; block against token verification.

    `table`: length, mean, low, high, one_alpha, by_position. `rules`: length and, under `rule`,
    mean, low and high of the tokens expected of the same drafts.
    """
    figure = figures.panels(2, height=2.5)
    left, right = figure.axes
    error = [table["mean"] - table["low"], table["high"] - table["mean"]]
    left.errorbar(
        table["length"],
        table["mean"],
        error,
        fmt=OURS.marker,
        color=OURS.colour,
        capsize=2,
        label="measured",
    )
    left.plot(table["length"], table["by_position"], color=TARGET.colour, label="α by position")
    left.plot(
        table["length"], table["one_alpha"], color=WRONG, linestyle="--", label="the mean α, eq. 1"
    )
    left.set(xlabel="draft length γ", ylabel="tokens a target pass")
    left.set_title("   measured and foretold", loc="center")
    left.legend(loc="lower right")
    error = [rules["mean"] - rules["low"], rules["high"] - rules["mean"]]
    right.errorbar(
        rules["length"],
        rules["mean"],
        error,
        marker="o",
        color=STYLES["foredraft"].colour,
        capsize=2,
    )
    right.axhline(0, color=TARGET.colour, linewidth=0.8, linestyle=":")
    right.set(xlabel="draft length γ", ylabel="further tokens a pass")
    right.set_title("   what block verification adds", loc="center")
    for axes in figure.axes:
        axes.set_xticks(sorted(set(table["length"])))
    last, more = table.to_dict("records")[-1], rules.to_dict("records")[-1]
    figure.suptitle(
        f"γ = {last['length']} gives {last['mean']:.2f} tokens a pass; "
        f"block verification {more['mean']:.2f} further ones"
    )
    return figure


@figures.drawing
def surface(grid: pd.DataFrame, pairs: pd.DataFrame) -> Figure:
    """The best speed-up over acceptance and cost, and its draft length, with pairs on it.

    `grid`: acceptance, cost, length, speedup. `pairs`: name, acceptance, low, high, cost.
    """
    figure = figures.panels(2, height=3.0)
    left, right = figure.axes
    gains, lengths = (
        grid.pivot_table(index="acceptance", columns="cost", values=value)
        for value in ("speedup", "length")
    )
    bar = _regions(figure, left, gains, GAINS, "best speed-up")
    bar.set_ticks(GAINS, labels=[f"{gain:g}×" for gain in GAINS])
    bar = _regions(figure, right, lengths, EDGES, "draft length that gives it")
    bar.set_ticks([(a + b) / 2 for a, b in pairwise(EDGES)], labels=LENGTHS)
    for axes in (left, right):
        axes.plot([0, 1], [0, 1], color="white", linewidth=1, linestyle="--")
        axes.set(xlim=(0.02, 0.9), ylim=(0.3, 0.98), xlabel="cost of a draft step, c")
        axes.set_ylabel("acceptance α")
        axes.text(0.7, 0.4, "α < c: never pays", color="white", ha="center", fontsize=7)
        axes.grid(visible=False)
        _pairs(axes, pairs)
    figure.suptitle("What a draft model can bring, if verification costs one target step")
    return figure


@figures.drawing
def choice(grid: pd.DataFrame, table: pd.DataFrame, length: int) -> Figure:
    """One pair on the surface of best speed-ups, and what each of its draft lengths gives.

    `grid`: as of `surface`. `table`: length, speedup, and acceptance and cost, one for all;
    `length` is the one that was chosen.
    """
    figure = figures.panels(2, height=2.6)
    left, right = figure.axes
    alpha, cost = (float(table[column].iloc[0]) for column in ("acceptance", "cost"))
    gains = grid.pivot_table(index="acceptance", columns="cost", values="speedup")
    bar = _regions(figure, left, gains, GAINS, "best speed-up")
    bar.set_ticks(GAINS, labels=[f"{gain:g}×" for gain in GAINS])
    left.plot([0, 1], [0, 1], color="white", linewidth=1, linestyle="--")
    left.plot(cost, alpha, "o", color="white", markeredgecolor="black", markersize=7)
    left.set(xlim=(0.02, 0.9), ylim=(0.3, 0.98), xlabel="cost of a draft step, c")
    left.set_ylabel("acceptance α")
    left.grid(visible=False)
    speedups = table.set_index("length")["speedup"]
    right.plot(speedups.index, speedups, color=OURS.colour, marker=OURS.marker)
    right.plot(length, speedups[length], "o", color="white", markeredgecolor="black", markersize=7)
    right.axhline(1, color=TARGET.colour, linewidth=0.8, linestyle=":")
    right.axhline(max(1.0, 1 / cost), color=WRONG, linewidth=0.8, linestyle="--", label="1 ÷ c")
    right.set(xlabel="draft length γ (0: do not draft)", ylabel="speed-up", ylim=(0, 6.2))
    right.yaxis.set_major_formatter(TIMES)
    right.legend(loc="center right")
    best = speedups.idxmax()
    figure.suptitle(
        f"α = {alpha:g}, c = {cost:g}: γ = {length} gives {speedups[length]:.2f}×, "
        f"the best, γ = {best}, {speedups[best]:.2f}×"
    )
    return figure


@figures.drawing
def lengths(table: pd.DataFrame, compared: pd.DataFrame, by: str) -> Figure:
    """Predicted speed-up against γ, and what a fixed length forgoes.

    `table`: `by`, length, speedup. `compared`: `by`, fixed, best, best_length, oracle.
    """
    figure = figures.panels(2, height=2.6)
    left, right = figure.axes
    values = list(compared[by])
    colours = sns.color_palette(figures.SEQUENTIAL, len(values))
    for colour, marker, value in zip(colours, cycle("os^vDP"), values):
        part = figures.where(table, **{by: value})
        left.plot(part["length"], part["speedup"], color=colour, marker=marker, label=str(value))
        best = part.loc[part["speedup"].idxmax()]
        left.plot(best["length"], best["speedup"], marker, color=colour, markersize=8)
    left.axhline(1, color=TARGET.colour, linewidth=0.8, linestyle=":")
    left.set(xlabel="draft length γ (0: do not draft)", ylabel="predicted speed-up")
    left.set_xticks(sorted(set(table["length"])))
    low, high = left.get_ylim()
    left.set_ylim(low, high + 0.3 * (high - low))
    left.legend(fontsize=6, loc="upper center", ncols=3)
    places = np.arange(len(values))[::-1]
    looks = (("oracle", DRAFT, "oracle"), ("best", OURS, "best γ"), ("fixed", TARGET, "fixed γ"))
    right.hlines(places, compared["fixed"], compared["oracle"], color=LIGHT, linewidth=1.5)
    for column, style, name in looks:
        right.plot(compared[column], places, style.marker, color=style.colour, label=name)
    right.axvline(1, color=TARGET.colour, linewidth=0.8, linestyle=":")
    right.set_yticks(places, [str(value) for value in values])
    right.set(xlabel="predicted speed-up", ylabel=by, ylim=(-0.6, len(values) - 0.4))
    right.legend(fontsize=6, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    left.yaxis.set_major_formatter(TIMES)
    right.xaxis.set_major_formatter(TIMES)
    best, oracle = compared["best"].mean(), compared["oracle"].mean()
    figure.suptitle(f"The best length gives {best:.2f}× on average, an oracle {oracle:.2f}×")
    return figure


@figures.drawing
def beside(arms: pd.DataFrame, where: str) -> Figure:
    """Speed-ups over our own autoregressive decoding at batch 1, ours and transformers'.

    Columns: sampler, strategy, library, speedup_median, _min, _max.
    """
    figure = figures.panels(2, height=2.5)
    strategies = list(arms["strategy"].unique())
    places = np.arange(len(strategies))
    for axes, sampler in zip(figure.axes, arms["sampler"].unique(), strict=True):
        for offset, (library, style) in zip(
            (-0.2, 0.2), (("foredraft", STYLES["foredraft"]), ("transformers", THEIRS)), strict=True
        ):
            part = figures.where(arms, sampler=sampler, library=library).set_index("strategy")
            part = part.reindex(strategies)
            middle = part["speedup_median"]
            error = [middle - part["speedup_min"], part["speedup_max"] - middle]
            hatch = "" if library == "foredraft" else "////"
            axes.bar(
                places + offset,
                middle,
                0.38,
                yerr=error,
                color=style.colour,
                label=library,
                hatch=hatch,
                edgecolor="white",
                error_kw={"linewidth": 0.8, "capsize": 2},
            )
        axes.axhline(1, color=TARGET.colour, linewidth=0.8, linestyle=":")
        axes.set_title(f"   {sampler}", loc="center")
        axes.set_xticks(places, [name.replace(" ", "\n") for name in strategies])
        axes.grid(visible=False, axis="x")
        axes.yaxis.set_major_formatter(TIMES)
        axes.set_ylabel("speed-up over ours, plain")
    figure.axes[1].legend(loc="upper right", ncols=2)
    share_limits(figure.axes, headroom=1.15)
    drafting = figures.where(arms, sampler="greedy", strategy="draft model").set_index("library")
    gain = drafting["speedup_median"]
    figure.suptitle(
        f"Greedy with a draft model: {gain['foredraft']:.2f}× ours, {gain['transformers']:.2f}× "
        "transformers', both over our plain decoding"
    )
    figure.supxlabel(f"median, least and most of paired ratios over prompts; {where}", fontsize=6)
    return figure


@figures.drawing
def predicted(arms: pd.DataFrame, where: str) -> Figure:
    """Measured against predicted speed-up over γ, for the tokens after the first.

    Columns: sampler, length, predicted, residual; speedup_median and speedup_iqr, of whole
    generations, for the spread.
    """
    figure = figures.panels(2, height=2.5)
    arms = arms.assign(measured=arms["predicted"] * (1 + arms["residual"]))
    for axes, (sampler, part) in zip(figure.axes, arms.groupby("sampler"), strict=True):
        middle = part["measured"]
        half = part["speedup_iqr"] / part["speedup_median"] * middle / 2
        band = {"color": OURS.colour, "alpha": 0.2, "linewidth": 0}
        axes.fill_between(part["length"], middle - half, middle + half, **band)
        axes.plot(part["length"], middle, marker=OURS.marker, color=OURS.colour, label="measured")
        axes.plot(
            part["length"],
            part["predicted"],
            color=TARGET.colour,
            linestyle="--",
            marker="o",
            markerfacecolor="white",
            label="predicted from α by position and costs",
        )
        axes.axhline(1, color=TARGET.colour, linewidth=0.8, linestyle=":")
        axes.set_title(f"   {sampler}", loc="center")
        axes.set(xlabel="draft length γ", ylabel="speed-up after the prefill")
        axes.set_xticks(sorted(set(part["length"])))
        axes.yaxis.set_major_formatter(TIMES)
    figure.axes[0].legend(loc="best", fontsize=6)
    share_limits(figure.axes)
    off = arms["residual"].abs()
    figure.suptitle(
        f"The prediction from measured costs is off by {off.median():.0%} in the median, "
        f"{off.max():.0%} at worst"
    )
    figure.supxlabel(f"band: interquartile range over prompts; {where}", fontsize=6)
    return figure


@figures.drawing
def batches(arms: pd.DataFrame, where: str) -> Figure:
    """Tokens a second by batch size, of the strategies measured at all sizes, a panel a sampler.

    Columns: sampler, strategy, batch, tokens_per_second_median, _min, _max.
    """
    figure = figures.panels(2, height=2.4)
    looks = {"autoregressive": TARGET, "draft model": OURS, "prompt lookup": STYLES["gated"]}
    for axes, (sampler, rows) in zip(figure.axes, arms.groupby("sampler"), strict=True):
        sizes = sorted(set(rows["batch"]))
        strategies = [
            strategy
            for strategy in rows["strategy"].unique().tolist()
            if set(figures.where(rows, strategy=strategy)["batch"]) == set(sizes)
        ]
        for place, strategy in enumerate(strategies):
            style = looks[strategy]
            part = figures.where(rows, strategy=strategy).set_index("batch").reindex(sizes)
            middle = part["tokens_per_second_median"].to_numpy()
            error = [middle - part["tokens_per_second_min"], part["tokens_per_second_max"] - middle]
            at = np.arange(len(sizes)) + (place - (len(strategies) - 1) / 2) * 0.27
            axes.bar(
                at,
                middle,
                0.25,
                yerr=error,
                color=style.colour,
                label=strategy,
                error_kw={"linewidth": 0.8, "capsize": 2},
            )
        axes.set_title(f"   {sampler}", loc="center")
        axes.set_xticks(range(len(sizes)), [f"batch {size}" for size in sizes])
        axes.set_ylabel("tokens a second, all rows")
        axes.grid(visible=False, axis="x")
    figure.axes[0].legend(loc="upper left", fontsize=6)
    share_limits(figure.axes)
    gains = figures.where(arms, sampler="greedy").pivot_table(
        index="batch", columns="strategy", values="tokens_per_second_median"
    )
    gain = gains["draft model"] / gains["autoregressive"]
    told = ", ".join(f"{value:.2f}× at batch {size}" for size, value in gain.items())
    figure.suptitle(f"Drafting, greedy, over plain decoding of the same batch: {told}")
    figure.supxlabel(f"median, least and most; {where}", fontsize=6)
    return figure


def _regions(
    figure: Figure, axes: Axes, grid: pd.DataFrame, levels: Sequence[float], name: str
) -> Colorbar:
    """Fill the regions between levels, each with a colour of its own, far apart from the next."""
    look = {"cmap": figures.SEQUENTIAL, "norm": BoundaryNorm(levels, 256)}
    filled = axes.contourf(
        grid.columns, grid.index, grid.clip(upper=levels[-1]), levels=levels, **look
    )
    return figure.colorbar(filled, ax=axes, label=name, spacing="uniform")


def draw_steps(axes: Axes, heights: np.ndarray, colour: str, line: str, name: str) -> None:
    """Draw a law as a horizontal stroke over each word."""
    places = np.arange(len(heights))
    axes.hlines(
        heights,
        places - 0.45,
        places + 0.45,
        color=colour,
        linestyle=line,
        linewidth=1.6,
        label=name,
    )


def _band(
    axes: Axes, rows: pd.DataFrame, x: str, colour: str, marker: str, name: str | None = None
) -> None:
    rows = rows.sort_values(x)
    axes.fill_between(rows[x], rows["low"], rows["high"], color=colour, alpha=0.18, linewidth=0)
    axes.plot(rows[x], rows["mean"], marker=marker, color=colour, label=name)


def _pairs(axes: Axes, pairs: pd.DataFrame) -> None:
    error = [pairs["acceptance"] - pairs["low"], pairs["high"] - pairs["acceptance"]]
    dots: dict[str, Any] = {
        "fmt": "o",
        "color": "white",
        "markeredgecolor": "black",
        "ecolor": "black",
    }
    axes.errorbar(pairs["cost"], pairs["acceptance"], error, **dots, capsize=2, elinewidth=0.8)
    for place, pair in enumerate(pairs.sort_values("acceptance").to_dict("records")):
        axes.annotate(
            str(pair["name"]),
            (pair["cost"], pair["acceptance"]),
            (-7 if place % 2 else 7, 0),
            textcoords="offset points",
            ha="right" if place % 2 else "left",
            va="center",
            fontsize=6,
            bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.8},
        )
