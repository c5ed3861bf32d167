"""The figures of article 06 that are drawn from its numbers; single tables: `table_plots`."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from foredraft.viz import figures
from foredraft.viz.axes import SHARE, legend_below, line_style, name_rows
from foredraft.viz.figures import STYLES, Style

BEFORE = "before"
"""The stage of the base; other stages are methods of fine-tuning."""

STAGES: Mapping[str, tuple[str, Style]] = {
    BEFORE: ("before", STYLES["target"]),
    "full": ("full", Style("#0072B2", "D", ())),
    "lora": ("LoRA", Style("#D55E00", "s", (4, 2))),
}
"""What each stage is called, and its look."""

METRICS: Mapping[str, str] = {
    "exact": "table exact",
    "text": "all text right",
    "cells": "cells right",
    "teds": "TEDS",
    "valid": "valid Markdown",
}
"""What each score is called."""

AIMS: Mapping[int, float] = {1: 0.90, 2: 0.60}
"""How many tables of a level are to be exact."""

DATA = "collation"
"""The part of a step that is the data path: reading images and tokenizing."""

PARTS: Sequence[tuple[str, str]] = (
    *(("#0072B2", ""), ("#E69F00", "//"), ("#009E73", ".."), ("#CC79A7", "xx")),
    *(("#56B4E9", "\\\\"), ("#BBBBBB", "")),
)
"""Colour and hatch of each part of a step, in the order of the table."""

MOST_PAIRS = 15
"""How many confusions are shown."""

CHANGES: Mapping[str, tuple[str, str]] = {
    "read as another": ("#0072B2", ""),
    "lost": ("#E69F00", "//"),
    "added": ("#009E73", ".."),
}
"""The colour and hatch of what became of a character."""

EDGE: Mapping[str, Any] = {"edgecolor": "white", "linewidth": 0}
"""A bar's: what its hatch is drawn in."""


@figures.drawing
def scores(table: pd.DataFrame) -> Figure:
    """How well tables of each level are written before and after, with 95 % intervals.

    Columns: stage, level, n, and for each score its value, `<score>_low` and `<score>_high`.
    """
    stages, numbers = _known(table["stage"]), sorted(table["level"].unique())
    figure = figures.panels(len(METRICS), height=2.6)
    shifts = 0.6 * (np.arange(len(stages)) - (len(stages) - 1) / 2) / len(stages)
    for axes, (metric, name) in zip(figure.axes, METRICS.items(), strict=True):
        for stage, shift in zip(stages, shifts, strict=True):
            rows = figures.where(table, stage=stage).sort_values("level")
            at = np.array([numbers.index(level) for level in rows["level"]]) + shift
            _points(axes, at, rows, metric, stage, {"linestyle": "none"})
        aimed = [level for level in numbers if level in AIMS] if metric == "exact" else []
        for level in aimed:
            _aim(axes, AIMS[level], numbers.index(level))
        axes.set_title(f"   {name}", loc="center")
        axes.set(xlim=(-0.5, len(numbers) - 0.5), ylim=(-0.04, 1.04), xlabel="level")
        axes.set_xticks(range(len(numbers)), [f"{level}" for level in numbers])
        axes.yaxis.set_major_formatter(SHARE)
        axes.tick_params(labelleft=axes is figure.axes[0])
        axes.grid(visible=False, axis="x")
    n = sorted(set(table["n"]))
    each = f"{n[0]}" if len(n) == 1 else f"{n[0]} to {n[-1]}"
    legend_below(figure, f"{each} held-out tables a level; bars: 95 % interval; dotted: the aim")
    told = "; ".join(
        f"{STAGES[stage][0]} {_shares(figures.where(table, stage=stage)['exact'])}"
        for stage in stages
    )
    at_levels = ", ".join(f"{level}" for level in numbers)
    figure.suptitle(f"Tables written exactly, level {at_levels}: {told}", fontsize=8)
    return figure


@figures.drawing
def learning(log: pd.DataFrame) -> Figure:
    """How the loss falls with the examples seen, by method; markers: on the development tables.

    Columns: method, step, examples, loss, eval_loss (nats a token; NaN where not evaluated).
    """
    figure = figures.panels(width=figures.DOUBLE * 0.85, height=2.8)
    (axes,) = figure.axes
    thin: dict[str, Any] = {"alpha": 0.35, "linewidth": 0.6, "zorder": 1}
    told = []
    for method in _known(log["method"]):
        name, look = STAGES[method]
        rows = figures.where(log, method=method).sort_values("step")
        axes.plot(rows["examples"], rows["loss"], color=look.colour, **thin)
        watched = rows.loc[rows["eval_loss"].notna()]
        line = {
            "color": look.colour,
            "marker": look.marker,
            "label": name,
            "linestyle": line_style(look),
        }
        axes.plot(watched["examples"], watched["eval_loss"], **line)
        if watched.empty:
            told.append(f"{name} never evaluated")
            continue
        best = watched.loc[watched["eval_loss"].idxmin()]
        told.append(f"{name} {best['eval_loss']:.3g} after {best['examples']:,.0f} examples")
    axes.set(yscale="log", xlabel="examples seen", ylabel="loss, nats a token")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    legend_below(figure, "thin: the batch of each step; markers: tables that were not trained on")
    figure.suptitle(f"Lowest held-out loss: {', '.join(told)}", fontsize=8)
    return figure


