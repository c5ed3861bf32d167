"""Fine-tune a LLaVA on conversations about images with TRL: fully, or by LoRA.

Which rows make which batch is settled before training, so a checkpoint needs no state of a sampler,
and several processes share out exactly the batches of one. Two traps of the Trainer are avoided: of
a LLaVA it restores neither the weights on resuming nor the best ones at the end (it looks for other
names than its own checkpoints have, and says so in a log line only), and it takes up a half-written
checkpoint. Here weights always come from a whole folder, by `from_pretrained`.
"""

import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from datasets import Dataset
from torch import nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PrinterCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from foredraft import paths
from foredraft.files import write_text
from foredraft.models.loading import locate
from foredraft.training.llava import checkpoint_folder
from foredraft.training.llava.answer_labels import collator, prepared, token_lengths
from foredraft.training.llava.answers_only import AnswersOnly, AnswersTrainer
from foredraft.training.llava.batch_order import batch_order, padding_share
from foredraft.training.llava.folder import image_tokens, load_llava, load_processor
from foredraft.training.llava.lora import adapters, four_bit, merged, parts, past_deprecation
from foredraft.training.llava.milestones import Milestones, Reporter
from foredraft.training.llava.tuning import FineTuned, FineTuning, Report


def fine_tune(
    base: str | Path,
    train: Dataset,
    evaluation: Dataset,
    tuning: FineTuning,
    run: Path,
    *,
    report: Report = lambda step: None,
) -> FineTuned:
    """Train a LLaVA on `train`; go on from the last whole checkpoint in the folder `run`, if any.

    `base` is a pocket model, a folder or a hub id; both data sets have columns `messages`, whose
    contents are lists of parts, and `images`. Under `torchrun`, the processes share every batch.
    """
    with _chance_undisturbed():
        _processes(tuning)
        tuning.require_hardware()
        processor = prepared(load_processor(locate(base)))
        batches = _Batches.of(processor, train, evaluation, tuning, image_tokens(locate(base)))
        _require_same_run(run, _described(base, tuning, batches))
        last = checkpoint_folder.newest(run)
        model = start(base if last is None or tuning.method == "lora" else last, tuning)
        trainer = _trainer(model, processor, batches, tuning, run)
        trainer.add_callback(Reporter(report))
        resumed_at = 0 if last is None else checkpoint_folder.step(last)
        if resumed_at < tuning.steps:
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
            trainer.accelerator.wait_for_everyone()
        state = _state(run / f"checkpoint-{tuning.steps}")
        best = state["best_global_step"]
        return FineTuned(
            folder=_best(base, run / f"checkpoint-{best}", processor, tuning),
            best_step=best,
            log=_log(state["log_history"], batches),
            trained_parameters=_trained(trainer),
            resumed_at=resumed_at,
        )


def start(folder: str | Path, tuning: FineTuning) -> LlavaForConditionalGeneration:
    """Load what training begins or goes on with; adapters are the Trainer's to make and restore."""
    model, _ = load_llava(
        folder,
        device=tuning.device,
        dtype=tuning.dtype,
        quantization=four_bit() if tuning.four_bit else None,
    )
    for part in parts(model, tuning.freeze):
        part.requires_grad_(False)
    model.model.language_model.register_forward_pre_hook(_without_padding_mask, with_kwargs=True)
    return model


def _without_padding_mask(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Leave out a mask that changes nothing and costs half of attention.

    Padding stands on the right and carries no loss, and no token looks to its right.
    """
    return args, {**kwargs, "attention_mask": None}


def _best(
    base: str | Path, checkpoint: Path, processor: LlavaProcessor, tuning: FineTuning
) -> Path:
    """Give the folder of a checkpoint's model; that of LoRA is made once, by one process."""
    checkpoint_folder.require_whole(checkpoint)
    if tuning.method == "full":
        return checkpoint
    folder = checkpoint.with_name(f"merged-{checkpoint_folder.step(checkpoint)}")
    if PartialState().is_main_process and not folder.is_dir():
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        merged(base, checkpoint, dtype=tuning.dtype).save_pretrained(part)
        processor.save_pretrained(part)
        os.replace(part, folder)
    PartialState().wait_for_everyone()
    return folder


def _trained(trainer: SFTTrainer) -> int:
    assert trainer.model is not None
    return sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)


