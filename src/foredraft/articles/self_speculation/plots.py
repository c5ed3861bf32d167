"""The figures of article 04."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from foredraft.viz import figures
from foredraft.viz.axes import TIMES, line_style, share_limits, shifts
from foredraft.viz.figures import STYLES, Style

TARGET, OURS = STYLES["target"], STYLES["self-speculative"]
ARTICLE = Style("#D55E00", "*", ())
LIGHT, SHADE = "#D9D9D9", "#F2F2F2"

MODELS = (
    Style("#4D4D4D", "o", ()),
    Style(OURS.colour, "D", (4, 2)),
    Style("#0072B2", "s", (1, 1)),
)
"""How the first model that a figure compares looks, the second and the third."""


WAYS = {
    "foretold": "exact\nband",
    "one_pass": "one\npass",
    "all_places": "all places\nalike",
}
"""The column of each way to foretell, and what it is called."""

RULES = {
    "draft_and_verify": ("Draft & Verify", Style("#0072B2", "D", ())),
    "article": ("the article's", Style("#D55E00", "s", ())),
}
"""What each adaptive rule is called, and its look; its policy is called its controller."""

OTHERS = (Style("#009E73", "v", ()), Style("#CC79A7", "P", ()))
"""The look of other ways to end a draft."""

FIXED = "fixed"
"""How the name of a policy begins whose drafts all have one length."""

SHOWN_LENGTH = 4
"""Length of the drafts whose thresholds are drawn, besides the longest."""

WANTED = (1.15, 1.25)
"""Speed-ups that the clock's figure has a line for."""

HALF = 1.96
"""Half of a 95 % interval, in standard errors."""

ERROR = FuncFormatter(lambda error, _: f"{error:+.0%}")


@figures.drawing
def article(lengths: pd.DataFrame, run: Mapping[str, float]) -> Figure:
    """The article's run: its speed-up beside what its α and c allow, and both on their plane.

    `lengths`: length, speedup (theorem 3.8). `run`: acceptance, cost, cost_bytes, speedup, length,
    best. The dashed line goes through the run by the definition of its `length`.
    """
    figure = figures.panels(2, height=2.6)
    left, right = figure.axes
    alpha, cost = run["acceptance"], run["cost"]
    mean_lengths = np.linspace(0, lengths["length"].max(), 60)
    line: dict[str, Any] = {"color": TARGET.colour, "marker": TARGET.marker}
    left.plot(lengths["length"], lengths["speedup"], **line, label="α is each draft's chance")
    told = (1 + alpha * mean_lengths) / (1 + cost * mean_lengths)
    look: dict[str, Any] = {"color": ARTICLE.colour, "linestyle": "--", "linewidth": 1}
    left.plot(mean_lengths, told, **look, label="α is accepted ÷ drafted")
    dot: dict[str, Any] = {"marker": ARTICLE.marker, "markersize": 10, "linestyle": "none"}
    dot |= {"color": ARTICLE.colour, "markeredgecolor": "white", "markeredgewidth": 0.5}
    measured = f"measured, {run['speedup']:.2f}×"
    left.plot(run["length"], run["speedup"], **dot, label=measured, zorder=4)
    left.axhline(1, color=TARGET.colour, linewidth=0.8, linestyle=":")
    left.set(xlabel="draft length γ (0: do not draft)", ylabel="speed-up", ylim=(0, 1.08))
    left.set_xticks(list(lengths["length"]))
    left.yaxis.set_major_formatter(TIMES)
    left.legend(loc="lower left")
    cost_axes(right, "acceptance α")
    right.plot(cost, alpha, **dot, zorder=4)
    by_bytes: dict[str, Any] = {"color": "white", "markeredgecolor": ARTICLE.colour}
    right.plot(run["cost_bytes"], alpha, "o", **by_bytes, markersize=9, zorder=3)
    right.annotate(
        f"the article's run\nα = {alpha:.2f}, c = {cost:.2f}\n(ring: c by bytes)",
        (cost, alpha),
        (-8, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=6,
        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.8},
    )
    figure.suptitle(
        f"The article's run, α = {alpha:.2f} at c = {cost:.2f}: {run['best']:.2f}× at best, "
        f"measured {run['speedup']:.2f}×"
    )
    return figure


