"""Train the pocket LLaVA to read, in two stages: see the glyphs, then say them in order.

First the tower alone learns from every patch of a page: which characters are centred there, in
which line, which word and which place of the word. This is some hundred labels an image and needs
no decoder; the head that is read off is thrown away at the end. Then the whole model learns to
spell pages, by the usual loss on the answer, while the patches' labels keep the glyphs sharp.

As in `pretrain`, nothing random outlives a step, so that a resumed run continues bit for bit.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import nn
from torch.utils.data import DataLoader
from transformers import LlavaForConditionalGeneration

from foredraft.training.checkpoint import Checkpoint, Progress
from foredraft.training.llava.model import Sizes, untrained
from foredraft.training.llava.muon import MuonAdamW
from foredraft.training.llava.reading import BINS, BOUNDS, CHARACTERS, IGNORED, Kind
from foredraft.training.llava.reading_batches import Batch, Batches
from foredraft.types import Float, Int, Tensor

EVALUATE_EVERY = 200
CHECKPOINT_EVERY = 200
HELD_OUT_ROWS = 16
PATCH_WEIGHT = 0.5
"""Weight of the patches' loss beside that of the answer."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of training on pages of these kinds in turn, `rows` a step.

    `rate` is the peak learning rate of projector and Llama, None if they rest and the tower learns
    alone; `tower_rate` is the tower's. `place_weight` is the weight of the loss of lines, words and
    places in a patch beside that of its characters.
    """

    kinds: tuple[Kind, ...]
    steps: int
    rows: int
    tower_rate: float
    rate: float | None = None
    place_weight: float = 0.1
    constant_share: float = 0.6
    """Share of the steps at the peak rate; in the rest it falls in a line to zero."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a small LLaVA is trained to read."""

    name: str
    sizes: Sizes
    stages: tuple[Stage, ...]
    seed: int = 0
    weight_decay: float = 0.02
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.98)
    vector_share: float = 0.4
    """Rate of what is no matrix, as a share of the matrices' rate."""
    clip_norm: float = 1.0
    warmup_steps: int = 60

    @property
    def steps(self) -> int:
        """Steps over all stages."""
        return sum(stage.steps for stage in self.stages)


