"""Measure seconds; the only module of the package that reads a fine clock.

Arms are timed in alternation (A B A B ...) in one process, after a warm-up that is thrown away,
with the device synchronised on both sides of the clock. Whatever drifts meanwhile, the frequency of
the processor or a neighbour on it, meets every arm alike; so the figure that carries a claim is the
ratio of two arms within a round, with its spread over the rounds.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, final

import numpy
import pandas
import torch

Case = TypeVar("Case")
Result = TypeVar("Result")


def now() -> float:
    """Read the clock, in seconds; only differences mean anything."""
    return time.perf_counter()


@final
@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some measurements, and how far they lie apart."""

    median: float
    minimum: float
    maximum: float
    interquartile: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarise one value or more."""
        lower, median, upper = (float(level) for level in numpy.quantile(values, (0.25, 0.5, 0.75)))
        return cls(median, min(values), max(values), upper - lower, len(values))


@final
@dataclass(frozen=True, slots=True)
class Schedule:
    """How often to measure: rounds that count, rounds that do not, calls that make one sample.

    With `inner` None each arm gets the power of two of calls that lasts `sample_seconds` or more.
    """

    repeats: int = 7
    warmup: int = 2
    inner: int | None = None
    sample_seconds: float = 0.005

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.warmup < 0 or (self.inner is not None and self.inner < 1):
            raise ValueError(
                f"{self} cannot be kept; repeats and inner must be at least 1, warmup at least 0"
            )


@final
@dataclass(frozen=True, slots=True)
class Comparison:
    """Seconds per call of each arm, one value a round, and the labels that go with every row."""

    seconds: Mapping[str, tuple[float, ...]]
    calls: Mapping[str, int]
    labels: Mapping[str, object]

    def spread(self, arm: str) -> Spread:
        """Summarise the milliseconds per call of one arm."""
        return Spread.of([1e3 * seconds for seconds in self._rounds(arm)])

    def ratio(self, slow: str, fast: str) -> Spread:
        """Summarise how many times as long `slow` took as `fast`, round by round."""
        pairs = zip(self._rounds(slow), self._rounds(fast), strict=True)
        return Spread.of([numerator / denominator for numerator, denominator in pairs])

    def table(self) -> pandas.DataFrame:
        """Lay out one row an arm: labels, calls in a sample, rounds n, milliseconds per call."""
        return pandas.DataFrame([self._row(arm) for arm in self.seconds])

    def _row(self, arm: str) -> dict[str, object]:
        spread = self.spread(arm)
        return {
            **self.labels,
            "arm": arm,
            "calls": self.calls[arm],
            "n": spread.n,
            **columns("ms", spread),
        }

    def _rounds(self, arm: str) -> tuple[float, ...]:
        if arm not in self.seconds:
            raise ValueError(f"arm {arm!r} was not timed; choose one of {list(self.seconds)}")
        return self.seconds[arm]


def compare(
    arms: Mapping[str, Callable[[], object]],
    *,
    schedule: Schedule | None = None,
    device: torch.device | str = "cpu",
    labels: Mapping[str, object] | None = None,
    clock: Callable[[], float] = now,
) -> Comparison:
    """Time the arms in alternation; `labels`, `device` and the thread count go with every row.

    `clock` counts seconds; on a CUDA device it is read only once all queued work has finished.
    """
    schedule = schedule or Schedule()
    if not arms:
        raise ValueError("arms are empty; give at least one name and a call without arguments")
    read = synchronised(clock, torch.device(device))
    for _ in range(schedule.warmup):
        for run in arms.values():
            run()
    calls = {arm: _calls_in_a_sample(run, schedule, read) for arm, run in arms.items()}
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(schedule.repeats):
        for arm, run in arms.items():
            seconds[arm].append(_elapsed(run, calls[arm], read) / calls[arm])
    where = {"device": str(device), "threads": torch.get_num_threads()}
    rounds = {arm: tuple(values) for arm, values in seconds.items()}
    return Comparison(rounds, calls, {**(labels or {}), **where})


@final
@dataclass(frozen=True, slots=True)
class Lap(Generic[Result]):
    """One run of one arm: seconds, and what it gave."""

    seconds: float
    result: Result


def alternate(
    arms: Mapping[str, Callable[[Case], Result]],
    cases: Sequence[Case],
    *,
    warmup: int = 1,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = now,
) -> dict[str, list[Lap[Result]]]:
    """Run every arm once on each case, case by case; give each arm's laps in the order of cases.

    For arms of seconds, whose cases (prompts, say) are the repetitions. The first `warmup` cases
    are run once more beforehand and thrown away, and the order of the arms turns from case to case,
    so that none always follows the same other.
    """
    read = synchronised(clock, torch.device(device))
    for case in cases[:warmup]:
        for run in arms.values():
            run(case)
    laps: dict[str, list[Lap[Result]]] = {arm: [] for arm in arms}
    names = list(arms)
    for turn, case in enumerate(cases):
        first = turn % len(names)
        for arm in names[first:] + names[:first]:
            start = read()
            result = arms[arm](case)
            laps[arm].append(Lap(read() - start, result))
    return laps


def synchronised(clock: Callable[[], float], device: torch.device) -> Callable[[], float]:
    """Give a clock that lets the device finish all queued work before it is read."""

    def read() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock()

    return read


def _elapsed(run: Callable[[], object], calls: int, read: Callable[[], float]) -> float:
    start = read()
    for _ in range(calls):
        run()
    return read() - start


def _calls_in_a_sample(
    run: Callable[[], object], schedule: Schedule, read: Callable[[], float]
) -> int:
    if schedule.inner is not None:
        return schedule.inner
    calls = 1
    while calls < 2**16 and _elapsed(run, calls, read) < schedule.sample_seconds:
        calls *= 2
    return calls


def columns(name: str, spread: Spread) -> dict[str, float]:
    """Name what a spread says, for a row of a table."""
    return {
        f"{name}_median": spread.median,
        f"{name}_min": spread.minimum,
        f"{name}_max": spread.maximum,
        f"{name}_iqr": spread.interquartile,
    }
