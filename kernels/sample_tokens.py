"""Draw tokens from logits through temperature, top-k, top-p and min-p, without sorting a row.

The law is that of `foredraft.Sampler`: top-k keeps ties with its last one, top-p takes the lowest
ids of equal scores first, min-p compares with the likeliest token. What top-k and top-p keep is all
from some score up, and that score is found digit by digit: float32 values are numbered in their
order, 32 bits, and each of eight passes settles four, by tallying how many tokens (top-k), or how
much mass (top-p), lie at or above each of 16 numbers. Rows are cut into chunks, so that a single
one keeps many processors busy. A pass reads the row once, from the cache after the first, and
writes next to nothing; a sort of 256,000 numbers moves them many times.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final, no_type_check

import torch

from foredraft.kernels.environment import (
    ceil_div,
    device_function,
    power_of_two,
    require_runnable,
    tl,
    triton,
)
from foredraft.kernels.inversion import WARPS, chunk_of, first_above, value_at
from foredraft.kernels.specimen import POINTERS, Specimen
from foredraft.types import Float, Int, Tensor

TYPES = (torch.float32, torch.float16, torch.bfloat16)
"""The element types of logits."""

DIGIT = tl.constexpr(4)
"""Bits of a score's number that a pass settles."""

DIGITS = tl.constexpr(16)
"""Values of a digit."""

TALLIED = tl.constexpr(256)
"""Tokens that are compared with the 16 numbers at a time."""

PASSES = 8
"""To settle 32 bits."""

NOTHING, COUNTS, MASSES = 0, 1, 2
"""What was tallied in the pass before."""


@final
@dataclass(frozen=True, slots=True)
class Filters:
    """What is done to logits before the draw; the defaults of all but temperature are off."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        for name, value, allowed, bound in (
            ("temperature", self.temperature, 0 <= self.temperature < math.inf, "finite, from 0"),
            ("top_k", self.top_k, self.top_k >= 0, "from 0, which switches it off"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "in (0, 1]; 1 switches it off"),
            ("min_p", self.min_p, 0 <= self.min_p < 1, "in [0, 1); 0 switches it off"),
        ):
            if not allowed:
                raise ValueError(f"{name} is {value}; it must be {bound}")


@device_function
@no_type_check
def numbered(scores):
    """Number float32 values in their order, from 0 to 2³² − 1, less 2³¹; both zeros alike."""
    bits = tl.where(scores == 0, 0.0, scores).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@device_function
@no_type_check
def scores_of(logits_ptr, stride, row, place, vocab, temperature):
    """Load logits over temperature; −∞ behind the end of the row."""
    logits = tl.load(logits_ptr + row * stride + place, mask=place < vocab, other=float("-inf"))
    return tl.div_rn(logits.to(tl.float32), temperature)


@device_function
@no_type_check
def peak_of(peaks_ptr, row, chunks, CHUNKS: tl.constexpr):
    """Give a row's highest score: NaN if a score is NaN or +∞, or none is above −∞."""
    chunk = tl.arange(0, CHUNKS)
    peaks = tl.load(peaks_ptr + row * chunks + chunk, mask=chunk < chunks, other=float("-inf"))
    is_bad = tl.max(((peaks != peaks) | (peaks == float("inf"))).to(tl.int32), axis=0)
    peak = tl.max(tl.where(peaks == peaks, peaks, float("-inf")), axis=0)
    return tl.where((is_bad > 0) | (peak == float("-inf")), float("nan"), peak)


@device_function
@no_type_check
def settled(
    tallies_ptr, prefix, target, shift, row, chunks, WHAT: tl.constexpr, CHUNKS: tl.constexpr
):
    """Choose the highest digit at or above which the target is reached; give its mass as well."""
    chunk = tl.arange(0, CHUNKS)
    digit = tl.arange(0, DIGITS)
    there = (chunk < chunks)[:, None] & (digit < DIGITS)[None, :]
    at = (row * chunks + chunk)[:, None] * (2 * DIGITS) + digit[None, :]
    masses = tl.sum(tl.load(tallies_ptr + DIGITS + at, there, other=0.0).to(tl.float64), axis=0)
    reached = masses
    if WHAT == 1:
        reached = tl.sum(tl.load(tallies_ptr + at, there, other=0.0).to(tl.float64), axis=0)
    best = tl.max(tl.where(reached >= target, digit, 0), axis=0)
    return prefix + (best.to(tl.int64) << shift), value_at(masses, digit, best)


