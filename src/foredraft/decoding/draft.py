"""Who proposes tokens: a smaller model, or the text itself (for the target, see `self_draft`).

A drafter is a reader's choice of how to draft; `begin` puts it to work on one batch, as a
`Proposer` that keeps what it knows (a cache, say) from round to round. Both are protocols: any
object with these methods can be passed to `generate`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch

from foredraft.decoding.exit import Exit
from foredraft.decoding.reader import Reader
from foredraft.decoding.text import PADDING, Text
from foredraft.models.cache import sent
from foredraft.models.decoder import Decoder
from foredraft.sampling import Sampler
from foredraft.types import Float, Int, Tensor


@final
@dataclass(frozen=True, slots=True)
class Draft:
    """Proposed tokens, and the very distribution that each was drawn from.

    Row r proposes the first `lengths[r]` of its tokens. A token that was not drawn at random has a
    one-hot distribution. Whatever else `probs` held, the output would not be the target's law.
    """

    tokens: Int[Tensor, "batch drafted"]
    probs: Float[Tensor, "batch drafted vocab"]
    lengths: Int[Tensor, " batch"]


@final
@dataclass(frozen=True, slots=True)
class Job:
    """What a proposer may build on: the target at its reading, its sampler, and sizes.

    Texts have at most `capacity` tokens; `spare` cache slots take padding and rejected drafts. What
    `drawing` gives for a drafter's sampler is what it draws with: the same, unless draws are to be
    recorded (`decoding.replay`).
    """

    target: Reader
    sampler: Sampler
    batch: int
    capacity: int
    spare: int
    drawing: Callable[[Sampler], "Drawing"] = lambda sampler: sampler


@runtime_checkable
class Drawing(Protocol):
    """What draws tokens: a `Sampler`, or what stands in for one."""

    @property
    def repetition_penalty(self) -> int | float:
        """Where it is not 1, a law depends on the text before it."""
        ...

    def probs(
        self, logits: Float[Tensor, "*batch vocab"], prefix: Int[Tensor, "... seq"] | None = None
    ) -> Float[Tensor, "*batch vocab"]:
        """Give the law of each row."""
        ...

    def draw(
        self, probs: Float[Tensor, "*batch vocab"], *, generator: torch.Generator
    ) -> Int[Tensor, "*batch"]:
        """Draw a token from each."""
        ...


@runtime_checkable
class Proposer(Protocol):
    """A drafter at work on one batch of rows."""

    def propose(
        self, text: Text, limits: Sequence[int], stop: Exit, *, generator: torch.Generator
    ) -> Draft:
        """Propose at most `limits[r]` tokens to follow row r; at least one limit is positive."""
        ...

    def settle(self, text: Text) -> None:
        """Take note of what a round, with a draft or without, has made of the text."""
        ...

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drop the rows not named."""
        ...


@runtime_checkable
class Drafter(Protocol):
    """A way to draft, as a reader passes it to `generate`."""

    def begin(self, job: Job) -> Proposer:
        """Start on a batch; ValueError if it cannot draft for this target."""
        ...


@final
@dataclass(frozen=True, slots=True)
class ModelDrafter:
    """Let a smaller model with the target's vocabulary draft (arXiv 2211.17192, 2302.01318).

    `sampler` None drafts with the target's own sampler. Another one is as lossless; greedy drafts
    (temperature 0) are one-hot proposals. The model may lie on another device than the target, on
    whose device its tokens are drawn.
    """

    draft_model: Decoder
    sampler: Sampler | None = None

    def begin(self, job: Job) -> "Proposer":
        """Allocate the draft model's own cache."""
        target, draft = job.target.model, self.draft_model
        if target.config.vocab_size != draft.config.vocab_size:
            raise ValueError(
                f"the draft model knows {draft.config.vocab_size} tokens, the target "
                f"{target.config.vocab_size}: choose a draft model with the target's tokenizer"
            )
        drawing = job.drawing(self.sampler or job.sampler)
        reader = Reader(draft, job.batch, job.capacity, job.spare)
        return _ModelProposer(reader, drawing, target.device)


@final
class _ModelProposer:
    def __init__(self, reader: Reader, sampler: Drawing, home: torch.device) -> None:
        self.reader, self.sampler, self.home = reader, sampler, home

    def propose(
        self, text: Text, limits: Sequence[int], stop: Exit, *, generator: torch.Generator
    ) -> Draft:
        first = self.reader.read(text)[:, 0].to(self.home)
        return drafted(first, self.step, self.sampler, text, limits, stop, generator=generator)

    def step(self, tokens: Int[Tensor, " batch"]) -> Float[Tensor, "batch vocab"]:
        """Read one more token; give the logits after it where tokens are drawn."""
        return self.reader.step(tokens).to(self.home)

    def settle(self, text: Text) -> None:
        # now: after a round without a draft, rejected tokens would lie within the text's length
        self.reader.forget(text)

    def keep_rows(self, rows: Sequence[int]) -> None:
        self.reader.cache.keep_rows(rows)


