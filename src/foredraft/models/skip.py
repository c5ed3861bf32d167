"""Skip plans: which branches of a decoder are switched off."""

import json
from collections.abc import Iterable
from typing import final


@final
class SkipPlan:
    """A set of attention and MLP branches, by layer index, that a forward pass leaves out.

    Immutable and hashable. `len(plan)` counts the branches.
    """

    __slots__ = ("attn", "mlp")
    attn: frozenset[int]
    mlp: frozenset[int]

    def __init__(self, attn: Iterable[int] = (), mlp: Iterable[int] = ()) -> None:
        object.__setattr__(self, "attn", _layers(attn, "attn"))
        object.__setattr__(self, "mlp", _layers(mlp, "mlp"))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a SkipPlan is immutable; build a new one to change {name!r}")

    def __len__(self) -> int:
        return len(self.attn) + len(self.mlp)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SkipPlan) and (self.attn, self.mlp) == (other.attn, other.mlp)

    def __hash__(self) -> int:
        return hash((self.attn, self.mlp))

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
        if not isinstance(fields, dict) or set(fields) != {"attn", "mlp"}:
            raise ValueError(f"{text[:80]!r} is no plan; a plan looks like {cls().to_json()}")
        return cls(**fields)


def _layers(layers: Iterable[int], branch: str) -> frozenset[int]:
    indices = list(layers)
    bad = [i for i in indices if not isinstance(i, int) or isinstance(i, bool) or i < 0]
    if bad:
        raise ValueError(f"{branch} holds {bad}: layers are integers counted from 0")
    return frozenset(indices)
