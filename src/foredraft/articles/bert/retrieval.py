"""Article 07: finding the function that a docstring describes, by words and by three encoders.

The questions are those of a package that no fine-tuning has seen; see `training.sentences`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from foredraft.models.bert.model import Bert
from foredraft.repro.params import Bert as Params
from foredraft.training.bert.docstrings import Docstring
from foredraft.training.bert.sentences import (
    Search,
    Tuning,
    bodies,
    by_encoder,
    by_tf_idf,
    fine_tuned,
    functions,
    recall,
)
from foredraft.types import Float, Tensor

WORDS, CHARACTERS, REAL, BEFORE, AFTER = "words", "characters", "real", "before", "after"
"""The arms: TF-IDF of words and of characters, the trained weights as they come, and the model that
is fine-tuned, before and after."""

ANSWERS = {"functions": functions, "bodies": bodies}
"""The tasks: what is to be found for a summary."""

Similarity = Float[Tensor, "question text"]


@final
@dataclass(frozen=True, slots=True)
class Encoder:
    """An encoder with the tokenizer that it reads by."""

    bert: Bert
    tokenizer: PreTrainedTokenizerBase


def searches(found: Sequence[Docstring], most: int) -> dict[str, Search]:
    """Give each task with at most so many questions, each among the texts of all of them."""
    every = {task: answers(found) for task, answers in ANSWERS.items()}
    return {
        task: Search(each.questions[:most], each.texts[:most], each.names[:most])
        for task, each in every.items()
    }


def tuned(
    encoder: Encoder, found: Sequence[Docstring], params: Params
) -> tuple[Encoder, pd.DataFrame]:
    """Fine-tune a copy of an encoder to find functions; give its loss a step too: step, loss."""
    tuning = Tuning(
        steps=params.tuning_steps,
        pairs=params.tuning_pairs,
        peak_learning_rate=params.tuning_rate,
        seed=params.seed,
    )
    bert, losses = fine_tuned(encoder.bert, encoder.tokenizer, functions(found), tuning)
    log = pd.DataFrame({"step": range(1, len(losses) + 1), "loss": losses})
    return replace(encoder, bert=bert), log


def similarities(search: Search, encoders: Mapping[str, Encoder]) -> dict[str, Similarity]:
    """Compare the questions with the texts in the way of each arm."""
    by_words = {
        WORDS: by_tf_idf(search),
        CHARACTERS: by_tf_idf(search, characters=True),
    }
    return by_words | {
        arm: by_encoder(each.bert, each.tokenizer, search) for arm, each in encoders.items()
    }


def recalls(compared: Mapping[str, Mapping[str, Similarity]], ks: Sequence[int]) -> pd.DataFrame:
    """Say how often the own text is among the first k: task, arm, k, share, low, high, n."""
    rows = []
    for task, by_arm in compared.items():
        for arm, similarity in by_arm.items():
            for k in ks:
                found = recall(similarity, k)
                ends = {"share": found.share, "low": found.low, "high": found.high, "n": found.n}
                rows.append({"task": task, "arm": arm, "k": k, **ends})
    return pd.DataFrame(rows)


def cases(
    search: Search, by_arm: Mapping[str, Similarity], *, one: str, other: str, n: int
) -> pd.DataFrame:
    """Show questions that one arm answers and the other does not, `n` each way.

    Columns: question, asked for, and what each of the two finds first.
    """
    firsts = {arm: by_arm[arm].argmax(1).tolist() for arm in (one, other)}
    rows: list[dict[str, Any]] = []
    for right, wrong in ((one, other), (other, one)):
        questions = range(len(search.questions))
        fitting = [i for i in questions if firsts[right][i] == i != firsts[wrong][i]]
        for i in fitting[:: max(1, len(fitting) // n)][:n]:
            said = {arm: search.texts[firsts[arm][i]] for arm in (one, other)}
            rows.append({"question": search.questions[i], "asked for": search.texts[i], **said})
    return pd.DataFrame(rows, columns=["question", "asked for", one, other])


def places(search: Search, question: str, similarity_of: Encoder, n: int) -> pd.DataFrame:
    """Find the n texts nearest to a question of the reader's own: place, text, name, cosine."""
    asked = Search((question,), search.texts, search.names)
    cosine, order = torch.topk(by_encoder(similarity_of.bert, similarity_of.tokenizer, asked)[0], n)
    rows = [
        {"place": place, "text": search.texts[i], "name": search.names[i], "cosine": value}
        for place, (i, value) in enumerate(zip(order.tolist(), cosine.tolist(), strict=True), 1)
    ]
    return pd.DataFrame(rows)
