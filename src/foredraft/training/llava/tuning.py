"""How to fine-tune a LLaVA, and what came of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import pandas as pd
import torch

Method = Literal["full", "lora"]


@final
@dataclass(frozen=True, slots=True)
class FineTuning:
    """How to fine-tune; what `freeze` names is neither trained nor, under LoRA, adapted.

    `batch_size` rows make a step, over all processes, in `accumulation` shares one after another;
    with `by_length` those of a batch are of like length. `autocast` computes in bfloat16,
    `in_bfloat16` holds the weights in it too; `four_bit` holds those that LoRA leaves alone in four
    bits (QLoRA, arXiv 2305.14314).
    """

    steps: int
    batch_size: int
    learning_rate: float
    method: Method = "full"
    rank: int = 16
    warmup_steps: int = 0
    evaluate_every: int = 50
    accumulation: int = 1
    seed: int = 0
    freeze: tuple[str, ...] = ("vision_tower",)
    by_length: bool = True
    autocast: bool = False
    in_bfloat16: bool = False
    four_bit: bool = False
    activation_checkpointing: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "rank", "evaluate_every", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.learning_rate > 0 or self.warmup_steps < 0:
            raise ValueError(
                f"learning_rate={self.learning_rate} must be above 0 and "
                f"warmup_steps={self.warmup_steps} not below"
            )
        if self.method not in ("full", "lora"):
            raise ValueError(f"method {self.method!r} is unknown; choose 'full' or 'lora'")
        if self.four_bit and self.method != "lora":
            raise ValueError("four_bit weights cannot be trained themselves: choose method='lora'")

    @property
    def dtype(self) -> torch.dtype:
        """In what the weights are held; with `four_bit`, those that are not in four bits."""
        return torch.bfloat16 if self.in_bfloat16 or self.four_bit else torch.float32

    def share(self, n_processes: int) -> int:
        """Count the rows that a process takes at once; raise ValueError unless all get as many."""
        n_shares = n_processes * self.accumulation
        if self.batch_size % n_shares:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be shared by {n_processes} processes in "
                f"{self.accumulation} turns: choose a multiple of {n_shares}"
            )
        return self.batch_size // n_shares

    def require_hardware(self) -> None:
        """Raise ValueError unless this machine has what the settings ask for."""
        if self.device != "cpu" and not torch.cuda.is_available():
            raise ValueError(f"device {self.device!r} is not on this machine; choose 'cpu'")
        if self.four_bit and self.device == "cpu":
            raise ValueError("four_bit needs a CUDA device: choose device='cuda' or four_bit=False")


@final
@dataclass(frozen=True, slots=True)
class FineTuned:
    """What came of it.

    `folder` holds a plain LLaVA with its processor, the best by evaluation loss, taken after
    `best_step`; LoRA is merged into it. `log` has a line a step: step, loss, eval_loss (nats a
    token of an answer; NaN where not evaluated), learning_rate, tokens (so far, images' included,
    padding not), padding (share of the step's batch). `resumed_at` is 0 in a run never interrupted.
    """

    folder: Path
    best_step: int
    log: pd.DataFrame
    trained_parameters: int
    resumed_at: int


@dataclass(frozen=True, slots=True)
class Step:
    """What happened in one step of training; `eval_loss` None where not evaluated."""

    step: int
    loss: float
    eval_loss: float | None


Report = Callable[[Step], None]
