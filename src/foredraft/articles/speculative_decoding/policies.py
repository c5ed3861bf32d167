"""Which draft length pays: the closed form, and policies replayed on recorded rounds."""

from itertools import product

import numpy as np
import pandas as pd

from foredraft.analysis.statistics import ratios
from foredraft.decoding import theory


def surface(points: int = 80) -> pd.DataFrame:
    """Give the best draft length and its speed-up over acceptance and cost (theorem 3.8)."""
    rows = []
    for alpha, cost in product(np.linspace(0.3, 0.98, points), np.linspace(0.02, 0.9, points)):
        length = theory.best_length(float(alpha), cost=float(cost), longest=40)
        gain = theory.speedup(float(alpha), length, cost=float(cost))
        rows.append({"acceptance": alpha, "cost": cost, "length": length, "speedup": gain})
    return pd.DataFrame(rows)


def on_the_surface(rounds: pd.DataFrame, cost: float) -> pd.DataFrame:
    """Place the pair at each temperature: the mean α of the drafts that were judged, and c."""
    judged = rounds["accepted"] + (rounds["accepted"] < rounds["drafted"])
    table = ratios(rounds.assign(judged=judged), ["temperature"], "accepted", "judged")
    names = [f"T = {heat:g}" for heat in table["temperature"]]
    return table.assign(name=names, cost=cost).rename(columns={"mean": "acceptance"})


def lengths_compared(rounds: pd.DataFrame, by: str, costs: theory.Costs) -> pd.DataFrame:
    """Predict the speed-up of every measured draft length from α_k, for each value of `by`."""
    rows = []
    for value, part in rounds.groupby(by, sort=False):
        alphas = theory.position_acceptances(part)
        lengths = [length for length in sorted(costs.verify) if length <= len(alphas)]
        for length in (0, *lengths):
            gain = theory.predicted_speedup(alphas, length, costs)
            rows.append({by: value, "length": length, "speedup": gain})
    return pd.DataFrame(rows)


def policies(rounds: pd.DataFrame, by: str, fixed: int, costs: theory.Costs) -> pd.DataFrame:
    """Predict the speed-up of a fixed length, of the best one, and of an oracle, by value.

    `rounds` have the longest drafts; a `fixed` length beyond what they and the costs cover is that.
    The oracle drafts as far as will be accepted.
    """
    compared = lengths_compared(rounds, by, costs)
    rows = []
    for value, part in compared.groupby(by, sort=False):
        gains = dict(zip(part["length"].tolist(), part["speedup"].tolist(), strict=True))
        at, best = min(fixed, max(gains)), max(gains, key=lambda length: gains[length])
        rows.append(
            {
                by: value,
                "fixed_length": at,
                "fixed": gains[at],
                "best_length": best,
                "best": gains[best],
                "oracle": oracle_speedup(rounds.loc[rounds[by] == value], costs),
            }
        )
    return pd.DataFrame(rows)


def oracle_speedup(rounds: pd.DataFrame, costs: theory.Costs) -> float:
    """Give the speed-up of drafting in each round just what was accepted in it.

    Without a draft it is a plain round; between two lengths of the costs verification is
    interpolated, and beyond the longest of them nothing is drafted.
    """
    accepted = rounds["accepted"].clip(upper=max(costs.verify)).to_numpy()
    known = [0, *sorted(costs.verify)]
    passes = np.interp(accepted, known, [costs.target, *(costs.verify[k] for k in known[1:])])
    spent = accepted * costs.draft + passes + np.where(accepted > 0, costs.other, 0.0)
    return float((accepted + 1).sum() * costs.target / spent.sum())
