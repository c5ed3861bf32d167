"""What happened in each round of a generation, as objects and as a tidy table."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, slots=True)
class RowRound:
    """One round of one row: how much was drafted and accepted, and the tokens that were emitted.

    `kind` says where the round's last token came from: "bonus" if every draft was accepted (always
    so in plain autoregressive decoding, which drafts none), "recovered" after a rejection.
    `confidence` is the target's probability of the last emitted token under the plain softmax of
    its logits. Where a text ends within a draft, the emitted tokens end there, before the round's
    last one; `accepted` still counts the drafts behind the end, which the verifier kept.
    """

    row: int
    drafted: int
    accepted: int
    tokens: tuple[int, ...]
    kind: str
    gate_open: bool
    confidence: float


@dataclass(frozen=True, slots=True)
class Round:
    """One target pass over the rows that were still unfinished."""

    index: int
    rows: tuple[RowRound, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """All rounds of a generation, in order."""

    rounds: tuple[Round, ...]

    @property
    def drafted(self) -> int:
        """Drafted tokens over all rows and rounds."""
        return sum(row.drafted for each in self.rounds for row in each.rows)

    @property
    def accepted(self) -> int:
        """Accepted tokens over all rows and rounds."""
        return sum(row.accepted for each in self.rounds for row in each.rows)

    @property
    def emitted(self) -> int:
        """Emitted tokens over all rows and rounds."""
        return sum(len(row.tokens) for each in self.rounds for row in each.rows)

    @property
    def row_passes(self) -> int:
        """How often the target looked at a row."""
        return sum(len(each.rows) for each in self.rounds)

    def table(self) -> "DataFrame":
        """Give one line per row and round."""
        from pandas import DataFrame

        lines = [
            {
                "row": row.row,
                "round": each.index,
                "drafted": row.drafted,
                "accepted": row.accepted,
                "emitted": len(row.tokens),
                "kind": row.kind,
                "gate_open": row.gate_open,
                "confidence": row.confidence,
            }
            for each in self.rounds
            for row in each.rows
        ]
        columns = ("row", "round", "drafted", "accepted", "emitted")
        return DataFrame(lines, columns=[*columns, "kind", "gate_open", "confidence"])
