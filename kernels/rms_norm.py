"""Add to the residual stream and normalise it, in one pass over memory.

RMSNorm (arXiv 1910.07467) as `transformers` rounds it. With s = residual + x, rounded, and
r = 1 ÷ √(mean(s²) + ε) in float32, Llama's form is weight · round(s r), Gemma's
round(s r (1 + weight)). One operation after another, torch moves a row between the memory and the
processor about a dozen times; here it is read once and written once for each of the two results.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final, no_type_check

import torch

from foredraft.kernels.environment import power_of_two, require_runnable, tl, triton
from foredraft.kernels.rounding import rounded
from foredraft.kernels.specimen import POINTERS, Specimen
from foredraft.types import Float, Tensor

FORMS = ("llama", "gemma")

TYPES = (torch.float32, torch.float16, torch.bfloat16)
"""The element types that are normalised."""

WIDEST = 32768
"""Features in a row, all of which one program instance holds in its registers."""


@final
@dataclass(frozen=True, slots=True)
class Normed:
    """The residual stream after the addition, and what is normalised of it."""

    summed: Float[Tensor, "*batch hidden"]
    normed: Float[Tensor, "*batch hidden"]


@triton.jit
@no_type_check
def add_rms_norm_row(
    x_ptr,
    residual_ptr,
    weight_ptr,
    summed_ptr,
    normed_ptr,
    hidden,
    eps,
    GEMMA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add and normalise one row."""
    row = tl.program_id(0).to(tl.int64) * hidden
    at = tl.arange(0, BLOCK)
    within = at < hidden
    stored = summed_ptr.dtype.element_ty
    x = tl.load(x_ptr + row + at, mask=within, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + row + at, mask=within, other=0.0).to(tl.float32)
    summed = rounded(x + residual, stored)
    tl.store(summed_ptr + row + at, summed, mask=within)
    wide = summed.to(tl.float32)
    rate = tl.rsqrt(tl.sum(wide * wide, axis=0) / hidden + eps)
    weight = tl.load(weight_ptr + at, mask=within, other=0.0).to(tl.float32)
    if GEMMA:
        scaled = wide * rate * (1.0 + weight)
    else:
        scaled = rounded(wide * rate, stored).to(tl.float32) * weight
    tl.store(normed_ptr + row + at, rounded(scaled, stored), mask=within)


def add_rms_norm(
    x: Float[Tensor, "..."],
    residual: Float[Tensor, "..."],
    weight: Float[Tensor, " hidden"],
    *,
    eps: float,
    form: str = "llama",
) -> Normed:
    """Give residual + x, and the RMSNorm of it.

    `x` and `residual` have shape [*batch hidden], one type and device; all three one type.

    Raises ValueError for shapes or types that do not fit, for more than WIDEST features, and for a
    form or an ε that does not exist.
    """
    _require_fitting(x, residual, weight, eps, form)
    require_runnable(add_rms_norm_row, x=x, residual=residual, weight=weight)
    x, residual = x.contiguous(), residual.contiguous()
    summed, normed = torch.empty_like(x), torch.empty_like(x)
    hidden = x.shape[-1]
    rows = x.numel() // hidden
    if rows:
        options = _options(hidden)
        pointers = (x, residual, weight.contiguous(), summed, normed)
        add_rms_norm_row[(rows,)](*pointers, hidden, eps, GEMMA=form == "gemma", **options)
    return Normed(summed, normed)


def reference(
    x: Float[Tensor, "..."],
    residual: Float[Tensor, "..."],
    weight: Float[Tensor, " hidden"],
    *,
    eps: float,
    form: str = "llama",
) -> Normed:
    """Do the same in torch, operation by operation, with the casts of `transformers`."""
    _require_fitting(x, residual, weight, eps, form)
    summed = x + residual
    wide = summed.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if form == "gemma":
        return Normed(summed, (scaled * (1.0 + weight.float())).to(x.dtype))
    return Normed(summed, weight * scaled.to(x.dtype))


def bytes_moved(rows: int, hidden: int, dtype: torch.dtype) -> int:
    """Count the bytes that must move: two rows in, two out, the weight once."""
    return (4 * rows + 1) * hidden * dtype.itemsize


def bytes_moved_one_by_one(
    rows: int, hidden: int, dtype: torch.dtype, *, form: str = "llama"
) -> Mapping[str, int]:
    """Count the bytes that `reference` moves, operation by operation.

    A float32 copy that torch does not make, since the type is float32 already, counts nothing.
    """
    own, wide = rows * hidden * dtype.itemsize, rows * hidden * 4
    weight = hidden * dtype.itemsize
    cast = 0 if dtype == torch.float32 else own + wide
    counted = {
        "residual + x": 3 * own,
        "to float32": cast,
        "square": 2 * wide,
        "mean": wide + 4 * rows,
        "+ ε": 8 * rows,
        "rsqrt": 8 * rows,
        "times rate": 2 * wide + 4 * rows,
    }
    if form == "gemma":
        widened = 0 if dtype == torch.float32 else weight + 4 * hidden
        ones = {"weight to float32": widened, "1 + weight": 8 * hidden}
        return {**counted, **ones, "times 1 + weight": 2 * wide + 4 * hidden, "to type": cast}
    return {**counted, "to type": cast, "times weight": 2 * own + weight}


def specimens(*, dtype: torch.dtype = torch.bfloat16, hidden: int = 4096) -> Mapping[str, Specimen]:
    """Give the kernel as it would be compiled, in both forms."""
    names = ("x_ptr", "residual_ptr", "weight_ptr", "summed_ptr", "normed_ptr")
    signature = dict.fromkeys(names, POINTERS[dtype]) | {"hidden": "i32", "eps": "fp32"}
    options = _options(hidden)
    return {
        f"add_rms_norm {form}": Specimen(
            add_rms_norm_row,
            signature,
            {"GEMMA": form == "gemma", "BLOCK": options["BLOCK"]},
            (*names, "hidden"),
            options["num_warps"],
        )
        for form in FORMS
    }


def _options(hidden: int) -> dict[str, Any]:
    """Hold a row in one block, 16 elements a thread in warps of 32, within what a card allows."""
    block = power_of_two(hidden)
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 512))}


def _require_fitting(x: Tensor, residual: Tensor, weight: Tensor, eps: float, form: str) -> None:
    if x.shape != residual.shape or x.dim() == 0 or weight.shape != x.shape[-1:]:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, residual {tuple(residual.shape)}, weight "
            f"{tuple(weight.shape)}; they must be [*batch hidden] twice and [hidden]"
        )
    if not x.dtype == residual.dtype == weight.dtype or x.dtype not in TYPES:
        raise ValueError(
            f"x is {x.dtype}, residual {residual.dtype}, weight {weight.dtype}; they must be one "
            f"of {', '.join(map(str, TYPES))}, the same for all"
        )
    if not 1 <= x.shape[-1] <= WIDEST:
        raise ValueError(f"rows have {x.shape[-1]} features; the kernel holds 1 to {WIDEST}")
    if form not in FORMS or not eps >= 0:
        raise ValueError(f"form {form!r}, eps {eps}: form is one of {FORMS}, eps at least 0")
