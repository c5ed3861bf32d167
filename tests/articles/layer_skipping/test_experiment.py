"""Article 03's measures mean what their names say."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from foredraft.analysis.published import published, shares
from foredraft.analysis.speedup_lines import best_gain, level_lines
from foredraft.articles.layer_skipping import candidates, drafting, experiment, timings
from foredraft.decoding import theory
from foredraft.decoding.draft import Job
from foredraft.decoding.exit import FixedLength
from foredraft.decoding.reader import Reader
from foredraft.decoding.self_draft import SelfDrafter
from foredraft.decoding.text import Text
from foredraft.models.skip import SkipPlan
from foredraft.repro import claims as results
from foredraft.repro import params
from foredraft.sampling import Sampler
from tests.articles.confidence_gating.test_experiment import letters
from tests.decoding.conftest import tiny

N_LAYERS = 2
PLANS = {
    "attention 0": SkipPlan(attn=[0]),
    "MLP 1": SkipPlan(mlp=[1]),
    "exit 1": SkipPlan.early_exit(1, N_LAYERS),
    "first off": SkipPlan.layers([0]),
    "everything": SkipPlan.layers(range(N_LAYERS)),
}
CANDIDATES = [candidates.Candidate("any", name, plan) for name, plan in PLANS.items()]
PROMPTS = [[0, 1, 4], [3, 2, 2, 1, 0, 4, 1, 1], [2]]
SHARES = {
    "gemma-2-2b": (0.141, 0.634, 0.226),
    "gemma-2-9b": (0.200, 0.701, 0.099),
    "gemma-2-27b": (0.096, 0.861, 0.043),
    "Llama-3-8B": (0.179, 0.751, 0.070),
}


@pytest.fixture
def chosen():
    sizes = {"max_new_tokens": 8, "n_positions": 4, "vocabularies": [3], "length": 2}
    return params.load("layer_skipping", {"profile": "smoke", **sizes})


@pytest.fixture(params=["llama", "gemma2"])
def subject(request, chosen):
    decoder = tiny(request.param, 5, 3, torch.float64)
    return experiment.read("tiny", decoder, PROMPTS, ["code"] * len(PROMPTS), chosen)


def draft_law(subject, row, place, plan):
    """The law from which `SelfDrafter` draws its first token after the text up to a place."""
    ids = subject.texts[row, : place + 1].tolist()
    capacity, spare = len(ids) + 2, 4
    reader = Reader(subject.decoder, 1, capacity, spare)
    text = Text([ids], capacity, torch.device("cpu"))
    reader.read(text)
    sampler = Sampler()
    proposer = SelfDrafter(plan).begin(Job(reader, sampler, 1, capacity, spare))
    generator = torch.Generator().manual_seed(0)
    draft = proposer.propose(text, [1], FixedLength(1).begin(1), generator=generator)
    return draft.probs[0, 0]


@torch.no_grad()
def test_a_first_step_is_the_one_that_self_drafting_takes(subject, chosen):
    table = experiment.first_steps(subject, CANDIDATES, chosen)
    for candidate in CANDIDATES:
        for row in range(len(PROMPTS)):
            betas = [
                theory.overlap(
                    subject.log_p[row, step].exp(),
                    draft_law(subject, row, int(place), candidate.plan),
                )
                for step, place in enumerate(subject.places[row])
            ]
            line = table[(table.name == candidate.name) & (table.text == row)]
            assert line["overlap"].item() == pytest.approx(float(sum(betas)) / len(betas), abs=1e-6)


def test_the_whole_model_overlaps_itself(subject, chosen):
    whole = experiment.first_steps(subject, CANDIDATES, chosen).query("family == 'whole'")
    assert whole["overlap"].to_numpy() == pytest.approx(1, abs=1e-6)
    assert whole["agreement"].to_numpy() == pytest.approx(1)
    assert whole["divergence"].to_numpy() == pytest.approx(0, abs=1e-6)


def test_no_plan_sees_what_another_has_left_behind(subject, chosen):
    together = experiment.first_steps(subject, CANDIDATES, chosen)
    for candidate in reversed(CANDIDATES):
        alone = experiment.first_steps(subject, [candidate], chosen)
        both = [each[each.name == candidate.name]["overlap"] for each in (together, alone)]
        assert both[0].tolist() == pytest.approx(both[1].tolist(), abs=1e-6)


def test_an_early_exit_has_the_same_law_behind_its_own_keys_and_values(subject, chosen):
    exit_at_1 = PLANS["exit 1"]
    table = experiment.judged(experiment.first_steps(subject, CANDIDATES, chosen))
    beta = table.set_index("name").loc["exit 1", "overlap"]
    assert experiment.read_alone(subject, exit_at_1, chosen) == pytest.approx(beta, abs=1e-6)
    other = table.set_index("name").loc["first off", "overlap"]
    assert experiment.read_alone(subject, PLANS["first off"], chosen) != pytest.approx(other)


def test_the_first_layers_as_a_model_of_their_own_are_judged_as_the_exit_after_them(
    subject, chosen
):
    shallow = copy.deepcopy(subject.decoder)
    shallow.layers = shallow.layers[:1]
    shallow.config = replace(shallow.config, n_layers=1, windows=shallow.config.windows[:1])
    alone = experiment.trained_alone(subject, shallow, chosen)
    table = experiment.first_steps(subject, CANDIDATES, chosen)
    kept = table[table.name == "exit 1"]
    for measure in ("overlap", "agreement", "divergence", "cost"):
        assert alone[measure].tolist() == pytest.approx(kept[measure].tolist(), abs=1e-6)
    other = experiment.trained_alone(subject, subject.decoder, chosen)
    assert other["overlap"].tolist() == pytest.approx([1.0] * len(PROMPTS), abs=1e-6)


def test_a_whole_vocabulary_is_no_trimming_and_a_smaller_one_costs_less(subject, chosen):
    table = experiment.trimmed(subject, PLANS["exit 1"], chosen).set_index("vocabulary")
    steps = experiment.judged(experiment.first_steps(subject, CANDIDATES, chosen))
    line = steps.set_index("name").loc["exit 1"]
    assert table.loc[5, ["overlap", "cost"]].tolist() == pytest.approx(
        [line["overlap"], line["cost"]], abs=1e-6
    )
    assert table.loc[3, "cost"] < table.loc[5, "cost"]


def test_greedy_texts_are_the_target_s_whatever_drafts(subject, chosen):
    texts = drafting.greedy_texts(subject, CANDIDATES, chosen, n_prompts=3)
    assert set(texts) == {"no draft", *PLANS}
    assert all(text == texts["no draft"] for text in texts.values())


def test_drafting_with_nothing_skipped_accepts_everything(subject, chosen):
    whole = candidates.Candidate("any", "whole", SkipPlan())
    rounds = drafting.drafting(subject, [whole, *CANDIDATES], chosen)
    table = drafting.in_earnest(rounds)
    found = table[table.measure == "acceptance"].set_index("name")["mean"]
    assert found["whole"] == 1
    assert (found <= 1).all()
    assert set(table[table.measure == "acceptance_by_position"]["position"]) == {1, 2}


def test_losses_add_up_over_the_tokens_of_a_prompt(subject):
    table = experiment.losses(subject)
    assert table["tokens"].tolist() == [len(prompt) - 1 for prompt in PROMPTS]
    assert table["loss"].iloc[-1] == 0
    assert (table["loss"].iloc[:-1] > 0).all()


def lines(*rows):
    """Judged plans as (family, name, plan, β, cost)."""
    columns = ["family", "name", "plan", "overlap", "cost"]
    table = pd.DataFrame(rows, columns=columns).assign(model="m")
    table["branches"] = [len(plan) for plan in table["plan"]]
    return table.assign(plan=[plan.to_json() for plan in table["plan"]])


def test_the_gap_of_a_set_is_from_the_product_of_its_own_parts():
    table = lines(
        ("one branch", "a", SkipPlan(attn=[0]), 0.5, 0.9),
        ("one branch", "b", SkipPlan(mlp=[0]), 0.8, 0.8),
        ("one branch", "c", SkipPlan(mlp=[1]), 0.1, 0.8),
        ("random", "a and b", SkipPlan(attn=[0], mlp=[0]), 0.2, 0.7),
    )
    (row,) = experiment.products(table, ["random"], "one branch").to_dict("records")
    assert row["product"] == pytest.approx(0.4)
    assert row["gap"] == pytest.approx(np.log(0.5))


def test_the_cheapest_branch_is_the_one_that_costs_least_for_its_bytes():
    table = lines(
        ("one branch", "a", SkipPlan(attn=[0]), 0.9, 0.98),
        ("one branch", "b", SkipPlan(mlp=[0]), 0.8, 0.80),
        ("one branch", "c", SkipPlan(mlp=[1]), 0.3, 0.80),
    )
    config = tiny("llama", 5, 3, torch.float32).config
    found = [each.plan for each in candidates.cheapest_first(table, config, 3)]
    assert found[0] == SkipPlan(mlp=[0])
    assert found[1] == SkipPlan(mlp=[0, 1], attn=[]) or found[1] == SkipPlan(mlp=[0], attn=[0])
    assert len(found[2]) == 3


def test_random_sets_have_their_sizes_and_are_drawn_from_the_seed(chosen):
    once, again = (candidates.joint_branches(12, chosen) for _ in range(2))
    assert once == again
    assert [len(each.plan) for each in once] == [2, 2, 4, 4]


def test_plans_of_equal_cost_come_in_pairs():
    config = tiny("gemma2", 5, 3, torch.float32).config
    plans = candidates.equal_costs(N_LAYERS)
    costs = {family: set() for family in ("early exit", "spread out")}
    for each in plans:
        costs[each.family].add(each.plan.cost(config))
    assert costs["early exit"] == costs["spread out"]


def test_sets_of_three_are_told_apart_by_where_stacking_took_them_from():
    found = [each for each in candidates.threes(12) if each.family != "one layer"]
    families = pd.Series([each.family for each in found]).value_counts()
    assert families.to_dict() == {"one of each, apart": 12, "one origin": 12, "a run": 10}
    origins = {
        each.name: {layer % candidates.PERIOD for layer in each.plan.attn}
        for each in found
        if each.family != "one origin"
    }
    assert all(len(each) == 3 for each in origins.values())


def test_copies_of_a_layer_are_as_alike_as_can_be():
    decoder = copy.deepcopy(tiny("llama", 5, 3, torch.float32))
    before = experiment.by_distance(experiment.likeness(decoder))["cosine"].item()
    decoder.layers[1].load_state_dict(decoder.layers[0].state_dict())
    after = experiment.by_distance(experiment.likeness(decoder))["cosine"].item()
    assert abs(before) < 0.5
    assert after == pytest.approx(1)


def test_a_line_of_equal_gain_separates_more_from_less():
    table = level_lines([1.25], points=5)
    for row in table.to_dict("records"):
        assert best_gain(row["acceptance"], row["cost"]) >= 1.25
        assert best_gain(row["acceptance"] - 1e-3, row["cost"]) < 1.25


@pytest.mark.parametrize("name", SHARES)
def test_bytes_of_published_models_are_those_of_their_parts(name):
    config = published(name)
    table = shares({name: config}).set_index("part")["share"]
    assert table[["attention", "MLP", "head"]].tolist() == pytest.approx(SHARES[name], abs=6e-4)
    everything = SkipPlan.layers(range(config.num_hidden_layers))
    assert everything.cost(config) == pytest.approx(table["head"])


def test_the_article_s_plan_costs_what_its_clock_said():
    cost = experiment.ARTICLE_PLAN.cost(published("gemma-2-9b"))
    assert cost == pytest.approx(0.609, abs=5e-4)
    assert cost == pytest.approx(experiment.TARGET_RATE / experiment.DRAFT_RATE, abs=5e-3)


@pytest.fixture
def recorded():
    ways = [
        ("plain", "foredraft", "exit 6", 1, 1.10),
        ("plain", "foredraft", "exit 6", 2, 1.20),
        ("plain", "transformers", "exit 6", 1, 1.90),
        ("trained", "foredraft", "exit 6", 4, 1.50),
    ]
    columns = ["model", "library", "name", "length", "speedup_median"]
    table = pd.DataFrame(ways, columns=columns)
    rest = {"sampler": "greedy", "strategy": "self-drafting", "reuse": True, "n": 24}
    spread = {"speedup_min": 1.0, "speedup_max": 2.0, "speedup_iqr": 0.1}
    return table.assign(
        **rest, **spread, plan="{}", cost_bytes=0.5, cost_measured=[0.55, 0.65, 0.4, 0.6]
    )


def test_the_clock_s_best_is_the_fastest_length_of_each_way(recorded):
    best = timings.on_the_clock(recorded)
    assert best["length"].tolist() == [2, 1, 4]


def test_the_gain_of_reuse_pairs_settings_that_ran_both_ways():
    def row(name, reuse, rate, library="foredraft"):
        where = {"strategy": "self-drafting", "library": library, "model": "m", "sampler": "greedy"}
        return {
            **where,
            "name": name,
            "length": 2,
            "reuse": reuse,
            "tokens_per_second_median": rate,
        }

    rows = [row("exit 3", True, 12.0), row("exit 3", False, 10.0), row("one branch", False, 9.0)]
    rows.append(row("exit 3", False, 5.0, "transformers"))
    assert timings.gain_by_reuse(pd.DataFrame(rows)).tolist() == [1.2]


def test_a_measured_cost_is_ours_alone(recorded):
    table = timings.measured_costs(recorded).set_index("model")
    assert table.loc["plain", "cost_measured"] == pytest.approx(0.6)


def test_times_of_branches_go_to_their_plans_in_per_cent_if_all_were_timed():
    plans = [SkipPlan(attn=[0]).to_json(), SkipPlan(mlp=[0]).to_json()]
    singles = pd.DataFrame({"model": "plain", "plan": plans, "overlap": [0.8, 0.9]})
    off = {"strategy": "one branch off", "model": "plain"}
    rows = [
        {**off, "plan": plan, "share_median": share}
        for plan, share in zip(plans, (0.04, 0.03), strict=True)
    ]
    timed = timings.with_times(singles, pd.DataFrame(reversed(rows)))
    assert timed["time"].tolist() == pytest.approx([4, 3])
    assert "time" not in timings.with_times(singles, pd.DataFrame(rows[:1]))
    assert "time" not in timings.with_times(singles, pd.DataFrame(rows[:0], columns=["strategy"]))


def test_claims_name_values_and_take_speeds_from_our_own_rows(recorded):
    row = pd.DataFrame([{"mean": 0.5, "low": 0.4, "high": 0.7, "n": 9}])
    tables = dict.fromkeys(experiment.CLAIMS, row)
    values, claims = experiment.findings(tables, recorded, "trained")
    flat = results.flattened(values)
    assert {claim.key for claim in claims} <= set(flat)
    assert (flat["speedup.median"], flat["speedup_trained.median"]) == (1.2, 1.5)
    assert flat["article_cost"] == pytest.approx(0.609, abs=5e-4)


@pytest.mark.parametrize("name", PLANS)
def test_a_drafted_text_is_the_targets_and_every_token_has_a_fate(subject, chosen, name):
    greedy = chosen.model_copy(update={"temperature": 0.0})
    table = drafting.drafted_text(subject, letters(), PLANS[name], greedy, prompt=1)
    texts = drafting.greedy_texts(subject, [], greedy, n_prompts=2)
    assert "".join(table["text"]) == letters().decode(texts["no draft"][1])
    counts = table["fate"].value_counts()
    assert counts.get("accepted", 0) == table["accepted"].iloc[0]
    assert table["drafted"].iloc[0] >= table["accepted"].iloc[0]
    assert table["fate"].iloc[0] == "plain"
    assert (table["confidence"] >= 1 / 5).all(), "the favourite of five has a fifth or more"


def test_the_branches_that_are_off_are_named_by_their_ends(subject, chosen):
    plan = SkipPlan(attn=[0, 1], mlp=[1])
    table = drafting.drafted_text(subject, letters(), plan, chosen, prompt=0)
    assert set(table["off"]) == {"attention 0–1 and MLP 1"}
