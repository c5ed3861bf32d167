"""Article 07: BERT, from its parts to what it is good for.

Here are the weights that are looked at, what their heads attend to, what they predict, and what may
be cited; `parity`, `masking`, `learning` and `retrieval` hold the other tables.
"""

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from foredraft.articles.bert.parity import Ragged
from foredraft.articles.bert.retrieval import (
    AFTER,
    BEFORE,
    CHARACTERS,
    REAL,
    WORDS,
    Encoder,
)
from foredraft.models.bert.config import BertConfig
from foredraft.models.bert.model import Bert, BertForPretraining
from foredraft.models.bert.weights import minilm
from foredraft.models.loading import locate, read_object
from foredraft.repro.claims import Claim, notch
from foredraft.repro.params import Bert as Params
from foredraft.training.bert.docstrings import Docstring
from foredraft.training.bert.mlm import Batch, collate
from foredraft.training.bert.pretrain import POCKET_BERT
from foredraft.training.bert.sentences import TEXTS_AT_A_TIME
from foredraft.training.bert.ship import evaluated_rows
from foredraft.training.bert.wordpiece import CLS, MASK, SEP, read_wordpiece
from foredraft.types import Float, Tensor

MINILM = "all-MiniLM-L6-v2"
"""What the parameters call the trained weights that come in a package of their own."""

INSTEAD = "foredraft run bert -p profile=pocket"
"""What runs where a published model does not."""

N_DOCSTRINGS, N_PAIRS = 100, 12
"""How many docstrings the batches are taken from that both implementations are given, and the rows
of a batch of pairs."""

WEIGHTS = ("config.json", "model.safetensors", "tokenizer.json")

SENTENCES = (
    f"Returns the shortest {MASK} between two nodes of the graph.",
    f"Compute the {MASK} of a square matrix.",
    f"The number of {MASK} in the array.",
    f"If true, the {MASK} is sorted by value.",
    f"Draw random {MASK} from a normal distribution.",
    f"The {MASK} is not defined for negative values.",
)
"""Our own, for a model to fill in."""

SPENT = {"ms": "Time", "MB": "Peak of memory"}
"""What a benchmark's unit measures."""

PARITY_DRIFT = {"float32": 2e-5, "float64": 1e-13}
"""How far another processor may move the largest difference, which is one of rounding."""

DRAWN = range(14, 19)
"""Tokens, marks included, of the sentence whose attention is drawn."""

MARKS = (CLS, SEP)
PATTERNS = ("itself", "the one before", "the one after", *MARKS, "others")
"""Where a token can look."""


@final
@dataclass(frozen=True, slots=True)
class Weights:
    """Trained weights in a folder; `missing` says why they are not those that were asked for."""

    name: str
    folder: Path
    missing: str = ""

    @property
    def files(self) -> list[Path]:
        """What makes the weights what they are."""
        return [self.folder / name for name in WEIGHTS if (self.folder / name).is_file()]

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer; a sentence encoder's folder says how long its texts may be."""
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        about = self.folder / "sentence_bert_config.json"
        if about.is_file():
            tokenizer.model_max_length = json.loads(about.read_text())["max_seq_length"]
        return tokenizer

    def encoder(self) -> Encoder:
        """Load the encoder, in float32, and its tokenizer."""
        return Encoder(Bert.from_pretrained(self.folder, dtype=torch.float32), self.tokenizer())

    @property
    def max_positions(self) -> int:
        """How many tokens a text may have."""
        return BertConfig.from_fields(read_object(self.folder / "config.json")).max_positions


def model(params: Params) -> Weights:
    """Find the model that guesses and is fine-tuned; ValueError says what runs without it."""
    try:
        return Weights(params.model, locate(params.model))
    except ValueError as error:
        raise ValueError(f"{error}. What runs anywhere is the pocket model: {INSTEAD}") from error


def encoder(params: Params) -> Weights:
    """Find the weights that are held against the reference; without MiniLM's, those of `model`."""
    if params.encoder != MINILM:
        return Weights(params.encoder, locate(params.encoder))
    try:
        return Weights(MINILM, minilm())
    except ValueError as error:
        return Weights(params.model, model(params).folder, missing=str(error))


def ragged(weights: Weights, found: Sequence[Docstring]) -> Ragged:
    """Cut docstrings into rows of all lengths up to the model's positions."""
    tokenizer = weights.tokenizer()
    text = "\n".join(each.text for each in found[:N_DOCSTRINGS])
    tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return Ragged.cut(tokens, first=tokenizer.get_vocab()[CLS], longest=weights.max_positions)


