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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch

from foredraft.decoding.draft import Draft, Drafter, Drawing, Job
from foredraft.decoding.exit import Exit, ExitPolicy
from foredraft.decoding.gate import AlwaysDraft, Gate, GatePolicy
from foredraft.decoding.reader import Reader
from foredraft.decoding.signal import SIGNALS, Blend, Signal, confidence
from foredraft.decoding.text import PADDING, Text
from foredraft.decoding.trace import Round, RowRound, Trace
from foredraft.decoding.verify import accepts
from foredraft.models.cache import sent
from foredraft.models.decoder import Decoder
from foredraft.sampling import Number, Sampler
from foredraft.types import Bool, Float, Int, Probs, Tensor


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


def record(  # noqa: PLR0913 - as `generate`
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    sampler: Sampler,
    drafter: Drafter,
    max_length: int,
    generator: torch.Generator,
    at_once: int = 32,
) -> Script:
    """Let `drafter` draft `max_length` tokens at every place of what the target has written.

    The continuations of the prompts are what it has drawn under this `sampler`, by any exact way of
    decoding, each as long as its budget was (`eos_token_id=[]`). `at_once` texts are held at a
    time, with their probabilities [text, new, vocab].

    Raises ValueError for no texts or an empty one, for a draft or a number at once below 1, for a
    repetition penalty, which would make the law of a token depend on the text, for more positions
    than the model has, and for a drafter that draws tokens by other means than `Job.drawing`.
    """
    _require(prompts, continuations, sampler, max_length, at_once)
    width = max(map(len, continuations))
    parts = []
    for first in range(0, len(prompts), at_once):
        rows = slice(first, first + at_once)
        with torch.inference_mode():
            part = _Recording(model, prompts[rows], continuations[rows], width, sampler)
            parts.append(part.script(drafter, max_length, generator))
    return _joined(parts)


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


