"""Tables of article 03 from its recorded timings."""

import numpy as np
import pandas as pd

TIMED = {
    "speedup": (False, "Speed-up of the best plan, plain pocket model, greedy (recorded)"),
    "speedup_trained": (True, "The same, trained by LayerSkip's recipe (recorded)"),
}
"""Whether the model is the trained one; over our own autoregressive decoding."""


def on_the_clock(recorded: pd.DataFrame) -> pd.DataFrame:
    """Give the recorded draft lengths that are fastest, of each plan, library and model, greedy."""
    ways = recorded.loc[recorded["strategy"] == "self-drafting"]
    arm = ["model", "library", "name", "reuse"]
    greedy = ways.loc[ways["sampler"] == "greedy"]
    best = greedy.groupby(arm, sort=False, dropna=False)["speedup_median"].idxmax()
    return recorded.loc[best].reset_index(drop=True)


def gain_by_reuse(recorded: pd.DataFrame) -> pd.Series:
    """Give tokens a second with an exit's layers reused ÷ without, for each setting recorded."""
    ours = recorded.loc[
        (recorded["strategy"] == "self-drafting") & (recorded["library"] == "foredraft")
    ]
    rates = ours.pivot_table(
        index=["model", "sampler", "name", "length"],
        columns="reuse",
        values="tokens_per_second_median",
    ).dropna()
    return rates[True] / rates[False]


def measured_costs(recorded: pd.DataFrame) -> pd.DataFrame:
    """Give c by bytes and by the clock of every plan that was timed: the medians over its rows."""
    ours = recorded.loc[
        (recorded["strategy"] == "self-drafting") & (recorded["library"] == "foredraft")
    ]
    return ours.groupby(["model", "name", "plan"], sort=False, as_index=False)[
        ["cost_bytes", "cost_measured"]
    ].median()


def with_times(singles: pd.DataFrame, recorded: pd.DataFrame) -> pd.DataFrame:
    """Add to single branches what share of a step each takes by the clock, in per cent: `time`.

    There is no such column if not all of these branches were timed.
    """
    timed = recorded.loc[recorded["strategy"] == "one branch off"]
    if not len(timed):
        return singles
    shares = timed.set_index(["model", "plan"])["share_median"]
    time = [
        100 * shares.get(key, np.nan) for key in zip(singles["model"], singles["plan"], strict=True)
    ]
    return singles if np.isnan(time).any() else singles.assign(time=time)
