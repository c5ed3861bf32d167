"""The WordPiece tokenizer: the same from the same text, and as transformers loads it."""

import pytest
from transformers import AutoTokenizer

from foredraft.training.bert.wordpiece import (
    MASK,
    RARE,
    SPECIAL,
    continues,
    read_wordpiece,
    train_wordpiece,
    wrapped,
)

TEXTS = [f"Compute the {a} of a {b}-graph.\n-----\n>>> f({a!r})" for a in "abcd" for b in "wxyz"]
TEXTS = [*TEXTS * 5, "Rare: ¿"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(TEXTS, vocab_size=90)


def test_equal_text_makes_an_equal_tokenizer_in_every_process(tokenizer):
    """The trainer numbers pieces in the order of a hash; four times the same is no luck."""
    others = [train_wordpiece(iter(TEXTS), vocab_size=90).to_str() for _ in range(4)]
    assert set(others) == {tokenizer.to_str()}


def test_text_is_in_lower_case_without_rulers_and_reads_back(tokenizer):
    ids = tokenizer.encode("Compute THE graph\n=====\nof a", add_special_tokens=False).ids
    assert tokenizer.decode(ids) == "compute the graph of a"


def test_a_rare_character_is_unknown(tokenizer):
    assert TEXTS.count("Rare: ¿") < RARE
    assert tokenizer.encode("a ¿ b", add_special_tokens=False).tokens == ["a", "[UNK]", "b"]


def test_special_tokens_come_first_and_their_names_are_no_text_of_ours(tokenizer):
    assert [tokenizer.token_to_id(token) for token in SPECIAL] == list(range(len(SPECIAL)))
    assert tokenizer.get_vocab_size() <= 90
    assert tokenizer.encode("##a", add_special_tokens=False).tokens[0] != "##a"


def test_pieces_that_continue_a_word_are_known_by_their_id(tokenizer):
    told, vocabulary = continues(tokenizer), tokenizer.get_vocab()
    assert {piece for piece, index in vocabulary.items() if told[index]} == {
        piece for piece in vocabulary if piece.startswith("##")
    }
    assert told.any()


def test_transformers_loads_it_and_reads_pairs_alike(tokenizer, tmp_path):
    wrapped(tokenizer, max_length=32).save_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    pair = ("the graph", f"of {MASK}")
    read, ours = theirs(*pair), tokenizer.encode(*pair)
    assert read["input_ids"] == ours.ids
    assert read["token_type_ids"] == ours.type_ids
    assert ours.tokens == ["[CLS]", "the", "graph", "[SEP]", "of", "[MASK]", "[SEP]"]
    assert theirs.model_max_length == 32
    assert theirs.mask_token_id == tokenizer.token_to_id(MASK)
    assert read_wordpiece(tmp_path).get_vocab() == tokenizer.get_vocab()
