"""Train a pocket model by its recipe: an accelerate loop with exact resume.

Nothing random outlives a step: the batch of step s is drawn by a generator seeded with s. A
checkpoint is therefore weights, optimiser moments and a step count, in one safetensors file, and a
resumed run continues bit for bit.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import nn

from foredraft.models.config import DecoderConfig
from foredraft.models.decoder import Decoder
from foredraft.models.loading import load
from foredraft.training.checkpoint import Checkpoint, Progress
from foredraft.training.corpus import Corpus, Split
from foredraft.training.decoder.layerskip import ExitLoss, dropped, exit_weights
from foredraft.training.decoder.recipes import Recipe, Stage
from foredraft.types import Float, Int, Tensor

EVALUATE_EVERY = 200
CHECKPOINT_EVERY = 200


@dataclass(frozen=True, slots=True)
class Step:
    """What happened in one optimiser step; losses in nats a token."""

    tokens: int
    n_layers: int
    loss: float
    learning_rate: float
    held_out_loss: float | None


Report = Callable[[Step], None]


def pretrain(
    recipe: Recipe,
    corpus: Corpus,
    *,
    teacher: Decoder | None = None,
    device: str = "cpu",
    compile: bool = True,
    report: Report = lambda step: None,
) -> tuple[Decoder, Progress]:
    """Train from the last checkpoint, or from scratch, to the end of the recipe.

    `teacher` must be given if a stage of the recipe names one. Run under `torchrun`, each process
    takes its share of every batch, and the result is that of one process with the whole batch.
    """
    if teacher is None and any(stage.teacher for stage in recipe.stages):
        raise ValueError(f"{recipe.name} has a stage with a teacher; load it and pass teacher=")
    run = _Run(recipe, corpus, _accelerator(recipe, device, compile), teacher, report)
    run.compiles = compile
    if compile:
        run.distil = torch.compile(distillation_loss)
    for index in range(run.progress.stage, len(recipe.stages)):
        run.train_stage(index)
    return run.decoder.eval().requires_grad_(False), run.progress


class _Run:
    """One training run: the model being trained and how far it has come."""

    def __init__(
        self,
        recipe: Recipe,
        corpus: Corpus,
        accelerator: Accelerator,
        teacher: Decoder | None,
        report: Report,
    ) -> None:
        self.recipe, self.corpus, self.accelerator = recipe, corpus, accelerator
        self.teacher = teacher
        self.distil: Callable[[Tensor, Tensor], Tensor] = distillation_loss
        self.compiles = False
        self.report = report
        self.checkpoint = Checkpoint(recipe.name)
        self.progress = self.checkpoint.progress() or Progress()
        if self.progress.tokens:
            under_way = self.progress.stage - (self.progress.step == 0)
            self.decoder = initialised(recipe, recipe.stages[under_way])
            self.checkpoint.load_model(self.decoder)
            return
        self.decoder = started(recipe)

    def train_stage(self, index: int) -> None:
        stage = self.recipe.stages[index]
        self.decoder = reshaped(self.decoder, self.recipe, stage)
        optimizer = _optimizer(self.decoder, self.recipe)
        if self.progress.step:
            self.checkpoint.load_optimizer(self.decoder, optimizer)
        model, optimizer = self.accelerator.prepare(self._trained(stage), optimizer)
        n_steps = math.ceil(stage.tokens / self.recipe.batch_tokens)
        while self.progress.step < n_steps:
            started = time.monotonic()
            step = self._step(model, optimizer, stage)
            self._advance(step, time.monotonic() - started)
            if self.progress.step % CHECKPOINT_EVERY == 0 and self.progress.step < n_steps:
                self._save(optimizer)
        self.progress = self.progress.next_stage()
        self._save(optimizer)
        self.accelerator.free_memory()

    def _step(self, model: nn.Module, optimizer: torch.optim.Optimizer, stage: Stage) -> Step:
        progress, recipe = self.progress, self.recipe
        rate = learning_rate(recipe, progress)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = self._batch(stage)
        model.train()
        loss = self._loss(model, batch, stage)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        evaluate = (progress.step + 1) % EVALUATE_EVERY == 0
        return Step(
            tokens=progress.tokens + recipe.batch_tokens,
            n_layers=stage.n_layers,
            loss=self._mean(loss.detach()),
            learning_rate=rate,
            held_out_loss=self._held_out_loss(model, stage) if evaluate else None,
        )

    def _mean(self, loss: Float[Tensor, ""]) -> float:
        """Average over processes."""
        return cast("Tensor", self.accelerator.reduce(loss, "mean")).item()

    def _trained(self, stage: Stage) -> nn.Module:
        """Give what a stage compiles and differentiates: with the loss where the text has it."""
        by_branch = self.compiles and self.recipe.layer_skip is not None
        return self.decoder if stage.teacher else ExitLoss(self.decoder, compile=by_branch)

    def _loss(
        self, model: nn.Module, batch: Int[Tensor, "rows window"], stage: Stage
    ) -> Float[Tensor, ""]:
        if stage.teacher is None or self.teacher is None:
            return self._exit_loss(model, batch)
        inputs = batch[:, :-1]
        logits = model(inputs).flatten(0, 1).float()
        with torch.no_grad():
            taught = self.teacher(inputs).flatten(0, 1).float().softmax(-1)
        return self.distil(logits, taught)

    def _exit_loss(self, model: nn.Module, batch: Int[Tensor, "rows window"]) -> Float[Tensor, ""]:
        """Loss at this step's exits, without the layers that it drops: as a rule, at the last."""
        recipe, progress, option = self.recipe, self.progress, self.recipe.layer_skip
        inputs, targets = batch[:, :-1], batch[:, 1:]
        if option is None:
            return model(inputs, targets)
        n_layers, done = self.decoder.config.n_layers, progress.tokens / recipe.tokens
        weights = exit_weights(option, n_layers, progress.tokens // recipe.batch_tokens)
        plan = dropped(option, n_layers, done, generator=self._generator(1))
        return model(inputs, targets, weights, plan)

    def _text_loss(
        self, model: nn.Module, batch: Int[Tensor, "rows window"], stage: Stage
    ) -> Float[Tensor, ""]:
        """Loss of the whole model against the text, in nats a token."""
        inputs, targets = batch[:, :-1], batch[:, 1:]
        if stage.teacher is not None:
            return F.cross_entropy(model(inputs).flatten(0, 1).float(), targets.flatten())
        # branches compiled for evaluation too would exceed the number that torch keeps
        stance = "default" if self.recipe.layer_skip is None else "force_eager"
        with torch.compiler.set_stance(stance):
            return model(inputs, targets)

    def _batch(self, stage: Stage) -> Int[Tensor, "rows window"]:
        """Draw this step's windows at random offsets; each process takes every n-th row."""
        rows = self.recipe.batch_tokens // stage.sequence
        last = len(self.corpus.train.tokens) - stage.sequence - 1
        starts = torch.randint(last, (rows,), generator=self._generator(0))
        share = starts[self.accelerator.process_index :: self.accelerator.num_processes]
        return windows(self.corpus.train, share.tolist(), stage.sequence).to(
            self.accelerator.device
        )

    def _generator(self, use: int) -> torch.Generator:
        """Seed with the tokens seen; each use of chance in a step has a number below its tokens."""
        seed = self.recipe.seed * 1_000_003 + self.progress.tokens
        return torch.Generator().manual_seed(seed + use)

    @torch.no_grad()
    def _held_out_loss(self, model: nn.Module, stage: Stage) -> float:
        """Loss on a fixed sample of the held-out package, in nats a token."""
        model.eval()
        split = self.corpus.held_out_package
        rows = self.recipe.batch_tokens // stage.sequence
        starts = np.linspace(0, len(split.tokens) - stage.sequence - 2, 8 * rows).astype(int)
        losses = []
        for chunk in starts.reshape(8, rows):
            batch = windows(split, chunk.tolist(), stage.sequence).to(self.accelerator.device)
            losses.append(self._text_loss(model, batch, stage).item())
        return sum(losses) / len(losses)

    def _advance(self, step: Step, seconds: float) -> None:
        row = (step.tokens, step.n_layers, step.loss, step.held_out_loss)
        self.progress = self.progress.after(row, seconds)
        self.report(step)

    def _save(self, optimizer: torch.optim.Optimizer) -> None:
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.checkpoint.save(self.progress, self.decoder, optimizer)


def learning_rate(recipe: Recipe, progress: Progress) -> float:
    """Fall in one line from the peak to zero over all stages, each entered with a short warm-up.

    A straight line to zero needs no other number, and each stage, the last at its longer sequences
    too, keeps a rate that it can learn at (arXiv 2502.15938).
    """
    warmup = min(1.0, (progress.step + 1) / recipe.warmup_steps)
    return recipe.peak_learning_rate * max(1 - progress.tokens / recipe.tokens, 0.0) * warmup


def distillation_loss(
    logits: Float[Tensor, "positions vocab"], taught: Float[Tensor, "positions vocab"]
) -> Float[Tensor, ""]:
    """Measure how far the student is from its teacher: KL(p‖q) + TV(p, q), averaged over positions.

    One minus the total variation is Σ min(p, q), the rate at which the teacher will accept the
    student's drafts (arXiv 2211.17192, 3.5); its gradient vanishes where the two do not overlap
    yet, and there the Kullback-Leibler term leads (compared for drafting in arXiv 2310.08461).
    """
    drafted = logits.log_softmax(-1)
    divergence = F.kl_div(drafted, taught, reduction="none").sum(-1)
    variation = 0.5 * (drafted.exp() - taught).abs().sum(-1)
    return (divergence + variation).mean()


def started(recipe: Recipe) -> Decoder:
    """Give the decoder that the first stage starts with: new, or the recipe's shipped model."""
    decoder = initialised(recipe, recipe.stages[0])
    if recipe.starts_from is not None:
        decoder.load_state_dict(load(recipe.starts_from, dtype=torch.float32)[0].state_dict())
    return decoder


def initialised(recipe: Recipe, stage: Stage) -> Decoder:
    """Draw a new model's weights: normal, narrower where a branch joins the residual stream."""
    config = DecoderConfig.from_hf(recipe.config(stage))
    decoder = Decoder(config)
    generator = torch.Generator().manual_seed(recipe.seed)
    narrow = config.initializer_range / math.sqrt(2 * config.n_layers)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.dim() > 1:
                joins = name.endswith(("out.weight", "down.weight"))
                parameter.normal_(
                    0, narrow if joins else config.initializer_range, generator=generator
                )
    return decoder


def reshaped(decoder: Decoder, recipe: Recipe, stage: Stage) -> Decoder:
    """Give the decoder the shape of a stage: deeper by stacking, its MLPs wider or narrower."""
    shape = DecoderConfig.from_hf(recipe.config(stage))
    if shape == decoder.config:
        return decoder
    width = decoder.config.intermediate_size
    deep = deepened(decoder, replace(shape, intermediate_size=width))
    if shape.intermediate_size < width:
        return narrowed(deep, shape)
    return widened(deep, initialised(recipe, stage))


def deepened(decoder: Decoder, shape: DecoderConfig) -> Decoder:
    """Repeat a model's layers, in order, until there are as many as the shape has."""
    shallow = decoder.config.n_layers
    if shape.n_layers % shallow:
        raise ValueError(f"{shape.n_layers} layers are no multiple of {shallow}: choose another")
    deep = Decoder(shape)
    for layer, block in enumerate(deep.layers):
        block.load_state_dict(decoder.layers[layer % shallow].state_dict())
    rest = {k: v for k, v in decoder.state_dict().items() if not k.startswith("layers.")}
    deep.load_state_dict(rest, strict=False)
    return deep


def widened(decoder: Decoder, wide: Decoder) -> Decoder:
    """Write a model into a new one of wider MLPs, whose added features add nothing at first.

    A feature that no weight of the second matrix reads leaves the function as it was, and learns
    from the first step on (function-preserving growth, arXiv 1511.05641).
    """
    narrow, state = decoder.config.intermediate_size, decoder.state_dict()
    for name, tensor in wide.state_dict().items():
        if name.endswith("gate_up.weight"):
            for grown_part, part in zip(tensor.chunk(2), state[name].chunk(2), strict=True):
                grown_part[:narrow] = part
        elif name.endswith("down.weight"):
            tensor.zero_()[:, :narrow] = state[name]
        else:
            tensor.copy_(state[name])
    return wide


def narrowed(decoder: Decoder, shape: DecoderConfig) -> Decoder:
    """Keep of each MLP the features of the heaviest weights, as many as the shape has.

    A wide model pruned and then taught is better than one that was never wide (arXiv 2407.14679).
    """
    narrow, state = Decoder(shape), decoder.state_dict()
    for index in range(shape.n_layers):
        prefix = f"layers.{index}.mlp.operation"
        gate, up = state[f"{prefix}.gate_up.weight"].chunk(2)
        down = state[f"{prefix}.down.weight"]
        weight_of_feature = gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0)
        kept = weight_of_feature.topk(shape.intermediate_size).indices.sort().values
        state[f"{prefix}.gate_up.weight"] = torch.cat([gate[kept], up[kept]])
        state[f"{prefix}.down.weight"] = down[:, kept]
    narrow.load_state_dict(state)
    return narrow


def windows(split: Split, starts: list[int], length: int) -> Int[Tensor, "rows window"]:
    """Cut windows of length + 1 tokens: inputs and, shifted by one, their targets."""
    rows = [split.tokens[start : start + length + 1] for start in starts]
    return torch.from_numpy(np.stack(rows).astype(np.int64))


def _accelerator(recipe: Recipe, device: str, compile: bool) -> Accelerator:
    """Compile the model as one, unless layers are dropped; those get no gradient in that step."""
    whole = compile and recipe.layer_skip is None
    return Accelerator(
        mixed_precision="bf16",
        cpu=device == "cpu",
        dynamo_backend="inductor" if whole else "no",
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=recipe.layer_skip is not None)
        ],
    )


def _optimizer(decoder: Decoder, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) with weight decay on matrices only."""
    decayed, free = [], []
    for name, parameter in decoder.named_parameters():
        plain = parameter.dim() < 2 or name == "embedding.weight"
        (free if plain else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak_learning_rate, betas=recipe.betas, fused=True)
