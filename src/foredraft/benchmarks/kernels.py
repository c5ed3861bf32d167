"""Time the kernels against torch, eager and compiled, and against the floor of their bytes.

The floor of an operation is the bytes that it must move over the bandwidth at which this very
device copies. Every call takes the next of several input sets, together more than the cache holds,
so that memory is what is measured. Calls are timed one by one, as a program makes them, and as one
CUDA graph over all sets, in which the host's own time does not count.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any, final

import pandas
import torch

from foredraft.benchmarks.timing import Comparison, Schedule, columns, compare, now
from foredraft.kernels import (
    decode_attention,
    gated_linear_unit,
    rms_norm,
    sample_tokens,
    vector_add,
    verify_drafts,
)
from foredraft.types import Tensor

Call = Callable[..., object]
Compiler = Callable[[Call], Call]

OURS, EAGER, COMPILED = "kernel", "eager", "compiled"
"""The arms: the kernel, torch operation by operation, the same under torch.compile."""

WORTH_KEEPING: Mapping[str, float] = {EAGER: 1.3, COMPILED: 1.0}
"""How many times as long the others must take at least for a kernel to be kept."""

NEAR_THE_COPY, LARGE = 0.92, 64_000_000
"""Share of the copy's bandwidth that the addition of so many bytes must reach."""

BATCHES = (1, 8, 32)
"""Rows decoded together."""

CACHES = 3
"""How many times the cache the input sets of a contest are, together."""

MOST_SETS = 4096
"""For operations so small that more would take longer to make than to time."""

COPIED = 512_000_000
"""Bytes that are copied to see how fast the memory is; a quarter of that would do on an H100."""


@final
@dataclass(frozen=True, slots=True)
class Contest:
    """One operation at one size: what moves, how inputs are made, who does it."""

    kernel: str
    shape: str
    dtype: torch.dtype
    bytes_moved: int
    inputs: Callable[[torch.Generator, str], tuple[Tensor, ...]]
    ours: Mapping[str, Call]
    theirs: Call


def kernels_benchmark(
    *,
    device: str = "cuda",
    contests: Sequence[Contest] | None = None,
    schedule: Schedule | None = None,
    clock: Callable[[], float] = now,
    report: Callable[[str], object] = lambda line: None,
) -> pandas.DataFrame:
    """Time every kernel on a CUDA device at the shapes of decoding; a row each, with a verdict.

    `share` is the floor over the time: 1 is as fast as a copy. `ratio_eager` and `ratio_compiled`
    say how many times as long torch takes. `verdict`: whether the kernel is worth keeping by
    WORTH_KEEPING, the addition of LARGE vectors by NEAR_THE_COPY and never below torch's own.

    Raises ValueError for another device than cuda, or if there is none.
    """
    if device != "cuda":
        raise ValueError(
            f"kernels are timed on a CUDA device, not on {device}: interpreted, they take thousands"
            " of times as long as they will; use cuda"
        )
    if not torch.cuda.is_available():
        raise ValueError(
            "this machine has no CUDA device: time kernels where torch.cuda.is_available()"
        )
    bandwidth = copy_bandwidth(device, schedule=schedule, clock=clock)
    report(f"copies at {bandwidth / 1e9:,.0f} GB/s")
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    compiler = partial(torch.compile, dynamic=False)
    rows = []
    for contest in decoding_contests() if contests is None else contests:
        report(f"{contest.kernel}, {contest.shape}, {contest.dtype}")
        torch.compiler.reset()  # which else gives up on a function after some shapes
        sets = input_sets(contest, device, cache)
        for launched, arms in (
            ("one by one", taking_turns(contest, sets, compiler)),
            ("graph", graphs(contest, sets, compiler)),
        ):
            per_call = len(sets) if launched == "graph" else 1
            labels = {"launched": launched, "sets": len(sets)}
            timed = compare(arms, schedule=schedule, device=device, labels=labels, clock=clock)
            rows += judged(contest, timed, bandwidth, per_call=per_call)
    return pandas.DataFrame(rows)


