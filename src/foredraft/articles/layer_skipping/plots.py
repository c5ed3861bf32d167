"""The figures of article 03."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foredraft.viz import figures, tokens
from foredraft.viz.axes import TIMES
from foredraft.viz.figures import STYLES, Style

TARGET, OURS, THEIRS = STYLES["target"], STYLES["self-speculative"], STYLES["transformers"]
LIGHT = "#D9D9D9"

LOOKS = {
    "one branch": Style("#999999", "o", ()),
    "random": Style("#56B4E9", "x", ()),
    "cheapest first": Style("#009E73", "v", ()),
    "early exit": Style("#D55E00", "s", ()),
    "spread out": Style("#0072B2", "D", (4, 2)),
    "a run": Style("#009E73", "v", ()),
    "one of each, apart": Style("#0072B2", "D", ()),
    "one origin": Style("#D55E00", "s", ()),
    "trained alone": Style("#CC79A7", "*", ()),
}
"""A colour and a marker for each family of plans."""

MEASURES = {
    "overlap": ("β = Σ min(p, q)", "cividis", ".2f"),
    "agreement": ("greedy agreement", "cividis", ".2f"),
    "divergence": ("rise in loss (nats)", "cividis_r", ".2f"),
    "time": ("time (% of a step)", "cividis", ".1f"),
}
"""Under its column: a measure's name, its colours, and how its number is shown.

