"""Add two vectors: the kernel that only moves bytes, two reads and one write an element.

Its floor is therefore the bytes over the bandwidth of the memory; the addition itself is free. What
is not free is to be wrong at the edges: the last block, no elements at all, tensors that are views
with any strides, and offsets beyond 2³¹, for which all addresses are computed with 64 bits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, final, no_type_check

import torch

from foredraft.kernels.environment import ceil_div, is_interpreted, require_runnable, tl, triton
from foredraft.kernels.rounding import rounded
from foredraft.kernels.specimen import POINTERS, Specimen
from foredraft.types import Tensor

COMPUTED: Mapping[torch.dtype, tl.dtype] = {
    torch.float16: tl.float32,  # as torch.add does; and the interpreter adds no bfloat16
    torch.bfloat16: tl.float32,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.int8: tl.int8,
    torch.int16: tl.int16,
    torch.int32: tl.int32,
    torch.int64: tl.int64,
    torch.uint8: tl.uint8,
}
"""The element types that can be added, each with the one that the sum is computed in."""


@final
@dataclass(frozen=True, slots=True)
class Launch:
    """How the work is cut up: elements in a block, warps of 32 threads to a program instance.

    With `programs` 0 every block has its own program instance. With more, that many stride over
    all blocks (a grid-stride loop).
    """

    block: int = 1024
    warps: int = 4
    programs: int = 0

    def __post_init__(self) -> None:
        for name, value, most in (("block", self.block, 65536), ("warps", self.warps, 32)):
            if not 1 <= value <= most or value & (value - 1):
                raise ValueError(f"{name} is {value}; it must be a power of two, at most {most}")
        if self.programs < 0:
            raise ValueError(f"programs is {self.programs}; give 0, one a block, or more")


DEFAULT = Launch()
CANDIDATES = tuple(Launch(block, warps) for block in (512, 1024, 2048, 4096) for warps in (4, 8))
"""What autotuning, and the benchmark, try."""


@triton.jit
@no_type_check
def add_block(x_ptr, y_ptr, out_ptr, n, COMPUTED: tl.constexpr, BLOCK: tl.constexpr):
    """Add one block of two flat vectors."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    within = at < n
    x = tl.load(x_ptr + at, mask=within)
    y = tl.load(y_ptr + at, mask=within)
    total = x.to(COMPUTED) + y.to(COMPUTED)
    tl.store(out_ptr + at, rounded(total, out_ptr.dtype.element_ty), mask=within)


@triton.jit
@no_type_check
def add_grid_stride(x_ptr, y_ptr, out_ptr, n, COMPUTED: tl.constexpr, BLOCK: tl.constexpr):
    """Add every block of two flat vectors whose turn it is, round after round."""
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    first = tl.program_id(0).to(tl.int64) * BLOCK
    for start in range(first, n, step):
        at = start + tl.arange(0, BLOCK)
        within = at < n
        x = tl.load(x_ptr + at, mask=within)
        y = tl.load(y_ptr + at, mask=within)
        total = x.to(COMPUTED) + y.to(COMPUTED)
        tl.store(out_ptr + at, rounded(total, out_ptr.dtype.element_ty), mask=within)


@triton.jit
@no_type_check
def add_strided(
    x_ptr,
    y_ptr,
    out_ptr,
    n,
    shape,
    x_strides,
    y_strides,
    out_strides,
    RANK: tl.constexpr,
    COMPUTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add one block of two tensors that may be any views."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    within = at < n
    rest = at
    x_at = tl.zeros_like(at)
    y_at = tl.zeros_like(at)
    out_at = tl.zeros_like(at)
    for inner in tl.static_range(RANK):
        index = rest % shape[RANK - 1 - inner]
        rest = rest // shape[RANK - 1 - inner]
        x_at += index * x_strides[RANK - 1 - inner]
        y_at += index * y_strides[RANK - 1 - inner]
        out_at += index * out_strides[RANK - 1 - inner]
    x = tl.load(x_ptr + x_at, mask=within)
    y = tl.load(y_ptr + y_at, mask=within)
    total = x.to(COMPUTED) + y.to(COMPUTED)
    tl.store(out_ptr + out_at, rounded(total, out_ptr.dtype.element_ty), mask=within)


def vector_add(x: Tensor, y: Tensor, *, launch: Launch | None = DEFAULT) -> Tensor:
    """Add two tensors of one shape, element type and device; any strides, no broadcasting.

    The sum has the layout of `x` if `x` has no gaps, as that of `torch.add`. With `launch` None
    Triton times the CANDIDATES on the first vectors of a type and of each power of two in length,
    and keeps the fastest.

    Raises ValueError for shapes, types or devices that differ, for types other than COMPUTED's, and
    for `launch` None where the kernel is interpreted.
    """
    require_addable(x, y)
    require_runnable(add_block, x=x, y=y)
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    computed = COMPUTED[x.dtype]
    if out.stride() == x.stride() == y.stride():
        _add_flat(x, y, out, computed, launch)
        return out
    launch = launch or DEFAULT
    walk = collapsed(x.shape, x.stride(), y.stride(), out.stride())
    grid = (ceil_div(x.numel(), launch.block),)
    options: dict[str, Any] = {"BLOCK": launch.block, "num_warps": launch.warps}
    rank = len(walk[0])
    tensors: tuple[Any, ...] = (x, y, out, x.numel(), *walk)
    add_strided[grid](*tensors, RANK=rank, COMPUTED=computed, **options)
    return out


def reference(x: Tensor, y: Tensor) -> Tensor:
    """Do the same in torch."""
    require_addable(x, y)
    return x + y


def bytes_moved(n: int, dtype: torch.dtype) -> int:
    """Count the bytes that adding n elements must move: two reads, one write."""
    return 3 * n * dtype.itemsize


def require_addable(x: Tensor, y: Tensor) -> None:
    """Raise ValueError unless two tensors have the same shape and a type that can be added."""
    if x.shape != y.shape:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, y {tuple(y.shape)}: they must be the same; to "
            "broadcast, expand one to the shape of the other first"
        )
    if x.dtype != y.dtype:
        raise ValueError(f"x is {x.dtype}, y {y.dtype}: convert one of them with .to(dtype)")
    if x.dtype not in COMPUTED:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in COMPUTED)
        raise ValueError(f"x and y are {x.dtype}; the kernel adds {known}")


