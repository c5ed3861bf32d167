"""Sentence search over docstrings: which text belongs to a question, and how often it is found.

Two tasks of one kind, the i-th question belonging to the i-th text: find the function that a
summary describes, by its name and parameters alone; find the docstring that a summary heads. An
encoder that was fine-tuned is asked about a package that it never saw.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase

from foredraft.analysis.statistics import wilson
from foredraft.models.bert.model import Bert
from foredraft.models.bert.padding import mean_pool
from foredraft.models.packing import has_layout
from foredraft.repro.live import steps
from foredraft.training.bert.docstrings import Docstring, words
from foredraft.types import Float, Tensor

TEXTS_AT_A_TIME = 64
TEMPERATURE = 0.05
"""Of the softmax over the texts of a batch, in cosine similarity."""
MIN_WORDS = 3
"""A shorter summary asks nothing."""


@dataclass(frozen=True, slots=True)
class Search:
    """Questions, and the texts among which the answer to each is its own; none occurs twice."""

    questions: tuple[str, ...]
    texts: tuple[str, ...]
    names: tuple[str, ...]


def functions(found: Iterable[Docstring]) -> Search:
    """Ask which function a summary describes: its name and its parameters, in words.

    Tests, private functions and those whose name in words occurs before are left out.
    """
    asked = (each for each in found if each.kind == "function" and _is_public(each.name))
    return _distinct((each.summary, described(each), each.name) for each in asked)


def bodies(found: Iterable[Docstring]) -> Search:
    """Ask which docstring a summary heads: what stands below it."""
    return _distinct((each.summary, " ".join(each.body.split()), each.name) for each in found)


def described(found: Docstring) -> str:
    """Say a function's name and parameters in words, without its module or class."""
    said = [*words(found.name.rpartition(".")[2]), *(w for p in found.parameters for w in words(p))]
    return " ".join(said)


def _is_public(name: str) -> bool:
    """Tell whether no part of a dotted name is private, or of a test."""
    return not any(part.startswith(("_", "test")) for part in name.split("."))


def _distinct(rows: Iterable[tuple[str, str, str]]) -> Search:
    """Keep the first of equal questions and of equal texts."""
    questions: set[str] = set()
    texts: set[str] = set()
    kept = []
    for question, text, name in rows:
        asks_something = len(question.split()) >= MIN_WORDS and bool(text)
        if asks_something and question.lower() not in questions and text.lower() not in texts:
            questions.add(question.lower())
            texts.add(text.lower())
            kept.append((question, text, name))
    asked, told, names = zip(*kept, strict=True) if kept else ((), (), ())
    return Search(asked, told, names)


@dataclass(frozen=True, slots=True)
class Recall:
    """The share of `n` questions whose text is among the first `k`, with its 95 % bounds."""

    k: int
    share: float
    low: float
    high: float
    n: int


def recall(similarity: Float[Tensor, "question text"], k: int) -> Recall:
    """Measure how often the own text, on the diagonal, is among the k most similar.

    Equal similarities count as in random order; the bounds are Wilson's.
    """
    own = similarity.diagonal()[:, None]
    n_above = (similarity > own).sum(1)
    n_equal = (similarity == own).sum(1)
    hits = ((k - n_above) / n_equal).clamp(0, 1).double()
    low, high = wilson(hits.mean().item(), len(hits))
    return Recall(k, hits.mean().item(), low, high, len(hits))


