"""Masking: how much is chosen and what becomes of it, whole words, pairs, dynamic rows.

A statistic may stray five standard deviations from its law: chance does so once in 1.7 million.
"""

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from foredraft.training.bert.mlm import (
    FOLLOWS,
    IGNORED,
    STRANGER,
    Masking,
    Passage,
    Rows,
    Vocabulary,
    batched,
    collate,
    mask,
    pair,
    passages,
    with_marks,
)
from foredraft.training.bert.wordpiece import SPECIAL

N_WORDS, N_PIECES = 700, 300
WORDS = [*SPECIAL, *(f"w{i}" for i in range(N_WORDS)), *(f"##{i}" for i in range(N_PIECES))]
TOKENIZER = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
TOKENIZER.pre_tokenizer = pre_tokenizers.Whitespace()
VOCABULARY = Vocabulary.of(TOKENIZER)
RULES = [Masking(), Masking(whole_words=True), Masking(0.4, 0.5, 0.25)]
every_rule = pytest.mark.parametrize("masking", RULES, ids=["plain", "whole words", "other"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def ids():
    """A hundred thousand tokens; at every fifteenth place on average a special one."""
    drawn = torch.randint(len(SPECIAL), len(WORDS), (100_000,), generator=generator(1))
    special = torch.randint(len(SPECIAL), drawn.shape, generator=generator(2))
    return torch.where(torch.rand(len(drawn), generator=generator(3)) < 1 / 15, special, drawn)


def deviations(count, n, rate, clustering=1.0):
    """How many standard deviations of a binomial law a count is away from its mean."""
    return abs(count - n * rate) / math.sqrt(clustering * n * rate * (1 - rate))


@every_rule
def test_the_share_chosen_is_the_rate(ids, masking):
    masked = mask(ids, VOCABULARY, masking, generator=generator())
    chosen, n = int((masked.labels != IGNORED).sum()), int((~VOCABULARY.special[ids]).sum())
    sizes = [len(word) for word in words(ids)] if masking.whole_words else [1]
    clustering = sum(size**2 for size in sizes) / sum(sizes)
    assert deviations(chosen, n, masking.rate, clustering) < 5


@every_rule
def test_the_chosen_are_masked_replaced_or_left_in_the_shares_of_the_rule(ids, masking):
    masked = mask(ids, VOCABULARY, masking, generator=generator())
    read, true = masked.ids[masked.labels != IGNORED], ids[masked.labels != IGNORED]
    by_luck = masking.replaced / len(VOCABULARY.ordinary)
    stays = 1 - masking.masked - masking.replaced + by_luck
    assert deviations(int((read == VOCABULARY.mask).sum()), len(read), masking.masked) < 5
    assert deviations(int((read == true).sum()), len(read), stays) < 5


def test_every_ordinary_token_replaces_another_and_no_special_one_does(ids):
    masked = mask(ids, VOCABULARY, Masking(1.0, 0.0, 1.0), generator=generator())
    replaced = masked.ids[masked.labels != IGNORED]
    counts = torch.bincount(replaced, minlength=len(WORDS))
    expected = len(replaced) / len(VOCABULARY.ordinary)
    assert counts[: len(SPECIAL)].sum() == 0
    # 1,000 counts of a Poisson law: none strays by six deviations but once in 500,000 runs
    assert (counts[len(SPECIAL) :] - expected).abs().max() < 6 * math.sqrt(expected)


@every_rule
def test_special_tokens_are_never_chosen_and_what_is_not_chosen_is_as_it_was(ids, masking):
    before = ids.clone()
    masked = mask(ids, VOCABULARY, masking, generator=generator())
    chosen = masked.labels != IGNORED
    assert not VOCABULARY.special[ids][chosen].any()
    assert torch.equal(masked.labels[chosen], ids[chosen])
    assert torch.equal(masked.ids[~chosen], ids[~chosen])
    assert torch.equal(ids, before)


def words(ids):
    """Split places into words: runs that a special token or the start of a word ends."""
    special, continues = VOCABULARY.special[ids].tolist(), VOCABULARY.continues[ids].tolist()
    found, within = [], False
    for place in range(len(ids)):
        if special[place]:
            within = False
        elif within and continues[place]:
            found[-1].append(place)
        else:
            found.append([place])
            within = True
    return found


def test_all_pieces_of_a_word_are_chosen_or_none_and_alone_they_are_not():
    text = torch.randint(len(SPECIAL), len(WORDS), (20_000,), generator=generator(4))
    text[0] = len(SPECIAL)
    shares = {}
    for whole in (True, False):
        masked = mask(text, VOCABULARY, Masking(whole_words=whole), generator=generator())
        chosen = (masked.labels != IGNORED).tolist()
        parts = [{chosen[place] for place in word} for word in words(text)]
        shares[whole] = sum(len(part) == 2 for part in parts) / len(parts)
    assert shares[True] == 0
    assert shares[False] > 0.05


@pytest.mark.parametrize(
    ("rule", "told"),
    [((0.0,), "rate=0.0"), ((1.2,), "rate=1.2"), ((0.1, 0.8, 0.3), "masked=0.8")],
)
def test_a_rule_that_cannot_be_is_refused(rule, told):
    with pytest.raises(ValueError, match=told):
        Masking(*rule)


@pytest.fixture(scope="module")
def told():
    """Passages of forty documents, of one to nine sentences of one to nine tokens."""
    draw, found = generator(5), []
    for document in range(40):
        for _ in range(3):
            sizes = torch.randint(1, 10, (int(torch.randint(1, 10, (), generator=draw)),))
            first = len(SPECIAL) + 17 * document
            sentences = tuple(tuple(range(first, first + int(size))) for size in sizes)
            found.append(Passage(document, sentences))
    return found


def flat(sentences):
    return tuple(token for sentence in sentences for token in sentence)


def test_half_of_the_pairs_follow_and_a_lone_sentence_is_no_pair(told):
    draw = generator()
    labels = Counter(pair(told, i, generator=draw).label for _ in range(25) for i in range(120))
    alone = sum(len(passage.sentences) == 1 for passage in told)
    assert labels[IGNORED] == 25 * alone
    asked = labels[FOLLOWS] + labels[STRANGER]
    assert deviations(labels[FOLLOWS], asked, 0.5) < 5


def test_what_follows_is_the_rest_of_the_passage_and_a_stranger_another_document_s(told):
    draw = generator()
    for _ in range(4):
        for index, passage in enumerate(told):
            drawn = pair(told, index, generator=draw)
            whole, cut = flat(passage.sentences), len(drawn.first)
            assert drawn.first == whole[:cut]
            assert len(drawn.second) <= len(whole) - cut
            if drawn.label == FOLLOWS:
                assert drawn.second == whole[cut:]
            if drawn.label == STRANGER:
                assert drawn.second
                assert {(token - len(SPECIAL)) // 17 for token in drawn.second} != {
                    passage.document
                }


def test_a_stranger_needs_a_second_document():
    alone = [Passage(0, ((5,), (6,)))]
    draw = generator()
    with pytest.raises(ValueError, match="two documents"):  # but once in 2⁶⁴ runs
        assert not [pair(alone, 0, generator=draw) for _ in range(64)]


def test_a_row_is_decided_by_seed_epoch_and_index_alone_and_differs_by_each(told):
    long = next(i for i, passage in enumerate(told) if passage.n_tokens > 30)
    rows = Rows(told, VOCABULARY, Masking(), seed=3)
    first = rows(2, long).masked
    for index in range(long):
        rows(2, index)
    assert torch.equal(rows(2, long).masked.ids, first.ids)
    assert torch.equal(rows(2, long).masked.labels, first.labels)
    others = [rows(epoch, long) for epoch in range(3, 13)]
    others += [Rows(told, VOCABULARY, Masking(), seed=seed)(2, long) for seed in range(4, 14)]
    differing = [other.masked.labels.tolist() != first.labels.tolist() for other in others]
    assert all(differing)


def test_passages_hold_all_tokens_in_order_within_their_length():
    sentence = "w1 w2 w3 w4 w5"
    documents = [[sentence] * n for n in (1, 2, 7)] + [["w9 " * 40, "w8"], [""]]
    told = passages(documents, TOKENIZER, length=16)
    for number, sentences in enumerate(documents):
        ids = TOKENIZER.encode(" ".join(sentences)).ids
        assert flat(s for p in told if p.document == number for s in p.sentences) == tuple(ids)
    assert max(passage.n_tokens for passage in told) == 16
    # no passage could have taken the next sentence of its document too
    for one, other in pairwise(told):
        if one.document == other.document:
            assert one.n_tokens + len(other.sentences[0]) > 16


def test_a_length_without_room_is_refused():
    with pytest.raises(ValueError, match="length=3"):
        passages([["w1"]], TOKENIZER, length=3)


def test_a_pair_is_laid_out_as_bert_reads_it():
    cls, sep = VOCABULARY.cls, VOCABULARY.sep
    ids, segments = with_marks([7, 8], [9], VOCABULARY)
    assert ids.tolist() == [cls, 7, 8, sep, 9, sep]
    assert segments.tolist() == [0, 0, 0, 0, 1, 1]
    ids, segments = with_marks([7, 8], [], VOCABULARY)
    assert ids.tolist() == [cls, 7, 8, sep]
    assert segments.tolist() == [0] * 4


def test_padding_is_seen_by_nobody_and_asked_of_nobody(told):
    rows = Rows(told, VOCABULARY, Masking(), seed=0)
    drawn = [rows(0, index) for index in range(20)]
    batch = collate(drawn)
    for index, row in enumerate(drawn):
        n = len(row.masked.ids)
        assert batch.attention_mask[index, :n].all()
        assert not batch.attention_mask[index, n:].any()
        assert batch.ids[index, :n].tolist() == row.masked.ids.tolist()
        assert batch.labels[index, :n].tolist() == row.masked.labels.tolist()
        assert (batch.labels[index, n:] == IGNORED).all()
    assert int(batch.chosen.sum()) == sum(int((row.masked.labels >= 0).sum()) for row in drawn)
    assert batch.follows.tolist() == [row.label for row in drawn]


def test_an_epoch_takes_every_row_once_in_batches_of_like_length_within_their_tokens():
    lengths = torch.randint(4, 129, (5_000,), generator=generator(6)).tolist()
    batches = batched(lengths, 1024, generator=generator())
    assert sorted(index for batch in batches for index in batch) == list(range(5_000))
    sizes = [[lengths[index] for index in batch] for batch in batches]
    assert max(map(sum, sizes)) <= 1024
    assert sum(map(sum, sizes)) > 0.9 * 1024 * len(batches)
    padded = sum(max(batch) * len(batch) for batch in sizes)
    assert padded < 1.1 * sum(lengths)
    assert batches != batched(lengths, 1024, generator=generator(1))


def test_a_row_longer_than_a_batch_is_refused():
    with pytest.raises(ValueError, match="129 tokens"):
        batched([4, 129], 128, generator=generator())