@figures.drawing
def reality(table: pd.DataFrame) -> Figure:
    """Tokens a round, foretold against decoded, a panel a temperature; the z of drawn texts.

    Columns: model, temperature, name, foretold, foretold_sem, decoded, decoded_sem, z, off. Greedy
    texts are the same on both axes, and so have no error bars.
    """
    temperatures = sorted(set(table["temperature"]))
    figure = figures.panels(len(temperatures) + 1, height=2.5)
    *scatters, right = figure.axes
    looks = _looks(table)
    for axes, temperature in zip(scatters, temperatures, strict=True):
        rows = figures.where(table, temperature=temperature)
        _diagonal(axes, rows.filter(["foretold", "decoded"]))
        for model, look in looks.items():
            part = figures.where(rows, model=model)
            error = HALF * part.filter(["decoded_sem", "foretold_sem"]) if temperature else None
            _crosses(axes, part, error, look, model)
        axes.set(xlabel="tokens a round, foretold")
        axes.set_title(_titled(temperature), loc="center")
    scatters[0].set_ylabel("tokens a round, decoded")
    drawn = table.loc[(table["temperature"] > 0) & table["z"].notna()]
    _quantiles(right, drawn, looks)
    handles, labels = scatters[0].get_legend_handles_labels()
    about = {"title": "bars: 95 % intervals over texts", "title_fontsize": 6}
    figure.legend(handles, labels, loc="outside lower center", ncols=len(looks), **about)
    inside, off = int((drawn["z"].abs() <= 2).sum()), table["off"].to_numpy().sum()
    greedy = "Greedy rounds are foretold exactly" if not off else f"Greedy, {off} texts differ"
    figure.suptitle(f"{greedy}; of what is drawn, {inside} of {len(drawn)} z lie within ±2")
    return figure


