"""Where the tokens of a padded batch lie once the padding is gone.

Rows are sorted by length and laid one after another, so that rows of one length are a block
[rows, length] of the packed tokens without a copy: attention works block by block and needs no
mask, and everything else sees one matrix [tokens, features] of real tokens only.
"""

from dataclasses import dataclass
from itertools import groupby
from typing import final

import torch

from foredraft.types import Bool, Float, Int, Tensor

Mask = Bool[Tensor, "batch seq"] | Int[Tensor, "batch seq"]
"""True or 1 where a token is, False or 0 where padding is."""


@final
@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of one length, next to each other in the packed tokens."""

    rows: int
    length: int

    @property
    def size(self) -> int:
        """How many tokens these are."""
        return self.rows * self.length


@final
@dataclass(frozen=True, slots=True)
class Layout:
    """The order of a batch's tokens, [batch, seq], in a packed matrix, [tokens, features]."""

    batch: int
    seq: int
    blocks: tuple[Block, ...]
    firsts: Int[Tensor, " batch"]
    """Which packed token is the first real one of each row."""
    places: Int[Tensor, " tokens"] | None = None
    """Where in the flattened batch each packed token stands; None: all places, in order."""
    mask: Bool[Tensor, "batch seq"] | None = None
    """Set if padding was left in, and attention must not see it."""

    @classmethod
    def dense(cls, batch: int, seq: int, device: torch.device) -> "Layout":
        """Lay out a batch without padding."""
        firsts = torch.arange(batch, device=device) * seq
        return cls(batch, seq, (Block(batch, seq),), firsts)

    @classmethod
    def padded(cls, mask: Mask) -> "Layout":
        """Leave the padding in: no shape depends on what the mask holds."""
        batch, seq = mask.shape
        firsts = torch.arange(batch, device=mask.device) * seq + mask.int().argmax(1)
        return cls(batch, seq, (Block(batch, seq),), firsts, mask=mask.bool())

    @classmethod
    def packed(cls, mask: Mask) -> "Layout":
        """Leave the padding out, wherever in a row it is; asks the device for the lengths.

        Raises ValueError if a row holds nothing but padding.
        """
        batch, seq = mask.shape
        lengths = mask.bool().sum(1).tolist()
        if min(lengths, default=seq) == seq:
            return cls.dense(batch, seq, mask.device)
        if 0 in lengths:
            raise ValueError(
                f"row {lengths.index(0)} of attention_mask is all padding: leave such rows out"
            )
        order = sorted(range(batch), key=lengths.__getitem__)
        grouped = groupby(lengths[row] for row in order)
        blocks = tuple(Block(len(list(rows)), length) for length, rows in grouped)
        rows = torch.tensor(order, device=mask.device)
        row, column = mask.bool()[rows].nonzero(as_tuple=True)
        sizes = torch.tensor([lengths[row] for row in order], device=mask.device)
        firsts = torch.empty_like(rows).index_copy_(0, rows, sizes.cumsum(0) - sizes)
        return cls(batch, seq, blocks, firsts, places=rows[row] * seq + column)

    def positions(self) -> Int[Tensor, " tokens"]:
        """Give the column in which each packed token stands."""
        if self.places is not None:
            return self.places % self.seq
        return torch.arange(self.seq, device=self.firsts.device).repeat(self.batch)

    def pack(self, values: Int[Tensor, "batch seq"]) -> Int[Tensor, " tokens"]:
        """Lay what each place of a batch holds out as packed tokens."""
        flat = values.flatten()
        return flat if self.places is None else flat[self.places]

    def unpack(
        self, packed: Float[Tensor, "tokens features"]
    ) -> Float[Tensor, "batch seq features"]:
        """Put packed tokens back where they stand, with zeros where padding is."""
        if self.mask is not None:
            packed = packed * self.mask.view(-1, 1)
        if self.places is not None:
            empty = packed.new_zeros(self.batch * self.seq, packed.shape[1])
            packed = empty.index_copy_(0, self.places, packed)
        return packed.view(self.batch, self.seq, -1)


def mean_pool(
    hidden: Float[Tensor, "batch seq hidden"], attention_mask: Mask | None = None
) -> Float[Tensor, "batch hidden"]:
    """Average each row over its real tokens, as sentence encoders such as MiniLM do."""
    if attention_mask is None:
        return hidden.mean(1)
    weight = attention_mask.to(hidden.dtype)
    return torch.einsum("bsh,bs->bh", hidden, weight) / weight.sum(1, keepdim=True)