def masked_pairs(weights: Weights, found: Sequence[Docstring]) -> Batch:
    """Make a batch of masked pairs of sentences, as a model is trained on."""
    tokenizer = read_wordpiece(weights.folder)
    length = min(weights.max_positions, POCKET_BERT.config.max_positions)
    rows = evaluated_rows(found[:N_DOCSTRINGS], tokenizer, length=length)
    return collate([rows(0, index) for index in range(min(N_PAIRS, len(rows.passages)))])


def source(part: type) -> str:
    """Give a class as it stands in the package, as Markdown."""
    return f"```python\n{inspect.getsource(part).strip()}\n```"


@torch.inference_mode()
def attended(bert: Bert, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> pd.DataFrame:
    """Measure where each head's tokens look, on average over the tokens of all texts.

    A row a layer, head and pattern: layer and head (from 1), pattern, share of the attention.
    [CLS] and [SEP] count as themselves, wherever they stand; their own looks are left out.
    """
    chunks = [
        _looks(bert, tokenizer, texts[first : first + TEXTS_AT_A_TIME])
        for first in range(0, len(texts), TEXTS_AT_A_TIME)
    ]
    totals = torch.stack([shares for shares, _ in chunks]).sum(0)
    means = (totals / sum(n_tokens for _, n_tokens in chunks)).tolist()
    return pd.DataFrame(
        [
            {"layer": layer + 1, "head": head + 1, "pattern": pattern, "share": share}
            for layer, heads in enumerate(means)
            for head, shares in enumerate(heads)
            for pattern, share in zip(PATTERNS, shares, strict=True)
        ]
    )


def _looks(
    bert: Bert, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> tuple[Float[Tensor, "layer head pattern"], int]:
    """Sum where the tokens of some texts look, by pattern; and count the tokens."""
    told = _encoded(bert, tokenizer, texts)
    ids, real = told["input_ids"], told["attention_mask"].bool()
    at = [ids.eq(tokenizer.get_vocab()[mark]) for mark in MARKS]
    looking = real & ~torch.stack(at).any(0)
    size = ids.shape[1]
    itself = torch.eye(size, dtype=torch.bool).expand(len(ids), -1, -1)
    beside = [
        torch.ones(size, size).tril(end).triu(end).bool() & looking[:, None, :] for end in (-1, 1)
    ]
    marks = [mark[:, None, :].expand(-1, size, -1) for mark in at]
    known = torch.stack([itself, *beside, *marks], 1)
    patterns = torch.cat([known, ~known.any(1, keepdim=True)], 1) & looking[:, None, :, None]
    maps = torch.stack(bert.attention_maps(ids, told["attention_mask"]))
    return torch.einsum("lbhij,bpij->lhp", maps, patterns.to(maps.dtype)), int(looking.sum())


def _encoded(
    bert: Bert, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> Mapping[str, Tensor]:
    length = min(bert.config.max_positions, tokenizer.model_max_length)
    return tokenizer(
        list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt"
    )


def sentence(reader: Encoder, texts: Sequence[str]) -> str:
    """Pick the first text of a length that a figure holds; the first of all if there is none."""
    lengths = (len(reader.tokenizer(text)["input_ids"]) for text in texts)
    fitting = (text for text, length in zip(texts, lengths, strict=False) if length in DRAWN)
    return next(fitting, texts[0])


def clearest(looks: pd.DataFrame) -> pd.DataFrame:
    """Pick the head that follows each pattern most, of those that have a name."""
    named = looks[looks["pattern"] != PATTERNS[-1]]
    return looks.loc[named.groupby("pattern", sort=False)["share"].idxmax()]


@torch.inference_mode()
def maps(
    bert: Bert, tokenizer: PreTrainedTokenizerBase, text: str, heads: pd.DataFrame
) -> tuple[list[str], list[np.ndarray]]:
    """Give the tokens of a text, and for each of some heads (layer, head) its map [from, to]."""
    told = _encoded(bert, tokenizer, [text])
    found = bert.attention_maps(told["input_ids"], told["attention_mask"])
    places = zip(heads["layer"], heads["head"], strict=True)
    tokens = [str(tokenizer.convert_ids_to_tokens(i)) for i in told["input_ids"][0].tolist()]
    return tokens, [found[layer - 1][0, head - 1].numpy() for layer, head in places]


@torch.inference_mode()
def filled(
    model: BertForPretraining, tokenizer: Tokenizer, texts: Sequence[str], n: int = 5
) -> pd.DataFrame:
    """Let a model fill the one mask of each text: text, guess, probability; the n likeliest."""
    rows = []
    for text in texts:
        encoded = tokenizer.encode(text)
        ids = torch.tensor([encoded.ids])
        chosen = ids == tokenizer.token_to_id(MASK)
        law = model(ids, chosen=chosen).prediction_logits[0].float().softmax(-1)
        for probability, token in zip(*(found.tolist() for found in law.topk(n)), strict=True):
            guess = tokenizer.id_to_token(token)
            rows.append({"text": text, "guess": guess, "probability": probability})
    return pd.DataFrame(rows)


def arm_names(ours: Weights, real: Weights) -> dict[str, str]:
    """Say what the arms of the search are called."""
    return {
        WORDS: "TF-IDF of words",
        CHARACTERS: "TF-IDF of characters",
        REAL: real.name,
        BEFORE: ours.name,
        AFTER: f"{ours.name}, fine-tuned",
    }


Found = tuple[dict[str, Any], list[Claim]]


def findings(tables: Mapping[str, pd.DataFrame], arms: Mapping[str, str]) -> Found:
    """Name the values that the article can be cited for, and the claims that they back.

    Takes the tables `parity`, `masking`, `guessers`, `recall` and `speed`.
    """
    parts = (
        _of_parity(tables["parity"]),
        _of_masking(tables["masking"]),
        _of_guessers(tables["guessers"]),
        _of_recall(tables["recall"], arms),
        _of_speed(tables["speed"]),
    )
    names = ("parity", "masking", "guesses", "search", "speed")
    values = {name: found for name, (found, _) in zip(names, parts, strict=True)}
    return values, [claim for _, claims in parts for claim in claims]


def _of_parity(worst: pd.DataFrame) -> Found:
    rows, precisions = (
        worst.to_dict("records"),
        [str(name) for name in worst if "float" in str(name)],
    )
    values: dict[str, Any] = {
        key(row["piece"]): {name: row[name] for name in precisions} for row in rows
    }
    values |= {name: max(row[name] for row in rows) for name in precisions}
    values["holds"] = all(row["holds"] for row in rows)
    claims = [
        Claim(
            f"parity-{name}",
            f"Largest difference from transformers, any piece, {name}",
            f"parity.{name}",
            n=sum(row["numbers"] for row in rows),
            drift=PARITY_DRIFT[name],
        )
        for name in precisions
    ]
    return values, claims


def _of_masking(shares: pd.DataFrame) -> Found:
    values: dict[str, Any] = {}
    for row in shares.to_dict("records"):
        told = {name: row[name] for name in ("share", "low", "high", "n")}
        values.setdefault(key(row["rule"]), {})[key(row["what"])] = told
    return values, []


def _of_guessers(table: pd.DataFrame) -> Found:
    names = ("accuracy", "low", "high", "nats", "n")
    values = {row["who"]: {name: row[name] for name in names} for row in table.to_dict("records")}
    claims = [
        Claim(
            f"guesses-{row['who']}",
            f"Masked tokens of a held-out package guessed: {row['words']}",
            f"guesses.{row['who']}.accuracy",
            n=int(row["n"]),
            spread=float(row["high"] - row["low"]) / 2,
        )
        for row in table.to_dict("records")
        if "next_sentence" not in row["who"]
    ]
    return values, claims


def _of_recall(table: pd.DataFrame, arms: Mapping[str, str]) -> Found:
    values: dict[str, Any] = {}
    claims = []
    for row in table.to_dict("records"):
        task, arm, k = row["task"], row["arm"], row["k"]
        told = {name: row[name] for name in ("share", "low", "high", "n")}
        values.setdefault(task, {}).setdefault(arm, {})[f"at_{k}"] = told
        if task == "functions" and k == 1:
            text = f"Functions found first by their docstring's summary: {arms[arm]}"
            half = (row["high"] - row["low"]) / 2
            cited = f"search.{task}.{arm}.at_1.share"
            claims.append(Claim(f"found-{arm}", text, cited, n=int(row["n"]), spread=float(half)))
    return values, claims


def _of_speed(table: pd.DataFrame) -> Found:
    values: dict[str, Any] = {}
    claims = []
    for row in table.to_dict("records"):
        place = key(row["device"]), key(row["workload"]), key(row["task"])
        told = {name: float(row[f"ratio_{name}"]) for name in ("median", "min", "max")}
        values.setdefault(place[0], {}).setdefault(place[1], {})[place[2]] = told
        text = f"{SPENT[row['unit']]} of transformers ÷ ours, {row['task']}, {row['workload']}"
        text += f", {row['device']}"
        spread = notch(float(row["ratio_iqr"]), int(row["n"]))
        cited = ".".join(("speed", *place, "median"))
        claims.append(Claim("-".join(place), text, cited, n=int(row["n"]), spread=spread))
    return values, claims


def key(words: object) -> str:
    """Turn words into what a value can be cited by.

    >>> key("8 to 256 tokens, evenly")
    '8_to_256_tokens_evenly'
    """
    return re.sub(r"[^a-z0-9]+", "_", str(words).lower()).strip("_")
