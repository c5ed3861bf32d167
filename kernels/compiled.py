"""What the compiler makes of a kernel: instructions, registers and spills, for cards not at hand.

Compiling needs no device, but it cannot share a process with the interpreter, nor a cache with
earlier work, which would hide a kernel that no longer compiles. So `compile_specimens` starts a
process of its own, with a cache folder that is thrown away.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, final

import torch

from foredraft.kernels import (
    decode_attention,
    gated_linear_unit,
    rms_norm,
    sample_tokens,
    vector_add,
    verify_drafts,
)
from foredraft.kernels.environment import VARIABLE, is_interpreted, tl, triton
from foredraft.kernels.specimen import Specimen

MODULES: Mapping[str, ModuleType] = {
    "vector_add": vector_add,
    "rms_norm": rms_norm,
    "gated_linear_unit": gated_linear_unit,
    "decode_attention": decode_attention,
    "sample_tokens": sample_tokens,
    "verify_drafts": verify_drafts,
}
"""The modules that have kernels to compile, by name."""

TARGETS: Mapping[str, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "gfx942": ("hip", "gfx942", 64),
}
"""Cards by the name of their instruction set: A100, H100, MI300. Backend, architecture, warp."""

OPTIONS = "TRITON_DEFAULT_FP_FUSION"
"""Whether a product and a sum may become one operation; Triton's own default will change."""

ACCESS = r"\b(ld|st)\.global(?:\.\w+)*?(?:\.(v[248]))?\.[busf](\d+)\s+[^;]*?\[\s*(%\w+)"
"""A load from or store to global memory in PTX: which, how many at once, bits of each, address."""


@final
@dataclass(frozen=True, slots=True)
class Request:
    """Kernels to compile: `specimens(**options)` of a module of foredraft.kernels, for a target.

    An option that is a torch type or a `Launch` is written as a name or a mapping of its fields.
    `only` names those that are wanted; without a name, all.
    """

    module: str
    target: str
    options: Mapping[str, Any] = field(default_factory=dict)
    only: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Compiled:
    """What was compiled, and what came of it.

    `loads` and `stores` count the instructions on global memory by how many bytes of a thread each
    moves. `spilled` bytes of registers had to be put into memory. `wide_addresses`: see there.
    """

    kernel: str
    target: str
    warps: int
    registers: int
    spilled: int
    shared: int
    loads: Mapping[int, int]
    stores: Mapping[int, int]
    matrix: bool
    wide_addresses: bool
    text: str


def compile_specimens(requests: Sequence[Request]) -> list[Compiled]:
    """Compile in a process of its own; ValueError, with what the compiler said, if it fails."""
    for request in requests:
        if request.target not in TARGETS:
            raise ValueError(
                f"target {request.target!r} is unknown; choose one of {', '.join(TARGETS)}"
            )
        if request.module not in MODULES:
            raise ValueError(
                f"module {request.module!r} is unknown; choose one of {', '.join(MODULES)}"
            )
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            VARIABLE: "0",
            OPTIONS: "1",
            "TRITON_CACHE_DIR": folder,
            "CUDA_VISIBLE_DEVICES": "",
        }
        # -P: the folder that this runs in may hold a package of the name of one that is imported
        command = [sys.executable, "-P", "-W", "ignore", "-m", "foredraft.kernels.compiled"]
        asked = json.dumps([asdict(request) for request in requests])
        done = subprocess.run(
            command, input=asked, env=environment, check=False, capture_output=True, text=True
        )
    if done.returncode:
        raise ValueError(f"the kernels do not compile: {done.stderr.strip()[-2000:]}")
    return [_read(each) for each in json.loads(done.stdout)]


def compiled_here(request: Request) -> list[Compiled]:
    """Compile in this process, which must not be one that interprets."""
    if is_interpreted(tl.sum):
        raise ValueError("kernels are interpreted in this process: use compile_specimens")
    module = MODULES[request.module]
    options = {name: _revived(module, name, value) for name, value in request.options.items()}
    return [
        _compiled(name, specimen, request.target)
        for name, specimen in module.specimens(**options).items()
        if not request.only or name in request.only
    ]


