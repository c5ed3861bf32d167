"""Text in pieces: nothing lost, nothing twice, each character with the token that completes it."""

import random
import re

import pytest

import foredraft as fd
from foredraft.decoding.streaming import (
    COLOURS,
    MARKS,
    UNFINISHED,
    Look,
    Piece,
    TokenStream,
    summary,
)
from foredraft.decoding.trace import Round, RowRound, Trace

BYTES = [bytes([value]) for value in range(256)]
TEXT = "né 中 😀\tx\r\n\N{REPLACEMENT CHARACTER}½"


def round_of(*tokens: int, accepted: int = 0, kind: str = "recovered") -> RowRound:
    return RowRound(0, max(accepted, 1), accepted, tokens, kind, True, 0.5)


def streamed(vocabulary: list[bytes], *rounds: RowRound) -> list[Piece]:
    """Give all pieces of a stream whose tokens are these bytes."""
    stream = TokenStream(lambda tokens: decoded(vocabulary, tokens))
    return [piece for row in rounds for piece in stream.feed(row)] + stream.finish()


def decoded(vocabulary: list[bytes], tokens: list[int]) -> str:
    return b"".join(vocabulary[token] for token in tokens).decode(errors="replace")


def joined(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_each_token_has_its_kind():
    pieces = streamed([b"a", b"b", b"c"], round_of(0, 1, 2, accepted=2), round_of(0, kind="bonus"))
    kinds = [(piece.text, piece.kind) for piece in pieces]
    assert kinds == [("a", "accepted"), ("b", "accepted"), ("c", "recovered"), ("a", "bonus")]


def test_a_round_cut_within_its_drafts_has_accepted_tokens_only():
    assert streamed([b"a"], round_of(0, accepted=3)) == [Piece("a", "accepted")]


def test_a_character_belongs_to_the_token_that_completes_it():
    vocabulary = [b"x\xe4", b"\xb8", b"\xad!"]
    pieces = streamed(vocabulary, round_of(0, 1, accepted=1), round_of(2, kind="bonus"))
    assert pieces == [Piece("x", "accepted"), Piece("中!", "bonus")]


def test_nothing_is_lost_or_doubled_wherever_tokens_cut_a_text():
    whole = TEXT.encode()
    for n_bytes in range(1, 6):
        parts = [whole[start : start + n_bytes] for start in range(0, len(whole), n_bytes)]
        rounds = [round_of(token) for token in range(len(parts))]
        assert joined(streamed(parts, *rounds)) == TEXT


@pytest.mark.parametrize("seed", range(200))
def test_bytes_that_are_no_text_lose_nothing_either(seed):
    chance = random.Random(seed)
    tokens = [chance.choice([*range(0x40, 0x48), *range(0x80, 0x100)]) for _ in range(12)]
    pieces = streamed(BYTES, *(round_of(token) for token in tokens))
    assert joined(pieces) == decoded(BYTES, tokens)


def test_a_text_that_ends_within_a_character_ends_with_a_replacement():
    assert streamed([b"a", b"\xf0\x9f"], round_of(0, 1, accepted=1)) == [
        Piece("a", "accepted"),
        Piece(UNFINISHED, "recovered"),
    ]


def test_a_space_that_only_begins_a_text_is_kept_after_a_prompt():
    def decode(tokens: list[int]) -> str:
        return "".join([" one", " two"][token] for token in tokens).removeprefix(" ")

    assert TokenStream(decode, [0]).feed(round_of(1)) == [Piece(" two", "recovered")]
    assert TokenStream(decode).feed(round_of(1)) == [Piece("two", "recovered")]


def test_a_stream_without_tokens_has_no_text():
    assert TokenStream(lambda tokens: "a prompt").finish() == []


@pytest.mark.parametrize("kind", COLOURS)
def test_what_dresses_a_text_can_be_taken_off_again(kind):
    piece = Piece(TEXT, kind)
    assert Look().dress(piece) == TEXT
    assert Look(marks=True).dress(piece) == MARKS[kind] + TEXT
    both = Look(colours=True, marks=True).dress(piece)
    assert re.sub(r"^\x1b\[3\dm|\x1b\[0m$", "", both) == MARKS[kind] + TEXT


@pytest.mark.parametrize("look", [Look(colours=True), Look(marks=True)])
def test_no_two_kinds_look_alike(look):
    assert len({look.dress(Piece("x", kind)) for kind in COLOURS}) == len(COLOURS)


def test_the_legend_explains_what_is_used_and_nothing_else():
    assert Look().legend() == ""
    assert Look(marks=True).legend() == "accepted · ‹r›recovered · ‹b›bonus"
    assert Look(colours=True).legend() == "accepted (green) · recovered (yellow) · bonus (blue)"
    assert "‹b›bonus (blue)" in Look(colours=True, marks=True).legend()


def test_the_figures_are_those_of_the_trace():
    prefill = RowRound(0, 0, 0, (1,), "bonus", False, 0.5)
    drafted = RowRound(0, 4, 1, (1, 2), "recovered", True, 0.5)
    trace = Trace((Round(0, (prefill,)), Round(1, (drafted,))))
    made = fd.Generation([[1, 1, 2]], trace)
    assert summary(made) == (
        "3 tokens · 2 rounds · 4 drafted · 1 accepted · acceptance rate 0.25 · "
        "1.50 tokens a target pass"
    )


def test_without_drafts_or_rounds_a_rate_is_a_dash():
    told = summary(fd.Generation([[]], Trace(())))
    assert "acceptance rate – · – tokens a target pass" in told
