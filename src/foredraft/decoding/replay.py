"""Record once what a drafter would say at every place of written texts; replay any policy exactly.

The texts are the target's own. After each of their tokens one draft is recorded, coupled to the
text: as long as it is the text, its next token is the text's token t with chance
min(1, q(t) ÷ p(t)), and otherwise one with the law norm(max(0, q − p)). Over texts that p has
written such a token has the law q, is t with probability Σ min(p, q), and where it is another, t
has the law norm(max(0, p − q)): all of it as when a draft of q comes first and p verifies it.

    text        t0   t1   t2   t3   t4   t5  …
    after t0    │    t1   t2   x    ·        two would be accepted; t3 is what replaces x
    after t1         │    t2   t3   t4  ·    all would be, t5 is the bonus token
    after t2              │    x    ·   ·    none would be

A round that starts behind a token takes of the draft there as much as gate and exit want. Accepted
is what it has in common with the text, the text's next token follows, and behind it the next round
starts, whose draft has coins of its own. So texts, drafts and decisions have exactly the law that
`generate` gives them under token verification, whatever gate and exit look at and learn, and one
recording serves all policies: they are compared on the same texts and the same drafts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch

from foredraft.decoding.exit import Exit, ExitPolicy
from foredraft.decoding.gate import AlwaysDraft, Gate, GatePolicy
from foredraft.decoding.signal import SIGNALS, Blend, Signal, confidence
from foredraft.decoding.trace import Round, RowRound, Trace
from foredraft.types import Float, Int, Tensor


@final
@dataclass(frozen=True, slots=True)
class Script:
    """Texts, a draft behind each of their tokens, and what gates and exits may look at; on the CPU.

    `tokens[text]` are the new ones. `target[name][text, s]` is a signal of the target's law of new
    token s. Of the draft that follows new token `place`, `lengths` tokens of `drafts` count, the
    first `accepted` of these are the text's, and `signals[name]` are those of its own laws: empty
    for a drafter that never asks an exit (prompt lookup). The last two tokens of a text have no
    draft behind them: a draft is at most one less than what is left to emit. Where a text is
    shorter than the longest, its further places mean nothing.
    """

    tokens: tuple[tuple[int, ...], ...]
    target: Mapping[str, Float[Tensor, "text new"]]
    drafts: Int[Tensor, "text place drafted"]
    lengths: Int[Tensor, "text place"]
    accepted: Int[Tensor, "text place"]
    signals: Mapping[str, Float[Tensor, "text place drafted"]]

    @property
    def max_length(self) -> int:
        """The longest draft that can be replayed."""
        return self.drafts.shape[2]


def replay(script: Script, gate: GatePolicy | None, exit_policy: ExitPolicy) -> Trace:
    """Give the trace of decoding the recorded texts under these policies, with no model asked.

    It is a draw from the law of `generate`'s trace, and for greedy texts and drafts that very one;
    `gate` None drafts always. The policies are begun anew and taken through all rounds, so that
    they see, learn and forget as they do there.

    Raises ValueError for an exit that drafts further than was recorded, and for a policy that
    watches a signal which was not.
    """
    n_texts = len(script.tokens)
    stop, opener = exit_policy.begin(n_texts), (gate or AlwaysDraft()).begin(n_texts)
    if stop.max_length > script.max_length:
        raise ValueError(
            f"the exit drafts up to {stop.max_length} tokens, but {script.max_length} were "
            "recorded: record longer drafts, or stop earlier"
        )
    rows = _Rows(script, opener, stop)
    rounds = []
    while rows.rows:
        rounds.append(rows.round(len(rounds)))
        rows.drop_finished()
    return Trace(tuple(rounds))


@final
class _Rows:
    """The unfinished texts of a replay; what `generate` does, with the drafts already made."""

    def __init__(self, script: Script, gate: Gate, stop: Exit) -> None:
        self.script, self.gate, self.stop = script, gate, stop
        self.lengths, self.accepted = script.lengths.tolist(), script.accepted.tolist()
        self.confidence = script.target["confidence"].tolist()
        self.shown = _recalled(gate.watches or confidence, script.target)
        watches = stop.watches if script.signals else None
        self.watched = None if watches is None else _recalled(watches, script.signals)
        self.rows = list(range(len(script.tokens)))
        self.emitted = [0] * len(script.tokens)

    def round(self, index: int) -> Round:
        """Gate, draft, compare with the text, go on behind what stands."""
        opens, limits = self._limits(index)
        drafted = self._drafted(limits)
        outcome = []
        for row, is_open, n_drafted in zip(self.rows, opens, drafted, strict=True):
            start = self.emitted[row]
            n_accepted = min(self.accepted[row][start - 1], n_drafted) if n_drafted else 0
            self.emitted[row] = start + n_accepted + 1
            kind = "bonus" if n_accepted == n_drafted else "recovered"
            new = self.script.tokens[row][start : self.emitted[row]]
            sure = self.confidence[row][self.emitted[row] - 1]
            outcome.append(RowRound(row, n_drafted, n_accepted, new, kind, is_open, sure))
        self.stop.learn(drafted, [row.accepted for row in outcome])
        return Round(index, tuple(outcome))

    def drop_finished(self) -> None:
        """Keep the texts that go on."""
        going = [
            position
            for position, row in enumerate(self.rows)
            if self.emitted[row] < len(self.script.tokens[row])
        ]
        if going and len(going) < len(self.rows):
            self.stop.keep_rows(going)
            self.gate.keep_rows(going)
        self.rows = [self.rows[position] for position in going]

    def _limits(self, index: int) -> tuple[list[bool], list[int]]:
        """Say which rows draft, and how much at most: one less than they may still emit."""
        if index == 0:  # the prefill comes before any gate
            return [False] * len(self.rows), [0] * len(self.rows)
        opens = self.gate.opens(self._shown())
        left = [len(self.script.tokens[row]) - self.emitted[row] - 1 for row in self.rows]
        most = self.stop.max_length
        return opens, [
            min(most, n) if is_open else 0 for is_open, n in zip(opens, left, strict=True)
        ]

    def _shown(self) -> list[float]:
        """Give what the gate sees of each row's last emitted token."""
        return self.shown[self.rows, [self.emitted[row] - 1 for row in self.rows]].tolist()

    def _drafted(self, limits: list[int]) -> list[int]:
        """Say how long each draft is, where the exit has its say."""
        if max(limits) == 0:
            return limits
        n_places = self.script.lengths.shape[1]
        places = [min(self.emitted[row] - 1, n_places - 1) for row in self.rows]
        made = [self.lengths[row][place] for row, place in zip(self.rows, places, strict=True)]
        limits = [min(pair) for pair in zip(limits, made, strict=True)]
        if self.watched is None:
            return limits
        seen, most = self.watched[self.rows, places], torch.tensor(limits)
        lengths, going = torch.zeros_like(most), most > 0
        for position in range(max(limits)):
            lengths = lengths + going
            going = going & self.stop.goes_on(seen[:, position]) & (lengths < most)
            if position + 1 < max(limits) and not bool(going.any()):
                break
        return lengths.tolist()


def _recalled(signal: Signal, recorded: Mapping[str, Tensor]) -> Tensor:
    """Find what a policy watches among what was recorded."""
    for name, known in SIGNALS.items():
        if signal is known:
            return recorded[name]
    if isinstance(signal, Blend) and all(
        signal.signals[name] is SIGNALS.get(name) for name in signal.weights
    ):
        return signal.of(recorded)
    raise ValueError(
        f"a policy watches {signal}, which was not recorded: it may watch {', '.join(recorded)}, "
        "or a blend of these"
    )
