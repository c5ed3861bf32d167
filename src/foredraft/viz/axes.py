"""What the figures of several articles do to their axes and legends."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from foredraft.viz.figures import Style

TIMES = FuncFormatter(lambda times, _: f"{times:g}×")
SHARE = FuncFormatter(lambda share, _: f"{share:.0%}")


def legend_below(figure: Figure, title: str, *, columns: int | None = None) -> None:
    """Name each look once, below the panels, in at most so many columns."""
    named = {
        name: handle
        for axes in figure.axes
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(named.values()),
        list(named),
        title=title,
        handlelength=3,
        loc="outside lower center",
        ncols=max(1, min(columns or len(named), len(named))),
        fontsize=6,
        title_fontsize=6,
    )


def line_style(look: Style) -> Any:
    """Return what matplotlib takes for the dashes of a look."""
    return (0, look.dashes) if look.dashes else "-"


def shifts(n: int) -> np.ndarray:
    """Return n places at equal distances around 0, all within a half of it."""
    return (np.arange(n) - (n - 1) / 2) / n


def share_limits(axes: Sequence[Axes], *, headroom: float = 1.0) -> None:
    """Give the vertical axes the same limits, and some room above what they show."""
    top = headroom * max(each.get_ylim()[1] for each in axes)
    bottom = min(each.get_ylim()[0] for each in axes)
    for each in axes:
        each.set_ylim(bottom, top)


def name_rows(axes: Axes, names: Sequence[str], *, shown: bool = True) -> None:
    """Lay out rows from the top down, with their names if shown."""
    axes.set_yticks(range(len(names)), names if shown else [""] * len(names), parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")


def span(values: np.ndarray, form: str) -> str:
    """Write the least and the most of these values, or the one that both are."""
    low, high = (format(end, form) for end in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def temperature_name(temperature: float) -> str:
    """Write how texts were sampled: greedily, or at a temperature."""
    return "greedy" if temperature == 0 else f"temperature {temperature:g}"
