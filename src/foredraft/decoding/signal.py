"""What gates and exits look at: one number a row, from a law and the token that was drawn from it.

All are of the plain softmax of a model's logits, before any warper, in float32 or better.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import final

import torch

from foredraft.errors import unknown
from foredraft.types import Float, Int, Tensor

Number = float | int
"""Spelt out, because a type check at run time does not take an int for a float."""

Signal = Callable[[Float[Tensor, "*batch vocab"], Int[Tensor, "*batch"]], Float[Tensor, "*batch"]]
"""Gives a number for each law and its token; it changes neither."""


def confidence(
    logits: Float[Tensor, "*batch vocab"], tokens: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Give the plain softmax's probability of each token."""
    wide = _wide(logits)
    chosen = wide.gather(-1, tokens[..., None]).squeeze(-1)
    return (chosen - wide.logsumexp(-1)).exp()


def entropy(
    logits: Float[Tensor, "*batch vocab"], tokens: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Give the entropy of each law in nats, whatever the token: log Z − Σ p · logit."""
    wide = _wide(logits)
    total = wide.logsumexp(-1)
    surprise = total[..., None] - wide
    return torch.special.entr((-surprise).exp()).sum(-1)


def margin(
    logits: Float[Tensor, "*batch vocab"], tokens: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Give the lead of each law's likeliest token over the second, whatever the token."""
    wide = _wide(logits)
    first, second = wide.topk(2, -1).values.unbind(-1)
    total = wide.logsumexp(-1)
    return (first - total).exp() - (second - total).exp()


SIGNALS: Mapping[str, Signal] = {"confidence": confidence, "entropy": entropy, "margin": margin}
"""The signals by name."""


@final
@dataclass(frozen=True)
class Blend:
    """A sum of signals, each with a weight, and a start: such as logistic regression fits.

    ValueError for no names, or one that is no signal.
    """

    weights: Mapping[str, Number]
    start: Number = 0.0
    signals: Mapping[str, Signal] = field(default_factory=lambda: SIGNALS)

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError(
                f"a blend of no signals: weigh one or more of {', '.join(self.signals)}"
            )
        for name in self.weights:
            if name not in self.signals:
                raise unknown("signal", name, self.signals)

    def __call__(
        self, logits: Float[Tensor, "*batch vocab"], tokens: Int[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch"]:
        """Add up."""
        return self.of({name: self.signals[name](logits, tokens) for name in self.weights})

    def of(self, known: Mapping[str, Tensor]) -> Tensor:
        """Add up signals that are known already, by their names."""
        parts = [weight * known[name] for name, weight in self.weights.items()]
        return torch.stack(parts).sum(0) + self.start


def _wide(logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