@figures.drawing
def growth(table: pd.DataFrame) -> Figure:
    """How the share of exact tables grows with the examples learnt from; a panel a level.

    Columns: method, examples, level, n, exact, exact_low, exact_high.
    """
    numbers, methods = sorted(table["level"].unique()), _known(table["method"])
    counts = sorted(table["examples"].unique())
    width = min(figures.DOUBLE, 2.4 * max(2, len(numbers)))
    figure = figures.panels(len(numbers), width=width, height=2.6)
    for axes, level in zip(figure.axes, numbers, strict=True):
        for method in methods:
            rows = figures.where(table, level=level, method=method).sort_values("examples")
            look = {"linestyle": line_style(STAGES[method][1])}
            _points(axes, rows["examples"].to_numpy(float), rows, "exact", method, look)
        if level in AIMS:
            axes.axhline(AIMS[level], color="black", linewidth=0.9, linestyle=":")
        axes.set_title(f"   level {level}", loc="center")
        axes.set(xscale="log", xlabel="examples", ylim=(-0.04, 1.04))
        axes.set_xlim(counts[0] / 1.35, counts[-1] * 1.35)
        axes.set_xticks(counts, [f"{n:,}" for n in counts])
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter(SHARE)
        axes.tick_params(labelleft=axes is figure.axes[0])
    figure.axes[0].set_ylabel("tables written exactly")
    legend_below(figure, "each run from the base on; bars: 95 % interval; dotted: the aim")
    first = figures.where(table, level=numbers[0]).sort_values("examples")
    told = []
    for method in methods:
        exact = figures.where(first, method=method)["exact"]
        told.append(f"{STAGES[method][0]} {exact.iloc[0]:.0%} → {exact.iloc[-1]:.0%}")
    figure.suptitle(
        f"Exact at level {numbers[0]}, {counts[0]:,} → {counts[-1]:,} examples: {', '.join(told)}",
        fontsize=8,
    )
    return figure


@figures.drawing
def faults(table: pd.DataFrame) -> Figure:
    """In what fine-tuned models go wrong, by kind; a panel a level, a bar a method.

    Columns: stage, level, kind, count, share (of the cells there are). The base is left out.
    """
    tuned = table.loc[(table["stage"] != BEFORE) & (table["count"] > 0)]
    if tuned.empty:
        return _none("No fault in any table of the fine-tuned models")
    stages, numbers = _known(tuned["stage"]), sorted(tuned["level"].unique())
    by_kind = tuned.groupby("kind", sort=False)["count"].sum()
    kinds = [str(kind) for kind in by_kind.sort_values(ascending=False, kind="stable").index]
    figure = figures.panels(len(numbers), height=0.95 + 0.17 * len(kinds) * max(1.3, len(stages)))
    thick, most = 0.8 / len(stages), float(tuned["share"].max())
    for axes, level in zip(figure.axes, numbers, strict=True):
        for i, stage in enumerate(stages):
            rows = figures.where(tuned, level=level, stage=stage)
            at = np.array([kinds.index(kind) for kind in rows["kind"]]) - 0.4 + (i + 0.5) * thick
            name, look = STAGES[stage]
            ink: dict[str, Any] = {"color": look.colour, "label": name, **EDGE}
            bars = axes.barh(at, rows["share"], 0.9 * thick, hatch="//" * (i % 2), **ink)
            axes.bar_label(bars, [f"{n}" for n in rows["count"]], padding=2, fontsize=6)
        name_rows(axes, kinds, shown=axes is figure.axes[0])
        axes.set_title(f"   level {level}", loc="center")
        axes.set(xlim=(0, 1.18 * most), xlabel="share of cells")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    legend_below(figure, "number at a bar: faults counted")
    told = []
    for stage in stages:
        mine: Counter[str] = Counter()
        for row in figures.where(tuned, stage=stage).to_dict("records"):
            mine[row["kind"]] += row["count"]
        ((kind, most_counted),) = mine.most_common(1)
        share = most_counted / mine.total()
        told.append(f"{STAGES[stage][0]} {mine.total():,}, {share:.0%} {kind}")
    figure.suptitle(f"Faults counted, and the most frequent: {'; '.join(told)}", fontsize=8)
    return figure


