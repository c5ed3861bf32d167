"""Let the target draft for itself, with some of its branches switched off.

Draft and target share weights and cache: the draft steps read the keys and values that the whole
model has left of the verified text, and write their own behind it. Nothing else is prefilled,
copied or restored, because the next verification forgets what stands there and writes it anew.

    cache    ─── the text, read by the whole model ───┬─ last ─ draft ─ draft ─ …
    draft                                             └─ each read under the plan, one by one
    verify                                            └─ all read by the whole model, at once

An early exit (the first n layers, then the final norm and the head) does part of verification's
work: keys, values and residual stream of the first n layers are the whole model's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from foredraft.decoding.draft import Draft, Drawing, Job, Proposer, drafted
from foredraft.decoding.exit import Exit
from foredraft.decoding.reader import Reader
from foredraft.decoding.text import Text
from foredraft.models.decoder import Decoder
from foredraft.models.skip import SkipPlan
from foredraft.sampling import Sampler
from foredraft.types import Float, Int, Tensor


@final
@dataclass(frozen=True, slots=True)
class SelfDrafter:
    """Draft with the target's own weights and cache, without the branches in `plan`.

    The scheme of Draft & Verify (arXiv 2309.08168). `sampler` None drafts with the target's own.
    `vocabulary` names the only tokens to draft, None for all: it spares the rest of the head. With
    `reuse`, a plan that is an early exit spares verification its layers (LayerSkip, arXiv
    2404.16710), except for the last drafted token. Whatever is chosen, the output law stays.
    """

    plan: SkipPlan
    sampler: Sampler | None = None
    vocabulary: Sequence[int] | None = None
    reuse: bool = True

    def begin(self, job: Job) -> "Proposer":
        """Check the plan against the target, and take the head's rows of the vocabulary."""
        model = job.target.model
        self.plan.check(model.config.n_layers)
        head = None if self.vocabulary is None else _TrimmedHead(model, self.vocabulary)
        drawing = job.drawing(self.sampler or job.sampler)
        return _SelfProposer(job.target, self.plan, drawing, head, self._spared(model))

    def _spared(self, model: Decoder) -> SkipPlan | None:
        """Give the layers that drafting spares verification; None if there are none."""
        n_layers = model.config.n_layers
        exit_layer = self.plan.exit_layer(n_layers) if self.reuse else None
        return None if exit_layer is None else SkipPlan.early_exit(0, n_layers) - self.plan


@final
class _SelfProposer:
    """The target at work under a plan, behind the text that it has read whole."""

    def __init__(
        self,
        target: Reader,
        plan: SkipPlan,
        sampler: Drawing,
        head: "_TrimmedHead | None",
        spared: SkipPlan | None,
    ) -> None:
        self.target, self.plan, self.sampler = target, plan, sampler
        self.head, self.spared = head, spared
        self.states: list[Float[Tensor, "batch hidden"]] = []

    def propose(
        self, text: Text, limits: Sequence[int], stop: Exit, *, generator: torch.Generator
    ) -> Draft:
        self.states = []
        self.target.catch_up(text)
        last = text.tokens.gather(1, text.ends[:, None] - 1).squeeze(1)
        first = self.step(last)
        draft = drafted(first, self.step, self.sampler, text, limits, stop, generator=generator)
        if self.spared is not None:
            self.states.append(self.target.advance(draft.tokens[:, -1], self.plan))
            self.target.begin(draft.tokens, torch.stack(self.states, 1), self.spared)
        return draft

    def step(self, tokens: Int[Tensor, " batch"]) -> Float[Tensor, "batch vocab"]:
        """Read one more token under the plan; give the logits after it."""
        self.states.append(self.target.advance(tokens, self.plan))
        hidden = self.states[-1]
        return self.target.model.logits(hidden) if self.head is None else self.head(hidden)

    def settle(self, text: Text) -> None:
        """Leave it to the target, whose reader it is."""

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Hold nothing by row from round to round: the target's cache is the target's to thin."""


@final
class _TrimmedHead:
    """The rows of a model's head for some tokens; all others get the logit −∞."""

    def __init__(self, model: Decoder, vocabulary: Sequence[int]) -> None:
        ids, size = sorted(set(vocabulary)), model.config.vocab_size
        if not ids or not 0 <= ids[0] <= ids[-1] < size:
            raise ValueError(
                f"a vocabulary of {len(ids)} tokens, {ids[:1]} to {ids[-1:]}: name one or more of "
                f"the target's, 0 to {size - 1}"
            )
        self.model, self.tokens = model, torch.tensor(ids, device=model.device)
        self.rows = model.head_rows(self.tokens)

    def __call__(self, hidden: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch vocab"]:
        kept = self.model.logits(hidden, self.rows)
        everything = kept.new_full((len(kept), self.model.config.vocab_size), -torch.inf)
        return everything.index_copy_(1, self.tokens, kept)
