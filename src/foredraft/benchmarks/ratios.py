"""A ratio as the last lines of a benchmark show it."""

from collections.abc import Mapping
from typing import Any

import pandas

ENDS = ("median", "min", "max", "iqr")


def value_of(row: Mapping[Any, Any] | pandas.Series, name: str) -> dict[str, object]:
    """Take a figure and its spread out of a row, as the value that is told, with its n."""
    return {**{f"value_{end}": row[f"{name}_{end}"] for end in ENDS}, "n": row["n"]}
