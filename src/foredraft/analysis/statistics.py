"""Means, ratios and their uncertainty: Wilson intervals and the bootstrap over texts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import pandas as pd

Z = 1.959963984540054
"""The 97.5 % point of the normal distribution."""


def wilson(mean: float, n: int) -> tuple[float, float]:
    """Give Wilson's 95 % interval of a mean of n independent values in [0, 1] (JASA 1927).

    Of all such values with that mean those that are 0 or 1 vary most, so for others, such as shares
    of a cell, the interval is too wide rather than too narrow. Raises ValueError if n is below 1 or
    the mean no share.

    >>> [round(bound, 3) for bound in wilson(0.5, 100)]
    [0.404, 0.596]
    """
    if n < 1 or not 0 <= mean <= 1:
        raise ValueError(f"mean {mean} of n={n}: give a mean in [0, 1] of one value at least")
    scale = 1 + Z**2 / n
    centre = (mean + Z**2 / (2 * n)) / scale
    half = Z / scale * (mean * (1 - mean) / n + Z**2 / (4 * n**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


RESAMPLES = 2000
"""Bootstrap resamples of the texts for an interval."""


def ratios(frame: pd.DataFrame, by: list[str], top: str, bottom: str) -> pd.DataFrame:
    """Give Σ top ÷ Σ bottom for each value of the columns `by`, with its interval over texts."""
    sums: dict[tuple[Any, ...], dict[int, np.ndarray]] = {}
    for line in frame.to_dict("records"):
        texts = sums.setdefault(tuple(line[column] for column in by), {})
        pair = np.array([line[top], line[bottom]], dtype=float)
        texts[line["text"]] = texts.get(line["text"], 0) + pair
    return pd.DataFrame(
        [
            {**dict(zip(by, value, strict=True)), **interval(np.stack(list(texts.values())))}
            for value, texts in sums.items()
        ]
    )


def interval(sums: np.ndarray) -> dict[str, float]:
    """Give Σ first ÷ Σ second column over the texts (rows), and its bootstrap interval."""
    picks = np.random.default_rng(0).integers(len(sums), size=(RESAMPLES, len(sums)))
    tops, bottoms = sums[picks].sum(1).T
    low, high = np.quantile(tops / bottoms, [0.025, 0.975])
    mean = sums[:, 0].sum() / sums[:, 1].sum()
    return {"mean": float(mean), "low": float(low), "high": float(high), "n": len(sums)}


def numbers(table: pd.DataFrame, name: str) -> np.ndarray:
    """Give a column as numbers."""
    return np.asarray(table[name], dtype=float)


def matrix(table: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    """Give columns as numbers, side by side."""
    return np.asarray(table[list(names)], dtype=float)


@final
@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its standard error, both finite; 0 where the measurement is exact."""

    mean: float
    sem: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean) or not 0 <= self.sem < math.inf:
            raise ValueError(
                f"mean {self.mean}, standard error {self.sem}: a search needs finite numbers, the "
                "error 0 or more; let the objective give a low mean to a plan that fails"
            )


ERROR_RESAMPLES = 200
"""Bootstrap resamples for a standard error, which needs fewer than the ends of an interval."""


def ratio(above: np.ndarray, below: np.ndarray) -> Estimate:
    """Give Σ above ÷ Σ below over the texts, with the standard error of a bootstrap over them."""
    picks = np.random.default_rng(0).integers(len(above), size=(ERROR_RESAMPLES, len(above)))
    resampled = above[picks].sum(1) / below[picks].sum(1)
    return Estimate(float(above.sum() / below.sum()), float(resampled.std(ddof=1)))


def variance(above: np.ndarray, below: np.ndarray) -> float:
    """Give n times the variance of Σ above ÷ Σ below over n texts, to first order."""
    off = (above - above.sum() / below.sum() * below) / below.mean()
    return float(off.var(ddof=1))
