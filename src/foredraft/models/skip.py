"""Skip plans: which branches of a decoder are switched off, and what is left to read."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from transformers import PretrainedConfig

from foredraft import paths
from foredraft.errors import unknown
from foredraft.models.config import DecoderConfig
from foredraft.models.weights import slots


@final
@dataclass(frozen=True, slots=True, init=False, repr=False)
class SkipPlan:
    """A set of attention and MLP branches, by layer index, that a forward pass leaves out.

    Immutable and hashable. `len(plan)` counts the branches; `|`, `&` and `-` are those of sets.
    """

    attn: frozenset[int]
    mlp: frozenset[int]

    def __init__(self, attn: Iterable[int] = (), mlp: Iterable[int] = ()) -> None:
        object.__setattr__(self, "attn", _layers(attn, "attn"))
        object.__setattr__(self, "mlp", _layers(mlp, "mlp"))

    @classmethod
    def layers(cls, indices: Iterable[int]) -> "SkipPlan":
        """Skip whole layers, both branches of each."""
        whole = _layers(indices, "layers")
        return cls(attn=whole, mlp=whole)

    @classmethod
    def early_exit(cls, n: int, n_layers: int) -> "SkipPlan":
        """Leave after the first n layers: skip all the others."""
        if not 0 <= n <= n_layers:
            raise ValueError(f"n={n}: an early exit lies after 0 to {n_layers} layers")
        return cls.layers(range(n, n_layers))

    @classmethod
    def every(cls, k: int, n_layers: int) -> "SkipPlan":
        """Skip each k-th layer, the k-th first; for another number of them see `spread`."""
        if k < 1:
            raise ValueError(f"k={k}: skip each layer (1), each second one (2), or fewer")
        return cls.layers(range(k - 1, n_layers, k))

    @classmethod
    def spread(cls, n: int, n_layers: int) -> "SkipPlan":
        """Skip n layers at equal distances, half such a distance from either end."""
        if not 0 <= n <= n_layers:
            raise ValueError(f"n={n}: of {n_layers} layers, 0 to {n_layers} can be skipped")
        return cls.layers((2 * i + 1) * n_layers // (2 * n) for i in range(n))

    @classmethod
    def published(cls, name: str) -> "SkipPlan":
        """Give the plan that is kept under this name; ValueError if there is none.

        >>> len(SkipPlan.published("gemma-2-9b-it"))
        37
        """
        return PublishedPlan.read(name).plan

    def __len__(self) -> int:
        return len(self.attn) + len(self.mlp)

    def __repr__(self) -> str:
        return f"SkipPlan(attn={sorted(self.attn)}, mlp={sorted(self.mlp)})"

    def __or__(self, other: "SkipPlan") -> "SkipPlan":
        """Skip what either of the plans skips."""
        return SkipPlan(self.attn | other.attn, self.mlp | other.mlp)

    def __and__(self, other: "SkipPlan") -> "SkipPlan":
        """Skip what both of the plans skip."""
        return SkipPlan(self.attn & other.attn, self.mlp & other.mlp)

    def __sub__(self, other: "SkipPlan") -> "SkipPlan":
        """Skip what the other plan does not skip too."""
        return SkipPlan(self.attn - other.attn, self.mlp - other.mlp)

    def check(self, n_layers: int) -> None:
        """Raise ValueError if the plan names a layer that a decoder of n_layers does not have."""
        beyond = sorted(layer for layer in self.attn | self.mlp if layer >= n_layers)
        if beyond:
            raise ValueError(
                f"the plan skips layers {beyond}, but the decoder's are 0 to {n_layers - 1}"
            )

    def exit_layer(self, n_layers: int) -> int | None:
        """Give the n of which this is the early exit; None if it is none."""
        n = n_layers - len(self.attn)
        return n if n >= 0 and self == SkipPlan.early_exit(n, n_layers) else None

    def cost(self, config: DecoderConfig | PretrainedConfig) -> float:
        """Give the share of the weights read for a token that is still read under the plan.

        By bytes, all weights having one width: branches with their norms, final norm and head. The
        embedding is looked up, not read, and keys and values are not counted.
        """
        ours = config if isinstance(config, DecoderConfig) else DecoderConfig.from_hf(config)
        self.check(ours.n_layers)
        parts = Parts.of(ours)
        skipped = len(self.attn) * parts.attention + len(self.mlp) * parts.mlp
        return 1 - skipped / parts.total(ours.n_layers)

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


Layers = tuple[Annotated[int, Field(ge=0)], ...]


@final
@dataclass(frozen=True, slots=True)
class Branches:
    """A plan as files have it: layer indices."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    attn: Layers
    mlp: Layers


@final
@dataclass(frozen=True, slots=True)
class PublishedPlan:
    """A plan with the model that it is for, where it is from, and what is said of it.

    `gamma` is the draft length that it was chosen for, None if none is given. `predicted` and
    `measured` are named figures, rates in tokens a second. Whatever else a file holds, such as the
    log of a search, is left alone.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="ignore", strict=True)

    branches: Annotated[Branches, Field(alias="plan")]
    model: str
    source: str
    gamma: Annotated[int, Field(ge=1)] | None
    predicted: Mapping[str, float] | None
    measured: Mapping[str, float] | None

    @classmethod
    def read(cls, name: str) -> "PublishedPlan":
        """Read the file of this name; ValueError for an unknown name, or a file of another form."""
        known = [path.stem for path in paths.PLANS.glob("*.json")]
        if name not in known:
            raise unknown("plan", name, known)
        path = paths.plan(name)
        try:
            return TypeAdapter(cls).validate_json(path.read_bytes())
        except ValidationError as error:
            wrong = error.errors()[0]
            key = ".".join(map(str, wrong["loc"])) or "the file"
            raise ValueError(f"{paths.label(path)}: {key}: {wrong['msg']}") from None

    @property
    def plan(self) -> SkipPlan:
        """The branches as a plan."""
        return SkipPlan(self.branches.attn, self.branches.mlp)


@final
@dataclass(frozen=True, slots=True)
class Parts:
    """How many weights a decoder reads for each token: a branch's, with its norms, and the head's.

    The final norm counts with the head.
    """

    attention: int
    mlp: int
    head: int

    @classmethod
    def of(cls, config: DecoderConfig) -> "Parts":
        """Count from a configuration; no weights are needed."""
        sizes = {
            slot.name: sum(math.prod(shape) for shape in slot.sources.values())
            for slot in slots(config)
        }
        head = sizes["norm.weight"] + sizes["embedding.weight" if config.tied else "head.weight"]
        return cls(_within(sizes, "layers.0.attention."), _within(sizes, "layers.0.mlp."), head)

    def total(self, n_layers: int) -> int:
        """Add up what a token of the whole decoder reads."""
        return n_layers * (self.attention + self.mlp) + self.head


def _within(sizes: dict[str, int], module: str) -> int:
    return sum(size for name, size in sizes.items() if name.startswith(module))


def _layers(layers: Iterable[object], branch: str) -> frozenset[int]:
    given = list(layers)
    indices = [i for i in given if isinstance(i, int) and not isinstance(i, bool) and i >= 0]
    if len(indices) < len(given):
        raise ValueError(f"{branch}={given}: layers are integers counted from 0")
    return frozenset(indices)
