"""Weights laid out for the processor that decodes with them.

A matrix times a few rows is bound by how fast the matrix is read, and oneDNN reads a bf16 matrix
well only in a blocked layout of its own. Given the plain layout it rearranges the whole matrix in
each call: one row by [1920, 320] takes 141 µs plain and 65 µs packed, one by [4096, 320] 328 and
155 (one thread of an AMD EPYC with AVX-512). A row's result does not depend on how many other rows
go with it, in either layout; attention's may, so that greedy texts can still part in bf16.
"""

from typing import Any, final

import torch
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


@final
class PackedLinear(nn.Module):
    """A linear map for inference, its bf16 weight in the processor's own layout.

    Its state dict holds the plain weight, or nothing if `is_copy`: a tied head, say, whose weight
    is the embedding's.
    """

    def __init__(
        self,
        weight: Float[Tensor, "out_features in_features"],
        bias: Float[Tensor, " out_features"] | None = None,
        *,
        is_copy: bool = False,
    ) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 1)
        self.bias, self.is_copy = bias, is_copy

    def forward(self, x: Float[Tensor, "*rows in_features"]) -> Float[Tensor, "*rows out_features"]:
        """Give x·Wᵀ + b."""
        if torch.compiler.is_compiling():  # whose own rule for oneDNN wants constant weights
            return torch.ops.foredraft.packed_linear(x, self.packed, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if not self.is_copy:
            destination[f"{prefix}weight"] = self.packed.to_dense()
            if self.bias is not None:
                destination[f"{prefix}bias"] = self.bias


def can_pack(weight: Tensor) -> bool:
    """Say whether this processor has a layout of its own for such a weight: bf16, on the CPU."""
    return (
        weight.is_cpu
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def pack(module: nn.Module) -> None:
    """Replace, in place, every linear map below a module by a packed one."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, PackedLinear(child.weight, child.bias))
