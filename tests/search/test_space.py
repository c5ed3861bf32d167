"""Every plan of a space, no other, and all of them alike."""

from collections import Counter
from itertools import product

import pytest
import torch
from scipy.stats import chisquare
from transformers import LlamaConfig

from foredraft.models.config import DecoderConfig
from foredraft.models.skip import SkipPlan
from foredraft.search.space import Space, branches

SPACES = {
    "all": Space(3),
    "some free": Space(4, free=[("mlp", 3), ("attn", 1), ("mlp", 0)]),
    "some always": Space(3, always=SkipPlan(attn=[1])),
    "few at a time": Space(3, budget=2),
    "all of it": Space(
        4,
        free=[("attn", 0), ("attn", 3), ("mlp", 1), ("mlp", 2)],
        always=SkipPlan(mlp=[0, 3]),
        budget=4,
    ),
    "nothing free": Space(2, free=[], always=SkipPlan(attn=[0])),
}


@pytest.fixture(params=SPACES.values(), ids=SPACES)
def space(request) -> Space:
    return request.param


def by_definition(space: Space) -> set[SkipPlan]:
    """All sets of branches, and of these what the space allows."""
    every = branches(SkipPlan.layers(range(space.n_layers)))
    found = set()
    for bits in product((False, True), repeat=len(every)):
        chosen = {branch for branch, bit in zip(every, bits, strict=True) if bit}
        needed = set(branches(space.always))
        within = needed <= chosen <= needed | set(space.free)
        if within and (space.budget is None or len(chosen) <= space.budget):
            attn, mlp = ([i for kind, i in chosen if kind == k] for k in ("attn", "mlp"))
            found.add(SkipPlan(attn, mlp))
    return found


def test_the_plans_are_those_that_the_definition_allows(space):
    plans = list(space.plans())
    assert len(plans) == len(set(plans)) == space.size
    assert set(plans) == by_definition(space)
    assert all(plan in space for plan in plans)
    assert [len(plan) for plan in plans] == sorted(len(plan) for plan in plans)


def test_a_plan_comes_back_from_the_parameters_of_ax(space):
    names = [parameter.name for parameter in space.parameters()]
    for plan in space.plans():
        values = space.values(plan)
        assert list(values) == names
        assert space.plan(values) == plan


def test_ax_is_told_integers_from_0_to_1_and_the_budget_left_by_what_is_always_skipped():
    space = Space(2, always=SkipPlan(mlp=[1]), budget=2)
    parameters = space.parameters()
    assert [parameter.name for parameter in parameters] == ["attn_0", "mlp_0", "attn_1"]
    assert {(*parameter.bounds, parameter.parameter_type) for parameter in parameters} == {
        (0, 1, "int")
    }
    assert space.constraints() == ["attn_0 + mlp_0 + attn_1 <= 1"]
    assert Space(2, budget=4).constraints() == []


def test_neighbours_are_one_branch_or_one_exchange_away(space):
    plans = set(space.plans())
    for plan in plans:
        found = space.neighbours(plan)
        assert len(found) == len(set(found))
        differing = {other: (plan - other, other - plan) for other in plans}
        steps = {other: (len(less), len(more)) for other, (less, more) in differing.items()}
        assert set(found) == {o for o, step in steps.items() if step in {(0, 1), (1, 0), (1, 1)}}


@pytest.mark.parametrize("space", [Space(2), Space(3, budget=2)], ids=["all", "few at a time"])
def test_every_plan_of_a_space_is_drawn_equally_often(space):
    generator = torch.Generator().manual_seed(4)
    drawn = Counter(space.random(generator) for _ in range(60 * space.size))
    assert set(drawn) == set(space.plans())
    assert chisquare(list(drawn.values())).pvalue > 1e-3


def test_a_large_space_can_be_drawn_from_but_not_listed():
    space = Space(42, budget=30)
    plan = space.random(torch.Generator().manual_seed(0))
    assert plan in space
    assert len(plan) <= 30
    with pytest.raises(ValueError, match="plans, more than 16384: free fewer branches"):
        space.plans()


def test_a_search_sets_out_from_plans_of_the_space_that_skip_little(space):
    starts = space.few_skips()
    assert starts[0] == space.always
    assert set(starts) <= set(space.plans())
    assert len(starts) == len(set(starts))
    assert len(Space(12).few_skips()) == 6
    assert max(len(plan) for plan in Space(12).few_skips()) == 6


def test_a_space_of_a_decoder_frees_all_its_branches():
    config = DecoderConfig.from_hf(LlamaConfig(num_hidden_layers=5))
    assert Space.of(config) == Space(5)
    assert Space(5).size == 2**10


def test_plans_outside_the_space_are_refused():
    space = Space(3, always=SkipPlan(attn=[1]), budget=2)
    for plan in (SkipPlan(), SkipPlan(attn=[0]), SkipPlan(attn=[0, 1, 2]), SkipPlan(attn=[1, 7])):
        assert plan not in space
        with pytest.raises(ValueError, match="lies outside the space"):
            space.values(plan)
        with pytest.raises(ValueError, match="lies outside the space"):
            space.neighbours(plan)


@pytest.mark.parametrize(
    "values", [{"attn_0": 1}, {"attn_0": 1, "mlp_0": 2}, {"attn_0": 1, "mlp_0": 1, "mlp_1": 0}]
)
def test_values_that_are_no_plan_are_refused(values):
    with pytest.raises(ValueError, match=r"give 0 or 1 for each of \['attn_0', 'mlp_0'\]"):
        Space(1).plan(values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_layers": 0}, "one layer or more"),
        ({"n_layers": 2, "free": [("attn", 2)]}, "do not exist"),
        ({"n_layers": 2, "free": [("attn", 1), ("attn", 1)]}, "each branch once"),
        ({"n_layers": 2, "free": [("attn", 1)], "always": SkipPlan(attn=[1])}, "and none of"),
        ({"n_layers": 2, "always": SkipPlan(attn=[2])}, "the decoder's are 0 to 1"),
        ({"n_layers": 2, "always": SkipPlan(attn=[0, 1]), "budget": 1}, "skipped always"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Space(**arguments)
