"""What the compiler makes of the kernels of article 08, and what that is worth."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import final

import pandas as pd
import torch

from foredraft.articles.vector_add.cards import CARDS, DTYPES
from foredraft.kernels import rms_norm
from foredraft.kernels.compiled import MODULES, Compiled, Request, compile_specimens
from foredraft.repro.params import VectorAdd

REGISTERS, THREADS, INSTANCES, GRANULE = 65_536, 2_048, 32, 256
"""Of a multiprocessor of sm_80 and sm_90: what resident program instances share, and how many.

Registers are given to a warp by the GRANULE (CUDA C++ Programming Guide, compute capabilities).
"""


LATENCY = 600e-9
"""Seconds from a load to its value, by rule of thumb for these cards' memory; not measured here."""


@final
@dataclass(frozen=True, slots=True)
class Compilations:
    """All that is compiled for the notebook, in one process of its own."""

    launches: pd.DataFrame
    loads: pd.DataFrame
    kernels: pd.DataFrame
    aligned: Compiled
    unaligned: Compiled


def compilations(params: VectorAdd) -> Compilations:
    """Compile the addition in many ways, and every kernel for every card."""
    grid = [
        _addition(params, params.dtype, block=block, warps=warps)
        for block, warps in product(params.blocks, params.warp_counts)
    ]
    hints = [
        _addition(params, dtype, aligned=aligned)
        for dtype, aligned in product(params.dtypes, (True, False))
    ]
    others = [Request(module, target) for target, module in product(params.targets, MODULES)]
    found = compile_specimens([*grid, *hints, *others])
    launches, loads = found[: len(grid)], found[len(grid) : len(grid) + len(hints)]
    first = 2 * params.dtypes.index(params.dtype)
    return Compilations(
        launches=_launches(params, grid, launches),
        loads=_loads(hints, loads),
        kernels=_kernels(found[len(grid) + len(hints) :]),
        aligned=loads[first],
        unaligned=loads[first + 1],
    )


def _addition(
    params: VectorAdd,
    dtype: str,
    *,
    aligned: bool = True,
    block: int | None = None,
    warps: int | None = None,
) -> Request:
    launch = {"block": block or params.block, "warps": warps or params.warps}
    options = {"dtype": dtype, "aligned": aligned, "launch": launch}
    return Request("vector_add", "sm_90", options, ("add_block",))


def _launches(
    params: VectorAdd, requests: Sequence[Request], found: Sequence[Compiled]
) -> pd.DataFrame:
    """Foretell how much of the bandwidth a launch can ask for, from what was compiled.

    Little's law: bytes under way = bandwidth × latency. A program instance has its loads under way
    at once; how many instances a multiprocessor holds is what registers and threads allow.
    """
    rows = []
    size = DTYPES[params.dtype].itemsize
    card = CARDS["H100 80 GB SXM"]
    wanted = card.bandwidth * 2 / 3 * LATENCY / card.processors
    for request, made in zip(requests, found, strict=True):
        block, warps = request.options["launch"]["block"], made.warps
        resident = resident_instances(made.registers, warps)
        under_way = 2 * block * size * resident
        widest = max(made.loads, default=0)
        rows.append(
            {
                "block": block,
                "warps": warps,
                "registers": made.registers,
                "load_bytes": widest,
                "n_loads": sum(made.loads.values()),
                "resident": resident,
                "occupancy": resident * warps * 32 / THREADS,
                "bytes_under_way": under_way,
                "attainable": min(1.0, under_way / wanted),
            }
        )
    return pd.DataFrame(rows)


def resident_instances(registers: int, warps: int) -> int:
    """Count the program instances that a multiprocessor of sm_80 or sm_90 holds at a time.

    >>> resident_instances(25, 4), resident_instances(128, 8)
    (16, 2)
    """
    per_warp = -(-registers * 32 // GRANULE) * GRANULE
    by_registers = REGISTERS // (per_warp * warps)
    return min(by_registers, THREADS // (32 * warps), INSTANCES)


def _loads(requests: Sequence[Request], found: Sequence[Compiled]) -> pd.DataFrame:
    rows = []
    for request, made in zip(requests, found, strict=True):
        (width,) = made.loads
        row = {"dtype": request.options["dtype"], "aligned": request.options["aligned"]}
        row |= {"load_bytes": width, "n_loads": made.loads[width], "registers": made.registers}
        rows.append(row | {"n_stores": sum(made.stores.values())})
    return pd.DataFrame(rows)


def _kernels(found: Sequence[Compiled]) -> pd.DataFrame:
    """Give every kernel for every card: registers, spills, widest load and store."""
    rows = [
        {
            "kernel": made.kernel,
            "target": made.target,
            "warps": made.warps,
            "registers": made.registers,
            "spilled": made.spilled,
            "shared": made.shared,
            "load_bytes": max(made.loads, default=0),
            "store_bytes": max(made.stores, default=0),
            "matrix": made.matrix,
            "wide_addresses": made.wide_addresses,
        }
        for made in found
    ]
    return pd.DataFrame(rows)


def read_aloud(compiled: Compiled) -> str:
    """Give the lines of the PTX that load, add and store, and those that say where a block is."""
    told = ("ld.global", "st.global", "add.f", "add.rn", "%ctaid", "mul.wide", "setp")
    lines = [line.strip() for line in compiled.text.splitlines()]
    return "\n".join(line for line in lines if any(word in line for word in told))


def fusion(params: VectorAdd) -> pd.DataFrame:
    """Count what add + RMSNorm moves, operation by operation and fused.

    Columns: form, rows, way, operation, bytes.
    """
    rows: list[dict[str, object]] = []
    dtype = torch.bfloat16
    for form in rms_norm.FORMS:
        for n in params.rows:
            apart = rms_norm.bytes_moved_one_by_one(n, params.hidden, dtype, form=form)
            about = {"form": form, "rows": n}
            rows += [
                {**about, "way": "one by one", "operation": name, "bytes": moved}
                for name, moved in apart.items()
            ]
            fused = rms_norm.bytes_moved(n, params.hidden, dtype)
            rows.append({**about, "way": "fused", "operation": "add + RMSNorm", "bytes": fused})
    return pd.DataFrame(rows)
