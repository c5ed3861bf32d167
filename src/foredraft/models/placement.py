"""Put a decoder on several devices, or partly into files, through accelerate.

Embedding, layers, norm and head are placed whole. accelerate's hooks bring to each part what it
works on, and to the processor that runs it what lies in files or in the host's memory meanwhile.
"""

import json
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import nn

from foredraft.errors import unknown
from foredraft.files import write_text
from foredraft.types import Tensor

FILES = "disk"
"""What accelerate calls files on disk, where it asks for a device."""

Home = int | str | torch.device
DeviceMap = str | Mapping[str, Home]
"""`"auto"`, or the home of each part by its name, such as `layers.3`; `""` means all."""


@final
@dataclass(frozen=True, slots=True)
class Placement:
    """Where each part of a decoder lies: a device's name, or "disk"."""

    homes: Mapping[str, str]

    @classmethod
    def of(cls, device_map: DeviceMap, decoder: nn.Module, dtype: torch.dtype) -> "Placement":
        """Read a device map, or make one that fits the memory at hand, for a decoder on `meta`.

        Raises ValueError if it names what is no part of the decoder, splits a layer, leaves a part
        without a home, or names no device.
        """
        if isinstance(device_map, str):
            if device_map != "auto":
                raise unknown("device_map", device_map, ["auto"])
            device_map = _fitting(decoder, dtype)
        parts = parts_of(decoder)
        known = {"", "layers", *parts}
        strange = [name for name in device_map if name not in known]
        if strange:
            raise ValueError(
                f"device_map names {strange[0]!r}: the parts are {', '.join(parts)}, 'layers' for "
                "all layers and '' for everything; a layer is placed whole"
            )
        return cls({part: _home(part, device_map) for part in parts})

    @property
    def single(self) -> str | None:
        """The one device on which everything lies; None if there are several, or files."""
        homes = set(self.homes.values())
        return None if len(homes) > 1 or FILES in homes else homes.pop()

    @property
    def main(self) -> torch.device:
        """The device that runs what lies in files and, where there is a GPU, on the host."""
        devices = [home for home in self.homes.values() if home not in (FILES, "cpu")]
        return torch.device(devices[0] if devices else "cpu")

    def home_of(self, weight: str) -> str:
        """Say where a weight lies, by its full name."""
        return next(home for part, home in self.homes.items() if weight.startswith(f"{part}."))

    def runs_on(self, part: str) -> torch.device:
        """Say which device computes a part."""
        home = self.homes[part]
        return self.main if home in (FILES, "cpu") else torch.device(home)

    def layer_devices(self) -> list[torch.device]:
        """Say which device computes each layer, in turn."""
        return [self.runs_on(part) for part in self.homes if part.startswith("layers.")]


@final
class Files:
    """A temporary folder for the weights of the parts that lie on disk; gone with its decoder."""

    def __init__(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="foredraft-")
        self.path, self._index = Path(folder.name), dict[str, object]()
        self._delete = weakref.finalize(self, folder.cleanup)

    def take(self, name: str, tensor: Tensor) -> Tensor:
        """Write a weight; give what stands for it meanwhile, which holds nothing."""
        from accelerate.utils import offload_weight

        offload_weight(tensor, name, str(self.path), self._index)
        return tensor.to("meta")

    def close(self) -> None:
        """List what was written, for accelerate."""
        write_text(self.path / "index.json", json.dumps(self._index))


def parts_of(decoder: nn.Module) -> list[str]:
    """Name the parts of a decoder that can be placed, in the order in which they run."""
    names = [name for name, module in decoder.named_children() if module is not None]
    layers = [f"layers.{name}" for name, _ in decoder.get_submodule("layers").named_children()]
    return [part for name in names for part in (layers if name == "layers" else [name])]


def dispatch(decoder: nn.Module, placement: Placement, files: Files) -> None:
    """Let accelerate's hooks run each part where the placement says, in place."""
    from accelerate import dispatch_model

    has_files = FILES in placement.homes.values()
    dispatch_model(
        decoder,
        dict(placement.homes),
        main_device=str(placement.main),  # pyright: ignore[reportArgumentType] - it wants "cpu"
        offload_dir=str(files.path) if has_files else None,
    )


def _home(part: str, device_map: Mapping[str, Home]) -> str:
    """Find a part's home under its own name, its parent's or that of everything."""
    for name in (part, part.rpartition(".")[0], ""):
        if name in device_map:
            return _named(device_map[name])
    raise ValueError(f"device_map gives {part!r} no home: add it, or '' for all that is not named")


def _named(home: Home) -> str:
    if home == FILES:
        return FILES
    try:
        return str(torch.empty(0, device=home).device)
    except (RuntimeError, AssertionError) as error:
        told = str(error).splitlines()[0]
        raise ValueError(f"device_map names {home!r}, neither 'disk' nor usable: {told}") from None


def _fitting(decoder: nn.Module, dtype: torch.dtype) -> Mapping[str, Home]:
    """Fill the GPUs evenly, then the host's memory, then files."""
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    settings = {"no_split_module_classes": ["Layer"], "dtype": dtype}
    room = get_balanced_memory(decoder, **settings)
    return infer_auto_device_map(decoder, max_memory=room, **settings)
