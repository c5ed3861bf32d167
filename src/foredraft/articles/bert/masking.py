"""Article 07: what the masking rule does to a text, and how much harder it makes the guess."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch
from tokenizers import Tokenizer

from foredraft.analysis.statistics import wilson
from foredraft.models.bert.model import BertForPretraining
from foredraft.training.bert.docstrings import Docstring
from foredraft.training.bert.mlm import (
    IGNORED,
    Masked,
    Masking,
    Passage,
    Vocabulary,
    chance,
    mask,
    with_marks,
)
from foredraft.training.bert.ship import evaluated, evaluated_rows
from foredraft.training.bert.wordpiece import CONTINUES
from foredraft.types import Int, Tensor

RULES: Mapping[str, bool] = {"single pieces": False, "whole words": True}
"""Over what chance decides, by the words for it: whether over whole words."""

SHOWN = range(40, 61)
"""Tokens of the passage that is shown."""

MEASURED = 3000
"""How many passages, about, the rules are measured on."""

Ids = Int[Tensor, " tokens"]


def fates(
    passages: Sequence[Passage], tokenizer: Tokenizer, masking: Masking, *, seed: int
) -> pd.DataFrame:
    """Say what became of each token of one passage under each rule: rule, text, fate.

    The text has a blank before it where a word begins. The fates: mark, unasked, masked, replaced,
    kept; a replaced token's text is "true→read".
    """
    passage = next((each for each in passages if each.n_tokens in SHOWN), passages[0])
    vocabulary = Vocabulary.of(tokenizer)
    ids, _ = _with_marks(passage, vocabulary)
    rows = []
    for rule, whole in RULES.items():
        masked = _masked(ids, vocabulary, masking, whole=whole, seed=seed, index=0)
        told = zip(ids.tolist(), masked.ids.tolist(), _fates(ids, masked, vocabulary), strict=True)
        for true, read, fate in told:
            text, drawn = (
                str(tokenizer.id_to_token(i)).removeprefix(CONTINUES) for i in (true, read)
            )
            begins = " " * (not vocabulary.continues[true])
            text = f"{text}→{drawn}" if fate == "replaced" else text
            rows.append({"rule": rule, "text": begins + text, "fate": fate})
    return pd.DataFrame(rows)


def _with_marks(passage: Passage, vocabulary: Vocabulary) -> tuple[Ids, Ids]:
    return with_marks([t for s in passage.sentences for t in s], (), vocabulary)


def _masked(
    ids: Ids, vocabulary: Vocabulary, masking: Masking, *, whole: bool, seed: int, index: int
) -> Masked:
    rule = Masking(masking.rate, masking.masked, masking.replaced, whole)
    return mask(ids, vocabulary, rule, generator=chance(seed, 0, index))


def _fates(ids: Ids, masked: Masked, vocabulary: Vocabulary) -> Iterator[str]:
    for true, read, label in zip(ids, masked.ids, masked.labels, strict=True):
        if label == IGNORED:
            yield "mark" if vocabulary.special[true] else "unasked"
        elif read == vocabulary.mask:
            yield "masked"
        else:
            yield "kept" if read == true else "replaced"


def shares(
    passages: Sequence[Passage], tokenizer: Tokenizer, masking: Masking, *, seed: int
) -> pd.DataFrame:
    """Measure what the rules do to passages, spread evenly, beside what is asked of them.

    Columns: rule, what, share, low, high, n (of how many), asked (None: nothing).
    """
    vocabulary, rows = Vocabulary.of(tokenizer), []
    some = passages[:: max(1, len(passages) // MEASURED)]
    for rule, whole in RULES.items():
        n: Counter[str] = Counter()
        for index, passage in enumerate(some):
            ids, _ = _with_marks(passage, vocabulary)
            masked = _masked(ids, vocabulary, masking, whole=whole, seed=seed, index=index)
            n.update(_counted(ids, masked, vocabulary, whole=whole))
        left = 1 - masking.masked - masking.replaced
        found = {
            "words chosen" if whole else "tokens chosen": ("chosen", "units", masking.rate),
            "of these masked": ("masked", "asked", masking.masked),
            "of these replaced": ("replaced", "asked", masking.replaced),
            "of these left": ("kept", "asked", left),
            "of long words asked, asked in part": ("broken", "long", 0.0 if whole else None),
        }
        rows += [
            {"rule": rule, "what": what, **_share(n[count], n[of]), "asked": asked}
            for what, (count, of, asked) in found.items()
        ]
    return pd.DataFrame(rows)


def _counted(ids: Ids, masked: Masked, vocabulary: Vocabulary, *, whole: bool) -> dict[str, int]:
    """Count the units of chance and those chosen; the tokens asked and what became of them; the
    words of several pieces that are asked at all (long), and those asked in part (broken)."""
    asked, plain = masked.labels != IGNORED, ~vocabulary.special[ids]
    begins = plain & ~vocabulary.continues[ids]
    units = begins if whole else plain
    hidden = asked & (masked.ids == vocabulary.mask)
    kept = asked & (masked.ids == ids)
    word = begins.long().cumsum(0)[plain]
    pieces, chosen = torch.bincount(word), torch.bincount(word, weights=asked[plain].double())
    long = (pieces > 1) & (chosen > 0)
    found = {
        "units": units,
        "chosen": units & asked,
        "asked": asked,
        "masked": hidden,
        "replaced": asked & ~hidden & ~kept,
        "kept": kept,
        "long": long,
        "broken": long & (chosen < pieces),
    }
    return {name: int(which.sum()) for name, which in found.items()}


def _share(count: int, n: int) -> dict[str, float]:
    """Give a share with its interval; of nothing, anything may be true."""
    low, high = wilson(count / n, n) if n else (0.0, 1.0)
    return {"share": count / n if n else float("nan"), "low": low, "high": high, "n": n}


def by_rate(
    model: BertForPretraining,
    tokenizer: Tokenizer,
    found: Sequence[Docstring],
    rates: Sequence[float],
    *,
    n_rows: int,
) -> pd.DataFrame:
    """Measure how many masked tokens a trained model guesses, by rule and rate.

    Columns: rule, rate, accuracy, low, high, nats, n, documents; the same rows each time.
    """
    length, rows = min(model.config.max_positions, 128), []
    told = evaluated_rows(found, tokenizer, length=length)
    for rule, whole in RULES.items():
        for rate in rates:
            asked = replace(told, masking=Masking(rate=rate, whole_words=whole))
            score = evaluated(model, None, asked, n_rows=n_rows)["bert"]
            rows.append({"rule": rule, "rate": rate, **score})
    return pd.DataFrame(rows)
