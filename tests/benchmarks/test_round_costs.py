"""What the parts of any drafter's round cost, whole policies, and what a gate takes to decide."""

from dataclasses import replace
from functools import partial

import pandas as pd
import pytest

import foredraft as fd
from foredraft.benchmarks import round_costs
from foredraft.benchmarks.round_costs import GATE, PARTS, POLICY, Setting, Way
from tests.benchmarks.conftest import tiny

TARGET, DRAFT = 8.0, 2.0


class Toll:
    """A clock that moves on as a model is read."""

    def __init__(self, **tolls: tuple[fd.Decoder, float]) -> None:
        self.seconds = 0.0
        for decoder, seconds in tolls.values():
            decoder.norm.register_forward_pre_hook(partial(self.pay, seconds))

    def pay(self, seconds, module, inputs) -> None:
        self.seconds += seconds

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture(scope="module")
def setting() -> Setting:
    target, draft = (fd.Decoder.from_hf(tiny(n_layers=n)) for n in (2, 1))
    prompts = [[1, 2, 3], [4, 5]]
    return Setting(target, fd.ModelDrafter(draft), prompts, fd.Sampler(), new_tokens=20)


@pytest.fixture(scope="module")
def clock(setting) -> Toll:
    return Toll(target=(setting.target, TARGET), draft=(setting.drafter.draft_model, DRAFT))


@pytest.fixture(scope="module")
def costs(setting, clock) -> pd.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(round_costs, "LENGTHS", (1, 2, 4))
        return round_costs.round_costs(setting, clock=clock)


def test_drafting_and_what_follows_are_in_plain_rounds(costs):
    assert set(costs["strategy"]) == {PARTS}
    for row in costs.to_dict("records"):
        assert row["drafting_median"] == pytest.approx(row["length"] * DRAFT / TARGET)
        assert row["rest_median"] == pytest.approx(1.0)
        assert row["n"] == 2


def test_costs_of_all_lengths_are_lines_through_those_timed(costs):
    """By this clock a look at a token takes no time."""
    both = round_costs.costs(costs, longest=6)
    assert both.target == 1
    for found in (both.watched, both.unwatched):
        assert found.draft == pytest.approx(DRAFT / TARGET)
        assert found.verify == pytest.approx(dict.fromkeys(range(1, 7), 1.0))
        assert found.other == pytest.approx(0, abs=1e-9)


def test_a_start_that_drafting_takes_each_round_counts_as_other():
    """And a look costs what drafts take longer under it; what follows them is the same."""
    drafting = {False: [0.5, 0.7, 1.1], True: [0.55, 0.8, 1.3]}
    timed = pd.DataFrame(
        {
            "length": [1, 2, 4] * 2,
            "watched": [False] * 3 + [True] * 3,
            "drafting_median": drafting[False] + drafting[True],
            "rest_median": [1.1, 1.2, 1.4] * 2,
        }
    )
    both = round_costs.costs(timed, longest=3)
    for found, step in ((both.unwatched, 0.2), (both.watched, 0.25)):
        assert (found.draft, found.other) == (pytest.approx(step), pytest.approx(0.3))
        assert found.verify == pytest.approx({1: 1.1, 2: 1.2, 3: 1.3})
    assert both.under(fd.FixedLength(2)) == both.unwatched
    assert both.under(fd.ConfidenceExit(0.4, 2)) == both.watched


def test_policies_are_timed_beside_never_drafting(setting, clock):
    ways = {
        "fixed": Way(fd.FixedLength(2)),
        "closed": Way(fd.FixedLength(2), fd.ConfidenceGate(1.0)),
    }
    table = round_costs.policy_times(setting, ways, clock=clock).set_index("policy")
    assert set(table["strategy"]) == {POLICY}
    assert table.loc["never", "rounds_speedup"] == 1
    assert table.loc["closed", "rounds_speedup"] == pytest.approx(1)
    assert table.loc["closed", "drafted"] == 0
    made = round_costs.laps_of(setting, ways, clock=clock)["fixed"]
    rounds = [each for lap in made for each in lap.result.generation.trace.rounds[1:]]
    drafted = sum(each.rows[0].drafted for each in rounds)
    seconds = len(rounds) * TARGET + drafted * DRAFT
    assert table.loc["fixed", "rounds_speedup"] == pytest.approx(2 * 19 * TARGET / seconds)
    assert table.loc["fixed", "drafted"] == pytest.approx(drafted / len(rounds))


def test_a_gain_is_over_the_way_named_all_cases_of_a_prompt_as_one(setting, clock):
    ways = {"short": Way(fd.FixedLength(1)), "long": Way(fd.FixedLength(4))}
    often = replace(setting, repeats=3)
    table = round_costs.policy_times(often, ways, over="short", clock=clock).set_index("policy")
    assert (table["n"] == 6).all()
    assert (table.loc["short", "gain"], table.loc["short", "gain_sem"]) == (1, 0)
    speeds = table["rounds_speedup"]
    assert table["gain"].tolist() == pytest.approx((speeds / speeds["short"]).tolist())
    assert table.loc["long", "gain_sem"] > 0


def test_a_repeat_draws_other_tokens_of_the_same_prompts(setting, clock):
    made = round_costs.laps_of(replace(setting, repeats=2), {"plain": Way()}, clock=clock)["plain"]
    texts = [lap.result.generation.tokens[0] for lap in made]
    assert len(texts) == 4
    assert texts[0] != texts[2]
    assert [replace(setting, repeats=2).prompt(case) for case in (0, 2)] == [setting.prompts[0]] * 2


def test_a_gate_is_timed_against_a_plain_step(setting):
    gates = {"always": fd.AlwaysDraft(), "entropy": fd.EntropyGate(1.0)}
    table = round_costs.gate_times(setting, gates)
    assert table["policy"].tolist() == ["always", "entropy"]
    assert set(table["strategy"]) == {GATE}
    assert (table["share_median"] > 0).all()
    assert table["share_median"].iloc[0] < table["share_median"].iloc[1]
