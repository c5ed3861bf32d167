"""The way in to Triton: kernels are compiled where there is a CUDA device, else interpreted.

Triton asks TRITON_INTERPRET when a kernel is decorated, and for its own library when it is first
imported, by anyone. So the variable is settled here, before that, and kernels take `triton` and
`tl` from here. Whoever imports Triton by another way first (transformers and TRL do) has decided.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from foredraft.types import Tensor

VARIABLE = "TRITON_INTERPRET"

if VARIABLE not in os.environ and "triton" not in sys.modules and not torch.cuda.is_available():
    os.environ[VARIABLE] = "1"

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError(
        "foredraft.kernels need triton, which is built for Linux alone; all other modules of "
        "foredraft do without it"
    ) from error

__all__ = [
    "VARIABLE",
    "ceil_div",
    "device_function",
    "is_interpreted",
    "power_of_two",
    "require_runnable",
    "tl",
    "triton",
]


def is_interpreted(kernel: object) -> bool:
    """Say whether a kernel was decorated while TRITON_INTERPRET was set."""
    return not isinstance(kernel, triton.runtime.JITFunction)


def device_function(function: Callable[..., Any]) -> Any:
    """Decorate a function that kernels call.

    Interpreted, it stays what it is and runs in its kernel's interpreter: Triton's own decorator
    would prepare the whole library anew at each call, which takes tens of milliseconds.
    """
    return function if is_interpreted(tl.sum) else triton.jit(function)


def ceil_div(n: int, size: int) -> int:
    """Count the pieces of a size that cover n."""
    return -(-n // size)


def power_of_two(n: int) -> int:
    """Give the smallest power of two that is n or more."""
    return 1 << max(0, n - 1).bit_length()


def require_runnable(kernel: object, **tensors: Tensor) -> None:
    """Raise ValueError unless the kernel can run on these tensors, which no gradient may need."""
    devices = {name: tensor.device for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        told = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"{told}: move all to one device")
    (device,) = set(devices.values())
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"{next(iter(devices))} is on {device}; kernels run on cuda, or on cpu")
    if device.type == "cpu" and not is_interpreted(kernel):
        raise ValueError(
            f"{next(iter(devices))} is on cpu, and Triton compiles here: move it to cuda, or set "
            f"{VARIABLE}=1 before anything imports triton (foredraft.kernels does where there is "
            "no CUDA device, if imported first)"
        )
    for name, tensor in tensors.items():
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} requires a gradient, and the kernels have none: use torch.no_grad()"
            )