POCKET_LLAVA = Recipe(
    name="pocket-llava",
    sizes=Sizes(),
    stages=(
        Stage(("dense",), steps=1800, rows=16, tower_rate=4e-3),
        Stage(
            ("grid", "loose", "grid"),
            steps=1600,
            rows=8,
            tower_rate=1e-3,
            rate=4e-3,
            place_weight=0.3,
            constant_share=1.0,
        ),
        Stage(
            ("grid", "loose", "grid"),
            steps=1600,
            rows=16,
            tower_rate=1e-3,
            rate=4e-3,
            place_weight=0.3,
            constant_share=0.2,
        ),
        Stage(
            ("grid", "grid", "loose"),
            steps=700,
            rows=16,
            tower_rate=8e-4,
            rate=3e-3,
            place_weight=0.3,
            constant_share=0.1,
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Step:
    """What happened in one optimiser step; losses in nats, of a character and of a token."""

    number: int
    stage: int
    loss: float
    learning_rate: float
    held_out_error: float | None
    """Share of wrong tokens in answers about held-out pages; before, of characters in patches."""


Report = Callable[[Step], None]


class Reader(nn.Module):
    """A LLaVA and the head that reads its patches."""

    def __init__(self, llava: LlavaForConditionalGeneration, width: int) -> None:
        super().__init__()
        self.llava = llava
        classes = (len(CHARACTERS) + 1) * BINS + sum(BOUNDS)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, batch: Batch, *, reads: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Give the logits of characters and of places; of the answer's tokens too if it reads."""
        model = self.llava.model
        seen = model.vision_tower(pixel_values=batch.pixels, output_hidden_states=True)
        patches = seen.hidden_states[self.llava.config.vision_feature_layer][:, 1:]
        marks = self.head(patches)
        split = (len(CHARACTERS) + 1) * BINS
        characters = marks[..., :split].unflatten(-1, (BINS, -1))
        if not reads:
            return characters, marks[..., split:], None
        inputs = model.get_input_embeddings()(batch.tokens)
        images = model.multi_modal_projector(patches).to(inputs.dtype)
        inputs = torch.cat(
            [inputs[:, : batch.image.start], images, inputs[:, batch.image.stop :]], dim=1
        )
        hidden = model.language_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        answers = self.llava.lm_head(hidden[:, batch.answer - 1 : -1])
        return characters, marks[..., split:], answers


def pretrain_llava(
    recipe: Recipe,
    *,
    device: str = "cpu",
    workers: int = 1,
    report: Report = lambda step: None,
) -> tuple[LlavaForConditionalGeneration, Progress]:
    """Train from the last checkpoint, or from scratch, to the end of the recipe.

    Pages are drawn by so many other processes; with 0, in this one. Under `torchrun` each process
    takes its share of every batch.
    """
    run = _Run(recipe, device, workers, report)
    for index in range(run.progress.stage, len(recipe.stages)):
        run.train_stage(index)
    return run.reader.llava.eval().requires_grad_(False), run.progress


class _Run:
    """One training run: the model being trained and how far it has come."""

    def __init__(self, recipe: Recipe, device: str, workers: int, report: Report) -> None:
        self.recipe, self.workers, self.report = recipe, workers, report
        self.accelerator = Accelerator(
            mixed_precision="bf16",
            cpu=device == "cpu",
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.checkpoint = Checkpoint(recipe.name)
        self.progress = self.checkpoint.progress() or Progress()
        self.reader = started(recipe)
        if self.progress.tokens:
            self.checkpoint.load_model(self.reader)

    def train_stage(self, index: int) -> None:
        stage = self.recipe.stages[index]
        optimizer = _optimizer(self.reader, self.recipe)
        if self.progress.step:
            self.checkpoint.load_optimizer(self.reader, optimizer)
        model, optimizer = self.accelerator.prepare(self.reader, optimizer)
        for batch in self._batches(index):
            begun = time.monotonic()
            step, n_tokens = self._step(model, optimizer, stage, batch)
            row = (self.progress.tokens + n_tokens, index, step.loss, step.held_out_error)
            self.progress = self.progress.after(row, time.monotonic() - begun)
            self.report(step)
            if self.progress.step % CHECKPOINT_EVERY == 0 and self.progress.step < stage.steps:
                self._save(optimizer)
        self.progress = self.progress.next_stage()
        self._save(optimizer)
        self.accelerator.free_memory()

    def _batches(self, index: int) -> Iterator[Batch]:
        """Draw the batches of the steps that remain, each from its own number."""
        recipe, stage, accelerator = self.recipe, self.recipe.stages[index], self.accelerator
        batches = Batches(
            recipe.sizes,
            stage.kinds,
            rows=stage.rows,
            seed=recipe.seed + index,
            share=(accelerator.process_index, accelerator.num_processes),
        )
        loader = DataLoader(
            batches,
            batch_size=None,
            sampler=range(self.progress.step, stage.steps),
            num_workers=self.workers,
            prefetch_factor=4 if self.workers else None,
        )
        return (batch.to(accelerator.device) for batch in loader)

    def _step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, stage: Stage, batch: Batch
    ) -> tuple[Step, int]:
        progress, recipe = self.progress, self.recipe
        share = rate_share(recipe, stage, progress.step)
        peaks = [
            f * r for f in (1, recipe.vector_share) for r in (stage.tower_rate, stage.rate or 0)
        ]
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * share
        model.train()
        loss = self._loss(model(batch, reads=stage.rate is not None), batch, stage)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        evaluate = (progress.step + 1) % EVALUATE_EVERY == 0 or progress.step + 1 == stage.steps
        step = Step(
            number=sum(s.steps for s in recipe.stages[: progress.stage]) + progress.step + 1,
            stage=progress.stage,
            loss=self._mean(loss.detach()).item(),
            learning_rate=(stage.rate or stage.tower_rate) * share,
            held_out_error=self._held_out_error(model, stage) if evaluate else None,
        )
        return step, batch.n_tokens * self.accelerator.num_processes

    def _loss(
        self, logits: tuple[Tensor, Tensor, Tensor | None], batch: Batch, stage: Stage
    ) -> Float[Tensor, ""]:
        """Nats a character of the patches, or a token of the answer with a share of the former."""
        characters, places, answers = logits
        counts = [(batch.characters > 0).sum(), (batch.places[..., 0] != IGNORED).sum()]
        counts.append((batch.labels != IGNORED).sum())
        # averaged over processes, so that their losses' mean is the whole batch's loss
        n_characters, n_marked, n_tokens = self._mean(torch.stack(counts).float())
        loss = _summed(characters, batch.characters) / n_characters
        for order, part in enumerate(places.split(BOUNDS, dim=-1)):
            marks = _summed(part, batch.places[..., order]) / n_marked
            loss = loss + stage.place_weight * marks
        if answers is None:
            return loss
        return _summed(answers, batch.labels) / n_tokens + PATCH_WEIGHT * loss

    def _mean(self, value: Tensor) -> Tensor:
        """Average over processes."""
        return cast("Tensor", self.accelerator.reduce(value, "mean"))

    @torch.no_grad()
    def _held_out_error(self, model: nn.Module, stage: Stage) -> float:
        """Measure on a fixed sample of pages of words that training never shows."""
        model.eval()
        wrong, n = 0.0, 0.0
        for number in range(4):
            batch = held_out(self.recipe, stage, number).to(self.accelerator.device)
            characters, _, answers = model(batch, reads=stage.rate is not None)
            guessed, true = (
                (characters, batch.characters) if answers is None else (answers, batch.labels)
            )
            counted = true > 0 if answers is None else true != IGNORED
            wrong += ((guessed.argmax(-1) != true) & counted).sum().item()
            n += counted.sum().item()
        return wrong / n

    def _save(self, optimizer: torch.optim.Optimizer) -> None:
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.checkpoint.save(self.progress, self.reader, optimizer)


def started(recipe: Recipe) -> Reader:
    """Give the model that the first stage starts with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return Reader(untrained(recipe.sizes, seed=recipe.seed), recipe.sizes.tower_width)


def held_out(recipe: Recipe, stage: Stage, number: int) -> Batch:
    """Draw one of the batches that a stage is evaluated on."""
    return Batches.held_out(recipe.sizes, stage.kinds, rows=HELD_OUT_ROWS)[number]


def rate_share(recipe: Recipe, stage: Stage, step: int) -> float:
    """Share of the peak rate: a warm-up, a stretch at the peak, and a line to zero."""
    left, falling = 1 - step / stage.steps, 1 - stage.constant_share
    fall = left / falling if falling else 1.0
    return min(1.0, (step + 1) / recipe.warmup_steps, fall)


def _summed(logits: Tensor, targets: Int[Tensor, "..."]) -> Float[Tensor, ""]:
    return F.cross_entropy(
        logits.float().flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def _optimizer(reader: Reader, recipe: Recipe) -> MuonAdamW:
    """Muon for the layers' matrices, which learn the glyphs in half as many steps as with AdamW.

    The tower, with its head, comes first in each of the two.
    """
    matrices, others = ([], []), ([], [])
    for name, parameter in reader.named_parameters():
        is_matrix = parameter.dim() == 2 and "layers." in name
        in_language = not name.startswith(("llava.model.vision_tower.", "head."))
        (matrices if is_matrix else others)[in_language].append(parameter)
    return MuonAdamW(
        [{"params": part} for part in matrices],
        [{"params": part} for part in others],
        momentum=recipe.momentum,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
    )
