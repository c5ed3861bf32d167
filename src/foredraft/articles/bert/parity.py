"""Article 07: how far our BERT lies from the one of transformers, piece by piece.

Each piece is given what the reference's piece was given, so that no error is inherited; whole
models are given the same tokens. A difference is the largest of any number, at real tokens alone.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from foredraft.models.bert.config import BertConfig
from foredraft.models.bert.model import (
    Bert,
    BertForPretraining,
    Layer,
    SequenceClassifier,
    TokenClassifier,
)
from foredraft.models.bert.padding import Layout, mean_pool
from foredraft.models.bert.weights import Pretrained, checkpoint_tensors
from foredraft.training.bert.mlm import IGNORED
from foredraft.training.bert.mlm import Batch as Guesses
from foredraft.types import Bool, Int, Tensor

BOUNDS = {torch.float32: 2e-5, torch.float64: 1e-12}
"""What is promised of a difference, by precision."""

LENGTHS = (1, 2, 3, 7, 16, 17, 31, 64, 100, 127, 255, 512)
"""Tokens in the rows of a batch, as far as a model has positions."""

SMALL = BertConfig(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=80,
    n_layers=2,
    n_heads=6,
    max_positions=512,
    initializer_range=0.2,
    labels=("other", "noun", "verb"),
)
"""The shape of the random models whose classifiers are compared."""

NOTED = re.compile(r"embeddings|pooler|encoder\.layer\.\d+(\.(attention|intermediate|output))?")
"""The reference's modules whose pieces we have."""

Row = dict[str, Any]


@final
@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of several lengths, padded on the right."""

    ids: Int[Tensor, "batch seq"]
    mask: Bool[Tensor, "batch seq"]

    @classmethod
    def cut(cls, tokens: Sequence[int], *, first: int, longest: int) -> "Ragged":
        """Cut a text into rows of `LENGTHS`, up to the longest, that begin with the token `first`.

        Raises ValueError if the text is too short.
        """
        lengths = [length for length in LENGTHS if length <= longest]
        needed = sum(lengths) - len(lengths)
        if len(tokens) < needed:
            raise ValueError(f"{len(tokens)} tokens for rows that take {needed}: give more text")
        ids, start = torch.zeros(len(lengths), max(lengths), dtype=torch.long), 0
        for row, length in enumerate(lengths):
            ids[row, :length] = torch.tensor([first, *tokens[start : start + length - 1]])
            start += length - 1
        return cls(ids, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])


@final
class Pieces:
    """The same weights in both implementations, and what theirs made of a batch, piece by piece."""

    def __init__(self, folder: Path, batch: Ragged, dtype: torch.dtype) -> None:
        """Load both in a precision, and let theirs read the batch."""
        from transformers import BertModel

        self.batch, self.dtype, self.layout = batch, dtype, Layout.packed(batch.mask)
        self.ours = Bert.from_pretrained(folder, dtype=dtype)
        theirs = BertModel.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()
        self._given: dict[str, Tensor] = {}
        self._made: dict[str, Tensor] = {}
        for name, module in theirs.named_modules():
            if NOTED.fullmatch(name):
                module.register_forward_hook(self._noting(name), with_kwargs=True)
        with torch.inference_mode():
            theirs(batch.ids, attention_mask=batch.mask.long())

    def embeddings(self) -> Iterator[Row]:
        """What goes into the first layer."""
        made = self.ours.embeddings(self.layout.pack(self.batch.ids), self.layout.positions())
        yield difference("embeddings", made, self._made["embeddings"])

    def attention(self) -> Iterator[Row]:
        """Each layer's attention, added and normalised."""
        for number, layer, name in self._layers():
            given, expected = self._given[f"{name}.attention"], self._made[f"{name}.attention"]
            made = layer.attention_norm(layer.attention(given, self.layout))
            yield difference("attention", made, expected, layer=number)

    def feed_forward(self) -> Iterator[Row]:
        """Each layer's MLP, added and normalised."""
        for number, layer, name in self._layers():
            made = layer.mlp_norm(layer.mlp(self._given[f"{name}.intermediate"]))
            yield difference("feed-forward", made, self._made[f"{name}.output"], layer=number)

    def layer(self) -> Iterator[Row]:
        """Each layer."""
        for number, layer, name in self._layers():
            made = layer(self._given[name], self.layout)
            yield difference("layer", made, self._made[name], layer=number)

    def pooler(self) -> Iterator[Row]:
        """The pooler, if the model has one."""
        if self.ours.pooler is not None:
            made = self.ours.pooler(self._given["pooler"][self.layout.firsts])
            yield difference("pooler", made, self._made["pooler"])

    def encoder(self) -> Iterator[Row]:
        """The encoder, from the tokens on: the states behind each layer, and both poolings."""
        ids, mask = self.batch.ids, self.batch.mask
        expected = [self._made[name] for name in ("embeddings", *(n for *_, n in self._layers()))]
        states = self.ours.hidden_states(ids, mask)
        for number, (state, wanted) in enumerate(zip(states, expected, strict=True)):
            yield difference("states", self._packed(state), wanted, layer=number)
        output, wanted = self.ours(ids, mask), self.layout.unpack(expected[-1])
        ours = output.last_hidden_state
        yield difference("mean-pooled", mean_pool(ours, mask), mean_pool(wanted, mask))
        if output.pooler_output is not None:
            yield difference("pooled", output.pooler_output, self._made["pooler"])

    def _layers(self) -> Iterator[tuple[int, Layer, str]]:
        """Number our layers from 1, with the names of theirs."""
        for number, layer in enumerate(self.ours.layers):
            assert isinstance(layer, Layer)
            yield number + 1, layer, f"encoder.layer.{number}"

    def _noting(self, name: str) -> Callable[..., None]:
        def note(
            _: nn.Module, given: tuple[Any, ...], options: Mapping[str, Any], made: Any
        ) -> None:
            first = given[0] if given else options.get("hidden_states")
            if isinstance(first, Tensor):
                self._given[name] = self._packed(first)
            self._made[name] = self._packed(made[0] if isinstance(made, tuple) else made)

        return note

    def _packed(self, values: Tensor) -> Tensor:
        """Lay [batch, seq, hidden] out as our pieces take it; what has no rows of tokens stays."""
        if values.ndim < 3:
            return values
        flat = values.flatten(0, 1)
        return flat if self.layout.places is None else flat[self.layout.places]


