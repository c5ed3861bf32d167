"""The logistic function and the hyperbolic tangent, by exponentials that cannot overflow."""

from typing import no_type_check

from foredraft.kernels.environment import device_function, tl


@device_function
@no_type_check
def logistic(x):
    """Give 1 ÷ (1 + e⁻ˣ)."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, small) / (1.0 + small)


@device_function
@no_type_check
def tanh(x):
    """Give the hyperbolic tangent; to about 1e-7, not to so many digits near 0."""
    small = tl.exp(-2.0 * tl.abs(x))
    size = (1.0 - small) / (1.0 + small)
    return tl.where(x >= 0, size, -size)
