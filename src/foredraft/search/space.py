"""Which skip plans a search may try: every set of the free branches, up to a budget."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Literal, final

import torch

from foredraft.models.config import DecoderConfig
from foredraft.models.skip import SkipPlan
from foredraft.search.quiet import quiet_ax

if TYPE_CHECKING:
    from ax.api.configs import RangeParameterConfig

Branch = tuple[Literal["attn", "mlp"], int]
"""A branch and the layer it is in."""

MOST_PLANS = 2**14
"""Listing more of them than this is refused."""


@final
@dataclass(frozen=True, slots=True, init=False)
class Space:
    """The plans that skip all of `always`, any of the `free` branches, and `budget` at most.

    `free` None means every branch that is not always skipped; `budget` counts all branches of a
    plan, those of `always` too, and None sets no bound.
    """

    n_layers: int
    free: tuple[Branch, ...]
    always: SkipPlan
    budget: int | None

    def __init__(
        self,
        n_layers: int,
        free: Iterable[Branch] | None = None,
        always: SkipPlan | None = None,
        budget: int | None = None,
    ) -> None:
        always = SkipPlan() if always is None else always
        every = branches(SkipPlan.layers(range(n_layers)))
        if free is None:
            free = [branch for branch in every if branch not in branches(always)]
        object.__setattr__(self, "n_layers", n_layers)
        object.__setattr__(self, "free", tuple(free))
        object.__setattr__(self, "always", always)
        object.__setattr__(self, "budget", budget)
        self._check(every)

    @classmethod
    def of(cls, config: DecoderConfig) -> "Space":
        """Leave every branch of a decoder free."""
        return cls(config.n_layers)

    @property
    def most(self) -> int:
        """How many of the free branches a plan may skip."""
        if self.budget is None:
            return len(self.free)
        return min(len(self.free), self.budget - len(self.always))

    @property
    def size(self) -> int:
        """How many plans there are."""
        return sum(math.comb(len(self.free), n) for n in range(self.most + 1))

    def __contains__(self, plan: SkipPlan) -> bool:
        chosen = {*branches(plan - self.always)}
        return (
            (self.always - plan) == SkipPlan()
            and chosen <= {*self.free}
            and len(chosen) <= self.most
        )

    def parameters(self) -> "list[RangeParameterConfig]":
        """Describe each free branch to Ax as an integer, 1 where it is skipped."""
        with quiet_ax():
            from ax.api.configs import RangeParameterConfig

        return [
            RangeParameterConfig(name=_name(branch), bounds=(0, 1), parameter_type="int")
            for branch in self.free
        ]

    def constraints(self) -> list[str]:
        """Describe the budget to Ax; no constraint where it binds nothing."""
        if self.most == len(self.free):
            return []
        return [f"{' + '.join(_name(branch) for branch in self.free)} <= {self.most}"]

    def plan(self, values: Mapping[str, object]) -> SkipPlan:
        """Read a plan from what Ax asks for: 0 or 1 for the name of every free branch."""
        names = [_name(branch) for branch in self.free]
        if set(values) != set(names) or not all(value in (0, 1) for value in values.values()):
            raise ValueError(f"{dict(values)} is no plan; give 0 or 1 for each of {names}")
        return self._with(b for b, name in zip(self.free, names, strict=True) if values[name])

    def values(self, plan: SkipPlan) -> dict[str, int]:
        """Write a plan as Ax knows it; ValueError if it lies outside the space."""
        self.require(plan)
        chosen = {*branches(plan)}
        return {_name(branch): int(branch in chosen) for branch in self.free}

    def require(self, plan: SkipPlan) -> None:
        """Raise ValueError if the plan lies outside the space."""
        if plan not in self:
            allowed = f"{self.most} of {[_name(branch) for branch in self.free]}"
            raise ValueError(
                f"{plan} lies outside the space: plans skip {self.always} and at most {allowed}; "
                "change the plan, or free more branches"
            )

    def plans(self) -> Iterator[SkipPlan]:
        """List all plans, those that skip least first; ValueError if they are too many to try."""
        if self.size > MOST_PLANS:
            raise ValueError(
                f"the space has {self.size} plans, more than {MOST_PLANS}: free fewer branches, "
                "set a budget, or search instead of listing"
            )
        return (
            self._with(chosen)
            for n in range(self.most + 1)
            for chosen in combinations(self.free, n)
        )

    def additions(self, plan: SkipPlan) -> list[SkipPlan]:
        """Skip one branch more, each that can be, in the order of `free`."""
        self.require(plan)
        more = [plan | _alone(branch) for branch in self.free]
        return [each for each in more if each != plan and each in self]

    def removals(self, plan: SkipPlan) -> list[SkipPlan]:
        """Skip one free branch less, each in turn."""
        self.require(plan)
        fewer = [plan - _alone(branch) for branch in self.free]
        return [each for each in fewer if each != plan]

    def exchanges(self, plan: SkipPlan) -> list[SkipPlan]:
        """Skip another free branch instead of one that is skipped, each pair in turn."""
        chosen = {*branches(plan)}
        others = [branch for branch in self.free if branch not in chosen]
        return [less | _alone(branch) for less in self.removals(plan) for branch in others]

    def neighbours(self, plan: SkipPlan) -> list[SkipPlan]:
        """List the plans of the space one branch away, then those one exchange away."""
        return [*self.additions(plan), *self.removals(plan), *self.exchanges(plan)]

    def random(self, generator: torch.Generator) -> SkipPlan:
        """Draw one plan, all of the space being equally likely."""
        ways = [float(math.comb(len(self.free), n)) for n in range(self.most + 1)]
        weights = torch.tensor(ways, dtype=torch.float64)
        n = int(torch.multinomial(weights, 1, generator=generator))
        order = torch.randperm(len(self.free), generator=generator).tolist()
        return self._with(self.free[i] for i in order[:n])

    def few_skips(self) -> tuple[SkipPlan, ...]:
        """Give plans that skip little, from which a search sets out.

        Nothing but `always`; one, two and three whole layers at equal distances; the attention, and
        the MLP, of a quarter of the layers. Of each only what is free, and none over the budget.
        """
        free, quarter = self._with(self.free), max(1, self.n_layers // 4)
        spread = SkipPlan.spread(quarter, self.n_layers)
        whole = [SkipPlan.spread(n, self.n_layers) for n in range(1, min(3, self.n_layers) + 1)]
        wanted = [SkipPlan(), *whole, SkipPlan(attn=spread.attn), SkipPlan(mlp=spread.mlp)]
        starts = [plan & free | self.always for plan in wanted]
        return tuple(dict.fromkeys(plan for plan in starts if plan in self))

    def _with(self, chosen: Iterable[Branch]) -> SkipPlan:
        return self.always | _plan(chosen)

    def _check(self, every: list[Branch]) -> None:
        if self.n_layers < 1:
            raise ValueError(f"n_layers={self.n_layers}: a decoder has one layer or more")
        self.always.check(self.n_layers)
        unknown = [branch for branch in self.free if branch not in every]
        if unknown:
            raise ValueError(
                f"free branches {unknown} do not exist: give ('attn', layer) or ('mlp', layer), "
                f"layers 0 to {self.n_layers - 1}"
            )
        if len(set(self.free)) < len(self.free) or {*self.free} & {*branches(self.always)}:
            raise ValueError(f"free={self.free}: name each branch once, and none of {self.always}")
        if self.budget is not None and self.budget < len(self.always):
            raise ValueError(
                f"budget={self.budget}: {len(self.always)} branches are skipped always; allow as "
                "many or more"
            )


def branches(plan: SkipPlan) -> list[Branch]:
    """List the branches that a plan skips, layers ascending, attention before MLP."""
    attention: list[Branch] = [("attn", layer) for layer in plan.attn]
    mlp: list[Branch] = [("mlp", layer) for layer in plan.mlp]
    return sorted(attention + mlp, key=lambda branch: (branch[1], branch[0]))


def _plan(chosen: Iterable[Branch]) -> SkipPlan:
    listed = list(chosen)
    return SkipPlan(
        attn=[layer for kind, layer in listed if kind == "attn"],
        mlp=[layer for kind, layer in listed if kind == "mlp"],
    )


def _alone(branch: Branch) -> SkipPlan:
    return _plan([branch])


def _name(branch: Branch) -> str:
    kind, layer = branch
    return f"{kind}_{layer}"
