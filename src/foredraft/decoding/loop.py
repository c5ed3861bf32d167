"""The decoding loop: prefill once, then gate → draft → verify → commit, for a batch of ragged rows.

One loop for every drafter; plain autoregressive decoding is the one without, whose drafts are
empty. Rows have their own lengths, budgets, ends and numbers of accepted tokens; finished rows
leave the batch. The host waits for the device once a round, at the commit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from foredraft.decoding.draft import Draft, Drafter, Job
from foredraft.decoding.exit import Exit, ExitPolicy, FixedLength
from foredraft.decoding.gate import AlwaysDraft, Gate, GatePolicy
from foredraft.decoding.prefill import Prefill
from foredraft.decoding.reader import Reader
from foredraft.decoding.signal import confidence
from foredraft.decoding.text import PADDING, Text
from foredraft.decoding.trace import Round, RowRound, Trace
from foredraft.decoding.verify import RULES, Verdicts, verify_rows
from foredraft.errors import unknown
from foredraft.models.cache import sent
from foredraft.models.decoder import Decoder
from foredraft.sampling import Sampler, poisoned
from foredraft.types import Float, Int, Tensor

Prompts = Sequence[Sequence[int]] | Tensor


@dataclass(frozen=True, slots=True)
class Generation:
    """New tokens, one list a prompt, cut after the first end-of-text token; and how they came."""

    tokens: list[list[int]]
    trace: Trace

    @property
    def acceptance_rate(self) -> float:
        """Accepted ÷ drafted tokens; NaN if nothing was drafted."""
        drafted = self.trace.drafted
        return self.trace.accepted / drafted if drafted else float("nan")

    @property
    def tokens_per_target_pass(self) -> float:
        """Emitted tokens for each time that the target looked at a row; NaN if it never did."""
        passes = self.trace.row_passes
        return self.trace.emitted / passes if passes else float("nan")


def generate(  # noqa: PLR0913 - the one call that readers make
    model: Decoder,
    prompts: Prompts,
    *,
    sampler: Sampler,
    max_new_tokens: int,
    drafter: Drafter | None = None,
    exit_policy: ExitPolicy | None = None,
    gate: GatePolicy | None = None,
    generator: torch.Generator | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    verification: str = "token",
    on_round: Callable[[Round], None] | None = None,
    prefilled: Prefill | None = None,
) -> Generation:
    """Continue each prompt by at most `max_new_tokens` tokens drawn from the sampler's law.

    `prompts` are lists of token ids, of any lengths, or one tensor [batch, seq]. Whatever drafts,
    the output law is the target's under `sampler`: `drafter` None is plain autoregressive decoding,
    `exit_policy` (None: `FixedLength(4)`) says how far to draft, `gate` (None: `AlwaysDraft()`)
    whether to, and `verification` is "token" or "block" (`foredraft.decoding.verify`). The first
    token of each row comes from the prefill, without a draft. `generator` None draws from a fresh
    one that the operating system seeds. A row ends after its first token in `eos_token_id`: one id
    or several, None for the model's own, [] for never. `on_round` is called with each round as soon
    as it is committed. `prefilled` is what `prefill` gave of this model and these very prompts,
    which are then not read again.

    Raises ValueError for an empty prompt, an id outside the vocabulary, a negative budget, more
    positions than the model has, a drafter that does not fit the target, and logits from which
    nothing can be drawn.
    """
    if verification not in RULES:
        raise unknown("verification", verification, RULES)
    ids = _checked(prompts, model, max_new_tokens)
    if max_new_tokens == 0 or not ids:
        return Generation([[] for _ in ids], Trace(()))
    generator = _on_device(generator, model.device)
    batch = _Batch(model, ids, sampler, max_new_tokens, _ends(eos_token_id, model))
    if prefilled is not None:
        prefilled.require(ids)
        batch.prefilled = prefilled
    stop = (exit_policy or FixedLength(4)).begin(len(ids))
    with torch.inference_mode():
        batch.begin(drafter, stop, (gate or AlwaysDraft()).begin(len(ids)))
    rounds: list[Round] = []
    while batch.rows:
        with torch.inference_mode():
            rounds.append(batch.round(len(rounds), verification, generator))
        if on_round is not None:
            on_round(rounds[-1])
        with torch.inference_mode():
            batch.drop_finished()
    return Generation(batch.emitted, Trace(tuple(rounds)))


class _Batch:
    """The unfinished rows: their texts, who reads and drafts for them, what they have emitted."""

    def __init__(
        self,
        model: Decoder,
        prompts: list[list[int]],
        sampler: Sampler,
        max_new_tokens: int,
        ends: frozenset[int],
    ) -> None:
        self.model, self.sampler, self.budget, self.ends = model, sampler, max_new_tokens, ends
        self.end_ids = sent(sorted(ends), model.device)
        self.capacity = max(map(len, prompts)) + max_new_tokens
        self.text = Text(prompts, self.capacity, model.device)
        self.emitted: list[list[int]] = [[] for _ in prompts]
        self.rows = list(range(len(prompts)))
        self.seen: list[float] = []
        self.prefilled: Prefill | None = None

    def begin(self, drafter: Drafter | None, stop: Exit, gate: Gate) -> None:
        """Put target and drafter to work on the rows."""
        spare = 0 if drafter is None else stop.max_length + 2
        batch = len(self.rows)
        self.stop, self.gate = stop, gate
        self.reader = Reader(self.model, batch, self.capacity, spare)
        job = Job(self.reader, self.sampler, batch, self.capacity, spare)
        self.proposer = drafter.begin(job) if drafter is not None else None

    def round(self, index: int, verification: str, generator: torch.Generator) -> Round:
        """Gate, draft, verify, commit."""
        opens, limits = self._limits()
        draft = self._draft(limits, generator)
        logits = self._read(draft)
        probs = self.sampler.probs(logits, self._prefixes(draft))
        verdicts = verify_rows(
            *(draft.tokens, draft.probs, probs, draft.lengths),
            verification=verification,
            generator=generator,
        )
        return Round(index, self._commit(index, opens, draft, logits, probs, verdicts))

    def _read(self, draft: Draft) -> Float[Tensor, "batch positions vocab"]:
        """Read the text and the draft with the target, or take over a prefill that is known."""
        known, self.prefilled = self.prefilled, None
        if known is None:
            return self.reader.read(self.text, draft.tokens)
        known.fill(self.reader.cache)
        return known.logits

    def drop_finished(self) -> None:
        """Keep the rows that go on."""
        going = [
            position
            for position, row in enumerate(self.rows)
            if self.emitted[row][-1] not in self.ends and len(self.emitted[row]) < self.budget
        ]
        if going and len(going) < len(self.rows):
            self.reader.cache.keep_rows(going)
            self.text.keep_rows(going)
            self.stop.keep_rows(going)
            self.gate.keep_rows(going)
            self.seen = [self.seen[position] for position in going]
            if self.proposer is not None:
                self.proposer.keep_rows(going)
        self.rows = [self.rows[position] for position in going]

    def _limits(self) -> tuple[list[bool], list[int]]:
        """Say which rows draft, and how much at most: one less than they may still emit."""
        if self.proposer is None or not self.seen:  # the prefill comes before any gate
            return [False] * len(self.rows), [0] * len(self.rows)
        opens = self.gate.opens(self.seen)
        left = [self.budget - len(self.emitted[row]) - 1 for row in self.rows]
        most = self.stop.max_length
        return opens, [
            min(most, n) if is_open else 0 for is_open, n in zip(opens, left, strict=True)
        ]

    def _draft(self, limits: list[int], generator: torch.Generator) -> Draft:
        if self.proposer is None or max(limits) == 0:
            return _nothing(len(limits), self.model)
        draft = self.proposer.propose(self.text, limits, self.stop, generator=generator)
        return _fitting(draft, limits, self.model.config.vocab_size, self.model.device)

    def _prefixes(self, draft: Draft) -> Int[Tensor, "batch positions seq"] | None:
        """Give what each position follows: the text, and the drafts before it."""
        if self.sampler.repetition_penalty == 1:
            return None
        n_drafted = draft.tokens.shape[1]
        behind = torch.ones(n_drafted + 1, n_drafted, device=self.model.device).tril(-1).bool()
        drafts = torch.where(behind, draft.tokens[:, None], PADDING)
        texts = self.text.tokens[:, None].expand(-1, n_drafted + 1, -1)
        return torch.cat([texts, drafts], -1)

    def _commit(
        self,
        index: int,
        opens: list[bool],
        draft: Draft,
        logits: Float[Tensor, "batch positions vocab"],
        probs: Float[Tensor, "batch positions vocab"],
        verdicts: Verdicts,
    ) -> tuple[RowRound, ...]:
        """Add what stands to the texts and bring it to the host: the round's only wait."""
        n_accepted = verdicts.n_accepted
        tokens = torch.nn.functional.pad(draft.tokens, (0, 1))
        tokens = tokens.scatter(1, n_accepted[:, None], verdicts.token[:, None])
        self.text.append(tokens, n_accepted + 1)
        n_kept = _kept(tokens, n_accepted + 1, self.end_ids)
        rows = torch.arange(len(n_kept), device=n_kept.device)
        last = logits[rows, n_kept - 1], tokens[rows, n_kept - 1]
        sure = confidence(*last)
        watches = self.gate.watches
        seen = sure if watches in (None, confidence) else watches(*last)
        numbers = torch.stack([n_accepted, draft.lengths, _faults(draft, probs), n_kept], 1)
        shown = torch.stack([sure.double(), seen.double()], 1)
        told = torch.cat([numbers.double(), shown, tokens.double()], 1).tolist()
        self._refuse(index, int(told[0][2]))
        outcome = []
        for row, is_open, line in zip(self.rows, opens, told, strict=True):
            accepted, drafted, _, kept = map(int, line[:4])
            new = [int(token) for token in line[6 : 6 + kept]]
            self.emitted[row] += new
            kind = "bonus" if accepted == drafted else "recovered"
            outcome.append(RowRound(row, drafted, accepted, tuple(new), kind, is_open, line[4]))
        self.text.extend_lengths([int(line[0]) + 1 for line in told])
        self.reader.forget(self.text)
        if self.proposer is not None:
            self.proposer.settle(self.text)
        self.stop.learn([row.drafted for row in outcome], [row.accepted for row in outcome])
        self.seen = [line[5] for line in told]
        return tuple(outcome)

    def _refuse(self, index: int, fault: int) -> None:
        if fault == _BAD_TARGET:
            raise ValueError(
                f"round {index} gave logits with NaN, +inf or no finite value at all: check the "
                "weights, or load the model in a wider dtype"
            )
        if fault == _BAD_DRAFT:
            raise ValueError(
                f"round {index}: the drafter proposed a token to which its own distribution gives "
                "no mass, or NaN: Draft.probs must be the law that each token was drawn from"
            )