Dark is what nobody wants to be without, or what is little to be without.
"""

MODELS = (("#4D4D4D", "o", "-"), (OURS.colour, "D", "--"), ("#0072B2", "s", ":"))
"""Colour, marker and line of the first model that a figure compares, the second and the third."""

GAINS = (1.1, 1.25, 1.5, 2.0)
"""Speed-ups that the plane has a line for."""


@figures.drawing
def branches(table: pd.DataFrame) -> Figure:
    """What each branch is worth, each switched off alone: a row a measure, a column a model.

    Columns: model, name ("attention 3", "MLP 0"), and the measures, or some of them.
    """
    models = list(table["model"].unique())
    measures = {measure: look for measure, look in MEASURES.items() if measure in table}
    figure = figures.panels(len(models), len(measures), height=1.15)
    parts = table["name"].str.split(" ", n=1, expand=True)
    table = table.assign(branch=parts[0], layer=parts[1].astype(int))
    for row, (measure, (name, colours, form)) in enumerate(measures.items()):
        lowest, highest = table[measure].quantile([0.05, 0.95])
        for column, model in enumerate(models):
            axes = figure.axes[row * len(models) + column]
            grid = figures.where(table, model=model).pivot_table(
                index="branch", columns="layer", values=measure
            )
            text = {"annot": True, "fmt": form, "annot_kws": {"size": 5}}
            scale = {"vmin": lowest, "vmax": highest, "cbar": False, "linewidths": 0.3}
            sns.heatmap(grid, ax=axes, cmap=colours, **text, **scale)
            axes.tick_params(axis="y", labelrotation=0, length=0)
            axes.tick_params(axis="x", labelrotation=0, length=0)
            axes.set(xlabel="layer" if row == len(measures) - 1 else "", ylabel="")
            axes.set_title(f"   {name}, {model}", loc="center")
            axes.grid(visible=False)
    worst = table.loc[table["overlap"].idxmin()]
    rest = table["overlap"].median()
    figure.suptitle(
        f"One branch off: β is {rest:.2f} in the median, and {worst['overlap']:.2f} without "
        f"{worst['name']} of {worst['model']}"
    )
    return figure


@figures.drawing
def pairs(table: pd.DataFrame) -> Figure:
    """β of joint sets against the product of their branches' β; the gap by number of branches.

    Columns: model, branches, joint, product, gap.
    """
    figure = figures.panels(2, height=2.6)
    left, right = figure.axes
    models, sizes = list(table["model"].unique()), sorted(set(table["branches"]))
    colours = sns.color_palette(figures.SEQUENTIAL, len(sizes))
    for (colour, marker, _), model in zip(MODELS, models, strict=False):
        for shade, size in zip(colours, sizes, strict=True):
            part = figures.where(table, model=model, branches=size)
            dots = {"color": shade, "marker": marker, "s": 13, "linewidths": 0}
            left.scatter(part["product"], part["joint"], **dots)
        own = figures.where(table, model=model)
        middle = summarised(own, "branches", "gap")
        low, high = (summarised(own, "branches", "gap", end) for end in ("min", "max"))
        error = [[middle[n] - low[n] for n in middle], [high[n] - middle[n] for n in middle]]
        dots = {"fmt": marker, "color": colour, "capsize": 2, "label": model}
        shift = 0.12 * (2 * models.index(model) - len(models) + 1)
        right.errorbar([n + shift for n in middle], list(middle.values()), error, **dots)
    left.plot([0, 1], [0, 1], color=TARGET.colour, linewidth=0.8, linestyle=":")
    left.set(xlim=(0, 1), ylim=(0, 1), xlabel="product of the single β", ylabel="β of the set")
    for shade, size in zip(colours, sizes, strict=True):
        left.scatter([], [], color=shade, marker="s", s=13, label=f"{size} off")
    left.legend(fontsize=6, loc="lower right", handletextpad=0.2)
    right.axhline(0, color=TARGET.colour, linewidth=0.8, linestyle=":")
    right.set(xlabel="branches switched off", ylabel="log(joint β ÷ product)")
    right.set_xticks(sizes)
    right.legend(loc="upper left")
    few, most = sizes[0], sizes[-1]
    ratios = {n: np.exp(gap) for n, gap in summarised(table, "branches", "gap").items()}
    figure.suptitle(
        f"β of a set is {ratios[few]:.2f} × the product of its members' for {few} branches, "
        f"{ratios[most]:.2f} × for {most}"
    )
    figure.supxlabel("b: geometric mean, least and greatest over random sets", fontsize=6)
    return figure


@figures.drawing
def plane(table: pd.DataFrame, lines: pd.DataFrame, timed: pd.DataFrame) -> Figure:
    """Every plan by cost and β, the break-even line, and lines of equal best speed-up.

    `table`: model, family, plan, cost, overlap, gain. `lines`: gain, cost, acceptance. `timed`:
    model, plan, cost_bytes, cost_measured.
    """
    models = list(table["model"].unique())
    figure = figures.panels(len(models), height=2.9)
    families = [family for family in LOOKS if family in set(table["family"])]
    for axes, model in zip(figure.axes, models, strict=True):
        axes.fill_between([0, 1], [0, 1], color="#F2F2F2", linewidth=0, zorder=0)
        axes.plot([0, 1], [0, 1], color=TARGET.colour, linewidth=1.2)
        _contours(axes, lines)
        rows = figures.where(table, model=model)
        for family in families:
            part, look = figures.where(rows, family=family), LOOKS[family]
            dots = {"color": look.colour, "marker": look.marker, "s": 9, "linewidths": 0.8}
            axes.scatter(part["cost"], part["overlap"], label=family, **dots)
        _measured(axes, rows, figures.where(timed, model=model))
        axes.set(xlim=(0, 1), ylim=(0, 1.03), xlabel="cost of a draft step, c (bytes)")
        axes.set_title(f"   {model}", loc="center")
        axes.set_aspect("equal")
    figure.axes[0].set_ylabel("β at the first step of a draft")
    figure.axes[0].text(0.98, 0.04, "β < c: never pays", fontsize=6, ha="right")
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=6)
    best = summarised(table, "model", "gain", "max")
    told = ", ".join(f"{best[model]:.2f}× ({model})" for model in models)
    figure.suptitle(f"Best plan by β and bytes: {told}", fontsize=8)
    return figure


@figures.drawing
def exits(table: pd.DataFrame, plain: Sequence[str], trained: str) -> Figure:
    """Early exit against spread-out skipping at equal cost; plain against trained.

    Columns: model, family, cost, overlap, low, high. `trained` is compared with the last of
    `plain`. A model "trained alone" has a mark where the table holds it.
    """
    models = (*plain, trained)
    figure = figures.panels(len(models), height=2.5)
    for axes, model in zip(figure.axes, models, strict=True):
        for family in ("early exit", "spread out"):
            part = figures.where(table, model=model, family=family)
            _band(axes, part, LOOKS[family], family)
        if model == trained:
            part = figures.where(table, model=plain[-1], family="early exit")
            look = LOOKS["early exit"]
            axes.plot(
                part["cost"],
                part["overlap"],
                color=look.colour,
                linewidth=0.9,
                linestyle=":",
                label="early exit, plain",
            )
        alone = figures.where(table, model=model, family="trained alone")
        if len(alone):
            look = LOOKS["trained alone"]
            dots = {"color": look.colour, "marker": look.marker, "s": 40, "zorder": 3}
            axes.scatter(alone["cost"], alone["overlap"], label="trained alone", **dots)
        axes.plot([0, 1], [0, 1], color=TARGET.colour, linewidth=0.8, label="β = c")
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="cost of a draft step, c (bytes)")
        axes.set_title(f"   {model}", loc="center")
    figure.axes[0].set_ylabel("β at the first step of a draft")
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=6)
    figure.suptitle(_exits_told(table, plain[-1], trained))
    return figure


def _exits_told(table: pd.DataFrame, plain: str, trained: str) -> str:
    betas = {}
    for model in (plain, trained):
        rows = figures.where(table, model=model, family="early exit").sort_values("cost")
        betas[model] = rows["overlap"].to_numpy()[len(rows) // 2]
    return (
        f"Exit after half the layers: β = {betas[plain]:.2f} of {plain}, "
        f"{betas[trained]:.2f} once it is trained for it"
    )


@figures.drawing
def positions(table: pd.DataFrame, betas: pd.DataFrame) -> Figure:
    """α by position of drafts that were verified, beside β at the first step, a panel a model.

    `table`: model, name, position, mean, low, high. `betas`: model, name, overlap.
    """
    models = list(table["model"].unique())
    figure = figures.panels(len(models), height=2.6)
    names = list(table["name"].unique())
    colours = sns.color_palette(figures.SEQUENTIAL, len(names) + 1)[:-1]
    for axes, model in zip(figure.axes, models, strict=True):
        for colour, marker, name in zip(colours, "os^vDP", names, strict=False):
            part = figures.where(table, model=model, name=name).sort_values("position")
            error = [part["mean"] - part["low"], part["high"] - part["mean"]]
            look = {"color": colour, "marker": marker, "capsize": 2, "elinewidth": 0.8}
            axes.errorbar(part["position"], part["mean"], error, **look, label=name)
            beta = figures.where(betas, model=model, name=name)["overlap"].to_numpy()
            axes.plot(np.full(len(beta), 0.6), beta, marker, color="white", markeredgecolor=colour)
        steps = sorted({int(step) for step in table["position"]})
        axes.set_xticks([0.6, *steps], ["β", *(str(step) for step in steps)])
        axes.set(xlabel="position in the draft, k", ylim=(0, 1.02))
        axes.set_title(f"   {model}", loc="center")
    figure.axes[0].set_ylabel("accepted, if k − 1 are")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    about = {"title": "hollow: β, no coin tossed; filled: drafts verified, 95 % intervals"}
    look = {"ncols": len(labels), "fontsize": 6, "title_fontsize": 6}
    figure.legend(handles, labels, loc="outside lower center", **about, **look)
    off = _off(table, betas)
    figure.suptitle(
        f"The first drafted token stands as often as β says, within {off:.2f} in the median"
    )
    return figure


@figures.drawing
def drafted_text(table: pd.DataFrame) -> Figure:
    """One text that was drafted under a plan, token by token, and what the plan came to in it.

    Columns: text, confidence, fate; off, drafted, accepted, tokens, cost and speedup, the same in
    each line.
    """
    text = table.iloc[0]
    stand = f"{text['accepted']} of {text['drafted']} drafted tokens stand"
    gain = f"{text['speedup']:.2f} × plain decoding if bytes were all"
    return tokens.fates(
        table,
        f"{text['off']} off: c = {text['cost']:.2f} by bytes, {stand}\n"
        f"{text['tokens']:.2f} tokens a round, {gain}",
    )


@figures.drawing
def vocabulary(table: pd.DataFrame) -> Figure:
    """β and cost of a draft that knows only the tokenizer's first tokens.

    Columns: model, vocabulary, cost, overlap, low, high, gain.
    """
    figure = figures.panels(2, height=2.2)
    left, right = figure.axes
    for (model, part), (colour, marker, _) in zip(
        table.groupby("model", sort=False), MODELS, strict=False
    ):
        left.fill_between(
            part["vocabulary"], part["low"], part["high"], color=colour, alpha=0.15, lw=0
        )
        left.plot(
            part["vocabulary"], part["overlap"], marker=marker, color=colour, label=str(model)
        )
        right.plot(part["vocabulary"], part["gain"], marker=marker, color=colour)
    for axes in figure.axes:
        axes.set_xscale("log", base=2)
        sizes = sorted(set(table["vocabulary"]))
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.set_xlabel("tokens that the draft knows")
    left.set_ylabel("β at the first step")
    right.set_ylabel("predicted speed-up")
    right.yaxis.set_major_formatter(TIMES)
    left.legend(loc="lower right", fontsize=6)
    *_, size, whole = sorted(set(table["vocabulary"]))
    beta, cost_of = (summarised(table, "vocabulary", column) for column in ("overlap", "cost"))
    kept, cost = beta[size] / beta[whole], cost_of[whole] - cost_of[size]
    figure.suptitle(f"A draft of {size:,} tokens keeps {kept:.1%} of β and spares {cost:.3f} of c")
    return figure


@figures.drawing
def clock(table: pd.DataFrame, where: str) -> Figure:
    """Recorded speed-ups of drafting for oneself, greedy, each at its fastest length; by model.

    Columns: model, library, name, reuse, length, speedup_median, _min, _max.
    """
    models = list(table["model"].unique())
    figure = figures.panels(len(models), height=2.6)
    for axes, model in zip(figure.axes, models, strict=True):
        rows = figures.where(table, model=model)
        names = list(rows["name"].unique())
        looks = (
            (-0.26, "foredraft", True, OURS.colour, "", "ours, exit's layers reused"),
            (0.0, "foredraft", False, "#E3B7D0", "\\\\\\\\", "ours"),
            (0.26, "transformers", False, THEIRS.colour, "////", "transformers"),
        )
        for shift, library, reuse, colour, hatch, label in looks:
            part = figures.where(rows, library=library)
            if library == "foredraft":
                part = figures.where(part, reuse=reuse)
            part = part.drop_duplicates("name").set_index("name").reindex(names)
            middle = part["speedup_median"].astype(float)
            error = [
                middle - part["speedup_min"].astype(float),
                part["speedup_max"].astype(float) - middle,
            ]
            axes.barh(
                np.arange(len(names)) + shift,
                middle,
                0.25,
                xerr=error,
                color=colour,
                hatch=hatch,
                edgecolor="white",
                linewidth=0,
                label=label,
                error_kw={"linewidth": 0.8, "capsize": 1.5},
            )
        axes.axvline(1, color=TARGET.colour, linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("speed-up over ours, plain")
        axes.xaxis.set_major_formatter(TIMES)
        axes.set_title(f"   {model}", loc="center")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    about = f"greedy; median, least and most of paired ratios over prompts; {where}"
    look = {"loc": "outside lower center", "ncols": 3, "fontsize": 6, "title_fontsize": 6}
    figure.legend(handles, labels, title=about, **look)
    right = max(axes.get_xlim()[1] for axes in figure.axes)
    for axes in figure.axes:
        axes.set_xlim(0, right)
    ours = figures.where(table, library="foredraft")
    best = ours.loc[ours["speedup_median"].astype(float).idxmax()]
    figure.suptitle(
        f"Drafting for oneself, greedy: {best['speedup_median']:.2f}× at best, with {best['name']} "
        f"of {best['model']}"
    )
    return figure


def _contours(axes: Axes, lines: pd.DataFrame) -> None:
    for gain in GAINS:
        part = figures.where(lines, gain=gain)
        axes.plot(part["cost"], part["acceptance"], color="#BBBBBB", linewidth=0.7, zorder=1)
        last = part.iloc[0]
        axes.text(last["cost"], last["acceptance"], f"{gain:g}×", fontsize=5, color="#777777")


def _measured(axes: Axes, rows: pd.DataFrame, timed: pd.DataFrame) -> None:
    """Draw a stroke from c by bytes to c by the clock for each plan that was timed."""
    known = rows.drop_duplicates("plan").set_index("plan")["overlap"]
    for row in timed.to_dict("records"):
        if row["plan"] in known.index:
            beta = known[row["plan"]]
            ends = [row["cost_bytes"], row["cost_measured"]]
            axes.plot(ends, [beta, beta], color="black", linewidth=0.7, zorder=3)
            axes.plot(ends[1], beta, "|", color="black", markersize=5, zorder=3)


def _band(axes: Axes, rows: pd.DataFrame, look: Style, name: str) -> None:
    rows = rows.sort_values("cost")
    axes.fill_between(rows["cost"], rows["low"], rows["high"], color=look.colour, alpha=0.18, lw=0)
    axes.plot(rows["cost"], rows["overlap"], marker=look.marker, color=look.colour, label=name)


def _off(table: pd.DataFrame, betas: pd.DataFrame) -> float:
    first = figures.where(table, position=1).set_index(["model", "name"])["mean"]
    known = betas.set_index(["model", "name"])["overlap"].reindex(first.index)
    return float(np.median(np.abs(first.to_numpy() - known.to_numpy())))


def summarised(table: pd.DataFrame, key: str, column: str, what: str = "mean") -> dict[Any, float]:
    """Summarise a column for each value of another, ascending."""
    values = cast("pd.Series", table.groupby(key)[column].agg(what))
    return {value: float(number) for value, number in values.items()}
