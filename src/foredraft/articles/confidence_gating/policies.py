"""Policies on recorded texts: those that are tried, and what each comes to."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import pandas as pd

from foredraft.analysis.statistics import Estimate, numbers, ratio
from foredraft.benchmarks.round_costs import RoundCosts
from foredraft.decoding.exit import ConfidenceExit, ExitPolicy, FixedLength
from foredraft.decoding.expected_gain import ExpectedGain
from foredraft.decoding.gate import ConfidenceGate, EntropyGate, GatePolicy, MarginGate
from foredraft.decoding.replay import Script, replay
from foredraft.decoding.theory import Costs
from foredraft.decoding.trace import Trace
from foredraft.errors import unknown
from foredraft.repro.params import ConfidenceGating

GATES: Mapping[str, Callable[[float], GatePolicy]] = {
    "confidence": ConfidenceGate,
    "entropy": EntropyGate,
    "margin": MarginGate,
}
"""The gates that look at one signal, by the signal."""

ENTROPIES = 8.0
"""Nats up to which thresholds of an entropy are tried."""


@final
@dataclass(frozen=True, slots=True)
class Policy:
    """When to draft and how far: `stop` None never drafts. `setting` is the number it turns on.

    `rule` is what it was taken from, in whole or in part.
    """

    name: str
    stop: ExitPolicy | None = None
    gate: GatePolicy | None = None
    setting: float | int = float("nan")
    length: int = 0
    rule: ExpectedGain | None = None


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy came to on recorded texts: an array over texts each."""

    tokens: np.ndarray
    rounds: np.ndarray
    drafted: np.ndarray
    accepted: np.ndarray
    closed: np.ndarray
    time: np.ndarray

    @classmethod
    def of(cls, lines: pd.DataFrame, costs: Costs) -> "Outcome":
        """Add up the rounds after the prefill; columns row, gate_open, drafted, accepted, emitted.

        A drafter that was asked in vain has taken its start nevertheless; a text's last round has
        no room for a draft, and asks none.
        """
        is_open, is_empty = lines["gate_open"].astype(bool), lines["drafted"] == 0
        in_vain = is_open & is_empty & lines["row"].duplicated(keep="last")
        seconds = lines["drafted"].map(costs.round) + in_vain * costs.other
        timed = lines.assign(time=seconds, closed=~is_open, rounds=1)
        columns = ["emitted", "rounds", "drafted", "accepted", "closed", "time"]
        sums = pd.DataFrame(timed.groupby("row")[columns].sum())
        return cls(*(numbers(sums, column) for column in columns))

    def speedup(self, costs: RoundCosts) -> Estimate:
        """Give tokens a plain step's time, over plain decoding, which has one."""
        return ratio(self.tokens * costs.target, self.time)

    def gain(self, other: "Outcome") -> Estimate:
        """Give how many times faster this is than another policy on the same texts."""
        return ratio(other.time, self.time)


def played(recorded: Script, policy: Policy, costs: RoundCosts) -> Outcome:
    """Replay a policy."""
    if policy.stop is None:
        tokens = np.array([len(text) - 1.0 for text in recorded.tokens])
        nothing = np.zeros_like(tokens)
        return Outcome(tokens, tokens, nothing, nothing, tokens, tokens * costs.target)
    rounds = rounds_of(replay(recorded, policy.gate, policy.stop))
    return Outcome.of(rounds, costs.under(policy.stop))


def replayed(recorded: Script, policies: Iterable[Policy]) -> list[tuple[Policy, pd.DataFrame]]:
    """Replay policies that draft, once for all costs: these change no round."""
    found = []
    for policy in policies:
        assert policy.stop is not None, "a policy that drafts"
        found.append((policy, rounds_of(replay(recorded, policy.gate, policy.stop))))
    return found


def fastest(replays: Iterable[tuple[Policy, pd.DataFrame]], costs: RoundCosts) -> Policy:
    """Give the replayed policy that takes least time at these costs."""

    def seconds(replay: tuple[Policy, pd.DataFrame]) -> float:
        policy, rounds = replay
        assert policy.stop is not None, "a policy that drafts"
        return float(Outcome.of(rounds, costs.under(policy.stop)).time.sum())

    return min(replays, key=seconds)[0]