def coupled(
    q: Float[Tensor, "batch vocab"], p: Float[Tensor, "batch vocab"], said: Int[Tensor, " batch"]
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch vocab"]]:
    """Give the chance that a draft of law `q` is what `p` has `said`, and the weights of others.

    What was said has weight 0; where nothing but that can be drafted, all weights are 0.
    """
    said = said[:, None]
    drafted, written = q.gather(-1, said), p.gather(-1, said)
    # in half precision this reading may deny what the decoding said: then p counts as 1
    chance = torch.where(written > 0, drafted / written, drafted).clamp(max=1).squeeze(-1)
    others = q.scatter(-1, said, 0.0)
    left = (others - p).clamp(min=0)
    # by rounding alone, or by such a denial, what p leaves of q may be nothing
    weights = torch.where(left.sum(-1, keepdim=True) > 0, left, others)
    return torch.where(weights.sum(-1) > 0, chance, 1.0), weights


@final
class _Lines:
    """What drafts are to say: the text, as far as p and q let them, and then what they like."""

    def __init__(
        self,
        tokens: Int[Tensor, "text new"],
        counts: Sequence[int],
        p: Float[Tensor, "text new vocab"],
    ) -> None:
        """Take over the new tokens, how many count in each text, and the target's law of each."""
        self.tokens, self.p = tokens, p
        self.counts = sent(counts, tokens.device)
        self.turn(0)

    def turn(self, place: int) -> None:
        """Go to the drafts that start with new token `place`."""
        self.place, self.n_drawn = place, 0
        self.standing = torch.ones_like(self.counts, dtype=torch.bool)

    def drawing(self, sampler: Sampler) -> Drawing:
        """Let a drafter that would draw with this sampler keep to the lines."""
        return _Scripted(sampler, self)

    def draw(self, q: Probs, *, generator: torch.Generator) -> Int[Tensor, " batch"]:
        """Draw each draft's next token; behind the end of a text, from q."""
        place = min(self.place, self.tokens.shape[1] - 1)
        standing = self.standing & (self.counts > self.place)
        said = self.tokens[:, place]
        chances, weights = coupled(q, self.p[:, place], said)
        coins = torch.rand(len(q), 1, dtype=torch.float64, device=q.device, generator=generator)
        self.standing = standing & accepts(coins, chances[:, None]).squeeze(1)
        weights = torch.where((standing & ~self.standing)[:, None], weights, q)
        other = Sampler().draw(weights, generator=generator)
        self.place, self.n_drawn = self.place + 1, self.n_drawn + 1
        return torch.where(self.standing, said, other)


@final
@dataclass(frozen=True, slots=True)
class _Scripted:
    """A drafter's own law, whose draws keep to the lines."""

    sampler: Sampler
    lines: _Lines

    @property
    def repetition_penalty(self) -> Number:
        return self.sampler.repetition_penalty

    def probs(
        self, logits: Float[Tensor, "*batch vocab"], prefix: Int[Tensor, "... seq"] | None = None
    ) -> Probs:
        return self.sampler.probs(logits, prefix)

    def draw(self, probs: Probs, *, generator: torch.Generator) -> Int[Tensor, "*batch"]:
        return self.lines.draw(probs, generator=generator)


@final
class _Watch:
    """An exit that never stops, and keeps what others may look at."""

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.seen: list[dict[str, Float[Tensor, " batch"]]] = []

    def watches(
        self, logits: Float[Tensor, "batch vocab"], tokens: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        self.seen.append({name: signal(logits, tokens) for name, signal in SIGNALS.items()})
        return self.seen[-1]["confidence"]

    def goes_on(self, seen: Float[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        return torch.ones_like(seen, dtype=torch.bool)

    def learn(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """Learn nothing."""

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Hold nothing by row."""


@final
@dataclass(frozen=True, slots=True)
class _Place:
    """What was drafted behind one new token of each text."""

    drafts: Int[Tensor, "text drafted"]
    lengths: Int[Tensor, " text"]
    accepted: Int[Tensor, " text"]
    signals: Mapping[str, Float[Tensor, "text drafted"]]


@final
class _Recording:
    """Some texts, read by the target at once, then walked through token by token."""

    def __init__(
        self,
        model: Decoder,
        prompts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
        width: int,
        sampler: Sampler,
    ) -> None:
        self.model, self.prompts, self.sampler = model, prompts, sampler
        self.new = tuple(tuple(tokens) for tokens in continuations)
        rows = [[*tokens, *[PADDING] * (width - len(tokens))] for tokens in self.new]
        self.tokens = torch.tensor(rows, device=model.device)
        lengths = zip(prompts, self.new, strict=True)
        self.capacity = max(len(prompt) + len(new) for prompt, new in lengths)

    def script(self, drafter: Drafter, max_length: int, generator: torch.Generator) -> Script:
        """Read along the texts, then draft at each place in turn, as in a round that starts there.

        What the target holds when a draft begins is what the loop leaves it: the text, but for its
        last token.
        """
        batch, width = self.tokens.shape
        spare = max(max_length + 2, max(map(len, self.prompts)) + width - self.capacity)
        target = Reader(self.model, batch, self.capacity, spare)
        text = Text(self.prompts, self.capacity, self.model.device)
        lines, seen = self._read(target, text)
        job = Job(target, self.sampler, batch, self.capacity, spare, lines.drawing)
        proposer = drafter.begin(job)
        places = []
        for place in range(max(1, width - 2)):
            target.forget(text)
            self._extend(text, place)
            target.catch_up(text)
            proposer.settle(text)
            lines.turn(place + 1)
            watch = _Watch(max_length)
            draft = proposer.propose(text, [max_length] * batch, watch, generator=generator)
            _require_scripted(draft, lines)
            places.append(self._place(place, draft, watch))
        return _script(self.new, seen, places)

    def _read(self, target: Reader, text: Text) -> tuple[_Lines, dict[str, Tensor]]:
        """Take the target's law of each new token, and what gates see of it."""
        tokens = self.tokens.clamp(min=0)
        logits = target.read(text, tokens[:, :-1])
        seen = {name: signal(logits, tokens).cpu() for name, signal in SIGNALS.items()}
        lengths = [len(new) for new in self.new]
        return _Lines(tokens, lengths, self.sampler.probs(logits)), seen

    def _extend(self, text: Text, place: int) -> None:
        """Add a new token to the texts that have one there."""
        going = [int(place < len(new)) for new in self.new]
        text.append(self.tokens[:, place, None], sent(going, self.tokens.device))
        text.extend_lengths(going)

    def _place(self, place: int, draft: Draft, watch: _Watch) -> _Place:
        """Compare a draft with the text, and keep of it what is replayed."""
        width = watch.max_length
        drafts = _widened(draft.tokens, width, PADDING)
        said = self.tokens[:, place + 1 : place + 1 + width]
        same = drafts[:, : said.shape[1]] == said
        lengths = draft.lengths.clamp(0, draft.tokens.shape[1])
        within = torch.arange(said.shape[1], device=said.device) < lengths[:, None]
        accepted = (same & within).cumprod(1).sum(1)
        signals = {
            name: _widened(torch.stack([each[name] for each in watch.seen], 1), width, torch.nan)
            for name in (SIGNALS if watch.seen else ())
        }
        return _Place(drafts, lengths, accepted, signals)


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


def _widened(rows: Tensor, width: int, value: Number) -> Tensor:
    return torch.nn.functional.pad(rows, (0, width - rows.shape[1]), value=value)


def _script(
    tokens: tuple[tuple[int, ...], ...],
    target: Mapping[str, Float[Tensor, "text new"]],
    places: Sequence[_Place],
) -> Script:
    """Bring all places of some texts to the host."""
    drafts, lengths, accepted = (
        torch.stack(rows, 1).cpu()
        for rows in zip(
            *((each.drafts, each.lengths, each.accepted) for each in places), strict=True
        )
    )
    signals = {
        name: torch.stack([each.signals[name] for each in places], 1).cpu()
        for name in places[0].signals
    }
    return Script(tokens, target, drafts, lengths, accepted, signals)


def _joined(parts: Sequence[Script]) -> Script:
    """Put the texts of several recordings, of one width, one after another."""
    drafts, lengths, accepted = (
        torch.cat(rows)
        for rows in zip(
            *((part.drafts, part.lengths, part.accepted) for part in parts), strict=True
        )
    )
    target, signals = (
        {name: torch.cat([each[name] for each in all_parts]) for name in all_parts[0]}
        for all_parts in ([part.target for part in parts], [part.signals for part in parts])
    )
    tokens = tuple(new for part in parts for new in part.tokens)
    return Script(tokens, target, drafts, lengths, accepted, signals)


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


def _require(
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    sampler: Sampler,
    max_length: int,
    at_once: int,
) -> None:
    if not prompts or len(prompts) != len(continuations) or not all(continuations):
        lengths = [len(new) for new in continuations]
        raise ValueError(
            f"{len(prompts)} prompts with continuations of {lengths} tokens: give one or more, "
            "and to each what the target made of it, 1 token or more"
        )
    if min(max_length, at_once) < 1:
        raise ValueError(
            f"max_length={max_length}, at_once={at_once}: record drafts of 1 token or more, for 1 "
            "text or more at a time"
        )
    if sampler.repetition_penalty != 1:
        raise ValueError(
            f"repetition_penalty is {sampler.repetition_penalty}: the law of a token would depend "
            "on the text before it; record with 1"
        )


def _require_scripted(draft: Draft, lines: _Lines) -> None:
    """Refuse a draft drawn past the script; one that nobody drew is the same either way."""
    if lines.n_drawn == draft.tokens.shape[1]:
        return
    within = (
        torch.arange(draft.tokens.shape[1], device=draft.lengths.device) < draft.lengths[:, None]
    )
    if bool((within & (draft.probs.amax(-1) < 1)).any()):
        raise ValueError(
            f"the drafter drew {draft.tokens.shape[1]} tokens, {lines.n_drawn} of them by the "
            "script: let it draw with what job.drawing gives for its sampler"
        )
