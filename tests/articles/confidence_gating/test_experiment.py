"""Policies on recorded texts: what they come to, which is best, and what would be best."""

import math
from dataclasses import replace
from itertools import product
from unittest.mock import create_autospec

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from transformers import PreTrainedTokenizerBase

import foredraft as fd
from foredraft.articles.confidence_gating import calibration, signals, texts
from foredraft.articles.confidence_gating import experiment as gating
from foredraft.articles.confidence_gating import policies as gating_policies
from foredraft.articles.confidence_gating.experiment import Subject
from foredraft.articles.confidence_gating.policies import Policy
from foredraft.benchmarks.round_costs import RoundCosts
from foredraft.decoding.replay import Script, replay
from foredraft.decoding.theory import Costs
from foredraft.prompts import Prompt
from foredraft.repro import claims, params
from tests.decoding.conftest import tiny

VOCAB, LONGEST = 11, 3
PARTS = Costs(1.0, 0.3, {n: 1.0 + 0.1 * n for n in range(1, LONGEST + 1)}, 0.05)
COSTS = RoundCosts(PARTS, PARTS)
TEXTS = [[1, 2, 3], [4], [5, 6, 7, 8], [9, 1], [10, 10], [3, 8, 0]]
KINDS = ("one", "one", "two", "two", "three", "three")


def letters() -> PreTrainedTokenizerBase:
    """A tokenizer whose tokens are letters."""
    tokenizer = create_autospec(PreTrainedTokenizerBase, instance=True)
    tokenizer.decode.side_effect = lambda ids: "".join(chr(ord("a") + i) for i in ids)
    tokenizer.eos_token_id = None
    return tokenizer


def settings(**changes) -> params.ConfidenceGating:
    sizes = {"longest": LONGEST, "max_new_tokens": 14, "thresholds": [0.0, 0.1, 0.3, 1.0]}
    return params.load("confidence_gating", {"profile": "smoke", **sizes, **changes})


@pytest.fixture(scope="module")
def subject() -> Subject:
    target, draft = (tiny("llama", VOCAB, seed, torch.float32) for seed in (3, 4))
    prompts = [Prompt(kind, tuple(ids)) for kind, ids in zip(KINDS, TEXTS, strict=True)]
    drafter = fd.ModelDrafter(draft)
    return Subject("draft model", "tiny", "", target, drafter, prompts, prompts[::-1], letters())


@pytest.fixture(scope="module")
def tuning(subject) -> Script:
    return gating.script(subject, settings(), temperature=1.0)


@pytest.fixture(scope="module")
def held_out(subject) -> Script:
    return gating.script(subject, settings(), temperature=1.0, held_out=True)


def written(*accepted: list[int], lengths: int = LONGEST) -> Script:
    """One text a row, with so many accepted of the draft behind each place."""
    n_texts, places = len(accepted), len(accepted[0])
    stood = torch.tensor(accepted)
    half = torch.full((n_texts, places + 2), 0.5)
    return Script(
        tokens=tuple(tuple(range(places + 2)) for _ in accepted),
        target=dict.fromkeys(("confidence", "entropy", "margin"), half),
        drafts=torch.zeros(n_texts, places, LONGEST, dtype=torch.int64),
        lengths=torch.full((n_texts, places), lengths),
        accepted=stood,
        signals={
            name: torch.full((n_texts, places, LONGEST), 0.5)
            for name in ("confidence", "entropy", "margin")
        },
    )


def test_texts_are_the_same_for_all_drafters_and_others_when_held_out(subject, tuning, held_out):
    other = Subject(
        *("prompt lookup", "tiny", "", subject.target, fd.PromptLookupDrafter()),
        *(subject.tuning, subject.held_out, subject.tokenizer),
    )
    assert gating.script(other, settings(), temperature=1.0).tokens == tuning.tokens
    assert held_out.tokens != tuning.tokens
    assert {len(text) for text in tuning.tokens} == {14}


@pytest.mark.parametrize("length", range(1, LONGEST + 1))
def test_a_table_of_one_length_is_that_fixed_length(held_out, length):
    policy = Policy("fixed length", fd.FixedLength(length))
    by_rule = gating_policies.played(held_out, policy, COSTS)
    table = np.full(held_out.accepted.shape, length)
    by_table = gating_policies.followed(held_out, table, PARTS)
    for name in ("tokens", "rounds", "drafted", "accepted", "closed", "time"):
        assert getattr(by_table, name).tolist() == pytest.approx(getattr(by_rule, name).tolist())


