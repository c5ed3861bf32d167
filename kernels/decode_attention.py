"""One new query a row against the static cache: grouped heads, a sliding window, soft-capped.

Decoding reads all keys and values once and does little with each, so the floor is their bytes. A
row and key/value head alone would keep few processors busy: the visible positions are split among
program instances (flash decoding), each of which keeps the running maximum and sum of an online
softmax (arXiv 1805.02867), and a second kernel joins the parts. Gemma-2's soft-cap is
c tanh(s ÷ c) (arXiv 2408.00118). All query heads of a group share each key that is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final, no_type_check

import torch

from foredraft.kernels.environment import (
    ceil_div,
    is_interpreted,
    power_of_two,
    require_runnable,
    tl,
    triton,
)
from foredraft.kernels.rounding import rounded
from foredraft.kernels.specimen import POINTERS, Specimen
from foredraft.kernels.squashing import tanh
from foredraft.types import Float, Int, Tensor

Queries = Float[Tensor, "batch head head_dim"]
Stored = Float[Tensor, "batch kv_head capacity head_dim"]

TYPES = (torch.float32, torch.float16, torch.bfloat16)
"""The element types that are attended to."""

PROCESSORS = 132
"""Multiprocessors to keep busy where the device does not say: those of an H100."""

BLOCK = 64
"""Positions that a program instance reads at a time."""

FEWEST_HEADS = 16
"""Rows of the smallest matrix product on tensor cores: smaller groups are padded to it."""


@final
@dataclass(frozen=True, slots=True)
class Scores:
    """What is done to q·k: times `scale`, capped, and only so many positions back are seen."""

    scale: float
    softcap: float | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        if self.softcap is not None and not self.softcap > 0:
            raise ValueError(f"softcap is {self.softcap}; it must be above 0, or None")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window is {self.window}; it must be at least 1, or None")


@triton.jit
@no_type_check
def attend_part(
    query_ptr,
    key_ptr,
    value_ptr,
    lengths_ptr,
    mixed_ptr,
    peak_ptr,
    total_ptr,
    capacity,
    kv_heads,
    head_dim,
    group,
    parts,
    window,
    scale,
    softcap,
    CAPPED: tl.constexpr,
    MULTIPLIED: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Attend from the heads of one group to one part of what they see."""
    row = tl.program_id(0).to(tl.int64) // kv_heads
    kv_head = tl.program_id(0).to(tl.int64) % kv_heads
    part = tl.program_id(1)
    head = tl.arange(0, HEADS)
    dim = tl.arange(0, DIM)
    heads = head[:, None] < group
    dims = dim[None, :] < head_dim
    first_head = (row * kv_heads + kv_head) * group
    query_at = (first_head + head[:, None]) * head_dim + dim[None, :]
    query = tl.load(query_ptr + query_at, mask=heads & dims, other=0.0).to(MULTIPLIED)

    length = tl.minimum(tl.load(lengths_ptr + row).to(tl.int32), capacity)
    seen_from = tl.maximum(length - window, 0)
    size = tl.cdiv(tl.cdiv(length - seen_from, parts), BLOCK) * BLOCK
    start = seen_from + part * size
    stop = tl.minimum(start + size, length)

    peak = tl.full([HEADS], float("-inf"), tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    mixed = tl.zeros([HEADS, DIM], tl.float32)
    for position in range(start, stop, BLOCK):
        place = position + tl.arange(0, BLOCK)
        seen = place < stop
        slot = ((row * kv_heads + kv_head) * capacity + place) * head_dim
        at = slot[:, None] + dim[None, :]
        stored = seen[:, None] & dims
        keys = tl.load(key_ptr + at, mask=stored, other=0.0).to(MULTIPLIED)
        values = tl.load(value_ptr + at, mask=stored, other=0.0).to(MULTIPLIED)
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
        if CAPPED:
            scores = softcap * tanh(scores / softcap)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        kept = tl.exp(peak - higher)
        weights = tl.exp(scores - higher[:, None])
        total = total * kept + tl.sum(weights, axis=1)
        added = tl.dot(rounded(weights, MULTIPLIED), values, input_precision="ieee")
        mixed = mixed * kept[:, None] + added
        peak = higher

    number = (first_head + head) * parts + part
    tl.store(peak_ptr + number, peak, mask=head < group)
    tl.store(total_ptr + number, total, mask=head < group)
    tl.store(mixed_ptr + number[:, None] * head_dim + dim[None, :], mixed, mask=heads & dims)


@triton.jit
@no_type_check
def join_parts(
    mixed_ptr,
    peak_ptr,
    total_ptr,
    out_ptr,
    head_dim,
    parts,
    PARTS: tl.constexpr,
    DIM: tl.constexpr,
):
    """Weigh the parts that one head has seen by their share of the softmax."""
    head = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    dim = tl.arange(0, DIM)
    there = part < parts
    dims = dim < head_dim
    number = head * parts + part
    peak = tl.load(peak_ptr + number, mask=there, other=float("-inf"))
    total = tl.load(total_ptr + number, mask=there, other=0.0)
    share = tl.exp(peak - tl.max(peak, axis=0))
    at = number[:, None] * head_dim + dim[None, :]
    mixed = tl.load(mixed_ptr + at, mask=there[:, None] & dims[None, :], other=0.0)
    out = tl.sum(mixed * share[:, None], axis=0) / tl.sum(total * share, axis=0)
    tl.store(out_ptr + head * head_dim + dim, rounded(out, out_ptr.dtype.element_ty), mask=dims)


def decode_attention(
    query: Queries,
    keys: Float[Tensor, "_ _ _ _"],
    values: Float[Tensor, "_ _ _ _"],
    lengths: Int[Tensor, " rows"],
    scores: Scores,
    *,
    parts: int | None = None,
) -> Queries:
    """Attend from the newest position of each row to the `lengths` positions it sees, itself last.

    `query` has shape [batch head head_dim], `keys` and `values`, one layer of the cache as it
    lies there, [batch kv_head capacity head_dim], contiguous. `parts` None: as many as keep the
    device busy.

    Raises ValueError for shapes or types that do not fit and, on the CPU, for a length outside 1 to
    the capacity; elsewhere, where nothing waits, a longer one is taken for the capacity, and one
    below 1 gives NaN.
    """
    _require_fitting(query, keys, values, lengths)
    named = {"query": query, "keys": keys, "values": values, "lengths": lengths}
    require_runnable(attend_part, **named)
    batch, n_heads, head_dim = query.shape
    kv_heads, capacity = keys.shape[1:3]
    parts = _parts(query, keys) if parts is None else parts
    if not 1 <= parts <= 1024:
        raise ValueError(f"parts is {parts}; it must be from 1 to 1024, or None")
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    if out.numel() == 0:
        return out
    place: dict[str, Any] = {"dtype": torch.float32, "device": query.device}
    mixed = torch.empty((batch, n_heads, parts, head_dim), **place)
    peak, total = torch.empty((2, batch, n_heads, parts), **place)
    group = n_heads // kv_heads
    attend_part[(batch * kv_heads, parts)](
        *(query.contiguous(), keys, values, lengths.contiguous(), mixed, peak, total),
        *(capacity, kv_heads, head_dim, group, parts, scores.window or capacity),
        *(scores.scale, scores.softcap or 1.0),
        CAPPED=scores.softcap is not None,
        MULTIPLIED=_multiplied(query.dtype),
        **_options(group, head_dim),
    )
    options = {"PARTS": power_of_two(parts), "DIM": power_of_two(head_dim)}
    join_parts[(batch * n_heads,)](mixed, peak, total, out, head_dim, parts, **options)
    return out


def reference(
    query: Queries,
    keys: Float[Tensor, "_ _ _ _"],
    values: Float[Tensor, "_ _ _ _"],
    lengths: Int[Tensor, " rows"],
    scores: Scores,
) -> Queries:
    """Do the same in torch, in float32 or better throughout."""
    _require_fitting(query, keys, values, lengths)
    wide = torch.promote_types(query.dtype, torch.float32)
    group = query.shape[1] // keys.shape[1]
    all_keys, all_values = (
        each.to(wide).repeat_interleave(group, dim=1) for each in (keys, values)
    )
    products = (all_keys @ query.to(wide)[..., None]).squeeze(-1) * scores.scale
    if scores.softcap is not None:
        products = scores.softcap * torch.tanh(products / scores.softcap)
    behind = lengths[:, None] - 1 - torch.arange(keys.shape[2], device=keys.device)
    seen = (behind >= 0) & (behind < (scores.window or keys.shape[2]))
    weights = products.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    return (weights[:, :, None] @ all_values).squeeze(2).to(query.dtype)


def bytes_moved(
    lengths: tuple[int, ...], n_heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype
) -> int:
    """Count the bytes that must move: the keys and values that are seen, a query and an answer."""
    seen, asked = 2 * sum(lengths) * kv_heads, 2 * len(lengths) * n_heads
    return (seen + asked) * head_dim * dtype.itemsize


def specimens(
    *, dtype: torch.dtype = torch.bfloat16, group: int = 4, head_dim: int = 128
) -> Mapping[str, Specimen]:
    """Give the kernels as they would be compiled, with and without soft-cap."""
    tensors = ("query_ptr", "key_ptr", "value_ptr")
    partial = ("mixed_ptr", "peak_ptr", "total_ptr")
    numbers = ("capacity", "kv_heads", "head_dim", "group", "parts", "window")
    sums = dict.fromkeys(partial, POINTERS[torch.float32])
    signature = {
        **dict.fromkeys(tensors, POINTERS[dtype]),
        "lengths_ptr": POINTERS[torch.int64],
        **sums,
        **dict.fromkeys(numbers, "i32"),
        **dict.fromkeys(("scale", "softcap"), "fp32"),
    }
    options = _options(group, head_dim)
    warps = options.pop("num_warps")
    known = (*tensors, *partial, "lengths_ptr", "capacity", "head_dim")
    multiplied = getattr(tl, str(dtype).removeprefix("torch."))
    joined = {**sums, "out_ptr": POINTERS[dtype], "head_dim": "i32", "parts": "i32"}
    return {
        **{
            f"decode_attention{' soft-capped' * capped}": Specimen(
                attend_part,
                signature,
                {"CAPPED": capped, "MULTIPLIED": multiplied, **options},
                known,
                warps,
            )
            for capped in (False, True)
        },
        "join_parts": Specimen(
            join_parts,
            joined,
            {"PARTS": 16, "DIM": options["DIM"]},
            (*partial, "out_ptr", "head_dim"),
        ),
    }


def _options(group: int, head_dim: int) -> dict[str, Any]:
    heads = max(FEWEST_HEADS, power_of_two(group))
    dim = max(16, power_of_two(head_dim))
    return {"HEADS": heads, "DIM": dim, "BLOCK": BLOCK, "num_warps": 4}


def _parts(query: Tensor, keys: Tensor) -> int:
    """Split so that every processor has two program instances, and each a block or more."""
    processors = PROCESSORS
    if query.device.type == "cuda":
        processors = torch.cuda.get_device_properties(query.device).multi_processor_count
    wanted = ceil_div(2 * processors, max(1, query.shape[0] * keys.shape[1]))
    return max(1, min(wanted, ceil_div(keys.shape[2], BLOCK), 1024))


def _multiplied(dtype: torch.dtype) -> Any:
    """Say in what type matrices are multiplied: their own, but the interpreter has no bfloat16."""
    if dtype == torch.bfloat16 and is_interpreted(attend_part):
        return tl.float32
    return getattr(tl, str(dtype).removeprefix("torch."))


def _require_fitting(query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> None:
    batch, n_heads, head_dim = query.shape
    rows, kv_heads, capacity, stored_dim = keys.shape
    fits = (rows, stored_dim, *lengths.shape) == (batch, head_dim, batch)
    if keys.shape != values.shape or not fits or kv_heads < 1 or n_heads % kv_heads:
        raise ValueError(
            f"query {tuple(query.shape)}, keys {tuple(keys.shape)}, values {tuple(values.shape)}, "
            f"lengths {tuple(lengths.shape)}: they must be [batch head head_dim], twice [batch "
            "kv_head capacity head_dim] and [batch], with as many heads for each kv_head"
        )
    if not query.dtype == keys.dtype == values.dtype or query.dtype not in TYPES:
        raise ValueError(
            f"query is {query.dtype}, keys {keys.dtype}, values {values.dtype}; they must be the "
            f"same of {', '.join(map(str, TYPES))}"
        )
    if not (keys.is_contiguous() and values.is_contiguous()):
        raise ValueError("keys or values are not contiguous: pass a layer of the cache as it lies")
    if lengths.is_cpu and lengths.numel():
        least, most = int(lengths.min()), int(lengths.max())
        if least < 1 or most > capacity:
            raise ValueError(f"lengths go from {least} to {most}; they must be 1 to {capacity}")
