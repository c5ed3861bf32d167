"""Make the pocket LLaVA: train it to read, measure what it reads, ship it with its card."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import PartialState
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from foredraft import paths
from foredraft.files import digest, write_text
from foredraft.machine import this_machine
from foredraft.training.checkpoint import Progress
from foredraft.training.llava.model import READ, save
from foredraft.training.llava.pretrain import Recipe, Report, pretrain_llava
from foredraft.training.llava.reading import Page, pages
from foredraft.training.llava.table_scores import levenshtein
from foredraft.training.llava.tables import HELD_OUT_SEED, LEVELS, examples

N_PAGES = 100
MAX_NEW_TOKENS = 240
DIGITS = 4
LAST_ROWS = 20
"""Rows of the curve, one in ten steps, over which the last loss is averaged."""
Scores = dict[str, int | float]
"""Shares by name, and `n`, of how many."""


def make(recipe: Recipe, *, device: str = "cpu", report: Report = lambda step: None) -> Path:
    """Train, from the last checkpoint if there is one, and write the model's folder."""
    model, progress = pretrain_llava(recipe, device=device, report=report)
    if not PartialState().is_main_process:
        return paths.model(recipe.name)
    return ship(recipe, model, progress, device=device)


def ship(
    recipe: Recipe, model: LlavaForConditionalGeneration, progress: Progress, *, device: str = "cpu"
) -> Path:
    """Write the folder of a trained model, measure what was written, and add the card."""
    from foredraft.training.llava.folder import load_llava

    folder = paths.model(recipe.name)
    save(model, recipe.sizes, folder)
    shipped, processor = load_llava(folder, device=device)
    card = {
        "name": recipe.name,
        "architecture": "llava",
        "n_layers": recipe.sizes.layers,
        "command": f"foredraft pretrain {recipe.name}",
        "parameters": sum(parameter.numel() for parameter in shipped.parameters()),
        "bytes": (folder / "model.safetensors").stat().st_size,
        "weights": digest(folder / "model.safetensors"),
        "sizes": asdict(recipe.sizes),
        "stages": [{**asdict(stage), "pages": stage.rows * stage.steps} for stage in recipe.stages],
        "tokens_seen": progress.tokens,
        "seconds": round(progress.seconds),
        "device": this_machine(device).name,
        "threads": torch.get_num_threads(),
        "note": "",
        "loss": round(fmean(row[2] for row in progress.curve[-LAST_ROWS:]), DIGITS),
        "reads": measured(shipped, processor),
        "curve": progress.curve,
    }
    write_text(folder / "card.json", json.dumps(card, indent=1) + "\n")
    write_text(folder / "README.md", rendered(card))
    return folder


def measured(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, n: int = N_PAGES
) -> dict[str, Scores]:
    """Measure how held-out pages are read: of loose words, of grids, and of tables by level.

    Tables count as read if their words are, in rows and columns; see `scores`.
    """
    found = {}
    for kind in ("loose", "grid"):
        found[kind] = _scored(model, processor, list(pages(kind, n, HELD_OUT_SEED)))
    for number, level in LEVELS.items():
        tables = list(examples(level, n, HELD_OUT_SEED))
        said = read(model, processor, [table.image for table in tables])
        true = ["\n".join(" ".join(row) for row in table.table.cells) for table in tables]
        markdown = [table.table.markdown() for table in tables]
        exact = sum(map(str.__eq__, said, markdown)) / n
        found[f"tables of level {number}"] = {**scores(said, true), "markdown_exact": exact}
    return found


def read(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, images: Sequence[Any]
) -> list[str]:
    """Let the model read images, greedily."""
    from foredraft.training.llava.answering import answer

    return answer(model, processor, images, READ, max_new_tokens=MAX_NEW_TOKENS)


def scores(said: Sequence[str], true: Sequence[str]) -> Scores:
    """Compare texts: shares of characters, of words in their place, and of whole pages that agree.

    A character's share is one less the edit distance in characters of the true text.
    """
    pairs = list(zip(said, true, strict=True))
    edits = sum(levenshtein(ours, theirs) for ours, theirs in pairs)
    words = [
        ours == theirs
        for one, other in pairs
        for ours, theirs in zip(_words(one, len(other.split())), other.split(), strict=True)
    ]
    return {
        "n": len(pairs),
        "characters": round(1 - edits / sum(len(theirs) for theirs in true), DIGITS),
        "words": round(sum(words) / len(words), DIGITS),
        "pages": round(sum(ours == theirs for ours, theirs in pairs) / len(pairs), DIGITS),
    }


def rendered(card: Mapping[str, Any]) -> str:
    """Write a card as the README of the model's folder."""
    reads = "\n".join(
        f"| {what} | {found['n']} | {found['characters']} | {found['words']} | {found['pages']} "
        f"| {found.get('markdown_exact', '')} |"
        for what, found in card["reads"].items()
    )
    stages = "\n".join(
        f"| {', '.join(stage['kinds'])} | {stage['pages']:,} | {stage['rows']} "
        f"| {stage['tower_rate']} | {stage['rate'] or 'at rest'} |"
        for stage in card["stages"]
    )
    sizes, side = card["sizes"], card["sizes"]["image"]
    return f"""# {card["name"]}

{card["parameters"]:,} parameters, {card["bytes"]:,} bytes in bf16: a CLIP tower
{sizes["tower_width"]} wide, of {sizes["tower_layers"]} layers that are read and one that is not,
a projector, and a Llama {sizes["width"]} wide, of {sizes["layers"]} layers. It sees {side}×{side}
pixels in patches of {sizes["patch"]}. Trained by this repository, from nothing, to read words and
numbers in images: small letters and digits in fonts that ship with matplotlib, of 9 to 11 pixels.

    {card["command"]}

Asked `{READ}`, it answers with the words in reading order, a space between words and a line end
between lines. It was never shown Markdown; a table it reads as lines of words. What it reads of
held-out pages, as shares (neither their words nor the tables were trained on; level 1, though, is
made of a lexicon that it knows). The last column is the share of tables written as Markdown:

| held out | n | characters | words | pages | Markdown |
|---|---|---|---|---|---|
{reads}

All pages were drawn by `foredraft.training.llava.reading`; there is no other data. `dense` pages
teach the tower alone which character stands in which patch, the others the whole model to spell:

| pages | number | in a step | rate of the tower | of the Llama |
|---|---|---|---|---|
{stages}

Trained on {card["tokens_seen"]:,} tokens, those of images included, in {card["seconds"]:,} s on
{card["device"]} (threads: {card["threads"]}), with a loss of {card["loss"]} at last, in nats a
token of an answer with a share of that of patches. {card["note"]}It reads what it was trained to
read and nothing else, and is meant as a start for fine-tuning, not for use.
"""


def _scored(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, shown: Sequence[Page]
) -> Scores:
    said = read(model, processor, [one.image for one in shown])
    return scores(said, [one.text for one in shown])


def _words(text: str, n: int) -> list[str]:
    """Split a text into exactly so many words, empty ones at the end if it has fewer."""
    words = text.split()[:n]
    return words + [""] * (n - len(words))
