"""Measure seconds; the only module of the package that reads a clock.

Arms are timed in alternation (A B A B ...) in one process, after a warm-up that is thrown away,
with the device synchronised on both sides of the clock. Whatever drifts meanwhile, the frequency of
the processor or a neighbour on it, meets every arm alike; so the figure that carries a claim is the
ratio of two arms within a round, with its spread over the rounds.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast, final

import numpy
import pandas
import torch

from foredraft.sampling import Sampler
from foredraft.types import Float, Int, Tensor

if TYPE_CHECKING:
    from transformers import LogitsProcessorList

SETTINGS: Mapping[str, Sampler] = {
    "temperature": Sampler(0.8),
    "temperature, top-k": Sampler(0.8, top_k=50),
    "temperature, top-p": Sampler(0.8, top_p=0.9),
    "temperature, top-k, top-p": Sampler(0.8, top_k=50, top_p=0.9),
    "temperature, min-p": Sampler(0.8, min_p=0.05),
    "temperature, typical-p": Sampler(0.8, typical_p=0.9),
    "repetition penalty": Sampler(repetition_penalty=1.2),
}
"""What `sampling_benchmark` times, one filter at a time and the usual combination."""

PREFIX_LENGTH = 512
"""Ids that the repetition penalty of the benchmark looks at, in each row."""


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
            **_columns("ms", spread),
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
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Time the arms in alternation; `labels`, `device` and the thread count go with every row.

    `clock` counts seconds; on a CUDA device it is read only once all queued work has finished.
    """
    schedule = schedule or Schedule()
    if not arms:
        raise ValueError("arms are empty; give at least one name and a call without arguments")
    read = _synchronised(clock, torch.device(device))
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


def _synchronised(clock: Callable[[], float], device: torch.device) -> Callable[[], float]:
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


def sampling_benchmark(
    *,
    vocabs: Sequence[int] = (4096, 32_000, 128_256, 256_000),
    batch: int = 8,
    settings: Mapping[str, Sampler] = SETTINGS,
    schedule: Schedule | None = None,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> pandas.DataFrame:
    """Time `Sampler` against the chained processors of `transformers`: float32, on the CPU.

    One row for each shape of logits, vocabulary and setting; a ratio of 8 means that ours takes an
    eighth of the time. The setting "draw" sets `Sampler.draw` against `torch.multinomial`, with
    which `transformers` draws.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for vocab in vocabs:
        for shape, make in (("peaked", peaked_logits), ("flat", flat_logits)):
            logits = make(batch, vocab, generator=generator)
            about = {"logits": shape, "vocab": vocab, "batch": batch, "dtype": "float32"}
            for setting, arms in _sampling_arms(logits, settings, generator):
                labels = {**about, "setting": setting}
                comparison = compare(arms, schedule=schedule, labels=labels, clock=clock)
                rows.append(_ratio_row(comparison))
    return pandas.DataFrame(rows)


def peaked_logits(
    batch: int, vocab: int, *, generator: torch.Generator
) -> Float[Tensor, "batch vocab"]:
    """Make logits that fall off as a language model's do: Zipf's law with noise, 3 to 5 nats."""
    zipf = -1.3 * torch.arange(1, vocab + 1, dtype=torch.float32).log()
    noisy = zipf + 0.5 * torch.randn(batch, vocab, generator=generator)
    order = torch.rand(batch, vocab, generator=generator).argsort(-1)
    return noisy.gather(-1, order)


def flat_logits(
    batch: int, vocab: int, *, generator: torch.Generator
) -> Float[Tensor, "batch vocab"]:
    """Make logits without a peak, uniform in [0, 1): top-p must keep most of the vocabulary."""
    return torch.rand(batch, vocab, generator=generator)


def transformers_processors(sampler: Sampler) -> "LogitsProcessorList":
    """Chain the processors of `transformers` that do what `sampler` does, in the same order."""
    from transformers.generation import logits_process as library

    chain = library.LogitsProcessorList()
    if sampler.repetition_penalty != 1:
        penalty = float(sampler.repetition_penalty)
        chain.append(library.RepetitionPenaltyLogitsProcessor(penalty))
    if sampler.temperature != 1:
        chain.append(library.TemperatureLogitsWarper(float(sampler.temperature)))
    if sampler.top_k > 0:
        chain.append(library.TopKLogitsWarper(int(sampler.top_k)))
    if sampler.top_p < 1:
        chain.append(library.TopPLogitsWarper(sampler.top_p))
    if sampler.min_p > 0:
        chain.append(library.MinPLogitsWarper(sampler.min_p))
    if sampler.typical_p < 1:
        chain.append(library.TypicalLogitsWarper(sampler.typical_p))
    return chain


def _sampling_arms(
    logits: Float[Tensor, "batch vocab"],
    settings: Mapping[str, Sampler],
    generator: torch.Generator,
) -> Iterator[tuple[str, dict[str, Callable[[], object]]]]:
    prefix = torch.randint(logits.shape[-1], (len(logits), PREFIX_LENGTH), generator=generator)
    for setting, sampler in settings.items():
        chain = transformers_processors(sampler)
        yield setting, _probs_arms(sampler, chain, logits, prefix)
    probs = logits.softmax(-1)
    yield (
        "draw",
        {
            "foredraft": lambda: Sampler().draw(probs, generator=generator),
            "transformers": lambda: torch.multinomial(probs, 1, generator=generator),
        },
    )


def _probs_arms(
    sampler: Sampler,
    chain: "LogitsProcessorList",
    logits: Float[Tensor, "batch vocab"],
    prefix: Int[Tensor, "batch seq"],
) -> dict[str, Callable[[], object]]:
    return {
        "foredraft": lambda: sampler.probs(logits, prefix),
        "transformers": lambda: chain(cast("torch.LongTensor", prefix), logits).softmax(-1),
    }


def _ratio_row(comparison: Comparison) -> dict[str, object]:
    ratio = comparison.ratio("transformers", "foredraft")
    return {
        **comparison.labels,
        **_columns("foredraft_ms", comparison.spread("foredraft")),
        **_columns("transformers_ms", comparison.spread("transformers")),
        **_columns("ratio", ratio),
        "n": ratio.n,
    }


def _columns(name: str, spread: Spread) -> dict[str, float]:
    return {
        f"{name}_median": spread.median,
        f"{name}_min": spread.minimum,
        f"{name}_max": spread.maximum,
        f"{name}_iqr": spread.interquartile,
    }
