"""Rehearse a draft along text that the target has written: would its tokens be accepted?

Whoever drafts for the target proposes its next tokens. If the text to come is already there, drawn
by the target itself, then a draft that is accepted so far *is* that text, and the chance that token
x stands is min(1, q(x) ÷ p(x)), independently of all others: P(drafted and accepted) = min(p, q),
and the token came out with probability p.

The law q depends on how far the draft has come, since a skip plan's draft sees the whole model's
keys and values of the verified text, and its own of the drafted tokens. So there is one pass over
all positions for each place in a draft, the k-th of which reads every token as the k-th of a draft:

    verified text           drafted tokens            what the k-th sees
    whole model's K, V  │   plan's own K, V           k = 3, at position s:
    ────────────────────┼─ 1st ─ 2nd ─ 3rd            whole model's before s − 2, then those that
                            s−2    s−1    s           the 1st, 2nd and 3rd pass gave s−2, s−1 and s
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import final

import torch

from foredraft.decoding.loop import generate
from foredraft.decoding.prefill import Prefill
from foredraft.decoding.theory import overlap
from foredraft.models.attention import KVHeads, Mask, NewKVHeads
from foredraft.models.cache import KVCache
from foredraft.models.decoder import Decoder
from foredraft.models.rotary import Rotation
from foredraft.models.skip import SkipPlan
from foredraft.sampling import Sampler
from foredraft.types import Float, Int, Tensor

AT_ONCE = 2**25
"""Probabilities that are held at once: texts are taken in turn where a vocabulary is large."""


@final
@dataclass(frozen=True, slots=True)
class Chances:
    """What becomes of the k-th token of a draft: one tensor for one k.

    `accepted[text, s]` is the chance that it stands where it is new token s + 1 of the text, given
    that the text goes on as it does; `overlap[text, s]` is β = Σ min(p, q) there, its mean over
    what the target might have said instead. The first k − 1 places mean nothing: a draft that
    starts behind the first new token does not come to them so late.
    """

    accepted: Float[Tensor, "text place"]
    overlap: Float[Tensor, "text place"]


@final
@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Texts that a target wrote, its keys and values, and its law of each token.

    `tokens` are the new ones, as many in each text; `cache` holds prompt and text but for the last
    token; `p[text, s]` is the target's law of new token s + 1.
    """

    decoder: Decoder
    sampler: Sampler
    tokens: Int[Tensor, "text new"]
    cache: KVCache
    p: Float[Tensor, "text place vocab"]

    @property
    def n_places(self) -> int:
        """Tokens of each text that can be drafted: all new ones but the first."""
        return self.tokens.shape[1] - 1

    @torch.inference_mode()
    def drafts(self, plan: SkipPlan, sampler: Sampler | None = None) -> Iterator[Chances]:
        """Give the chances of the first token of a draft, of the second, and so on.

        `sampler` None drafts with the target's own. Each is a pass over all texts. Up to the first
        layer that the plan skips, all passes give the whole model's states: the first one's serve
        the others, except in half precision, whose rounding would differ.
        """
        n_layers = self.decoder.config.n_layers
        plan.check(n_layers)
        is_shared = self.decoder.dtype in (torch.float32, torch.float64)
        shared = min(plan.attn | plan.mlp, default=n_layers) if is_shared else 0
        memory, layers = _Band(self), list(self.decoder.layers)
        start = self.decoder.embedded(self.tokens[:, :-1])
        for k in range(self.n_places):
            memory.deepen(k)
            if k == 0:
                start = _through(layers[:shared], start, memory, plan)
            hidden = _through(layers[shared:], start, memory, plan)
            yield self._judged(hidden, sampler or self.sampler)

    @torch.inference_mode()
    def one_pass(self, plan: SkipPlan, sampler: Sampler | None = None) -> Iterator[Chances]:
        """Give for every token of a draft the chances of the first: an approximation.

        It takes the drafted tokens' keys and values to be the whole model's.
        """
        (first,) = islice(self.drafts(plan, sampler), 1)
        for _ in range(self.n_places):
            yield first

    def _judged(self, hidden: Float[Tensor, "text place hidden"], sampler: Sampler) -> Chances:
        texts = max(1, AT_ONCE // (self.n_places * self.decoder.config.vocab_size))
        accepted, overlaps = [], []
        for first in range(0, len(hidden), texts):
            rows = slice(first, first + texts)
            q, p = sampler.probs(self.decoder.logits(hidden[rows])), self.p[rows]
            said = self.tokens[rows, 1:, None]
            drafted, written = q.gather(-1, said), p.gather(-1, said)
            # in half precision this reading may deny what the decoding said: then p counts as 1
            chance = torch.where(written > 0, drafted / written, drafted)
            accepted.append(chance.clamp(max=1).squeeze(-1))
            overlaps.append(overlap(p, q))
        return Chances(torch.cat(accepted), torch.cat(overlaps))


def _through(
    layers: Iterable[torch.nn.Module],
    hidden: Float[Tensor, "text place hidden"],
    memory: "_Band",
    plan: SkipPlan,
) -> Float[Tensor, "text place hidden"]:
    for layer in layers:
        hidden = layer(hidden, memory, plan)
    return hidden


def rehearse(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    sampler: Sampler,
    new_tokens: int,
    generator: torch.Generator,
    prefilled: Prefill | None = None,
) -> Rehearsal:
    """Let the target continue each prompt by its own law, then read `along` that."""
    made = generate(
        decoder,
        prompts,
        sampler=sampler,
        max_new_tokens=new_tokens,
        generator=generator,
        eos_token_id=[],
        prefilled=prefilled,
    )
    return along(decoder, prompts, made.tokens, sampler=sampler, prefilled=prefilled)


@torch.inference_mode()
def along(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    sampler: Sampler,
    prefilled: Prefill | None = None,
) -> Rehearsal:
    """Read what the target, under this sampler, has made of each prompt.

    With the prompts' `prefilled`, only what follows them is read: the same but for rounding.

    ValueError for fewer than two new tokens, of which none would be drafted, for texts that got
    different numbers of them, and for a sampler whose law depends on the text (a repetition
    penalty).
    """
    counts = sorted({len(new) for new in continuations})
    if len(counts) != 1 or counts[0] < 2:
        raise ValueError(
            f"texts of {counts} new tokens: the first is never drafted; give each text the same "
            "number, 2 or more"
        )
    if sampler.repetition_penalty != 1:
        raise ValueError(
            f"repetition_penalty is {sampler.repetition_penalty}: the law of a token would depend "
            "on the text before it; rehearse with 1"
        )
    tokens = torch.tensor([list(new) for new in continuations], device=decoder.device)
    n_places = counts[0] - 1
    cache = decoder.new_cache(len(prompts), max(map(len, prompts)) + n_places)
    if prefilled is None:
        hidden = _read_whole(decoder, cache, prompts, continuations)
    else:
        prefilled.require(prompts)
        prefilled.fill(cache)
        hidden = decoder.hidden(tokens[:, :-1], cache)
        cache.commit(n_places)
    p = sampler.probs(decoder.logits(hidden))
    return Rehearsal(decoder, sampler, tokens, cache, p)


def _read_whole(
    decoder: Decoder,
    cache: KVCache,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
) -> Float[Tensor, "text place hidden"]:
    """Read prompts with what follows them in one pass; give what the latter come to."""
    texts = [[*prompt, *new[:-1]] for prompt, new in zip(prompts, continuations, strict=True)]
    width, n_places = max(map(len, texts)), len(continuations[0]) - 1
    padded = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts])
    hidden = decoder.hidden(padded.to(decoder.device), cache)
    cache.commit([len(text) for text in texts])
    ends = torch.tensor(cache.lengths, device=decoder.device)
    places = ends[:, None] - n_places + torch.arange(n_places, device=decoder.device)
    rows = torch.arange(len(texts), device=decoder.device)[:, None]
    return hidden[rows, places]