def test_never_to_draft_takes_a_plain_step_a_token(held_out):
    outcome = gating_policies.played(held_out, Policy("never"), COSTS)
    assert outcome.tokens.tolist() == outcome.time.tolist() == [13.0] * len(TEXTS)
    assert outcome.speedup(COSTS).mean == 1
    assert outcome.gain(outcome).mean == 1


def test_an_outcome_adds_up_what_rounds_cost_by_hand():
    """Rounds of 0, 2 and 3 drafts: 1, then 0.6 + 1.2 + 0.05, then 0.9 + 1.3 + 0.05."""
    lines = pd.DataFrame(
        {"row": [0] * 3, "drafted": [0, 2, 3], "accepted": [0, 2, 1], "emitted": [1, 3, 2]}
    ).assign(gate_open=[False, True, True])
    outcome = gating_policies.Outcome.of(lines, PARTS)
    assert outcome.time.tolist() == pytest.approx([1 + 1.85 + 2.25])
    asked = gating_policies.Outcome.of(lines.assign(gate_open=True), PARTS)
    assert asked.time.tolist() == pytest.approx([1.05 + 1.85 + 2.25]), "asked in vain"
    assert asked.closed.tolist() == [0]
    assert (outcome.tokens[0], outcome.rounds[0], outcome.closed[0]) == (6, 3, 1)
    assert outcome.speedup(COSTS).mean == pytest.approx(6 / 5.1)


def test_a_gate_of_nought_is_the_fixed_length_and_one_of_one_is_never(held_out):
    always, never = (
        gating_policies.played(held_out, Policy("", fd.FixedLength(2), fd.ConfidenceGate(t)), COSTS)
        for t in (0, 1)
    )
    fixed = gating_policies.played(held_out, Policy("", fd.FixedLength(2)), COSTS)
    assert always.time.tolist() == fixed.time.tolist()
    assert never.time.tolist() == [13.0] * len(TEXTS)
    assert never.closed.tolist() == never.rounds.tolist()


def test_the_clairvoyant_is_the_best_of_all_tables_of_lengths():
    accepted = [[2, 0, 1, 3], [0, 0, 3, 1]]
    recorded = written(*accepted)
    least = [math.inf, math.inf]
    for row in product(range(LONGEST + 1), repeat=4):
        time = gating_policies.followed(recorded, np.array([row, row]), PARTS).time
        least = [min(pair) for pair in zip(least, time.tolist(), strict=True)]
    best = gating_policies.followed(recorded, gating_policies.clairvoyant(recorded, PARTS), PARTS)
    assert best.time.tolist() == pytest.approx(least)
    assert best.accepted.tolist() == best.drafted.tolist()


def test_what_a_drafter_has_not_drafted_costs_no_more_than_asking_it():
    recorded = written([0, 0, 0], lengths=0)
    outcome = gating_policies.followed(recorded, np.full((1, 3), 2), PARTS)
    assert outcome.drafted.tolist() == [0]
    assert outcome.time.tolist() == pytest.approx([4 + 3 * PARTS.other])
    played = gating_policies.played(recorded, Policy("", fd.FixedLength(2)), COSTS)
    assert played.time.tolist() == outcome.time.tolist()


def test_no_policy_is_faster_than_the_clairvoyant(tuning, held_out):
    table, policies = gating.judged(tuning, held_out, COSTS, settings())
    known = table.set_index("policy")
    assert known["speedup"].idxmax() == "clairvoyant"
    assert known.loc["fixed length", "gain"] == 1
    assert known.loc["never", "speedup"] == 1
    assert set(policies) == set(table["policy"]) - {"all signals", "clairvoyant"}
    assert (table["n"] == len(TEXTS)).all()
    for name in policies:
        again = gating_policies.played(held_out, policies[name], COSTS)
        assert known.loc[name, "speedup"] == pytest.approx(again.speedup(COSTS).mean)


def test_each_kind_is_tuned_to_its_best_on_the_texts_it_is_shown(tuning):
    chosen = settings()
    found = gating.tuned(tuning, COSTS, chosen)
    for name, options in {
        "fixed length": gating_policies.fixed(chosen),
        "confidence gate": gating_policies.gated("confidence", chosen),
        "entropy gate": gating_policies.gated("entropy", chosen),
        "draft's confidence": gating_policies.exits(chosen),
    }.items():
        times = [gating_policies.played(tuning, each, COSTS).time.sum() for each in options]
        assert gating_policies.played(tuning, found[name], COSTS).time.sum() == min(times)
    assert found["the article's gate"].gate == fd.ConfidenceGate(chosen.threshold)
    assert found["the article's gate"].length == found["fixed length"].length


