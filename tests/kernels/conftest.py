"""Kernels run where these tests run: interpreted on a CPU, the same tests compiled on a GPU.

There the memory checker that comes with CUDA can watch as well:
`compute-sanitizer --tool memcheck pytest -m gpu tests/kernels`.
"""

import math

import pytest
import torch

MARGIN = 64
"""Sentinels on either side of a guarded buffer."""


@pytest.fixture(
    params=[pytest.param("cuda", marks=pytest.mark.gpu) if torch.cuda.is_available() else "cpu"]
)
def device(request) -> str:
    """Where kernels run."""
    return request.param


@pytest.fixture
def generator(device) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)


@pytest.fixture
def drawn(device, generator):
    """Draw normal numbers, a hundred times as large for integers, between sentinels."""

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        wide = torch.randn(shape, generator=generator, device=device)
        return guarded(wide.to(dtype) if dtype.is_floating_point else (100 * wide).to(dtype))

    return draw


def guarded(values: torch.Tensor) -> torch.Tensor:
    """Give a copy that lies between sentinels: the interpreter checks no bounds, NaN does."""
    buffer = torch.full(
        (values.numel() + 2 * MARGIN,),
        sentinel(values.dtype),
        dtype=values.dtype,
        device=values.device,
    )
    inside = buffer[MARGIN : MARGIN + values.numel()].view(values.shape)
    return inside.copy_(values)


def sentinel(dtype: torch.dtype) -> float | int:
    return math.nan if dtype.is_floating_point else torch.iinfo(dtype).max


def margins(inside: torch.Tensor) -> torch.Tensor:
    """Give what lies around a guarded buffer."""
    start = inside.storage_offset()
    whole = inside.new_empty(0).set_(inside.untyped_storage())
    return torch.cat([whole[:start], whole[start + inside.numel() :]])
