"""The figures of article 08: program instances, floors, what was compiled, what fusion saves."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, NullLocator

from foredraft.viz import figures
from foredraft.viz.axes import SHARE, legend_below, line_style
from foredraft.viz.figures import Style

CARDS: tuple[Style, ...] = (
    Style("#E69F00", "s", (4, 2)),
    Style("#0072B2", "D", ()),
    Style("#009E73", "v", (6, 2)),
)
"""The look of each card, in the order of the table."""

MASKED = "#D9D9D9"
PROGRAMS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7")
"""Neighbouring program instances differ in colour; beyond these they repeat."""

ALIGNED: Mapping[bool, tuple[str, str, str]] = {
    True: ("known to be multiples of 16", "#0072B2", ""),
    False: ("not known to be", "#E69F00", "//"),
}
"""What is known of addresses and size, and its look."""

LAWS: Mapping[str, tuple[str, str]] = {
    "expected": ("#4D4D4D", "o"),
    "found": ("#D55E00", "x"),
}

PARTS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#BBBBBB")
HATCHES = ("", "//", "..", "xx", "\\\\", "--", "", "oo")
"""Colour and hatch of each operation; they repeat in another pairing."""


@figures.drawing
def instances(table: pd.DataFrame) -> Figure:
    """Draw which elements each program instance has, and which places its mask switches off.

    Columns: element, program, lane, within.
    """
    programs, block = max(table["program"].tolist()) + 1, max(table["lane"].tolist()) + 1
    n = sum(table["within"].tolist())
    size = {"width": max(5.0, 0.8 + 0.48 * block), "height": 0.75 + 0.34 * programs}
    figure = figures.panels(width=min(figures.DOUBLE, size["width"]), height=size["height"])
    (axes,) = figure.axes
    for row in table.to_dict("records"):
        look: dict[str, Any] = {"edgecolor": "white", "linewidth": 1.5}
        look["facecolor"] = PROGRAMS[row["program"] % len(PROGRAMS)] if row["within"] else MASKED
        corner = (row["lane"] - 0.5, row["program"] - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, hatch="" if row["within"] else "////", **look))
        where = (row["lane"], row["program"])
        told = f"{row['element']}" if row["within"] else "–"
        axes.annotate(told, where, ha="center", va="center", fontsize=7)
    axes.set(xlim=(-0.55, block - 0.45), ylim=(programs - 0.45, -0.55), xlabel="place in the block")
    axes.set_yticks(range(programs), [f"program {each}" for each in range(programs)])
    axes.set_xticks(range(block))
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    figure.suptitle(
        f"{n} elements in blocks of {block}: {programs} program instances, {len(table) - n} places "
        "masked off",
        fontsize=8,
    )
    return figure


@figures.drawing
def floors(table: pd.DataFrame, roofline: pd.DataFrame, *, dtype: str) -> Figure:
    """Draw what an addition takes at least, by its bytes, and where it stands under the roof.

    Columns: card, dtype, n, bytes, floor_us, launch_us; and card, operation, intensity, attainable.
    """
    own = figures.where(table, dtype=dtype)
    figure = figures.panels(2, height=2.9)
    left, right = figure.axes
    crossing: list[float] = []
    launch = float(own["launch_us"].iloc[0])
    for name, look in zip(_names(own["card"]), CARDS, strict=False):
        rows = figures.where(own, card=name)
        ink: dict[str, Any] = {"color": look.colour, "label": name, "linestyle": line_style(look)}
        left.plot(rows["bytes"], rows["floor_us"], **ink)
        crossing.append(launch * float(rows["bytes"].iloc[0]) / float(rows["floor_us"].iloc[0]))
        left.plot(crossing[-1], launch, look.marker, color=look.colour)
    left.axhline(launch, color="black", linewidth=0.9, linestyle=":")
    left.annotate(
        "a launch", (own["bytes"].min(), launch), xytext=(0, 2), textcoords="offset points"
    )
    left.set(xscale="log", yscale="log", xlabel="bytes moved", ylabel="least time (µs)")
    left.xaxis.set_major_formatter(FuncFormatter(_bytes))
    left.set_xticks([1e4, 1e6, 1e8, 1e10])
    left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for axis in (left.xaxis, left.yaxis):
        axis.set_minor_locator(NullLocator())
    names = _names(roofline["operation"])
    for card, look in zip(_names(roofline["card"]), CARDS, strict=False):
        rows = figures.where(roofline, card=card)
        at = [names.index(name) for name in rows["operation"]]
        right.plot(rows["attainable"], at, look.marker, color=look.colour)
    right.set(xscale="log", xlabel="share of the card's float32 additions", xlim=(2e-4, 2))
    right.set_yticks(range(len(names)), names)
    right.set_ylim(len(names) - 0.5, -0.5)
    right.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    right.xaxis.set_minor_locator(NullLocator())
    legend_below(figure, "by data sheets; nothing is measured here")
    low, high = min(crossing) / 1e6, max(crossing) / 1e6
    most = max(figures.where(roofline, operation=names[0])["attainable"].tolist())
    figure.suptitle(
        f"Below {low:.0f} to {high:.0f} MB launching takes longer than moving; adding keeps at "
        f"most {100 * most:.1g}% of the adders busy",
        fontsize=8,
    )
    return figure


@figures.drawing
def launches(table: pd.DataFrame) -> Figure:
    """Draw, by block and warps, loads, occupancy and what of the bandwidth can be asked for.

    Columns: block, warps, registers, load_bytes, occupancy, attainable.
    """
    figure = figures.panels(3, height=2.7)
    told = {
        "load_bytes": "bytes a load moves for a thread",
        "occupancy": "occupancy (resident threads)",
        "attainable": "share of bandwidth asked for",
    }
    for axes, (column, title) in zip(figure.axes, told.items(), strict=True):
        grid = table.pivot_table(index="warps", columns="block", values=column)
        _heat(axes, grid, as_share=column != "load_bytes")
        axes.set_title(f"   {title}", loc="center", fontsize=7.5)
        axes.set(xlabel="elements in a block", ylabel="warps" if axes is figure.axes[0] else "")
    shares = table["attainable"].tolist()
    best = max(shares)
    figure.suptitle(
        f"Of {len(shares)} launches {shares.count(best)} could ask for {best:.0%} of the "
        "bandwidth: from what was compiled for sm_90, not timed",
        fontsize=8,
    )
    return figure


@figures.drawing
def loads(table: pd.DataFrame) -> Figure:
    """Draw how many loads a thread makes, with and without the hint of alignment.

    Columns: dtype, aligned, load_bytes, n_loads.
    """
    names = _names(table["dtype"])
    figure = figures.panels(width=figures.DOUBLE * 0.62, height=2.4)
    (axes,) = figure.axes
    for aligned, (label, colour, hatch) in ALIGNED.items():
        rows = figures.where(table, aligned=aligned)
        at = [names.index(name) + (0.2 if aligned else -0.2) for name in rows["dtype"]]
        look: dict[str, Any] = {"color": colour, "hatch": hatch, "edgecolor": "white"}
        bars = axes.bar(at, rows["n_loads"], 0.36, label=label, linewidth=0, **look)
        axes.bar_label(bars, [f"{width} B" for width in rows["load_bytes"]], padding=1, fontsize=6)
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="loads a thread makes", ylim=(0, 1.15 * max(table["n_loads"].tolist())))
    axes.grid(visible=False, axis="x")
    legend_below(figure, "addresses and size; number at a bar: bytes a load")
    single, vector = (sum(figures.where(table, aligned=each)["n_loads"]) for each in (False, True))
    figure.suptitle(
        f"Without the hint of alignment {single / vector:.1f} times as many loads",
        fontsize=8,
    )
    return figure


@figures.drawing
def fusion(table: pd.DataFrame, worth: pd.DataFrame) -> Figure:
    """Draw what add + RMSNorm moves, one by one and fused, and what the saving is of a layer.

    Columns: form, rows, way, operation, bytes; and card, form, rows, share_bytes, share_launches.
    """
    most = max(table["rows"].tolist())
    figure = figures.panels(2, height=3.1)
    left, right = figure.axes
    ratios = _stacks(left, figures.where(table, rows=most))
    left.set_ylabel(f"MB moved at {most:,} rows")
    _savings(right, figures.where(worth, form=_names(table["form"])[0]))
    legend_below(figure, "solid: the bytes that fusion saves; dashed: its launches, if they count")
    told = ", ".join(f"{form.capitalize()} {ratio:.1f}" for form, ratio in ratios.items())
    figure.suptitle(
        f"Bytes moved apart ÷ fused: {told}; with few rows what fusion saves is launches",
        fontsize=8,
    )
    return figure


def _stacks(axes: Axes, table: pd.DataFrame) -> dict[str, float]:
    """Pile the bytes of each operation up, a pair of bars a form; give the ratio of each pair."""
    operations, forms = _names(table["operation"]), _names(table["form"])
    heights: dict[tuple[str, str], float] = {}
    for i, form in enumerate(forms):
        for j, way in enumerate(("one by one", "fused")):
            start, at = 0.0, 2.4 * i + j
            for row in figures.where(table, form=form, way=way).to_dict("records"):
                height, look = row["bytes"] / 1e6, _ink(operations.index(row["operation"]))
                axes.bar(at, height, 0.8, start, linewidth=0.4, **look)
                start += height
            axes.annotate(f"{start:,.0f}", (at, start), ha="center", va="bottom", fontsize=6.5)
            heights[form, way] = start
    places = [2.4 * i + j for i in range(len(forms)) for j in range(2)]
    names = [f"{form.capitalize()}\n{way}" for form in forms for way in ("apart", "fused")]
    axes.set_xticks(places, names)
    axes.grid(visible=False, axis="x")
    axes.margins(y=0.08)
    handles = [Patch(label=name, **_ink(k)) for k, name in enumerate(operations)]
    axes.legend(handles=handles, fontsize=5.5, loc="upper right", handlelength=1.4)
    axes.set_xlim(-0.6, places[-1] + 3.4)
    return {form: heights[form, "one by one"] / heights[form, "fused"] for form in forms}


def _ink(k: int) -> dict[str, Any]:
    """Give the look of the k-th operation."""
    colour, hatch = PARTS[k % len(PARTS)], HATCHES[(k + k // len(PARTS)) % len(HATCHES)]
    return {"facecolor": colour, "hatch": hatch, "edgecolor": "white"}


def _savings(axes: Axes, worth: pd.DataFrame) -> None:
    """Draw what is saved of a layer's time, a colour a card."""
    for name, look in zip(_names(worth["card"]), CARDS, strict=False):
        rows = figures.where(worth, card=name)
        ink: dict[str, Any] = {"color": look.colour, "marker": look.marker}
        axes.plot(rows["rows"], rows["share_bytes"], label=name, **ink)
        axes.plot(rows["rows"], rows["share_launches"], linestyle=(0, (2, 1.5)), **ink)
    axes.set(xscale="log", xlabel="rows of a pass", ylim=(0, None))
    axes.set_ylabel("saved, of a layer's time")
    counts = sorted(set(worth["rows"].tolist()))
    axes.set_xticks(counts, [f"{n:,}" for n in counts], rotation=45)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(SHARE)


