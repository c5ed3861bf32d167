"""How well a confidence tells accepted drafts from rejected ones."""

import math

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from foredraft.analysis.statistics import matrix, numbers, wilson
from foredraft.decoding.signal import SIGNALS


def reliability(table: pd.DataFrame, signal: str, bins: int = 10) -> pd.DataFrame:
    """Give the share that is accepted in bins of a signal that hold as many places each.

    With Wilson's 95 % interval, which takes places for independent.
    """
    binned = pd.qcut(table[signal], bins, labels=False, duplicates="drop")
    rows = []
    for _, part in table.groupby(binned):
        n, n_accepted = len(part), int(numbers(part, "accepted").sum())
        low, high = wilson(n_accepted / n, n)
        row = {"signal": signal, "value": part[signal].mean(), "share": n_accepted / n, "n": n}
        rows.append({**row, "low": low, "high": high})
    return pd.DataFrame(rows)


def discrimination(table: pd.DataFrame, resamples: int = 200) -> pd.DataFrame:
    """Give the AUC of each signal for the first token's acceptance, for all places and by kind.

    The chance that an accepted token was preceded by more confidence than one that was not; 0.5 is
    no information. Entropy counts with a minus. NaN where all or none are accepted.
    """
    signals = {name: -1 if name == "entropy" else 1 for name in SIGNALS}
    if not np.isnan(numbers(table, "draft_confidence")).any():
        signals["draft_confidence"] = 1
    rows = []
    for kind, part in [("all", table), *table.groupby("kind")]:
        for name, sign in signals.items():
            found = _auc(numbers(part, "accepted"), sign * numbers(part, name))
            row = {"kind": kind, "signal": name, "auc": found, "n": len(part)}
            rows.append({**row, "sem": _auc_error(part, name, sign, resamples)})
    return pd.DataFrame(rows)


def _auc(accepted: np.ndarray, score: np.ndarray) -> float:
    """Compute the area under the ROC curve from ranks (Mann and Whitney's U over its maximum)."""
    is_accepted = accepted.astype(bool)
    n_accepted, n_refused = int(is_accepted.sum()), int((~is_accepted).sum())
    if not n_accepted or not n_refused:
        return float("nan")
    above = float(rankdata(score)[is_accepted].sum()) - n_accepted * (n_accepted + 1) / 2
    return above / (n_accepted * n_refused)


def _auc_error(part: pd.DataFrame, name: str, sign: int, resamples: int) -> float:
    """Bootstrap over texts."""
    columns = matrix(part, ("accepted", name))
    texts = [columns[numbers(part, "text") == text] for text in part["text"].unique()]
    draws = np.random.default_rng(0).integers(len(texts), size=(resamples, len(texts)))
    resampled = (np.concatenate([texts[i] for i in draw]) for draw in draws)
    found = [_auc(accepted, sign * score) for accepted, score in (each.T for each in resampled)]
    known = [auc for auc in found if not math.isnan(auc)]
    return float(np.std(known, ddof=1)) if len(known) > 1 else float("nan")
