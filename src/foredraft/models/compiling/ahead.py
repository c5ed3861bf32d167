"""The steps of a decoder on a processor, compiled once, ahead of time, and kept in files.

Called one by one, the products and sums of a step of a small model cost more than the reading of
its weights: each product of `pocket-llama` takes some 30 µs before it reads anything. Inductor,
given the weights as constants, writes the products for these very shapes, weights laid out for the
processor's matrix units, and joins what lies between them. That takes a minute or two for each kind
of step, so what it makes is a file, named by all that it depends on.

All branches of a pass are in one piece, so each skip plan is a kind of its own: the empty one, and
those that are named beforehand. What follows another plan runs as it stands.
"""

import contextlib
import hashlib
import inspect
import io
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import nn
from torch.export import Dim

from foredraft import imports, paths
from foredraft.files import digest
from foredraft.machine import this_machine
from foredraft.models.attention import StaticMemory
from foredraft.models.cache import FRONT, KVCache, Storage
from foredraft.models.compiling.graphs import LONGEST, MOST_ROWS, Layered, check_batch
from foredraft.models.config import DecoderConfig
from foredraft.models.rotary import Rotation
from foredraft.models.skip import SkipPlan
from foredraft.types import Hidden, Int, Tensor, Tokens

SETTINGS: Mapping[str, object] = {
    "freezing": True,
    "max_autotune": True,
    "max_autotune_gemm_backends": "CPP,ATEN",  # timed against each other, shape by shape
    "autotune_num_choices_displayed": 0,
}

_LOG = logging.getLogger(__name__)


@runtime_checkable
class Whole(Layered, Protocol):
    """What compiling ahead of time needs of a decoder, beside the steps themselves."""

    def new_cache(self, batch: int, capacity: int, *, spare: int = 0) -> KVCache:
        """Allocate a cache."""
        ...

    def unpacked(self) -> "Whole":
        """Give the same weights in their plain layout."""
        ...

    def state_dict(self) -> Mapping[str, Tensor]:
        """Give the weights in their plain layout, by name."""
        ...


Graph = Callable[..., Tensor]


@final
class AheadSteps:
    """The compiled steps of one decoder, read or made when they are first needed."""

    def __init__(self, plans: Iterable[SkipPlan] = ()) -> None:
        """Compile passes of all branches, and those that follow these plans."""
        self.plans = {SkipPlan(), *plans}
        self._graphs: dict[object, Graph] = {}
        self._folder: Path | None = None

    def new_cache(self, decoder: Any, batch: int, capacity: int, *, spare: int = 0) -> KVCache:
        """Allocate a cache, with one slot that is never used.

        So a step never looks at all there are, which would be another kind to the compiler.
        """
        config, dtype, device = decoder.config, decoder.dtype, decoder.device
        homes = [device] * config.n_layers
        storage = Storage.allocate(config, batch, capacity + spare + 1, dtype, homes)
        place = {"dtype": dtype, "device": device, "storage": storage}
        return KVCache(config, batch, capacity, spare=spare, **place)

    def takes(self, tokens: Tokens, cache: KVCache, plan: SkipPlan, start: Hidden | None) -> bool:
        """Whether this is a step, of few new tokens behind a text, whose plan is compiled.

        A pass that starts after some layers ends what a draft, left after these, began.
        """
        is_step = cache.longest > 0 and 0 < tokens.shape[1] <= LONGEST
        is_ours = cache.capacity < cache.keys[0].shape[2]
        if start is not None:
            plan = SkipPlan.early_exit(0, len(cache.keys)) - plan
        return is_step and is_ours and plan in self.plans

    def hidden(
        self,
        decoder: Whole,
        tokens: Int[Tensor, "batch new"],
        cache: KVCache,
        plan: SkipPlan,
        start: Hidden | None,
    ) -> Hidden:
        """Do what `Decoder.hidden` does, in a step."""
        check_batch(tokens, cache)
        batch, n_new = tokens.shape
        n_seen = cache.longest + n_new
        reached = _reached(decoder.config, n_seen)
        kind = Kind(batch == 1, n_new == 1, reached, plan, start is not None)
        graph = self._graph(decoder, kind, lambda: _step_exported(decoder.unpacked(), kind))
        return graph(
            tokens.long().contiguous() if start is None else start.contiguous(),
            cache.positions(n_new).contiguous(),
            cache.table.cos,
            cache.table.sin,
            torch.arange(n_seen),
            *cache.keys,
            *cache.values,
        )

    def logits(self, decoder: Whole, hidden: Tensor) -> Tensor:
        """Do what `Decoder.logits` does, of few positions."""
        rows = hidden.reshape(-1, hidden.shape[-1]).contiguous()
        is_one = len(rows) == 1
        graph = self._graph(decoder, is_one, lambda: _head_exported(decoder.unpacked(), is_one))
        return graph(rows).view(*hidden.shape[:-1], -1)

    def _graph(
        self, decoder: Whole, kind: object, export: Callable[[], torch.export.ExportedProgram]
    ) -> Graph:
        """Give the graph of a kind of step: at hand, in a file, or made now."""
        if kind not in self._graphs:
            self._folder = self._folder or paths.compiled_steps(_fingerprint(decoder))
            file = self._folder / f"{hashlib.sha256(repr(kind).encode()).hexdigest()[:16]}.pt2"
            if not file.is_file():
                _compile(export, file)
            self._graphs[kind] = _loaded(file)
        return self._graphs[kind]


