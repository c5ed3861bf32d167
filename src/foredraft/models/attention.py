"""Causal attention of new tokens over all tokens so far, with or without a cache.

A `Memory` says what one forward pass can see; `attend` is the arithmetic. Dimensions: `new` query
positions of this pass, `seen` key positions, `group` query heads that share one key/value head,
`folded` the queries of such a group one after the other (group × new).
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
import torch.nn.functional as F

from foredraft.models.cache import KVCache
from foredraft.models.config import DecoderConfig
from foredraft.models.rotary import Rotation
from foredraft.types import Float, Int, Tensor

Mask = Float[Tensor, "rows 1 folded seen"]
"""What is added to the scores: 0 where a query may look, −∞ where it may not."""

Heads = Float[Tensor, "batch new head head_dim"]
NewKVHeads = Float[Tensor, "batch new kv_head head_dim"]
KVHeads = Float[Tensor, "batch kv_head seen head_dim"]


@runtime_checkable
class Memory(Protocol):
    """The keys and values that one forward pass attends to, and which of them each query sees."""

    rotation: Rotation
    """Of the new positions."""

    def extend(
        self, layer: int, keys: NewKVHeads, values: NewKVHeads, window: int | None
    ) -> tuple[KVHeads, KVHeads]:
        """Add a layer's new keys and values; give all those that a window lets any query see."""
        ...

    def is_plainly_causal(self, window: int | None) -> bool:
        """Whether each query sees itself and all before it in this pass, and nothing else."""
        ...

    def mask(self, window: int | None) -> Mask | None:
        """Give the mask of a window over what `extend` gave; None if each may look at all."""
        ...


@final
class TextMemory:
    """The memory of new tokens that follow a text, each seeing all before it and itself."""

    def __init__(
        self,
        config: DecoderConfig,
        tokens: Int[Tensor, "batch new"],
        cache: KVCache | None,
        dtype: torch.dtype,
    ) -> None:
        self.cache = cache
        self.n_new = tokens.shape[1]
        self._group = config.n_heads // config.n_kv_heads
        if cache is None:
            self.positions = torch.arange(self.n_new, device=tokens.device)[None, :]
            self.rotation: Rotation = config.rotation(self.positions, dtype)
        else:
            if cache.batch != tokens.shape[0]:
                raise ValueError(
                    f"{tokens.shape[0]} rows of tokens for a cache of {cache.batch} rows: "
                    "allocate one cache row a sequence"
                )
            self.positions = cache.positions(self.n_new)
            self.rotation = cache.rotation(self.positions)
            self._slots = cache.slots(self.positions)
        self._dtype = dtype
        self._masks: dict[int | None, Mask | None] = {}
        self._elsewhere: dict[torch.device, TextMemory] = {}

    def to(self, device: torch.device | str | int) -> "TextMemory":
        """Give the same on another device, for the layers that lie there."""
        place = torch.device(device)
        if place == self.positions.device:
            return self
        if place not in self._elsewhere:
            self._elsewhere[place] = self._moved(place)
        return self._elsewhere[place]

    def _moved(self, place: torch.device) -> "TextMemory":
        moved = copy(self)
        moved.positions, moved.rotation = self.positions.to(place), self.rotation.to(place)
        if self.cache is not None:
            moved._slots = self._slots.to(place)
        moved._masks, moved._elsewhere = {}, {}
        return moved

    def extend(
        self, layer: int, keys: NewKVHeads, values: NewKVHeads, window: int | None
    ) -> tuple[KVHeads, KVHeads]:
        """Write them to the cache, if there is one, and give the span of it that matters."""
        if self.cache is None:
            return keys.transpose(1, 2), values.transpose(1, 2)
        self.cache.write(layer, self._slots, keys, values)
        start, stop = self._span(window)
        return self.cache.keys[layer][:, :, start:stop], self.cache.values[layer][:, :, start:stop]

    def is_plainly_causal(self, window: int | None) -> bool:
        """Whether there is no text before, and no window that any query would look beyond."""
        starts = self.cache is None or self.cache.longest == 0
        return starts and self.n_new > 1 and (window is None or self.n_new <= window)

    def mask(self, window: int | None) -> Mask | None:
        """Make it once for all layers of a window."""
        if window not in self._masks:
            self._masks[window] = self._mask(window)
        return self._masks[window]

    def _span(self, window: int | None) -> tuple[int, int]:
        """Slots that any row can see, from the host's own knowledge of the lengths."""
        if self.cache is None:
            return 0, self.n_new
        start = 0 if window is None else max(0, self.cache.shortest - window + 1)
        return start, self.cache.longest + self.n_new

    def _mask(self, window: int | None) -> Mask | None:
        ragged = self.cache is not None and self.cache.shortest != self.cache.longest
        if self.n_new == 1 and not ragged:
            return None
        slots = torch.arange(*self._span(window), device=self.positions.device)
        behind = self.positions[:, None, :, None] - slots
        visible = behind >= 0
        if window is not None:
            visible &= behind < window
        mask = torch.zeros(visible.shape, dtype=self._dtype, device=visible.device)
        return mask.masked_fill_(~visible, -torch.inf).repeat(1, 1, self._group, 1)


