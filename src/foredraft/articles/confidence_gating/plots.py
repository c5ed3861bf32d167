"""The figures of article 05."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from foredraft.viz import figures, tokens
from foredraft.viz.axes import (
    SHARE,
    TIMES,
    legend_below,
    line_style,
    name_rows,
    shifts,
    span,
    temperature_name,
)
from foredraft.viz.figures import STYLES, Style

SIGNALS: Mapping[str, tuple[str, Style]] = {
    "confidence": ("confidence", Style("#0072B2", "D", ())),
    "entropy": ("entropy", Style("#E69F00", "s", (4, 2))),
    "margin": ("margin", Style("#009E73", "v", (1, 1))),
    "draft_confidence": ("the draft's own, after drafting", Style("#4D4D4D", "o", ())),
}
"""What each signal is called, and its look."""


TARGET = STYLES["target"]
ARTICLE = Style("#D55E00", "*", ())

DRAFTERS: Mapping[str, Style] = {
    "draft model": STYLES["speculative"],
    "skip plan": STYLES["self-speculative"],
    "prompt lookup": STYLES["draft"],
}
"""The look of each drafter."""


HEATS = (Style("#0072B2", "D", ()), Style("#D55E00", "o", (4, 2)), Style("#009E73", "v", (1, 1)))
"""The look of the lowest temperature (or the first sampler), the next, and the one after it."""

MACHINES: Mapping[str, Style] = {
    "best fixed length or never": TARGET,
    "confidence gate": Style("#0072B2", "D", (4, 2)),
    "expected gain": STYLES["gated"],
    "clairvoyant": Style("#D55E00", "^", (1, 1)),
}
"""The look of each policy on machines of other costs."""

CURVES: Mapping[str, tuple[str, Style]] = {
    "opening": ("first token, by the target's signal", Style("#0072B2", "D", ())),
    "stands": ("any, by the draft's confidence in it", Style("#009E73", "v", (4, 2))),
    "follows": ("the one behind it, by the same", Style("#E69F00", "s", (1, 1))),
}
"""What each calibrated chance is of, and its look."""

BOUND = "clairvoyant"
"""The policy that no rule attains."""

BESIDE = ("never", BOUND)
"""What does not set the range of an axis: where it lies beyond, its number is at the edge."""

ARTICLES_GATE, RULE = "the article's gate", "expected gain"
"""The policies that titles tell of."""

HALF = 1.96
"""Half of a 95 % interval, in standard errors."""

ARTICLES_OWN = 0.5
"""The article's threshold."""


GAIN = FuncFormatter(lambda gain, _: f"{gain - 1:+.0%}")


@figures.drawing
def confirmed(table: pd.DataFrame) -> Figure:
    """Tokens a round, decoded against replayed, with 95 % intervals; and the z of each policy.

    Columns: drafter, policy, decoded, decoded_sem, replayed, replayed_sem, z.
    """
    figure = figures.panels(2, height=2.7)
    left, right = figure.axes
    ends = _range(table[["decoded", "replayed"]].to_numpy(float))
    left.plot(ends, ends, color=TARGET.colour, linewidth=0.8, linestyle=":", zorder=1)
    right.axvspan(-2, 2, color="#F2F2F2", linewidth=0, zorder=0)
    right.axvline(0, color=TARGET.colour, linewidth=0.8)
    ordered = table.sort_values("z").reset_index(drop=True)
    for drafter, look in DRAFTERS.items():
        rows = figures.where(ordered, drafter=drafter)
        if rows.empty:
            continue
        bars = {"xerr": HALF * rows["replayed_sem"], "yerr": HALF * rows["decoded_sem"]}
        ink: dict[str, Any] = {"fmt": look.marker, "color": look.colour, "elinewidth": 0.7}
        left.errorbar(rows["replayed"], rows["decoded"], **bars, **ink, label=drafter)
        right.plot(rows["z"], rows.index, look.marker, color=look.colour)
    left.set(xlabel="tokens a round, replayed", ylabel="tokens a round, decoded")
    z = table["z"].to_numpy(float)
    widest = max(3.0, float(np.abs(z).max()) * 1.1)
    right.set(xlabel="z of decoded − replayed", yticks=[], xlim=(-widest, widest))
    right.set_ylabel("policies, in order of z")
    legend_below(
        figure, "bars: 95 % interval over texts; grey: within two standard errors", columns=4
    )
    inside = int((np.abs(z) <= 2).sum())
    figure.suptitle(
        f"Decoded beside replayed: of {len(z)} policies {inside} lie within two standard errors, "
        f"z from {z.min():+.1f} to {z.max():+.1f}"
    )
    return figure


