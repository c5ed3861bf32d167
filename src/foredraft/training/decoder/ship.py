"""Make a pocket model: train by its recipe, evaluate on held-out text, ship with its card."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from foredraft import paths
from foredraft.files import digest, write_text
from foredraft.machine import this_machine
from foredraft.models.decoder import Decoder
from foredraft.models.loading import load, write
from foredraft.training.checkpoint import Progress
from foredraft.training.corpus import (
    END_OF_TEXT,
    HELD_OUT_PACKAGE,
    Corpus,
    load_corpus,
    train_tokenizer,
    training_texts,
    write_manifest,
)
from foredraft.training.decoder.evaluation import held_out, overlap
from foredraft.training.decoder.layerskip import cut
from foredraft.training.decoder.ngram import NGram
from foredraft.training.decoder.pretrain import Report, pretrain
from foredraft.training.decoder.recipes import RECIPES, Recipe

WINDOW = 1024
N_WINDOWS = 96
EDGES = (0, 32, 128, 256, 512, 1024)
LONG_WINDOW = 4096
N_LONG_WINDOWS = 12
LONG_EDGES = (0, 1024, 2048, 3072, 4096)
OVERLAP_WINDOWS = (256, 1024)
DIGITS = 4
EXITS = (3, 4, 6, 8, 10)
"""Layers before an early exit, where a model is trained for them."""


def make(recipe: Recipe, *, device: str = "cpu", report: Report = lambda step: None) -> Path:
    """Train, from the last checkpoint if there is one, and write the model's folder."""
    corpus, teacher = load_corpus(shared_tokenizer()), _teacher(recipe, device)
    decoder, progress = pretrain(recipe, corpus, teacher=teacher, device=device, report=report)
    if not PartialState().is_main_process:
        return paths.model(recipe.name)
    return ship(recipe, decoder, progress, device=device)


def ship(recipe: Recipe, decoder: Decoder, progress: Progress, *, device: str = "cpu") -> Path:
    """Write the folder of a trained model, evaluate what was written, and add the card."""
    folder = paths.model(recipe.name)
    tokenizer = shared_tokenizer()
    write(decoder, _wrapped(tokenizer), recipe.config(), folder)
    write_manifest()
    shipped, _ = load(folder, dtype=torch.float32, device=device)
    card = {
        **_origin(recipe, shipped, progress, device),
        **_digests(recipe),
        **_evaluated(recipe, shipped, load_corpus(tokenizer), device),
        **_early_exits(recipe, shipped, load_corpus(tokenizer), device),
        "curve": progress.curve,
    }
    write_text(folder / "card.json", json.dumps(card, indent=1) + "\n")
    write_text(folder / "README.md", rendered(card))
    return folder


def shared_tokenizer() -> Tokenizer:
    """Read the tokenizer of any pocket model made before, or train it."""
    shipped = [paths.model(name) / "tokenizer.json" for name in RECIPES]
    known = [file for file in shipped if file.is_file()]
    return Tokenizer.from_file(str(known[0])) if known else train_tokenizer(training_texts())


def counted_bits_per_byte(corpus: Corpus) -> float:
    """Score the held-out package with a 5-gram model of the training text, in bits a byte."""
    counted = NGram.fit(np.asarray(corpus.train.tokens))
    nats = -counted.log_probs(np.asarray(corpus.held_out_package.tokens)).mean()
    return float(nats * corpus.held_out_package.bits_per_nat)


def rendered(card: Mapping[str, Any]) -> str:
    """Write a card as the README of the model's folder."""
    package, files = card["held_out_package"], card["held_out_files"]
    stages = "\n".join(
        f"| {s['n_layers']} | {s['intermediate_size']} | {s['sequence']} | {s['tokens']:,} "
        f"| {s['teacher'] or 'the text'} |"
        for s in card["stages"]
    )
    positions = "\n".join(
        f"| {span} | {loss} |"
        for span, loss in [*package["by_position"].items(), *package["long"].items()]
    )
    drafts = _rendered_overlaps(card["overlap_with_teacher"])
    exits = _rendered_exits(card) if "layer_skip" in card else ""
    new = f"{package['nats_per_token']} | {package['bits_per_byte']}"
    return f"""# {card["name"]}

{card["parameters"]:,} parameters, {card["n_layers"]} layers, architecture `{card["architecture"]}`,
bf16. Trained by this repository on the Python sources of its pinned dependencies; packages,
versions and digests stand in `data/corpus.json`. The text itself is not redistributed.

    {card["command"]}

| held out | nats/token | bits/byte |
|---|---|---|
| a whole package ({card["held_out_package_name"]}) | {new} |
| 1 % of the files of the others | {files["nats_per_token"]} | {files["bits_per_byte"]} |
| 5-gram model of the same corpus, on the package | | {card["five_gram_bits_per_byte"]} |
{drafts}{exits}
Trained on {card["tokens_seen"]:,} tokens in {card["seconds"]:,} s on {card["device"]}
(threads: {card["threads"]}). {card["note"]}Loss by position in the held-out package
(nats/token; windows of {WINDOW}, then of {LONG_WINDOW}):

| positions | loss |
|---|---|
{positions}

| layers | MLP | sequence | tokens | learns from |
|---|---|---|---|---|
{stages}

It completes Python in the style of numerical libraries. It knows nothing else, and is meant for
measuring decoding, not for use.
"""


def _teacher(recipe: Recipe, device: str) -> Decoder | None:
    return load(recipe.teacher, device=device)[0] if recipe.teacher else None


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    ends = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends)