@figures.drawing
def shortcuts(table: pd.DataFrame) -> Figure:
    """The relative error of three ways to foretell tokens a round, a panel a temperature.

    Columns: model, temperature, decoded, foretold, one_pass, all_places.
    """
    temperatures = sorted(set(table["temperature"]))
    figure = figures.panels(len(temperatures), height=2.5)
    looks = _looks(table)
    errors = table[["model", "temperature"]].assign(
        **{way: table[way] / table["decoded"] - 1 for way in WAYS}
    )
    for axes, temperature in zip(figure.axes, temperatures, strict=True):
        rows = figures.where(errors, temperature=temperature)
        for place, way in enumerate(WAYS):
            for shift, (model, look) in zip(shifts(len(looks)), looks.items(), strict=True):
                own = figures.where(rows, model=model)[way].to_numpy()
                at = place + 0.6 * shift + np.linspace(-0.06, 0.06, len(own))
                dots = {"color": look.colour, "markersize": 3, "alpha": 0.7}
                axes.plot(at, own, look.marker, **dots, label=None if place else model)
            axes.hlines(rows[way].median(), place - 0.32, place + 0.32, color="black", zorder=3)
        axes.axhline(0, color=TARGET.colour, linewidth=0.8, linestyle=":")
        axes.set_xticks(range(len(WAYS)), list(WAYS.values()))
        axes.set_title(_titled(temperature), loc="center")
        axes.yaxis.set_major_formatter(ERROR)
        axes.grid(visible=False, axis="x")
    figure.axes[0].set_ylabel("foretold ÷ decoded − 1")
    share_limits(figure.axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    about = {"title": "a dot a plan; strokes: medians", "title_fontsize": 6}
    figure.legend(handles, labels, loc="outside lower center", ncols=len(looks), **about)
    hottest = figures.where(errors, temperature=temperatures[-1])
    told = ", ".join(
        f"{name.replace(chr(10), ' ')} {hottest[way].abs().median():.1%}"
        for way, name in WAYS.items()
    )
    figure.suptitle(f"Median error at temperature {temperatures[-1]:g}: {told}")
    return figure


@figures.drawing
def controllers(paths: pd.DataFrame, policies: pd.DataFrame) -> Figure:
    """The thresholds of the adaptive rules at their extremes; what each way to end a draft gives.

    `paths`: rule, length, accepted, token, threshold. `policies`: policy, speedup, sem, drafted,
    acceptance; those of one length are named "fixed", all else is compared with them.
    """
    known = sorted(set(paths["length"]))
    lengths = [length for length in known if length in (SHOWN_LENGTH, known[-1])]
    figure = figures.panels(len(lengths) + 1, height=2.7)
    *thresholds, right = figure.axes
    for axes, length in zip(thresholds, lengths, strict=True):
        _thresholds(axes, figures.where(paths, length=length), length)
    thresholds[0].set_ylabel("threshold of confidence")
    share_limits(thresholds)
    is_fixed = policies["policy"].str.startswith(FIXED)
    fixed, others = policies.loc[is_fixed], policies.loc[~is_fixed]
    looks = {f"{name} controller": look for name, look in RULES.values()}
    looks |= dict(zip((name for name in others["policy"] if name not in looks), cycle(OTHERS)))
    _dots(right, fixed, TARGET, "fixed length, 1, 2, …", line="-")
    for name in others["policy"]:
        _dots(right, figures.where(others, policy=name), looks[name], name)
    right.axhline(1, color=TARGET.colour, linewidth=0.8, linestyle=":")
    right.set(xlabel="tokens drafted a round", ylabel="predicted speed-up")
    right.yaxis.set_major_formatter(TIMES)
    right.set_title("   the best plan", loc="center")
    (lines, names), (dots, policy_names) = (
        axes.get_legend_handles_labels() for axes in (thresholds[0], right)
    )
    look = {"loc": "outside lower center", "ncols": 3, "fontsize": 6, "handlelength": 3}
    figure.legend(lines + dots, names + policy_names, **look)
    best = fixed.loc[fixed["speedup"].idxmax()]
    gains = (others["speedup"] / best["speedup"] - 1).to_numpy()
    figure.suptitle(
        f"Against the best fixed length, {best['speedup']:.2f}×, other ways to end a draft give "
        f"{gains.min():+.1%} to {gains.max():+.1%}"
    )
    return figure


@figures.drawing
def timed(table: pd.DataFrame) -> Figure:
    """What the best plan of each search was foretold to give, and what decoding under it gave.

    Columns: model, sampler, name, length, predicted, predicted_sem, predicted_held_out,
    predicted_held_out_sem, rounds_speedup, speedup_median, speedup_min, speedup_max, ceiling. The
    best plan is that which was foretold to be.
    """
    known = table.loc[table["predicted"].notna()]
    settings = known.groupby(["model", "sampler"], sort=False)
    best = known.loc[settings["predicted"].idxmax()].reset_index(drop=True)
    figure = figures.panels(width=figures.DOUBLE * 0.85, height=0.9 + 0.4 * len(best))
    (axes,) = figure.axes
    places = best.index.to_numpy()
    whiskers = {
        "predicted": [HALF * best["predicted_sem"]] * 2,
        "predicted_held_out": [HALF * best["predicted_held_out_sem"]] * 2,
        "rounds_speedup": None,
        "speedup_median": [
            best["speedup_median"] - best["speedup_min"],
            best["speedup_max"] - best["speedup_median"],
        ],
    }
    looks = (
        ("predicted", TARGET.colour, "white", "o", "foretold, texts searched on"),
        ("predicted_held_out", "#0072B2", "#0072B2", "s", "foretold, held-out texts"),
        ("rounds_speedup", OURS.colour, "white", "D", "decoded: rounds alone"),
        ("speedup_median", OURS.colour, OURS.colour, OURS.marker, "decoded: with the prefill"),
    )
    shifts = (-0.3, -0.1, 0.1, 0.3)
    for shift, (column, colour, inside, marker, name) in zip(shifts, looks, strict=True):
        dots = {"fmt": marker, "color": colour, "markerfacecolor": inside, "elinewidth": 0.8}
        axes.errorbar(
            best[column], places + shift, xerr=whiskers[column], capsize=2, label=name, **dots
        )
    for gain in (1, *WANTED):
        axes.axvline(gain, color=TARGET.colour, linewidth=0.8, linestyle=":" if gain > 1 else "-")
    bound = {
        "marker": "|",
        "s": 260,
        "color": "#D55E00",
        "label": "by bytes: verification for free",
    }
    axes.scatter(best["ceiling"], places, **bound)
    axes.hlines(places[1:] - 0.5, 0, 1, color=LIGHT, lw=0.8, transform=axes.get_yaxis_transform())
    axes.set_yticks(places, [f"{row.model}, {row.sampler}" for row in best.itertuples()])
    axes.set(ylim=(len(best) - 0.5, -0.5), xlabel="speed-up over plain decoding")
    axes.xaxis.set_major_formatter(TIMES)
    axes.grid(visible=False, axis="y")
    about = {"title": "bars: 95 % interval; decoded: least and most over prompts"}
    handles, labels = axes.get_legend_handles_labels()
    look = {"ncols": 3, "fontsize": 6, "title_fontsize": 6}
    figure.legend(handles, labels, loc="outside lower center", **about, **look)
    decoded = best["rounds_speedup"]
    off = (decoded / best["predicted_held_out"] - 1).abs()
    figure.suptitle(
        f"Found plans decode at {decoded.min():.2f}× to {decoded.max():.2f}×, {off.median():.1%} "
        f"from what held-out texts foretell in the median, {off.max():.1%} at most",
        fontsize=8,
    )
    return figure


@figures.drawing
def needed(table: pd.DataFrame, plans: pd.DataFrame, run: Mapping[str, float]) -> Figure:
    """The acceptance that each speed-up needs at each cost; where the published plans are.

    `table`: gain, cost, acceptance (NaN where none suffices). `plans`: plan, cost. `run`: cost,
    acceptance. A speed-up of 1 needs more than c, which is drawn whether the table has it or not.
    """
    figure = figures.panels(width=figures.DOUBLE * 0.7, height=3.2)
    (axes,) = figure.axes
    cost_axes(axes, "acceptance α", aspect="auto")
    lines = table.loc[table["gain"] > 1]
    gains = sorted(set(lines["gain"]))
    gain_lines(axes, lines, sns.color_palette(figures.SEQUENTIAL, len(gains)))
    for row in plans.sort_values("cost").to_dict("records"):
        axes.axvline(row["cost"], color="#888888", linewidth=0.8, linestyle="--", zorder=1)
        text = {"rotation": 90, "fontsize": 6, "ha": "right", "va": "bottom"}
        axes.text(row["cost"], 0.02, str(row["plan"]), **text)
    alpha, cost = run["acceptance"], run["cost"]
    dot: dict[str, Any] = {"markersize": 10, "markeredgecolor": "white", "zorder": 4}
    axes.plot(cost, alpha, ARTICLE.marker, color=ARTICLE.colour, **dot)
    axes.annotate(
        "the article's run",
        (cost, alpha),
        (-7, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=6,
    )
    gain = gains[0]
    alpha_needed = needed_acceptance(lines, gain, cost)
    figure.suptitle(
        f"At the article's c = {cost:.2f}, {gain:g}× needs α = {alpha_needed:.2f};"
        f" its run had {alpha:.2f}",
        fontsize=8,
    )
    return figure


@figures.drawing
def rules(table: pd.DataFrame) -> Figure:
    """Tokens a round by draft length under both rules of verification.

    Columns: rule, length, mean, sem.
    """
    figure = figures.panels(width=figures.DOUBLE * 0.62, height=2.4)
    (axes,) = figure.axes
    looks = {"token": TARGET, "block": STYLES["foredraft"]}
    for shift, (rule, look) in zip(shifts(len(looks)), looks.items(), strict=True):
        part = figures.where(table, rule=rule).sort_values("length")
        style = {"color": look.colour, "marker": look.marker, "linestyle": line_style(look)}
        at, error = part["length"] + 0.3 * shift, HALF * part["sem"]
        axes.errorbar(at, part["mean"], error, capsize=2, label=f"{rule} verification", **style)
    axes.set_xticks(sorted(set(table["length"])))
    axes.set(xlabel="draft length γ", ylabel="tokens a round")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    longest = table["length"].max()
    last = figures.where(table, length=longest).set_index("rule")[["mean", "sem"]]
    more = last.at["block", "mean"] - last.at["token", "mean"]
    error = HALF * np.hypot(last.at["block", "sem"], last.at["token", "sem"])
    figure.suptitle(
        f"γ = {longest}: block verification gives {more:+.2f} ± {error:.2f} tokens a round",
        fontsize=8,
    )
    return figure


def _looks(table: pd.DataFrame) -> dict[str, Style]:
    return dict(zip(table["model"].unique().tolist(), cycle(MODELS)))


def _titled(temperature: float) -> str:
    return f"   temperature {temperature:g}" if temperature else "   greedy"


def _diagonal(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw where both columns are the same, as far as their values reach."""
    low, high = rows.to_numpy().min(), rows.to_numpy().max()
    ends = [low - 0.08 * (high - low), high + 0.08 * (high - low)]
    axes.plot(ends, ends, color=TARGET.colour, linewidth=0.8, linestyle=":", zorder=1)


def _crosses(
    axes: Axes, rows: pd.DataFrame, error: pd.DataFrame | None, look: Style, name: str
) -> None:
    bars = {} if error is None else {"yerr": error["decoded_sem"], "xerr": error["foretold_sem"]}
    dots: dict[str, Any] = {"fmt": look.marker, "color": look.colour, "elinewidth": 0.6}
    axes.errorbar(rows["foretold"], rows["decoded"], **bars, **dots, markersize=3, label=name)


def _quantiles(axes: Axes, rows: pd.DataFrame, looks: dict[str, Style]) -> None:
    """Draw each z at the normal quantile of its rank: on the diagonal if it is N(0, 1)."""
    rows = rows.sort_values("z").reset_index(drop=True)
    ranks = (np.arange(len(rows)) + 0.5) / max(1, len(rows))
    rows["expected"] = [NormalDist().inv_cdf(rank) for rank in ranks]
    end = max(2.5, float(rows[["z", "expected"]].abs().max(axis=None)) * 1.08)
    axes.axhspan(-2, 2, color=SHADE, linewidth=0, zorder=0)
    axes.plot([-end, end], [-end, end], color=TARGET.colour, linewidth=0.8, linestyle=":")
    for model, look in looks.items():
        part = figures.where(rows, model=model)
        axes.plot(part["expected"], part["z"], look.marker, color=look.colour, markersize=3)
    axes.set(xlim=(-2.6, 2.6), ylim=(-end, end))
    axes.set(xlabel="normal quantile", ylabel="z of decoded − foretold")
    axes.set_title("   z, above temperature 0", loc="center")


def _thresholds(axes: Axes, rows: pd.DataFrame, length: int) -> None:
    """Draw the threshold of each rule, the first one's broad: the other's may be the same."""
    for width, (rule, (name, look)) in zip((3.2, 1.2), RULES.items(), strict=True):
        for accepted, line, told in ((length, "-", "all"), (0, "--", "nothing")):
            part = figures.where(rows, rule=rule, accepted=accepted)
            style = {"color": look.colour, "linestyle": line, "linewidth": width}
            marks = {"marker": look.marker, "markevery": max(1, len(part) // 4)}
            marks["markerfacecolor"] = look.colour if accepted else "white"
            axes.plot(
                part["token"], part["threshold"], **style, **marks, label=f"{name}, {told} accepted"
            )
    axes.set(xlabel="tokens so far")
    axes.set_title(f"   drafts of {length}", loc="center")


def _dots(axes: Axes, rows: pd.DataFrame, look: Style, name: str, *, line: str = "none") -> None:
    style = {"marker": look.marker, "color": look.colour, "linestyle": line}
    bars = {"elinewidth": 0.8, "capsize": 2, "linewidth": 1}
    axes.errorbar(rows["drafted"], rows["speedup"], HALF * rows["sem"], **style, **bars, label=name)


def cost_axes(axes: Axes, name: str, *, aspect: Literal["auto", "equal"] = "equal") -> None:
    """Set up the plane of cost and acceptance, with what never pays in grey."""
    axes.fill_between([0, 1], [0, 1], color=SHADE, linewidth=0, zorder=0)
    axes.plot([0, 1], [0, 1], color=TARGET.colour, linewidth=1.2, zorder=1)
    axes.text(0.98, 0.04, "below c: never pays", fontsize=6, ha="right")
    axes.set(xlim=(0, 1), ylim=(0, 1.07), xlabel="cost of a draft step, c", ylabel=name)
    axes.set_aspect(aspect)


def needed_acceptance(lines: pd.DataFrame, gain: float, cost: float) -> float:
    """Give the acceptance that a gain needs at a cost, infinite where the line has ended."""
    part = figures.where(lines, gain=gain).dropna().sort_values("cost")
    return float(np.interp(cost, part["cost"], part["acceptance"], right=np.inf))


def gain_lines(axes: Axes, lines: pd.DataFrame, colours: Sequence[Any]) -> None:
    """Draw a line for each gain, ascending, with its number where it comes to an end."""
    for gain, colour in zip(sorted(set(lines["gain"])), colours, strict=True):
        part = figures.where(lines, gain=gain).dropna().sort_values("cost")
        axes.plot(part["cost"], part["acceptance"], color=colour, linewidth=1, zorder=1)
        last = part.iloc[-1]
        text = {"ha": "center", "va": "bottom", "fontsize": 6, "color": "#555555"}
        text["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        axes.text(last["cost"], last["acceptance"] + 0.01, f"{gain:g}×", **text)