@final
@dataclass(frozen=True, slots=True)
class Kind:
    """What sets the graph of one step apart from that of another.

    `reached` are the windows so much shorter than the part of the cache that is looked at, that
    what they reach is better copied out of it. A step that is begun goes on from the residual
    stream, not from tokens.
    """

    is_one_row: bool
    is_one_token: bool
    reached: tuple[int, ...]
    plan: SkipPlan
    is_begun: bool


class _Step(nn.Module):
    """All branches of a decoder, as a function of tensors alone."""

    def __init__(self, decoder: Any, kind: Kind) -> None:
        super().__init__()
        self.decoder, self.kind = decoder, kind

    def forward(  # noqa: PLR0913 - a graph's inputs are tensors alone
        self,
        given: Tensor,
        positions: Tensor,
        cos: Tensor,
        sin: Tensor,
        seen: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
    ) -> Tensor:
        config = self.decoder.config
        group = config.n_heads // config.n_kv_heads
        rotation = Rotation(cos, sin)[positions]
        hidden = given if self.kind.is_begun else self.decoder.embedded(given)
        layers = zip(self.decoder.layers, config.windows, keys, values, strict=True)
        for layer, window, own_keys, own_values in layers:
            sight = window, window in self.kind.reached, seen.shape[0]
            memory = StaticMemory(rotation, positions, own_keys, own_values, group, *sight)
            hidden = layer(hidden, memory, self.kind.plan)
        return hidden


class _Head(nn.Module):
    """The final norm and the head."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, rows: Tensor) -> Tensor:
        return self.decoder.all_logits(rows)


def _step_exported(decoder: Whole, kind: Kind) -> torch.export.ExportedProgram:
    """Trace a step of a kind; what is not one may have any size."""
    config = decoder.config
    n_seen = max([FRONT, *(4 * (window + LONGEST) for window in kind.reached)])
    batch, n_new = 1 if kind.is_one_row else 3, 1 if kind.is_one_token else 5
    cache = decoder.new_cache(batch, 1, spare=2 * n_seen)
    given = torch.zeros(batch, n_new, dtype=torch.int64)
    if kind.is_begun:
        given = torch.zeros(batch, n_new, config.hidden_size, dtype=decoder.dtype)
    positions = cache.positions(n_new).contiguous()
    rows = {} if kind.is_one_row else {0: Dim("rows", min=2)}
    new = rows if kind.is_one_token else rows | {1: Dim("new", min=2, max=LONGEST)}
    slots, seen = Dim("slots", min=2), Dim("seen", min=2)
    stored = [rows | {2: slots}] * config.n_layers
    table = {0: slots}
    return torch.export.export(
        _Step(decoder, kind),
        (
            given,
            positions,
            cache.table.cos,
            cache.table.sin,
            torch.arange(n_seen),
            cache.keys,
            cache.values,
        ),
        dynamic_shapes=(new, new, table, table, {0: seen}, stored, stored),
        prefer_deferred_runtime_asserts_over_guards=True,
    )


def _head_exported(decoder: Whole, is_one: bool) -> torch.export.ExportedProgram:
    """Trace the head, for one position or any number of them."""
    rows = torch.zeros(1 if is_one else 5, decoder.config.hidden_size, dtype=decoder.dtype)
    sizes = {} if is_one else {0: Dim("rows", min=2, max=MOST_ROWS)}
    return torch.export.export(_Head(decoder), (rows,), dynamic_shapes=(sizes,))


def _compile(export: Callable[[], torch.export.ExportedProgram], file: Path) -> None:
    """Make a file of a graph, whole or not at all."""
    _require_compiler()
    _LOG.warning("compiling a step for this processor, once: a minute or two")
    file.parent.mkdir(parents=True, exist_ok=True)
    quietly = contextlib.redirect_stderr(io.StringIO())  # which trials win is printed there
    part = TemporaryDirectory(dir=file.parent)
    with torch.inference_mode(False), torch.no_grad(), quietly, part as folder:
        made = torch._inductor.aoti_compile_and_package(
            export(), package_path=str(Path(folder) / file.name), inductor_configs=dict(SETTINGS)
        )
        os.replace(made, file)


def _require_compiler() -> None:
    from torch._inductor import cpp_builder, exc  # takes longer to import than torch

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, OSError) as error:
        raise ValueError(
            "no C++ compiler was found, which compiled steps need on a processor: install g++, or "
            "name one in CXX, or load the model without compile"
        ) from error


def _loaded(file: Path) -> Graph:
    """Give what a file holds as a function of its tensors, one by one.

    The package's own call reads the form of its arguments anew each time, which takes as long as a
    layer of a small model.
    """
    loader = torch._inductor.aoti_load_package(str(file)).loader
    return lambda *tensors: loader.boxed_run(list(tensors))[0]


def _reached(config: DecoderConfig, n_seen: int) -> tuple[int, ...]:
    windows = {window for window in config.windows if window is not None}
    return tuple(sorted(window for window in windows if n_seen > 2 * (window + LONGEST)))


def _fingerprint(decoder: Whole) -> str:
    """Name what compiled steps depend on: weights, shape, sources, torch, processor, threads."""
    parts = [repr(decoder.config), torch.__version__, torch.backends.cpu.get_cpu_capability()]
    parts += [this_machine("cpu").name, str(torch.get_num_threads()), repr(dict(SETTINGS))]
    sources = imports.closure(Path(inspect.getfile(type(decoder))))
    parts += [digest(path) for path in sorted(sources)]
    summed = hashlib.sha256("\n".join(parts).encode())
    for name, tensor in decoder.state_dict().items():
        summed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        summed.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return summed.hexdigest()[:16]
