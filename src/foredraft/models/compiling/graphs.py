"""The steps of a decoder, compiled: few graphs for all layers, plans and lengths of text.

torch.compile makes a graph of one layer, whose weights, keys and values go into it like any other
tensor; so all layers run the same graph, and a skip plan says outside of it which of them run. The
number of new tokens and how far the cache is looked at are symbols in it. On a GPU all layers of a
step are captured once more, as a CUDA graph by number of tokens, plan and front of the cache, which
costs no compilation; it is replayed from then on.
"""

import weakref
from collections.abc import Callable, Hashable
from itertools import islice
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import nn

from foredraft.models.attention import StaticMemory
from foredraft.models.cache import KVCache, Storage, fitting
from foredraft.models.config import DecoderConfig
from foredraft.models.skip import SkipPlan
from foredraft.types import Hidden, Int, Tensor, Tokens

LONGEST = 16
"""New tokens of a row that are still a step; more are a prefill, which is not compiled."""

MOST_ROWS = 256
"""Positions, of all rows, whose logits are still a step's."""

MOST_CAPTURED = 64
"""CUDA graphs kept for a cache; each takes a copy of a step's inputs and its output."""

MOST_SPARE = 4
"""Storages kept, with the graphs that were captured on them, after their caches are gone."""


@runtime_checkable
class Layered(Protocol):
    """What a step needs of a decoder."""

    config: DecoderConfig
    layers: nn.ModuleList

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    def embedded(self, tokens: Tokens) -> Hidden:
        """Look the tokens up."""
        ...

    def all_logits(self, hidden: Tensor) -> Tensor:
        """Apply the final norm and the head."""
        ...


Part = Callable[[Any, Tensor, StaticMemory], Tensor]
"""Some of a layer's branches: layer, hidden, memory → hidden."""


def _both(layer: Any, hidden: Tensor, memory: StaticMemory) -> Tensor:
    hidden = hidden + layer.attention(hidden, memory)
    return hidden + layer.mlp(hidden)


def _attention(layer: Any, hidden: Tensor, memory: StaticMemory) -> Tensor:
    return hidden + layer.attention(hidden, memory)


def _mlp(layer: Any, hidden: Tensor, memory: StaticMemory) -> Tensor:
    return hidden + layer.mlp(hidden)


def _logits(decoder: Any, hidden: Tensor) -> Tensor:
    return decoder.all_logits(hidden)


@final
class CompiledSteps:
    """The graphs of one decoder, made when they are first needed."""

    def __init__(self) -> None:
        self._graphs: dict[Hashable, Callable[..., Tensor]] = {}
        self._spare: dict[Hashable, list[Storage]] = {}

    def new_cache(self, decoder: Layered, batch: int, capacity: int, *, spare: int = 0) -> KVCache:
        """Allocate a cache, or take over the storage of one that is gone, and its CUDA graphs."""
        place = {"dtype": decoder.dtype, "device": decoder.device}
        spare = fitting(capacity + spare) - capacity  # few sizes, so that a storage fits again
        key = (batch, capacity + spare)
        with torch.inference_mode(False):  # so that it can be written in any mode later
            left = self._spare.get(key)
            storage = left.pop() if left else _storage(decoder, *key)
            for layer in (*storage.keys, *storage.values):
                layer.zero_()
            cache = KVCache(decoder.config, batch, capacity, spare=spare, storage=storage, **place)
        weakref.finalize(cache, _keep, self._spare, key, storage)
        return cache

    def takes(
        self,
        tokens: Int[Tensor, "batch new"],
        cache: KVCache,
        plan: SkipPlan,
        start: Hidden | None,
    ) -> bool:
        """Whether this is a step: few new tokens, behind a text."""
        return cache.longest > 0 and 0 < tokens.shape[1] <= LONGEST

    def hidden(
        self,
        decoder: Layered,
        tokens: Int[Tensor, "batch new"],
        cache: KVCache,
        plan: SkipPlan,
        start: Hidden | None,
    ) -> Hidden:
        """Do what `Decoder.hidden` does, in a step."""
        check_batch(tokens, cache)
        positions = cache.positions(tokens.shape[1]).clone(memory_format=torch.contiguous_format)
        inputs = (tokens.contiguous(), positions) if start is None else (start, positions)
        run = _Pass(self, decoder, cache, plan, tokens.shape[1], start is not None)
        if decoder.device.type != "cuda":
            return run(*inputs)
        return _replayed(run, cache, inputs)(*inputs)

    def logits(self, decoder: Layered, hidden: Tensor) -> Tensor:
        """Do what `Decoder.logits` does, of few positions."""
        rows = hidden.reshape(-1, hidden.shape[-1])
        if rows.storage_offset():  # where a tensor starts in its storage would be part of its kind
            rows = rows.clone()
        graph = self._graph(_logits, (len(rows) == 1,), (rows,))
        return graph(decoder, rows).view(*hidden.shape[:-1], -1)

    def part(self, part: Part, layer: nn.Module, hidden: Hidden, memory: StaticMemory) -> Hidden:
        """Run a part of a layer, compiled."""
        (batch, n_new), keys = hidden.shape[:2], memory.keys
        is_whole = keys.stride(1) == keys.shape[2] * keys.stride(2)
        kind = (memory.window, memory.is_long, batch == 1, n_new == 1, batch == n_new, is_whole)
        rotation = memory.rotation
        sized = (hidden, memory.positions, rotation.cos, rotation.sin)
        stored = (keys, memory.values)
        return self._graph(part, kind, sized, stored)(layer, hidden, memory)

    def _graph(
        self,
        function: Callable[..., Tensor],
        kind: tuple[object, ...],
        sized: tuple[Tensor, ...],
        stored: tuple[Tensor, ...] = (),
    ) -> Callable[..., Tensor]:
        """Give the graph of a function for one kind of input.

        The first two sizes of `sized` are symbols in it, but for those that are 1, and of keys and
        values, `stored`, rows and slots.
        """
        key = (function, *kind)
        if key not in self._graphs:
            varied = [(tensor, range(tensor.dim() - 1)[:2]) for tensor in sized]
            for tensor, dimensions in [*varied, *((tensor, (0, 2)) for tensor in stored)]:
                for dimension in dimensions:
                    torch._dynamo.maybe_mark_dynamic(tensor, dimension)
            settings: dict[str, Any] = {"fullgraph": True, "isolate_recompiles": True}
            self._graphs[key] = torch.compile(function, **settings)
        return self._graphs[key]


