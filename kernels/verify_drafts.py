"""Verify the drafts of a batch: accept, take the residual, draw, in three launches.

The law is that of `foredraft.decoding.verify` by tokens (Leviathan et al., arXiv 2211.17192,
algorithm 1): a drafted token x stands with probability min(1, p(x) ÷ q(x)) until the first that
falls; what follows is drawn from norm(max(0, p − q)) there, or from p if all stand. Given the same
uniform numbers it gives the same tokens, but for a draw within a rounding of a boundary.

The acceptance reads one number of each law. Then only the two laws that matter are read: whole, for
the mass of each chunk, and once more within the chunk that is drawn.
"""

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
from foredraft.kernels.inversion import WARPS, chunk_of, first_above
from foredraft.kernels.specimen import Specimen
from foredraft.types import Float, Int, Tensor

LONGEST = 1024
"""Drafted tokens in a row."""


@final
@dataclass(frozen=True, slots=True)
class Verified:
    """By row: how many drafted tokens stand, and the token that follows them."""

    n_accepted: Int[Tensor, " batch"]
    token: Int[Tensor, " batch"]


@triton.jit
@no_type_check
def accept(
    drafted_ptr,
    draft_ptr,
    target_ptr,
    lengths_ptr,
    uniforms_ptr,
    accepted_ptr,
    n_drafted,
    vocab,
    DRAFTED: tl.constexpr,
):
    """Count the drafted tokens of a row before the first that falls."""
    row = tl.program_id(0).to(tl.int64)
    step = tl.arange(0, DRAFTED)
    there = step < tl.minimum(tl.load(lengths_ptr + row), n_drafted)
    token = tl.load(drafted_ptr + row * n_drafted + step, there, other=0)
    q = tl.load(draft_ptr + (row * n_drafted + step) * vocab + token, there, other=0.0)
    p = tl.load(target_ptr + (row * (n_drafted + 1) + step) * vocab + token, there, other=0.0)
    uniform = tl.load(uniforms_ptr + row * n_drafted + step, there, other=1.0)
    chance = tl.div_rn(p, tl.where(q > 0, q, 1.0)).to(tl.float64)
    chance = tl.where(q > 0, chance, (p > 0).to(tl.float64))
    fell = tl.where(there & (uniform < chance), DRAFTED, step)
    tl.store(accepted_ptr + row, tl.min(fell, axis=0).to(tl.int64))


@device_function
@no_type_check
def left_over(draft_ptr, target_ptr, lengths_ptr, accepted_ptr, row, place, n_drafted, vocab):
    """Load, for some places of a row, the residual after the accepted tokens, and p itself."""
    n = tl.load(accepted_ptr + row)
    turned_down = n < tl.minimum(tl.load(lengths_ptr + row), n_drafted)
    within = place < vocab
    p = tl.load(target_ptr + (row * (n_drafted + 1) + n) * vocab + place, within, other=0.0)
    q_at = (row * n_drafted + n) * vocab + place
    q = tl.load(draft_ptr + q_at, within & turned_down, other=0.0)
    return tl.maximum(p - q, 0.0), p


@triton.jit
@no_type_check
def weigh(
    draft_ptr,
    target_ptr,
    lengths_ptr,
    accepted_ptr,
    left_ptr,
    whole_ptr,
    n_drafted,
    vocab,
    chunks,
    CHUNK: tl.constexpr,
):
    """Sum a chunk of the residual, and of p."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    place = chunk * CHUNK + tl.arange(0, CHUNK)
    left, p = left_over(
        draft_ptr, target_ptr, lengths_ptr, accepted_ptr, row, place, n_drafted, vocab
    )
    tl.store(left_ptr + row * chunks + chunk, tl.sum(left, axis=0))
    tl.store(whole_ptr + row * chunks + chunk, tl.sum(p, axis=0))


@triton.jit
@no_type_check
def draw(
    draft_ptr,
    target_ptr,
    lengths_ptr,
    accepted_ptr,
    left_ptr,
    whole_ptr,
    uniforms_ptr,
    tokens_ptr,
    n_drafted,
    vocab,
    chunks,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Draw what follows; where rounding leaves no residual, p and q agree, and p is drawn from."""
    row = tl.program_id(0).to(tl.int64)
    each = tl.arange(0, CHUNKS)
    there = each < chunks
    at = row * chunks + each
    left = tl.load(left_ptr + at, there, other=0.0).to(tl.float64)
    whole = tl.load(whole_ptr + at, there, other=0.0).to(tl.float64)
    is_left = tl.sum(left, axis=0) > 0
    masses = tl.where(is_left, left, whole)
    level = tl.load(uniforms_ptr + row) * tl.sum(masses, axis=0)
    chunk = first_above(masses, level, each)
    level -= tl.sum(tl.where(each < chunk, masses, 0.0), axis=0)
    place = tl.maximum(chunk, 0) * CHUNK + tl.arange(0, CHUNK)
    residual, p = left_over(
        draft_ptr, target_ptr, lengths_ptr, accepted_ptr, row, place, n_drafted, vocab
    )
    token = first_above(tl.where(is_left, residual, p), level, place)
    tl.store(tokens_ptr + row, token.to(tl.int64))


