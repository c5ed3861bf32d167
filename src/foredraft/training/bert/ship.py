"""Make the pocket BERT: train it, measure it against counting on held-out text, ship it.

What is measured is decided by seeds alone: the same rows, masks and pairs for every model.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from tokenizers import Tokenizer

from foredraft import paths
from foredraft.files import digest, write_text
from foredraft.machine import this_machine
from foredraft.models.bert.model import BertForPretraining
from foredraft.training.bert.docstrings import Docstring, load_docstrings
from foredraft.training.bert.mlm import (
    IGNORED,
    Masking,
    Passage,
    Rows,
    Vocabulary,
    collate,
    passages,
)
from foredraft.training.bert.pretrain import Recipe, Report, guesses, pretrain_bert
from foredraft.training.bert.wordpiece import read_wordpiece, train_wordpiece, wrapped
from foredraft.training.checkpoint import Progress
from foredraft.training.corpus import HELD_OUT_PACKAGE
from foredraft.types import Float, Int, Tensor

EVALUATION_SEED = 20_181_011
N_ROWS = 1000
ROWS_AT_A_TIME = 50
RESAMPLES = 1000
DIGITS = 4
GUESSERS = {
    "bert": "this model",
    "both_neighbours": "counting, from both neighbours",
    "left_neighbour": "counting, from the left neighbour (bigram)",
    "unigram": "counting, from nothing (unigram)",
    "next_sentence": "this model, whether a sentence follows",
}
"""What the guessers of a card are called on its page."""
DISCOUNT = 0.75
"""What absolute discounting takes from each count of a pair of neighbours."""


def make(recipe: Recipe, *, device: str = "cpu", report: Report = lambda step: None) -> Path:
    """Train, from the last checkpoint if there is one, and write the model's folder."""
    docs = load_docstrings()
    tokenizer = tokenizer_of(recipe, docs.train)
    length = recipe.config.max_positions
    train = rows_of(docs.train, tokenizer, recipe.masking, length=length, seed=recipe.seed)
    package = evaluated_rows(docs.held_out_package, tokenizer, length=length)
    model, progress = pretrain_bert(recipe, train, package, device=device, report=report)
    if not PartialState().is_main_process:
        return paths.model(recipe.name)
    files = evaluated_rows(docs.held_out_files, tokenizer, length=length)
    folder = ship(recipe, model, tokenizer)
    shipped = BertForPretraining.from_pretrained(folder, dtype=torch.float32)
    counted = Neighbours.of(train.passages, recipe.config.vocab_size)
    card = {
        **_origin(recipe, shipped, progress, device),
        "epochs": round(progress.tokens / sum(p.n_tokens for p in train.passages), 2),
        "passages": len(train.passages),
        "held_out_package_name": HELD_OUT_PACKAGE,
        "held_out_package": evaluated(shipped, counted, package),
        "held_out_files": evaluated(shipped, counted, files),
        "curve": progress.curve,
    }
    write_text(folder / "card.json", json.dumps(card, indent=1) + "\n")
    write_text(folder / "README.md", rendered(card))
    return folder


def tokenizer_of(recipe: Recipe, found: Sequence[Docstring]) -> Tokenizer:
    """Read the tokenizer of the model made before, or of the run under way, or train it."""
    known = [paths.model(recipe.name), paths.training(recipe.name)]
    for folder in known:
        if (folder / "tokenizer.json").is_file():
            return read_wordpiece(folder)
    tokenizer = train_wordpiece((each.text for each in found), vocab_size=recipe.config.vocab_size)
    write_text(known[-1] / "tokenizer.json", tokenizer.to_str())
    return tokenizer


def rows_of(
    found: Sequence[Docstring],
    tokenizer: Tokenizer,
    masking: Masking,
    *,
    length: int,
    seed: int,
) -> Rows:
    """Make rows of docstrings, each a document."""
    told = passages((each.sentences for each in found), tokenizer, length=length)
    return Rows(told, Vocabulary.of(tokenizer), masking, seed)


def evaluated_rows(found: Sequence[Docstring], tokenizer: Tokenizer, *, length: int) -> Rows:
    """Make the rows that every model is evaluated on, under the plain masking rule."""
    return rows_of(found, tokenizer, Masking(), length=length, seed=EVALUATION_SEED)