Piece = Callable[[Pieces], Iterator[Row]]


@torch.inference_mode()
def compared(pieces: Sequence[Pieces], *which: Piece) -> pd.DataFrame:
    """Compare some pieces in each precision; a row a piece and layer.

    Columns: piece, layer (None: it has none), precision, difference, bound, numbers (compared).
    """
    return pd.DataFrame([row for each in which for one in pieces for row in each(one)])


def difference(piece: str, made: Tensor, expected: Tensor, *, layer: int | None = None) -> Row:
    """Say how far two tensors of one shape and precision are apart at most."""
    return {
        "piece": piece,
        "layer": layer,
        "precision": str(made.dtype).removeprefix("torch."),
        "difference": (made - expected).abs().max().item(),
        "bound": BOUNDS[made.dtype],
        "numbers": made.numel(),
    }


def guessing(folder: Path, batch: Guesses) -> pd.DataFrame:
    """Compare both heads of pre-training, and the gradients of their loss, on masked pairs.

    The checkpoint needs both heads. Columns as in `compared`.
    """
    return pd.DataFrame([row for dtype in BOUNDS for row in _guessed(folder, batch, dtype)])


def _guessed(folder: Path, batch: Guesses, dtype: torch.dtype) -> Iterator[Row]:
    from transformers import BertForPreTraining

    ours = BertForPretraining.from_pretrained(folder, dtype=dtype)
    theirs = BertForPreTraining.from_pretrained(folder, dtype=dtype).eval()
    real = batch.attention_mask
    made = ours(batch.ids, real, batch.segments)
    expected = theirs(batch.ids, attention_mask=real.long(), token_type_ids=batch.segments)
    follows = made.seq_relationship_logits, expected.seq_relationship_logits
    words = made.prediction_logits, expected.prediction_logits
    yield difference("words' logits", *(logits.detach()[real] for logits in words))
    yield difference("next sentence's logits", *(logits.detach() for logits in follows))
    for of_words, of_pairs in zip(words, follows, strict=True):
        (_loss(of_words.transpose(1, 2), batch.labels) + _loss(of_pairs, batch.follows)).backward()
    wanted = {n: weight.grad for n, weight in theirs.named_parameters() if weight.grad is not None}
    found = {name: gradient for name, gradient in _gradients(ours).items() if name in wanted}
    made_of = (torch.cat([of[name].flatten() for name in found]) for of in (found, wanted))
    yield difference("gradients", *made_of)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, ignore_index=IGNORED)


def _gradients(model: Pretrained) -> dict[str, Tensor]:
    """Name a model's gradients as checkpoints name its weights."""
    holder = deepcopy(model)
    holder.load_state_dict({name: weight.grad for name, weight in model.named_parameters()})
    return checkpoint_tensors(holder)


@torch.inference_mode()
def classifying(batch: Ragged, *, generator: torch.Generator) -> pd.DataFrame:
    """Compare the heads that classify rows and tokens, on a small random model that is saved.

    Their model reads what ours writes, so the way through a folder is compared too. Columns as in
    `compared`.
    """
    return pd.DataFrame([row for dtype in BOUNDS for row in _classified(batch, dtype, generator)])


def _classified(batch: Ragged, dtype: torch.dtype, generator: torch.Generator) -> Iterator[Row]:
    import transformers

    ids, mask = batch.ids % SMALL.vocab_size, batch.mask
    bodies = {SequenceClassifier: Bert(SMALL), TokenClassifier: Bert(SMALL, pooler=False)}
    for kind, body in bodies.items():
        ours = kind(body, SMALL.labels).initialise(generator=generator).to(dtype).eval()
        with TemporaryDirectory() as folder:
            ours.save_pretrained(folder)
            theirs = getattr(transformers, ours.architecture).from_pretrained(folder, dtype=dtype)
        made, expected = ours(ids, mask), theirs.eval()(ids, attention_mask=mask.long()).logits
        if kind is SequenceClassifier:
            yield difference("row classifier", made, expected)
        else:
            yield difference("token classifier", made[mask], expected[mask])


def worst(table: pd.DataFrame) -> pd.DataFrame:
    """Give the largest difference of each piece over its layers, in the order of the pieces.

    Columns: piece, then a precision each; numbers (compared in each), holds (within all bounds).
    """
    rows = []
    for piece, part in table.groupby("piece", sort=False):
        most: dict[str, float] = {}
        numbers = dict.fromkeys(part["precision"], 0)
        for row in part.to_dict("records"):
            precision = row["precision"]
            most[precision] = max(most.get(precision, 0.0), row["difference"])
            numbers[precision] += row["numbers"]
        holds = bool((part["difference"] <= part["bound"]).all())
        each = {"numbers": max(numbers.values()), "holds": holds}
        rows.append({"piece": piece, **most, **each})
    return pd.DataFrame(rows)