def test_the_rule_of_expected_gain_is_told_the_rate_that_it_attains(tuning):
    policy = calibration.expected_gain(tuning, COSTS, settings())
    attained = gating_policies.played(tuning, policy, COSTS).speedup(COSTS).mean
    assert policy.rule.rate == pytest.approx(attained, rel=1e-3)


def test_the_rule_never_loses_to_a_fixed_length_where_it_is_tuned(tuning):
    rule = calibration.expected_gain(tuning, COSTS, settings())
    fixed = gating_policies.best_of(tuning, gating_policies.fixed(settings()), COSTS)
    times = [gating_policies.played(tuning, each, COSTS).time.sum() for each in (rule, fixed)]
    assert times[0] <= times[1] + 1e-9


def test_where_drafting_brings_less_than_it_costs_the_rule_never_drafts(tuning):
    dear = Costs(target=1.0, draft=5.0, verify=PARTS.verify)
    policy = calibration.expected_gain(tuning, RoundCosts(dear, dear), settings())
    times = gating_policies.played(tuning, policy, RoundCosts(dear, dear)).time
    assert times.tolist() == [13.0] * len(TEXTS)


def test_a_gate_that_brings_nothing_is_left_out():
    """Every draft stands whatever was seen before it: to draft always costs least."""
    recorded = written(*[[LONGEST] * 12] * 4)
    policy = calibration.expected_gain(recorded, COSTS, settings())
    fixed = gating_policies.played(recorded, Policy("", fd.FixedLength(LONGEST)), COSTS)
    assert gating_policies.played(recorded, policy, COSTS).time.sum() <= fixed.time.sum()
    assert policy.gate is None


def test_the_text_shown_is_the_one_whose_gate_is_most_undecided(subject, held_out):
    policy = gating_policies.article(2, settings(threshold=0.09))
    shown = texts.mixed_text(subject, held_out, policy)
    shares = []
    for text in range(len(TEXTS)):
        rounds = gating_policies.rounds_of(gating.replay(held_out, policy.gate, policy.stop))
        shares.append(rounds.loc[rounds["row"] == text, "gate_open"].mean())
    assert len(set(shares)) > 1
    assert shown == min(range(len(TEXTS)), key=lambda text: abs(shares[text] - 0.5))


def test_a_threshold_is_shown_with_what_it_comes_to_on_all_texts(subject, held_out):
    policy = gating_policies.article(2, settings(threshold=0.1))
    table = texts.threshold_fates(subject, held_out, policy, COSTS, text=1)
    columns = ["text", "confidence", "fate"]
    expected = texts.fates(subject, held_out, policy, text=1)
    pd.testing.assert_frame_equal(table[columns], expected)
    always = texts.threshold_fates(
        subject, held_out, gating_policies.article(2, settings(threshold=0.0)), COSTS, text=1
    )
    assert (always["closed"] == 0).all()
    assert (always["speedup"] == always["open"]).all()
    assert 0 < table["closed"].iloc[0] < 1
    assert table["open"].iloc[0] == always["open"].iloc[0]


def test_where_looking_is_dear_the_rule_leaves_it(tuning):
    dear = replace(PARTS, draft=2.0)
    policy = calibration.expected_gain(tuning, RoundCosts(PARTS, dear), settings())
    assert policy.stop.begin(1).watches is None
    exit_alone = Policy("", fd.ConfidenceExit(0.0, 2))
    time = gating_policies.played(tuning, exit_alone, RoundCosts(PARTS, dear)).time
    fixed = gating_policies.played(
        tuning, Policy("", fd.FixedLength(2)), RoundCosts(dear, PARTS)
    ).time
    assert time.tolist() == fixed.tolist()


def test_a_drafter_without_laws_gets_one_length_and_a_gate(subject):
    lookup = Subject(
        *("prompt lookup", "tiny", "", subject.target, fd.PromptLookupDrafter()),
        *(subject.tuning, subject.held_out, subject.tokenizer),
    )
    recorded = gating.script(lookup, settings(), temperature=0.0)
    assert not recorded.signals
    policy = calibration.expected_gain(recorded, COSTS, settings())
    assert 1 <= policy.length <= LONGEST
    assert "draft's confidence" not in gating.tuned(recorded, COSTS, settings())
    lengths = calibration.informed(recorded, COSTS)(recorded)
    assert lengths.shape == tuple(recorded.accepted.shape)


