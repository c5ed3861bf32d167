"""What data sheets say of cards, and the element types that are tried."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int32": torch.int32,
}
"""The element types that are tried."""


@final
@dataclass(frozen=True, slots=True)
class Card:
    """What a data sheet says of a card: memory (bytes a second), float32 additions a second."""

    bandwidth: float
    additions: float
    processors: int
    target: str


CARDS: Mapping[str, Card] = {
    "A100 80 GB SXM": Card(2.039e12, 19.5e12 / 2, 108, "sm_80"),
    "H100 80 GB SXM": Card(3.35e12, 66.9e12 / 2, 132, "sm_90"),
    "MI300X": Card(5.3e12, 163.4e12 / 2, 304, "gfx942"),
}
"""By the makers' data sheets, whose operations count a multiplication with each addition."""
