"""Training checkpoints: weights, optimiser moments and progress in one safetensors file."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from foredraft import paths
from foredraft.types import Tensor

LossRow = tuple[int, int, float, float | None]
"""Tokens seen, layers, training loss, held-out loss (nats a token; None where not measured)."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come: stage, steps in it; tokens, seconds, and the loss curve."""

    stage: int = 0
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    curve: tuple[LossRow, ...] = ()

    def after(self, row: LossRow, seconds: float) -> "Progress":
        """Count one step; the curve keeps every tenth row and every evaluation."""
        kept = row[3] is not None or self.step % 10 == 0
        curve = (*self.curve, row) if kept else self.curve
        return Progress(self.stage, self.step + 1, row[0], self.seconds + seconds, curve)

    def next_stage(self) -> "Progress":
        """Start the next stage at step 0."""
        return replace(self, stage=self.stage + 1, step=0)


class Checkpoint:
    """The one checkpoint of a run, replaced whole at each save."""

    def __init__(self, name: str) -> None:
        self.path = paths.training(name) / "checkpoint.safetensors"

    def progress(self) -> Progress | None:
        """Read how far the saved run has come; None if there is none."""
        if not self.path.exists():
            return None
        with safe_open(self.path, "pt") as file:
            fields = json.loads(file.metadata()["progress"])
        return Progress(**{**fields, "curve": tuple(tuple(row) for row in fields["curve"])})

    def save(self, progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write everything to a temporary file and put it in place."""
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        for name, parameter in model.named_parameters():
            moments: Mapping[str, Tensor] = optimizer.state[parameter]
            tensors |= {f"optimizer.{name}.{key}": value for key, value in moments.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            part,
            metadata={"progress": json.dumps(asdict(progress))},
        )
        os.replace(part, self.path)

    def load_model(self, model: nn.Module) -> None:
        """Copy the saved weights into the model."""
        model.load_state_dict(self._tensors("model."))

    def load_optimizer(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Restore the saved moments and step counts of every parameter."""
        saved = self._tensors("optimizer.")
        for name, parameter in model.named_parameters():
            prefix = f"{name}."
            moments = {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}
            optimizer.state[parameter] = moments

    def _tensors(self, prefix: str) -> dict[str, Tensor]:
        with safe_open(self.path, "pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            return {name.removeprefix(prefix): file.get_tensor(name) for name in names}
