"""Options and arguments that several commands have."""

from typing import Annotated

import typer

from foredraft.errors import unknown
from foredraft.registry import ARTICLES


def require_device(device: str | None) -> str | None:
    """Refuse a device that this machine does not have, before anything is loaded or measured."""
    if device in (None, "cpu"):
        return device
    import torch

    if device.partition(":")[0] != "cuda":
        raise ValueError(f"device {device!r} is not known: choose cpu or cuda")
    if not torch.cuda.is_available():
        raise ValueError(f"this machine has no CUDA device for --device {device}: use --device cpu")
    return device


ENGINES = ("local", "ray")
"""Where searches and sweeps run."""

Slug = Annotated[
    str,
    typer.Argument(
        metavar="ARTICLE",
        help="Such as sampling.",
        autocompletion=lambda: [each.slug for each in ARTICLES],
    ),
]

AsJson = Annotated[bool, typer.Option("--json", help="Write JSON, for machines.")]

Device = Annotated[str, typer.Option(help="cpu or cuda.", callback=require_device)]

EngineName = Annotated[str, typer.Option(help="local, or ray for a cluster.")]

Address = Annotated[
    str | None, typer.Option(help="Of ray: a running cluster; without one, it is started here.")
]


def require_engine(engine: str, address: str | None) -> None:
    """Refuse an engine that there is not, and the address of a cluster without Ray."""
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if address is not None and engine != "ray":
        raise ValueError(f"--address {address} is that of a Ray cluster: add --engine ray")
