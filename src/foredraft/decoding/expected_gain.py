"""Draft where the next token is worth its time: one rule for the gate and for the exit.

Decoding is a renewal process that is paid in tokens and charged in time, and no rule earns more
than the highest rate λ* of tokens a time. At that rate a round that takes T has cost λ*·T tokens
that another would have brought, so whatever is not worth λ* times its time is better left:

    token k + 1    iff    A_k · α̂_{k+1}  >  λ · (t_draft + t_verify(k + 1) − t_verify(k))
    a draft        iff    max_n E(n) − λ · T(n)  >  1 − λ · t_target

A_k is the chance that all k so far stand, α̂ that of the next one, both by what is known when it is
decided: nothing of the token itself. Thresholds follow from costs and are nobody's choice.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch

from foredraft.decoding.exit import Exit, ExitPolicy
from foredraft.decoding.gate import Gate, GatePolicy
from foredraft.decoding.signal import Signal, confidence
from foredraft.decoding.theory import Costs
from foredraft.types import Bool, Float, Tensor

STEPS = 1024
"""Entries of a curve's table."""

Number = float | int
"""Spelt out, because a type check at run time does not take an int for a float."""


@final
@dataclass(frozen=True, slots=True)
class Curve:
    """A chance by a signal: straight between knots, level beyond the first and the last.

    ValueError for no knots, knots that are infinite or do not ascend, and values that are no
    chances.
    """

    knots: tuple[Number, ...]
    values: tuple[Number, ...]

    def __post_init__(self) -> None:
        if not self.knots or len(self.knots) != len(self.values):
            raise ValueError(
                f"{len(self.knots)} knots and {len(self.values)} values: give one or more, as many"
            )
        if not all(map(math.isfinite, self.knots)):
            raise ValueError(f"knots are {self.knots}; they must be finite: leave out the others")
        if any(left >= right for left, right in pairwise(self.knots)):
            raise ValueError(f"knots are {self.knots}; they must ascend: sort them, each once")
        if not all(0 <= value <= 1 for value in self.values):
            raise ValueError(f"values are {self.values}; they are chances: 0 to 1")

    def at(self, signal: float) -> float:
        """Give the chance at a signal."""
        place = bisect_right(self.knots, signal)
        if place in (0, len(self.knots)):
            return float(self.values[min(place, len(self.knots) - 1)])
        left, right = self.knots[place - 1 : place + 1]
        share = (signal - left) / (right - left)
        return float(self.values[place - 1] * (1 - share) + self.values[place] * share)


@final
@dataclass(frozen=True, slots=True)
class ExpectedGain:
    """The rule, with what it goes by; `gate` and `exit` are for `generate`.

    `rate` is λ, in tokens for one unit of the costs' time: at best what the rule itself attains.
    `opening` gives α̂_1 by a signal of the target's law of the last emitted token; `stands` the
    chance that a drafted token is accepted, all before it being so, by a signal of the draft's law;
    `follows`, by the same, the chance of the next one, which is not drafted yet. `later` is the
    chance that the gate counts with for every token behind the first; it weighs drafts of
    `min_length` tokens or more, for an exit that stops no earlier.

    ValueError for a rate or a length that is none, or costs of verification that are not known.
    """

    costs: Costs
    rate: Number
    max_length: int
    opening: Curve
    stands: Curve
    follows: Curve
    later: Number
    opening_signal: Signal = confidence
    draft_signal: Signal = confidence
    min_length: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.min_length <= self.max_length:
            raise ValueError(
                f"min_length is {self.min_length} and max_length {self.max_length}; a draft has 1 "
                "token or more, and the first bound is not above the second"
            )
        if not 0 < self.rate < math.inf:
            raise ValueError(f"rate is {self.rate}; it must be finite and above 0: measure it")
        if not 0 <= self.later <= 1:
            raise ValueError(f"later is {self.later}; it is a chance: 0 to 1")
        missing = [n for n in range(1, self.max_length + 1) if n not in self.costs.verify]
        if missing:
            raise ValueError(
                f"drafts of up to {self.max_length} tokens, but no verification of {missing} was "
                "timed: time it, or draft less"
            )

    @property
    def least_opening(self) -> float:
        """The chance of the first token from which on a draft pays, at its best length."""
        reached, ways = 0.0, []
        for length in range(1, self.max_length + 1):
            reached += self.later ** (length - 1)
            extra = self.costs.round(length) - self.costs.target
            ways.append(self.rate * extra / reached)
        return min(ways[self.min_length - 1 :])

    def least(self, length: int) -> float:
        """Give the chance that the token after `length` drafted ones has to have to pay."""
        further = self.costs.verify[length + 1] - self.costs.verify[length]
        return self.rate * (self.costs.draft + further)

    @property
    def gate(self) -> GatePolicy:
        """Whether to draft at all."""
        return _Opening(self)

    @property
    def exit(self) -> ExitPolicy:
        """When to stop; the first token is always drafted, since the gate has let it."""
        return _Stopping(self)


