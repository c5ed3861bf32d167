"""The LayerSkip recipe: a decoder that is trained to do without its last layers.

Layers are dropped at random, later ones more often, and the loss is also taken at early exits, all
of which share the final norm and the head (Elhoushi et al., arXiv 2404.16710, sections 4.1.1 and
4.1.2). A layer is dropped for a whole batch here, where the paper drops it sample by sample: so a
skip plan does it, and the layer's time is saved.
"""

from dataclasses import dataclass, replace
from typing import final

import torch
import torch.nn.functional as F
from torch import nn

from foredraft.models.decoder import Branch, Decoder
from foredraft.models.skip import SkipPlan
from foredraft.types import Float, Hidden, Int, Tensor


@dataclass(frozen=True, slots=True)
class LayerSkip:
    """The recipe's numbers: dropout at the last layer, weight of the early exits, their rotation.

    One step in `rotation` asks any given early exit. `ramps` lets the dropout grow over the run,
    as for a model from scratch; a model that goes on from a trained one has it whole throughout.
    """

    max_dropout: float
    exit_scale: float
    rotation: int
    ramps: bool = False

    def __post_init__(self) -> None:
        """Refuse a dropout that is no probability, a negative weight, a rotation of nothing."""
        if not 0 <= self.max_dropout <= 1:
            raise ValueError(f"max_dropout={self.max_dropout} is a probability: give 0 to 1")
        if self.exit_scale < 0:
            raise ValueError(f"exit_scale={self.exit_scale} weighs a loss: give 0 or more")
        if self.rotation < 1:
            raise ValueError(f"rotation={self.rotation} counts steps: give 1 or more")


def dropout_rates(option: LayerSkip, n_layers: int, done: float) -> tuple[float, ...]:
    """Give each layer's chance to be dropped when a share `done` of the run is over.

    p(l, t) = S(t) · D(l) · p_max, where D(l) = 2^(l / (L−1)) − 1, and S is 1 or, if the dropout
    ramps, 2^(t / T) − 1.
    """
    scale = 2**done - 1 if option.ramps else 1.0
    depths = [layer / max(n_layers - 1, 1) for layer in range(n_layers)]
    return tuple(scale * (2**depth - 1) * option.max_dropout for depth in depths)


def dropped(
    option: LayerSkip, n_layers: int, done: float, *, generator: torch.Generator
) -> SkipPlan:
    """Draw the layers that one step goes without."""
    rates = torch.tensor(dropout_rates(option, n_layers, done))
    layers = torch.nonzero(torch.rand(n_layers, generator=generator) < rates).flatten().tolist()
    return SkipPlan(attn=layers, mlp=layers)


def exit_weights(option: LayerSkip, n_layers: int, step: int) -> tuple[float, ...]:
    """Give the weight of the loss after each layer at one step; they sum to 1.

    e(l) = scale · (0 + 1 + … + l) at an early exit, and L − 1 + scale · (0 + 1 + … + L−2) after
    the last layer, which is on at each step; of the others, one in `rotation` is on, in turn.
    """
    last = n_layers - 1
    raw = [option.exit_scale * layer * (layer + 1) / 2 for layer in range(last)]
    on = [weight * ((layer - step) % option.rotation == 0) for layer, weight in enumerate(raw)]
    # alone, a decoder of one layer has e(0) = 0
    weights = [*on, max(last, 1) + option.exit_scale * last * (last - 1) / 2]
    return tuple(weight / sum(weights) for weight in weights)


@final
class ExitLoss(nn.Module):
    """The losses at a decoder's exits, as one module, whose forward accelerate can wrap."""

    def __init__(self, decoder: Decoder, *, compile: bool = False) -> None:
        """Compile the branches one by one: the whole would be compiled anew with each new plan."""
        super().__init__()
        self.decoder = decoder
        self.loss_at = torch.compile(self._loss_at, dynamic=False) if compile else self._loss_at
        if compile:
            torch.compiler.reset()  # what was compiled for other shapes counts towards its limit
            for module in decoder.modules():
                if isinstance(module, Branch):
                    module.compile(dynamic=False)

    def forward(
        self,
        tokens: Int[Tensor, "batch seq"],
        targets: Int[Tensor, "batch seq"],
        weights: tuple[float, ...] = (),
        skip: SkipPlan | None = None,
    ) -> Float[Tensor, ""]:
        """Add up the weighted losses after each layer; without weights, give the last one's."""
        n_layers = self.decoder.config.n_layers
        weights = weights or (0.0,) * (n_layers - 1) + (1.0,)
        _, *states = self.decoder.hidden_states(tokens, skip=skip)
        asked = [(weight, state) for weight, state in zip(weights, states, strict=True) if weight]
        losses = [weight * self.loss_at(state, targets) for weight, state in asked]
        return torch.stack(losses).sum()

    def _loss_at(self, hidden: Hidden, targets: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
        logits = self.decoder.logits(hidden).flatten(0, 1).float()
        return F.cross_entropy(logits, targets.flatten())


def cut(decoder: Decoder, n_layers: int) -> Decoder:
    """Give what an exit after n_layers computes, as a decoder of its own; tensors are shared."""
    config = decoder.config
    if not 0 < n_layers <= config.n_layers:
        raise ValueError(f"n_layers={n_layers}: an exit lies after 1 to {config.n_layers} layers")
    beyond = tuple(f"layers.{layer}." for layer in range(n_layers, config.n_layers))
    kept = {k: v for k, v in decoder.state_dict().items() if not k.startswith(beyond or "\0")}
    shallow = replace(config, n_layers=n_layers, windows=config.windows[:n_layers])
    return Decoder.from_tensors(shallow, kept)
