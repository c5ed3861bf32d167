"""Which rows make which batch, settled before training; lengths in tokens.

Rows of like length share a batch, so that little of it is padding. They are sorted within a window
of batches only, whose batches are then shuffled, so that chance decides about everything else.
"""

from collections.abc import Iterator, Sequence

import torch

WINDOW = 32
"""Batches within which rows are sorted: enough for a few per cent of padding."""


def batch_order(
    lengths: Sequence[int],
    *,
    steps: int,
    batch_size: int,
    by_length: bool,
    generator: torch.Generator,
) -> list[list[int]]:
    """Draw the rows of each step's batch; every row is used once before any is used again."""
    if not lengths:
        raise ValueError("there are no rows to train on: give one conversation at least")
    rows = _endless(len(lengths), generator)
    drawn = [[next(rows) for _ in range(batch_size)] for _ in range(steps)]
    if not by_length:
        return drawn
    windows = [drawn[first : first + WINDOW] for first in range(0, steps, WINDOW)]
    return [batch for window in windows for batch in _grouped(window, lengths, generator)]


def padding_share(lengths: Sequence[int], share: int) -> float:
    """Measure how much of a batch is padding when `share` rows at a time are padded alike."""
    shares = [lengths[first : first + share] for first in range(0, len(lengths), share)]
    return 1 - sum(lengths) / sum(max(part) * len(part) for part in shares)


def _grouped(
    window: Sequence[Sequence[int]], lengths: Sequence[int], generator: torch.Generator
) -> list[list[int]]:
    rows = sorted((row for batch in window for row in batch), key=lengths.__getitem__)
    size = len(window[0])
    batches = [rows[first : first + size] for first in range(0, len(rows), size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def _endless(n_rows: int, generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from torch.randperm(n_rows, generator=generator).tolist()
