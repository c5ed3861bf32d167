"""Article 07: a small BERT trained on the spot, beside the one that is shipped and beside counting.

Both read the docstrings of the pinned packages with one tokenizer, and are judged on the same
masked tokens of a package that neither has seen.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pandas as pd
import torch

from foredraft import paths
from foredraft.models.bert.config import BertConfig
from foredraft.models.bert.model import BertForPretraining
from foredraft.repro.params import Bert as Params
from foredraft.training.bert.docstrings import Docstring, Docstrings
from foredraft.training.bert.mlm import Masking, Rows
from foredraft.training.bert.pretrain import POCKET_BERT, Recipe, Step, pretrain_bert
from foredraft.training.bert.ship import GUESSERS, evaluated_rows, rows_of
from foredraft.training.bert.wordpiece import read_wordpiece

SHIPPED, HERE = "shipped", "here"
"""The runs: of the model that is shipped, and of the one that is trained on the spot."""

HEAD = 32
"""Features of an attention head."""

EVALUATIONS = 8
"""How often the loss on held-out rows is taken."""


@final
@dataclass(frozen=True, slots=True)
class Trained:
    """A model trained on the spot, its recipe, and a row a step: tokens, loss, held_out (nats)."""

    model: BertForPretraining
    recipe: Recipe
    log: pd.DataFrame


def folder() -> Path:
    """Say where the model that is shipped is, whose tokenizer all runs read by."""
    return paths.model(POCKET_BERT.name)


def files() -> list[Path]:
    """Name what is read of the model that is shipped."""
    return [folder() / name for name in ("card.json", "tokenizer.json")]


def card() -> Mapping[str, Any]:
    """Read the card of the model that is shipped."""
    return json.loads((folder() / "card.json").read_text(encoding="utf-8"))


def guesser(where: Path) -> BertForPretraining:
    """Load a model that guesses words, in float32 and laid out for this processor."""
    return BertForPretraining.from_pretrained(where, dtype=torch.float32).pack()


def recipe(params: Params) -> Recipe:
    """Say how the model of the notebook is made; the vocabulary is the shipped one's."""
    heads = max(1, params.hidden_size // HEAD)
    config = BertConfig(
        vocab_size=POCKET_BERT.config.vocab_size,
        hidden_size=params.hidden_size,
        intermediate_size=4 * params.hidden_size,
        n_layers=params.layers,
        n_heads=heads,
        max_positions=POCKET_BERT.config.max_positions,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    steps = params.tokens // params.batch_tokens
    return Recipe(
        name=HERE,
        config=config,
        tokens=params.tokens,
        peak_learning_rate=params.learning_rate,
        masking=Masking(rate=params.masking_rate, whole_words=params.whole_words),
        batch_tokens=params.batch_tokens,
        warmup_steps=max(1, steps // 10),
        evaluate_every=max(1, steps // EVALUATIONS),
        seed=params.seed,
    )


def training_rows(params: Params, found: Sequence[Docstring]) -> Rows:
    """Make rows of as many docstrings as the parameters say, spread evenly over all."""
    how, tokenizer = recipe(params), read_wordpiece(folder())
    some = found[:: max(1, len(found) // params.documents)]
    return rows_of(some, tokenizer, how.masking, length=how.config.max_positions, seed=params.seed)


def judging_rows(found: Docstrings) -> Rows:
    """Make the rows of the held-out package on which the shipped model was judged."""
    tokenizer = read_wordpiece(folder())
    length = POCKET_BERT.config.max_positions
    return evaluated_rows(found.held_out_package, tokenizer, length=length)


def trained(
    params: Params, rows: Rows, judged: Rows, *, report: Callable[[int], None] = lambda done: None
) -> Trained:
    """Train a model from nothing; `report` is told the tokens seen."""
    steps: list[Step] = []

    def note(step: Step) -> None:
        steps.append(step)
        report(step.tokens)

    how = recipe(params)
    model, _ = pretrain_bert(how, rows, judged, report=note, resumable=False)
    log = [
        {"tokens": step.tokens, "loss": step.losses.words, "held_out": step.held_out_loss}
        for step in steps
    ]
    return Trained(model, how, pd.DataFrame(log, dtype=float))


def curves(told: Mapping[str, Any], here: Trained) -> pd.DataFrame:
    """Lay the losses on held-out rows side by side: run, tokens, held_out (nats a masked token)."""
    rows = [(SHIPPED, row[0], row[3]) for row in told["curve"]]
    rows += [(HERE, row["tokens"], row["held_out"]) for row in here.log.to_dict("records")]
    table = pd.DataFrame(rows, columns=["run", "tokens", "held_out"])
    return table.dropna(subset=["held_out"])


def guessers(told: Mapping[str, Any], here: Mapping[str, Any]) -> pd.DataFrame:
    """Say who guesses how many of the masked tokens of the held-out package.

    `here` is what `evaluated` gives of the model trained on the spot. Columns: who, words (for it),
    accuracy, low, high, nats, n, documents.
    """
    shipped = told["held_out_package"]
    words = {who: said.replace("this model", told["name"]) for who, said in GUESSERS.items()}
    rows = [{"who": who, "words": words[who], **shipped[who]} for who in GUESSERS if who in shipped]
    ours = {
        "bert": (HERE, "the model trained here"),
        "next_sentence": (f"{HERE}_next_sentence", "the model trained here, whether one follows"),
    }
    rows += [
        {"who": name, "words": said, **here[who]}
        for who, (name, said) in ours.items()
        if who in here
    ]
    return pd.DataFrame(rows)