@figures.drawing
def laws(table: pd.DataFrame) -> Figure:
    """Draw the share of each token beside what it must be; a panel a way to draw.

    Columns: filters, token, expected, found, n.
    """
    names = _names(table["filters"])
    highest = max(*table["expected"].tolist(), *table["found"].tolist())
    columns = min(3, len(names))
    figure = figures.panels(columns, -(-len(names) // columns), height=1.75)
    distances = {}
    for axes, name in zip(figure.axes, names, strict=False):
        rows = figures.where(table, filters=name)
        for column, (colour, marker) in LAWS.items():
            axes.plot(rows["token"], rows[column], marker, color=colour, label=column, alpha=0.9)
        distances[name] = max((rows["expected"] - rows["found"]).abs().tolist())
        axes.set_title(f"   {name}", loc="center")
        axes.set(xlabel="token", ylim=(-0.03, 1.12 * highest))
        axes.set_xticks(rows["token"])
        axes.annotate(
            f"at most {distances[name]:.3f} off",
            (0.97, 0.95),
            xycoords="axes fraction",
            ha="right",
            va="top",
            fontsize=6.5,
        )
    for axes in figure.axes[len(names) :]:
        axes.set_axis_off()
    for axes in figure.axes[::columns]:
        axes.set_ylabel("share")
    legend_below(figure, "")
    kept = max(far for name, far in distances.items() if name != "drafted")
    figure.suptitle(
        f"Drawn and verified tokens follow their law to {kept:.3f}; what was drafted does not",
        fontsize=8,
    )
    return figure


@figures.drawing
def bandwidth(table: pd.DataFrame) -> Figure:
    """Draw what was timed: each kernel's share of the copy's bandwidth, and over torch's time.

    Columns: those of `foredraft.benchmarks.kernels.kernels_benchmark`.
    """
    rows = figures.where(table, launched="graph", way="kernel")
    figure = figures.panels(2, height=max(2.2, 1.1 + 0.16 * len(rows)))
    left, right = figure.axes
    names = [f"{row['kernel']}, {row['shape']}, {row['dtype']}" for row in rows.to_dict("records")]
    at = np.arange(len(rows))
    left.errorbar(rows["share_median"], at, xerr=rows["share_iqr"] / 2, fmt="D", color="#0072B2")
    for arm, marker, colour in (("eager", "o", "#4D4D4D"), ("compiled", "^", "#D55E00")):
        ends = {"xerr": rows[f"ratio_{arm}_iqr"] / 2, "fmt": marker, "color": colour}
        right.errorbar(rows[f"ratio_{arm}_median"], at, label=f"torch, {arm}", **ends)
    right.axvline(1, color="black", linewidth=0.9, linestyle=":")
    right.set(xscale="log", xlabel="torch's time ÷ the kernel's")
    left.set(xlabel="floor ÷ time", xlim=(0, 1.1))
    for axes in figure.axes:
        axes.set_yticks(at, names if axes is left else [""] * len(names), fontsize=5.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
    legend_below(figure, "bars: half an interquartile range to each side")
    kept = rows["verdict"].tolist().count("keep")
    figure.suptitle(f"Worth keeping: {kept} of {len(rows)} (kernel, shape)", fontsize=8)
    return figure


def _names(column: Iterable[object]) -> list[str]:
    """Give the names in a column, each once, as they first come."""
    return [str(name) for name in dict.fromkeys(column)]


def _heat(axes: Axes, grid: pd.DataFrame, *, as_share: bool) -> None:
    values = grid.to_numpy(float)
    most = 1.0 if as_share else 16.0
    axes.imshow(values, cmap=figures.SEQUENTIAL, vmin=0, vmax=most, aspect="auto", origin="lower")
    for (i, j), value in np.ndenumerate(values):
        told = f"{value:.0%}" if as_share else f"{value:.0f}"
        colour = "black" if value > 0.55 * most else "white"
        axes.annotate(told, (j, i), ha="center", va="center", fontsize=6, color=colour)
    axes.set_xticks(range(len(grid.columns)), [f"{block}" for block in grid.columns], rotation=45)
    axes.set_yticks(range(len(grid.index)), [f"{warps}" for warps in grid.index])
    axes.grid(visible=False)


def _bytes(n: float, _: object) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            return f"{n:g} {unit}"
        n /= 1000
    raise AssertionError
