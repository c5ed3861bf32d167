"""The machine that a measurement was made on, as far as its speed depends on it."""

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

from foredraft.errors import unknown

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, slots=True)
class Machine:
    """A device by name, its driver ("" for a processor), and the processor cores at hand."""

    device: str
    name: str
    driver: str
    cores: int


def this_machine(device: str) -> Machine:
    """The machine at hand; ValueError if it has no such device."""
    if device not in DEVICES:
        raise unknown("device", device, DEVICES)
    name, driver = _graphics() if device == "cuda" else (_processor(), "")
    return Machine(device=device, name=name, driver=driver, cores=len(os.sched_getaffinity(0)))


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.is_file() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def _graphics() -> tuple[str, str]:
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"no CUDA device here (nvidia-smi: {error}); use --device cpu") from error
    name, _, driver = told.splitlines()[0].partition(",")
    return name.strip(), driver.strip()


@dataclass(frozen=True, slots=True)
class Processor:
    """A processor as far as the last digits of its arithmetic depend on it.

    `features` are those of its instructions by which torch chooses how to multiply.
    """

    name: str
    features: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))

    @property
    def kind(self) -> tuple[str, ...]:
        """What two processors share whose digits are expected to agree."""
        return (self.maker, *self.features)

    @property
    def maker(self) -> str:
        """The first word of the name, which stands for the maker: AMD, Intel(R), Apple."""
        return self.name.partition(" ")[0]

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.features) or 'no vector instructions known'})"


FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def this_processor() -> Processor:
    """The processor at hand."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.is_file() else []
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return Processor(_processor(), tuple(name for name in FEATURES if name in flags))
