"""Read a growing text with a model and its cache: each pass takes what is new, and drafts on top.

Target and draft model read by the same rule. What the cache holds of a row is valid as far as the
verified text goes, less its last token; the rest is forgotten, for free, before the next pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from foredraft.decoding.text import Text
from foredraft.models.cache import sent
from foredraft.models.decoder import Decoder
from foredraft.models.skip import SkipPlan
from foredraft.types import Float, Int, Tensor


@final
@dataclass(frozen=True, slots=True)
class _Begun:
    """How far the read of a draft has come: the layers in `skip` are done, giving `hidden`."""

    drafts: Int[Tensor, "batch drafted"] | None = None
    hidden: Float[Tensor, "batch positions hidden"] | None = None
    skip: SkipPlan | None = None


@final
class Reader:
    """A model at work on a batch of texts, with the keys and values of what it has read.

    What it reads may lie on another device than the model; what it gives lies on the model's.
    """

    def __init__(self, model: Decoder, batch: int, capacity: int, spare: int) -> None:
        """Allocate for texts of at most `capacity`, with `spare` slots for what is not kept."""
        self.model = model
        self.cache = model.new_cache(batch, capacity, spare=spare)
        self._begun = _Begun()

    def read(
        self, text: Text, drafts: Int[Tensor, "batch drafted"] | None = None
    ) -> Float[Tensor, "batch positions vocab"]:
        """Read what is new in each row, then the drafts; give the logits after the text and each.

        Rows with less to read than others are padded behind their drafts, where the next pass
        overwrites.
        """
        missing = self._missing(text, text.lengths)
        n_drafted = 0 if drafts is None else drafts.shape[1]
        tokens = self._tokens(text, drafts, max(missing) + n_drafted)
        begun = self._begun if self._begun.drafts is drafts else _Begun()
        hidden = self.model.hidden(tokens, self.cache, skip=begun.skip, start=begun.hidden)
        self.cache.commit([n + n_drafted for n in missing])
        return self.model.logits(_tails(hidden, missing, n_drafted + 1))

    def catch_up(self, text: Text) -> None:
        """Read what is new in each row but its last token, if there is any."""
        missing = self._missing(text, [end - 1 for end in text.lengths])
        if any(missing):
            self.model.hidden(self._tokens(text, None, max(missing)), self.cache)
            self.cache.commit(missing)

    def step(self, tokens: Int[Tensor, " batch"]) -> Float[Tensor, "batch vocab"]:
        """Read one more token in each row, on top of all that was read; give the next logits."""
        return self.model.logits(self.advance(tokens))

    def advance(
        self, tokens: Int[Tensor, " batch"], skip: SkipPlan | None = None
    ) -> Float[Tensor, "batch hidden"]:
        """Read as `step` does, without the branches in `skip`; give the residual stream."""
        tokens = tokens[:, None].to(self.model.device)
        hidden = self.model.hidden(tokens, self.cache, skip=skip)
        self.cache.commit(1)
        return hidden[:, -1]

    def begin(
        self,
        drafts: Int[Tensor, "batch drafted"],
        hidden: Float[Tensor, "batch positions hidden"],
        skip: SkipPlan,
    ) -> None:
        """Spare the next `read` of these very drafts, if one comes, the first layers: `skip`.

        `hidden` is the residual stream after these layers, of the text's last token and each draft;
        `advance` has read the same tokens with all the other layers skipped, after `catch_up`.
        """
        self._begun = _Begun(drafts, hidden, skip)

    def forget(self, text: Text) -> None:
        """Keep of each row what belongs to its text; not its last token, which is yet to read."""
        held = self.cache.lengths
        valid = [min(n, end - 1) for n, end in zip(held, text.lengths, strict=True)]
        if tuple(valid) != held:
            self.cache.rollback(valid)

    def _missing(self, text: Text, ends: Sequence[int]) -> list[int]:
        """Count what each row has yet to read to come this far, after forgetting what is void."""
        self.forget(text)
        return [end - held for end, held in zip(ends, self.cache.lengths, strict=True)]

    def _tokens(
        self, text: Text, drafts: Int[Tensor, "batch drafted"] | None, width: int
    ) -> Int[Tensor, "batch width"]:
        text = text.on(self.model.device)
        tokens, n_drafted = text.tokens, 0 if drafts is None else drafts.shape[1]
        start, stop = self.cache.longest, self.cache.longest + width - n_drafted
        if self.cache.shortest == start and min(text.lengths) == max(text.lengths):  # side by side
            known = tokens[:, start:stop]
            return known if drafts is None else torch.cat([known, drafts], 1)
        if drafts is not None and n_drafted:
            everything = torch.full_like(text.ends, n_drafted)
            tokens = text.followed_by(drafts, everything)
        places = self.cache.positions(width).clamp(max=tokens.shape[1] - 1)
        return tokens.gather(1, places).clamp(min=0)


def _tails(
    hidden: Float[Tensor, "batch read hidden"], missing: Sequence[int], width: int
) -> Float[Tensor, "batch kept hidden"]:
    """Take from each row the `width` positions that start at its last missing token."""
    if min(missing) == max(missing):
        return hidden[:, missing[0] - 1 :]
    first = sent(missing, hidden.device)[:, None] - 1
    places = first + torch.arange(width, device=hidden.device)
    rows = torch.arange(len(missing), device=hidden.device)[:, None]
    return hidden[rows, places]
