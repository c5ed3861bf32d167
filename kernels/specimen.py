"""A kernel as the launcher would compile it: argument types, constants, what is known of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch

Signature = Mapping[str, str | tuple[str, ...]]

POINTERS: Mapping[torch.dtype, str] = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}
"""What Triton calls a pointer to elements of a type."""


@final
@dataclass(frozen=True, slots=True)
class Specimen:
    """One way to compile a kernel.

    `signature` has the type of each run-time argument, `constants` the values of the others, and
    `aligned` names those that are multiples of 16, which the launcher finds out by itself.
    """

    kernel: Any
    signature: Signature
    constants: Mapping[str, Any]
    aligned: tuple[str, ...] = ()
    warps: int = 4
    about: Mapping[str, object] = field(default_factory=dict)
