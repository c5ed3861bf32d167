"""What is timed for a search: the parts of a round, and the plans that were found."""

from functools import partial

import pandas as pd
import pytest

import foredraft as fd
from foredraft.benchmarks import self_speculation
from foredraft.benchmarks.self_drafting import Contest
from foredraft.benchmarks.self_speculation import (
    STEP,
    VERIFY,
    by_clock,
    finalists,
    round_costs,
    timed_plans,
)
from foredraft.search.objective import ByClock
from tests.benchmarks.conftest import tiny

N_LAYERS, VERIFIED = 3, (1, 2, 4)
ATTENTION, MLP, HEAD = 2.0, 3.0, 1.0
WHOLE = N_LAYERS * (ATTENTION + MLP) + HEAD


class Toll:
    """A clock that moves on as a model is read: by so much for each branch, and for the head."""

    def __init__(self, decoder: fd.Decoder) -> None:
        self.seconds = 0.0
        tolls = [(decoder.norm, HEAD)]
        for layer in decoder.layers:
            tolls += [(layer.attention, ATTENTION), (layer.mlp, MLP)]
        for module, seconds in tolls:
            module.register_forward_pre_hook(partial(self.pay, seconds))

    def pay(self, seconds, module, inputs) -> None:
        self.seconds += seconds

    def __call__(self) -> float:
        return self.seconds


def step(plan: fd.SkipPlan) -> float:
    """What a token read under the plan takes by that clock."""
    return WHOLE - ATTENTION * len(plan.attn) - MLP * len(plan.mlp)


@pytest.fixture(scope="module")
def contest() -> Contest:
    """Texts just long enough for a second draft of full length whatever comes of the first."""
    decoder = fd.Decoder.from_hf(tiny(n_layers=N_LAYERS))
    return Contest("tiny", decoder, None, [[1, 2, 3], [4, 5]], {}, new_tokens=12)


@pytest.fixture(scope="module")
def clock(contest) -> Toll:
    return Toll(contest.target)


@pytest.fixture(scope="module")
def costs(contest, clock) -> pd.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(self_speculation, "VERIFIED", VERIFIED)
        return round_costs(contest, "temperature 1", clock=clock)


def test_each_number_of_attentions_is_timed_with_each_number_of_mlps():
    counts = [(len(plan.attn), len(plan.mlp)) for plan in timed_plans(12)]
    assert counts == [(a, m) for a in (0, 4, 8) for m in (0, 4, 8)]


def test_costs_have_a_row_for_each_timed_plan_and_each_verified_length(costs):
    steps, checks = (costs.loc[costs["strategy"] == part] for part in (STEP, VERIFY))
    assert steps["plan"].tolist() == [plan.to_json() for plan in timed_plans(N_LAYERS)]
    assert checks["length"].tolist() == [*VERIFIED]
    assert len(costs) == len(steps) + len(checks)
    assert set(costs["model"]) == {"tiny"}
    assert set(costs["sampler"]) == {"temperature 1"}
    assert set(costs["n"]) == {2}


def test_costs_are_in_plain_rounds_and_a_verification_is_one(costs):
    for row in costs.to_dict("records"):
        plan = fd.SkipPlan.from_json(row["plan"])
        wanted = step(plan) / WHOLE if row["strategy"] == STEP else 1.0
        for end in ("median", "min", "max"):
            assert row[f"cost_{end}"] == pytest.approx(wanted)


@pytest.mark.parametrize(
    "plan",
    [
        fd.SkipPlan(),
        fd.SkipPlan(attn=[2]),
        fd.SkipPlan([0, 2], [0, 1, 2]),
        fd.SkipPlan.layers(range(3)),
    ],
    ids=str,
)
def test_what_any_plan_costs_follows_from_the_few_that_are_timed(costs, plan):
    found = by_clock(costs)(plan)
    assert (found.target, found.draft) == (1.0, pytest.approx(step(plan) / WHOLE))
    assert found.verify == pytest.approx(dict.fromkeys(range(1, 5), 1.0))


def row(strategy, cost, *, plan=None, length=4):
    plan = (plan or fd.SkipPlan()).to_json()
    return {"strategy": strategy, "plan": plan, "length": length, "cost_median": cost}


KNOWN = ByClock(step=0.96, attention=0.03, mlp=0.05, both=0.002, verify={1: 1.1})
STEPS = [row(STEP, KNOWN(plan).draft, plan=plan) for plan in timed_plans(6)]


def test_least_squares_find_what_branches_save_alone_and_together():
    found = by_clock(pd.DataFrame([row(VERIFY, 1.1, length=1), *STEPS[::-1]]))
    assert (found.step, found.attention, found.mlp, found.both) == pytest.approx(
        (0.96, 0.03, 0.05, 0.002)
    )


@pytest.mark.parametrize(
    ("timed", "wanted"),
    [
        ({4: 1.6, 1: 1.1, 2: 1.2}, {1: 1.1, 2: 1.2, 3: 1.4, 4: 1.6}),
        ({2: 1.4}, {1: 1.2, 2: 1.4}),  # a draft of none is a plain round
    ],
)
def test_verification_of_lengths_between_those_timed_is_interpolated(timed, wanted):
    checks = [row(VERIFY, cost, length=length) for length, cost in timed.items()]
    assert by_clock(pd.DataFrame([*STEPS, *checks])).verify == pytest.approx(wanted)


PLANS = {
    "found 1": (fd.SkipPlan(mlp=[0, 2]), 2),
    "found 2": (fd.SkipPlan.early_exit(1, N_LAYERS), 3),
}


@pytest.fixture(scope="module")
def decoded(contest, clock) -> pd.DataFrame:
    return finalists(contest, "greedy", PLANS, clock=clock)


def test_plans_that_were_found_are_decoded_beside_plain_decoding(decoded):
    assert decoded["strategy"].tolist() == ["autoregressive", *["self-drafting"] * 2]
    assert decoded["name"].tolist()[1:] == [*PLANS]
    assert decoded["length"].tolist() == [0, 2, 3]
    assert decoded["speedup_median"][0] == 1
    assert decoded["n"].tolist() == [2] * 3


def test_only_an_early_exit_spares_verification_its_layers(decoded):
    assert decoded["reuse"].tolist() == [False, False, True]


def test_their_speed_up_is_that_of_the_clock_prompt_by_prompt(contest, decoded):
    """The prefill is a pass like any other by this clock."""
    plan, length = PLANS["found 1"]
    speedups = []
    for prompt in contest.prompts:
        made = fd.generate(
            contest.target,
            [prompt],
            sampler=fd.Sampler(temperature=0),
            max_new_tokens=contest.new_tokens,
            drafter=fd.SelfDrafter(plan),
            exit_policy=fd.FixedLength(length),
            eos_token_id=[],
        )
        seconds = WHOLE * len(made.trace.rounds) + step(plan) * made.trace.drafted
        speedups.append(WHOLE * contest.new_tokens / seconds)
    assert decoded["speedup_min"][1] == pytest.approx(min(speedups))
    assert decoded["speedup_max"][1] == pytest.approx(max(speedups))