@figures.drawing
def policies(table: pd.DataFrame) -> Figure:
    """What each policy gains over the best fixed length, on the same texts.

    Columns: drafter, temperature, policy, gain, gain_sem. The bound and never to draft are drawn
    where they fit, and else named at the edge.
    """
    heats = sorted(table["temperature"].unique())
    looks = {temperature_name(heat): look for heat, look in zip(heats, cycle(HEATS))}
    figure = _gains(table.assign(look=table["temperature"].map(temperature_name)), looks)
    legend_below(
        figure, "bars: 95 % interval over texts; a number at the edge: what lies beyond", columns=4
    )
    told = _told(table, (ARTICLES_GATE, RULE, BOUND))
    figure.suptitle(f"Over the best fixed length: {told}", fontsize=8)
    return figure


@figures.drawing
def timed(table: pd.DataFrame) -> Figure:
    """What each policy's rounds gain by the clock, beside what replay foretold of the same prompts.

    Columns: drafter, sampler, policy, gain, gain_sem, foretold_gain (NaN where nothing was).
    """
    looks = dict(zip(table["sampler"].unique(), cycle(HEATS)))
    figure = _gains(table.assign(look=table["sampler"]), looks)
    about = "filled: rounds by the clock, 95 % interval over prompts; hollow: foretold by replay"
    legend_below(figure, about, columns=4)
    told = _told(table, (ARTICLES_GATE, RULE))
    figure.suptitle(f"By the clock, over the best fixed length: {told}", fontsize=8)
    return figure


def _told(table: pd.DataFrame, names: Sequence[str]) -> str:
    """Say what these policies gain at the least and at the most."""
    gains = {name: figures.where(table, policy=name)["gain"].to_numpy(float) - 1 for name in names}
    return ", ".join(f"{name} {span(values, '+z.1%')}" for name, values in gains.items())


def _gains(table: pd.DataFrame, looks: Mapping[str, Style]) -> Figure:
    """Draw a panel a drafter, a row a policy; column `look` names the look."""
    drafters, names = table["drafter"].unique().tolist(), table["policy"].unique().tolist()
    figure = figures.panels(len(drafters), height=0.9 + 0.3 * len(names))
    rules = table.loc[~table["policy"].isin(BESIDE)]
    bars = HALF * rules["gain_sem"].fillna(0)
    low = min(0.9, float((rules["gain"] - bars).min())) - 0.02
    high = max(1.1, float((rules["gain"] + bars).max())) + 0.02
    for axes, drafter in zip(figure.axes, drafters, strict=True):
        axes.axvline(1, color=TARGET.colour, linewidth=0.8)
        for shift, (name, look) in zip(0.8 * shifts(len(looks)), looks.items(), strict=True):
            part = figures.where(table, drafter=drafter, look=name)
            for row in part.to_dict("records"):
                _gain(axes, row, names.index(row["policy"]) + shift, look, (low, high))
        name_rows(axes, names, shown=axes is figure.axes[0])
        axes.set(xlim=(low, high), xlabel="gain over fixed length")
        axes.set_title(f"   {drafter}", loc="center")
        axes.xaxis.set_major_formatter(GAIN)
    return figure


def _gain(
    axes: Axes, row: Mapping[Any, Any], place: float, look: Style, edges: tuple[float, float]
) -> None:
    """Draw a gain, and what was foretold of it, or its number at the edge that it lies beyond."""
    gain, (low, high) = row["gain"], edges
    if low <= gain <= high:
        ink: dict[str, Any] = {"fmt": look.marker, "color": look.colour, "elinewidth": 0.7}
        ink |= {"markersize": 3.5, "label": row["look"]}
        axes.errorbar(gain, place, xerr=HALF * row["gain_sem"], **ink)
        hollow: dict[str, Any] = {"marker": look.marker, "s": 22, "facecolor": "none"}
        hollow |= {"edgecolor": look.colour, "linewidth": 0.7, "zorder": 3}
        axes.scatter(row.get("foretold_gain", float("nan")), place, **hollow)
        return
    beyond = gain > high
    told = f"{gain - 1:+.0%} › " if beyond else f" ‹ {gain - 1:+.0%}"
    text: dict[str, Any] = {"ha": "right" if beyond else "left", "va": "center", "fontsize": 6}
    axes.text(high if beyond else low, place, told, color=look.colour, **text)