def wide_addresses(ptx: str) -> bool:
    """Say whether addresses are 64-bit registers and no block's number is scaled with 32 bits.

    The number of a program instance times the size of its block is where 2³¹ is first passed.
    """
    numbers = re.findall(r"mov\.u32\s+(%r\d+), %ctaid\.x", ptx)
    scaled = r"(?:shl\.b32|mul\.lo\.\w+|mad\.lo\.\w+)\s+%r\d+, (?:{}),".format("|".join(numbers))
    registers = [register for *_, register in re.findall(ACCESS, ptx)]
    is_wide = all(register.startswith("%rd") for register in registers)
    return is_wide and not (numbers and re.search(scaled, ptx))


def wide_indices(ttir: str) -> bool:
    """Say the same of Triton's own language, before it is anybody's instructions."""
    numbers = re.findall(r"(%\w+) = tt\.get_program_id x", ttir)
    scaled = (rf"arith\.muli {number}, .*: i32" for number in numbers)
    return not any(re.search(each, ttir) for each in scaled)


def _revived(module: Any, name: str, value: Any) -> Any:
    if name == "dtype":
        return getattr(torch, value)
    return module.Launch(**value) if name == "launch" else value


def _compiled(name: str, specimen: Specimen, target: str) -> Compiled:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = specimen.kernel.arg_names
    signature = {each: specimen.signature.get(each, "constexpr") for each in names}
    attributes = {(names.index(each),): [["tt.divisibility", 16]] for each in specimen.aligned}
    source = ASTSource(specimen.kernel, signature, dict(specimen.constants), attributes)
    backend, architecture, warp = TARGETS[target]
    made = triton.compile(
        source,
        target=GPUTarget(backend, architecture, warp),
        options={"num_warps": specimen.warps},
    )
    facts = _nvidia(made) if backend == "cuda" else _amd(made)
    return Compiled(name, target, specimen.warps, shared=made.metadata.shared, **facts)


def _nvidia(made: Any) -> dict[str, Any]:
    text = made.asm["ptx"]
    usage = _resources(made.asm["cubin"])
    accesses = re.findall(ACCESS, text)
    return {
        "registers": usage["REG"],
        "spilled": usage["LOCAL"] + usage["STACK"],
        "loads": _by_width(accesses, "ld"),
        "stores": _by_width(accesses, "st"),
        "matrix": "mma" in text,
        "wide_addresses": wide_addresses(text) and wide_indices(made.asm["ttir"]),
        "text": text,
    }


def _by_width(accesses: Sequence[tuple[str, ...]], what: str) -> dict[int, int]:
    """Count accesses by the bytes that each moves for a thread."""
    widths = [
        int(vector.removeprefix("v") or 1) * int(bits) // 8
        for kind, vector, bits, *_ in accesses
        if kind == what
    ]
    return {width: widths.count(width) for width in sorted(set(widths))}


def _resources(cubin: bytes) -> dict[str, int]:
    """Ask the tool that comes with Triton how many registers and bytes a kernel takes."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        tool = knobs.nvidia.cuobjdump.path
        told = subprocess.run(
            [tool, "-res-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    return {name: int(number) for name, number in re.findall(r"\b([A-Z]+):(\d+)", told)}


def _amd(made: Any) -> dict[str, Any]:
    text = made.asm["amdgcn"]
    told = {
        name: int(number)
        for name, number in re.findall(r"\.(vgpr_count|vgpr_spill_count):\s+(\d+)", text)
    }
    found = re.findall(
        r"\b(?:global|buffer)_(load|store)_(ubyte|byte|ushort|short|dword)(?:x([234]))?", text
    )
    sizes = {"ubyte": 8, "byte": 8, "ushort": 16, "short": 16, "dword": 32}
    accesses = [
        ("ld" if kind == "load" else "st", f"v{many}" if many else "", str(sizes[size]))
        for kind, size, many in found
    ]
    return {
        "registers": told["vgpr_count"],
        "spilled": 4 * told["vgpr_spill_count"],
        "loads": _by_width(accesses, "ld"),
        "stores": _by_width(accesses, "st"),
        "matrix": "v_mfma" in text,
        "wide_addresses": wide_indices(made.asm["ttir"]),
        "text": text,
    }


def _read(content: dict[str, Any]) -> Compiled:
    """Turn JSON's keys, which are text, back into numbers."""
    numbers = {
        name: {int(width): count for width, count in content[name].items()}
        for name in ("loads", "stores")
    }
    return Compiled(**{**content, **numbers})


def main() -> None:
    """Read requests from standard input, compile them, write what came of it."""
    requests = [Request(**{**each, "only": tuple(each["only"])}) for each in json.load(sys.stdin)]
    found = [asdict(each) for request in requests for each in compiled_here(request)]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
