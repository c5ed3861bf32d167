"""The key/value cache: static storage, a committed length per row, rollback for free.

A forward pass writes keys and values behind each row's committed length and moves nothing; whoever
drives the decoding commits the tokens that it keeps. What was written and not committed is
overwritten by the next pass, so rejecting a draft costs nothing. A query at position i sees the
slots 0…i only, all of which are committed or written by the same pass: rows of different lengths
therefore need neither left padding nor a padding mask.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import final

import torch

from foredraft.models.config import DecoderConfig
from foredraft.models.rotary import Rotation
from foredraft.types import Float, Int, Tensor

FRONT = 128
"""The least of the sizes in which a step on a GPU looks at a cache; each other is twice another."""


def fitting(n: int) -> int:
    """Give the least such size that holds n positions."""
    return FRONT << max(0, (n - 1) // FRONT).bit_length()


def sent(numbers: Sequence[int], device: torch.device) -> Int[Tensor, " numbers"]:
    """Send numbers from the host to a device without waiting for what is queued there."""
    if device.type != "cuda":
        return torch.tensor(list(numbers), dtype=torch.int64, device=device)
    pinned = torch.tensor(list(numbers), dtype=torch.int64, pin_memory=True)
    return pinned.to(device, non_blocking=True)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """What a cache holds: keys and values by layer, and the CUDA graphs captured on them.

    A tensor of either has shape [batch, kv_head, slots, head_dim]: what a head reads lies together.
    """

    keys: list[Tensor]
    values: list[Tensor]
    graphs: dict[Hashable, Callable[..., Tensor]]

    @classmethod
    def allocate(
        cls,
        config: DecoderConfig,
        batch: int,
        slots: int,
        dtype: torch.dtype,
        homes: Sequence[torch.device],
    ) -> "Storage":
        """Allocate, each layer's where its home is."""
        shape = (batch, config.n_kv_heads, slots, config.head_dim)
        keys, values = (
            [torch.zeros(shape, dtype=dtype, device=home) for home in homes] for _ in range(2)
        )
        return cls(keys, values, {})


