"""When to stop drafting within a round.

A policy is a set of numbers, and `begin` gives what decides for one generation. Whatever it
decides, the output law stays the target's, because a drafted token is never taken back: the one at
which drafting stops is kept and verified like the others.

Signals (`decoding.signal`) are of the draft's law of the token that was drafted last.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

from foredraft.decoding.signal import Signal, confidence
from foredraft.errors import unknown
from foredraft.types import Bool, Float, Tensor

Number = float | int
"""Spelt out, because a type check at run time does not take an int for a float."""


@runtime_checkable
class Exit(Protocol):
    """Decides for the rows of one generation."""

    @property
    def max_length(self) -> int:
        """The most tokens that a draft may have."""
        ...

    @property
    def watches(self) -> Signal | None:
        """What it looks at, if anything: a look at each drafted token waits for the device."""
        ...

    def goes_on(self, seen: Float[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Say which rows draft on after a token of this signal (asked only if it watches)."""
        ...

    def learn(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """Take note of a round's outcome, one number a row; 0 drafted where a row did not draft.

        Called once a round, after its draft is verified: what is asked next is of a new draft.
        """
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
    watches = None

    def __post_init__(self) -> None:
        _require_length(self.max_length)

    def begin(self, batch: int) -> Exit:
        """Give itself: nothing is learnt."""
        return self

    def goes_on(self, seen: Float[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Say yes to every row."""
        return seen >= 0

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
    watches = staticmethod(confidence)

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

    def goes_on(self, seen: Float[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Say yes where the confidence reaches the threshold."""
        return seen >= self.threshold

    def learn(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """Learn nothing."""

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Hold nothing by row."""


@final
@dataclass(frozen=True, slots=True)
class AdaptiveExit:
    """Stop after the first token below a threshold that follows the row's own acceptance.

    The controllers of Draft & Verify (arXiv 2309.08168) and of the article, as their code has them.
    After a round that drafted, m ← memory · m + (1 − memory) · accepted ÷ drafted, with m = 0 at
    the start; then the threshold moves by (1 − inertia) · step, up or down, or it stays:

        rule                the first that holds
        draft_and_verify    m < target: up       drafted max_length: stays    otherwise: down
        article             drafted max_length: stays    m ≤ target: up       otherwise: down

    So a draft of full length that was mostly rejected raises the one threshold and not the other.
    Both have the numbers given here, by which a round moves a threshold by 0.001 at most. It starts
    at 0.8 (greedy) or 0.5 (sampling) in Draft & Verify, and at 0.5 in the article: here at 0.5,
    the one start that both have, for sampling; choose 0.8 for greedy text.
    """

    rule: str = "draft_and_verify"
    threshold: Number = 0.5
    max_length: int = 8
    target: Number = 0.9
    step: Number = 0.01
    memory: Number = 0.5
    inertia: Number = 0.9

    def __post_init__(self) -> None:
        _require_length(self.max_length)
        if self.rule not in RULES:
            raise unknown("rule", self.rule, RULES)
        for name, value in (
            ("threshold", self.threshold),
            ("target", self.target),
            ("memory", self.memory),
            ("inertia", self.inertia),
        ):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it is a share: choose 0 to 1")
        if not 0 <= self.step < math.inf:
            raise ValueError(
                f"step is {self.step}; a threshold moves by a finite step from 0 up (0: it stays)"
            )

    def begin(self, batch: int) -> Exit:
        """Start every row at the first threshold, with nothing accepted yet."""
        return _AdaptiveRows(self, [_Controller(self.threshold)] * batch)


def threshold_path(
    policy: AdaptiveExit, drafted: Sequence[int], accepted: Sequence[int]
) -> list[Number]:
    """Give the threshold before each round of one row, and the one after the last.

    `drafted` and `accepted` have one number a round; ValueError where more is accepted.
    """
    controller = _Controller(policy.threshold)
    path = [controller.threshold]
    for n_drafted, n_accepted in zip(drafted, accepted, strict=True):
        if not 0 <= n_accepted <= n_drafted:
            raise ValueError(
                f"{n_accepted} tokens accepted of {n_drafted} drafted: give the two columns of one "
                "row's rounds, in this order"
            )
        controller = controller.after(policy, n_drafted, n_accepted)
        path.append(controller.threshold)
    return path


@final
@dataclass(frozen=True, slots=True)
class _Controller:
    """One row's threshold, and the acceptance that it follows."""

    threshold: Number
    acceptance: Number = 0.0

    def after(self, policy: AdaptiveExit, drafted: int, accepted: int) -> "_Controller":
        """Give what a round makes of it; one that drafted nothing says nothing."""
        if drafted == 0:
            return self
        m = policy.memory * self.acceptance + (1 - policy.memory) * (accepted / drafted)
        direction = RULES[policy.rule](m, policy.target, drafted == policy.max_length)
        moved = self.threshold + direction * policy.step
        return _Controller(policy.inertia * self.threshold + (1 - policy.inertia) * moved, m)


def _draft_and_verify(acceptance: Number, target: Number, is_full: bool) -> int:
    if acceptance < target:
        return 1
    return 0 if is_full else -1


def _article(acceptance: Number, target: Number, is_full: bool) -> int:
    if is_full:
        return 0
    return 1 if acceptance <= target else -1


RULES: dict[str, Callable[[Number, Number, bool], int]] = {
    "draft_and_verify": _draft_and_verify,
    "article": _article,
}
"""Which way a threshold moves, by the acceptance, its target, and whether the draft was full."""


@final
class _AdaptiveRows:
    """A controller for each row; their thresholds lie where confidences do."""

    watches = staticmethod(confidence)

    def __init__(self, policy: AdaptiveExit, controllers: Sequence[_Controller]) -> None:
        self.policy, self.controllers = policy, list(controllers)
        self.thresholds: Float[Tensor, " batch"] | None = None

    @property
    def max_length(self) -> int:
        return self.policy.max_length

    def goes_on(self, seen: Float[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        if self.thresholds is None:
            self.thresholds = seen.new_tensor([each.threshold for each in self.controllers])
        return seen >= self.thresholds

    def learn(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        self.controllers = [
            controller.after(self.policy, *outcome)
            for controller, *outcome in zip(self.controllers, drafted, accepted, strict=True)
        ]
        self.thresholds = None

    def keep_rows(self, rows: Sequence[int]) -> None:
        self.controllers = [self.controllers[row] for row in rows]
        self.thresholds = None


@final
@dataclass(frozen=True, slots=True)
class CostAwareExit:
    """Draft on while a further token is worth its time.

    The stop of renewal-reward theory. A round is paid in tokens at a `rate`: those gained in the
    time of a target step, 1 by plain decoding. At best it is λ*, the highest speed-up, found by
    taking for `rate` what the stop attained, again and again. A further token costs a draft step
    and one more verified position: `cost` is what both take ÷ a target step. It counts only if all
    before it are accepted, and then by `acceptance`, so the draft goes on where A · acceptance ≥
    rate · cost. A, the chance that all so far stand, is estimated by the product of the draft's
    confidences. The first token is always drafted: whether to draft at all is a gate's question.

    That is an approximation in two places. A confidence is not the chance of being accepted: drafts
    that are too sure of themselves go on too long, while at a high temperature even the target's
    own tokens have low confidences and all stand. And `acceptance`, that of a token not yet
    drafted, is one number for all; 1, where nothing is known, errs towards drafting.
    """

    cost: Number
    max_length: int = 8
    rate: Number = 1.0
    acceptance: Number = 1.0

    def __post_init__(self) -> None:
        _require_length(self.max_length)
        for name, value in (("cost", self.cost), ("rate", self.rate)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; it must be finite and above 0: measure it")
        if not 0 < self.acceptance <= 1:
            raise ValueError(
                f"acceptance is {self.acceptance}; it is a chance above 0, up to 1: divide "
                "accepted by drafted tokens"
            )

    def begin(self, batch: int) -> Exit:
        """Start with an empty draft in every row."""
        return _CostAwareRows(self.max_length, self.rate * self.cost / self.acceptance)


@final
class _CostAwareRows:
    """The chance of each row that all of its draft will be accepted; 1 before the first token."""

    watches = staticmethod(confidence)

    def __init__(self, max_length: int, least: Number) -> None:
        self.max_length, self.least = max_length, least
        self.chances: Float[Tensor, " batch"] | None = None

    def goes_on(self, seen: Float[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        self.chances = seen if self.chances is None else self.chances * seen
        return self.chances >= self.least

    def learn(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        self.chances = None

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Hold nothing by row between two drafts."""


def _require_length(max_length: int) -> None:
    if max_length < 1:
        raise ValueError(f"a draft of at most {max_length} tokens: give 1 or more, or no drafter")
