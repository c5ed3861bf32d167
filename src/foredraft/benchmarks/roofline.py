"""Time what the memory allows, and how near a decoder comes to it.

One token of a batch of one reads every weight once, so a forward pass can run as fast as a matrix
times a vector reads its matrix. Two such products are timed: one in the model's own precision, what
the library offers for the same work, and one in float32, which has the least to do for a byte. The
faster of them in each round stands for the memory: no more than the most that was seen, which a
better kernel may pass. A pass of a few tokens reads the same bytes, which is what speculation lives
on. All arms of a model are timed in alternation, both products among them, so that a share is a
ratio of neighbours in time.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import pandas
import torch
import torch.nn.functional as F

from foredraft.benchmarks.ratios import value_of
from foredraft.benchmarks.timing import Comparison, Schedule, Spread, columns, compare, now
from foredraft.models.config import DecoderConfig
from foredraft.models.decoder import Decoder
from foredraft.models.loading import load
from foredraft.models.packing import can_pack, packed_linear
from foredraft.models.skip import Parts
from foredraft.types import Tensor

LLAMA_120M = DecoderConfig(
    architecture="llama",
    vocab_size=8192,
    hidden_size=768,
    intermediate_size=2048,
    n_layers=16,
    n_heads=12,
    n_kv_heads=12,
    head_dim=64,
    max_positions=4096,
    windows=(None,) * 16,
    tied=True,
)
"""A Llama of 120 million parameters, to be drawn at random: 240 MB, more than most caches hold."""

SCHEDULE = Schedule(repeats=7, warmup=1, sample_seconds=0.02)

DTYPES = (torch.float32, torch.bfloat16)
POCKET, RANDOM = "pocket-llama", "120M"
WIDE = torch.float32
"""In which a product has the least to do for a byte."""

N_PRODUCTS = 2
"""How many arms stand before the passes of a model: products in its own precision and in `WIDE`."""

COPY, GEMV, MATRIX, FORWARD = "copy", "matrix × vector", "matrix × matrix", "forward"


@final
@dataclass(frozen=True, slots=True)
class Sizes:
    """What is timed: bytes more than caches hold, the side of a square, tokens and contexts."""

    megabytes: int = 1024
    side: int = 1024
    new_tokens: Sequence[int] = (1, 2, 4, 8, 16)
    compiled_tokens: Sequence[int] = (1, 4, 16)
    contexts: Sequence[int] = (100, 500, 2000)
    schedule: Schedule = SCHEDULE


LARGE = Sizes(side=8192)
"""For a GPU."""


@final
@dataclass(frozen=True, slots=True)
class Work:
    """One arm: what it is called in the table, bytes that it must read or write, its operations."""

    about: Mapping[str, object]
    run: Callable[[], object]
    megabytes: float | int
    gigaflops: float = float("nan")


def roofline_benchmark(
    models: Mapping[str, Decoder] | None = None,
    *,
    device: str = "cpu",
    sizes: Sizes | None = None,
    report: Callable[[str], None] = lambda told: None,
    clock: Callable[[], float] = now,
) -> pandas.DataFrame:
    """Time copies, matrix products and forward passes; a row each.

    `product_share` is the rate at which a pass reads weights, keys and values, ÷ that of a matrix
    times a vector in the same precision; `memory_share` the same ÷ the faster one of that and a
    product in float32. Both may be more than one: where a cache holds a part of the model, or a
    kernel reads faster than either product. `growth` is the time of a pass ÷ that of one token
    behind the least context. `models` None: `pocket-llama` and a random Llama of 120 million
    parameters, each in bf16, eager and compiled.
    """
    sizes = sizes or (Sizes() if device == "cpu" else LARGE)
    report("copies and matrix products")
    arms = [work for dtype in DTYPES for work in _machine(dtype, device, sizes)]
    rows = _rows(arms, _timed(arms, device, sizes, clock))
    for name, decoder in (models or pocket_and_random(device)).items():
        passes = _passes(name, decoder, sizes)
        report(f"{name}: {len(passes)} forward passes")
        products = [_gemv(dtype, device, sizes, model=name) for dtype in (decoder.dtype, WIDE)]
        arms = [*products, *passes]
        rows += _rows(arms, _timed(arms, device, sizes, clock))
    return pandas.DataFrame(rows)


def asked(table: pandas.DataFrame) -> pandas.DataFrame:
    """Give the ratios that a reader asks for: shares of the pace, growth with the context."""
    lines: list[dict[str, object]] = []
    for model, passes in table.loc[table["what"] == FORWARD].groupby("model", sort=False):
        single = passes.loc[passes["new_tokens"] == 1]
        near, far = single.iloc[0], single.iloc[-1]
        many = passes.loc[passes["new_tokens"] == passes["new_tokens"].max()].iloc[0]
        told = {
            "share of matrix × vector": (near, "product_share"),
            "share of the memory": (near, "memory_share"),
            f"context {far['context']:.0f} ÷ {near['context']:.0f}": (far, "growth"),
        }
        if many["new_tokens"] > 1:
            told[f"{many['new_tokens']:.0f} tokens ÷ 1"] = (many, "growth")
        lines += [
            {"ratio": ratio, "of": model, **value_of(row, name)}
            for ratio, (row, name) in told.items()
        ]
    return pandas.DataFrame(lines)


def pocket_and_random(
    device: str, compiled: Iterable[str] = (POCKET, RANDOM)
) -> dict[str, Decoder]:
    """Load `pocket-llama` and draw a Llama of 120 million parameters, in bf16; compile some."""
    pocket, _ = load(POCKET, device=device, dtype=torch.bfloat16)
    found = {POCKET: pocket, RANDOM: drawn(LLAMA_120M, device)}
    twins = {f"{name}, compiled": found[name].unpacked().compile_steps() for name in compiled}
    return {**found, **twins}


def drawn(
    config: DecoderConfig, device: torch.device | str, dtype: torch.dtype = torch.bfloat16
) -> Decoder:
    """Make a decoder with random weights, laid out as a loaded one is."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = {name: each.shape for name, each in Decoder.without_weights(config).named_parameters()}
    weights = {
        name: torch.randn(shape, generator=generator, device=device)
        .mul_(config.initializer_range)
        .add_(len(shape) == 1)
        .to(dtype)
        for name, shape in shapes.items()
    }
    return Decoder.from_tensors(config, weights).pack()