def _origin(recipe: Recipe, decoder: Decoder, progress: Progress, device: str) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "architecture": decoder.config.architecture,
        "n_layers": decoder.config.n_layers,
        "parameters": sum(parameter.numel() for parameter in decoder.parameters()),
        "command": f"foredraft pretrain {recipe.name}",
        "stages": [
            {
                "n_layers": stage.n_layers,
                "sequence": stage.sequence,
                "tokens": stage.tokens,
                "teacher": stage.teacher,
                "intermediate_size": recipe.config(stage).intermediate_size,
            }
            for stage in recipe.stages
        ],
        "tokens_seen": progress.tokens,
        "seconds": round(progress.seconds),
        "device": this_machine(device).name,
        "threads": torch.get_num_threads(),
        "note": "",
    }


def _digests(recipe: Recipe) -> dict[str, str | None]:
    """Say which weights a card was measured on, its teacher's included."""
    teacher = recipe.teacher
    return {
        "weights": digest(_weights(recipe.name)),
        "teacher_weights": digest(_weights(teacher)) if teacher else None,
    }


def _weights(name: str) -> Path:
    return paths.model(name) / "model.safetensors"


def _evaluated(recipe: Recipe, decoder: Decoder, corpus: Corpus, device: str) -> dict[str, Any]:
    package, files = corpus.held_out_package, corpus.held_out_files
    known = held_out(decoder, files, length=WINDOW, n_windows=N_WINDOWS)
    new = held_out(decoder, package, length=WINDOW, n_windows=N_WINDOWS)
    long = held_out(decoder, package, length=LONG_WINDOW, n_windows=N_LONG_WINDOWS)
    return {
        "held_out_package_name": HELD_OUT_PACKAGE,
        "held_out_package": {
            "nats_per_token": round(new.nats_per_token, DIGITS),
            "bits_per_byte": round(new.nats_per_token * package.bits_per_nat, DIGITS),
            "by_position": _rounded(new.binned(EDGES)),
            "long": _rounded(long.binned(LONG_EDGES)),
        },
        "held_out_files": {
            "nats_per_token": round(known.nats_per_token, DIGITS),
            "bits_per_byte": round(known.nats_per_token * files.bits_per_nat, DIGITS),
        },
        "five_gram_bits_per_byte": round(counted_bits_per_byte(corpus), DIGITS),
        "overlap_with_teacher": overlaps(_teacher(recipe, device), decoder, corpus),
    }


def overlaps(
    teacher: Decoder | None, decoder: Decoder, corpus: Corpus
) -> dict[str, dict[str, float]] | None:
    """Measure the mean Σ min(p, q) with a teacher along both held-out texts, by window length."""
    if teacher is None:
        return None
    texts = {"package": corpus.held_out_package, "files": corpus.held_out_files}
    return {
        name: {
            str(length): round(
                overlap(teacher, decoder, split, length=length, n_windows=N_WINDOWS), DIGITS
            )
            for length in OVERLAP_WINDOWS
        }
        for name, split in texts.items()
    }


def _rendered_overlaps(found: Mapping[str, Mapping[str, float]] | None) -> str:
    if found is None:
        return ""
    rows = "\n".join(
        f"| {length} | {found['package'][length]} | {found['files'][length]} |"
        for length in found["package"]
    )
    return f"""
Mean Σ min(p, q) with its teacher, the share of drafts accepted at temperature 1:

| window (tokens) | held-out package | held-out files |
|---|---|---|
{rows}
"""


def _early_exits(recipe: Recipe, decoder: Decoder, corpus: Corpus, device: str) -> dict[str, Any]:
    """Measure, on the held-out package, exits of the model and of the one that it goes on from."""
    if recipe.layer_skip is None:
        return {}
    models = {recipe.name: decoder}
    if recipe.starts_from is not None:
        models[recipe.starts_from], _ = load(recipe.starts_from, dtype=torch.float32, device=device)
    return {
        "starts_from": recipe.starts_from,
        "layer_skip": asdict(recipe.layer_skip),
        "exits": {name: _exit_losses(model, corpus) for name, model in models.items()},
    }


def _exit_losses(decoder: Decoder, corpus: Corpus) -> dict[str, float]:
    """Measure the loss after each of the first layers and after the last, in nats a token."""
    n_layers = decoder.config.n_layers
    depths = [*(depth for depth in EXITS if depth < n_layers), n_layers]
    window = {"length": WINDOW, "n_windows": N_WINDOWS}
    losses = {
        str(depth): held_out(cut(decoder, depth), corpus.held_out_package, **window).nats_per_token
        for depth in depths
    }
    return _rounded(losses)


def _rendered_exits(card: Mapping[str, Any]) -> str:
    option, exits = card["layer_skip"], card["exits"]
    names, depths = list(exits), list(exits[card["name"]])
    rows = "\n".join(
        f"| {depth} | {' | '.join(str(exits[name][depth]) for name in names)} |" for depth in depths
    )
    start = f"It goes on from `{card['starts_from']}` with the" if card["starts_from"] else "The"
    ramp = ", growing over the run" if option["ramps"] else ""
    return f"""
{start} LayerSkip recipe (arXiv 2404.16710): layer dropout up to
{option["max_dropout"]} at the last layer{ramp}, exit scale {option["exit_scale"]}, and one step in
{option["rotation"]} for each early exit. Loss in the held-out package (nats/token) of an exit after
so many layers, through the shared norm and head:

| layers | {" | ".join(names)} |
|{"---|" * (len(names) + 1)}
{rows}
"""


def _rounded(losses: Mapping[str, float]) -> dict[str, float]:
    return {span: round(loss, DIGITS) for span, loss in losses.items()}
