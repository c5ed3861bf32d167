"""Whether to draft at all this round, row by row.

A gate sees a signal of the target's law of the token that each row emitted last: verified text, so
that its decision cannot bias what is drawn. A policy is a set of numbers, and `begin` gives what
decides for one generation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

from foredraft.decoding.signal import Signal, confidence, entropy, margin

Number = float | int
"""Spelt out, because a type check at run time does not take an int for a float."""


@runtime_checkable
class Gate(Protocol):
    """Decides for the rows of one generation."""

    @property
    def watches(self) -> Signal | None:
        """What it looks at; None: at nothing."""
        ...

    def opens(self, seen: Sequence[float]) -> list[bool]:
        """Say for each row whether to draft, given the signal of its last emitted token.

        Asked once a round. A gate that watches nothing is shown the confidence.
        """
        ...

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drop the rows not named."""
        ...


@runtime_checkable
class GatePolicy(Protocol):
    """A rule for when to draft, as a reader passes it to `generate`."""

    def begin(self, batch: int) -> Gate:
        """Start on a batch of rows."""
        ...


@final
@dataclass(frozen=True, slots=True)
class AlwaysDraft:
    """Draft in every round."""

    watches = None

    def begin(self, batch: int) -> Gate:
        """Give itself: nothing is learnt."""
        return self

    def opens(self, seen: Sequence[float]) -> list[bool]:
        """Say yes to every row."""
        return [True] * len(seen)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Hold nothing by row."""


@final
@dataclass(frozen=True, slots=True)
class ConfidenceGate:
    """Draft behind tokens of which the target was sure; decode on where it was not.

    The article's rule: draft while the probability of the last emitted token, recovered or bonus,
    is the threshold or more; its threshold is 0.5. So 0 drafts always; 1, by definition here,
    never, though a probability may round to 1. With `reopen`, a gate that has closed opens again
    only at that confidence (hysteresis).
    """

    threshold: Number = 0.5
    reopen: Number | None = None

    def __post_init__(self) -> None:
        _require_shares(self.threshold, self.reopen)

    def begin(self, batch: int) -> Gate:
        """Start with all rows open."""
        return _Rows(_Threshold(confidence, self.threshold, self.reopen), batch)


@final
@dataclass(frozen=True, slots=True)
class MarginGate:
    """Draft where the likeliest token led the second by this much or more; 0 always, 1 never.

    With `reopen`, a gate that has closed opens again only at that lead.
    """

    threshold: Number
    reopen: Number | None = None

    def __post_init__(self) -> None:
        _require_shares(self.threshold, self.reopen)

    def begin(self, batch: int) -> Gate:
        """Start with all rows open."""
        return _Rows(_Threshold(margin, self.threshold, self.reopen), batch)


@final
@dataclass(frozen=True, slots=True)
class EntropyGate:
    """Draft behind tokens whose law had this entropy or less, in nats; 0 never, infinity always.

    With `reopen`, a gate that has closed opens again only at that entropy, which is no higher.
    """

    threshold: Number
    reopen: Number | None = None

    def __post_init__(self) -> None:
        for name, value in (("threshold", self.threshold), ("reopen", self.reopen)):
            if value is not None and not value >= 0:
                raise ValueError(
                    f"{name} is {value}; an entropy is 0 nats or more: choose 0 (never draft) up "
                    "to math.inf (always)"
                )
        if self.reopen is not None:
            _require_order(self.reopen <= self.threshold, self.reopen, self.threshold)

    def begin(self, batch: int) -> Gate:
        """Start with all rows open."""
        rule = _Threshold(entropy, self.threshold, self.reopen, never=0, is_most=True)
        return _Rows(rule, batch)


@final
@dataclass(frozen=True, slots=True)
class _Threshold:
    """What a signal has to reach, or not to exceed; at `never`, none does."""

    watches: Signal
    threshold: Number
    reopen: Number | None
    never: Number = 1
    is_most: bool = False

    def opens(self, value: float, was_open: bool) -> bool:
        bound = self.threshold if was_open or self.reopen is None else self.reopen
        return bound != self.never and (value <= bound if self.is_most else value >= bound)


@final
class _Rows:
    """Which rows are open, by one rule for all."""

    def __init__(self, rule: _Threshold, batch: int) -> None:
        self.rule, self.open = rule, [True] * batch

    @property
    def watches(self) -> Signal | None:
        return self.rule.watches

    def opens(self, seen: Sequence[float]) -> list[bool]:
        both = zip(seen, self.open, strict=True)
        self.open = [self.rule.opens(value, was_open) for value, was_open in both]
        return self.open

    def keep_rows(self, rows: Sequence[int]) -> None:
        self.open = [self.open[row] for row in rows]


def _require_shares(threshold: Number, reopen: Number | None) -> None:
    for name, value in (("threshold", threshold), ("reopen", reopen)):
        if value is not None and not 0 <= value <= 1:
            raise ValueError(
                f"{name} is {value}; it is compared with probabilities: choose 0 (always draft) to "
                "1 (never)"
            )
    if reopen is not None:
        _require_order(reopen >= threshold, reopen, threshold)


def _require_order(holds: bool, reopen: Number, threshold: Number) -> None:
    if not holds:
        raise ValueError(
            f"reopen is {reopen}, which asks for less than the threshold of {threshold}: a closed "
            "gate opens again at as much or more"
        )
