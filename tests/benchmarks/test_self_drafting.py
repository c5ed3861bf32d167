"""The contest of models that draft for themselves."""

from dataclasses import replace
from itertools import count

import pandas as pd
import pytest
import torch

import foredraft as fd
from foredraft.benchmarks import self_drafting
from foredraft.benchmarks.self_drafting import (
    PLAIN,
    Arm,
    Contest,
    asked,
    self_drafting_benchmark,
)
from foredraft.benchmarks.timing import Schedule
from tests.benchmarks.conftest import tiny

N_LAYERS = 4


PLANS = {
    "exit 2": fd.SkipPlan.early_exit(2, N_LAYERS),
    "nothing": fd.SkipPlan(),
    "MLP 1": fd.SkipPlan(mlp=[1]),
}


@pytest.fixture(scope="module")
def contest() -> Contest:
    theirs = tiny(n_layers=N_LAYERS)
    prompts = [[1 + i, 2, 3, 4 + i] for i in range(3)]
    ours = fd.Decoder.from_hf(theirs)
    return Contest("tiny", ours, theirs, prompts, PLANS, lengths=(1, 3), new_tokens=12)


@pytest.fixture(scope="module")
def whole_table(contest):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(self_drafting, "BRANCHES", Schedule(repeats=3, warmup=0, inner=1))
        return self_drafting_benchmark([contest])


@pytest.fixture(scope="module")
def table(whole_table):
    return whole_table.loc[whole_table["strategy"] != "one branch off"]


def test_each_exit_meets_transformers_at_the_same_length(table):
    drafted = table.loc[table["strategy"] == "self-drafting"]
    theirs = drafted.loc[drafted["library"] == "transformers"]
    found = set(theirs[["sampler", "name", "length"]].itertuples(index=False, name=None))
    exits = ("exit 2", "nothing")  # to skip nothing is to leave after the last layer
    samplers = ("greedy", "temperature 1")
    wanted = {(s, exit, k) for s in samplers for exit in exits for k in (1, 3)}
    assert found == wanted
    reused = drafted.loc[drafted["reuse"]]
    assert set(reused[["sampler", "name", "length"]].itertuples(index=False, name=None)) == wanted


def test_a_plan_that_skips_nothing_is_always_right_and_costs_everything(table):
    rows = table.loc[(table["name"] == "nothing") & (table["library"] == "foredraft")]
    assert (rows["acceptance"] == 1).all()
    assert (rows["cost_bytes"] == 1).all()


def test_both_costs_stand_beside_each_of_our_plans(table):
    ours = table.loc[(table["strategy"] == "self-drafting") & (table["library"] == "foredraft")]
    config = tiny(n_layers=N_LAYERS).config
    for name, rows in ours.groupby("name"):
        assert (rows["cost_bytes"] == PLANS[name].cost(config)).all()
        assert (rows["cost_measured"] > 0).all()
        assert rows["cost_measured"].nunique() == 1
    assert table.drop(ours.index)["cost_measured"].isna().all()


def test_speed_ups_are_over_our_own_autoregressive_decoding(table):
    plain = table.query("strategy == 'autoregressive' and library == 'foredraft'")
    assert (plain[["speedup_median", "speedup_min", "speedup_max"]] == 1).all(axis=None)
    assert (table["n"] == 3).all()


def test_each_branch_is_timed_by_what_a_step_saves_without_it(whole_table):
    rows = whole_table.loc[whole_table["strategy"] == "one branch off"]
    wanted = [fd.SkipPlan(attn=[i]) for i in range(N_LAYERS)]
    wanted += [fd.SkipPlan(mlp=[i]) for i in range(N_LAYERS)]
    assert rows["plan"].tolist() == [plan.to_json() for plan in wanted]
    assert (rows["share_min"] <= rows["share_median"]).all()
    assert (rows["share_median"] <= rows["share_max"]).all()
    assert (rows["n"] == 3).all()


