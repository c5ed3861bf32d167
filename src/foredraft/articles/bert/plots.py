"""The figures of article 07."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter

from foredraft.viz import figures
from foredraft.viz.axes import SHARE, legend_below, line_style
from foredraft.viz.figures import STYLES, Style

PRECISIONS: Mapping[str, Style] = {
    "float32": Style("#0072B2", "o", ()),
    "float64": Style("#D55E00", "s", (4, 2)),
}
"""The look of each precision."""

LEAST = 1e-17
"""Where a difference of zero is drawn on a logarithmic axis."""

FATES: Mapping[str, tuple[str, str, str]] = {
    "masked": ("asked, masked", "#0072B2", "white"),
    "replaced": ("asked, replaced", "#D55E00", "white"),
    "kept": ("asked, left as it is", "#F0C95C", "black"),
    "unasked": ("not asked", "#EEEEEE", "black"),
    "mark": ("mark", "#CCCCCC", "black"),
}
"""What became of a token: in words, its ground and its ink."""

RULES: Mapping[str, Style] = {
    "single pieces": Style("#0072B2", "o", ()),
    "whole words": Style("#D55E00", "s", (4, 2)),
}
"""The look of each masking rule."""

RUNS: Mapping[str, tuple[str, Style]] = {
    "shipped": ("pocket-bert", Style("#0072B2", "o", ())),
    "here": ("trained here", Style("#D55E00", "s", (4, 2))),
}
"""What each run of training is called, and its look."""

COUNTING: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "unigram": ("unigram", (1, 1)),
    "left_neighbour": ("bigram, from the left", (4, 2)),
    "both_neighbours": ("both neighbours", ()),
}
"""What each way of counting is called, and its dashes."""

ARMS: Mapping[str, Style] = {
    "words": Style("#4D4D4D", "o", ()),
    "characters": Style("#8C8C8C", "v", (2, 1)),
    "real": Style("#009E73", "^", (6, 2)),
    "before": Style("#E69F00", "s", (4, 2)),
    "after": Style("#0072B2", "D", (12, 1)),
}
"""The look of each arm of the search."""

TASKS: Mapping[str, str] = {
    "functions": "the function, by name and parameters",
    "bodies": "the rest of the docstring",
}
"""What is to be found."""

AIMS: Mapping[str, float] = {"32 tokens each": 1.1, "128 tokens each": 1.1, "8 to 256": 2.0}
"""By what factor encoding a workload, as its name begins, is to be faster."""

ENCODING = "encode"
"""The task that there are aims for."""

DEVICES = (STYLES["foredraft"], STYLES["speculative"])
"""The looks of devices, in the order of the table."""

SPENT: Mapping[str, str] = {"ms": "time", "MB": "peak of memory"}
"""What a unit measures."""

COLUMNS, LINE = 100, 0.19
"""Characters in a line of tokens, and its height in inches."""

BARS: Mapping[str, Any] = {"elinewidth": 0.8, "capsize": 1.5}
"""The look of intervals."""


@figures.drawing
def parity(states: pd.DataFrame) -> Figure:
    """How far our hidden states lie from the reference's behind each layer; dotted: the bounds.

    Columns: layer (0: what goes into the first), precision, difference, bound.
    """
    figure = figures.panels(width=figures.DOUBLE * 0.85)
    (axes,) = figure.axes
    told = []
    for name, look in PRECISIONS.items():
        rows = figures.where(states, precision=name).sort_values("layer")
        if rows.empty:
            continue
        drawn = rows["difference"].clip(lower=LEAST)
        line: dict[str, Any] = {
            "color": look.colour,
            "marker": look.marker,
            "linestyle": line_style(look),
        }
        axes.plot(rows["layer"], drawn, label=name, **line)
        bound = float(rows["bound"].iloc[0])
        axes.axhline(bound, color=look.colour, linewidth=0.9, linestyle=":")
        told.append(f"{rows['difference'].max():.1e} in {name} ({bound:.0e} allowed)")
    layers = sorted({int(layer) for layer in states["layer"]})
    axes.set(yscale="log", xlabel="behind layer", ylabel="largest difference")
    axes.set_xticks(layers, ["embeddings", *(f"{layer}" for layer in layers[1:])])
    legend_below(figure, f"dotted: what is allowed; 0 is drawn at {LEAST:.0e}")
    figure.suptitle(f"Hidden states differ by at most {', '.join(told)}", fontsize=8)
    return figure


@figures.drawing
def looks(table: pd.DataFrame) -> Figure:
    """Where every head's tokens look: a panel a pattern, a cell a head.

    Columns: layer, head, pattern, share (of the attention of all tokens).
    """
    patterns = list(table["pattern"].unique())
    figure = figures.panels(3, -(-len(patterns) // 3), height=2.0)
    for axes, pattern in zip(figure.axes, patterns, strict=False):
        rows = figures.where(table, pattern=pattern)
        grid = rows.pivot_table(index="layer", columns="head", values="share").sort_index()
        axes.imshow(grid, cmap=figures.SEQUENTIAL, vmin=0, vmax=1, aspect="auto")
        axes.set_title(f"    {pattern}, {rows['share'].mean():.0%}", loc="center")
        axes.set_xticks(range(len(grid.columns)), [f"{head}" for head in grid.columns], fontsize=6)
        axes.set_yticks(range(len(grid.index)), [f"{layer}" for layer in grid.index], fontsize=6)
        axes.set(xlabel="head", ylabel="layer")
        axes.grid(visible=False)
    for axes in figure.axes[len(patterns) :]:
        axes.remove()
    bar: dict[str, Any] = {"label": "share of attention", "format": SHARE, "aspect": 40}
    figure.colorbar(figure.axes[0].images[0], ax=figure.axes, **bar)
    means = {each: np.mean(figures.where(table, pattern=each)["share"]) for each in patterns}
    most = max(means, key=means.__getitem__)
    figure.suptitle(
        f"Most attention goes to: {most} ({means[most]:.0%} over all heads)", fontsize=8
    )
    return figure


@figures.drawing
def heads(tokens: Sequence[str], maps: Sequence[np.ndarray], names: Sequence[str]) -> Figure:
    """Some heads' attention on one text: from each token (row) to each (column).

    Raises ValueError unless there are as many maps as names.
    """
    if len(maps) != len(names) or not maps:
        raise ValueError(f"{len(maps)} maps and {len(names)} names: give one of each, or more")
    columns = min(3, len(maps))
    figure = figures.panels(columns, -(-len(maps) // columns), height=2.4)
    places = range(len(tokens))
    for axes, attention, name in zip(figure.axes, maps, names, strict=False):
        axes.imshow(attention, cmap=figures.SEQUENTIAL, vmin=0, vmax=1)
        axes.set_title(f"     {name}", loc="center", fontsize=7)
        axes.set_xticks(places, tokens, rotation=90, fontsize=5, parse_math=False)
        axes.set_yticks(places, tokens, fontsize=5, parse_math=False)
        axes.tick_params(length=0)
        axes.grid(visible=False)
    for axes in figure.axes[len(maps) :]:
        axes.remove()
    bar: dict[str, Any] = {"label": "attention", "format": SHARE, "aspect": 40, "shrink": 0.6}
    figure.colorbar(figure.axes[0].images[0], ax=figure.axes, **bar)
    figure.suptitle(
        f"From each of {len(tokens)} tokens (row) to each other (column): the clearest heads",
        fontsize=8,
    )
    return figure


@figures.drawing
def fates(table: pd.DataFrame) -> Figure:
    """What the masking rules do to one passage; a panel a rule. Columns: rule, text, fate."""
    placed = {
        str(rule): _placed([str(text) for text in part["text"]])
        for rule, part in table.groupby("rule", sort=False)
    }
    most = max(n_lines for _, n_lines in placed.values())
    figure = figures.panels(1, len(placed), height=0.32 + LINE * most)
    told = []
    for axes, (rule, (places, _)) in zip(figure.axes, placed.items(), strict=True):
        rows = figures.where(table, rule=rule)
        for fate, (line, column, text) in zip(rows["fate"], places, strict=True):
            _, ground, ink = FATES[str(fate)]
            box = Rectangle((column, line + 0.06), len(text), 0.88, facecolor=ground, lw=0)
            axes.add_patch(box)
            middle: dict[str, Any] = {"ha": "center", "va": "center", "family": "monospace"}
            for i, letter in enumerate(text):
                at = column + i + 0.5, line + 0.52
                axes.text(*at, letter, color=ink, fontsize=6, parse_math=False, **middle)
        axes.set(xlim=(0, COLUMNS), ylim=(most, 0))
        axes.set_axis_off()
        axes.set_title(f"    {rule}", loc="center")
        found = Counter(rows["fate"])
        plain = found.total() - found["mark"]
        asked = plain - found["unasked"]
        told.append(f"{asked} of {plain} ({rule})")
    shown = [fate for fate in FATES if fate in set(table["fate"])]
    figure.legend(
        handles=[Patch(facecolor=FATES[fate][1], label=FATES[fate][0]) for fate in shown],
        loc="outside lower center",
        ncols=len(shown),
        fontsize=6,
    )
    figure.suptitle(f"Tokens asked: {', '.join(told)}", fontsize=8)
    return figure


@figures.drawing
def by_rate(table: pd.DataFrame) -> Figure:
    """How many masked tokens are guessed, and how surely, by rule and rate.

    Columns: rule, rate, accuracy, low, high (95 % bounds over docstrings), nats.
    """
    figure = figures.panels(2)
    right, nats = figure.axes
    told = []
    for rule, look in RULES.items():
        rows = figures.where(table, rule=rule).sort_values("rate")
        if rows.empty:
            continue
        line: dict[str, Any] = {
            "color": look.colour,
            "marker": look.marker,
            "linestyle": line_style(look),
        }
        ends = _ends(rows, "accuracy")
        right.errorbar(rows["rate"], rows["accuracy"], yerr=ends, label=rule, **line, **BARS)
        nats.plot(rows["rate"], rows["nats"], **line)
        first, last = rows.iloc[0], rows.iloc[-1]
        told.append(f"{rule} {first['accuracy']:.0%} → {last['accuracy']:.0%}")
    right.set(ylabel="masked tokens guessed", ylim=(0, 1.08 * table["high"].max()))
    right.yaxis.set_major_formatter(SHARE)
    nats.set(ylabel="nats a masked token", ylim=(0, 1.08 * table["nats"].max()))
    for axes in figure.axes:
        axes.set(xlabel="share of tokens that is asked")
        axes.xaxis.set_major_formatter(SHARE)
    legend_below(figure, "chance decides over; bars: 95 % bounds over docstrings")
    rates = table["rate"].min(), table["rate"].max()
    figure.suptitle(
        f"Guessed as {rates[0]:.0%} → {rates[1]:.0%} are asked: {', '.join(told)}", fontsize=8
    )
    return figure


@figures.drawing
def learning(curves: pd.DataFrame, guessers: pd.DataFrame) -> Figure:
    """How the loss on held-out rows falls below what counting reaches.

    Curves: run, tokens, held_out; guessers: who, nats (of the ways of counting).
    """
    figure = figures.panels(width=figures.DOUBLE * 0.85, height=2.9)
    (axes,) = figure.axes
    for who, (name, dashes) in COUNTING.items():
        rows = figures.where(guessers, who=who)
        if rows.empty:
            continue
        line: dict[str, Any] = {"color": "#4D4D4D", "linewidth": 0.9}
        line["linestyle"] = (0, dashes) if dashes else "-"
        axes.axhline(float(rows["nats"].iloc[0]), label=name, **line)
    told = []
    for run, (name, look) in RUNS.items():
        rows = figures.where(curves, run=run).sort_values("tokens")
        if rows.empty:
            continue
        line = {
            "color": look.colour,
            "marker": look.marker,
            "label": name,
            "linestyle": line_style(look),
        }
        axes.plot(rows["tokens"] / 1e6, rows["held_out"], **line)
        told.append(f"{name} {rows['held_out'].iloc[-1]:.2f}")
    axes.set(xscale="log", xlabel="tokens read, millions", ylabel="nats a masked token")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda n, _: ""))
    legend_below(figure, "lines: counting; markers: a fixed sample of rows of the held-out package")
    counted = figures.where(guessers, who="both_neighbours")["nats"]
    told += [f"counting, at best, {nats:.2f}" for nats in counted]
    figure.suptitle(f"Nats a masked token at the end: {', '.join(told)}", fontsize=8)
    return figure


@figures.drawing
def recall(table: pd.DataFrame, names: Mapping[str, str]) -> Figure:
    """How often the own text is among the first k; a panel a task, a line an arm.

    Columns: task, arm, k, share, low, high (95 %), n. `names`: what the arms are called.
    """
    tasks = [task for task in TASKS if task in set(table["task"])]
    ks = sorted(table["k"].unique())
    figure = figures.panels(len(tasks), height=2.9)
    arms = [arm for arm in ARMS if arm in set(table["arm"])]
    shifts = 0.5 * (np.arange(len(arms)) - (len(arms) - 1) / 2) / len(arms)
    for axes, task in zip(figure.axes, tasks, strict=True):
        for arm, shift in zip(arms, shifts, strict=True):
            rows = figures.where(table, task=task, arm=arm).sort_values("k")
            look = ARMS[arm]
            line: dict[str, Any] = {
                "color": look.colour,
                "marker": look.marker,
                "linestyle": line_style(look),
            }
            at = np.array([ks.index(k) for k in rows["k"]]) + shift
            ends = _ends(rows, "share")
            axes.errorbar(at, rows["share"], yerr=ends, label=names[arm], **line, **BARS)
        n = int(figures.where(table, task=task)["n"].iloc[0])
        axes.set_title(f"    {TASKS[task]} (n {n:,})", loc="center")
        axes.set(xlabel="among the first", ylim=(0, 1), xlim=(-0.5, len(ks) - 0.5))
        axes.set_xticks(range(len(ks)), [f"{k}" for k in ks])
        axes.yaxis.set_major_formatter(SHARE)
    figure.axes[0].set_ylabel("own text found")
    legend_below(figure, "bars: 95 % interval")
    first = figures.where(table, task=tasks[0], k=ks[0]).set_index("arm")["share"]
    told = ", ".join(f"{names[arm]} {first[arm]:.0%}" for arm in arms)
    figure.suptitle(f"Found among the first {ks[0]}: {told}", fontsize=7)
    return figure


@figures.drawing
def tuning(log: pd.DataFrame) -> Figure:
    """How the contrast falls while the encoder is fine-tuned: step, loss (nats a pair)."""
    figure = figures.panels(width=figures.DOUBLE * 0.6, height=2.2)
    (axes,) = figure.axes
    look = ARMS["after"]
    axes.plot(log["step"], log["loss"], color=look.colour, linewidth=0.6, alpha=0.4)
    window = max(1, len(log) // 15)
    smooth = list(pd.Series(log["loss"]).rolling(window, min_periods=1).mean())
    axes.plot(log["step"], smooth, color=look.colour)
    axes.set(xlabel="step", ylabel="contrast, nats a pair", ylim=(0, 1.08 * log["loss"].max()))
    figure.suptitle(
        f"Contrast within a batch: {smooth[0]:.2f} → {smooth[-1]:.2f} nats "
        f"(means of {window} steps)",
        fontsize=8,
    )
    return figure


@figures.drawing
def speed(table: pd.DataFrame) -> Figure:
    """What transformers takes over what ours takes; a panel a task, a row a workload.

    Columns: task, workload, unit, ratio_median, ratio_min, ratio_max, device. Above 1 ours is
    better; dotted: the aims of encoding.
    """
    tasks, workloads = list(table["task"].unique()), list(table["workload"].unique())
    height = 0.8 + 0.24 * len(workloads)
    figure = figures.panels(2, -(-len(tasks) // 2), height=height)
    for axes, task in zip(figure.axes, tasks, strict=False):
        rows = figures.where(table, task=task)
        for (device, part), look in zip(rows.groupby("device", sort=False), DEVICES, strict=False):
            at = np.array([workloads.index(each) for each in part["workload"]])
            ink: dict[str, Any] = {"color": look.colour, "marker": look.marker, "label": device}
            ends = _ends(part, "ratio_median", "ratio_min", "ratio_max")
            axes.errorbar(part["ratio_median"], at, xerr=ends, linestyle="none", **ink, **BARS)
        for row in rows.to_dict("records"):
            place = float(row["ratio_max"]), workloads.index(row["workload"])
            look = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(f"{row['ratio_median']:.2f}", place, fontsize=6, **look)
        for y, workload in enumerate(workloads):
            aims = [aim for name, aim in AIMS.items() if str(workload).startswith(name)]
            if task == ENCODING and aims:
                ink = {"color": "black", "linewidth": 0.9, "linestyle": ":"}
                axes.vlines(aims[0], y - 0.4, y + 0.4, **ink)
        _rows(axes, workloads, shown=axes in figure.axes[::2])
        axes.axvline(1, color="#4D4D4D", linewidth=0.8)
        axes.set_title(f"    {task}: {SPENT[str(rows['unit'].iloc[0])]}", loc="center")
        axes.set(xlim=(0, 1.25 * max(1.1, *rows["ratio_max"])))
        axes.set(xlabel="transformers ÷ ours")
    for axes in figure.axes[len(tasks) :]:
        axes.remove()
    legend_below(figure, "bars: least and most; line: as much; dotted: the aim")
    medians = figures.where(table, task=ENCODING)["ratio_median"]
    told = ", ".join(f"{ratio:.2f}" for ratio in medians)
    figure.suptitle(f"Encoding, times as fast as transformers, from the top: {told}", fontsize=8)
    return figure


def _rows(axes: Axes, names: Sequence[str], *, shown: bool) -> None:
    """Make rows from the top down, with their names if shown."""
    axes.set_yticks(range(len(names)), names if shown else [""] * len(names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")


def _ends(
    rows: pd.DataFrame, middle: str, low: str = "low", high: str = "high"
) -> list[np.ndarray]:
    """Give how far an interval reaches to both sides; a rounding beyond the middle counts as 0."""
    centre, below, above = (rows[name].to_numpy(float) for name in (middle, low, high))
    return [np.maximum(centre - below, 0), np.maximum(above - centre, 0)]


def _placed(texts: Iterable[str]) -> tuple[list[tuple[int, int, str]], int]:
    """Give each token's line, column and text, and the number of lines; a blank goes between."""
    places: list[tuple[int, int, str]] = []
    line = column = 0
    for text in texts:
        word = text.lstrip()
        column += (text != word) * (column > 0)
        if column + len(word) > COLUMNS:
            line, column = line + 1, 0
        places.append((line, column, word[:COLUMNS]))
        column += len(word)
    return places, line + 1
