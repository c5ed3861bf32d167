"""Article 06: does fine-tuning teach a small vision-language model to write tables as Markdown?

The base reads words in images and has never seen Markdown. It is shown tables with their Markdown,
by full fine-tuning or by LoRA, and asked about others: of other seeds, none of whose Markdown, and
beyond level 1 none of whose words, are on the training side. Intervals are Wilson's, 95 %.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

import numpy as np
import pandas as pd
from datasets import Dataset, concatenate_datasets
from PIL.Image import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from foredraft.analysis.statistics import numbers
from foredraft.repro.claims import Claim
from foredraft.repro.params import LlavaSft
from foredraft.repro.params import load as load_params
from foredraft.training.llava.answer_labels import collator
from foredraft.training.llava.answering import answer
from foredraft.training.llava.conversations import (
    PROMPT,
    conversation,
    folder_conversations,
    table_conversations,
    visual_instructions,
)
from foredraft.training.llava.folder import load_llava
from foredraft.training.llava.llava15 import architecture, predict
from foredraft.training.llava.sft import fine_tune
from foredraft.training.llava.table_scores import Estimate, confusions, faults, score, summary
from foredraft.training.llava.tables import HELD_OUT_SEED, Example, examples, level_of, parse
from foredraft.training.llava.tuning import FineTuning, Method, Report

INSTEAD = "foredraft run llava_sft -p profile=pocket"
"""What runs where the published model does not."""

BEFORE = "before"
"""The stage of the base; the others are named by their method."""

METRICS: Mapping[str, str] = {
    "exact": "exact",
    "text": "text",
    "cells": "cell_accuracy",
    "teds": "teds",
    "valid": "valid",
}
"""What tables call each score, and what scores call it."""

ANSWERED = 300
"""Tokens of a question and its answer in the published data, by rule of thumb."""

DEVELOPMENT_SEED = HELD_OUT_SEED + 1_000
"""Of the tables that training is evaluated on while it runs; those judged by are of other seeds."""


@final
@dataclass(frozen=True, slots=True)
class Taught:
    """A fine-tuned model, and what its training was like: see `FineTuned`."""

    method: Method
    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    log: pd.DataFrame
    trained_parameters: int
    best_step: int


@final
@dataclass(frozen=True, slots=True)
class Case:
    """A held-out table's picture, what it says, and what was read of it, before and after."""

    image: Image
    reference: str
    before: str
    after: str


