"""Weights laid out for the processor that decodes with them.

A matrix times a few rows is bound by how fast the matrix is read, and oneDNN reads a bf16 matrix
well only in a blocked layout of its own. Given the plain layout it rearranges the whole matrix in
each call: one row by [1920, 320] takes 141 µs plain and 65 µs packed, one by [4096, 320] 328 and
155 (one thread of an AMD EPYC with AVX-512). A row's result does not depend on how many other rows
go with it, in either layout; attention's may, so that greedy texts can still part in bf16.

Where oneDNN has no bf16, as with AVX2 alone, a matrix is multiplied row by row, which is as fast as
it can be read for one row and hopeless for many; written out as float32, part by part, it goes
through the float32 product instead. [4096, 320] takes 1.45 times less for 8 rows, 2.4 times for 16,
4.2 for 128; [8192, 768] 0.64, 1.2 and 4.0 (two threads of an AMD EPYC with AVX2). A row among
`MANY_ROWS` or more may there differ in its last bit from the same row among few.
"""

from typing import Any, final

import torch
import torch.nn.functional as F
from torch import nn

from foredraft.types import Float, Tensor

_LIBRARY = torch.library.Library("foredraft", "DEF")
_LIBRARY.define("packed_linear(Tensor x, Tensor packed, Tensor? bias) -> Tensor")


def _packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


_LIBRARY.impl("packed_linear", _packed_linear, "CompositeExplicitAutograd")


@torch.library.register_fake("foredraft::packed_linear", lib=_LIBRARY)
def _(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], packed.shape[0])


MANY_ROWS = 12
"""From how many rows on float32 is as fast, for all matrices measured; a constant, for a choice by
the clock would give other texts at each load."""
PART = 1 << 18
"""How many weights are float32 at a time: what a core's own cache holds."""


class InferenceLinear(nn.Module):
    """A linear map for inference, its bf16 weight laid out for the processor.

    Its state dict holds the plain weight, or nothing if `is_copy`: a tied head, say, whose weight
    is the embedding's.
    """

    def __init__(self, bias: Float[Tensor, " out_features"] | None, *, is_copy: bool) -> None:
        super().__init__()
        self.bias, self.is_copy = bias, is_copy

    def plain(self) -> Float[Tensor, "out_features in_features"]:
        """Give the weight as it was."""
        raise NotImplementedError

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if not self.is_copy:
            destination[f"{prefix}weight"] = self.plain()
            if self.bias is not None:
                destination[f"{prefix}bias"] = self.bias


@final
class PackedLinear(InferenceLinear):
    """One whose weight lies in oneDNN's own layout."""

    def __init__(
        self,
        weight: Float[Tensor, "out_features in_features"],
        bias: Float[Tensor, " out_features"] | None = None,
        *,
        is_copy: bool = False,
    ) -> None:
        super().__init__(bias, is_copy=is_copy)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 1)

    def forward(self, x: Float[Tensor, "*rows in_features"]) -> Float[Tensor, "*rows out_features"]:
        """Give x·Wᵀ + b."""
        if torch.compiler.is_compiling():  # whose own rule for oneDNN wants constant weights
            return torch.ops.foredraft.packed_linear(x, self.packed, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")

    def plain(self) -> Float[Tensor, "out_features in_features"]:
        """Give the weight as it was."""
        return self.packed.to_dense()


@final
class WidenedLinear(InferenceLinear):
    """One that multiplies many rows in float32, into which its weight is written part by part."""

    def __init__(
        self,
        weight: Float[Tensor, "out_features in_features"],
        bias: Float[Tensor, " out_features"] | None = None,
        *,
        is_copy: bool = False,
    ) -> None:
        super().__init__(bias, is_copy=is_copy)
        self.weight = weight.detach()

    def forward(self, x: Float[Tensor, "*rows in_features"]) -> Float[Tensor, "*rows out_features"]:
        """Give x·Wᵀ + b."""
        n_in = self.weight.shape[1]
        if x.numel() < MANY_ROWS * n_in:
            return F.linear(x, self.weight, self.bias)
        wide, size = x.float(), max(1, PART // n_in)
        parts = self.weight.split(size)
        biases = [None] * len(parts) if self.bias is None else self.bias.float().split(size)
        pairs = zip(parts, biases, strict=True)
        return torch.cat([F.linear(wide, w.float(), b).to(x.dtype) for w, b in pairs], dim=-1)

    def plain(self) -> Float[Tensor, "out_features in_features"]:
        """Give the weight as it was."""
        return self.weight


def can_pack(weight: Tensor) -> bool:
    """Say whether such a weight can be laid out for the processor: bf16, on the CPU."""
    return weight.is_cpu and weight.dtype == torch.bfloat16


def has_layout() -> bool:
    """Say whether oneDNN has a layout of its own for bf16 on this processor."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def packed_linear(
    weight: Float[Tensor, "out_features in_features"],
    bias: Float[Tensor, " out_features"] | None = None,
    *,
    is_copy: bool = False,
) -> InferenceLinear:
    """Lay out a weight as is best on this processor."""
    kind = PackedLinear if has_layout() else WidenedLinear
    return kind(weight, bias, is_copy=is_copy)


def pack(module: nn.Module) -> None:
    """Replace, in place, every linear map below a module by one for inference."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, packed_linear(child.weight, child.bias))
