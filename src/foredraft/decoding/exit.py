"""When to stop drafting within a round.

A policy is a set of numbers, and `begin` gives what decides for one generation. Whatever it
decides, the output law stays the target's, because a drafted token is never taken back: the one at
which drafting stops is kept and verified like the others.

*Confidence* is the probability of a drafted token under the plain softmax of the draft's logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

from foredraft.types import Bool, Float, Tensor


@runtime_checkable
class Exit(Protocol):
    """Decides for the rows of one generation."""

    @property
    def max_length(self) -> int:
        """The most tokens that a draft may have."""
        ...

    @property
    def watches(self) -> bool:
        """Whether it looks at confidences: a look at each drafted token waits for the device."""
        ...

    def goes_on(self, confidence: Float[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Say which rows draft on after a token of this confidence (asked only if it watches)."""
        ...

    def learn(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """Take note of a round's outcome, one number a row."""
        ...

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drop the rows not named."""
        ...


@runtime_checkable
class ExitPolicy(Protocol):
    """A rule for when to stop drafting, as a reader passes it to `generate`."""

    def begin(self, batch: int) -> Exit:
        """Start on a batch of rows."""
        ...


@final
@dataclass(frozen=True, slots=True)
class FixedLength:
    """Draft this many tokens each round."""

    max_length: int
    watches = False

    def __post_init__(self) -> None:
        _require_length(self.max_length)

    def begin(self, batch: int) -> Exit:
        """Give itself: nothing is learnt."""
        return self

    def goes_on(self, confidence: Float[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Say yes to every row."""
        return confidence >= 0

    def learn(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """Learn nothing."""

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Hold nothing by row."""


@final
@dataclass(frozen=True, slots=True)
class ConfidenceExit:
    """Stop after the first token of less than this confidence, and after `max_length` at most.

    The rule of transformers' assisted generation (threshold 0.4), Kangaroo (arXiv 2404.18911, 0.6)
    and others; the token itself is kept.
    """

    threshold: float
    max_length: int
    watches = True

    def __post_init__(self) -> None:
        _require_length(self.max_length)
        if not 0 <= self.threshold <= 1:
            raise ValueError(
                f"threshold is {self.threshold}; a confidence is a probability: choose 0 (never "
                "stop early) to 1"
            )

    def begin(self, batch: int) -> Exit:
        """Give itself: nothing is learnt."""
        return self

    def goes_on(self, confidence: Float[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Say yes where the confidence reaches the threshold."""
        return confidence >= self.threshold

    def learn(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """Learn nothing."""

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Hold nothing by row."""


def _require_length(max_length: int) -> None:
    if max_length < 1:
        raise ValueError(f"a draft of at most {max_length} tokens: give 1 or more, or no drafter")