def base(params: LlavaSft) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Load the model that is taught; ValueError, with what runs instead, if it cannot be had."""
    try:
        return load_llava(params.model, device=params.device, dtype=_tuning(params).dtype)
    except ValueError as error:
        raise ValueError(f"{error}. What runs anywhere is the pocket model: {INSTEAD}") from error


def training_rows(params: LlavaSft, n: int | None = None) -> Dataset:
    """Give the conversations to train on: `n` of them, or as many as the parameters say.

    Of a folder, as many as there are beside those for development.
    """
    n = n or params.examples
    if params.data == "tables":
        return _tables(params, n, params.seed)
    if params.data == "vsft":
        return visual_instructions("train", n)
    rows, watched = _folder(params)
    return rows.select(range(watched, min(len(rows), watched + n)))


def development_rows(params: LlavaSft) -> Dataset:
    """Give the conversations whose loss is watched during training."""
    if params.data == "tables":
        return _tables(params, params.development, DEVELOPMENT_SEED + params.seed)
    if params.data == "vsft":
        return visual_instructions("test", params.development)
    rows, watched = _folder(params)
    return rows.select(range(watched))


def _folder(params: LlavaSft) -> tuple[Dataset, int]:
    """Read the reader's own pairs, shuffled, and say how many are for development: a tenth."""
    rows = folder_conversations(Path(params.data))
    if len(rows) < 10 + params.batch_size:
        raise ValueError(
            f"{params.data} holds {len(rows)} pairs: give at least {10 + params.batch_size}, a "
            "tenth of which is kept for development, or set batch_size lower"
        )
    return rows.shuffle(seed=params.seed), min(params.development, len(rows) // 10)


def _tables(params: LlavaSft, n: int, seed: int) -> Dataset:
    """Make tables of all levels, as many of each."""
    return _tables_of(params.levels, n, seed, params.image_size)


@lru_cache(maxsize=2)
def _tables_of(levels: tuple[int, ...], n: int, seed: int, size: int) -> Dataset:
    """Make them once for all methods: to draw and pack a picture takes longer than to read it."""
    shares = [len(part) for part in np.array_split(np.arange(n), len(levels))]
    return concatenate_datasets(
        [
            table_conversations(level, share, seed, size=size)
            for level, share in zip(levels, shares, strict=True)
            if share
        ]
    )


def held_out(params: LlavaSft, level: int) -> list[Example]:
    """Give the tables of a level that models are judged by."""
    tables = examples(
        level_of(level), params.n_tables, HELD_OUT_SEED + params.seed, size=params.image_size
    )
    return list(tables)


def taught(
    params: LlavaSft,
    *,
    method: Method | None = None,
    n: int | None = None,
    report: Report = lambda step: None,
) -> Taught:
    """Fine-tune the base on `n` conversations, each seen once, and give the best of its states."""
    rows, watched = training_rows(params, n), development_rows(params)
    tuning = _tuning(params, method=method, n=len(rows))
    with TemporaryDirectory() as folder:
        tuned = fine_tune(
            params.model,
            rows,
            watched,
            tuning,
            Path(folder),
            report=report,
        )
        model, processor = load_llava(tuned.folder, device=params.device, dtype=tuning.dtype)
    log = tuned.log.assign(method=tuning.method, examples=tuned.log["step"] * tuning.batch_size)
    return Taught(tuning.method, model, processor, log, tuned.trained_parameters, tuned.best_step)


def _tuning(params: LlavaSft, *, method: Method | None = None, n: int | None = None) -> FineTuning:
    """Give the settings of a method for so many conversations."""
    method = method or params.method
    steps = max(1, (n or params.examples) // params.batch_size)
    is_large = params.device != "cpu"
    return FineTuning(
        steps=steps,
        batch_size=params.batch_size,
        learning_rate=params.lora_learning_rate if method == "lora" else params.learning_rate,
        method=method,
        rank=params.rank,
        warmup_steps=min(params.warmup_steps, steps // 10),
        evaluate_every=max(1, steps // params.evaluations),
        seed=params.seed,
        freeze=params.freeze,
        accumulation=params.accumulation,
        autocast=params.autocast,
        in_bfloat16=is_large,
        activation_checkpointing=is_large,
        device=params.device,
    )


def judged(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    params: LlavaSft,
    *,
    stage: str,
    report: Callable[[int], None] = lambda answered: None,
) -> pd.DataFrame:
    """Let a model write the held-out tables of all judged levels; a row each.

    Columns: stage, level, index, reference, predicted, exact, text, cells, teds, valid.
    """
    rows: list[dict[str, Any]] = []
    for level in params.judged_levels:
        tables = held_out(params, level)
        written: list[str] = []
        for first in range(0, len(tables), params.answers_at_once):
            some = tables[first : first + params.answers_at_once]
            written += answer(
                model,
                processor,
                [table.image for table in some],
                PROMPT,
                max_new_tokens=params.max_new_tokens,
                batch_size=params.answers_at_once,
            )
            report(len(rows) + len(written))
        for index, (table, predicted) in enumerate(zip(tables, written, strict=True)):
            reference = table.table.markdown()
            found = asdict(score(predicted, reference))
            told = {"reference": reference, "predicted": predicted}
            scores = {name: float(found[field]) for name, field in METRICS.items()}
            rows.append({"stage": stage, "level": level, "index": index, **told, **scores})
    return pd.DataFrame(rows)


def _parts(tables: pd.DataFrame) -> Iterator[tuple[str, int, pd.DataFrame]]:
    """Give the tables of each stage and level, in the order in which they come."""
    for stage, of_stage in tables.groupby("stage", sort=False):
        for level, part in of_stage.groupby("level", sort=False):
            yield str(stage), int(str(level)), part


def scored(tables: pd.DataFrame) -> pd.DataFrame:
    """Average the scores of each stage and level; with each go its interval's _low and _high."""
    rows = []
    for stage, level, part in _parts(tables):
        found = summary(
            score(predicted, reference)
            for predicted, reference in zip(part["predicted"], part["reference"], strict=True)
        )
        row: dict[str, Any] = {"stage": stage, "level": level, "n": found.n}
        for name, field in METRICS.items():
            estimate: Estimate = getattr(found, field)
            row |= {
                name: estimate.value,
                f"{name}_low": estimate.low,
                f"{name}_high": estimate.high,
            }
        rows.append(row)
    return pd.DataFrame(rows)


def faults_by_kind(tables: pd.DataFrame) -> pd.DataFrame:
    """Count the faults of each stage and level by kind; `share` is of the cells there are."""
    rows = []
    for stage, level, part in _parts(tables):
        pairs = list(zip(part["predicted"], part["reference"], strict=True))
        kinds = Counter(fault.kind for pair in pairs for fault in faults(*pair))
        n_cells = sum(sum(map(len, parse(true).cells)) for _, true in pairs)
        rows += [
            {"stage": stage, "level": level, "kind": kind, "count": n, "share": n / n_cells}
            for kind, n in kinds.most_common()
        ]
    return pd.DataFrame(rows, columns=["stage", "level", "kind", "count", "share"])


def misread(tables: pd.DataFrame) -> pd.DataFrame:
    """Count which characters were read as which, the most frequent first: true, read, count."""
    pairs = zip(tables["predicted"], tables["reference"], strict=True)
    found = confusions(fault for pair in pairs for fault in faults(*pair))
    rows = [
        {"true": true, "read": read, "count": count}
        for (true, read), count in sorted(found.items(), key=lambda each: (-each[1], each[0]))
    ]
    return pd.DataFrame(rows, columns=["true", "read", "count"])


def by_size(tables: pd.DataFrame) -> pd.DataFrame:
    """Give the share of tables that are exact by their number of cells: level, cells, n, exact."""
    n_cells = [sum(map(len, parse(true).cells)) for true in tables["reference"]]
    sized = tables.assign(n_cells=n_cells).groupby(["stage", "level", "n_cells"], sort=True)
    return sized["exact"].agg(exact="mean", n="size").reset_index()


def roles(processor: LlavaProcessor, example: Example) -> pd.DataFrame:
    """Say of each token of a conversation what it is and whether it carries loss.

    Columns: text, role ("prompt", "image", "answer", "end"), has_loss; as the collator has it.
    """
    batch = collator(processor)([conversation(example.image, example.table.markdown())])
    tokenizer, rows = processor.tokenizer, []
    pairs = zip(batch["input_ids"][0].tolist(), batch["labels"][0].tolist(), strict=True)
    for token, label in pairs:
        role = "answer" if label >= 0 else "prompt"
        role = "image" if token == processor.image_token_id else role
        role = "end" if label >= 0 and token == tokenizer.eos_token_id else role
        rows.append({"text": tokenizer.decode([token]), "role": role, "has_loss": label >= 0})
    return pd.DataFrame(rows)


def cases(tables: pd.DataFrame, params: LlavaSft, *, level: int, after: str) -> list[Case]:
    """Pick held-out tables to show: one that is exact afterwards, one that is not, and the next.

    If all are right, or none, the first ones are shown.
    """
    of_level = tables.loc[tables["level"] == level].set_index(["stage", "index"])
    done = of_level.loc[after]
    right, wrong = done.index[done["exact"] == 1], done.index[done["exact"] == 0]
    chosen = [*right[:2], *wrong[:1], *done.index[:3]]
    shown = held_out(params, level)
    return [
        Case(
            shown[index].image,
            str(done.loc[index, "reference"]),
            str(of_level.loc[(BEFORE, index), "predicted"]),
            str(done.loc[index, "predicted"]),
        )
        for index in list(dict.fromkeys(chosen))[:3]
    ]


def llava15_needs(flops_per_second: float = 4e14) -> pd.DataFrame:
    """Predict what teaching the published model takes on one device of this rate, by method.

    Columns: method, parameters and trained (10⁹), gigabytes, seconds_per_step, hours for all
    examples of the profile `llava15`. By arithmetic from its shape: nothing is measured.
    """
    params = load_params("llava_sft", {"profile": "llava15"})
    shape, rows = architecture(), []
    tokens = shape.image_seq_length + ANSWERED
    for method in ("lora", "full"):
        tuning = _tuning(params, method=method)
        found = predict(shape, tuning, tokens=tokens, flops_per_second=flops_per_second)
        rows.append(
            {
                "method": method,
                "parameters": found.parameters / 1e9,
                "trained": found.trained / 1e9,
                "gigabytes": found.gigabytes,
                "seconds_per_step": found.seconds_per_step,
                "hours": found.seconds_per_step * tuning.steps / 3600,
            }
        )
    return pd.DataFrame(rows)


def parts_of_steps(steps: pd.DataFrame) -> pd.DataFrame:
    """Lay out recorded steps as shares: method, part, share."""
    rows = []
    for row in steps.to_dict("records"):
        apart = float(row["collation_median"])
        parts = {"collation": apart, "forward, backward and update": 1 - apart}
        rows += [{"method": row["method"], "part": k, "share": v} for k, v in parts.items()]
    return pd.DataFrame(rows)


def findings(
    scores: pd.DataFrame, logs: pd.DataFrame, trained: Mapping[str, int], params: LlavaSft
) -> tuple[dict[str, Any], list[Claim]]:
    """Name the values that the article can be cited for, and the claims that they back."""
    values: dict[str, Any] = {"held_out": {}, "training": {}}
    claims = []
    for level, part in scores.groupby("level"):
        by_stage = part.set_index("stage").to_dict("index")
        told: dict[str, Any] = {"n": int(part["n"].iloc[0])}
        for stage, row in by_stage.items():
            when = {BEFORE: BEFORE, params.method: "after"}.get(str(stage), f"after_{stage}")
            told |= {
                f"exact_match_{when}": float(row["exact"]),
                f"all_text_{when}": float(row["text"]),
                f"cell_accuracy_{when}": float(row["cells"]),
                f"teds_{when}": float(row["teds"]),
                f"valid_{when}": float(row["valid"]),
            }
            name = f"level{level}"
            half = (row["exact_high"] - row["exact_low"]) / 2
            text = f"Tables of level {level} written exactly, {stage}"
            text += "" if stage == BEFORE else " fine-tuning" if stage == "full" else " fine-tuned"
            key = f"held_out.{name}.exact_match_{when}"
            claims.append(Claim(f"{name}-{stage}", text, key, n=told["n"], spread=float(half)))
        values["held_out"][f"level{level}"] = told
    for method, log in logs.groupby("method", sort=False):
        values["training"][str(method)] = {
            **{name: int(numbers(log, name)[-1]) for name in ("examples", "tokens")},
            "trained_parameters": int(trained[str(method)]),
            "padding": float(numbers(log, "padding").mean()),
            "best_loss": float(np.nanmin(numbers(log, "eval_loss"))),
        }
    return values, claims