@final
class KVCache:
    """Keys and values of every layer, for a batch of rows that advance independently.

    `keys[layer]` and `values[layer]` have shape [batch, kv_head, slots, head_dim], as many slots as
    `capacity` or more. `lengths` are the committed lengths, one a row, known on the host so that
    nothing has to ask the device.
    """

    def __init__(  # noqa: PLR0913 - a shape, a place, and what may be there already
        self,
        config: DecoderConfig,
        batch: int,
        capacity: int,
        *,
        spare: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        storage: "Storage | None" = None,
    ) -> None:
        """Allocate for `batch` rows of at most `capacity` positions.

        `spare` slots more take what is written behind a row and never kept: padding, and drafts
        beyond the end of a text. They may lie beyond the model's last position. `storage` of so
        many slots or more is taken over, if it is given.
        """
        if batch < 1 or capacity < 1:
            raise ValueError(f"batch={batch}, capacity={capacity}: both must be at least 1")
        if capacity > config.max_positions:
            raise ValueError(
                f"capacity {capacity} exceeds the model's {config.max_positions} positions: "
                "shorten the prompt or ask for fewer new tokens"
            )
        self.capacity = capacity + spare
        homes = [torch.device(device)] * config.n_layers
        storage = storage or Storage.allocate(config, batch, self.capacity, dtype, homes)
        self.keys, self.values, self.graphs = storage.keys, storage.values, storage.graphs
        self._flatten()
        slots = self.keys[0].shape[2]
        self._places = torch.arange(slots, device=device)
        self.table = config.rotation(self._places, dtype)
        starts = torch.arange(batch * config.n_kv_heads, device=device) * slots
        self._starts = starts.view(batch, config.n_kv_heads, 1)
        self._set_lengths([0] * batch)

    @property
    def batch(self) -> int:
        """Rows held."""
        return len(self.lengths)

    def commit(self, counts: int | Sequence[int]) -> None:
        """Keep the next `counts` written positions, of every row or of each."""
        counts = self._one_a_row(counts)
        if min(counts) < 0:
            raise ValueError(f"cannot commit {min(counts)} positions: rollback takes some back")
        self._set_lengths([length + n for length, n in zip(self.lengths, counts, strict=True)])

    def rollback(self, lengths: int | Sequence[int]) -> None:
        """Forget all but the first `lengths` positions, of every row or of each."""
        lengths = self._one_a_row(lengths)
        for row, (now, then) in enumerate(zip(self.lengths, lengths, strict=True)):
            if not 0 <= then <= now:
                raise ValueError(f"row {row} holds {now} positions and cannot be cut to {then}")
        self._set_lengths(lengths)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drop the rows not named, so that finished sequences cost nothing."""
        if not rows or len(set(rows)) < len(rows) or not set(rows) <= set(range(self.batch)):
            raise ValueError(
                f"cannot keep rows {list(rows)}: name some of 0 to {self.batch - 1}, each once"
            )
        index = sent(rows, self._places.device)
        self.keys = [keys[index.to(keys.device)] for keys in self.keys]
        self.values = [values[index.to(values.device)] for values in self.values]
        self.graphs = {}
        self._flatten()
        self._starts = self._starts[: len(rows)]
        self._set_lengths([self.lengths[row] for row in rows])

    def positions(self, n_new: int) -> Int[Tensor, "batch new"]:
        """Give the positions that the next n_new tokens of each row will take."""
        if self.longest + n_new > self.capacity:
            raise ValueError(
                f"{n_new} more positions after {self.longest} exceed the cache's {self.capacity}: "
                "allocate a larger one"
            )
        if self.shortest == self.longest:  # a view: nothing to compute, nothing to send
            return self._places[self.longest : self.longest + n_new].expand(self.batch, -1)
        return self._lengths[:, None] + self._places[:n_new]

    def rotation(self, positions: Int[Tensor, "batch new"]) -> Rotation:
        """Give the rotary embedding of `positions(n_new)`, the next ones of each row."""
        if self.shortest == self.longest:
            return self.table[self.longest : self.longest + positions.shape[1]]
        return self.table[positions]

    def rotation_at(self, positions: Int[Tensor, "batch new"]) -> Rotation:
        """Look the rotary embedding of any positions up."""
        return self.table[positions]

    def front(self, n_new: int) -> list[tuple[Tensor, Tensor]]:
        """Give the first slots of each layer's keys and values: so many that n_new more fit.

        That is `FRONT` times a power of two, or all: few sizes, however a text grows.
        """
        size = min(fitting(self.longest + n_new), self.capacity)
        if size not in self._fronts:
            pairs = zip(self.keys, self.values, strict=True)
            self._fronts[size] = [
                (keys[:, :, :size], values[:, :, :size]) for keys, values in pairs
            ]
        return self._fronts[size]

    def slots(self, positions: Int[Tensor, "batch new"]) -> Int[Tensor, " slots"]:
        """Say where these positions of the rows lie in storage, head by head, for `write`."""
        return (self._starts + positions[:, None]).flatten()

    def write(
        self,
        layer: int,
        slots: Int[Tensor, " slots"],
        keys: Float[Tensor, "batch new kv_head head_dim"],
        values: Float[Tensor, "batch new kv_head head_dim"],
    ) -> None:
        """Store the keys and values of one layer."""
        flat_keys, flat_values = self._flat[layer]
        flat_keys.index_copy_(0, slots, keys.transpose(1, 2).flatten(0, 2))
        flat_values.index_copy_(0, slots, values.transpose(1, 2).flatten(0, 2))

    def _flatten(self) -> None:
        """View each layer's storage as one run of slots, head after head, for `write`."""
        pairs = zip(self.keys, self.values, strict=True)
        self._flat = [(keys.flatten(0, 2), values.flatten(0, 2)) for keys, values in pairs]
        self._fronts: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def _one_a_row(self, numbers: int | Sequence[int]) -> Sequence[int]:
        numbers = [numbers] * self.batch if isinstance(numbers, int) else numbers
        if len(numbers) != self.batch:
            raise ValueError(
                f"{len(numbers)} numbers for {self.batch} rows: give one for all or one a row"
            )
        return numbers

    def _set_lengths(self, lengths: Sequence[int]) -> None:
        if max(lengths) > self.capacity:
            raise ValueError(f"length {max(lengths)} exceeds the cache's capacity {self.capacity}")
        self.lengths = tuple(lengths)
        self.longest, self.shortest = max(lengths), min(lengths)
        if self.shortest < self.longest:
            self._lengths = sent(self.lengths, self._places.device)
