"""A toy whose best plans can be looked up."""

import math
from collections.abc import Callable, Mapping

import pytest

from foredraft.analysis.statistics import Estimate
from foredraft.models.skip import SkipPlan
from foredraft.search.space import Space, branches


def toy(plan: SkipPlan) -> Mapping[str, Estimate]:
    """Gains of branches and of pairs of them, positive and negative; exact cost; acceptance."""
    skipped = branches(plan)
    gain = sum(math.sin(5 * layer + 2 * len(kind)) for kind, layer in skipped)
    pairs = sum(
        math.cos(3 * i + 7 * j + len(k + m)) for k, i in skipped for m, j in skipped if i < j
    )
    return {
        "speedup": Estimate(1 + 0.1 * gain + 0.05 * pairs, 0.002),
        "cost": Estimate(1 - 0.06 * len(plan), 0.0),
        "acceptance": Estimate(math.exp(0.2 * (gain - 1.4 * len(plan))), 0.004),
    }


@pytest.fixture(scope="session")
def objective() -> Callable[[SkipPlan], Mapping[str, Estimate]]:
    return toy


@pytest.fixture(scope="session")
def space() -> Space:
    """Seven branches of four layers."""
    return Space(4, free=[*branches(SkipPlan(attn=range(4), mlp=range(3)))])