_BAD_TARGET, _BAD_DRAFT = 2, 1


def _faults(draft: Draft, probs: Float[Tensor, "batch positions vocab"]) -> Int[Tensor, " batch"]:
    """Say on the device what is wrong with this round, the same for every row; 0 if nothing is."""
    fault = poisoned(probs) * _BAD_TARGET
    if draft.tokens.shape[1]:
        drawn = draft.probs.gather(-1, draft.tokens[..., None]).squeeze(-1)
        within = torch.arange(drawn.shape[1], device=drawn.device) < draft.lengths[:, None]
        fault = torch.maximum(fault, (within & ~(drawn > 0)).any() * _BAD_DRAFT)
    return fault.expand(len(draft.lengths))


def _nothing(batch: int, model: Decoder) -> Draft:
    """The draft of plain decoding."""
    tokens = torch.zeros(batch, 0, dtype=torch.int64, device=model.device)
    probs = torch.zeros(batch, 0, model.config.vocab_size, device=model.device)
    return Draft(tokens, probs, tokens.new_zeros(batch))


def _fitting(draft: Draft, limits: list[int], vocab: int, device: torch.device) -> Draft:
    """Check a proposer's work; drafts beyond a row's limit, or beyond the tokens, are dropped."""
    if {draft.tokens.dtype, draft.lengths.dtype} != {torch.int64}:
        raise ValueError(
            f"the drafter gave tokens as {draft.tokens.dtype} and lengths as "
            f"{draft.lengths.dtype}: both must be torch.int64"
        )
    width = draft.tokens.shape[1] if draft.tokens.dim() == 2 else -1
    if (
        not 0 <= width <= max(limits)
        or draft.tokens.shape[0] != len(limits)
        or tuple(draft.probs.shape) != (len(limits), width, vocab)
        or tuple(draft.lengths.shape) != (len(limits),)
    ):
        raise ValueError(
            f"the drafter gave tokens {tuple(draft.tokens.shape)}, probs "
            f"{tuple(draft.probs.shape)} and lengths {tuple(draft.lengths.shape)}; for "
            f"{len(limits)} rows, at most {max(limits)} drafts and {vocab} tokens they must be "
            "[batch, k], [batch, k, vocab] and [batch]"
        )
    most = sent([min(limit, width) for limit in limits], device)
    return Draft(draft.tokens, draft.probs, torch.minimum(draft.lengths, most).clamp(min=0))


