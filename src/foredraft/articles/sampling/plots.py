"""The figures of article 01."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from foredraft.viz import figures
from foredraft.viz.figures import STYLES

KNOBS = {
    "temperature": "temperature",
    "top_k": "top-k",
    "top_p": "top-p",
    "min_p": "min-p",
    "typical_p": "typical-p",
}
VOCABS = "osD^"
"""A marker for each vocabulary, the smallest first."""

BEFORE = 90
"""Characters that are shown of the text before a position."""

PLAIN, BLUE, REMOVED = STYLES["target"].colour, STYLES["foredraft"].colour, "#D9D9D9"


@figures.drawing
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


@figures.drawing
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
    _share_y(figure, len(KNOBS))
    heat = figures.where(table, part="temperature", measure="entropy").sort_values("temperature")
    nucleus = figures.where(table, part="top_p", measure="kept").sort_values("top_p")
    figure.suptitle(
        f"Temperature moves the median entropy from {heat['median'].iloc[0]:.1f} to "
        f"{heat['median'].iloc[-1]:.1f} nats; a top-p of {nucleus['top_p'].iloc[0]:g} leaves "
        f"{nucleus['median'].iloc[0]:.0f} tokens"
    )
    figure.supxlabel("median and quartiles over positions in held-out code", fontsize=6)
    return figure


@figures.drawing
def one_position(table: pd.DataFrame, before: str) -> Figure:
    """Bars of a sampler's probabilities after a text, beside the plain softmax.

    Columns: token (of the last line, all others), plain, probability; kept, of, entropy and
    plain_entropy, the same in each line.
    """
    figure = figures.panels(height=2.4)
    (axes,) = figure.axes
    places = np.arange(len(table))
    axes.bar(places, table["plain"], color=REMOVED, width=0.85, linewidth=0, label="plain softmax")
    axes.bar(places, table["probability"], color=BLUE, width=0.5, linewidth=0, label="sampler")
    names = [*(_visible(str(token)) for token in table["token"][:-1]), "all others"]
    axes.set_xticks(places, names, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_ylim(0, 1)
    axes.set_ylabel("probability")
    axes.grid(visible=False, axis="x")
    axes.legend(loc="upper right")
    whole = table.iloc[0]
    figure.suptitle(
        f"{whole['kept']:,} of {whole['of']:,} tokens can be drawn; entropy "
        f"{whole['entropy']:.2f} nats, of the plain softmax {whole['plain_entropy']:.2f}"
    )
    figure.supxlabel(f"after  … {_visible(before)[-BEFORE:]}", fontsize=6, family="monospace")
    return figure


@figures.drawing
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
    whole = figures.where(wide, top_p=max(wide["top_p"].tolist()))
    ends = whole.sort_values("temperature").iloc[[0, -1]]
    cold, hot = ends.to_dict("records")
    figure.suptitle(
        f"From temperature {cold['temperature']:g} to {hot['temperature']:g} −log p goes "
        f"from {cold['nats']:.1f} to {hot['nats']:.1f}, its distinct bigrams from "
        f"{cold['distinct']:.0%} to {hot['distinct']:.0%}"
    )
    figure.supxlabel(f"means over {max(table['n'].tolist())} texts", fontsize=6)
    return figure


@figures.drawing
def repetition(table: pd.DataFrame) -> Figure:
    """Repeated 4-grams and likelihood against the repetition penalty: mean and 95 % interval."""
    figure = figures.panels(2, width=figures.DOUBLE * 0.75, height=2.2)
    axes = zip(
        figure.axes,
        (("repeated", "repeated 4-grams"), ("nats", "−log p (nats/token)")),
        strict=True,
    )
    for each, (measure, label) in axes:
        rows = figures.where(table, measure=measure)
        rows = rows.assign(
            low=(rows["mean"] - rows["half_width"]).clip(lower=0),
            high=rows["mean"] + rows["half_width"],
        )
        _band(each, rows, "repetition_penalty", middle="mean")
        each.set(xlabel="repetition penalty", ylabel=label)
    loops = figures.where(table, measure="repeated").sort_values("repetition_penalty")
    weak, strong = loops.iloc[[0, -1]].to_dict("records")
    figure.suptitle(
        f"A penalty of {strong['repetition_penalty']:g} takes repeated 4-grams from "
        f"{weak['mean']:.0%} to {strong['mean']:.0%}"
    )
    figure.supxlabel(f"mean and its 95 % interval over {int(weak['n'])} prompts", fontsize=6)
    figure.axes[0].yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
    return figure


@figures.drawing
def costs(table: pd.DataFrame, where: str) -> Figure:
    """How many times faster than transformers' processors: a line a setting, a mark a vocabulary.

    Columns: logits, setting, vocab, ratio_median, ratio_min, ratio_max.
    """
    figure = figures.panels(2, height=2.8)
    settings, vocabs = list(table["setting"].unique()), sorted(set(table["vocab"]))
    shades = sns.color_palette(figures.SEQUENTIAL, len(vocabs))
    for axes, shape in zip(figure.axes, ("peaked", "flat"), strict=True):
        for number, (vocab, marker) in enumerate(zip(vocabs, VOCABS, strict=False)):
            rows = figures.where(table, logits=shape, vocab=vocab)
            middle = rows["ratio_median"]
            error = [middle - rows["ratio_min"], rows["ratio_max"] - middle]
            shift = 0.18 * (number - (len(vocabs) - 1) / 2)
            places = [settings.index(setting) + shift for setting in rows["setting"]]
            look = {"color": shades[number], "capsize": 2, "label": f"{vocab / 1000:.0f}k tokens"}
            axes.errorbar(middle, places, xerr=error, fmt=marker, **look)
        axes.axvline(1, color=PLAIN, linewidth=0.8, linestyle=":")
        axes.set(xscale="log", xlabel="times faster than transformers")
        axes.set_title(f"   {shape} logits", loc="center")
        axes.set_yticks(
            range(len(settings)), settings if shape == "peaked" else [""] * len(settings)
        )
        axes.invert_yaxis()
        axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:g}×"))
        axes.minorticks_off()
    low = min(axes.get_xlim()[0] for axes in figure.axes)
    high = max(axes.get_xlim()[1] for axes in figure.axes)
    for axes in figure.axes:
        axes.set_xlim(low, high)
    figure.axes[1].legend(fontsize=6, loc="center right", bbox_to_anchor=(1, 0.36))
    largest = figures.where(table, logits="peaked", vocab=vocabs[-1]).set_index("setting")
    times = largest["ratio_median"]
    figure.suptitle(
        f"Over {vocabs[-1] / 1000:.0f}k tokens top-p is {times['temperature, top-p']:.0f} times as "
        f"fast, with top-k {times['temperature, top-k, top-p']:.0f} times, a draw "
        f"{times['draw']:.0f} times"
    )
    figure.supxlabel(
        f"batch 8, float32; median, least and most of paired ratios; {where}", fontsize=6
    )
    return figure


def _band(axes: Axes, rows: pd.DataFrame, knob: str, *, middle: str = "median") -> None:
    rows = rows.sort_values(knob)
    axes.fill_between(rows[knob], rows["low"], rows["high"], color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(rows[knob], rows[middle], "o-", color=BLUE)


def _visible(text: str) -> str:
    """Show what a text has of spaces and ends of lines; a $ would begin a formula."""
    return text.replace("\n", "↵").replace(" ", "·").replace("$", r"\$")


def _share_y(figure: Figure, columns: int) -> None:
    for start in range(0, len(figure.axes), columns):
        row = figure.axes[start : start + columns]
        low = min(axes.get_ylim()[0] for axes in row)
        high = max(axes.get_ylim()[1] for axes in row)
        for axes in row:
            axes.set_ylim(low, high)
        for axes in row[1:]:
            axes.set_yticklabels([])
