"""Round what was computed in float32 to the type that is stored, compiled or interpreted alike."""

from typing import no_type_check

from foredraft.kernels.environment import device_function, is_interpreted, tl

BY_HAND = tl.constexpr(is_interpreted(tl.sum))
"""Whether bfloat16 is rounded here: Triton's interpreter cuts the lower bits off (3.7.1)."""


@device_function
@no_type_check
def rounded(x, dtype: tl.constexpr):
    """Convert to a type, to the nearest value of it and to the even one of two."""
    if BY_HAND and dtype == tl.bfloat16 and x.dtype == tl.float32:
        bits = x.to(tl.int32, bitcast=True)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16
        x = tl.where(x == x, nearest.to(tl.float32, bitcast=True), x)
    return x.to(dtype)
