"""One optimiser made of two: Muon for the matrices of layers, AdamW for everything else."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

Groups = Sequence[dict[str, Any]]


class MuonAdamW(torch.optim.Optimizer):
    """Muon, scaled to AdamW's step (arXiv 2502.16982), beside AdamW (arXiv 1711.05101).

    `param_groups` are the groups of matrices, then the others; the moments of all lie in `state`,
    so that a checkpoint sees one optimiser. Weights decay in matrices alone.
    """

    def __init__(
        self,
        matrices: Groups,
        others: Groups,
        *,
        momentum: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        self.parts = (
            torch.optim.Muon(
                [dict(group) for group in matrices],
                lr=0.0,
                weight_decay=weight_decay,
                momentum=momentum,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(
                [dict(group) for group in others], lr=0.0, betas=betas, weight_decay=0.0
            ),
        )
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._tie()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over groups and moments, as loading a state does, for both parts."""
        super().__setstate__(state)
        self._tie()

    def step(  # pyright: ignore[reportIncompatibleMethodOverride] - no loss comes of it
        self, closure: Callable[[], float] | None = None
    ) -> None:
        """Move every parameter that has a gradient; ValueError for a closure, which has no use."""
        if closure is not None:
            raise ValueError("a closure cannot be evaluated here: call step() without one")
        for part in self.parts:
            part.step()

    def _tie(self) -> None:
        """Let both parts work on this optimiser's groups and moments."""
        first = len(self.parts[0].param_groups)
        self.parts[0].param_groups = self.param_groups[:first]
        self.parts[1].param_groups = self.param_groups[first:]
        for part in self.parts:
            part.state = self.state
