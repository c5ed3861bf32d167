"""Which patches of an image an answer depends on."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from foredraft.training.llava.answer_labels import collator
from foredraft.training.llava.conversations import (
    conversation,
)
from foredraft.training.llava.tables import Example


def saliency(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    example: Example,
    places: Sequence[tuple[int, int]],
) -> list[np.ndarray]:
    """Say where in its image a model looks for cells, named by row (0: header) and column.

    For each cell: how much the log-probability of its text, all before it given, depends on each
    patch's pixels: the norm of the gradient there, [patch, patch], at most 1.
    """
    markdown = example.table.markdown()
    batch = collator(processor)([conversation(example.image, markdown)]).to(model.device)
    pixels = batch["pixel_values"].to(model.dtype).requires_grad_()
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    log_p = model(**inputs, pixel_values=pixels).logits[0, :-1].float().log_softmax(-1)
    labels, image = batch["labels"][0, 1:], processor.image_token_id
    kept = (labels >= 0).nonzero().squeeze(1)
    spelt = [processor.tokenizer.decode([token]) for token in labels[kept].tolist()]
    starts = np.cumsum([0, *map(len, spelt)])
    offset = "".join(spelt).index(markdown)
    maps = []
    for row, column in places:
        start, end = (offset + at for at in cell_span(markdown, row, column))
        inside = [i for i in range(len(spelt)) if starts[i] < end and starts[i + 1] > start]
        wanted = kept[inside]
        told = log_p[wanted, labels[wanted]].sum()
        (gradient,) = torch.autograd.grad(told, pixels, retain_graph=True)
        side = round(len(batch["input_ids"][0][batch["input_ids"][0] == image]) ** 0.5)
        maps.append(_by_patch(gradient[0], gradient.shape[-1] // side))
    return maps


def _by_patch(gradient: torch.Tensor, patch: int) -> np.ndarray:
    """Take the norm of a gradient [colour, row, column] within each patch, over the largest."""
    squares = gradient.float().square().sum(0)
    side = squares.shape[0] // patch
    patches = squares[: side * patch, : side * patch].reshape(side, patch, side, patch)
    norms = patches.sum((1, 3)).sqrt()
    return (norms / norms.max().clamp(min=1e-12)).cpu().numpy()


def cell_span(markdown: str, row: int, column: int) -> tuple[int, int]:
    """Give where in a table's Markdown a cell's text begins and ends; row 0 is the header."""
    lines = markdown.split("\n")
    line = row + (row > 0)  # below the header stands the rule
    start = sum(len(each) + 1 for each in lines[:line])
    pieces = lines[line].replace("\\|", "\0\0").split("|")
    start += sum(len(piece) + 1 for piece in pieces[: column + 1])
    piece = pieces[column + 1]
    left = len(piece) - len(piece.lstrip())
    return start + left, start + left + len(piece.strip())