def rounds_of(trace: Trace) -> pd.DataFrame:
    """Give the rounds after the prefill."""
    table = trace.table()
    return table.loc[table["round"] > 0]


def followed(recorded: Script, lengths: np.ndarray, costs: Costs) -> Outcome:
    """Replay a policy that is a table: how far to draft behind each token, [text, place]."""
    rows = []
    for text, tokens in enumerate(recorded.tokens):
        emitted = 1
        while emitted < len(tokens):
            left, place = len(tokens) - emitted - 1, (text, emitted - 1)
            wanted = int(lengths[place]) if left else 0
            drafted = min(wanted, left, int(recorded.lengths[place])) if left else 0
            accepted = min(int(recorded.accepted[place]), drafted) if left else 0
            row = {"row": text, "drafted": drafted, "accepted": accepted}
            rows.append({**row, "gate_open": wanted > 0 or not left, "emitted": accepted + 1})
            emitted += accepted + 1
    return Outcome.of(pd.DataFrame(rows), costs)


def clairvoyant(recorded: Script, costs: Costs) -> np.ndarray:
    """Give the lengths that take least time for who knows beforehand what will be accepted.

    By dynamic programming from each text's end. No policy attains it: it is a bound.
    """
    best = np.zeros(tuple(recorded.accepted.shape), dtype=int)
    for text, tokens in enumerate(recorded.tokens):
        n_tokens = len(tokens)
        rest = [0.0] * (n_tokens + 1)  # the least time from this many emitted tokens on
        for emitted in reversed(range(1, n_tokens)):
            left = n_tokens - emitted - 1
            most = min(int(recorded.accepted[text, emitted - 1]), left) if left else 0
            ways = [costs.round(n) + rest[emitted + n + 1] for n in range(most + 1)]
            rest[emitted] = min(ways)
            if left:
                best[text, emitted - 1] = int(np.argmin(ways))
    return best


def fixed(params: ConfidenceGating) -> list[Policy]:
    """Draft always, and always as far."""
    lengths = range(1, params.longest + 1)
    return [Policy("fixed length", FixedLength(n), setting=n, length=n) for n in lengths]


def thresholds(signal: str, params: ConfidenceGating) -> tuple[float, ...]:
    """Give what to try for a gate: of entropies as many, from high to none."""
    if signal == "entropy":
        return tuple(ENTROPIES * (1 - share) for share in params.thresholds)
    return params.thresholds


def gated(signal: str, params: ConfidenceGating) -> list[Policy]:
    """Draft behind tokens of enough confidence alone: each threshold with each length."""
    if signal not in GATES:
        raise unknown("signal", signal, GATES)
    return [
        Policy(f"{signal} gate", FixedLength(n), GATES[signal](bound), bound, n)
        for bound in thresholds(signal, params)
        for n in range(1, params.longest + 1)
    ]


def hysteresis(params: ConfidenceGating, length: int) -> list[Policy]:
    """Close below one confidence and open again at a higher one: all pairs of thresholds."""
    bounds = [bound for bound in params.thresholds if bound < 1]
    return [
        Policy("with hysteresis", FixedLength(length), ConfidenceGate(low, high), low, length)
        for low in bounds
        for high in bounds
        if high > low
    ]


def article(length: int, params: ConfidenceGating) -> Policy:
    """Give the article's rule: the threshold of the parameters, drafts of this length."""
    gate = ConfidenceGate(params.threshold)
    return Policy("the article's gate", FixedLength(length), gate, params.threshold, length)


def exits(params: ConfidenceGating) -> list[Policy]:
    """Draft always, until the draft itself is in doubt."""
    bounds = [bound for bound in params.thresholds if 0 < bound < 1]
    return [
        Policy("draft's confidence", ConfidenceExit(t, params.longest), None, t, params.longest)
        for t in bounds
    ]


def best_of(recorded: Script, policies: Iterable[Policy], costs: RoundCosts) -> Policy:
    """Give the policy that takes least time on these texts."""
    return min(policies, key=lambda policy: played(recorded, policy, costs).time.sum())
