"""Skip plans: which branches of a decoder are switched off."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, slots=True, init=False, repr=False)
class SkipPlan:
    """A set of attention and MLP branches, by layer index, that a forward pass leaves out.

    Immutable and hashable. `len(plan)` counts the branches.
    """

    attn: frozenset[int]
    mlp: frozenset[int]

    def __init__(self, attn: Iterable[int] = (), mlp: Iterable[int] = ()) -> None:
        object.__setattr__(self, "attn", _layers(attn, "attn"))
        object.__setattr__(self, "mlp", _layers(mlp, "mlp"))

    def __len__(self) -> int:
        return len(self.attn) + len(self.mlp)

    def __repr__(self) -> str:
        return f"SkipPlan(attn={sorted(self.attn)}, mlp={sorted(self.mlp)})"

    def check(self, n_layers: int) -> None:
        """Raise ValueError if the plan names a layer that a decoder of n_layers does not have."""
        beyond = sorted(layer for layer in self.attn | self.mlp if layer >= n_layers)
        if beyond:
            raise ValueError(
                f"the plan skips layers {beyond}, but the decoder's are 0 to {n_layers - 1}"
            )

    def to_json(self) -> str:
        """Write the plan as one line of JSON, layers ascending."""
        return json.dumps({"attn": sorted(self.attn), "mlp": sorted(self.mlp)})

    @classmethod
    def from_json(cls, text: str) -> "SkipPlan":
        """Read what `to_json` wrote; ValueError if it is anything else."""
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON ({error}); a plan looks like {cls().to_json()}") from error
        shaped = isinstance(fields, dict) and set(fields) == {"attn", "mlp"}
        if not shaped or not all(isinstance(layers, list) for layers in fields.values()):
            raise ValueError(f"{text[:80]!r} is no plan; a plan looks like {cls().to_json()}")
        return cls(**{branch: _layers(layers, branch) for branch, layers in fields.items()})


def _layers(layers: Iterable[object], branch: str) -> frozenset[int]:
    given = list(layers)
    indices = [i for i in given if isinstance(i, int) and not isinstance(i, bool) and i >= 0]
    if len(indices) < len(given):
        raise ValueError(f"{branch}={given}: layers are integers counted from 0")
    return frozenset(indices)