def _kept(
    tokens: Int[Tensor, "batch new"], counts: Int[Tensor, " batch"], ends: Int[Tensor, " ends"]
) -> Int[Tensor, " batch"]:
    """Count each row's new tokens up to the first that ends a text, that one included."""
    if tokens.shape[1] == 1:
        return counts
    is_end = (tokens[..., None] == ends).any(-1)
    before_end = is_end.cumsum(1).eq(0).sum(1)
    return torch.minimum(before_end + 1, counts)


def _checked(prompts: Prompts, model: Decoder, max_new_tokens: int) -> list[list[int]]:
    if isinstance(prompts, Tensor) and (prompts.dim() != 2 or prompts.is_floating_point()):
        raise ValueError(
            f"prompts are a tensor of shape {tuple(prompts.shape)} and {prompts.dtype}: give "
            "integer token ids [batch, seq], or lists of ids"
        )
    ids = prompts.tolist() if isinstance(prompts, Tensor) else [list(row) for row in prompts]
    vocab, positions = model.config.vocab_size, model.config.max_positions
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens={max_new_tokens} is negative; 0 generates nothing")
    for row, prompt in enumerate(ids):
        if not prompt:
            raise ValueError(f"prompt {row} is empty: give at least one token, such as the first")
        strange = [token for token in prompt if not 0 <= token < vocab]
        if strange:
            raise ValueError(
                f"prompt {row} holds token {strange[0]}, outside the vocabulary of {vocab}: "
                "encode it with this model's own tokenizer"
            )
        if len(prompt) + max_new_tokens > positions:
            raise ValueError(
                f"prompt {row} has {len(prompt)} tokens; with {max_new_tokens} new ones that is "
                f"more than the model's {positions} positions: shorten it or ask for fewer"
            )
    return ids


def _ends(eos_token_id: int | Sequence[int] | None, model: Decoder) -> frozenset[int]:
    if eos_token_id is None:
        return frozenset(model.config.eos_token_ids)
    return frozenset([eos_token_id] if isinstance(eos_token_id, int) else eos_token_id)


def _on_device(generator: torch.Generator | None, device: torch.device) -> torch.Generator:
    if generator is None:
        generator = torch.Generator(device)
        generator.seed()
    if generator.device.type != device.type:
        raise ValueError(
            f"the generator is on {generator.device}, the model on {device}: make it with "
            f"torch.Generator({device.type!r})"
        )
    return generator