@triton.jit
@no_type_check
def find_peaks(
    logits_ptr,
    stride,
    peaks_ptr,
    sums_ptr,
    vocab,
    chunks,
    temperature,
    CHUNK: tl.constexpr,
):
    """Find the highest score of a chunk, and the sum of the exponentials less it."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    place = chunk * CHUNK + tl.arange(0, CHUNK)
    scores = scores_of(logits_ptr, stride, row, place, vocab, temperature)
    peak = tl.max(scores, axis=0)
    is_bad = tl.max((scores != scores).to(tl.int32), axis=0)
    base = tl.where(peak == float("-inf"), 0.0, peak)
    tl.store(peaks_ptr + row * chunks + chunk, tl.where(is_bad > 0, float("nan"), peak))
    tl.store(sums_ptr + row * chunks + chunk, tl.sum(tl.exp(scores - base), axis=0))


@triton.jit
@no_type_check
def tally(
    logits_ptr,
    stride,
    peaks_ptr,
    sums_ptr,
    before_ptr,
    tallies_ptr,
    prefix_before_ptr,
    prefix_ptr,
    wholes_ptr,
    vocab,
    chunks,
    temperature,
    top_k,
    top_p,
    shift,
    BEFORE: tl.constexpr,
    OPENS_MASSES: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Settle the digit of the pass before; tally a chunk for the next one."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    peak = peak_of(peaks_ptr, row, chunks, CHUNKS)
    prefix = tl.zeros([], tl.int64)
    mass = tl.zeros([], tl.float64)
    if BEFORE != 0:
        prefix = tl.load(prefix_before_ptr + row)
        target = top_k.to(tl.float64)
        if BEFORE == 2:
            target = top_p * tl.load(wholes_ptr + row)
        prefix, mass = settled(
            before_ptr, prefix, target, shift + DIGIT, row, chunks, BEFORE, CHUNKS
        )
    if OPENS_MASSES:  # the search starts again, for a share of what top-k keeps
        if BEFORE == 0:
            each = tl.arange(0, CHUNKS)
            there = each < chunks
            at = row * chunks + each
            highest = tl.load(peaks_ptr + at, there, other=float("-inf"))
            sums = tl.load(sums_ptr + at, there, other=0.0)
            mass = tl.sum((sums * tl.exp(highest - peak)).to(tl.float64), axis=0)
        prefix = tl.zeros([], tl.int64)
        if chunk == 0:
            tl.store(wholes_ptr + row, mass)
    if chunk == 0:
        tl.store(prefix_ptr + row, prefix)

    digit = tl.arange(0, DIGITS)
    bounds = (prefix + (digit.to(tl.int64) << shift) - 2147483648).to(tl.int32)
    counts = tl.zeros([DIGITS], tl.float32)
    masses = tl.zeros([DIGITS], tl.float32)
    for start in range(0, CHUNK, TALLIED):
        place = chunk * CHUNK + start + tl.arange(0, TALLIED)
        scores = scores_of(logits_ptr, stride, row, place, vocab, temperature)
        above = (numbered(scores)[None, :] >= bounds[:, None]) & (place < vocab)[None, :]
        counts += tl.sum(above.to(tl.float32), axis=1)
        masses += tl.sum(tl.where(above, tl.exp(scores - peak)[None, :], 0.0), axis=1)
    at = (row * chunks + chunk) * (2 * DIGITS) + digit
    tl.store(tallies_ptr + at, counts)
    tl.store(tallies_ptr + DIGITS + at, masses)


@triton.jit
@no_type_check
def weigh(
    logits_ptr,
    stride,
    peaks_ptr,
    before_ptr,
    prefix_before_ptr,
    wholes_ptr,
    cuts_ptr,
    above_ptr,
    ties_ptr,
    vocab,
    chunks,
    temperature,
    top_k,
    top_p,
    min_p,
    BEFORE: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Settle the last digit, which makes the cut; sum what a chunk has above it, count its ties."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    peak = peak_of(peaks_ptr, row, chunks, CHUNKS)
    cut = tl.full([], -1, tl.int64)
    if BEFORE != 0:
        prefix = tl.load(prefix_before_ptr + row)
        target = top_k.to(tl.float64)
        if BEFORE == 2:
            target = top_p * tl.load(wholes_ptr + row)
        cut, _ = settled(before_ptr, prefix, target, 0, row, chunks, BEFORE, CHUNKS)
    if chunk == 0:
        tl.store(cuts_ptr + row, cut)
    place = chunk * CHUNK + tl.arange(0, CHUNK)
    scores = scores_of(logits_ptr, stride, row, place, vocab, temperature)
    number = numbered(scores).to(tl.int64) + 2147483648
    weights = tl.exp(scores - peak)
    kept = (weights >= min_p) & (place < vocab)
    above = tl.sum(tl.where(kept & (number > cut), weights, 0.0), axis=0)
    ties = tl.sum((kept & (number == cut)).to(tl.int32), axis=0)
    tl.store(above_ptr + row * chunks + chunk, above)
    tl.store(ties_ptr + row * chunks + chunk, ties)


@triton.jit
@no_type_check
def draw(
    logits_ptr,
    stride,
    peaks_ptr,
    wholes_ptr,
    cuts_ptr,
    above_ptr,
    ties_ptr,
    uniforms_ptr,
    tokens_ptr,
    vocab,
    chunks,
    draws,
    temperature,
    top_p,
    min_p,
    BY_MASS: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Draw one token of one row: a chunk by its mass, then a token within it."""
    row = tl.program_id(0).to(tl.int64)
    peak = peak_of(peaks_ptr, row, chunks, CHUNKS)
    each = tl.arange(0, CHUNKS)
    there = each < chunks
    above = tl.load(above_ptr + row * chunks + each, there, other=0.0).to(tl.float64)
    ties = tl.load(ties_ptr + row * chunks + each, there, other=0)
    cut = tl.load(cuts_ptr + row)
    signed = (cut - 2147483648).to(tl.int32)
    tied_score = (signed ^ ((signed >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    tied = tl.where(cut < 0, 0.0, tl.exp(tied_score - peak)).to(tl.float64)
    n_tied = tl.sum(ties, axis=0)
    if BY_MASS:  # as many of the equal ones as it takes to reach top-p, one at least
        short = top_p * tl.load(wholes_ptr + row) - tl.sum(above, axis=0)
        needed = tl.ceil(short / tl.where(tied > 0, tied, 1.0))
        n_tied = tl.minimum(tl.maximum(needed, 1.0), n_tied.to(tl.float64)).to(tl.int32)
    ties_before = tl.cumsum(ties, 0) - ties
    tied_here = tl.minimum(tl.maximum(n_tied - ties_before, 0), ties)
    masses = above + tied_here.to(tl.float64) * tied
    number = row * draws + tl.program_id(1)
    level = tl.load(uniforms_ptr + number) * tl.sum(masses, axis=0)
    chunk = first_above(masses, level, each)
    level -= tl.sum(tl.where(each < chunk, masses, 0.0), axis=0)

    place = tl.maximum(chunk, 0) * CHUNK + tl.arange(0, CHUNK)
    scores = scores_of(logits_ptr, stride, row, place, vocab, temperature)
    order = numbered(scores).to(tl.int64) + 2147483648
    weights = tl.exp(scores - peak)
    kept = (weights >= min_p) & (place < vocab)
    is_tied = kept & (order == cut)
    rank = tl.cumsum(is_tied.to(tl.int32), 0) + value_at(ties_before, each, chunk)
    kept = kept & ((order > cut) | (is_tied & (rank <= n_tied)))
    token = first_above(tl.where(kept, weights, 0.0), level, place)
    tl.store(tokens_ptr + number, tl.where(peak == peak, token, -1))


def sample_tokens(
    logits: Float[Tensor, "batch vocab"], filters: Filters, *, generator: torch.Generator
) -> Int[Tensor, " batch"]:
    """Draw one token for each row; temperature 0 takes the highest logit, the lowest id on ties.

    A row with NaN or +∞, or nothing above −∞, is refused with ValueError on the CPU; elsewhere,
    where nothing waits, it gives the token −1.
    """
    place = {"dtype": torch.float64, "device": logits.device}
    uniforms = torch.rand((len(logits), 1), **place, generator=generator)
    return pick_tokens(logits, filters, uniforms).squeeze(1)


def pick_tokens(
    logits: Float[Tensor, "batch vocab"],
    filters: Filters,
    uniforms: Float[Tensor, "rows draws"],
) -> Int[Tensor, "batch draws"]:
    """Find the tokens at the shares `uniforms`, in [0, 1), of each row's cumulated probability.

    Raises ValueError as `sample_tokens` does, and for shapes or types that do not fit.
    """
    _require_fitting(logits, uniforms)
    require_runnable(tally, logits=logits, uniforms=uniforms)
    batch, vocab = logits.shape
    tokens = torch.empty(uniforms.shape, dtype=torch.int64, device=logits.device)
    if tokens.numel() == 0:
        return tokens
    if filters.temperature == 0:
        return tokens.copy_(logits.argmax(-1, keepdim=True).expand_as(tokens))
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    work = _Workspace.allocated(logits, filters)
    logits_and_stride = (logits, logits.stride(0))
    sizes = (vocab, work.chunks, float(filters.temperature))
    grid = (batch, work.chunks)
    chunk: dict[str, Any] = {"CHUNK": work.chunk, "num_warps": WARPS}
    both = {**chunk, "CHUNKS": power_of_two(work.chunks)}
    find_peaks[grid](*logits_and_stride, work.peaks, work.sums, *sizes, **chunk)
    for i, (what, shift) in enumerate(work.passes):
        before = work.passes[i - 1][0] if i else NOTHING
        tally[grid](
            *(*logits_and_stride, work.peaks, work.sums),
            *(work.tallies[i - 1], work.tallies[i], work.prefixes[i - 1], work.prefixes[i]),
            *(work.wholes, *sizes, work.top_k, filters.top_p, shift),
            BEFORE=before,
            OPENS_MASSES=what == MASSES and before != MASSES,
            **both,
        )
    last = work.passes[-1][0] if work.passes else NOTHING
    weigh[grid](
        *(*logits_and_stride, work.peaks, work.tallies[-1], work.prefixes[-1], work.wholes),
        *(work.cuts, work.above, work.ties, *sizes, work.top_k, filters.top_p, filters.min_p),
        BEFORE=last,
        **both,
    )
    draw[(batch, uniforms.shape[1])](
        *(*logits_and_stride, work.peaks, work.wholes, work.cuts, work.above, work.ties),
        *(uniforms.contiguous(), tokens, *sizes[:2], uniforms.shape[1], sizes[2]),
        *(filters.top_p, filters.min_p),
        BY_MASS=last == MASSES,
        **both,
    )
    return tokens


def reference(
    logits: Float[Tensor, "batch vocab"],
    filters: Filters,
    uniforms: Float[Tensor, "rows draws"],
) -> Int[Tensor, "batch draws"]:
    """Do the same in torch, with a full sort."""
    _require_fitting(logits, uniforms)
    if filters.temperature == 0:
        return logits.argmax(-1, keepdim=True).expand(uniforms.shape).contiguous()
    scores = logits.float() / filters.temperature
    ordered, ids = scores.sort(dim=-1, descending=True, stable=True)
    if 0 < filters.top_k < ordered.shape[-1]:
        last = ordered[:, filters.top_k - 1, None]
        ordered = ordered.masked_fill(ordered < last, -torch.inf)
    probs = ordered.double().softmax(-1)
    if filters.top_p < 1:
        probs = probs.masked_fill(probs.cumsum(-1) - probs >= filters.top_p, 0.0)
    probs = probs.masked_fill(probs < filters.min_p * probs[:, :1], 0.0)
    cumulated = torch.zeros_like(probs).scatter(-1, ids, probs).cumsum(-1)
    level = uniforms * cumulated[:, -1:]
    return torch.searchsorted(cumulated, level, right=True).clamp(max=logits.shape[-1] - 1)


def bytes_moved(batch: int, vocab: int, dtype: torch.dtype) -> int:
    """Count the bytes that must move: the logits, once. What passes reread should be in a cache."""
    return batch * vocab * dtype.itemsize


def n_passes(filters: Filters) -> int:
    """Count how often the logits are read: for the peak, for each digit, to weigh, to draw."""
    return 3 + PASSES * ((filters.top_k > 0) + (filters.top_p < 1))


@final
@dataclass(frozen=True, slots=True)
class _Workspace:
    """What the passes leave for each other; of each pass, what it tallies and from which bit."""

    chunk: int
    chunks: int
    top_k: int
    passes: tuple[tuple[int, int], ...]
    peaks: Tensor
    sums: Tensor
    tallies: Tensor
    prefixes: Tensor
    wholes: Tensor
    cuts: Tensor
    above: Tensor
    ties: Tensor

    @classmethod
    def allocated(cls, logits: Tensor, filters: Filters) -> "_Workspace":
        """Allocate for rows of logits; nothing is filled in."""
        batch, vocab = logits.shape
        chunk = chunk_of(vocab)
        chunks = ceil_div(vocab, chunk)
        shifts = [DIGIT.value * (PASSES - 1 - i) for i in range(PASSES)]
        by_count = [(COUNTS, shift) for shift in shifts] if 0 < filters.top_k < vocab else []
        by_mass = [(MASSES, shift) for shift in shifts] if filters.top_p < 1 else []
        passes = (*by_count, *by_mass)
        n, device = max(1, len(passes)), logits.device
        peaks, sums, above = torch.empty((3, batch, chunks), device=device)
        return cls(
            chunk,
            chunks,
            filters.top_k,
            passes,
            peaks,
            sums,
            torch.empty((n, batch, chunks, 2, DIGITS.value), device=device),
            torch.empty((n, batch), dtype=torch.int64, device=device),
            torch.empty(batch, dtype=torch.float64, device=device),
            torch.empty(batch, dtype=torch.int64, device=device),
            above,
            torch.empty((batch, chunks), dtype=torch.int32, device=device),
        )


def specimens(
    *, dtype: torch.dtype = torch.float32, vocab: int = 256_000
) -> Mapping[str, Specimen]:
    """Give the kernels as they would be compiled for rows of this length."""
    chunk = chunk_of(vocab)
    both = {"CHUNK": chunk, "CHUNKS": power_of_two(ceil_div(vocab, chunk))}
    types = {
        "logits_ptr": POINTERS[dtype],
        **dict.fromkeys(("stride", "vocab", "chunks", "draws", "top_k", "shift"), "i32"),
        **dict.fromkeys(("temperature", "top_p", "min_p"), "fp32"),
        **dict.fromkeys(("prefix_before_ptr", "prefix_ptr", "cuts_ptr", "tokens_ptr"), "*i64"),
        **dict.fromkeys(("wholes_ptr", "uniforms_ptr"), "*fp64"),
        "ties_ptr": "*i32",
    }
    constants = {
        find_peaks: {"CHUNK": chunk},
        tally: {**both, "BEFORE": MASSES, "OPENS_MASSES": False},
        weigh: {**both, "BEFORE": MASSES},
        draw: {**both, "BY_MASS": True},
    }
    found = {}
    for kernel, known in constants.items():
        names = [name for name in kernel.arg_names if name not in known]
        signature = {name: types.get(name, "*fp32") for name in names}
        aligned = (*(name for name in names if name.endswith("_ptr")), "stride", "vocab")
        specimen = Specimen(kernel, signature, known, aligned, WARPS)
        found[f"sample_tokens {kernel.__name__}"] = specimen
    return found


def _require_fitting(logits: Tensor, uniforms: Tensor) -> None:
    if logits.dim() != 2 or uniforms.dim() != 2 or len(logits) != len(uniforms):
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}, uniforms {tuple(uniforms.shape)}; they must "
            "be [batch vocab] and [batch draws]"
        )
    if logits.dtype not in TYPES or uniforms.dtype != torch.float64:
        raise ValueError(
            f"logits are {logits.dtype}, uniforms {uniforms.dtype}; logits must be one of "
            f"{', '.join(map(str, TYPES))}, uniforms float64"
        )
    chunk_of(logits.shape[1])
    if logits.is_cpu and logits.numel():
        peak = logits.amax(-1)
        if not bool(peak.isfinite().all()) or bool(logits.isnan().any()):
            raise ValueError(
                "a row of logits has NaN or +inf, or nothing above -inf: there is nothing to draw"
            )
