"""Which speed-up an acceptance and a cost allow."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from foredraft.decoding import theory


def what_if(acceptances: Iterable[float], cost: float, longest: int) -> pd.DataFrame:
    """Give the speed-up of every draft length at one cost, for each acceptance (theorem 3.8)."""
    return pd.DataFrame(
        [
            {"acceptance": alpha, "cost": cost, "length": length}
            | {"speedup": theory.speedup(alpha, length, cost=cost)}
            for alpha in acceptances
            for length in range(longest + 1)
        ]
    )


def best_gain(alpha: float, cost: float) -> float:
    """Give the speed-up of the best draft length (theorem 3.8); 1: do not draft."""
    length = theory.best_length(alpha, cost=cost, longest=32)
    return theory.speedup(alpha, length, cost=cost)


def level_lines(gains: Sequence[float], points: int = 24) -> pd.DataFrame:
    """Give the acceptance that each speed-up needs at each cost, where there is one below 1."""
    lines = []
    for gain in gains:
        for cost in np.linspace(0.02, 0.98 / gain, points):
            low, high = 0.0, 1.0
            for _ in range(14):
                middle = (low + high) / 2
                low, high = (
                    (low, middle) if best_gain(middle, float(cost)) >= gain else (middle, high)
                )
            lines.append({"gain": gain, "cost": float(cost), "acceptance": high})
    return pd.DataFrame(lines)