@dataclass(frozen=True, slots=True)
class _Batches:
    """The rows in the order in which they are used; tokens and share of padding by step."""

    train: Dataset
    evaluation: Dataset
    tokens: list[int]
    padding: list[float]

    @classmethod
    def of(
        cls,
        processor: LlavaProcessor,
        train: Dataset,
        evaluation: Dataset,
        tuning: FineTuning,
        image: int,
    ) -> "_Batches":
        lengths, held_out = (
            token_lengths(processor, rows["messages"], image) for rows in (train, evaluation)
        )
        order = batch_order(
            lengths,
            steps=tuning.steps,
            batch_size=tuning.batch_size,
            by_length=tuning.by_length,
            generator=torch.Generator().manual_seed(tuning.seed),
        )
        used = [[lengths[i] for i in batch] for batch in order]
        share = tuning.share(_processes(tuning).num_processes)
        return cls(
            train.select([i for batch in order for i in batch]),
            evaluation.select(sorted(range(len(held_out)), key=held_out.__getitem__)),
            [sum(batch) for batch in used],
            [padding_share(batch, share) for batch in used],
        )


def _trainer(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    batches: _Batches,
    tuning: FineTuning,
    run: Path,
) -> SFTTrainer:
    by_lora = tuning.method == "lora"
    with past_deprecation():
        trainer = AnswersTrainer(
            model,
            _arguments(tuning, run),
            data_collator=collator(processor),
            train_dataset=batches.train,
            eval_dataset=batches.evaluation,
            processing_class=processor,
            peft_config=adapters(model, tuning.rank, tuning.freeze) if by_lora else None,
            callbacks=[Milestones()],
        )
    trainer.remove_callback(PrinterCallback)
    trainer.answers = AnswersOnly(model.model.language_model.layers[-1])
    return trainer


def _arguments(tuning: FineTuning, run: Path) -> SFTConfig:
    """Say all that TRL would otherwise decide for us, above all bf16 and cutting texts at 1024."""
    share = tuning.share(_processes(tuning).num_processes)
    return SFTConfig(
        str(run),
        use_cpu=tuning.device == "cpu",
        bf16=tuning.autocast,
        max_length=None,
        assistant_only_loss=True,
        activation_checkpointing=tuning.activation_checkpointing,
        max_steps=tuning.steps,
        per_device_train_batch_size=share,
        per_device_eval_batch_size=share,
        gradient_accumulation_steps=tuning.accumulation,
        train_sampling_strategy="sequential",
        learning_rate=tuning.learning_rate,
        warmup_steps=tuning.warmup_steps,
        lr_scheduler_type="linear",
        weight_decay=0.0,
        seed=tuning.seed,
        eval_strategy="steps",
        eval_steps=tuning.evaluate_every,
        save_steps=tuning.evaluate_every,
        save_total_limit=2,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=1,
        disable_tqdm=True,
        report_to="none",
        push_to_hub=False,
        dataloader_pin_memory=tuning.device != "cpu",
    )


def _processes(tuning: FineTuning) -> PartialState:
    """Join the other processes, if any; the first call decides where they meet."""
    return PartialState(cpu=tuning.device == "cpu")


def _log(history: list[dict[str, float]], batches: _Batches) -> pd.DataFrame:
    """Lay out the Trainer's log with a line a step."""
    evaluated = {line["step"]: line["eval_loss"] for line in history if "eval_loss" in line}
    tokens = np.cumsum(batches.tokens)
    return pd.DataFrame(
        {
            "step": line["step"],
            "loss": line["loss"],
            "eval_loss": evaluated.get(line["step"], float("nan")),
            "learning_rate": line["learning_rate"],
            "tokens": tokens[int(line["step"]) - 1],
            "padding": batches.padding[int(line["step"]) - 1],
        }
        for line in history
        if "loss" in line
    )


def _state(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / checkpoint_folder.STATE).read_text(encoding="utf-8"))


def _described(base: str | Path, tuning: FineTuning, batches: _Batches) -> dict[str, Any]:
    """Describe what must be the same for a run to go on: settings, base and order of the rows."""
    rows = json.dumps([batches.train["messages"][:], batches.evaluation["messages"][:]])
    return {
        **json.loads(json.dumps(asdict(tuning))),
        "base": paths.label(locate(base)),
        "rows": sha256(rows.encode()).hexdigest()[:16],
    }


def _require_same_run(run: Path, described: dict[str, Any]) -> None:
    file = run / "run.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else described
    differing = sorted(name for name in described if before.get(name) != described[name])
    if differing:
        name = differing[0]
        raise ValueError(
            f"{run} holds a run with {name}={before.get(name)!r}, not {described[name]!r}: "
            "choose another folder, or delete this one"
        )
    if PartialState().is_main_process:
        write_text(file, json.dumps(described, indent=1, sort_keys=True) + "\n")


@contextmanager
def _chance_undisturbed() -> Iterator[None]:
    """Give the global generators back as they were: the Trainer seeds them all."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
