"""Pages as batches of tensors: what the model reads, and what it should say of it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch.utils.data import Dataset

from foredraft.training.llava.model import PAPER, READ, SPECIAL, SPREAD, Sizes, tokenizer
from foredraft.training.llava.reading import IGNORED, Kind, Page, page, patch_labels
from foredraft.training.llava.tables import HELD_OUT_SEED
from foredraft.types import Float, Int, Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Pages and their answers; all rows ask the same, so that all answers begin at `answer`.

    `labels` holds the answers with their end, IGNORED behind it; `image` says where the image's
    tokens stand.
    """

    pixels: Float[Tensor, "rows 3 side side"]
    characters: Int[Tensor, "rows patches bins"]
    places: Int[Tensor, "rows patches 3"]
    tokens: Int[Tensor, "rows seq"]
    labels: Int[Tensor, "rows answer"]
    image: slice

    @property
    def answer(self) -> int:
        """Where the answers begin."""
        return self.tokens.shape[1] - self.labels.shape[1]

    @property
    def n_tokens(self) -> int:
        """Tokens of questions, images and answers, padding not counted."""
        return len(self.tokens) * self.answer + int((self.labels != IGNORED).sum())

    def to(self, device: torch.device) -> "Batch":
        """Move the tensors."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {k: v.to(device) for k, v in named.items() if isinstance(v, Tensor)}
        return replace(self, **moved)


class Batches(Dataset[Batch]):
    """The batch of each step, which depends on seed and step alone.

    The rows' pages are of the kinds in turn. `share` is (process, processes): which rows to take.
    """

    def __init__(
        self,
        sizes: Sizes,
        kinds: Sequence[Kind],
        *,
        rows: int,
        seed: int,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.sizes, self.kinds, self.rows, self.seed, self.share = sizes, kinds, rows, seed, share
        self.words = tokenizer()
        before, after = self._asked()
        self.question = before + [SPECIAL.index("<image>")] * (sizes.image_tokens)
        self.image = slice(len(before), len(self.question))
        self.question += after

    @classmethod
    def held_out(cls, sizes: Sizes, kinds: Sequence[Kind], *, rows: int) -> "Batches":
        """Give batches of words that training never shows."""
        return cls(sizes, kinds, rows=rows, seed=HELD_OUT_SEED)

    def __getitem__(self, step: int) -> Batch:
        """Draw the batch of a step."""
        process, processes = self.share
        indices = range(step * self.rows, (step + 1) * self.rows)[process::processes]
        drawn = [page(self.kinds[i % len(self.kinds)], self.seed, i) for i in indices]
        marks = [patch_labels(one, self.sizes.patch) for one in drawn]
        labels = self._answers(drawn)
        question = torch.tensor(self.question).expand(len(drawn), -1)
        padding = SPECIAL.index("<pad>")
        return Batch(
            pixels=pixels(drawn),
            characters=torch.from_numpy(np.stack([mark.characters for mark in marks])),
            places=torch.from_numpy(np.stack([mark.places for mark in marks])),
            tokens=torch.cat([question, labels.masked_fill(labels == IGNORED, padding)], dim=1),
            labels=labels,
            image=self.image,
        )

    def _asked(self) -> tuple[list[int], list[int]]:
        """Give the tokens before and after the image, in the chat template's words."""
        return (
            self.words.encode("<s>USER: ", add_special_tokens=False),
            self.words.encode(f"\n{READ} ASSISTANT:", add_special_tokens=False),
        )

    def _answers(self, drawn: Sequence[Page]) -> Int[Tensor, "rows answer"]:
        texts = [f" {one.text}" for one in drawn]
        ids = self.words(texts, add_special_tokens=False)["input_ids"]
        rows = [torch.tensor([*row, SPECIAL.index("</s>")]) for row in ids]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)


def pixels(drawn: Sequence[Page]) -> Float[Tensor, "rows 3 side side"]:
    """Give the pixels as the processor gives them."""
    stacked = torch.from_numpy(np.stack([np.asarray(one.image) for one in drawn]))
    return ((stacked.float() / 255 - PAPER) / SPREAD).permute(0, 3, 1, 2).contiguous()
