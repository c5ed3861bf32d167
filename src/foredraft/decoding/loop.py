"""The decoding loop: prefill once, then one target pass a round, for a batch of ragged rows.

Rows have their own lengths, budgets and ends. They are padded on the right for the prefill only;
what the padding wrote lies behind each row's committed length, where the next pass overwrites it.
Finished rows leave the batch. The host waits for the device once a round, at the commit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from foredraft.decoding.trace import Round, RowRound, Trace
from foredraft.models.decoder import Decoder
from foredraft.sampling import Sampler, poisoned
from foredraft.types import Float, Int, Tensor, Tokens

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


@torch.no_grad()
def generate(  # noqa: PLR0913 - the one call that readers make
    model: Decoder,
    prompts: Prompts,
    *,
    sampler: Sampler,
    max_new_tokens: int,
    drafter: None = None,
    generator: torch.Generator | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    on_round: Callable[[Round], None] | None = None,
) -> Generation:
    """Continue each prompt by at most `max_new_tokens` tokens drawn from the sampler's law.

    `prompts` are lists of token ids, of any lengths, or one tensor [batch, seq]. `drafter` None
    is plain autoregressive decoding, so far the only kind. `generator` None draws from a fresh one
    that the operating system seeds. A row ends after its first token in `eos_token_id`: one id or
    several, None for the model's own, [] for never. `on_round` is called with each round as soon as
    it is committed.

    Raises ValueError for an empty prompt, an id outside the vocabulary, a negative budget, more
    positions than the model has, and logits from which nothing can be drawn.
    """
    if drafter is not None:
        raise ValueError(f"drafter is {drafter!r}; None, autoregressive decoding, is all there is")
    ids = _checked(prompts, model, max_new_tokens)
    if max_new_tokens == 0 or not ids:
        return Generation([[] for _ in ids], Trace(()))
    batch = _Batch(model, sampler, _ends(eos_token_id, model), max_new_tokens, ids)
    generator = _on_device(generator, model.device)
    rounds: list[Round] = []
    logits = batch.prefill()
    while True:
        rounds.append(batch.commit(logits, index=len(rounds), generator=generator))
        if on_round is not None:
            on_round(rounds[-1])
        if not batch.drop_finished():
            return Generation(batch.emitted, Trace(tuple(rounds)))
        logits = batch.step()


class _Batch:
    """The unfinished rows: their cache, what they have emitted, and which original row each is."""

    def __init__(
        self,
        model: Decoder,
        sampler: Sampler,
        ends: frozenset[int],
        max_new_tokens: int,
        prompts: list[list[int]],
    ) -> None:
        self.model, self.sampler, self.ends, self.budget = model, sampler, ends, max_new_tokens
        self.prompts = prompts
        self.emitted: list[list[int]] = [[] for _ in prompts]
        self.rows = list(range(len(prompts)))
        longest = max(map(len, prompts))
        self.cache = model.new_cache(len(prompts), longest + max_new_tokens)
        self.texts = _Texts(prompts, longest + max_new_tokens, model.device)

    def prefill(self) -> Float[Tensor, "batch vocab"]:
        """Read all prompts at once; give the logits after the last token of each."""
        tokens = _padded(self.prompts, 0).to(self.model.device)
        hidden = self.model.hidden(tokens, self.cache)
        lengths = [len(prompt) for prompt in self.prompts]
        self.cache.commit(lengths)
        last = torch.tensor(lengths, device=tokens.device) - 1
        return self.model.logits(hidden[torch.arange(len(lengths), device=tokens.device), last])

    def step(self) -> Float[Tensor, "batch vocab"]:
        """Read the token that each row emitted last; give the logits after it."""
        newest = torch.tensor(
            [[self.emitted[row][-1]] for row in self.rows], device=self.model.device
        )
        hidden = self.model.hidden(newest, self.cache)
        self.cache.commit(1)
        return self.model.logits(hidden[:, -1])

    def commit(
        self, logits: Float[Tensor, "batch vocab"], *, index: int, generator: torch.Generator
    ) -> Round:
        """Draw one token for each row and bring them to the host: the round's only wait."""
        prefix = None if self.sampler.repetition_penalty == 1 else self.texts.tokens
        probs = self.sampler.probs(logits, prefix)
        drawn = self.sampler.draw(probs, generator=generator)
        self.texts.append(drawn)
        wide = logits.to(probs.dtype)
        chosen = wide.gather(-1, drawn[:, None]).squeeze(-1)
        confidence = (chosen - wide.logsumexp(-1)).exp().double()
        bad = poisoned(probs).double().expand_as(confidence)
        tokens, confidences, (is_bad, *_) = torch.stack([drawn, confidence, bad]).tolist()
        if is_bad:
            raise ValueError(
                f"round {index} gave logits with NaN, +inf or no finite value at all: check the "
                "weights, or load the model in a wider dtype"
            )
        outcome = []
        for row, token, sure in zip(self.rows, map(int, tokens), confidences, strict=True):
            self.emitted[row].append(token)
            outcome.append(RowRound(row, 0, 0, (token,), "bonus", False, sure))
        return Round(index, tuple(outcome))

    def drop_finished(self) -> bool:
        """Keep the rows that go on; say whether there are any."""
        going = [
            position
            for position, row in enumerate(self.rows)
            if self.emitted[row][-1] not in self.ends and len(self.emitted[row]) < self.budget
        ]
        if going and len(going) < len(self.rows):
            self.cache.keep_rows(going)
            self.texts.keep_rows(going)
        self.rows = [self.rows[position] for position in going]
        return bool(self.rows)


class _Texts:
    """Prompt and emitted tokens of each row on the device, padded with −1 behind its end."""

    def __init__(self, prompts: list[list[int]], capacity: int, device: torch.device) -> None:
        self.tokens = torch.full((len(prompts), capacity), -1, device=device)
        padded = _padded(prompts, -1).to(device)
        self.tokens[:, : padded.shape[1]] = padded
        self.ends = (self.tokens >= 0).sum(-1, keepdim=True)

    def append(self, drawn: Int[Tensor, " batch"]) -> None:
        """Add one token to each row."""
        self.tokens.scatter_(1, self.ends, drawn[:, None])
        self.ends += 1

    def keep_rows(self, rows: list[int]) -> None:
        """Drop the rows not named."""
        index = torch.tensor(rows, device=self.tokens.device)
        self.tokens, self.ends = self.tokens[index], self.ends[index]


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


def _padded(rows: list[list[int]], filler: int) -> Tokens:
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])