@pytest.mark.parametrize(
    ("texts", "drafted", "accepted"),
    [
        ([[0] * 6] * 4, LONGEST, 0.0),
        ([[0] * 6] * 4, 0, 0.0),
        ([[1] * 6] * 4, 1, 0.0),
        ([[1] * 6] * 4, LONGEST, 0.0),
        ([[LONGEST] * 6] * 4, LONGEST, 1.0),
    ],
)
@pytest.mark.parametrize("has_laws", [True, False])
def test_what_never_came_to_the_test_is_not_counted_on(texts, drafted, accepted, has_laws):
    """Of so few texts none may have a draft, or one of which a second token could stand or fall.

    In the last two cases second tokens came to the test, and say themselves what they are worth.
    """
    recorded = written(*texts, lengths=drafted)
    recorded = recorded if has_laws else replace(recorded, signals={})
    rule = calibration.expected_gain(recorded, COSTS, settings()).rule
    assert rule.later == accepted
    lengths = calibration.informed(recorded, COSTS)(recorded)
    assert lengths.min() >= 0
    assert lengths.max() <= LONGEST


def test_what_all_signals_say_is_a_length_for_every_place(tuning, held_out):
    lengths = calibration.informed(tuning, COSTS)(held_out)
    assert lengths.shape == tuple(held_out.accepted.shape)
    assert lengths.min() >= 0
    assert lengths.max() <= LONGEST


def test_first_tokens_come_with_what_was_known_before_them(held_out):
    table = calibration.firsts(held_out, KINDS)
    for row in table.sample(20, random_state=0).to_dict("records"):
        text, place = row["text"], row["place"]
        assert row["accepted"] == (held_out.accepted[text, place] > 0)
        assert row["kind"] == KINDS[text]
        for name in ("confidence", "entropy", "margin"):
            assert row[name] == pytest.approx(float(held_out.target[name][text, place]))
        own = held_out.signals["confidence"][text, place, 0]
        assert row["draft_confidence"] == pytest.approx(float(own))


def test_drafted_tokens_are_listed_as_far_as_all_before_them_stand():
    table = calibration.tokens_drafted(written([2, 0], [3, 1]))
    told = {
        (row["text"], row["place"], row["k"]): (row["stands"], row["next"])
        for row in table.to_dict("records")
    }
    assert told.pop((0, 0, 1)) == (True, 1)
    assert told.pop((0, 0, 2)) == (True, 0)
    stands, behind = told.pop((0, 0, 3))
    assert (stands, math.isnan(behind)) == (False, True)
    assert told.pop((0, 1, 1))[0] == False  # noqa: E712 - numpy's own
    assert told.pop((1, 0, 1)) == told.pop((1, 0, 2)) == (True, 1)
    stands, behind = told.pop((1, 0, 3))
    assert (stands, math.isnan(behind)) == (True, True), "nothing was drafted behind it"
    assert told.pop((1, 1, 1)) == (True, 0)
    assert told.pop((1, 1, 2))[0] == False  # noqa: E712
    assert not told


def spread_out(n: int = 60) -> pd.DataFrame:
    """First tokens that stand exactly where the target was sure."""
    sure = np.linspace(0, 1, n)
    table = pd.DataFrame({"text": np.arange(n) % 6, "kind": "one", "accepted": sure > 0.5})
    table["confidence"] = table["margin"] = table["draft_confidence"] = sure
    return table.assign(entropy=1 - sure)


@pytest.mark.parametrize("digits", [1, 6])
def test_the_auc_is_scikit_learn_s_with_ties_and_without(digits):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "text": rng.integers(0, 6, 300),
            "kind": "code",
            "accepted": rng.random(300) < 0.4,
            **{name: rng.random(300).round(digits) for name in ("confidence", "margin", "entropy")},
            "draft_confidence": math.nan,
        }
    )
    found = signals.discrimination(table, resamples=2).query("kind == 'all'").set_index("signal")
    for name, auc in found["auc"].items():
        score = -table[name] if name == "entropy" else table[name]
        assert auc == pytest.approx(roc_auc_score(table["accepted"], score), abs=1e-12)


def test_a_signal_that_tells_everything_has_an_auc_of_one_whatever_its_direction():
    found = signals.discrimination(spread_out(), resamples=5)
    assert found.loc[found["kind"] == "all", "auc"].tolist() == [1.0] * 4
    assert found.loc[found["kind"] == "all", "sem"].tolist() == [0.0] * 4


