"""Article 04's measures mean what their names say."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import foredraft as fd
from foredraft.analysis.published import published
from foredraft.articles.self_speculation import experiment, original
from foredraft.decoding import theory
from foredraft.decoding.exit import FixedLength
from foredraft.decoding.theory import Costs
from foredraft.models.config import DecoderConfig
from foredraft.repro import claims as results
from foredraft.repro import params
from foredraft.search.find import Candidate
from foredraft.search.teacher_forced import Chances
from tests.decoding.conftest import tiny

PROMPTS = [[1, 2, 3], [4, 3, 2, 1, 0, 1, 2, 3, 4], [2], [3, 3]]
PLAN = fd.SkipPlan(attn=[0])
COSTS = Costs(target=2.0, draft=0.5, verify={1: 2.1, 2: 2.3, 3: 2.6}, other=0.05)
NAMES = [
    *("fixed 1", "fixed 2", "fixed 3", "Draft & Verify controller", "the article's controller"),
    *("threshold 0.5", "cost-aware"),
]


def settings(**changes) -> params.SelfSpeculation:
    sizes = {"plans_checked": 4, "checked_prompts": 4, "checked_tokens": 10, "samples": 30}
    sizes |= {"max_new_tokens": 10, "exit_tokens": 12}
    return params.load("self_speculation", {"profile": "smoke", **sizes, **changes})


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def subject(request) -> Candidate:
    return Candidate("tiny", tiny(request.param, 7, 5, torch.float32), [], PROMPTS)


@pytest.fixture(scope="module")
def llama() -> Candidate:
    return Candidate("tiny", tiny("llama", 7, 5, torch.float32), [], PROMPTS)


def decoded(subject, prompts, stop, n_new, *, temperature=1.0, verification="token"):
    return fd.generate(
        subject.decoder,
        prompts,
        sampler=fd.Sampler(temperature=temperature),
        max_new_tokens=n_new,
        drafter=fd.SelfDrafter(PLAN),
        exit_policy=stop,
        generator=torch.Generator().manual_seed(0),
        eos_token_id=[],
        verification=verification,
    )


def test_the_article_s_run_follows_from_its_own_numbers():
    run = original.article_run()
    assert run["cost"] == pytest.approx(0.607, abs=5e-4)
    assert run["cost_bytes"] == pytest.approx(0.609, abs=5e-4)
    assert run["speedup"] == pytest.approx(0.812, abs=5e-4)
    alpha, length = run["acceptance"], run["length"]
    assert (1 + alpha * length) / (1 + run["cost"] * length) == pytest.approx(run["speedup"])


def test_the_best_that_the_article_s_pair_can_do_is_to_draft_one_token_and_lose():
    run = original.article_run()
    assert run["best"] == pytest.approx((1 + run["acceptance"]) / (1 + run["cost"]))
    assert run["speedup"] < run["best"] < 1
    lengths = experiment.foretold_by_length(run["acceptance"], run["cost"], 8)
    assert lengths["length"].tolist() == [*range(9)]
    assert lengths["speedup"].tolist()[:2] == [1, run["best"]]
    assert lengths["speedup"].is_monotonic_decreasing


def test_published_plans_leave_more_than_half_of_the_bytes_to_read():
    plans = original.published_plans().set_index("plan")
    assert plans["cost"].round(3).to_dict() == {
        "gemma-2-9b-it": 0.609,
        "llama-2-13b": 0.639,
        "llama-2-70b": 0.517,
    }
    assert plans["layers"].tolist() == [42, 40, 80]
    assert plans.loc["gemma-2-9b-it", ["attention", "MLP"]].tolist() == [19, 18]


def test_plans_of_all_sorts_are_checked_as_many_as_asked_for():
    plans = experiment.plans_to_check(12, settings(plans_checked=9))
    assert len(plans) == 9
    assert {name.split()[0] for name in plans} == {"exit", "spread", "random"}
    for name, plan in plans.items():
        kind, n = name.split()
        wanted = {"exit": 2 * (12 - int(n)), "spread": 2 * int(n), "random": int(n)}
        assert len(plan) == wanted[kind]
    assert plans == experiment.plans_to_check(12, settings(plans_checked=9))
    assert plans != experiment.plans_to_check(12, settings(plans_checked=9, seed=1))


@pytest.fixture(scope="module")
def greedy(subject) -> pd.DataFrame:
    return experiment.checked(subject, settings(), temperature=0.0)


@pytest.fixture(scope="module")
def sampled(subject) -> pd.DataFrame:
    return experiment.checked(subject, settings(), temperature=1.0)


def test_greedy_rounds_are_foretold_to_the_last_one(greedy):
    assert greedy["off"].tolist() == [0] * 4
    assert greedy["texts"].tolist() == [len(PROMPTS)] * 4
    assert greedy["foretold"].tolist() == pytest.approx(greedy["decoded"].tolist())
    assert greedy["acceptance_foretold"].tolist() == pytest.approx(greedy["acceptance"].tolist())
    assert greedy["decoded"].nunique() > 1
    assert greedy["z"].isna().all()


def test_sampled_rounds_have_the_mean_that_was_foretold(sampled):
    """|z| < 5.5: of 16 such numbers one is larger by chance once in 1.6 million runs."""
    assert sampled["texts"].tolist() == [30 * len(PROMPTS)] * 4
    assert (sampled["z"].abs() < 5.5).all()
    assert sampled["z"].nunique() == 4
    apart = np.hypot(sampled["foretold_sem"], sampled["decoded_sem"])
    assert ((sampled["foretold"] - sampled["decoded"]).abs() < 5.5 * apart).all()
    assert (apart > 0).all()


def test_of_an_early_exit_one_pass_foretells_what_all_passes_do(sampled):
    is_exit = sampled["name"].str.startswith("exit")
    assert is_exit.sum() == 2
    exact, once = sampled["foretold"], sampled["one_pass"]
    assert once[is_exit].tolist() == pytest.approx(exact[is_exit].tolist(), rel=1e-5)
    assert ((once - exact).abs()[~is_exit] > 1e-3).any()


def test_drafts_and_their_acceptance_are_counted_after_the_prefill(llama):
    made = decoded(llama, PROMPTS, FixedLength(2), 10)
    count, drafted = experiment.counted(made)
    rows = [row for each in made.trace.rounds[1:] for row in each.rows]
    for place in range(len(PROMPTS)):
        mine = [row for row in rows if row.row == place]
        assert (count[place], drafted[place]) == (len(mine), sum(row.drafted for row in mine))


def chances(*rows: list[float]) -> list[Chances]:
    """One text; a row for each place in a draft."""
    return [Chances(torch.tensor([row]), torch.tensor([row])) for row in rows]


def test_all_places_alike_means_the_mean_over_all_of_them():
    """Those near the end of a text have room for fewer drafts, the last for none."""
    assert experiment.all_places(chances([0.2, 0.4, 0.6, 0.8])) == pytest.approx(1 + 1.2 / 4)
    two = chances([0.2, 0.4, 0.6, 0.8], [0.9, 0.5, 0.5, 0.5])
    wanted = 1 + (0.2 * 1.5 + 0.4 * 1.5 + 0.6) / 4
    assert experiment.all_places(two) == pytest.approx(wanted)


@pytest.fixture(scope="module")
def policies(llama) -> pd.DataFrame:
    return experiment.policies(llama, PLAN, COSTS, settings())


def test_every_way_to_end_a_draft_has_its_row(policies):
    assert policies["policy"].tolist() == NAMES
    assert policies["drafted"].between(0, 3).all()
    assert policies["acceptance"].between(0, 1).all()
    assert (policies["sem"] > 0).all()


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_fixed_length_s_speed_up_is_that_of_its_rounds_added_up_by_hand(llama, policies, length):
    """Rounds at the end of a text draft less; one that drafts nothing takes a target step."""
    made = decoded(llama, PROMPTS, FixedLength(length), 12)
    rows = [row for each in made.trace.rounds[1:] for row in each.rows]
    drafted, accepted = (sum(getattr(r, name) for r in rows) for name in ("drafted", "accepted"))
    parts = {0: 2.0, 1: 0.5 + 2.1 + 0.05, 2: 1.0 + 2.3 + 0.05, 3: 1.5 + 2.6 + 0.05}
    assert min(row.drafted for row in rows) < length
    found = policies.set_index("policy").loc[f"fixed {length}"]
    plain = 2.0 * 11 * len(PROMPTS)
    assert found["speedup"] == pytest.approx(plain / sum(parts[row.drafted] for row in rows))
    assert found["drafted"] == pytest.approx(drafted / len(rows))
    assert found["acceptance"] == pytest.approx(accepted / drafted)


def test_where_a_draft_step_costs_a_target_step_the_cost_aware_exit_drafts_one_token(llama):
    costs = Costs(target=1.0, draft=1.0, verify=dict.fromkeys((1, 2, 3), 1.0))
    table = experiment.policies(llama, PLAN, costs, settings()).set_index("policy")
    assert table.loc["cost-aware"].tolist() == table.loc["fixed 1"].tolist()
    assert table.loc["cost-aware", "speedup"] < 1


def test_the_cost_aware_exit_is_told_what_fixed_lengths_have_shown(llama, policies, monkeypatch):
    told = []

    def noted(cost, **others):
        told.append((cost, others))
        return FixedLength(1)

    monkeypatch.setattr(experiment, "CostAwareExit", noted)
    experiment.policies(llama, PLAN, COSTS, settings())
    ((cost, others),) = told
    fixed = policies.set_index("policy").loc[NAMES[:3]]
    assert cost == pytest.approx((0.5 + (2.6 - 2.1) / 2) / 2.0)
    assert others["max_length"] == 3
    assert others["rate"] == max(1.0, fixed["speedup"].max())
    assert others["acceptance"] == fixed.loc["fixed 1", "acceptance"]


THRESHOLDS = {
    # (length, accepted): where Draft & Verify's threshold ends after 100 tokens, and the article's
    (1, 0): (0.600, 0.600),
    (4, 0): (0.600, 0.600),
    (8, 0): (0.600, 0.500),  # drafts of full length do not move the article's
    (1, 1): (0.456, 0.456),  # 50 rounds: three up until m > 0.9, all others down
    (4, 4): (0.486, 0.486),
    (8, 8): (0.503, 0.500),
}


@pytest.mark.parametrize(("case", "ends"), THRESHOLDS.items(), ids=str)
def test_a_threshold_moves_by_a_thousandth_a_round_as_its_rule_says(case, ends):
    table = experiment.threshold_paths(100)
    for rule, end in zip(experiment.WORDS, ends, strict=True):
        path = table.loc[table["rule"] == rule].set_index(["length", "accepted"]).loc[case]
        assert path["threshold"].iloc[0] == 0.5
        assert path["threshold"].iloc[-1] == pytest.approx(end)
        assert path["threshold"].diff().abs().max() <= 0.001 + 1e-12
        assert path["token"].tolist() == [*range(0, 100, case[1] + 1), 100]


@pytest.fixture(scope="module")
def verification(llama) -> pd.DataFrame:
    return experiment.rules(llama, PLAN, (1, 3), settings(samples=5))


def test_of_a_draft_of_one_token_both_rules_make_the_same(verification):
    """By the same coins: a block of one token stands with the same chance as the token."""
    assert verification[["length", "rule"]].to_numpy().tolist() == [
        [length, rule] for length in (1, 3) for rule in ("token", "block")
    ]
    token, block = verification.loc[verification["length"] == 1, ["mean", "sem"]].to_numpy()
    assert token.tolist() == block.tolist()


@pytest.mark.parametrize("rule", ["token", "block"])
def test_tokens_a_round_are_those_after_the_prefill_over_all_rounds(llama, verification, rule):
    made = decoded(llama, PROMPTS * 5, FixedLength(3), 10, verification=rule)
    rounds = sum(len(each.rows) for each in made.trace.rounds[1:])
    found = verification.query(f"length == 3 and rule == '{rule}'")
    assert found["mean"].item() == pytest.approx(9 * 4 * 5 / rounds)
    assert found["sem"].item() > 0


def test_to_break_even_acceptance_has_to_be_what_a_draft_costs():
    costs = [0.05, 0.3, 0.6, 0.9]
    assert original.needed(costs, [1.0])["acceptance"].tolist() == pytest.approx(costs)


def test_the_acceptance_that_is_needed_gives_the_gain_and_no_less_does():
    table = original.needed([0.1, 0.4], [1.1, 1.5, 2.0])
    for row in table.to_dict("records"):
        reached, missed = (
            max(theory.speedup(row["acceptance"] - less, n, cost=row["cost"]) for n in range(1, 33))
            for less in (0.0, 1e-6)
        )
        assert missed < row["gain"] <= reached == pytest.approx(row["gain"])


def test_more_gain_and_costlier_drafts_need_more_acceptance():
    table = original.needed([0.1, 0.2, 0.4], [1.0, 1.1, 1.5, 2.0])
    grid = table.pivot(index="gain", columns="cost", values="acceptance")
    assert (grid.diff().iloc[1:] > 0).all(axis=None)
    assert (grid.diff(axis=1).iloc[:, 1:] > 0).all(axis=None)


def test_a_gain_that_not_even_full_acceptance_gives_needs_no_number():
    """At c = 0.9 drafts of 32 that all stand give 33 ÷ 29.8."""
    low, high = original.needed([0.9], [33 / 29.8 - 1e-6, 33 / 29.8 + 1e-6])["acceptance"]
    assert low == pytest.approx(1, abs=1e-4)
    assert np.isnan(high)


def race(space, method, seed, *trials, strategy="race"):
    """Recorded trials as (value, plan)."""
    best = np.maximum.accumulate([value for value, _ in trials])
    told = {"strategy": strategy, "space": space, "method": method, "seed": seed, "layers": 3}
    return pd.DataFrame(
        [
            {**told, "index": i, "value": value, "best": best[i], "plan": plan.to_json()}
            for i, (value, plan) in enumerate(trials)
        ]
    )


ONE, TWO, THREE = fd.SkipPlan([0]), fd.SkipPlan([0, 2], [1]), fd.SkipPlan([], [1, 2])


def test_branches_are_counted_in_the_best_plan_of_each_seed_of_the_whole_space():
    table = pd.concat(
        [
            race("all", "Ax", 0, (1.0, THREE), (1.3, TWO), (1.1, ONE)),
            race("all", "Ax", 1, (1.2, ONE), (0.9, THREE)),
            race("all", "random", 0, (2.0, THREE)),
            race("small", "Ax", 0, (2.0, THREE)),
        ],
        ignore_index=True,
    )
    found = experiment.branch_frequency(table)
    shares = found.pivot(index="branch", columns="layer", values="share")
    assert shares.loc["attention"].tolist() == [1.0, 0.0, 0.5]
    assert shares.loc["MLP"].tolist() == [0.0, 0.5, 0.0]


def test_the_race_is_what_was_recorded_of_it_and_nothing_else():
    raced = race("all", "Ax", 3, (1.0, ONE), (0.9, TWO))
    other = race("all", "Ax", 3, (5.0, ONE), strategy="search")
    found = experiment.race_of(pd.concat([other, raced.assign(seconds=2.0)], ignore_index=True))
    pd.testing.assert_frame_equal(found, raced[[*found]])
    assert {"space", "method", "seed", "index", "value", "best", "plan"} <= {*found}
    assert "seconds" not in found


def test_a_method_s_share_is_one_where_it_found_the_best_plan_and_nothing_for_the_mean_one():
    every = race("small", "exhaustive", 0, (1.1, TWO)).assign(best=1.3, index=7)
    table = pd.concat(
        [
            every,
            race("small", "Ax", 0, (1.0, ONE), (1.3, TWO)),
            race("small", "Ax", 1, (1.0, ONE), (1.2, THREE), (1.15, ONE)),
            race("small", "greedy", 0, (1.1, ONE)),
            race("all", "Ax", 0, (9.0, ONE)),
        ],
        ignore_index=True,
    )
    found = experiment.share_of_gain(table).set_index(["method", "seed"])
    assert found["share"].to_dict() == {
        ("Ax", 0): pytest.approx(1),
        ("Ax", 1): pytest.approx(0.5),
        ("greedy", 0): pytest.approx(0),
    }
    assert found["index"].tolist() == [1, 2, 0]


def recorded() -> pd.DataFrame:
    """A search with its two finalists, and what else is recorded beside it."""
    told = {"model": "m", "sampler": "temperature 1", "n": 12}
    found = {"strategy": "self-drafting", "length": 2, "speedup_iqr": 0.1, "plan": TWO.to_json()}
    ends = {"speedup_min": 1.0, "speedup_max": 1.4}
    speeds = [
        {"speedup_median": 1.2, "rounds_speedup": 1.3, "predicted_held_out": 1.25, "summed": 1.28},
        {"speedup_median": 1.1, "rounds_speedup": 1.1, "predicted_held_out": 1.0, "summed": 1.05},
    ]
    speeds = [{**speed, "predicted": 1.4} for speed in speeds]
    rows = [
        {**told, **found, **ends, **speed, "name": f"found {i}"}
        for i, speed in enumerate(speeds, start=1)
    ]
    rows.append({**told, "strategy": "autoregressive", "speedup_median": 1.0})
    rows.append({**told, "strategy": "ceiling", "value": 1.5})
    rows.append({**told, "strategy": "search", "trials": 60, "seconds": 40.0, "effort": 30.0})
    return pd.DataFrame(rows)


def test_what_was_timed_lies_off_what_was_foretold_by_the_residual():
    table = experiment.timed(recorded())
    assert table["name"].tolist() == ["found 1", "found 2"]
    assert table["residual"].tolist() == pytest.approx([1.3 / 1.25 - 1, 0.1])
    assert table["ceiling"].tolist() == [1.5, 1.5]


def test_from_what_was_foretold_to_the_clock_every_step_has_a_name():
    table = experiment.timed(recorded())
    steps = experiment.departures(table)[[*experiment.STEPS]]
    assert (1 + steps).prod(axis=1).tolist() == pytest.approx([1.2 / 1.4, 1.1 / 1.4])
    assert steps["luck of the draws"].tolist() == pytest.approx([1.28 / 1.25 - 1, 0.05])


def test_by_bytes_a_plan_of_gemma_gains_what_theory_says_at_its_best_length():
    table = original.by_bytes((0.4, 0.9)).set_index(["plan", "acceptance"])
    for (_, alpha), row in table.iterrows():
        gains = [theory.speedup(alpha, n, cost=row["cost"]) for n in range(17)]
        assert row["gain"] == pytest.approx(max(gains))
        assert row["length"] == gains.index(max(gains))
    assert table.loc[("the article's", 0.4), "gain"] == 1, "it cannot gain, so it does not draft"
    assert table.loc[("the article's", 0.9), "cost"] == pytest.approx(0.609, abs=5e-4)


def test_a_token_of_gemma_takes_its_weights_over_the_bandwidth_at_least():
    """9.24 billion weights, the embedding counted once, in two bytes each."""
    table = original.floors().set_index("device")
    assert table.loc["A100 80 GB", "weights_GB"] == pytest.approx(18.48, rel=0.005)
    assert table.loc["A100 80 GB", "ms_per_token"] == pytest.approx(18.48 / 2.039, rel=0.005)


def test_the_articles_plan_fits_a_gemma2_of_its_layers_alone():
    config = DecoderConfig.from_hf(published("gemma-2-9b"))
    assert original.fits_article(config)
    assert not original.fits_article(replace(config, n_layers=26, windows=config.windows[:26]))


def test_every_claim_has_its_value_and_its_n():
    check = pd.DataFrame(
        [
            {"temperature": 0.0, "texts": 4, "off": 1, "z": float("nan")},
            {"temperature": 1.0, "texts": 9, "off": 0, "z": -2.5},
            {"temperature": 1.0, "texts": 9, "off": 0, "z": 1.0},
        ]
    )
    share = pd.DataFrame({"method": ["Ax", "Ax", "random"], "share": [0.9, 1.0, 0.2]})
    won = experiment.timed(recorded()).query("name == 'found 1'").set_index(["model", "sampler"])
    searched = experiment.searches(recorded())
    values, claims = experiment.findings(original.article_run(), check, 0.4, share, won, searched)
    flat = results.flattened(json.loads(json.dumps(values)))
    told = {claim.id: (flat[claim.key], claim.n) for claim in claims}
    assert told["greedy"] == (1, 4)
    assert told["residuals"] == (0.4, 2)
    assert flat["residuals.largest"] == 2.5
    assert told["race"] == (0.9, 2)
    assert told["effort"] == (30.0, 1)
    assert told["m-temperature-1"] == (1.2, 12)
    assert claims[-1].spread == pytest.approx(results.notch(0.1, 12))
