"""Text that grows round by round, in pieces that know whether they were drafted.

Byte-level tokens may end within a character. A piece is what one token makes readable, so a
character belongs to the token that completes it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from rich.color import ColorSystem
from rich.style import Style

from foredraft.decoding.loop import Generation
from foredraft.decoding.trace import RowRound

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a character decodes to whose last bytes are still to come."""

COLOURS = {"accepted": "green", "recovered": "yellow", "bonus": "blue"}
MARKS = {"accepted": "", "recovered": "‹r›", "bonus": "‹b›"}


@final
@dataclass(frozen=True, slots=True)
class Piece:
    """Text that a token made readable; `kind` is "accepted", "recovered" or "bonus"."""

    text: str
    kind: str


@final
class TokenStream:
    """The text of one row while its tokens arrive; its pieces joined are the whole text.

    `decode` turns all tokens into text. It is given the prompt too, because some tokenizers treat
    the beginning of a text in a way of their own.
    """

    def __init__(self, decode: Callable[[list[int]], str], prompt: Sequence[int] = ()) -> None:
        self._decode, self._tokens, self._kind = decode, list(prompt), "bonus"
        self._shown = len(decode(self._tokens))

    def feed(self, row: RowRound) -> list[Piece]:
        """Take the tokens of a round; give a piece for each that completes a character."""
        pieces = []
        for place, token in enumerate(row.tokens):
            self._tokens.append(token)
            self._kind = "accepted" if place < row.accepted else row.kind
            pieces += self._new(self._decode(self._tokens).rstrip(UNFINISHED))
        return pieces

    def finish(self) -> list[Piece]:
        """Give what is left: bytes that no token has completed, as replacement characters."""
        return self._new(self._decode(self._tokens))

    def _new(self, text: str) -> list[Piece]:
        fresh = text[self._shown :]
        self._shown += len(fresh)
        return [Piece(fresh, self._kind)] if fresh else []


@final
@dataclass(frozen=True, slots=True)
class Look:
    """How kinds of tokens are told apart: by colour, by a mark before the text, or not at all."""

    colours: bool = False
    marks: bool = False

    def dress(self, piece: Piece) -> str:
        """Give the text as it is to be written, its colour as ANSI codes."""
        text = (MARKS[piece.kind] if self.marks else "") + piece.text
        system = ColorSystem.STANDARD if self.colours else None
        return Style(color=COLOURS[piece.kind]).render(text, color_system=system)

    def legend(self) -> str:
        """Explain the look in one line; empty if there is nothing to explain."""
        if not (self.colours or self.marks):
            return ""
        return " · ".join(
            (MARKS[kind] if self.marks else "") + kind + (f" ({colour})" if self.colours else "")
            for kind, colour in COLOURS.items()
        )


def summary(made: Generation) -> str:
    """Say in one line how the tokens came; a ratio of nothing to nothing is a dash."""
    trace = made.trace
    return (
        f"{trace.emitted} tokens · {len(trace.rounds)} rounds · {trace.drafted} drafted · "
        f"{trace.accepted} accepted · acceptance rate {_ratio(made.acceptance_rate)} · "
        f"{_ratio(made.tokens_per_target_pass)} tokens a target pass"
    )


def _ratio(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
