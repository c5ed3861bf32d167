"""Record what a drafter would have drafted at every position of a text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch

from foredraft.decoding.draft import Draft, Drafter, Drawing, Job
from foredraft.decoding.reader import Reader
from foredraft.decoding.replay import Script
from foredraft.decoding.signal import SIGNALS
from foredraft.decoding.text import PADDING, Text
from foredraft.decoding.verify import accepts
from foredraft.models.cache import sent
from foredraft.models.decoder import Decoder
from foredraft.sampling import Number, Sampler
from foredraft.types import Bool, Float, Int, Probs, Tensor


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
