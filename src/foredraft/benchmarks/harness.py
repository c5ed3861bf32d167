"""Time the rounds of a generation in place: what drafting takes of each, and the whole.

The same parts timed over and over by themselves come out too cheap: their code and weights stay in
the processor's caches, which target and draft otherwise take from each other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy
import torch

from foredraft.decoding.draft import Draft, Drafter, Job, Proposer
from foredraft.decoding.exit import Exit
from foredraft.decoding.loop import Generation
from foredraft.decoding.text import Text
from foredraft.decoding.trace import Round


@final
@dataclass(frozen=True, slots=True)
class Beat:
    """One round of a single text: tokens drafted, seconds that this took, seconds of the round."""

    drafted: int
    drafting: float
    whole: float


@final
@dataclass(frozen=True, slots=True)
class Pace:
    """The seconds of one generation of a single text: its prefill, then its rounds."""

    prefill: float
    beats: tuple[Beat, ...]

    def plain(self) -> list[Beat]:
        """Give the rounds without a draft."""
        return [beat for beat in self.beats if beat.drafted == 0]

    def full(self, length: int) -> list[Beat]:
        """Give the rounds that drafted to this length, but for the first, which costs more."""
        drafting = [beat for beat in self.beats if beat.drafted]
        return [beat for beat in drafting[1:] if beat.drafted == length]

    def start(self, step: float) -> float:
        """Give what the first draft took beyond its steps: the prefill of a draft model."""
        first = next((beat for beat in self.beats if beat.drafted), None)
        return 0.0 if first is None else max(0.0, first.drafting - first.drafted * step)


@final
@dataclass(frozen=True, slots=True)
class Parts:
    """What a draft step takes, and what follows a draft of some length, in seconds on average."""

    step: float
    rest: float

    @classmethod
    def of(cls, paces: Sequence[Pace], length: int) -> "Parts":
        """Average over all rounds of all texts that drafted to this length."""
        beats = [beat for pace in paces for beat in pace.full(length)]
        drafting = _mean([beat.drafting for beat in beats])
        return cls(drafting / length, _mean([beat.whole - beat.drafting for beat in beats]))


def plain_round(paces: Sequence[Pace]) -> float:
    """Average the seconds of a round without a draft over all texts."""
    return _mean([beat.whole for pace in paces for beat in pace.plain()])


def paced(
    decode: Callable[[Drafter | None, Callable[[Round], None]], Generation],
    drafter: Drafter | None,
    read: Callable[[], float],
) -> tuple[Generation, Pace]:
    """Decode one text with this drafter, and say how long each round took.

    `decode` hands both of its arguments to `generate`; `read` reads a clock, in seconds.
    """
    stopwatch = _Stopwatch(read, since=read())
    made = decode(None if drafter is None else _Timed(drafter, stopwatch), stopwatch.lap)
    prefill, *beats = stopwatch.beats
    return made, Pace(prefill.whole, tuple(beats))


@final
@dataclass(slots=True)
class _Stopwatch:
    read: Callable[[], float]
    since: float
    beats: list[Beat] = field(default_factory=list)
    drafting: float = 0.0

    def lap(self, done: Round) -> None:
        """End a round."""
        now = self.read()
        self.beats.append(Beat(done.rows[0].drafted, self.drafting, now - self.since))
        self.since, self.drafting = now, 0.0


@final
@dataclass(frozen=True, slots=True)
class _Timed:
    """A drafter whose proposals are timed."""

    drafter: Drafter
    stopwatch: _Stopwatch

    def begin(self, job: Job) -> Proposer:
        return _TimedProposer(self.drafter.begin(job), self.stopwatch)


@final
@dataclass(frozen=True, slots=True)
class _TimedProposer:
    proposer: Proposer
    stopwatch: _Stopwatch

    def propose(
        self, text: Text, limits: Sequence[int], stop: Exit, *, generator: torch.Generator
    ) -> Draft:
        start = self.stopwatch.read()
        draft = self.proposer.propose(text, limits, stop, generator=generator)
        self.stopwatch.drafting = self.stopwatch.read() - start
        return draft

    def settle(self, text: Text) -> None:
        self.proposer.settle(text)

    def keep_rows(self, rows: Sequence[int]) -> None:
        self.proposer.keep_rows(rows)


def _mean(seconds: Sequence[float]) -> float:
    return float(numpy.mean(seconds)) if seconds else float("nan")