def verify_drafts(
    drafted: Int[Tensor, "batch drafted"],
    draft_probs: Float[Tensor, "_ _ _"],
    target_probs: Float[Tensor, "_ _ _"],
    lengths: Int[Tensor, " rows"],
    *,
    generator: torch.Generator,
) -> Verified:
    """Verify the first `lengths` drafted tokens of each row; nothing waits for the device.

    `draft_probs` have shape [batch drafted vocab], `target_probs` [batch drafted+1 vocab], both
    float32, all filters applied. The random numbers are those that `foredraft.decoding.verify`
    would draw, below its 8,192 tokens one for one.
    """
    place = {"dtype": torch.float64, "device": target_probs.device}
    coins = torch.rand(drafted.shape, **place, generator=generator)
    shares = torch.rand(len(drafted), **place, generator=generator)
    return settle_drafts(drafted, draft_probs, target_probs, lengths, coins, shares)


def settle_drafts(
    drafted: Int[Tensor, "batch drafted"],
    draft_probs: Float[Tensor, "_ _ _"],
    target_probs: Float[Tensor, "_ _ _"],
    lengths: Int[Tensor, " rows"],
    coins: Float[Tensor, "batch drafted"],
    shares: Float[Tensor, " batch"],
) -> Verified:
    """Verify with these uniform numbers, in [0, 1), float64: one a drafted token, one for the draw.

    Raises ValueError for shapes or types that do not fit and, on the CPU, for a length outside 0 to
    the tokens drafted, and for a token outside the vocabulary.
    """
    _require_fitting(drafted, draft_probs, target_probs, lengths)
    named = {"drafted": drafted, "draft_probs": draft_probs, "target_probs": target_probs}
    require_runnable(accept, **named, lengths=lengths, coins=coins, shares=shares)
    batch, n_drafted = drafted.shape
    vocab = target_probs.shape[-1]
    n_accepted, token = torch.empty((2, batch), dtype=torch.int64, device=drafted.device)
    if batch == 0:
        return Verified(n_accepted, token)
    chunk = chunk_of(vocab)
    chunks = ceil_div(vocab, chunk)
    left, whole = torch.empty((2, batch, chunks), device=drafted.device)
    q, p, lengths = (each.contiguous() for each in (draft_probs, target_probs, lengths))
    sizes = (n_drafted, vocab)
    accept[(batch,)](
        *(drafted.contiguous(), q, p, lengths, coins.contiguous(), n_accepted, *sizes),
        DRAFTED=power_of_two(n_drafted + 1),
    )
    laws = (q, p, lengths, n_accepted, left, whole)
    options: dict[str, Any] = {"CHUNK": chunk, "num_warps": WARPS}
    weigh[(batch, chunks)](*laws, *sizes, chunks, **options)
    options["CHUNKS"] = power_of_two(chunks)
    draw[(batch,)](*laws, shares.contiguous(), token, *sizes, chunks, **options)
    return Verified(n_accepted, token)


