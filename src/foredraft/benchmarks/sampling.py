"""Time the sampler against the processors of `transformers`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import pandas
import torch

from foredraft.benchmarks.timing import Comparison, Schedule, columns, compare, now
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


def sampling_benchmark(
    *,
    vocabs: Sequence[int] = (4096, 32_000, 128_256, 256_000),
    batch: int = 8,
    settings: Mapping[str, Sampler] = SETTINGS,
    schedule: Schedule | None = None,
    seed: int = 0,
    clock: Callable[[], float] = now,
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
        **columns("foredraft_ms", comparison.spread("foredraft")),
        **columns("transformers_ms", comparison.spread("transformers")),
        **columns("ratio", ratio),
        "n": ratio.n,
    }