@figures.drawing
def confusions(table: pd.DataFrame) -> Figure:
    """Which characters are most often read as which.

    Columns: true, read, count; "" as true: added, as read: lost.
    """
    pairs = table.loc[table["count"] > 0]
    if pairs.empty:
        return _none("No character was read as another, lost or added")
    ordered = pairs.sort_values("count", ascending=False, kind="stable")
    shown = ordered.head(MOST_PAIRS).to_dict("records")
    figure = figures.panels(width=figures.DOUBLE * 0.6, height=0.95 + 0.16 * len(shown))
    (axes,) = figure.axes
    for i, row in enumerate(shown):
        change = "added" if not row["true"] else "lost" if not row["read"] else "read as another"
        colour, hatch = CHANGES[change]
        look: dict[str, Any] = {"color": colour, "hatch": hatch, **EDGE}
        bars = axes.barh([i], [row["count"]], 0.75, label=change, **look)
        axes.bar_label(bars, [f"{row['count']:,}"], padding=2, fontsize=6)
    name_rows(axes, [_pair(row) for row in shown])
    axes.set(xlim=(0, 1.12 * shown[0]["count"]), xlabel="times")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure, "true → read")
    total = int(pairs["count"].sum())
    figure.suptitle(
        f"Most often {_pair(shown[0])}: {shown[0]['count']:,} of {total:,} characters misread",
        fontsize=8,
        parse_math=False,
    )
    return figure


@figures.drawing
def speed(table: pd.DataFrame) -> Figure:
    """Where the time of a training step goes, by method.

    Columns: method, part ("collation" is the data path), share (of a step). ValueError if the data
    path is not among the parts.
    """
    methods, parts = _known(table["method"]), [str(part) for part in table["part"].unique()]
    if DATA not in parts:
        raise ValueError(f"the parts are {', '.join(parts)}: give a share of {DATA!r} too")
    figure = figures.panels(width=figures.DOUBLE * 0.75, height=0.95 + 0.36 * len(methods))
    (axes,) = figure.axes
    ends = np.zeros(len(methods))
    for part, (colour, hatch) in zip(parts, cycle(PARTS)):
        by_method = figures.where(table, part=part).set_index("method")["share"]
        shares = by_method.reindex(methods, fill_value=0).to_numpy(float)
        look: dict[str, Any] = {"color": colour, "hatch": hatch, **EDGE}
        bars = axes.barh(range(len(methods)), shares, 0.65, ends, label=part, **look)
        told = [f"{share:.0%}" if share >= 0.08 else "" for share in shares]
        text: dict[str, Any] = {"label_type": "center", "fontsize": 6.5}
        text["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        axes.bar_label(bars, told, **text)
        ends += shares
    name_rows(axes, [STAGES[method][0] for method in methods])
    axes.set(xlim=(0, max(1.0, float(ends.max()))), xlabel="share of a training step")
    axes.xaxis.set_major_formatter(SHARE)
    legend_below(figure, "")
    data = figures.where(table, part=DATA).set_index("method")["share"]
    by_method = data.reindex(methods, fill_value=0)
    told = ", ".join(f"{STAGES[method][0]} {by_method[method]:.1%}" for method in methods)
    figure.suptitle(f"The data path's share of a training step: {told}", fontsize=8)
    return figure


def _points(
    axes: Axes, at: np.ndarray, rows: pd.DataFrame, metric: str, stage: str, line: dict[str, Any]
) -> None:
    """Draw a score with its interval at each place, in its stage's look."""
    name, look = STAGES[stage]
    middle = rows[metric].to_numpy(float)
    low, high = (rows[f"{metric}_{end}"].to_numpy(float) for end in ("low", "high"))
    # an interval's end may miss a mean of 0 or 1 by a rounding
    ends = [np.maximum(middle - low, 0), np.maximum(high - middle, 0)]
    ink: dict[str, Any] = {"color": look.colour, "marker": look.marker, "label": name}
    axes.errorbar(at, middle, yerr=ends, **ink, **line, elinewidth=0.8, capsize=1.5)


def _aim(axes: Axes, aim: float, place: int) -> None:
    ink: dict[str, Any] = {"color": "black", "linewidth": 0.9, "linestyle": ":"}
    axes.hlines(aim, place - 0.4, place + 0.4, **ink)


def _none(told: str) -> Figure:
    """Make a figure that says that there is nothing to draw."""
    figure = figures.panels(width=figures.DOUBLE * 0.6, height=0.6)
    figure.axes[0].set_axis_off()
    figure.suptitle(told, fontsize=8, y=0.5, va="center")
    return figure


def _known(stages: Iterable[object]) -> list[str]:
    """Give the stages that there are, in their order."""
    there = set(stages)
    return [stage for stage in STAGES if stage in there]


def _pair(row: Mapping[Any, Any]) -> str:
    true, read = (str(row[key]).replace(" ", "␣") for key in ("true", "read"))
    return f"{true} lost" if not read else f"{read} added" if not true else f"{true} → {read}"


def _shares(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.0%}" for value in values)
