"""What a pocket model knows of text that it was not trained on; losses in nats a token."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F

from foredraft.models.decoder import Decoder
from foredraft.training.corpus import Split
from foredraft.types import Float, Int, Tensor

BATCH_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Losses over windows of a held-out stream, averaged by position within the window."""

    by_position: Float[Tensor, " position"]
    windows: int

    @property
    def nats_per_token(self) -> float:
        """Mean loss over all positions."""
        return self.by_position.mean().item()

    def binned(self, edges: tuple[int, ...]) -> dict[str, float]:
        """Average the loss over spans of positions, each from one edge to the next."""
        return {
            f"{start}-{stop - 1}": self.by_position[start:stop].mean().item()
            for start, stop in pairwise(edges)
        }


@torch.no_grad()
def held_out(decoder: Decoder, split: Split, *, length: int, n_windows: int) -> HeldOut:
    """Measure the loss at each position of windows spread evenly over a stream."""
    total = torch.zeros(length, dtype=torch.float64)
    for batch in _batches(split, length, n_windows):
        logits = decoder(batch[:, :-1].to(decoder.device)).float()
        targets = batch[:, 1:].to(decoder.device)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        total += losses.view_as(targets).sum(0, dtype=torch.float64).cpu()
    return HeldOut(total / n_windows, n_windows)


@torch.no_grad()
def overlap(target: Decoder, draft: Decoder, split: Split, *, length: int, n_windows: int) -> float:
    """Measure the mean of β = Σ min(p, q), the chance that a drafted token is accepted.

    Along a held-out stream, at temperature 1 (Leviathan et al., arXiv 2211.17192, theorem 3.5).
    """
    sums = []
    for batch in _batches(split, length, n_windows):
        p, q = (
            model(batch[:, :-1].to(model.device)).float().softmax(-1).to(target.device)
            for model in (target, draft)
        )
        sums.append(torch.minimum(p, q).sum(-1).double().sum().item())
    return sum(sums) / (n_windows * length)


def _batches(split: Split, length: int, n_windows: int) -> Iterator[Int[Tensor, "rows window"]]:
    """Cut the windows, as many rows at a time as keep the logits small."""
    starts = np.linspace(0, len(split.tokens) - length - 1, n_windows).astype(int)
    rows = max(1, BATCH_TOKENS // length)
    for first in range(0, n_windows, rows):
        chunk = [split.tokens[s : s + length + 1] for s in starts[first : first + rows]]
        yield torch.from_numpy(np.stack(chunk).astype(np.int64))