def test_a_branch_takes_the_share_that_the_clock_says(contest):
    """The first arm, the whole model, takes two seconds, every other one."""
    times = iter(range(1, 10**6))
    state = {"now": 0.0, "open": False}

    def clock():
        if state["open"]:
            state["now"] += 2.0 if next(times) % (2 * N_LAYERS + 1) == 1 else 1.0
        state["open"] = not state["open"]
        return state["now"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(self_drafting, "BRANCHES", Schedule(repeats=3, warmup=0, inner=1))
        found = self_drafting.branch_times(contest, clock=clock)
    assert found["share_median"].tolist() == [0.5] * (2 * N_LAYERS)


def ticking():
    """A clock that moves on by one second each time that it is read."""
    ticks = count()
    return lambda: float(next(ticks))


@pytest.fixture(scope="module")
def laps(contest):
    plain = Arm("greedy", PLAIN)
    arms = [replace(plain, library="transformers"), plain]
    arms.append(Arm("greedy", name="MLP 1", plan=PLANS["MLP 1"], length=3))
    return self_drafting.laps_of(contest, arms, clock=ticking())


def test_every_round_of_ours_is_timed_and_theirs_only_as_a_whole(contest, laps):
    """The clock is read before and after each generation, and ours after every round too.

    Before a draft and after it as well; the prefill is a round of its own.
    """
    theirs, plain, drafting = laps.values()
    assert all(lap.result.pace is None and lap.result.generation is None for lap in theirs)
    assert [lap.seconds for lap in theirs] == [1] * len(contest.prompts)
    for lap, reads in [*((each, 1) for each in plain), *((each, 3) for each in drafting)]:
        beats, trace = lap.result.pace.beats, lap.result.generation.trace
        assert [beat.drafted for beat in beats] == [
            each.rows[0].drafted for each in trace.rounds[1:]
        ]
        wholes = [reads if beat.drafted else 1 for beat in beats]
        assert [beat.whole for beat in beats] == wholes
        assert lap.seconds == sum(wholes) + lap.result.pace.prefill + 2


def test_speed_ups_are_over_the_arm_that_comes_first(contest, laps):
    plain, drafting = [*laps][1:]
    first, second = self_drafting.told(
        contest, {arm: laps[arm] for arm in (drafting, plain)}, {"MLP 1": 0.5}
    )
    assert (first["name"], first["speedup_median"], first["cost_measured"]) == ("MLP 1", 1, 0.5)
    ratios = [
        (one.result.tokens / one.seconds) / (other.result.tokens / other.seconds)
        for one, other in zip(laps[plain], laps[drafting], strict=True)
    ]
    assert second["speedup_min"] == pytest.approx(min(ratios))
    assert second["speedup_max"] == pytest.approx(max(ratios))


def test_paces_are_those_of_the_laps(contest, laps):
    paces = self_drafting.paces_of(contest, [*laps], clock=ticking())
    assert paces == {
        arm: [lap.result.pace for lap in each if lap.result.pace] for arm, each in laps.items()
    }
    assert [len(each) for each in paces.values()] == [0, 3, 3]


def test_models_of_different_precision_are_not_compared(contest):
    with pytest.raises(ValueError, match="load both in one"):
        replace(contest, theirs=tiny(n_layers=N_LAYERS, dtype=torch.bfloat16))


def test_what_is_asked_is_our_fastest_plan_and_the_range_beside_transformers():
    def row(library, name, reuse, length, rate):
        drafts = {"strategy": "self-drafting", "library": library, "name": name, "reuse": reuse}
        speed = {"tokens_per_second_median": rate, "speedup_median": rate / 10}
        return {"model": "m", "sampler": "greedy", **drafts, "length": length, **speed}

    rows = [
        row("foredraft", "exit 2", True, 2, 12.0),
        row("foredraft", "exit 2", True, 3, 9.0),
        row("foredraft", "MLP 1", False, 3, 13.0),
        row("transformers", "exit 2", False, 2, 4.0),
        row("transformers", "exit 2", False, 3, 6.0),
    ]
    found = asked(pd.DataFrame(rows)).set_index("ratio")
    assert found.loc["÷ autoregressive", ["of", "value"]].tolist() == ["MLP 1, length 3", 1.3]
    worst, best = (found.loc[f"÷ early exit of transformers, {end}"] for end in ("min", "max"))
    assert worst[["of", "value"]].tolist() == ["exit 2, length 3", 1.5]
    assert best[["of", "value"]].tolist() == ["exit 2, length 2", 3.0]