@figures.drawing
def thresholds(table: pd.DataFrame, fixed: float) -> Figure:
    """What a gate comes to at every threshold, by the rounds that it keeps from drafting.

    Columns: signal, threshold, speedup, sem, closed. `fixed` is what the best fixed length has.
    """
    figure = figures.panels(width=figures.DOUBLE * 0.7, height=2.7)
    (axes,) = figure.axes
    axes.axhline(1, color=TARGET.colour, linewidth=0.8, label="never")
    axes.axhline(
        fixed, color=TARGET.colour, linewidth=0.8, linestyle="--", label="best fixed length"
    )
    for signal, rows in table.groupby("signal", sort=False):
        name, look = SIGNALS[str(signal)]
        ordered = rows.sort_values("closed")
        line = {
            "color": look.colour,
            "marker": look.marker,
            "label": name,
            "linestyle": line_style(look),
        }
        axes.errorbar(
            ordered["closed"],
            ordered["speedup"],
            yerr=HALF * ordered["sem"],
            **line,
            elinewidth=0.5,
        )
    by_confidence = figures.where(table, signal="confidence")
    nearest = (by_confidence["threshold"] - ARTICLES_OWN).abs().idxmin()
    own = by_confidence.loc[nearest]
    exact = np.isclose(own["threshold"], ARTICLES_OWN)
    named = "the article's 0.5" if exact else f"{own['threshold']:g}, nearest to the article's 0.5"
    star: dict[str, Any] = {"marker": ARTICLE.marker, "color": ARTICLE.colour, "s": 90, "zorder": 5}
    axes.scatter([own["closed"]], [own["speedup"]], **star, label=named)
    text: dict[str, Any] = {"textcoords": "offset points", "fontsize": 6, "color": ARTICLE.colour}
    text["bbox"] = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.5}
    axes.annotate(f"{own['speedup']:.2f}×", (own["closed"], own["speedup"]), (6, 6), **text)
    axes.set(xlabel="rounds that do not draft", ylabel="speed-up over plain decoding")
    axes.xaxis.set_major_formatter(SHARE)
    axes.yaxis.set_major_formatter(TIMES)
    legend_below(figure, "the target's signal; each threshold with its best length", columns=4)
    figure.suptitle(
        f"At {own['threshold']:g} the gate keeps {own['closed']:.0%} of rounds from drafting: "
        f"{own['speedup']:.2f}×, the best fixed length {fixed:.2f}×",
        fontsize=8,
    )
    return figure


@figures.drawing
def threshold_fates(table: pd.DataFrame) -> Figure:
    """One text as a gate at a threshold decodes it, and what the gate comes to on all texts.

    Columns: text, confidence, fate; threshold, length, closed, speedup, open and texts, the same in
    each line.
    """
    gate = table.iloc[0]
    return tokens.fates(
        table,
        f"Drafts of {gate['length']} behind tokens of confidence {gate['threshold']:g} or more: "
        f"{gate['closed']:.0%} of the rounds of {gate['texts']} texts do not draft\n"
        f"Plain decoding × {gate['speedup']:.2f}, and × {gate['open']:.2f} if all rounds draft",
    )


