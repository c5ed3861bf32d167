"""Activate a gate and multiply: SwiGLU and GeGLU (arXiv 2002.05202) in one pass over memory.

The decoder projects gate and up at once, so both are halves of one matrix: views with a row stride,
which the kernel takes as they are. GELU is the tanh approximation: x (1 + tanh u) ÷ 2 = x σ(2u)
with u = √(2 ÷ π) (x + 0.044715 x³), which needs no tanh.
"""

from collections.abc import Mapping
from typing import Any, no_type_check

import torch
import torch.nn.functional as F

from foredraft.kernels.environment import ceil_div, require_runnable, tl, triton
from foredraft.kernels.rounding import rounded
from foredraft.kernels.specimen import POINTERS, Specimen
from foredraft.kernels.squashing import logistic
from foredraft.types import Float, Tensor

ACTIVATIONS = ("silu", "gelu_tanh")

TYPES = (torch.float32, torch.float16, torch.bfloat16)
"""The element types that are multiplied."""

BLOCK = 1024
"""Features in a block: eight a thread."""


@triton.jit
@no_type_check
def gated_block(
    gate_ptr,
    up_ptr,
    out_ptr,
    inner,
    gate_stride,
    up_stride,
    GELU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Activate and multiply one block of one row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    within = at < inner
    stored = out_ptr.dtype.element_ty
    gate = tl.load(gate_ptr + row * gate_stride + at, mask=within, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + at, mask=within, other=0.0).to(tl.float32)
    if GELU:
        # 2 √(2 ÷ π), and that times 0.044715
        slope = 1.5957691216057308 + 0.07135481627159775 * gate * gate
        active = gate * logistic(slope * gate)
    else:
        active = gate * logistic(gate)
    out = rounded(active, stored).to(tl.float32) * up
    tl.store(out_ptr + row * inner + at, rounded(out, stored), mask=within)


def gated_linear_unit(
    gate: Float[Tensor, "..."], up: Float[Tensor, "..."], *, activation: str = "silu"
) -> Float[Tensor, "..."]:
    """Give activation(gate) × up, rounded after each as torch rounds.

    Both have shape [*batch inner], one type and device.

    Raises ValueError for shapes or types that do not fit and for an unknown activation.
    """
    _require_fitting(gate, up, activation)
    require_runnable(gated_block, gate=gate, up=up)
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if out.numel() == 0:
        return out
    inner = gate.shape[-1]
    gates, ups = _rows(gate), _rows(up)
    grid = (len(gates), ceil_div(inner, BLOCK))
    strides = gates.stride(0), ups.stride(0)
    options: dict[str, Any] = {"GELU": activation == "gelu_tanh", "BLOCK": BLOCK, "num_warps": 4}
    gated_block[grid](gates, ups, out, inner, *strides, **options)
    return out


def reference(
    gate: Float[Tensor, "..."], up: Float[Tensor, "..."], *, activation: str = "silu"
) -> Float[Tensor, "..."]:
    """Do the same in torch."""
    _require_fitting(gate, up, activation)
    active = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
    return active * up


def bytes_moved(rows: int, inner: int, dtype: torch.dtype) -> int:
    """Count the bytes that must move: gate and up in, their product out."""
    return 3 * rows * inner * dtype.itemsize


def specimens(*, dtype: torch.dtype = torch.bfloat16) -> Mapping[str, Specimen]:
    """Give the kernel as it would be compiled, with both activations."""
    pointers = ("gate_ptr", "up_ptr", "out_ptr")
    numbers = ("inner", "gate_stride", "up_stride")
    signature = {name: POINTERS[dtype] for name in pointers} | {name: "i32" for name in numbers}
    return {
        f"gated_linear_unit {activation}": Specimen(
            gated_block,
            signature,
            {"GELU": activation == "gelu_tanh", "BLOCK": BLOCK},
            (*pointers, *numbers),
        )
        for activation in ACTIVATIONS
    }


def _rows(tensor: Tensor) -> Float[Tensor, "rows inner"]:
    """View as rows whose features are neighbours; copy only if there is no such view."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def _require_fitting(gate: Tensor, up: Tensor, activation: str) -> None:
    if gate.shape != up.shape or gate.dim() == 0:
        raise ValueError(
            f"gate has shape {tuple(gate.shape)}, up {tuple(up.shape)}; both must be [*batch inner]"
        )
    if gate.dtype != up.dtype or gate.dtype not in TYPES:
        raise ValueError(
            f"gate is {gate.dtype}, up {up.dtype}; both must be the same of "
            f"{', '.join(map(str, TYPES))}"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is unknown; choose one of {ACTIVATIONS}")
