"""What is timed for a search: the parts of a round, and the plans that were found."""

import pandas as pd
import pytest

import foredraft as fd
from foredraft.benchmarks.self_drafting import Contest
from foredraft.search import measured_costs
from foredraft.search.measured_costs import (
    STEP,
    VERIFY,
    by_clock,
    finalists,
    round_costs,
    timed_plans,
)
from foredraft.search.predict import ByClock, Line, Rounds
from tests.benchmarks.conftest import Toll, tiny

N_LAYERS, VERIFIED, AFTER_EXITS = 3, (1, 2, 4), (2, 3)
ATTENTION, MLP, HEAD = 2.0, 3.0, 1.0
WHOLE = N_LAYERS * (ATTENTION + MLP) + HEAD


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
    return Toll(contest.target, attention=ATTENTION, mlp=MLP, head=HEAD)


@pytest.fixture(scope="module")
def costs(contest, clock) -> pd.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measured_costs, "VERIFIED", VERIFIED)
        patch.setattr(measured_costs, "AFTER_EXITS", AFTER_EXITS)
        return round_costs(contest, "temperature 1", clock=clock)


def test_each_number_of_attentions_is_timed_with_each_number_of_mlps():
    counts = [(len(plan.attn), len(plan.mlp)) for plan in timed_plans(12)]
    assert counts == [(a, m) for a in (0, 4, 8) for m in (0, 4, 8)]


def test_costs_have_a_row_for_each_timed_plan_and_each_verified_length(costs):
    steps, checks = (costs.loc[costs["strategy"] == part] for part in (STEP, VERIFY))
    assert steps["plan"].tolist() == [plan.to_json() for plan in timed_plans(N_LAYERS)]
    assert checks["length"].tolist() == [*VERIFIED, *AFTER_EXITS, *AFTER_EXITS]
    assert checks["reuse"].tolist() == [False] * len(VERIFIED) + [True] * 2 * len(AFTER_EXITS)
    assert len(costs) == len(steps) + len(checks)
    assert set(costs["model"]) == {"tiny"}
    assert set(costs["sampler"]) == {"temperature 1"}
    assert set(costs["layers"]) == {N_LAYERS}
    assert set(costs["n"]) == {2}


def spared(plan: fd.SkipPlan) -> float:
    """What verification need not read again after an early exit."""
    n = plan.exit_layer(N_LAYERS)
    return 0.0 if n is None else n * (ATTENTION + MLP)


def test_costs_are_in_plain_rounds_and_a_verification_is_one_less_what_an_exit_spares(costs):
    for row in costs.to_dict("records"):
        plan = fd.SkipPlan.from_json(row["plan"])
        rest = WHOLE - (spared(plan) if row["reuse"] else 0)
        wanted = (step(plan) if row["strategy"] == STEP else rest) / WHOLE
        for end in ("median", "min", "max"):
            assert row[f"cost_{end}"] == pytest.approx(wanted)


@pytest.mark.parametrize(
    "plan",
    [fd.SkipPlan(attn=[2]), fd.SkipPlan([0, 2], [0, 1, 2]), fd.SkipPlan(mlp=[0, 1])],
    ids=str,
)
def test_what_any_plan_costs_follows_from_the_few_that_are_timed(costs, plan):
    found = by_clock(costs, longest=5)(plan)
    assert (found.target, found.draft) == (1.0, pytest.approx(step(plan) / WHOLE))
    assert found.verify == pytest.approx(dict.fromkeys(range(1, 6), 1.0))
    assert found.other == 0


@pytest.mark.parametrize("layers", range(N_LAYERS + 1))
def test_an_early_exit_takes_a_step_without_a_head_more_and_spares_its_layers(costs, layers):
    """Those timed are after one layer and after three; the others lie between."""
    plan = fd.SkipPlan.early_exit(layers, N_LAYERS)
    found = by_clock(costs)(plan)
    assert found.draft == pytest.approx(step(plan) / WHOLE)
    assert found.other == pytest.approx((step(plan) - HEAD) / WHOLE, abs=1e-9)
    assert found.verify == pytest.approx(dict.fromkeys(range(1, 9), 1 - spared(plan) / WHOLE))