@figures.drawing
def curves(table: pd.DataFrame, least: float) -> Figure:
    """The chances that the rule goes by, and the one from which on a draft pays.

    Columns: curve ("opening", "stands", "follows"), signal, chance. As the rule reads them:
    straight between the knots, level beyond the first and the last.
    """
    figure = figures.panels(width=figures.DOUBLE * 0.7, height=2.7)
    (axes,) = figure.axes
    low, high = min(0.0, table["signal"].min()), max(1.0, table["signal"].max())
    for curve, (name, look) in CURVES.items():
        rows = figures.where(table, curve=curve).sort_values("signal")
        at, chances = rows["signal"].to_numpy(float), rows["chance"].to_numpy(float)
        line = {
            "color": look.colour,
            "marker": look.marker,
            "markersize": 3,
            "linestyle": line_style(look),
        }
        knots, level = [low, *at, high], [chances[0], *chances, chances[-1]]
        axes.plot(knots, level, **line, markevery=max(1, len(knots) // 8), label=name)
    paying: dict[str, Any] = {"color": ARTICLE.colour, "linewidth": 0.9, "linestyle": ":"}
    axes.axhline(least, **paying, label=f"a draft pays: {least:.0%}")
    opening = figures.where(table, curve="opening").sort_values("signal")
    crossing, reached = _crossing(opening, least)
    if crossing is not None:
        axes.vlines(crossing, 0, least, **paying)
        dot: dict[str, Any] = {"color": ARTICLE.colour, "markerfacecolor": "white", "zorder": 4}
        axes.plot(crossing, least, "o", **dot, markersize=6)
        text: dict[str, Any] = {"textcoords": "offset points", "fontsize": 6, "va": "top"}
        axes.annotate(f"{crossing:.2g}", (crossing, least), (5, -5), **text, color=ARTICLE.colour)
    axes.set(xlabel="signal", ylabel="chance to be accepted", ylim=(0, max(1.0, 1.05 * least)))
    axes.yaxis.set_major_formatter(SHARE)
    legend_below(figure, "isotonic, on the texts that policies are tuned on", columns=2)
    figure.suptitle(
        f"A draft pays from a first token's chance of {least:.0%} on: reached {reached}", fontsize=8
    )
    return figure


def _crossing(opening: pd.DataFrame, least: float) -> tuple[float | None, str]:
    """Give the signal where a monotone curve passes a chance, None if nowhere; and say it."""
    at, chances = opening["signal"].to_numpy(float), opening["chance"].to_numpy(float)
    pays = chances > least
    changes = np.flatnonzero(pays[1:] != pays[:-1])
    if not len(changes):
        return None, "at every signal" if pays[0] else "at no signal"
    i = changes[0]
    share = (least - chances[i]) / (chances[i + 1] - chances[i])
    signal = float(at[i] + share * (at[i + 1] - at[i]))
    there = f"a signal of {signal:.2g}"
    return signal, f"up to {there}" if pays[i] else f"from {there} on"


@figures.drawing
def by_cost(table: pd.DataFrame) -> Figure:
    """What gating brings on machines where a draft step costs another share of a plain step.

    Columns: drafter, temperature, cost, policy, gain, gain_sem: over the best fixed length, or
    never. A bound that leaves a panel has its highest number there.
    """
    drafters = table["drafter"].unique().tolist()
    figure = figures.panels(len(drafters), height=2.8)
    rules = table.loc[table["policy"] != BOUND]
    bars = HALF * rules["gain_sem"].fillna(0)
    low = min(0.98, float((rules["gain"] - bars).min())) - 0.01
    high = max(1.05, float((rules["gain"] + bars).max())) + 0.02
    for axes, drafter in zip(figure.axes, drafters, strict=True):
        for policy, look in MACHINES.items():
            rows = figures.where(table, drafter=drafter, policy=policy).sort_values("cost")
            line = {"color": look.colour, "marker": look.marker, "markersize": 3, "label": policy}
            axes.plot(rows["cost"], rows["gain"], **line, linestyle=line_style(look))
            band = HALF * rows["gain_sem"]
            low_end, high_end = rows["gain"] - band, rows["gain"] + band
            shade: dict[str, Any] = {"color": look.colour, "alpha": 0.15, "linewidth": 0}
            axes.fill_between(rows["cost"], low_end, high_end, **shade)
        bound = figures.where(table, drafter=drafter, policy=BOUND)
        most = bound["gain"].to_numpy(float).max()
        if most > high:
            text: dict[str, Any] = {"ha": "right", "va": "top", "fontsize": 6}
            text |= {"transform": axes.transAxes, "color": MACHINES[BOUND].colour, "zorder": 5}
            text["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
            axes.text(0.99, 0.99, f"{BOUND}: up to {most - 1:+.0%}", **text)
        axes.set_title(f"   {drafter}", loc="center")
        axes.set(xlabel="c: a draft step ÷ a plain step", ylim=(low, high))
        axes.yaxis.set_major_formatter(GAIN)
    figure.axes[0].set_ylabel("gain over the best\nfixed length or never")
    legend_below(figure, "everything tuned anew for each c; bands: 95 % interval", columns=4)
    rule = figures.where(table, policy=RULE)
    top = rule.loc[rule["gain"].idxmax()]
    figure.suptitle(
        f"{temperature_name(top['temperature']).capitalize()}: at no c does {RULE} bring more than "
        f"{top['gain'] - 1:+.1%} ± {HALF * top['gain_sem']:.1%}: {top['drafter']}, "
        f"c = {top['cost']:g}"
    )
    return figure


def _range(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()) - 0.05, float(values.max()) + 0.05
