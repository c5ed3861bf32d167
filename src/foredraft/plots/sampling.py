"""The figures of article 01."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from foredraft import figures
from foredraft.figures import STYLES

KNOBS = {
    "temperature": "temperature",
    "top_k": "top-k",
    "top_p": "top-p",
    "min_p": "min-p",
    "typical_p": "typical-p",
}
PLAIN, BLUE, REMOVED = STYLES["target"].colour, STYLES["foredraft"].colour, "#D9D9D9"


def nine_words(frame: pd.DataFrame) -> Figure:
    """Bars of each setting's probabilities over the nine words, beside the plain softmax.

    Columns: setting, word, probability, plain.
    """
    settings = list(frame["setting"].unique())
    figure = figures.panels(3, len(settings) // 3, height=1.5)
    for axes, setting in zip(figure.axes, settings, strict=True):
        rows = figures.where(frame, setting=setting)
        places = np.arange(len(rows))
        axes.bar(places, rows["plain"], color=REMOVED, width=0.85, linewidth=0)
        axes.bar(places, rows["probability"], color=BLUE, width=0.5, linewidth=0)
        axes.set_title(f"   {setting}", loc="center")
        axes.set_xticks(places, rows["word"], rotation=60, ha="right", rotation_mode="anchor")
        axes.set_ylim(0, 0.7)
        axes.grid(visible=False, axis="x")
    figure.suptitle("What each setting (blue) makes of the plain softmax (grey)")
    for axes in figure.axes[::3]:
        axes.set_ylabel("probability")
    for axes in figure.axes[:-3]:
        axes.set_xticklabels([])
    return figure


def knobs(table: pd.DataFrame) -> Figure:
    """Entropy (top) and kept tokens (bottom) against each knob: median and quartiles."""
    figure = figures.panels(len(KNOBS), 2, height=1.9)
    rows = (("entropy", "entropy (nats)"), ("kept", "tokens that survive"))
    for row, (measure, label) in enumerate(rows):
        for column, (knob, title) in enumerate(KNOBS.items()):
            axes = figure.axes[row * len(KNOBS) + column]
            part = figures.where(table, part=knob, measure=measure)
            _band(axes, part, knob)
            axes.set_xlabel(title if row else "")
            axes.set_ylabel(label if column == 0 else "")
            if knob == "top_k":
                axes.set_xscale("log")
            if measure == "kept":
                axes.set_yscale("log")
            axes.minorticks_off()
    figure.suptitle("Each knob on real distributions: median and quartiles over positions")
    _share_y(figure, len(KNOBS))
    return figure


def grid(table: pd.DataFrame) -> Figure:
    """Likelihood and diversity over temperature × top-p, and one against the other."""
    figure = figures.panels(3, height=2.5)
    left, middle, right = figure.axes
    heats = (
        (left, "nats", "−log p (nats/token)"),
        (middle, "distinct", "distinct bigrams (share)"),
    )
    for axes, measure, label in heats:
        names = {"mean": label, "top_p": "top-p"}
        part = figures.where(table, measure=measure).rename(columns=names)
        figures.heatmap(axes, part, x="top-p", y="temperature", value=label)
    wide = table.pivot_table(
        index=["temperature", "top_p"], columns="measure", values="mean"
    ).reset_index()
    colours = sns.color_palette(figures.SEQUENTIAL, len(set(wide["top_p"])))
    for position, (top_p, part) in enumerate(wide.groupby("top_p")):
        colour = colours[position]
        right.plot(part["nats"], part["distinct"], "o-", color=colour, label=f"{top_p:g}")
    right.set(xlabel="−log p (nats/token)", ylabel="distinct bigrams (share)")
    right.legend(title="top-p", loc="lower right")
    figure.suptitle("What temperature and top-p do to likelihood and diversity")
    return figure


def repetition(table: pd.DataFrame) -> Figure:
    """Repeated 4-grams and likelihood against the repetition penalty: mean and quartiles."""
    figure = figures.panels(2, width=figures.DOUBLE * 0.75, height=2.2)
    axes = zip(
        figure.axes,
        (("repeated", "repeated 4-grams"), ("nats", "−log p (nats/token)")),
        strict=True,
    )
    for each, (measure, label) in axes:
        _band(each, figures.where(table, measure=measure), "repetition_penalty", middle="mean")
        each.set(xlabel="repetition penalty", ylabel=label)
    figure.suptitle("What the repetition penalty does to loops and to likelihood")
    figure.axes[0].yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
    return figure


def costs(table: pd.DataFrame, where: str) -> Figure:
    """How many times faster than transformers' processors, by vocabulary and setting."""
    figure = figures.panels(2, height=2.6)
    for axes, shape in zip(figure.axes, ("peaked", "flat"), strict=True):
        part = figures.where(table, logits=shape)
        for setting, rows in part.groupby("setting", sort=False):
            middle = rows["ratio_median"]
            error = [middle - rows["ratio_min"], rows["ratio_max"] - middle]
            axes.errorbar(rows["vocab"], middle, error, marker="o", capsize=2, label=str(setting))
        axes.axhline(1, color=PLAIN, linewidth=0.8, linestyle=":")
        axes.set(xscale="log", yscale="log", xlabel="vocabulary", ylabel="times faster")
        axes.set_title(f"   {shape} logits", loc="center")
        axes.set_xticks(sorted(set(part["vocab"])), minor=False)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n / 1000:.0f}k"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:g}×"))
        axes.minorticks_off()
    figure.axes[1].legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    figure.supxlabel(
        f"batch 8, float32; median, least and most of paired ratios; {where}", fontsize=6
    )
    return figure


def _band(axes: Axes, rows: pd.DataFrame, knob: str, *, middle: str = "median") -> None:
    rows = rows.sort_values(knob)
    axes.fill_between(rows[knob], rows["low"], rows["high"], color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(rows[knob], rows[middle], "o-", color=BLUE)


def _share_y(figure: Figure, columns: int) -> None:
    for start in range(0, len(figure.axes), columns):
        row = figure.axes[start : start + columns]
        low = min(axes.get_ylim()[0] for axes in row)
        high = max(axes.get_ylim()[1] for axes in row)
        for axes in row:
            axes.set_ylim(low, high)
        for axes in row[1:]:
            axes.set_yticklabels([])
