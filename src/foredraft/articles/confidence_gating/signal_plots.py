"""Figures of article 05 about the signals: how well a confidence tells what is accepted."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foredraft.articles.confidence_gating.plots import DRAFTERS, HALF, SIGNALS, TARGET
from foredraft.viz import figures
from foredraft.viz.axes import (
    SHARE,
    legend_below,
    line_style,
    name_rows,
    shifts,
    span,
    temperature_name,
)


@figures.drawing
def reliability(table: pd.DataFrame) -> Figure:
    """How often the first drafted token is accepted, by a signal of the target before it.

    Columns: drafter, temperature, signal, value, share, low, high. With Wilson's intervals.
    """
    heats, signal = sorted(table["temperature"].unique()), table["signal"].iloc[0]
    figure = figures.panels(len(heats), height=2.8)
    for axes, heat in zip(figure.axes, heats, strict=True):
        for drafter, rows in figures.where(table, temperature=heat).groupby("drafter", sort=False):
            look = DRAFTERS[str(drafter)]
            ends = [rows["share"] - rows["low"], rows["high"] - rows["share"]]
            line = {"color": look.colour, "marker": look.marker, "label": drafter, "capsize": 1.5}
            axes.errorbar(
                rows["value"],
                rows["share"],
                yerr=ends,
                **line,
                linestyle=line_style(look),
                elinewidth=0.7,
            )
        axes.set_title(f"   {temperature_name(heat)}", loc="center")
        axes.set(xlabel=f"the target's {signal}, last token", ylim=(0, 1))
        axes.yaxis.set_major_formatter(SHARE)
    figure.axes[0].set_ylabel("first drafted token accepted")
    legend_below(figure, "bins of as many places each; bars: 95 % interval", columns=4)
    by_setting = table.sort_values("value").groupby(["drafter", "temperature"], sort=False)
    ends = (by_setting["share"].last(), by_setting["share"].first())
    points = 100 * np.subtract(*(np.asarray(end, float) for end in ends))
    figure.suptitle(
        f"From the lowest {signal} to the highest, acceptance of the next token changes by "
        f"{span(points, '+z.0f')} points",
        fontsize=8,
    )
    return figure


@figures.drawing
def reliability_by_kind(table: pd.DataFrame) -> Figure:
    """The same for each kind of prompt, of one drafter at one temperature; a panel a kind.

    Columns: kind, drafter, temperature, signal, value, share, low, high.
    """
    kinds, signal = table["kind"].unique().tolist(), table["signal"].iloc[0]
    figure = figures.panels(len(kinds), height=2.2)
    for axes, kind in zip(figure.axes, kinds, strict=True):
        rows = figures.where(table, kind=kind)
        look = DRAFTERS[str(rows["drafter"].iloc[0])]
        ends = [rows["share"] - rows["low"], rows["high"] - rows["share"]]
        line = {"color": look.colour, "marker": look.marker, "markersize": 3, "capsize": 1}
        axes.errorbar(rows["value"], rows["share"], yerr=ends, **line, elinewidth=0.7)
        axes.set_title(f"   {kind}", loc="center", fontsize=7)
        axes.set(xlim=(0, max(1.0, table["value"].max())), ylim=(0, 1))
        axes.yaxis.set_major_formatter(SHARE)
        axes.tick_params(labelleft=axes is figure.axes[0])
    figure.axes[0].set_ylabel("first drafted\ntoken accepted")
    figure.supxlabel(f"the target's {signal}, last token; bars: 95 % interval", fontsize=7)
    first = table.iloc[0]
    by_kind = table.groupby("kind", sort=False)["share"]
    points = 100 * np.subtract(
        *(np.asarray(end, float) for end in (by_kind.last(), by_kind.first()))
    )
    figure.suptitle(
        f"{first['drafter'].capitalize()}, {temperature_name(first['temperature'])}: "
        f"kind by kind acceptance changes by {span(points, '+z.0f')} points",
        fontsize=8,
    )
    return figure


@figures.drawing
def discrimination(table: pd.DataFrame) -> Figure:
    """How well each signal tells first tokens that will be accepted from those that will not.

    Columns: drafter, temperature, kind ("all" or one of prompts), signal, auc, sem. The drafter
    and temperature of the first row are shown by kind.
    """
    first = table.iloc[0]
    main = figures.where(table, drafter=first["drafter"], temperature=first["temperature"])
    pairs = pd.DataFrame(table[["drafter", "temperature"]]).drop_duplicates()
    kinds = list(main["kind"].unique())
    figure = figures.panels(2, height=0.9 + 0.34 * max(len(kinds), len(pairs)))
    left, right = figure.axes
    _aucs(left, [(kind, figures.where(main, kind=kind)) for kind in kinds])
    left.set_title(f"   {first['drafter']}, {temperature_name(first['temperature'])}", loc="center")
    everywhere = figures.where(table, kind="all")
    _aucs(
        right,
        [
            (
                f"{row['drafter']}, T = {row['temperature']:g}",
                figures.where(everywhere, drafter=row["drafter"], temperature=row["temperature"]),
            )
            for row in pairs.to_dict(orient="records")
        ],
    )
    right.set_title("   all kinds of prompts", loc="center")
    legend_below(figure, "AUC with 95 % interval; dotted: no information", columns=4)
    known = everywhere.loc[everywhere["signal"] != "draft_confidence", "auc"].dropna()
    figure.suptitle(
        "What the target shows before a draft tells its first token's fate with an AUC of "
        f"{span(known.to_numpy(float), '.2f')}"
    )
    return figure


def _aucs(axes: Axes, rows: list[tuple[str, pd.DataFrame]]) -> None:
    """Draw a row of markers for each label."""
    axes.axvline(0.5, color=TARGET.colour, linewidth=0.8, linestyle=":")
    apart = 0.56 * shifts(len(SIGNALS))
    for place, (_, part) in enumerate(rows):
        for shift, (signal, (name, look)) in zip(apart, SIGNALS.items(), strict=True):
            known = figures.where(part, signal=signal).dropna(subset="auc")
            if known.empty:
                continue
            inside = "white" if signal == "draft_confidence" else look.colour
            dots: dict[str, Any] = {"fmt": look.marker, "color": look.colour, "markersize": 3.5}
            dots |= {"markerfacecolor": inside, "elinewidth": 0.7, "label": name}
            axes.errorbar(known["auc"], [place + shift], xerr=HALF * known["sem"], **dots)
    name_rows(axes, [label for label, _ in rows])
    axes.set_xlabel("AUC")
