"""Train the pocket BERT by its recipe: masked tokens and next sentences, with exact resume.

As in `pretrain`, nothing random outlives a step: which rows make the batches of an epoch, and what
is masked in them, follows from seed and epoch. A checkpoint is weights, optimiser moments and a
step count in one safetensors file, and a resumed run continues bit for bit.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from foredraft.models.bert.config import BertConfig
from foredraft.models.bert.model import Bert, BertForPretraining, PretrainingOutput
from foredraft.training.bert.mlm import IGNORED, Batch, Masking, Rows, batched, chance, collate
from foredraft.training.checkpoint import Checkpoint, Progress
from foredraft.types import Float, Int, Tensor

CHECKPOINT_EVERY = 100
EVALUATION_ROWS = 256
NO_ROW = 2**31
"""Numbers, beyond those of the rows, what chance decides about a whole epoch."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A small BERT: its shape, its masking, and the optimiser's few numbers.

    The learning rate falls in a line from `peak_learning_rate` to zero, after a warm-up.
    """

    name: str
    config: BertConfig
    tokens: int
    peak_learning_rate: float
    masking: Masking = field(default_factory=Masking)
    next_sentence: bool = True
    batch_tokens: int = 2048
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 1.0
    warmup_steps: int = 200
    evaluate_every: int = 250
    """In full batches."""
    seed: int = 0


POCKET_BERT = Recipe(
    name="pocket-bert",
    config=BertConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=1024,
        n_layers=4,
        n_heads=4,
        max_positions=128,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    ),
    tokens=7_000_000,
    peak_learning_rate=1e-3,
)


@dataclass(frozen=True, slots=True)
class Losses:
    """Nats a masked token, nats a pair, and their sum, which is trained on."""

    words: float
    follows: float

    @property
    def total(self) -> float:
        """What the optimiser sees."""
        return self.words + self.follows


@dataclass(frozen=True, slots=True)
class Step:
    """What happened in one optimiser step; losses in nats."""

    tokens: int
    losses: Losses
    learning_rate: float
    held_out_loss: float | None
    """Nats a masked token of held-out rows."""


Report = Callable[[Step], None]


def pretrain_bert(
    recipe: Recipe,
    rows: Rows,
    held_out: Rows,
    *,
    device: str = "cpu",
    report: Report = lambda step: None,
    resumable: bool = True,
) -> tuple[BertForPretraining, Progress]:
    """Train from the last checkpoint, or from scratch, to the end of the recipe.

    What is not `resumable` begins from scratch and writes no file. Run under `torchrun`, each
    process takes its share of the rows of every batch; a batch of fewer rows than processes is left
    out.
    """
    checkpoint = Checkpoint(recipe.name) if resumable else None
    run = _Run(recipe, rows, held_out, device, report, checkpoint)
    while run.progress.tokens < recipe.tokens:
        run.train_epoch()
    return run.finished(), run.progress


class _Run:
    """One training run: the model being trained and how far it has come."""

    def __init__(
        self,
        recipe: Recipe,
        rows: Rows,
        held_out: Rows,
        device: str,
        report: Report,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.recipe, self.rows, self.held_out, self.report = recipe, rows, held_out, report
        self.accelerator = Accelerator(mixed_precision="bf16", cpu=device == "cpu")
        self.checkpoint, self.progress = checkpoint, Progress()
        self.model = started(recipe)
        self.optimizer = _optimizer(self.model, recipe)
        if checkpoint is not None and (progress := checkpoint.progress()) is not None:
            self.progress = progress
            checkpoint.load_model(self.model)
            checkpoint.load_optimizer(self.model, self.optimizer)
        self.trained, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)

    def finished(self) -> BertForPretraining:
        """Give the model in eval mode, in full precision again."""
        self.accelerator.unwrap_model(self.trained, keep_fp32_wrapper=False)
        return self.model.eval().requires_grad_(False)

    def train_epoch(self) -> None:
        """Go on with the epoch under way, to its end or the end of the recipe."""
        generator = chance(self.rows.seed, self.progress.stage, NO_ROW)
        lengths = [passage.n_tokens for passage in self.rows.passages]
        batches = batched(lengths, self.recipe.batch_tokens, generator=generator)
        shared = [batch for batch in batches if len(batch) >= self.accelerator.num_processes]
        for batch in shared[self.progress.step :]:
            begun = time.monotonic()
            step = self._step(batch)
            row = (step.tokens, self.recipe.config.n_layers, step.losses.total, step.held_out_loss)
            self.progress = self.progress.after(row, time.monotonic() - begun)
            self.report(step)
            if step.tokens >= self.recipe.tokens:
                break
            if self.progress.step % CHECKPOINT_EVERY == 0:
                self._save()
        else:
            self.progress = self.progress.next_stage()
        self._save()

    def _step(self, indices: Sequence[int]) -> Step:
        progress, recipe = self.progress, self.recipe
        rate = learning_rate(recipe, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        share = indices[self.accelerator.process_index :: self.accelerator.num_processes]
        batch = collate([self.rows(progress.stage, index) for index in share])
        self.trained.train()
        # flash attention's backward pass in bf16 takes a fifth of a whole step longer on a CPU
        with sdpa_kernel(SDPBackend.MATH):
            words, follows = self._losses(batch)
        self.accelerator.backward(words + follows)
        self.accelerator.clip_grad_norm_(self.trained.parameters(), recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        n_tokens = self._sum(batch.attention_mask.sum())
        tokens = progress.tokens + int(n_tokens)
        span = recipe.evaluate_every * recipe.batch_tokens
        evaluate = tokens // span > progress.tokens // span or tokens >= recipe.tokens
        return Step(
            tokens=tokens,
            losses=Losses(self._mean(words), self._mean(follows)),
            learning_rate=rate,
            held_out_loss=self._held_out_loss() if evaluate else None,
        )

    def _losses(self, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Give this process's part of the batch's losses: their mean over processes is the loss."""
        batch = batch.to(self.accelerator.device)
        labels = batch.labels[batch.chosen]
        output = guesses(self.trained, batch)
        words = _summed(output.prediction_logits, labels) / self._count(labels)
        if output.seq_relationship_logits is None:
            return words, torch.zeros_like(words)
        follows = _summed(output.seq_relationship_logits, batch.follows)
        return words, follows / self._count(batch.follows)

    def _count(self, labels: Int[Tensor, " labels"]) -> Float[Tensor, ""]:
        """Average over processes how many labels are asked; one at least."""
        count = (labels != IGNORED).sum().float()
        return cast("Tensor", self.accelerator.reduce(count, "mean")).clamp(min=1)

    def _sum(self, count: Int[Tensor, ""]) -> float:
        device = self.accelerator.device
        return float(cast("Tensor", self.accelerator.reduce(count.to(device), "sum")))

    def _mean(self, loss: Float[Tensor, ""]) -> float:
        return float(cast("Tensor", self.accelerator.reduce(loss.detach(), "mean")))

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        """Loss of masked tokens over a fixed sample of held-out rows."""
        self.trained.eval()
        n_rows = len(self.held_out.passages)
        indices = range(0, n_rows, max(1, n_rows // EVALUATION_ROWS))
        batch = collate([self.held_out(0, index) for index in indices]).to(self.accelerator.device)
        logits = guesses(self.trained, batch).prediction_logits.float()
        return F.cross_entropy(logits, batch.labels[batch.chosen]).item()

    def _save(self) -> None:
        self.accelerator.wait_for_everyone()
        if self.checkpoint is not None and self.accelerator.is_main_process:
            self.checkpoint.save(self.progress, self.model, self.optimizer)


def guesses(model: nn.Module, batch: Batch) -> PretrainingOutput:
    """Let a model guess the chosen tokens of a batch, and whether its pairs follow."""
    return model(batch.ids, batch.attention_mask, batch.segments, chosen=batch.chosen)


def learning_rate(recipe: Recipe, progress: Progress) -> float:
    """Fall in one line from the peak to zero over all tokens, after a warm-up."""
    warmup = min(1.0, (progress.tokens / recipe.batch_tokens + 1) / recipe.warmup_steps)
    return recipe.peak_learning_rate * max(1 - progress.tokens / recipe.tokens, 0.0) * warmup


def started(recipe: Recipe) -> BertForPretraining:
    """Give the model that training starts with."""
    bert = Bert(recipe.config, pooler=recipe.next_sentence)
    model = BertForPretraining(bert, next_sentence=recipe.next_sentence)
    return model.initialise(generator=torch.Generator().manual_seed(recipe.seed))


def _summed(logits: Float[Tensor, "rows classes"], labels: Int[Tensor, " rows"]) -> Tensor:
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) with weight decay on matrices only."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak_learning_rate, betas=recipe.betas, fused=True)