def collapsed(shape: tuple[int, ...], *strides: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Describe the same walk over several tensors with as few dimensions as possible.

    Dimensions of one element go; the others are taken from the largest stride of the last tensor
    down, and neighbours are joined where all tensors step evenly through both.

    >>> collapsed((4, 1, 6), (6, 6, 1), (12, 12, 2))
    ((24,), (1,), (2,))
    """
    order = sorted(range(len(shape)), key=lambda each: strides[-1][each], reverse=True)
    sizes: list[int] = []
    steps: list[tuple[int, ...]] = []
    for each in order:
        size, step = shape[each], tuple(stride[each] for stride in strides)
        if size == 1:
            continue
        if steps and all(out == size * inner for out, inner in zip(steps[-1], step, strict=True)):
            sizes[-1], steps[-1] = sizes[-1] * size, step
        else:
            sizes.append(size)
            steps.append(step)
    if not sizes:
        return ((1,), *((1,) for _ in strides))
    return (tuple(sizes), *zip(*steps, strict=True))


def specimens(
    *,
    dtype: torch.dtype = torch.float32,
    launch: Launch = DEFAULT,
    aligned: bool = True,
    n: str = "i32",
) -> Mapping[str, Specimen]:
    """Give the kernels as `vector_add` would have them compiled; `aligned` False: from odd ends."""
    pointer = POINTERS[dtype]
    flat: dict[str, Any] = {"x_ptr": pointer, "y_ptr": pointer, "out_ptr": pointer, "n": n}
    steps = ("i64", "i64")
    strided = {**flat, "shape": steps, "x_strides": steps, "y_strides": steps, "out_strides": steps}
    constants = {"COMPUTED": COMPUTED[dtype], "BLOCK": launch.block}
    known = ("x_ptr", "y_ptr", "out_ptr", "n") if aligned else ()
    rest = {"aligned": known, "warps": launch.warps}
    return {
        "add_block": Specimen(add_block, flat, constants, **rest),
        "add_grid_stride": Specimen(add_grid_stride, flat, constants, **rest),
        "add_strided": Specimen(add_strided, strided, {**constants, "RANK": 2}, **rest),
    }


def _add_flat(x: Tensor, y: Tensor, out: Tensor, computed: tl.dtype, launch: Launch | None) -> None:
    n = x.numel()
    if launch is None:
        _autotuned(n.bit_length())[lambda known: (ceil_div(n, known["BLOCK"]),)](
            x, y, out, n, computed
        )
        return
    blocks = ceil_div(n, launch.block)
    kernel = add_grid_stride if launch.programs else add_block
    grid = (min(blocks, launch.programs or blocks),)
    options: dict[str, Any] = {"BLOCK": launch.block, "num_warps": launch.warps}
    kernel[grid](x, y, out, n, computed, **options)


@cache
def _autotuned(size_class: int) -> Any:
    """Make a kernel that chooses its own launch, one for each class of sizes."""
    if is_interpreted(add_block):
        raise ValueError(
            "launch is None, which times launches on a CUDA device; the interpreter has none to "
            "time: give a Launch"
        )
    configs = [triton.Config({"BLOCK": each.block}, num_warps=each.warps) for each in CANDIDATES]
    return triton.autotune(configs, key=[])(add_block)