def bytes_per_token(decoder: Decoder, context: int) -> int:
    """Count what one more token must read: weights once, and the keys and values that it sees."""
    config, width = decoder.config, decoder.dtype.itemsize
    seen = sum(min(context, window or context) for window in config.windows)
    return width * (Parts.of(config).total(config.n_layers) + 2 * seen * config.kv_size)


def forward_pass(name: str, decoder: Decoder, n_new: int, context: int) -> Work:
    """Prepare a pass of some tokens behind a context, of zeros: how long it takes is the same."""
    cache = decoder.new_cache(1, context + n_new)
    cache.commit(context)
    tokens = torch.ones(1, n_new, dtype=torch.int64, device=decoder.device)

    def run() -> Tensor:
        with torch.inference_mode():
            return decoder(tokens, cache)

    about = {"what": FORWARD, "model": name, "dtype": str(decoder.dtype).removeprefix("torch.")}
    about |= {"compiled": decoder.steps is not None, "context": context, "new_tokens": n_new}
    return Work(about, run, bytes_per_token(decoder, context) / 1e6)


def _machine(dtype: torch.dtype, device: str, sizes: Sizes) -> list[Work]:
    """A copy, a matrix times a vector, and a square matrix times another."""
    numbers = torch.ones(sizes.megabytes * 10**6 // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(numbers)
    square = torch.ones(sizes.side, sizes.side, dtype=dtype, device=device)
    name = str(dtype).removeprefix("torch.")
    return [
        Work({"what": COPY, "dtype": name}, lambda: target.copy_(numbers), 2 * sizes.megabytes),
        _gemv(dtype, device, sizes),
        Work(
            {"what": MATRIX, "dtype": name},
            lambda: square @ square,
            3 * square.nbytes / 1e6,
            2 * sizes.side**3 / 1e9,
        ),
    ]


def _gemv(dtype: torch.dtype, device: str, sizes: Sizes, **about: object) -> Work:
    """A matrix of many bytes times one row, the matrix laid out as a decoder's are."""
    columns_ = 4096
    rows = sizes.megabytes * 10**6 // (columns_ * dtype.itemsize)
    weight = torch.ones(rows, columns_, dtype=dtype, device=device)
    row = torch.ones(1, columns_, dtype=dtype, device=device)
    run = _product(weight, row)
    about = {"what": GEMV, **about, "dtype": str(dtype).removeprefix("torch."), "new_tokens": 1}
    return Work(about, run, weight.nbytes / 1e6, 2 * weight.numel() / 1e9)


def _product(weight: Tensor, row: Tensor) -> Callable[[], object]:
    if can_pack(weight):
        linear = packed_linear(weight)
        return lambda: linear(row)
    return lambda: F.linear(row, weight)


def _passes(name: str, decoder: Decoder, sizes: Sizes) -> list[Work]:
    """Forward passes of each number of tokens behind each context, one token first."""
    return [
        forward_pass(name, decoder, n_new, context)
        for n_new in (sizes.new_tokens if decoder.steps is None else sizes.compiled_tokens)
        for context in sizes.contexts
        if context + n_new <= decoder.config.max_positions
    ]


def _timed(
    arms: Sequence[Work], device: str, sizes: Sizes, clock: Callable[[], float]
) -> Comparison:
    runs = {str(place): work.run for place, work in enumerate(arms)}
    return compare(runs, schedule=sizes.schedule, device=device, clock=clock)


def _rows(arms: Sequence[Work], timed: Comparison) -> list[dict[str, object]]:
    """Lay out one row an arm, passes beside both products and the first pass of their model."""
    rates = [
        [work.megabytes / 1e3 / seconds for seconds in timed.seconds[str(place)]]
        for place, work in enumerate(arms)
    ]
    roofs = {
        "product_share": rates[0],
        "memory_share": [max(both) for both in zip(*rates[:N_PRODUCTS], strict=True)],
    }
    rows = []
    for place, work in enumerate(arms):
        rows.append(
            {
                **work.about,
                "batch": 1,
                "megabytes": work.megabytes,
                **columns("gigabytes_per_second", Spread.of(rates[place])),
                **columns("gigaflops_per_second", _flops(timed, place, work.gigaflops)),
                **columns("ms", timed.spread(str(place))),
                "n": timed.spread(str(place)).n,
                **timed.labels,
            }
        )
        if work.about["what"] == FORWARD:
            for name, roof in roofs.items():
                pairs = zip(rates[place], roof, strict=True)
                rows[-1] |= columns(name, Spread.of([rate / most for rate, most in pairs]))
            rows[-1] |= columns("growth", timed.ratio(str(place), str(N_PRODUCTS)))
    return rows


def _flops(timed: Comparison, place: int, amount: float) -> Spread:
    """Say how many operations a second an arm reached, call by call."""
    return Spread.of([amount / seconds for seconds in timed.seconds[str(place)]])