def reference(
    drafted: Int[Tensor, "batch drafted"],
    draft_probs: Float[Tensor, "_ _ _"],
    target_probs: Float[Tensor, "_ _ _"],
    lengths: Int[Tensor, " rows"],
    coins: Float[Tensor, "batch drafted"],
    shares: Float[Tensor, " batch"],
) -> Verified:
    """Do the same in torch."""
    _require_fitting(drafted, draft_probs, target_probs, lengths)
    batch, n_drafted = drafted.shape
    rows = torch.arange(batch, device=drafted.device)
    p, q = (
        probs.gather(-1, drafted[..., None]).squeeze(-1)
        for probs in (target_probs[:, :n_drafted], draft_probs)
    )
    within = torch.arange(n_drafted, device=drafted.device) < lengths[:, None]
    n_accepted = ((coins < p / q) & within).cumprod(-1).sum(-1)
    after = target_probs[rows, n_accepted]
    padded = torch.cat([draft_probs, torch.zeros_like(target_probs[:, :1])], 1)
    turned_down = (n_accepted < lengths)[:, None]
    left = (after - padded[rows, n_accepted] * turned_down).clamp(min=0)
    left = torch.where(left.sum(-1, keepdim=True) > 0, left, after)
    cumulated = left.cumsum(-1, dtype=torch.float64)
    level = shares[:, None] * cumulated[:, -1:]
    token = torch.searchsorted(cumulated, level, right=True).squeeze(-1)
    return Verified(n_accepted, token.clamp(max=left.shape[-1] - 1))


def bytes_moved(batch: int, vocab: int) -> int:
    """Count the bytes that must move: for each row, one law of the target and one of the draft."""
    return 2 * batch * vocab * 4


def specimens(*, vocab: int = 256_000) -> Mapping[str, Specimen]:
    """Give the kernels as they would be compiled for this vocabulary."""
    chunk = chunk_of(vocab)
    both = {"CHUNK": chunk, "CHUNKS": power_of_two(ceil_div(vocab, chunk))}
    long = ("drafted_ptr", "lengths_ptr", "accepted_ptr", "tokens_ptr")
    types = {
        **dict.fromkeys(long, "*i64"),
        "uniforms_ptr": "*fp64",
        **dict.fromkeys(("n_drafted", "vocab", "chunks"), "i32"),
    }
    found = {}
    for kernel, known in {
        accept: {"DRAFTED": 8},
        weigh: {"CHUNK": chunk},
        draw: both,
    }.items():
        names = [name for name in kernel.arg_names if name not in known]
        signature = {name: types.get(name, "*fp32") for name in names}
        aligned = (*(name for name in names if name.endswith("_ptr")), "vocab")
        warps = 4 if kernel is accept else WARPS
        specimen = Specimen(kernel, signature, known, aligned, warps)
        found[f"verify_drafts {kernel.__name__}"] = specimen
    return found


def _require_fitting(
    drafted: Tensor, draft_probs: Tensor, target_probs: Tensor, lengths: Tensor
) -> None:
    batch, n_drafted = drafted.shape
    vocab = target_probs.shape[-1]
    wanted = (batch, n_drafted, vocab), (batch, n_drafted + 1, vocab), (batch,)
    shapes = tuple(tuple(each.shape) for each in (draft_probs, target_probs, lengths))
    if shapes != wanted:
        raise ValueError(
            f"{n_drafted} drafted tokens for each of {batch} rows need draft_probs, target_probs "
            f"and lengths of shapes {wanted}; they have {shapes}"
        )
    if n_drafted > LONGEST:
        raise ValueError(f"{n_drafted} drafted tokens; the kernel takes at most {LONGEST}")
    if not draft_probs.dtype == target_probs.dtype == torch.float32:
        raise ValueError(
            f"draft_probs are {draft_probs.dtype}, target_probs {target_probs.dtype}; both must "
            "be float32"
        )
    if not drafted.dtype == lengths.dtype == torch.int64:
        raise ValueError(
            f"drafted are {drafted.dtype}, lengths {lengths.dtype}; both must be int64"
        )
    chunk_of(vocab)
    if drafted.is_cpu and batch:
        if not 0 <= int(lengths.min()) <= int(lengths.max()) <= n_drafted:
            raise ValueError(f"lengths must lie within 0 to {n_drafted}, the tokens drafted")
        if n_drafted and not 0 <= int(drafted.min()) <= int(drafted.max()) < vocab:
            raise ValueError(f"a drafted token lies outside the vocabulary of {vocab}")