@final
class _Band:
    """The memory of tokens that are each read as the k-th of a draft."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        decoder, cache = rehearsal.decoder, rehearsal.cache
        self.cache, self.dtype, self.n_places = cache, decoder.dtype, rehearsal.n_places
        self.group = decoder.config.n_heads // decoder.config.n_kv_heads
        ends = torch.tensor(cache.lengths, device=decoder.device)
        steps = torch.arange(self.n_places, device=decoder.device)
        self.positions = ends[:, None] - self.n_places + steps
        self.rotation: Rotation = decoder.config.rotation(self.positions, decoder.dtype)
        self.passes: list[list[tuple[KVHeads, KVHeads]]] = [[] for _ in cache.keys]

    def deepen(self, k: int) -> None:
        """Turn to the next token of the draft, that of index k."""
        self.k = k
        self._masks: dict[int | None, Mask] = {}

    def extend(
        self, layer: int, keys: NewKVHeads, values: NewKVHeads, window: int | None
    ) -> tuple[KVHeads, KVHeads]:
        """Give the whole model's, then those of each pass so far."""
        self.passes[layer].append((keys.transpose(1, 2), values.transpose(1, 2)))
        all_keys, all_values = zip(
            (self.cache.keys[layer], self.cache.values[layer]), *self.passes[layer], strict=True
        )
        return torch.cat(all_keys, 2), torch.cat(all_values, 2)

    def is_plainly_causal(self, window: int | None) -> bool:
        """No: each token sees what different passes gave others."""
        return False

    def mask(self, window: int | None) -> Mask:
        """Let a token see the verified text, and of each pass the one place of its own draft."""
        if window not in self._masks:
            self._masks[window] = self._mask(window)
        return self._masks[window]

    def _mask(self, window: int | None) -> Mask:
        here, device = self.positions, self.positions.device
        slots = torch.arange(self.cache.keys[0].shape[2], device=device)
        verified = slots < here[..., None] - self.k
        if window is not None:
            verified &= slots > here[..., None] - window
        steps = torch.arange(self.n_places, device=device)
        drafted = [
            (steps == steps[:, None] - back) & (window is None or back < window)
            for back in range(self.k, -1, -1)
        ]
        band = torch.cat(drafted, 1).expand(len(here), -1, -1)
        visible = torch.cat([verified, band], -1)[:, None]
        mask = torch.zeros(visible.shape, dtype=self.dtype, device=device)
        return mask.masked_fill_(~visible, -torch.inf).repeat(1, 1, self.group, 1)