@final
class _Pass:
    """All layers of a step: a function of tensors alone, so that it can be captured."""

    def __init__(
        self,
        steps: CompiledSteps,
        decoder: Layered,
        cache: KVCache,
        plan: SkipPlan,
        n_new: int,
        is_begun: bool,
    ) -> None:
        self.steps, self.decoder, self.cache, self.plan = steps, decoder, cache, plan
        self.is_begun, self.front = is_begun, cache.front(n_new)
        self.key = (n_new, self.front[0][0].shape[2], plan, is_begun)

    def __call__(self, given: Tokens | Hidden, positions: Int[Tensor, "batch new"]) -> Hidden:
        hidden = given if self.is_begun else self.decoder.embedded(given)
        rotation = self.cache.rotation_at(positions)
        config = self.decoder.config
        group = config.n_heads // config.n_kv_heads
        layers = zip(self.decoder.layers, config.windows, self.front, strict=True)
        for index, (layer, window, (keys, values)) in enumerate(layers):
            part = _part(self.plan, index)
            if part is not None:
                is_long = window is not None and keys.shape[2] > 2 * (window + LONGEST)
                memory = StaticMemory(rotation, positions, keys, values, group, window, is_long)
                hidden = self.steps.part(part, layer, hidden, memory)
        return hidden


def is_few(hidden: Tensor) -> bool:
    """Whether these are few enough positions for a compiled head."""
    return 0 < hidden.numel() // hidden.shape[-1] <= MOST_ROWS


def check_batch(tokens: Int[Tensor, "batch new"], cache: KVCache) -> None:
    """Raise ValueError unless a cache has a row for each row of tokens."""
    if cache.batch != tokens.shape[0]:
        raise ValueError(
            f"{tokens.shape[0]} rows of tokens for a cache of {cache.batch} rows: allocate one "
            "cache row a sequence"
        )


def _part(plan: SkipPlan, layer: int) -> Part | None:
    """Say what of a layer a plan leaves on."""
    if layer in plan.mlp:
        return None if layer in plan.attn else _attention
    return _mlp if layer in plan.attn else _both


def _storage(decoder: Layered, batch: int, slots: int) -> Storage:
    config: DecoderConfig = decoder.config
    homes = [decoder.device] * config.n_layers
    return Storage.allocate(config, batch, slots, decoder.dtype, homes)


def _keep(spare: dict[Hashable, list[Storage]], key: Hashable, storage: Storage) -> None:
    """Keep what a cache leaves behind, and let go of what has waited longest."""
    spare.setdefault(key, []).append(storage)
    if sum(map(len, spare.values())) > MOST_SPARE:
        oldest = next(held for held in spare.values() if held)
        oldest.pop(0)


@final
class _Captured:
    """A step as a CUDA graph: inputs are copied in, the graph replayed, its output copied out."""

    def __init__(self, run: _Pass, inputs: tuple[Tensor, ...]) -> None:
        self.inputs = [given.clone() for given in inputs]
        self.table = run.cache.table  # which it reads, and a cache takes with it
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):  # compiles, and lets libraries allocate
            run(*self.inputs)
        torch.cuda.current_stream().wait_stream(beside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = run(*self.inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.output.clone()


def _replayed(run: _Pass, cache: KVCache, inputs: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    """Give the graph of such a step on this cache; the least recently used makes room for it."""
    captured = cache.graphs.pop(run.key, None) or _Captured(run, inputs)
    cache.graphs[run.key] = captured
    for key in list(islice(cache.graphs, max(0, len(cache.graphs) - MOST_CAPTURED))):
        del cache.graphs[key]
    return captured