def row(strategy, cost, *, plan=None, length=4, reuse=False):
    plan = (plan or fd.SkipPlan()).to_json()
    where = {"strategy": strategy, "plan": plan, "length": length, "reuse": reuse, "layers": 6}
    return {**where, "cost_median": cost}


KNOWN = ByClock(
    step=0.96, attention=0.03, mlp=0.05, both=0.002, rest={0: Line(1.0, 0.1)}, n_layers=6
)
STEPS = [row(STEP, KNOWN(plan).draft, plan=plan) for plan in timed_plans(6)]


THIRD = fd.SkipPlan([1], [1])


def checks(timed, plan=THIRD, *, reuse=False):
    return [
        row(VERIFY, cost, plan=plan, length=length, reuse=reuse) for length, cost in timed.items()
    ]


def test_least_squares_find_what_branches_save_alone_and_together():
    found = by_clock(pd.DataFrame([*checks({1: 1.1, 2: 1.2}), *STEPS[::-1]]))
    assert (found.step, found.attention, found.mlp, found.both) == pytest.approx(
        (0.96, 0.03, 0.05, 0.002)
    )


def test_verification_is_a_line_in_the_length_and_goes_on_behind_the_longest_timed():
    plan = fd.SkipPlan(mlp=[3])
    found = by_clock(pd.DataFrame([*STEPS, *checks({1: 1.1, 2: 1.2, 4: 1.4})]), longest=9)(plan)
    assert found.verify == pytest.approx({n: 1 + 0.1 * n for n in range(1, 10)})


def test_noise_about_the_line_is_averaged():
    timed = {1: 1.2, 2: 1.1, 3: 1.4, 4: 1.3}
    found = by_clock(pd.DataFrame([*STEPS, *checks(timed)]))(fd.SkipPlan(mlp=[3]))
    rises = [found.verify[n + 1] - found.verify[n] for n in range(1, 8)]
    assert rises == pytest.approx([0.06] * 7)


def test_what_exits_spare_is_interpolated_between_those_timed():
    half, whole = (fd.SkipPlan.early_exit(n, 6) for n in (3, 6))
    rows = [*STEPS, *checks({2: 1.2, 6: 1.6})]
    rows += checks({2: 0.9, 6: 1.0}, half, reuse=True) + checks({2: 0.2, 6: 0.3}, whole, reuse=True)
    found = by_clock(pd.DataFrame(rows))
    assert found(fd.SkipPlan.early_exit(4, 6)).verify[2] == pytest.approx(0.9 - 0.7 / 3)
    assert found(fd.SkipPlan.early_exit(1, 6)).verify[6] == pytest.approx(1.6 - 0.2)


PLANS = {
    "found 1": (fd.SkipPlan(mlp=[0, 2]), 2),
    "found 2": (fd.SkipPlan.early_exit(1, N_LAYERS), 3),
}


@pytest.fixture(scope="module")
def raced(contest, clock):
    return finalists(contest, "greedy", PLANS, clock=clock)


@pytest.fixture(scope="module")
def decoded(raced) -> pd.DataFrame:
    return raced[0]


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


def test_rounds_alone_are_as_fast_as_the_costs_make_of_those_that_came(raced, costs):
    """Nothing but passes takes time by this clock, so that the sum of the parts is the whole."""
    table, traces = raced
    known = by_clock(costs)
    for name, (plan, length) in PLANS.items():
        made = Rounds.counted(traces[name], length)
        summed = made.tokens.sum() / made.time(known(plan)).sum()
        (measured,) = table.loc[table["name"] == name, "rounds_speedup"]
        assert measured == pytest.approx(summed)
