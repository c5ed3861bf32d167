"""Rotary position embedding (arXiv 2104.09864), with Llama 3's scaling for long contexts."""

import math
from dataclasses import dataclass

import torch

from foredraft.types import Float, Int, Tensor


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Slow the frequencies whose wavelength exceeds the context of the first training.

    Wavelengths (in positions) below original ÷ high factor stay, those above original ÷ low factor
    are slowed by `factor`, and between the two the slow-down is interpolated.
    """

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_max_positions: int

    def __post_init__(self) -> None:
        """Refuse factors between which nothing can be interpolated."""
        if not 0 < self.low_frequency_factor < self.high_frequency_factor:
            raise ValueError(
                f"low_frequency_factor={self.low_frequency_factor} must be positive and below "
                f"high_frequency_factor={self.high_frequency_factor}"
            )

    def __call__(self, frequency: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
        """Scale angular frequencies (radians a position)."""
        turns = self.original_max_positions * frequency / (2 * math.pi)
        low, high = self.low_frequency_factor, self.high_frequency_factor
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return frequency * (kept + (1 - kept) / self.factor)


def frequencies(
    head_dim: int, theta: float, scaling: Llama3Scaling | None, device: torch.device
) -> Float[Tensor, " pair"]:
    """Give the angular frequency of each feature pair, θ^(−2i/d), scaled; float64."""
    # computed where it is used: to send numbers from the host would make it wait for the device
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device) / head_dim
    plain = theta**-exponent
    return plain if scaling is None else scaling(plain)


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosines and sines by which the heads at given positions are turned.

    Both halves of a head have the same angles: `cos` holds them twice, `sin` with the sign of each
    half, so that turning is x·cos + swapped x·sin.
    """

    cos: Float[Tensor, "*positions 1 head_dim"]
    sin: Float[Tensor, "*positions 1 head_dim"]

    @classmethod
    def at(
        cls,
        positions: Int[Tensor, "*positions"],
        frequency: Float[Tensor, " pair"],
        dtype: torch.dtype,
    ) -> "Rotation":
        """Tabulate positions, in float64 whatever the table's precision: angles grow with them."""
        angle = positions[..., None, None] * frequency
        cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
        return cls(torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1))

    def __getitem__(self, positions: Int[Tensor, "batch seq"] | slice) -> "Rotation":
        """Look up rows of a table over 0, 1, 2, …; a slice of them serves every row alike."""
        return Rotation(self.cos[positions], self.sin[positions])

    def to(self, device: torch.device | str | int) -> "Rotation":
        """Give it on another device."""
        return Rotation(self.cos.to(device), self.sin.to(device))

    def __call__(
        self, x: Float[Tensor, "batch seq head head_dim"]
    ) -> Float[Tensor, "batch seq head head_dim"]:
        """Turn feature pairs (i, i + d/2), in the precision of the table."""
        first, second = x.chunk(2, dim=-1)
        swapped = torch.cat([second, first], dim=-1)
        return torch.addcmul(x * self.cos, swapped, self.sin).to(x.dtype)
