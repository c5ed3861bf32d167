"""Baselines do what their names say, and measure no plan twice."""

import pytest
import torch

from foredraft.analysis.statistics import Estimate
from foredraft.models.skip import SkipPlan
from foredraft.search.baselines import exhaustive, greedy, random_search, uniform
from foredraft.search.space import Space
from foredraft.search.trial import best


def drawing(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Counted:
    """An objective that notes what it is asked."""

    def __init__(self, objective):
        self.objective, self.asked = objective, []

    def __call__(self, plan):
        self.asked.append(plan)
        return self.objective(plan)


def worth(gains, pairs=()):
    """Give an objective of gains of branches and of plans that they are part of."""

    def objective(plan):
        terms = [gain for part, gain in (*gains, *pairs) if (part & plan) == part]
        return {"speedup": Estimate(1.0 + sum(terms), 0.0)}

    return objective


A, B, C, D = (SkipPlan(attn=[0]), SkipPlan(mlp=[0]), SkipPlan(attn=[1]), SkipPlan(mlp=[1]))


def test_exhaustive_search_measures_each_plan_once(space, objective):
    counted = Counted(objective)
    trials = exhaustive(space, counted)
    assert [trial.plan for trial in trials] == counted.asked == list(space.plans())
    assert {trial.origin for trial in trials} == {"exhaustive"}
    with pytest.raises(ValueError, match="search instead of listing"):
        exhaustive(Space(12), objective)


def test_random_search_measures_different_plans_that_its_generator_draws(space, objective):
    trials = random_search(space, objective, trials=40, generator=drawing())
    assert len({trial.plan for trial in trials}) == len(trials) == 40
    assert random_search(space, objective, trials=40, generator=drawing()) == trials
    assert random_search(space, objective, trials=40, generator=drawing(1)) != trials
    assert len(random_search(space, objective, trials=500, generator=drawing())) == space.size


def test_random_search_tries_its_starts_first_and_draws_none_of_them_again(space, objective):
    starts = space.few_skips()
    trials = random_search(space, objective, trials=40, starts=starts, generator=drawing())
    assert tuple(trial.plan for trial in trials[: len(starts)]) == starts
    assert len({trial.plan for trial in trials}) == len(trials) == 40
    few = random_search(space, objective, trials=2, starts=starts, generator=drawing())
    assert tuple(trial.plan for trial in few) == starts[:2]


def test_uniform_plans_are_whole_layers_spread_out_or_at_the_end(objective):
    plans = [trial.plan for trial in uniform(Space(4), objective)]
    wanted = [
        *(SkipPlan.spread(n, 4) for n in range(5)),
        *(SkipPlan.early_exit(n, 4) for n in range(5)),
    ]
    assert set(plans) == set(wanted)
    assert len(plans) == len(set(plans))
    assert len(uniform(Space(4), objective, trials=3)) == 3
    some = uniform(Space(4, always=SkipPlan(attn=[3]), budget=3), objective)
    assert [trial.plan for trial in some] == [
        SkipPlan(attn=[3]),
        SkipPlan(attn=[2, 3], mlp=[2]),
        SkipPlan(attn=[3], mlp=[3]),
    ]


def test_greedy_adds_the_branch_that_gains_most_with_those_before():
    gains = [(A, 0.3), (B, 0.2), (C, 0.1), (D, -0.1)]
    trials = greedy(Space(2), worth(gains, [(A | B, -0.25)]))
    assert best(trials).plan == A | C
    assert [trial.plan for trial in trials][:8] == [SkipPlan(), A, B, C, D, A | B, A | C, A | D]
    assert {trial.origin for trial in trials[1:8]} == {"greedy"}


def test_greedy_exchanges_where_no_addition_helps_and_then_adds_again():
    """A is best alone; B and C are better together, and D with both of them."""
    gains = [(A, 0.3), (B, 0.25), (C, 0.2), (D, -0.1)]
    pairs = [(A | B, -0.5), (A | C, -0.1), (B | C, 0.2), (A | B | C, -0.9), (B | C | D, 0.3)]
    trials = greedy(Space(2), worth(gains, pairs))
    origins = {trial.plan: trial.origin for trial in trials}
    assert origins[A | C] == "greedy"
    assert origins[B | C] == "swap"
    assert origins[B | C | D] == "greedy"
    assert best(trials).plan == B | C | D


@pytest.mark.parametrize("goal", ["speedup", "-speedup"])
def test_greedy_ends_where_neither_addition_nor_exchange_helps(space, objective, goal):
    counted = Counted(objective)
    trials = greedy(space, counted, goal=goal)
    assert len(set(counted.asked)) == len(counted.asked) == len(trials)
    assert [trial.index for trial in trials] == list(range(len(trials)))
    found, sign = best(trials, goal), -1 if goal.startswith("-") else 1
    others = [*space.additions(found.plan), *space.exchanges(found.plan)]
    value = sign * found.values["speedup"].mean
    assert others
    assert all(sign * objective(plan)["speedup"].mean <= value for plan in others)


def test_greedy_stays_where_nothing_gains(space):
    trials = greedy(space, worth([]))
    assert [len(trial.plan) for trial in trials] == [0, *[1] * 7]


def test_greedy_stops_when_its_trials_are_used_up_and_began_as_the_longer_search(space, objective):
    whole = greedy(space, objective)
    for trials in (1, 2, 9, len(whole)):
        assert greedy(space, objective, trials=trials) == whole[:trials]
    with pytest.raises(ValueError, match="trials=0: give 1 or more"):
        greedy(space, objective, trials=0)


def test_greedy_keeps_the_budget_and_what_is_always_skipped(objective):
    space = Space(4, always=SkipPlan(mlp=[3]), budget=3)
    trials = greedy(space, objective)
    assert all(trial.plan in space for trial in trials)
    assert trials[0].plan == SkipPlan(mlp=[3])
