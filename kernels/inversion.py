"""Draw by inverting cumulated weights, in two stages: which chunk of a row, which token within.

What `foredraft.sampling.invert` does, for rows too long for one program instance. Chunks are summed
in float32, sums of chunks and what is cumulated within one are float64: a float32 sum over 256,000
tokens would lose the rare ones.
"""

from typing import no_type_check

from foredraft.kernels.environment import device_function, power_of_two, tl

CHUNK = 4096
"""Tokens in a chunk."""

WARPS = 8
"""Of a program instance that reads a chunk: 16 tokens a thread."""

MOST_CHUNKS = 1024
"""Chunks in a row, all of whose sums one program instance holds."""


@device_function
@no_type_check
def first_above(weights, level, place):
    """Give the first place where the cumulated weight exceeds `level`; it has weight itself.

    Where rounding leaves none, the last place with weight; −1 if no place has any.
    """
    cumulated = tl.cumsum(weights.to(tl.float64), 0)
    found = (cumulated > level) & (weights > 0)
    last = tl.max(tl.where(weights > 0, place, -1), axis=0)
    return tl.minimum(tl.min(tl.where(found, place, 0x7FFFFFFF), axis=0), last)


@device_function
@no_type_check
def value_at(values, places, place):
    """Give the one of `values` whose place is `place`."""
    return tl.sum(tl.where(places == place, values, 0), axis=0)


def chunk_of(vocab: int) -> int:
    """Give the tokens in a chunk of rows of this length; ValueError for rows that are too long."""
    if not 1 <= vocab <= CHUNK * MOST_CHUNKS:
        raise ValueError(
            f"rows have {vocab} tokens; the kernel draws from 1 to {CHUNK * MOST_CHUNKS}"
        )
    return min(CHUNK, max(16, power_of_two(vocab)))
