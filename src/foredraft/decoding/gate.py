"""Whether to draft at all this round, row by row.

A gate sees the target's confidence in the token that each row emitted last: verified text, so that
its decision cannot bias what is drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable


@runtime_checkable
class Gate(Protocol):
    """A rule for when to draft, as a reader passes it to `generate`."""

    def opens(self, confidence: Sequence[float]) -> list[bool]:
        """Say for each row whether to draft, given the probability of its last emitted token."""
        ...


@final
@dataclass(frozen=True, slots=True)
class AlwaysDraft:
    """Draft in every round."""

    def opens(self, confidence: Sequence[float]) -> list[bool]:
        """Say yes to every row."""
        return [True] * len(confidence)