def copy_bandwidth(
    device: str,
    *,
    size: int = COPIED,
    schedule: Schedule | None = None,
    clock: Callable[[], float] = now,
) -> float:
    """Give the bytes a second that a copy within the device's memory reads and writes."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    goal = torch.empty_like(source)
    arms = {"copy": lambda: goal.copy_(source)}
    timed = compare(arms, schedule=schedule, device=device, clock=clock)
    return 2 * size / (timed.spread("copy").median / 1e3)


def input_sets(
    contest: Contest, device: str, cache: int, *, seed: int = 0
) -> list[tuple[Tensor, ...]]:
    """Make as many input sets as overflow a cache of so many bytes CACHES times, two at least."""
    generator = torch.Generator(device).manual_seed(seed)
    first = contest.inputs(generator, device)
    size = sum(each.numel() * each.element_size() for each in first)
    n = min(MOST_SETS, max(2, -(-CACHES * cache // max(1, size))))
    return [first, *(contest.inputs(generator, device) for _ in range(n - 1))]


def taking_turns(
    contest: Contest, sets: Sequence[tuple[Tensor, ...]], compiler: Compiler
) -> dict[str, Callable[[], object]]:
    """Give the arms, each of which takes the next input set at every call."""

    def turning(call: Call) -> Callable[[], object]:
        turns = cycle(sets)
        return lambda: call(*next(turns))

    return {name: turning(call) for name, call in _arms(contest, compiler).items()}


def graphs(
    contest: Contest, sets: Sequence[tuple[Tensor, ...]], compiler: Compiler
) -> dict[str, Callable[[], object]]:
    """Give the arms as CUDA graphs, each of which goes through all input sets at every call."""

    def captured(call: Call) -> Callable[[], object]:
        aside = torch.cuda.Stream()
        with torch.cuda.stream(aside):  # compiles, and allocates what only the first call does
            call(*sets[0])
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for each in sets:
                call(*each)
        return graph.replay

    return {name: captured(call) for name, call in _arms(contest, compiler).items()}


def judged(
    contest: Contest, timed: Comparison, bandwidth: float, *, per_call: int = 1
) -> Iterator[dict[str, object]]:
    """Give a row for each way to run the kernel: its time, its floor, its ratios, the verdict."""
    floor = contest.bytes_moved / bandwidth
    for name in contest.ours:
        seconds = [each / per_call for each in timed.seconds[name]]
        own = Comparison({name: tuple(seconds)}, timed.calls, timed.labels)
        time = own.spread(name)
        floors = Comparison({"floor": (floor,) * len(seconds), **own.seconds}, timed.calls, {})
        share = floors.ratio("floor", name)
        ratios = {each: timed.ratio(each, name) for each in (EAGER, COMPILED)}
        medians = {each: ratio.median for each, ratio in ratios.items()}
        yield {
            "kernel": contest.kernel,
            "way": name,
            "shape": contest.shape,
            "dtype": str(contest.dtype).removeprefix("torch."),
            **timed.labels,
            "bytes": contest.bytes_moved,
            "floor_ms": 1e3 * floor,
            **columns("ms", time),
            **columns("share", share),
            **{k: v for e in ratios for k, v in columns(f"ratio_{e}", ratios[e]).items()},
            "n": time.n,
            "verdict": verdict(contest, share.median, medians),
        }


def verdict(contest: Contest, share: float, ratios: Mapping[str, float]) -> str:
    """Say whether a kernel has won: "keep" or "drop"; "too small to tell" for short additions."""
    if contest.kernel == "vector_add":
        if contest.bytes_moved < LARGE:
            return "too small to tell"
        won = share >= NEAR_THE_COPY and ratios[EAGER] >= 1
    else:
        won = all(ratios[each] >= least for each, least in WORTH_KEEPING.items())
    return "keep" if won else "drop"


def decoding_contests(batches: Sequence[int] = BATCHES) -> list[Contest]:
    """List what is timed: additions from 1 MB to 1 GB, and all else at the shapes of decoding."""
    additions = [
        _addition(n, dtype)
        for n in (2**17, 2**21, 2**25, 2**27)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    return [
        *additions,
        *(
            contest
            for batch in batches
            for contest in (
                _norm(batch, 4096, "llama"),
                _norm(batch, 3584, "gemma"),
                _unit(batch, 14_336, "silu"),
                _unit(batch, 14_336, "gelu_tanh"),
                _attention(batch, 4096, (32, 8, 128), decode_attention.Scores(128**-0.5)),
                _attention(
                    batch, 4096, (16, 8, 256), decode_attention.Scores(224**-0.5, 50.0, 4096)
                ),
                _draw(batch, 128_256, sample_tokens.Filters(0.8, top_k=50)),
                _draw(batch, 256_000, sample_tokens.Filters(0.8, top_p=0.9)),
                _verification(batch, 4, 256_000),
            )
        ),
    ]


def _addition(n: int, dtype: torch.dtype) -> Contest:
    strides = vector_add.Launch(programs=8 * decode_attention.PROCESSORS)
    launches = {OURS: None, "grid-stride": strides}
    launches |= {f"{each.block} × {each.warps}": each for each in vector_add.CANDIDATES}

    def adding(launch: vector_add.Launch | None) -> Call:
        return lambda x, y: vector_add.vector_add(x, y, launch=launch)

    def inputs(generator: torch.Generator, device: str) -> tuple[Tensor, ...]:
        place: dict[str, Any] = {"dtype": dtype, "device": device, "generator": generator}
        return torch.rand(n, **place), torch.rand(n, **place)

    ways = {name: adding(launch) for name, launch in launches.items()}
    moved = vector_add.bytes_moved(n, dtype)
    return Contest("vector_add", f"{n}", dtype, moved, inputs, ways, lambda x, y: x + y)


def _norm(batch: int, hidden: int, form: str) -> Contest:
    dtype = torch.bfloat16

    def inputs(generator: torch.Generator, device: str) -> tuple[Tensor, ...]:
        place: dict[str, Any] = {"dtype": dtype, "device": device, "generator": generator}
        rows = (batch, hidden)
        return torch.randn(rows, **place), torch.randn(rows, **place), torch.rand(hidden, **place)

    def ours(x: Tensor, residual: Tensor, weight: Tensor) -> object:
        return rms_norm.add_rms_norm(x, residual, weight, eps=1e-6, form=form)

    def theirs(x: Tensor, residual: Tensor, weight: Tensor) -> object:
        normed = rms_norm.reference(x, residual, weight, eps=1e-6, form=form)
        return normed.summed, normed.normed

    moved = rms_norm.bytes_moved(batch, hidden, dtype)
    shape = f"{batch} × {hidden}, {form}"
    return Contest("rms_norm", shape, dtype, moved, inputs, {OURS: ours}, theirs)


def _unit(batch: int, inner: int, activation: str) -> Contest:
    dtype = torch.bfloat16

    def inputs(generator: torch.Generator, device: str) -> tuple[Tensor, ...]:
        place: dict[str, Any] = {"dtype": dtype, "device": device, "generator": generator}
        return tuple(torch.randn((batch, 2 * inner), **place).chunk(2, -1))

    def ours(gate: Tensor, up: Tensor) -> object:
        return gated_linear_unit.gated_linear_unit(gate, up, activation=activation)

    def theirs(gate: Tensor, up: Tensor) -> object:
        return gated_linear_unit.reference(gate, up, activation=activation)

    moved = gated_linear_unit.bytes_moved(batch, inner, dtype)
    shape = f"{batch} × {inner}, {activation}"
    return Contest("gated_linear_unit", shape, dtype, moved, inputs, {OURS: ours}, theirs)


def _attention(
    batch: int, seen: int, heads: tuple[int, int, int], scores: decode_attention.Scores
) -> Contest:
    dtype = torch.bfloat16
    n_heads, kv_heads, head_dim = heads

    def inputs(generator: torch.Generator, device: str) -> tuple[Tensor, ...]:
        place: dict[str, Any] = {"dtype": dtype, "device": device, "generator": generator}
        stored = (batch, kv_heads, seen, head_dim)
        return (
            torch.randn((batch, n_heads, head_dim), **place),
            torch.randn(stored, **place),
            torch.randn(stored, **place),
            torch.full((batch,), seen, dtype=torch.int64, device=device),
        )

    def ours(query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> object:
        return decode_attention.decode_attention(query, keys, values, lengths, scores)

    def theirs(query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> object:
        return decode_attention.reference(query, keys, values, lengths, scores)

    moved = decode_attention.bytes_moved((seen,) * batch, *heads, dtype)
    capped = ", soft-capped" if scores.softcap else ""
    shape = f"{batch} × {seen}, {n_heads} heads on {kv_heads} of {head_dim}{capped}"
    return Contest("decode_attention", shape, dtype, moved, inputs, {OURS: ours}, theirs)


def _draw(batch: int, vocab: int, filters: sample_tokens.Filters) -> Contest:
    dtype = torch.float32

    def inputs(generator: torch.Generator, device: str) -> tuple[Tensor, ...]:
        place: dict[str, Any] = {"device": device, "generator": generator}
        logits = 3 * torch.randn((batch, vocab), dtype=dtype, **place)
        return logits, torch.rand((batch, 1), dtype=torch.float64, **place)

    def ours(logits: Tensor, uniforms: Tensor) -> object:
        return sample_tokens.pick_tokens(logits, filters, uniforms)

    def theirs(logits: Tensor, uniforms: Tensor) -> object:
        return sample_tokens.reference(logits, filters, uniforms)

    moved = sample_tokens.bytes_moved(batch, vocab, dtype)
    named = f"top-k {filters.top_k}" if filters.top_k else f"top-p {filters.top_p}"
    shape = f"{batch} × {vocab}, {named}"
    return Contest("sample_tokens", shape, dtype, moved, inputs, {OURS: ours}, theirs)


def _verification(batch: int, drafted: int, vocab: int) -> Contest:
    def inputs(generator: torch.Generator, device: str) -> tuple[Tensor, ...]:
        place: dict[str, Any] = {"device": device, "generator": generator}
        laws = [torch.randn((batch, n, vocab), **place).softmax(-1) for n in (drafted, drafted + 1)]
        coins = torch.rand((batch, drafted), dtype=torch.float64, **place)
        shares = torch.rand(batch, dtype=torch.float64, **place)
        lengths = torch.full((batch,), drafted, dtype=torch.int64, device=device)
        return laws[0].argmax(-1), *laws, lengths, coins, shares

    def theirs(*tensors: Tensor) -> object:
        verified = verify_drafts.reference(*tensors)
        return verified.n_accepted, verified.token

    moved = verify_drafts.bytes_moved(batch, vocab)
    shape = f"{batch} × {drafted} drafted of {vocab}"
    ours = {OURS: verify_drafts.settle_drafts}
    return Contest("verify_drafts", shape, torch.float32, moved, inputs, ours, theirs)


def _arms(contest: Contest, compiler: Compiler) -> dict[str, Call]:
    return {**contest.ours, EAGER: contest.theirs, COMPILED: compiler(contest.theirs)}