@final
@dataclass(frozen=True)
class StaticMemory:
    """One layer's memory in tensors alone, for a graph.

    `keys` and `values` are the layer's storage; what of its first `n_seen` slots (None: all, so
    that shapes stay while a text grows) a query sees, `positions` say, in a mask. `is_long` tells
    that these are so many more than the layer's window that what a window can reach is better
    copied out of them.
    """

    rotation: Rotation
    positions: Int[Tensor, "batch new"]
    keys: KVHeads
    values: KVHeads
    group: int
    window: int | None
    is_long: bool
    n_seen: int | None = None

    def extend(
        self, layer: int, keys: NewKVHeads, values: NewKVHeads, window: int | None
    ) -> tuple[KVHeads, KVHeads]:
        """Write them to the storage, and give its first slots, or what the window can reach."""
        rows, heads = self._rows_and_heads()
        at = (rows, heads, self.positions[:, None])
        self.keys.index_put_(at, keys.transpose(1, 2))
        self.values.index_put_(at, values.transpose(1, 2))
        if not self.is_long:
            return self.keys[:, :, : self.n_seen], self.values[:, :, : self.n_seen]
        places = self._seen(window).clamp(min=0)[:, None]
        return self.keys[rows, heads, places], self.values[rows, heads, places]

    def is_plainly_causal(self, window: int | None) -> bool:
        """Say no: one rule serves all steps."""
        return False

    def mask(self, window: int | None) -> Mask | None:
        """Make it from the positions."""
        seen = self._seen(window)[:, None, None, :]
        behind = self.positions[:, None, :, None] - seen
        visible = (behind >= 0) & (seen >= 0)
        if window is not None:
            visible &= behind < window
        mask = torch.zeros(visible.shape, dtype=self.keys.dtype, device=visible.device)
        return mask.masked_fill(~visible, -torch.inf).repeat(1, 1, self.group, 1)

    def _rows_and_heads(self) -> tuple[Int[Tensor, "batch 1 1"], Int[Tensor, "kv_head 1"]]:
        """Number both, to be broadcast with positions."""
        device = self.keys.device
        rows = torch.arange(self.keys.shape[0], device=device)[:, None, None]
        return rows, torch.arange(self.keys.shape[1], device=device)[:, None]

    def _seen(self, window: int | None) -> Int[Tensor, "rows seen"]:
        """Number the positions that `extend` gives; those before the text are negative."""
        if window is None or not self.is_long:
            n_seen = self.keys.shape[2] if self.n_seen is None else self.n_seen
            return torch.arange(n_seen, device=self.keys.device)[None]
        reach = torch.arange(window - 1 + self.positions.shape[1], device=self.keys.device)
        return self.positions[:, :1] - window + 1 + reach


def attend(
    query: Heads,
    keys: KVHeads,
    values: KVHeads,
    mask: Mask | None,
    *,
    scale: float,
    softcap: float | None,
) -> Float[Tensor, "batch new query_size"]:
    """Attend with grouped heads: softmax(cap(q·k × scale)) · v, cap(s) = c tanh(s ÷ c) (Gemma-2).

    Query heads that share a key/value head are folded into the query positions, which spares
    repeating keys and values.
    """
    batch, n_new, n_heads, head_dim = query.shape
    n_kv_heads = keys.shape[1]
    group = n_heads // n_kv_heads
    folded = query.view(batch, n_new, n_kv_heads, group, head_dim).permute(0, 2, 3, 1, 4)
    folded = folded.reshape(batch, n_kv_heads, group * n_new, head_dim)
    if softcap is None:
        mixed = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scale)
    else:
        product = _summed if n_new == 1 and _is_compiled_for_cpu(query) else torch.matmul
        mixed = _softcapped(folded, keys, values, mask, scale, softcap, product)
    mixed = mixed.view(batch, n_kv_heads, group, n_new, head_dim).permute(0, 3, 1, 2, 4)
    return mixed.reshape(batch, n_new, n_heads * head_dim)


def attend_causally(
    query: Heads, keys: KVHeads, values: KVHeads, *, scale: float
) -> Float[Tensor, "batch new query_size"]:
    """Attend within one block of tokens, each to itself and those before it; no mask is built."""
    mixed = F.scaled_dot_product_attention(
        query.transpose(1, 2), keys, values, is_causal=True, scale=scale, enable_gqa=True
    )
    return mixed.transpose(1, 2).flatten(2)


def _softcapped(  # noqa: PLR0913 - what attention is made of
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float,
    product: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = product(query, keys.transpose(-1, -2)).to(wide)
    scores = softcap * torch.tanh(scores * (scale / softcap))
    if mask is not None:
        scores = scores + mask
    return product(scores.softmax(-1).to(values.dtype), values)


def _summed(left: Tensor, right: Tensor) -> Tensor:
    """Multiply matrices as a sum, which Inductor joins with what stands around it.

    For one token that takes two thirds of the time of a product that is called.
    """
    wide = torch.promote_types(left.dtype, torch.float32)
    return (left.to(wide)[..., None] * right.to(wide)[..., None, :, :]).sum(-2).to(left.dtype)


def _is_compiled_for_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and torch.compiler.is_compiling()
