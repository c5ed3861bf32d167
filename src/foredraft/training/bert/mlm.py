"""Masked language modelling: which tokens a BERT must guess, and what stands in their place.

Masks and next-sentence pairs are drawn anew in every epoch (arXiv 1907.11692, section 4.1), each by
a generator that only (seed, epoch, index) decides: no row depends on those before it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import final

import numpy as np
import torch
from tokenizers import Tokenizer

from foredraft.training.bert.wordpiece import CLS, MASK, SEP, SPECIAL, continues
from foredraft.types import Bool, Int, Tensor

IGNORED = -100
"""The label of what is not asked; cross-entropy leaves it out."""
FOLLOWS, STRANGER = 0, 1
"""Labels of a pair of sentences: the second follows the first, or comes from another document."""
N_MARKS = 3
"""[CLS] and two [SEP]: what a pair takes beside its own tokens."""
WINDOW = 2048
"""Rows within which they are sorted by length, so that a batch has few lengths."""


@dataclass(frozen=True, slots=True)
class Masking:
    """The rule: a `rate` of the tokens is chosen; most are masked, some replaced, the rest stay.

    `masked` and `replaced` are shares of the chosen. With `whole_words`, chance decides about
    words, and all pieces of one are chosen or none.
    """

    rate: float = 0.15
    masked: float = 0.8
    replaced: float = 0.1
    whole_words: bool = False

    def __post_init__(self) -> None:
        """Refuse a rate that is no probability, and shares of more than the whole."""
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate={self.rate} is a probability: give more than 0, at most 1")
        if min(self.masked, self.replaced) < 0 or self.masked + self.replaced > 1:
            raise ValueError(
                f"masked={self.masked} and replaced={self.replaced} are shares of the chosen: "
                "give 0 or more, together at most 1"
            )


@final
@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What masking must know of each id: whether it is special, or goes on with a word."""

    special: Bool[Tensor, " vocab"]
    continues: Bool[Tensor, " vocab"]
    mask: int
    cls: int
    sep: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Vocabulary":
        """Read a WordPiece tokenizer's vocabulary."""
        vocabulary = tokenizer.get_vocab()
        ids = {token: vocabulary[token] for token in SPECIAL}
        special = torch.zeros(tokenizer.get_vocab_size(), dtype=torch.bool)
        special[list(ids.values())] = True
        told = torch.from_numpy(continues(tokenizer))
        return cls(special, told, mask=ids[MASK], cls=ids[CLS], sep=ids[SEP])

    @property
    def ordinary(self) -> Int[Tensor, " ordinary"]:
        """The ids that a random token is drawn from."""
        return (~self.special).nonzero().flatten()


@final
@dataclass(frozen=True, slots=True)
class Masked:
    """Tokens to read, and the tokens to guess: the true id where one was chosen, else IGNORED."""

    ids: Int[Tensor, " tokens"]
    labels: Int[Tensor, " tokens"]


def mask(
    ids: Int[Tensor, " tokens"],
    vocabulary: Vocabulary,
    masking: Masking,
    *,
    generator: torch.Generator,
) -> Masked:
    """Choose tokens to guess, never special ones, and hide most of them."""
    special = vocabulary.special[ids]
    units = torch.arange(len(ids))
    if masking.whole_words:
        units = (~vocabulary.continues[ids] | special).long().cumsum(0).sub(1).clamp(min=0)
    chosen = (torch.rand(len(ids), generator=generator)[units] < masking.rate) & ~special
    fate = torch.rand(len(ids), generator=generator)
    ordinary = vocabulary.ordinary
    drawn = ordinary[torch.randint(len(ordinary), (len(ids),), generator=generator)]
    hidden = chosen & (fate < masking.masked)
    replaced = chosen & ~hidden & (fate < masking.masked + masking.replaced)
    read = ids.masked_fill(hidden, vocabulary.mask).where(~replaced, drawn)
    return Masked(read, ids.masked_fill(~chosen, IGNORED))


def chance(seed: int, epoch: int, index: int) -> torch.Generator:
    """Give the generator that decides about one row of one epoch."""
    state = np.random.SeedSequence((seed, epoch, index)).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))


@final
@dataclass(frozen=True, slots=True)
class Passage:
    """Consecutive sentences of a document, as token ids."""

    document: int
    sentences: tuple[tuple[int, ...], ...]

    @property
    def n_tokens(self) -> int:
        """Tokens of a row that holds it, marks included."""
        return sum(map(len, self.sentences)) + N_MARKS


def passages(
    documents: Iterable[Sequence[str]], tokenizer: Tokenizer, *, length: int
) -> list[Passage]:
    """Cut documents, given as sentences, into passages of at most `length` tokens with marks.

    A sentence that is too long for one passage is cut.
    """
    if length <= N_MARKS:
        raise ValueError(f"length={length} leaves no room beside {N_MARKS} marks: give more")
    told = [list(sentences) for sentences in documents]
    flat = [sentence for sentences in told for sentence in sentences]
    encoded = iter(tokenizer.encode_batch_fast(flat, add_special_tokens=False))
    room = length - N_MARKS
    return [
        Passage(number, group)
        for number, sentences in enumerate(told)
        for group in _grouped([next(encoded).ids for _ in sentences], room)
    ]


