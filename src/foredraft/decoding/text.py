"""The verified text of each row, on the device; its length is known on the host too."""

from collections.abc import Sequence
from copy import copy
from typing import final

import torch

from foredraft.models.cache import sent
from foredraft.types import Int, Tensor

PADDING = -1
"""What stands behind the end of a row."""


@final
class Text:
    """Prompt and emitted tokens of a batch of rows, in one tensor padded with −1.

    `tokens` has shape [batch, capacity]; `ends` [batch] is the length of each row on the device and
    `lengths` the same on the host, so that nobody has to ask the device.
    """

    def __init__(
        self, prompts: Sequence[Sequence[int]], capacity: int, device: torch.device
    ) -> None:
        """Take over the prompts; `capacity` is the longest text that any row may reach."""
        rows = [[*row, *[PADDING] * (capacity - len(row))] for row in prompts]
        self.tokens = torch.tensor(rows, device=device)
        self.lengths = [len(row) for row in prompts]
        self.ends = torch.tensor(self.lengths, device=device)

    def append(self, tokens: Int[Tensor, "batch new"], counts: Int[Tensor, " batch"]) -> None:
        """Add the first `counts` tokens to each row; `extend_lengths` must follow on the host."""
        self.tokens = self.followed_by(tokens, counts)
        self.ends = self.ends + counts

    def extend_lengths(self, counts: Sequence[int]) -> None:
        """Count on the host what `append` added."""
        self.lengths = [length + n for length, n in zip(self.lengths, counts, strict=True)]

    def followed_by(
        self, tokens: Int[Tensor, "batch new"], counts: Int[Tensor, " batch"]
    ) -> Int[Tensor, "batch capacity"]:
        """Give the rows with the first `counts` of these tokens behind them, the text unchanged."""
        offsets = torch.arange(tokens.shape[1], device=tokens.device)
        kept = torch.where(offsets < counts[:, None], tokens, PADDING)
        places = (self.ends[:, None] + offsets).clamp(max=self.tokens.shape[1] - 1)
        # Only padding is ever clamped: it must not overwrite the token at the very end.
        written = self.tokens.scatter_reduce(1, places, kept, "amax")
        return written

    def on(self, device: torch.device) -> "Text":
        """Give it on another device, as it stands; itself where it lies there already."""
        if self.tokens.device == device:
            return self
        moved = copy(self)
        moved.tokens, moved.ends = self.tokens.to(device), self.ends.to(device)
        return moved

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drop the rows not named."""
        index = sent(rows, self.tokens.device)
        self.tokens, self.ends = self.tokens[index], self.ends[index]
        self.lengths = [self.lengths[row] for row in rows]
