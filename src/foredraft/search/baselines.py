"""What a search must beat: random plans, evenly spread ones, greedy gains, and all of them.

Every evaluation counts as a trial, and no plan is measured twice.
"""

from collections.abc import Iterable, Sequence
from typing import final

import torch

from foredraft.models.skip import SkipPlan
from foredraft.search.engines import Engine, Local
from foredraft.search.space import Space
from foredraft.search.trial import Aim, Objective, Origin, Trial


def random_search(
    space: Space,
    objective: Objective,
    *,
    trials: int,
    generator: torch.Generator,
    starts: Sequence[SkipPlan] = (),
    engine: Engine | None = None,
) -> list[Trial]:
    """Measure the starts, then different plans, each drawn from all of the space alike."""
    plans: dict[SkipPlan, None] = dict.fromkeys(starts[: _positive(trials)])
    while len(plans) < min(_positive(trials), space.size):
        plans[space.random(generator)] = None
    return _Book(objective, engine, trials).measure(plans, "random").trials


def uniform(
    space: Space, objective: Objective, *, trials: int | None = None, engine: Engine | None = None
) -> list[Trial]:
    """Measure plans of whole layers: n at equal distances, and the last n, for n from 0 up.

    Those that the space does not have are left out.
    """
    layers = space.n_layers
    pairs = [
        (SkipPlan.spread(n, layers), SkipPlan.early_exit(layers - n, layers))
        for n in range(layers + 1)
    ]
    plans = [plan | space.always for pair in pairs for plan in pair]
    book = _Book(objective, engine, trials)
    return book.measure((plan for plan in plans if plan in space), "uniform").trials


def greedy(
    space: Space,
    objective: Objective,
    *,
    goal: str = "speedup",
    trials: int | None = None,
    engine: Engine | None = None,
) -> list[Trial]:
    """Skip one branch more, each time the one that raises the goal most together with the others.

    Where none raises it, exchange one branch for another, the best exchange first. Ends where no
    exchange helps either, or after `trials` evaluations (None: as many as it takes).
    """
    book, aim = _Book(objective, engine, trials), Aim.of(goal)
    current = space.always
    book.measure([current], "start")
    while book.open:
        better = _better(book, aim, current, space.additions(current), "greedy")
        if better is None and book.open:
            better = _better(book, aim, current, space.exchanges(current), "swap")
        if better is None:
            break
        current = better
    return book.trials


def exhaustive(space: Space, objective: Objective, *, engine: Engine | None = None) -> list[Trial]:
    """Measure every plan of a small space; ValueError if it is not."""
    return _Book(objective, engine, None).measure(space.plans(), "exhaustive").trials


@final
class _Book:
    """The trials made so far, and what each plan gave."""

    def __init__(self, objective: Objective, engine: Engine | None, limit: int | None) -> None:
        self.objective, self.engine = objective, engine or Local()
        self.limit = None if limit is None else _positive(limit)
        self.trials: list[Trial] = []
        self.known: dict[SkipPlan, Trial] = {}

    @property
    def open(self) -> bool:
        """Whether another plan may be measured."""
        return self.limit is None or len(self.trials) < self.limit

    def measure(self, plans: Iterable[SkipPlan], origin: Origin) -> "_Book":
        """Measure the plans that are new, as far as the limit goes."""
        new = [plan for plan in dict.fromkeys(plans) if plan not in self.known]
        if self.limit is not None:
            new = new[: self.limit - len(self.trials)]
        for plan, values in zip(new, self.engine.measure(self.objective, new), strict=True):
            self.known[plan] = Trial(len(self.trials), plan, values, origin)
            self.trials.append(self.known[plan])
        return self


def _better(
    book: _Book, aim: Aim, current: SkipPlan, candidates: list[SkipPlan], origin: Origin
) -> SkipPlan | None:
    """Measure the candidates and give the best, the first among equals, if it beats `current`."""
    known = book.measure(candidates, origin).known
    value = {plan: aim.value(known[plan].values) for plan in candidates if plan in known}
    found = max(value, key=value.__getitem__, default=None)
    return found if found is not None and value[found] > aim.value(known[current].values) else None


def _positive(trials: int) -> int:
    if trials < 1:
        raise ValueError(f"trials={trials}: give 1 or more")
    return trials
