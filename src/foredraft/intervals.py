"""How far the mean of a sample may be from the truth."""

Z = 1.959963984540054
"""The normal law's 97.5 % point."""


def wilson(mean: float, n: int) -> tuple[float, float]:
    """Give Wilson's 95 % interval of a mean of n independent values in [0, 1] (JASA 1927).

    Of all such values with that mean those that are 0 or 1 vary most, so for others, such as shares
    of a cell, the interval is too wide rather than too narrow. Raises ValueError if n is below 1 or
    the mean no share.

    >>> [round(bound, 3) for bound in wilson(0.5, 100)]
    [0.404, 0.596]
    """
    if n < 1 or not 0 <= mean <= 1:
        raise ValueError(f"mean {mean} of n={n}: give a mean in [0, 1] of one value at least")
    scale = 1 + Z**2 / n
    centre = (mean + Z**2 / (2 * n)) / scale
    half = Z / scale * (mean * (1 - mean) / n + Z**2 / (4 * n**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)