def _grouped(sentences: Iterable[list[int]], room: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Fill groups with sentences one after another."""
    group: list[tuple[int, ...]] = []
    for sentence in sentences:
        for first in range(0, len(sentence), room):
            piece = tuple(sentence[first : first + room])
            if sum(map(len, group)) + len(piece) > room:
                yield tuple(group)
                group = []
            group.append(piece)
    if group:
        yield tuple(group)


@final
@dataclass(frozen=True, slots=True)
class Pair:
    """Two runs of tokens, and whether the second follows; a lone sentence has no second."""

    first: tuple[int, ...]
    second: tuple[int, ...]
    label: int


def pair(told: Sequence[Passage], index: int, *, generator: torch.Generator) -> Pair:
    """Split a passage in two at random; in half of the cases a stranger replaces the second part.

    The stranger is whole sentences of another document, no longer than what it replaces (cut if its
    first sentence is). A passage of one sentence is no pair.
    """
    own = told[index]
    if len(own.sentences) == 1:
        return Pair(own.sentences[0], (), IGNORED)
    cut = 1 + _below(len(own.sentences) - 1, generator)
    first, second = _joined(own.sentences[:cut]), _joined(own.sentences[cut:])
    if _below(2, generator) == FOLLOWS:
        return Pair(first, second, FOLLOWS)
    other = _stranger(told, own.document, generator).sentences
    start = _below(len(other), generator)
    return Pair(first, _fitting(other[start:], len(second)), STRANGER)


def _stranger(told: Sequence[Passage], document: int, generator: torch.Generator) -> Passage:
    if told[0].document == told[-1].document:
        raise ValueError("a stranger comes from another document: give two documents at least")
    while True:
        other = told[_below(len(told), generator)]
        if other.document != document:
            return other


def _fitting(sentences: Sequence[tuple[int, ...]], room: int) -> tuple[int, ...]:
    ends = [end for end in accumulate(map(len, sentences)) if end <= room]
    return _joined(sentences)[: ends[-1] if ends else room]


def _joined(sentences: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(token for sentence in sentences for token in sentence)


def _below(bound: int, generator: torch.Generator) -> int:
    return int(torch.randint(bound, (), generator=generator))


@final
@dataclass(frozen=True, slots=True)
class Row:
    """One example: [CLS] first [SEP] second [SEP], masked; the label of the pair."""

    masked: Masked
    segments: Int[Tensor, " tokens"]
    label: int


@final
@dataclass(frozen=True, slots=True)
class Rows:
    """All rows of all epochs: passages, and the rule by which chance makes rows of them."""

    passages: Sequence[Passage]
    vocabulary: Vocabulary
    masking: Masking
    seed: int

    def __call__(self, epoch: int, index: int) -> Row:
        """Draw the row of a passage in an epoch."""
        generator = chance(self.seed, epoch, index)
        drawn = pair(self.passages, index, generator=generator)
        ids, segments = with_marks(drawn.first, drawn.second, self.vocabulary)
        masked = mask(ids, self.vocabulary, self.masking, generator=generator)
        return Row(masked, segments, drawn.label)


def with_marks(
    first: Sequence[int], second: Sequence[int], vocabulary: Vocabulary
) -> tuple[Int[Tensor, " tokens"], Int[Tensor, " tokens"]]:
    """Lay out a pair as BERT reads it: ids, and the sentence, 0 or 1, that each belongs to."""
    head = [vocabulary.cls, *first, vocabulary.sep]
    tail = [*second, vocabulary.sep] if second else []
    return torch.tensor(head + tail), torch.tensor([0] * len(head) + [1] * len(tail))


@final
@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded to the longest; the model leaves the padding out."""

    ids: Int[Tensor, "batch seq"]
    attention_mask: Bool[Tensor, "batch seq"]
    segments: Int[Tensor, "batch seq"]
    labels: Int[Tensor, "batch seq"]
    follows: Int[Tensor, " batch"]

    @property
    def chosen(self) -> Bool[Tensor, "batch seq"]:
        """Where a token is to be guessed."""
        return self.labels != IGNORED

    def to(self, device: torch.device) -> "Batch":
        """Copy it to a device."""
        fields = (self.ids, self.attention_mask, self.segments, self.labels, self.follows)
        return Batch(*(tensor.to(device) for tensor in fields))


def collate(rows: Sequence[Row]) -> Batch:
    """Put rows of any lengths into one batch."""
    attention = [torch.ones(len(row.masked.ids), dtype=torch.bool) for row in rows]
    return Batch(
        ids=_padded([row.masked.ids for row in rows], 0),
        attention_mask=_padded(attention, 0),
        segments=_padded([row.segments for row in rows], 0),
        labels=_padded([row.masked.labels for row in rows], IGNORED),
        follows=torch.tensor([row.label for row in rows]),
    )


def _padded(rows: Sequence[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def batched(
    lengths: Sequence[int], batch_tokens: int, *, generator: torch.Generator
) -> list[list[int]]:
    """Group all rows of an epoch into batches of at most so many tokens, in random order.

    Rows of like length share a batch, so that attention works on few shapes. Raises ValueError if
    a row is longer than a batch may be.
    """
    if max(lengths) > batch_tokens:
        raise ValueError(f"a row has {max(lengths)} tokens, a batch {batch_tokens}: give it more")
    order = torch.randperm(len(lengths), generator=generator).tolist()
    batches: list[list[int]] = []
    for first in range(0, len(order), WINDOW):
        size = batch_tokens + 1
        for index in sorted(order[first : first + WINDOW], key=lengths.__getitem__):
            if size + lengths[index] > batch_tokens:
                batches.append([])
                size = 0
            batches[-1].append(index)
            size += lengths[index]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
