"""What a sweep found: one tidy table over its points, and one figure of what was asked for."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from foredraft import paths
from foredraft.errors import unknown
from foredraft.repro import claims as results
from foredraft.repro import provenance
from foredraft.repro.provenance import Mark, Stamp
from foredraft.sweep import plots
from foredraft.sweep.point import Point
from foredraft.viz import figures

COLUMNS = ("key", "value", "spread", "n", "claim")
"""After the parameters: what is cited as `file#key`, and what is claimed of it."""


def tidy(points: Sequence[Point]) -> pd.DataFrame:
    """One row a point and value: the parameters that were given, then COLUMNS.

    `spread` and `n` are those of the claim that the value is in, as is its text; else empty.
    """
    return pd.DataFrame(
        [row for point in points for row in _rows(point, given(points))],
        columns=[*given(points), *COLUMNS],
    )


def given(points: Sequence[Point]) -> list[str]:
    """The parameters that some point was given, in the order in which they were."""
    return list(dict.fromkeys(name for point in points for name in point.setting))


def swept(points: Sequence[Point]) -> list[str]:
    """Those of them that are not the same in all points."""
    return [name for name in given(points) if len({_cell(each, name) for each in points}) > 1]


def shown(table: pd.DataFrame, asked: Sequence[str] = ()) -> list[str]:
    """The keys to draw: those asked for, else the claims' that differ between points, if any do.

    ValueError for a key that no point has, or whose values are no numbers.
    """
    for key in asked:
        if key not in set(table["key"]):
            raise unknown("value to show", key, set(table["key"]))
        if key not in _numbers(table):
            raise ValueError(f"value {key!r} is no number in every point; choose another to show")
    claimed = table.loc[table["claim"].notna(), "key"].unique()
    numbers = [key for key in claimed if key in _numbers(table)]
    moving = [key for key in numbers if table.loc[table["key"] == key, "value"].nunique() > 1]
    return list(asked) or moving or numbers


def require_known(asked: Sequence[str], points: Sequence[Point]) -> None:
    """Refuse unknown keys before points are made, by the article's results and finished points.

    A key that only these settings give is known once one of them is done; without any results to
    go by, every key may be right.
    """
    done = [point.findings() for point in points if asked and point.is_done()]
    committed = results.read(points[0].slug, below=paths.ROOT) if asked else None
    known = {k: v for found in [*done, committed] if found for k, v in found.values.items()}
    for key in asked if known else ():
        if key not in known:
            raise ValueError(
                f"{unknown('value to show', key, known)}. If only these settings give it, run them "
                "without --show: the points are kept, and --show then finds it"
            )
        if type(known[key]) not in (int, float):
            raise ValueError(f"value {key!r} is {known[key]!r}, no number; choose another to show")


def report(points: Sequence[Point], folder: Path, asked: Sequence[str] = ()) -> list[Path]:
    """Write the table of points that are done and, if they differ, the figure; give the files.

    The figure has the `shown` keys over the first swept parameter, told apart by the second. Where
    more are swept, a line is the mean over the others, with its 95 % interval.
    """
    table, stamp, path = tidy(points), _stamp(points), folder / "table.csv"
    provenance.write_table(path, table, stamp)
    keys = shown(table, asked)
    if not keys or not swept(points):
        return [path]
    x, hue, *_ = [*swept(points), None]
    figure = plots.panels(table, x=str(x), hue=hue, keys=keys)
    mark = Mark(points[0].slug, "sweep", provenance.digest(path))
    below = folder / "figures" / points[0].slug
    return [path, *figures.save(figure, below, mark, figures.FORMATS)]


def _rows(point: Point, names: Sequence[str]) -> list[dict[str, Any]]:
    found = point.findings()
    claims = {claim.key: claim for claim in found.claims}
    setting = {name: _cell(point, name) for name in names}
    return [
        {
            **setting,
            "key": key,
            "value": value,
            "spread": claims[key].spread if key in claims else None,
            "n": claims[key].n if key in claims else None,
            "claim": claims[key].text if key in claims else None,
        }
        for key, value in found.values.items()
    ]


def _cell(point: Point, name: str) -> Any:
    """A parameter as a cell of a table: a list as JSON."""
    value = point.params[name]
    return json.dumps(value) if isinstance(value, list | dict) else value


def _numbers(table: pd.DataFrame) -> set[str]:
    """The keys whose values are numbers in every point."""
    values = list(zip(table["key"], table["value"], strict=True))
    return {key for key, _ in values} - {
        key for key, value in values if type(value) not in (int, float)
    }


def _stamp(points: Sequence[Point]) -> Stamp:
    """State every value that a parameter had; a sweep has no seed of its own."""
    values = {
        name: list(dict.fromkeys(_cell(point, name) for point in points)) for name in given(points)
    }
    drawn_by = paths.module(plots.__name__)
    assert drawn_by is not None
    inputs = [point.marker for point in points]
    made_from = provenance.stamp(f"sweep of {points[0].slug}", {}, [*inputs, drawn_by])
    return replace(made_from, params=values)