def drafted(  # noqa: PLR0913 - what any model needs to draft
    logits: Float[Tensor, "batch vocab"],
    step: Callable[[Int[Tensor, " batch"]], Float[Tensor, "batch vocab"]],
    sampler: Drawing,
    text: Text,
    limits: Sequence[int],
    stop: Exit,
    *,
    generator: torch.Generator,
) -> Draft:
    """Draw token after token, each from the law that is kept beside it, until the exit says stop.

    `logits` are those after the text, and `step` reads a token in each row and gives the next ones.
    """
    most = sent(limits, logits.device)
    lengths = most.clone() if stop.watches is None else torch.zeros_like(most)
    going = most > 0
    tokens, laws = [], []
    for position in range(max(limits)):
        if position:
            logits = step(tokens[-1])
        prefix = _prefix(sampler, text, tokens)
        laws.append(sampler.probs(logits, prefix))
        tokens.append(sampler.draw(laws[-1], generator=generator))
        if stop.watches is not None:
            lengths = lengths + going
            wanted = stop.goes_on(stop.watches(logits, tokens[-1]))
            going = going & wanted & (lengths < most)
            if position + 1 < max(limits) and not bool(going.any()):
                break
    return Draft(torch.stack(tokens, 1), torch.stack(laws, 1), lengths)


def _prefix(
    sampler: Drawing, text: Text, tokens: list[Int[Tensor, " batch"]]
) -> Int[Tensor, "batch seq"] | None:
    """Give the text with the drafts so far, if the sampler looks at it."""
    if sampler.repetition_penalty == 1:
        return None
    return torch.cat([text.tokens, *(token[:, None] for token in tokens)], 1)


@final
@dataclass(frozen=True, slots=True)
class PromptLookupDrafter:
    """Propose what followed the last occurrence of the text's last few tokens.

    Looks for the longest suffix of at most `max_ngram` tokens that occurs earlier in the text, and
    proposes, at no cost to speak of, the tokens after it, over again where the text ends. Such
    drafts are one-hot proposals. The method of LLMA (arXiv 2304.04487), known as prompt lookup.
    """

    max_ngram: int = 3

    def __post_init__(self) -> None:
        if self.max_ngram < 1:
            raise ValueError(f"max_ngram is {self.max_ngram}; match on one token or more")

    def begin(self, job: Job) -> "Proposer":
        """Remember the target's vocabulary; there is nothing else to set up."""
        return _LookupProposer(self.max_ngram, job.target.model.config.vocab_size)


@final
class _LookupProposer:
    def __init__(self, max_ngram: int, vocab: int) -> None:
        self.max_ngram, self.vocab = max_ngram, vocab

    def propose(
        self, text: Text, limits: Sequence[int], stop: Exit, *, generator: torch.Generator
    ) -> Draft:
        start = self._continuation(text)
        period = text.ends - start
        most = sent(limits, start.device) * (period > 0)
        width = max(limits) if not text.tokens.is_cpu else int(most.max())
        # what follows the match is the text's own end, which then goes on as it did
        within = torch.arange(width, device=start.device) % period.clamp(min=1)[:, None]
        places = (start[:, None] + within).clamp(max=text.tokens.shape[1] - 1)
        tokens = text.tokens.gather(1, places).clamp(min=0)
        probs = torch.zeros(*tokens.shape, self.vocab, device=tokens.device)
        return Draft(tokens, probs.scatter_(-1, tokens[..., None], 1.0), most)

    def settle(self, text: Text) -> None:
        """Look at the text when asked, not before."""

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Hold nothing by row."""

    def _continuation(self, text: Text) -> Int[Tensor, " batch"]:
        """Find where the tokens after the longest, then latest, match start; the end if nowhere."""
        best = text.ends
        for n in range(1, self.max_ngram + 1):
            if text.tokens.shape[1] <= n:
                break
            places = text.ends[:, None] - n + torch.arange(n, device=best.device)
            suffix = text.tokens.gather(1, places.clamp(min=0))
            windows = text.tokens.unfold(1, n, 1)
            same = (windows == suffix[:, None]).all(-1)
            starts = torch.arange(windows.shape[1], device=best.device) + n
            earlier = (starts < text.ends[:, None]) & (text.ends[:, None] > n)
            found = torch.where(same & earlier, starts, PADDING).amax(-1)
            best = torch.where(found >= 0, found, best)
        return best