@final
@dataclass(frozen=True, slots=True)
class _Opening:
    rule: ExpectedGain

    def begin(self, batch: int) -> Gate:
        return _OpeningRows(self.rule)


@final
class _OpeningRows:
    """A threshold on a chance."""

    def __init__(self, rule: ExpectedGain) -> None:
        self.watches: Signal | None = rule.opening_signal
        self.curve, self.least = rule.opening, rule.least_opening

    def opens(self, seen: Sequence[float]) -> list[bool]:
        return [self.curve.at(value) > self.least for value in seen]

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Hold nothing by row."""


@final
@dataclass(frozen=True, slots=True)
class _Stopping:
    rule: ExpectedGain

    def begin(self, batch: int) -> Exit:
        return _StoppingRows(self.rule)


@final
class _StoppingRows:
    """The chance of each row that all of its draft so far stands."""

    def __init__(self, rule: ExpectedGain) -> None:
        self.watches: Signal | None = rule.draft_signal
        self.max_length = rule.max_length
        self.curves = Table.of(rule.stands, rule.follows)
        self.least = [rule.least(length) for length in range(1, rule.max_length)]
        self.learn((), ())

    def goes_on(self, seen: Float[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        stands, follows = self.curves.on(seen)
        self.chances = stands if self.chances is None else self.chances * stands
        self.length += 1
        if self.length > len(self.least):
            return torch.zeros_like(seen, dtype=torch.bool)
        return self.chances * follows > self.least[self.length - 1]

    def learn(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """Forget the draft: the next one begins anew."""
        self.chances: Float[Tensor, " batch"] | None = None
        self.length = 0

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Hold nothing by row between two drafts."""


@final
class Table:
    """Curves as a table, looked up at each drafted token: a fifth of the time of interpolating.

    `STEPS` entries between the first and the last knot of all; what is asked for is the nearest.
    """

    def __init__(self, start: float, scale: float, rows: Float[Tensor, "curve step"]) -> None:
        self.start, self.scale, self.rows = start, scale, rows

    @classmethod
    def of(cls, *curves: Curve) -> "Table":
        """Read the curves off at equal distances."""
        start = float(min(curve.knots[0] for curve in curves))
        width = float(max(curve.knots[-1] for curve in curves)) - start
        places = [start + width * i / (STEPS - 1) for i in range(STEPS)]
        rows = torch.tensor([[curve.at(place) for place in places] for curve in curves])
        return cls(start, (STEPS - 1) / width if width else 0.0, rows)

    def on(self, signals: Float[Tensor, " batch"]) -> Float[Tensor, "curve batch"]:
        """Give each curve's chances at several signals, where these are."""
        if self.rows.device != signals.device:
            self.rows = self.rows.to(signals.device)
        steps = ((signals - self.start) * self.scale + 0.5).long().clamp_(0, STEPS - 1)
        return self.rows[:, steps]