def ship(recipe: Recipe, model: BertForPretraining, tokenizer: Tokenizer) -> Path:
    """Write the folder of a trained model, bf16, which transformers' Auto classes read."""
    folder = paths.model(recipe.name)
    wrapped(tokenizer, max_length=recipe.config.max_positions).save_pretrained(folder)
    model.bfloat16().save_pretrained(folder)
    return folder


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What counting knows: how often each token occurs, and which follows which."""

    single: Float[Tensor, " vocab"]
    follows: Float[Tensor, "vocab vocab"]
    """P(column | row), absolute discounting interpolated with `single`."""

    @classmethod
    def of(cls, told: Sequence[Passage], vocab_size: int) -> "Neighbours":
        """Count the tokens and the neighbours of all passages."""
        ids = [np.array([t for s in each.sentences for t in s], dtype=np.int64) for each in told]
        pairs = np.concatenate([each[:-1] * vocab_size + each[1:] for each in ids])
        single = np.bincount(np.concatenate(ids), minlength=vocab_size) + 1.0
        square = np.bincount(pairs, minlength=vocab_size**2).reshape(vocab_size, vocab_size)
        counts = torch.from_numpy(square.astype(np.float32))
        alone = torch.from_numpy(single / single.sum()).float()
        total = counts.sum(1, keepdim=True)
        spared = (DISCOUNT * (counts > 0).sum(1, keepdim=True) / total).nan_to_num(1.0)
        seen = ((counts - DISCOUNT).clamp(min=0) / total).nan_to_num(0.0)
        return cls(alone, seen + spared.clamp(max=1.0) * alone)

    def from_both(
        self, left: Int[Tensor, " places"], right: Int[Tensor, " places"]
    ) -> Float[Tensor, "places vocab"]:
        """Give P(token | both neighbours) ∝ P(token | left) · P(right | token)."""
        joint = self.follows[left] * self.follows[:, right].T
        return joint / joint.sum(-1, keepdim=True)


@torch.no_grad()
def evaluated(
    model: BertForPretraining, counted: Neighbours | None, rows: Rows, *, n_rows: int = N_ROWS
) -> dict[str, Any]:
    """Score a model, and counting, on the same masked tokens of about so many rows, spread evenly.

    Counting is told the true neighbours, even where the model sees a mask; None leaves it out.
    """
    told = rows.passages
    indices = list(range(0, len(told), max(1, len(told) // n_rows)))
    parts = [
        part
        for first in range(0, len(indices), ROWS_AT_A_TIME)
        for part in _guessed(model, counted, rows, indices[first : first + ROWS_AT_A_TIME])
    ]
    table = pd.concat(parts, ignore_index=True)
    scores = {str(who): score(part) for who, part in table.groupby("who", sort=False)}
    return {"rows": len(indices), **scores}


def score(guessed: pd.DataFrame) -> dict[str, float]:
    """Give the share of right guesses with its 95 % interval, nats a guess, and their number.

    The interval is the percentile bootstrap over documents, whose guesses are not independent.
    """
    sums = guessed.groupby("document")["right"].agg(["sum", "count"]).to_numpy(dtype=float)
    picks = np.random.default_rng(0).integers(len(sums), size=(RESAMPLES, len(sums)))
    drawn = sums[picks].sum(1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], (0.025, 0.975))
    found = {
        "accuracy": guessed["right"].mean(),
        "low": low,
        "high": high,
        "nats": guessed["nats"].mean(),
    }
    rounded = {name: round(float(value), DIGITS) for name, value in found.items()}
    return {**rounded, "n": len(guessed), "documents": len(sums)}


def _guessed(
    model: BertForPretraining, counted: Neighbours | None, rows: Rows, indices: Sequence[int]
) -> Iterator[pd.DataFrame]:
    """Tell guess by guess who was right about the masked tokens, and about the pairs."""
    batch = collate([rows(0, index) for index in indices])
    documents = torch.tensor([rows.passages[index].document for index in indices])
    output = guesses(model, batch)
    row, place = batch.chosen.nonzero(as_tuple=True)
    true = batch.ids.where(~batch.chosen, batch.labels)
    left, right, labels = true[row, place - 1], true[row, place + 1], true[row, place]
    words = {"bert": output.prediction_logits.float().softmax(-1)}
    if counted is not None:
        words |= {
            "unigram": counted.single.expand(len(labels), -1),
            "left_neighbour": counted.follows[left],
            "both_neighbours": counted.from_both(left, right),
        }
    for who, law in words.items():
        yield _told(who, law, labels, documents[row])
    asked = batch.follows != IGNORED
    if output.seq_relationship_logits is not None and bool(asked.any()):
        law = output.seq_relationship_logits[asked].float().softmax(-1)
        yield _told("next_sentence", law, batch.follows[asked], documents[asked])


def _told(
    who: str,
    law: Float[Tensor, "guesses classes"],
    labels: Int[Tensor, " guesses"],
    documents: Int[Tensor, " guesses"],
) -> pd.DataFrame:
    found = law.gather(1, labels[:, None])[:, 0]
    return pd.DataFrame(
        {
            "who": who,
            "document": documents.numpy(),
            "right": (law.argmax(-1) == labels).numpy(),
            "nats": -found.clamp(min=torch.finfo(found.dtype).tiny).log().numpy(),
        }
    )


def rendered(card: Mapping[str, Any]) -> str:
    """Write a card as the README of the model's folder."""
    package, files = card["held_out_package"], card["held_out_files"]
    rows = "\n".join(
        f"| {told} | {_cell(package[who])} | {_cell(files[who])} |"
        for who, told in GUESSERS.items()
        if who in package
    )
    config, masking, name = card["config"], card["masking"], card["held_out_package_name"]
    chosen, masked, replaced = (f"{masking[key]:.0%}" for key in ("rate", "masked", "replaced"))
    kind = "whole words" if masking["whole_words"] else "single pieces"
    n, documents, known = package["bert"]["n"], package["bert"]["documents"], files["bert"]
    return f"""# {card["name"]}

{card["parameters"]:,} parameters, {card["bytes"]:,} bytes in bf16, architecture `bert`:
{config["n_layers"]} layers, {config["hidden_size"]} wide, {config["n_heads"]} heads,
{config["vocab_size"]:,} WordPieces in lower case, at most {config["max_positions"]} tokens.
Trained by this repository, from nothing, on the docstrings of its pinned dependencies; packages,
versions and digests stand in `data/corpus.json`. The text itself is not redistributed.

    {card["command"]}

Share of masked tokens that are guessed (nats a token), on docstrings that training never saw:
{n:,} tokens of {documents:,} docstrings of a whole package ({name}), and
{known["n"]:,} of {known["documents"]:,} docstrings of 1 % of the files of the others.
In brackets 95 % bounds, by resampling docstrings:

| who guesses | {name} | held-out files |
|---|---|---|
{rows}

Counting is told the true neighbours, even where this model sees a mask. For training, {chosen} of
the tokens, {kind}, are chosen; {masked} of these are masked, {replaced} replaced at random,
the rest left. Masks and next-sentence pairs are drawn anew in every epoch.

Trained on {card["tokens_seen"]:,} tokens ({card["epochs"]} epochs) in {card["seconds"]:,} s on
{card["device"]} (threads: {card["threads"]}). It knows the language of docstrings of numerical
libraries and nothing else, and is meant for learning how BERT works, not for use.
"""


def _cell(found: Mapping[str, float]) -> str:
    bounds = f"{found['accuracy']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"
    return f"{bounds} ({found['nats']:.3f})"


def _origin(
    recipe: Recipe, model: BertForPretraining, progress: Progress, device: str
) -> dict[str, Any]:
    weights = paths.model(recipe.name) / "model.safetensors"
    return {
        "name": recipe.name,
        "architecture": "bert",
        "n_layers": recipe.config.n_layers,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": weights.stat().st_size,
        "weights": digest(weights),
        "command": f"foredraft pretrain {recipe.name}",
        "config": asdict(recipe.config),
        "masking": asdict(recipe.masking),
        "tokens_seen": progress.tokens,
        "seconds": round(progress.seconds),
        "device": this_machine(device).name,
        "threads": torch.get_num_threads(),
    }
