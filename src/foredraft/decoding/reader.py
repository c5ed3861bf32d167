"""Read a growing text with a model and its cache: each pass takes what is new, and drafts on top.

Target and draft model read by the same rule. What the cache holds of a row is valid as far as the
verified text goes, less its last token; the rest is forgotten, for free, before the next pass.
"""

from collections.abc import Sequence
from typing import final

import torch

from foredraft.decoding.text import Text
from foredraft.models.decoder import Decoder
from foredraft.types import Float, Int, Tensor


@final
class Reader:
    """A model at work on a batch of texts, with the keys and values of what it has read."""

    def __init__(self, model: Decoder, batch: int, capacity: int, spare: int) -> None:
        """Allocate for texts of at most `capacity`, with `spare` slots for what is not kept."""
        self.model = model
        self.cache = model.new_cache(batch, capacity, spare=spare)

    def read(
        self, text: Text, drafts: Int[Tensor, "batch drafted"] | None = None
    ) -> Float[Tensor, "batch positions vocab"]:
        """Read what is new in each row, then the drafts; give the logits after the text and each.

        Rows with less to read than others are padded behind their drafts, where the next pass
        overwrites.
        """
        self.forget(text)
        missing = [end - held for end, held in zip(text.lengths, self.cache.lengths, strict=True)]
        n_drafted = 0 if drafts is None else drafts.shape[1]
        width = max(missing) + n_drafted
        hidden = self.model.hidden(self._tokens(text, drafts, width), self.cache)
        self.cache.commit([n + n_drafted for n in missing])
        return self.model.logits(_tails(hidden, missing, n_drafted + 1))

    def step(self, tokens: Int[Tensor, " batch"]) -> Float[Tensor, "batch vocab"]:
        """Read one more token in each row, on top of all that was read; give the logits after it."""
        hidden = self.model.hidden(tokens[:, None], self.cache)
        self.cache.commit(1)
        return self.model.logits(hidden[:, -1])

    def forget(self, text: Text) -> None:
        """Keep of each row what belongs to its text, and not the last token, which is yet to read."""
        held = self.cache.lengths
        valid = [min(n, end - 1) for n, end in zip(held, text.lengths, strict=True)]
        if tuple(valid) != held:
            self.cache.rollback(valid)

    def _tokens(
        self, text: Text, drafts: Int[Tensor, "batch drafted"] | None, width: int
    ) -> Int[Tensor, "batch width"]:
        tokens = text.tokens
        if drafts is not None and drafts.shape[1]:
            everything = torch.full_like(text.ends, drafts.shape[1])
            tokens = text.followed_by(drafts, everything)
        places = self.cache.positions(width).clamp(max=tokens.shape[1] - 1)
        return tokens.gather(1, places).clamp(min=0)


def _tails(
    hidden: Float[Tensor, "batch read hidden"], missing: Sequence[int], width: int
) -> Float[Tensor, "batch kept hidden"]:
    """Take from each row the `width` positions that start at its last missing token."""
    if min(missing) == max(missing):
        return hidden[:, missing[0] - 1 :]
    first = torch.tensor(missing, device=hidden.device)[:, None] - 1
    places = first + torch.arange(width, device=hidden.device)
    return hidden.take_along_dim(places[..., None], 1)