def test_where_all_are_accepted_there_is_nothing_to_tell_apart():
    found = signals.discrimination(spread_out().assign(accepted=True), resamples=5)
    assert found["auc"].isna().all()


def test_a_signal_that_was_not_looked_at_is_left_out():
    found = signals.discrimination(spread_out().assign(draft_confidence=math.nan), resamples=5)
    assert set(found["signal"]) == {"confidence", "entropy", "margin"}


def test_bins_of_a_signal_hold_as_many_places_and_intervals_their_shares():
    found = signals.reliability(spread_out(), "confidence", bins=6)
    assert found["n"].tolist() == [10] * 6
    assert found["share"].tolist() == [0, 0, 0, 1, 1, 1]
    assert (found["low"] <= found["share"]).all()
    assert (found["share"] <= found["high"] + 1e-12).all()


def test_thresholds_go_from_always_to_never_for_every_signal(held_out):
    for signal in gating_policies.GATES:
        rows = gating.by_threshold(held_out, COSTS, settings(), signal=signal)
        assert rows["closed"].iloc[0] == 0
        assert rows["closed"].iloc[-1] == 1
        assert rows["speedup"].iloc[-1] == 1


def test_where_drafts_cost_as_much_as_the_target_never_is_the_base(tuning, held_out):
    rows = gating.by_cost(tuning, held_out, settings(), (0.05, 1.0)).set_index(["cost", "policy"])
    assert rows.loc[(1.0, "best fixed length or never"), "speedup"] == 1
    assert (rows.xs("best fixed length or never", level="policy")["gain"] == 1).all()
    bound = rows.xs("clairvoyant", level="policy")["gain"]
    assert (bound >= rows["gain"].groupby("cost").max() - 1e-12).all()


def test_replayed_rounds_are_those_that_decoding_makes(subject, held_out, tuning):
    """Five standard errors of either side: for eight policies less than one alarm in 10,000."""
    _, policies = gating.judged(tuning, held_out, COSTS, settings())
    rows = gating.confirmed(subject, held_out, policies, settings(samples=8, temperature=1.0))
    assert set(rows["policy"]) == set(policies) - {"never"}
    finite = rows.loc[rows["decoded_sem"] + rows["replayed_sem"] > 0]
    assert finite["z"].abs().max() < 5


def test_every_token_of_a_text_has_a_fate(subject, held_out):
    policy = gating_policies.article(2, settings(threshold=0.1))
    table = texts.fates(subject, held_out, policy, text=1)
    assert "".join(table["text"]) == letters().decode(held_out.tokens[1])
    trace = replay(held_out, policy.gate, policy.stop)
    rows = [row for each in trace.rounds[1:] for row in each.rows if row.row == 1]
    counts = table["fate"].value_counts()
    assert counts.get("accepted", 0) == sum(row.accepted for row in rows)
    assert counts["plain"] == 1 + sum(row.drafted == 0 for row in rows)
    with pytest.raises(ValueError, match="never drafts"):
        texts.fates(subject, held_out, Policy("never"), text=0)


def test_curves_are_told_knot_by_knot(tuning):
    rule = calibration.expected_gain(tuning, COSTS, settings()).rule
    table = gating.curves_of(rule)
    assert set(table["curve"]) == {"opening", "stands", "follows"}
    for name, rows in table.groupby("curve"):
        assert tuple(rows["chance"]) == getattr(rule, name).values
        assert rows["chance"].is_monotonic_increasing


def test_unknown_drafters_and_signals_are_refused_by_name(monkeypatch, subject):
    monkeypatch.setattr(gating, "_loaded", lambda *_: (subject.target, letters()))
    with pytest.raises(ValueError, match="unknown drafter 'skip plans': did you mean 'skip plan'"):
        gating.subject("skip plans", settings())
    with pytest.raises(ValueError, match="unknown signal 'entropie': did you mean 'entropy'"):
        gating_policies.gated("entropie", settings())


def test_models_that_cannot_be_had_are_named_with_what_runs_instead():
    with pytest.raises(ValueError, match=r"pocket-lama.*profile=pocket"):
        gating.subject("draft model", settings(model="pocket-lama"))


def test_the_name_of_every_policy_makes_a_key_that_can_be_cited():
    names = ["fixed length, again", "the article's gate", "draft's confidence"]
    keys = [gating.key("draft model", "temperature 0.5", name) for name in names]
    assert keys[0] == "draft-model-temperature-0_5-fixed-length-again"
    assert len(claims.flattened({key: 1.0 for key in keys})) == len(names)