def by_tf_idf(search: Search, *, characters: bool = False) -> Float[Tensor, "question text"]:
    """Compare by TF-IDF, fitted on the texts: of words, or of 3 to 5 characters within a word."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    units = {"analyzer": "char_wb", "ngram_range": (3, 5)} if characters else {}
    vectorizer = TfidfVectorizer(sublinear_tf=True, **units)
    texts = vectorizer.fit_transform(search.texts)
    questions = vectorizer.transform(search.questions)
    return torch.from_numpy((questions @ texts.T).toarray())


def by_encoder(
    bert: Bert, tokenizer: PreTrainedTokenizerBase, search: Search
) -> Float[Tensor, "question text"]:
    """Compare by the cosine of mean-pooled features."""
    questions = embed(bert, tokenizer, search.questions)
    return questions @ embed(bert, tokenizer, search.texts).T


@torch.no_grad()
def embed(
    bert: Bert, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> Float[Tensor, "text hidden"]:
    """Give each text's features, averaged over its tokens, of length one.

    Texts are cut where the model's positions, or what the tokenizer allows, end.
    """
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    rows: dict[int, Tensor] = {}
    for first in range(0, len(order), TEXTS_AT_A_TIME):
        chunk = order[first : first + TEXTS_AT_A_TIME]
        features = _features(bert, tokenizer, [texts[index] for index in chunk])
        rows |= dict(zip(chunk, features, strict=True))
    return torch.stack([rows[index] for index in range(len(texts))])


def _features(
    bert: Bert, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> Float[Tensor, "text hidden"]:
    length = min(bert.config.max_positions, tokenizer.model_max_length)
    told = tokenizer(
        list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt"
    )
    hidden = bert(told["input_ids"], told["attention_mask"]).last_hidden_state
    return F.normalize(mean_pool(hidden, told["attention_mask"]).float(), dim=-1)


def contrast(
    questions: Float[Tensor, "pair hidden"], texts: Float[Tensor, "pair hidden"]
) -> Float[Tensor, ""]:
    """Measure how far each question is from its own text among the batch's, and back, in nats.

    InfoNCE (arXiv 1807.03748) in both directions, as CLIP has it (arXiv 2103.00020).
    """
    logits = questions @ texts.T / TEMPERATURE
    own = torch.arange(len(logits))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


@dataclass(frozen=True, slots=True)
class Tuning:
    """How an encoder is fine-tuned: so many steps on so many pairs each."""

    steps: int = 300
    pairs: int = 64
    peak_learning_rate: float = 5e-4
    weight_decay: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a batch in which there is nothing to tell apart."""
        if self.pairs < 2:
            raise ValueError(f"pairs={self.pairs}: texts are told apart, give 2 at least")


def fine_tuned(
    bert: Bert, tokenizer: PreTrainedTokenizerBase, search: Search, tuning: Tuning
) -> tuple[Bert, list[float]]:
    """Train a copy of an encoder to bring questions near their texts; give its losses too.

    Works in bf16 where the processor has it; the rate falls in a line to zero after a tenth of
    warm-up.
    """
    if len(search.questions) < tuning.pairs:
        raise ValueError(
            f"{len(search.questions)} questions are no batch of pairs={tuning.pairs}: give fewer"
        )
    tuned = copy.deepcopy(bert).float().requires_grad_(True).train()
    optimizer = torch.optim.AdamW(
        [p for name, p in tuned.named_parameters() if not name.startswith("pooler.")],
        lr=tuning.peak_learning_rate,
        weight_decay=tuning.weight_decay,
        fused=True,
    )
    generator = torch.Generator().manual_seed(tuning.seed)
    losses = []
    for step in steps(range(tuning.steps), "steps of fine-tuning"):
        for group in optimizer.param_groups:
            group["lr"] = tuning.peak_learning_rate * _rate_share(step, tuning.steps)
        picks = torch.randperm(len(search.questions), generator=generator)[: tuning.pairs].tolist()
        with torch.autocast("cpu", torch.bfloat16, enabled=has_layout()):
            questions, texts = (
                _features(tuned, tokenizer, [told[index] for index in picks])
                for told in (search.questions, search.texts)
            )
        loss = contrast(questions, texts)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return tuned.eval().requires_grad_(False), losses


def _rate_share(step: int, steps: int) -> float:
    return min(1.0, 10 * (step + 1) / steps, 1 - step / steps)
