"""The renewal-reward rule: its two inequalities, and that at its own rate nothing gains more."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from foredraft.decoding.exit import Exit, ExitPolicy, FixedLength
from foredraft.decoding.expected_gain import STEPS, Curve, ExpectedGain, Table
from foredraft.decoding.gate import Gate, GatePolicy
from foredraft.decoding.signal import confidence, entropy, margin
from foredraft.decoding.theory import Costs
from tests.decoding.conftest import Waits
from tests.decoding.test_gate import drafting, each_drafter, plain_greedy, rounds, seen_after
from tests.decoding.test_speculation import GREEDY, PROMPTS

ITSELF = Curve((0.0, 1.0), (0.0, 1.0))
"""For a signal that is the chance."""
BENT = Curve((-1.0, 0.2, 0.5, 3.0), (0.9, 0.1, 0.4, 0.4))
STEEP = Curve((0.1, 0.3, 2.0), (0.0, 0.6, 1.0))
COSTS = Costs(target=1.0, draft=0.1, verify={1: 1.1, 2: 1.2, 3: 1.5}, other=0.05)
RULE = ExpectedGain(COSTS, 1.0, 3, opening=ITSELF, stands=ITSELF, follows=ITSELF, later=0.5)
LOOP = ExpectedGain(
    Costs(1.0, 0.1, {n: 1 + 0.02 * n for n in range(1, 5)}),
    rate=1.1,
    max_length=4,
    opening=Curve((0.0, 0.12), (0.0, 0.5)),
    stands=Curve((0.0, 0.2), (0.3, 1.0)),
    follows=Curve((0.0, 0.2), (0.0, 0.8)),
    later=0.5,
)
"""For the confidences of the tiny models."""


def decisions(stop, seen):
    return stop.goes_on(torch.tensor(seen, dtype=torch.float64)).tolist()


# Curves and their table


@pytest.mark.parametrize("curve", [ITSELF, BENT, STEEP, Curve((2,), (0.7,))], ids=repr)
def test_a_curve_is_straight_between_knots_and_level_beyond(curve):
    signals = [*np.linspace(-2, 4, 121).tolist(), *map(float, curve.knots)]
    found = [curve.at(signal) for signal in signals]
    assert found == pytest.approx(np.interp(signals, curve.knots, curve.values), abs=1e-12)


@pytest.mark.parametrize(
    "curves", [(ITSELF, ITSELF), (BENT, STEEP), (STEEP,)], ids=["same", "unequal", "one"]
)
def test_a_table_is_off_by_no_more_than_half_a_step_makes(curves):
    """Its step is that of all curves together, from the first of all knots to the last."""
    signals = torch.rand(500, generator=torch.Generator().manual_seed(1)).double() * 6 - 2
    found = Table.of(*curves).on(signals)
    assert found.shape == (len(curves), 500)
    width = max(each.knots[-1] for each in curves) - min(each.knots[0] for each in curves)
    for curve, row in zip(curves, found, strict=True):
        slopes = np.abs(np.diff(curve.values) / np.diff(curve.knots))
        wanted = np.interp(signals, curve.knots, curve.values)
        assert np.abs(row.numpy() - wanted).max() <= slopes.max() * width / (STEPS - 1) / 2 + 1e-6


def test_a_table_of_one_knot_is_level():
    table = Table.of(Curve((0.3,), (0.6,)))
    assert table.on(torch.tensor([-1.0, 0.3, 5.0])).flatten().tolist() == pytest.approx([0.6] * 3)


# The gate


def test_a_draft_has_to_begin_with_the_chance_that_its_best_length_pays():
    """By hand: drafts of 1, 2, 3 take 0.25, 0.45, 0.85 more than a plain round."""
    assert RULE.least_opening == pytest.approx(0.25)
    assert replace(RULE, later=0.9).least_opening == pytest.approx(0.45 / 1.9)
    assert replace(RULE, later=0).least_opening == pytest.approx(0.25)
    assert replace(RULE, rate=1.2).least_opening == pytest.approx(0.3)


def pays(rule, chance):
    """Say whether to draft by the formula as it stands: the round's gain over a plain one's."""
    gains = []
    for length in range(1, rule.max_length + 1):
        tokens = 1 + chance * sum(rule.later**i for i in range(length))
        time = length * rule.costs.draft + rule.costs.verify[length] + rule.costs.other
        gains.append(tokens - rule.rate * time)
    return max(gains) > 1 - rule.rate * rule.costs.target


def test_the_gate_opens_where_some_length_gains_more_than_a_plain_round():
    chance, said = np.random.default_rng(5), []
    for _ in range(300):
        longest = int(chance.integers(1, 7))
        verify = {n: float(chance.uniform(0.9, 1.6)) for n in range(1, longest + 1)}
        costs = Costs(1.0, float(chance.uniform(0, 0.4)), verify, float(chance.uniform(0, 0.2)))
        rate, later, first = chance.uniform((0.8, 0, 0), (2, 1, 1)).tolist()
        rule = replace(RULE, costs=costs, rate=rate, max_length=longest, later=later)
        said += rule.gate.begin(1).opens([first])
        assert said[-1] == pays(rule, first)
    assert 60 < sum(said) < 240


def test_where_a_draft_costs_nothing_more_any_chance_opens_and_where_all_of_it_fails_none():
    free = replace(RULE, costs=Costs(1.0, 0.0, {1: 1.0, 2: 1.0, 3: 1.0}))
    assert free.gate.begin(2).opens([0.0, 1e-9]) == [False, True]
    faster = replace(RULE, costs=Costs(1.0, 0.0, {1: 0.9, 2: 1.0, 3: 1.0}))
    assert faster.gate.begin(1).opens([0.0]) == [True]
    dear = replace(RULE, costs=Costs(1.0, 9.0, {1: 1.0, 2: 1.0, 3: 1.0}))
    assert dear.gate.begin(1).opens([1.0]) == [False]


def test_rows_open_by_their_own_signals_through_the_curve():
    """The least chance of 0.25 is that of an entropy of 1.5 nats."""
    rule = replace(RULE, opening=Curve((0.0, 2.0), (1.0, 0.0)), opening_signal=entropy)
    gate = rule.gate.begin(3)
    assert gate.watches is entropy
    assert gate.opens([1.49, 1.51, 9.0]) == [True, False, False]
    gate.keep_rows([2, 0])
    assert gate.opens([0.0, 2.0]) == [True, False]


# The exit


def test_a_further_token_has_to_have_the_chance_that_its_own_time_asks_for():
    assert [RULE.least(1), RULE.least(2)] == pytest.approx([0.1 + 0.1, 0.1 + 0.3])
    assert replace(RULE, rate=1.5).least(2) == pytest.approx(0.6)


def test_a_draft_goes_on_while_it_stands_and_the_next_token_is_worth_its_time():
    """By hand: A · α̂ is 0.81, 0.16 and 0.64 against 0.2, then 0.324, 0.4 and 0.512 against 0.4."""
    stop = RULE.exit.begin(3)
    assert decisions(stop, [0.9, 0.4, 0.8]) == [True, False, True]
    assert decisions(stop, [0.6, 1.0, 0.8]) == [False, False, True]
    assert decisions(stop, [1.0, 1.0, 1.0]) == [False] * 3


def test_what_stands_and_what_follows_have_curves_of_their_own():
    """Two drafted tokens of the same signal: 0.9 · 0.3 = 0.27, then 0.81 · 0.3 = 0.243."""
    flat = {"stands": Curve((0.0,), (0.9,)), "follows": Curve((0.0,), (0.3,))}
    costs = Costs(1.0, 0.1, {1: 1.0, 2: 1.16, 3: 1.31})
    stop = replace(RULE, costs=costs, **flat).exit.begin(1)
    assert (decisions(stop, [0.5]), decisions(stop, [0.5])) == ([True], [False])
    dearer = Costs(1.0, 0.1, {1: 1.0, 2: 1.18, 3: 1.31})
    assert decisions(replace(RULE, costs=dearer, **flat).exit.begin(1), [0.5]) == [False]


def test_each_draft_is_counted_afresh_in_the_rows_that_are_left():
    stop = RULE.exit.begin(3)
    assert decisions(stop, [0.5, 0.9, 0.1]) == [True, True, False]
    stop.learn([2, 2, 1], [0, 1, 1])
    stop.keep_rows([1, 2])
    assert decisions(stop, [0.5, 0.9]) == [True, True]
    assert decisions(stop, [0.9, 0.9]) == [True, True]
    assert decisions(stop, [1.0, 1.0]) == [False, False]


def goes_on_by_hand(rule, signals):
    """Say after each token of one draft whether it goes on, in the formula's own words."""
    stand, said = 1.0, []
    for length, signal in enumerate(signals[:-1], 1):
        stand *= np.interp(signal, rule.stands.knots, rule.stands.values)
        further = rule.costs.draft + rule.costs.verify[length + 1] - rule.costs.verify[length]
        next_one = np.interp(signal, rule.follows.knots, rule.follows.values)
        said.append(bool(stand * next_one > rule.rate * further))
    return [*said, False]


def test_so_does_any_rule_of_any_curves_in_each_row_of_two_drafts_in_turn():
    """At signals where the curves' table is exact, and beyond the token at which a row stops."""
    chance, heard = np.random.default_rng(3), set()
    for longest in (1, 2, 5, 8) * 5:
        times = np.cumsum(chance.uniform(-0.02, 0.15, longest)) + 1
        verify = dict(enumerate(times.tolist(), 1))
        costs = Costs(1.0, float(chance.uniform(0, 0.05)), verify)
        rule = replace(RULE, costs=costs, max_length=longest, stands=BENT, follows=STEEP)
        stop = rule.exit.begin(5)
        for _ in range(2):
            steps = chance.integers(STEPS, size=(longest, 5))
            signals = -1.0 + 4.0 * steps / (STEPS - 1)  # the knots are from −1 to 3
            wanted = zip(*(goes_on_by_hand(rule, row) for row in signals.T), strict=True)
            for place, (seen, goes) in enumerate(zip(signals, wanted, strict=True)):
                assert decisions(stop, seen.tolist()) == list(goes)
                heard |= {(place, each) for each in goes}
            stop.learn([1] * 5, [0] * 5)
    assert {(place, goes) for place in range(4) for goes in (True, False)} <= heard


def test_a_draft_of_one_token_at_most_is_no_longer_however_sure():
    costs = Costs(1.0, 0.0, {1: 1.0})
    stop = replace(RULE, max_length=1, costs=costs).exit.begin(2)
    assert stop.max_length == 1
    assert decisions(stop, [1.0, 0.3]) == [False, False]


def test_generations_at_the_same_time_count_apart():
    one, other = RULE.exit.begin(1), RULE.exit.begin(1)
    assert decisions(one, [0.5]) == [True]
    assert decisions(one, [0.5]) == [False]
    assert decisions(other, [0.5]) == [True]


def test_the_exit_looks_at_no_value_itself():
    """What waits for the device is the loop's question whether any row goes on."""
    stop, seen = RULE.exit.begin(2), torch.tensor([0.9, 0.4])
    with Waits() as waits, torch.inference_mode():
        for _ in range(RULE.max_length):
            stop.goes_on(seen)
    assert waits.asks + waits.sends == 0


# Both together


LATER, LONGEST = 0.8, 5
WORLDS = list(itertools.product((0.02, 0.12, 0.35, 0.7), ((0.9, 0.15), (0.97, 0.5), (0.4, 0.05))))


def world(draft):
    """Costs of verification that rise ever faster: so the first token not worth it is the last."""
    verify = {n: 1 + 0.01 * n + 0.012 * n * n for n in range(1, LONGEST + 1)}
    return Costs(1.0, draft, verify, other=0.03)


def attained(lengths, chances, costs):
    """Give tokens ÷ time of rounds that are as often of one kind as of the other.

    A kind is known before a round: the chance of its first token, whose draft shows the same. All
    later tokens have the chance `LATER`.
    """
    tokens = (
        1 + chance * sum(LATER**i for i in range(n))
        for n, chance in zip(lengths, chances, strict=True)
    )
    return sum(tokens) / sum(costs.round(n) for n in lengths)


def chosen(rule, chances):
    """Give how far the rule drafts in a round of each kind; 0: not at all."""
    lengths = []
    for chance, is_open in zip(chances, rule.gate.begin(2).opens(chances), strict=True):
        stop, signals = rule.exit.begin(1), itertools.chain([chance], itertools.repeat(LATER))
        length = int(is_open)
        while is_open and decisions(stop, [next(signals)])[0]:
            length += 1
        lengths.append(length)
    return tuple(lengths)


def at_its_own_rate(draft, chances):
    """Find the rate as that of the rule itself, from plain decoding's on."""
    costs, rate, before = world(draft), 1.0, 0.0
    rule = replace(
        RULE, costs=costs, max_length=LONGEST, later=LATER, follows=Curve((0.0,), (LATER,))
    )
    while rate != before:
        rule, before = replace(rule, rate=rate), rate
        rate = attained(chosen(rule, chances), chances, costs)
    return rule, rate


@pytest.mark.parametrize(("draft", "chances"), WORLDS)
def test_with_true_chances_no_choice_of_lengths_gains_more_than_the_rule_at_its_own_rate(
    draft, chances
):
    """Among all, those that do not draft in rounds of one kind or of both included."""
    _, rate = at_its_own_rate(draft, chances)
    choices = itertools.product(range(LONGEST + 1), repeat=2)
    best = max(attained(lengths, chances, world(draft)) for lengths in choices)
    assert rate == pytest.approx(best, rel=1e-12)


def test_these_worlds_ask_for_every_kind_of_choice():
    found = {chosen(at_its_own_rate(*each)[0], each[1]) for each in WORLDS}
    assert (0, 0) in found
    assert any(sure > unsure == 0 for sure, unsure in found)
    assert any(sure > unsure > 0 for sure, unsure in found)
    assert len({sure for sure, _ in found}) > 3


def test_another_rate_than_its_own_gains_less():
    """The negative control: told plain decoding's rate the rule drafts too much."""
    draft, chances = 0.12, (0.9, 0.15)
    rule, rate = at_its_own_rate(draft, chances)
    told = chosen(replace(rule, rate=0.7), chances)
    assert attained(told, chances, world(draft)) < 0.97 * rate


# In the loop


def test_what_begins_is_a_gate_and_an_exit_as_the_loop_expects_them():
    rule = replace(RULE, opening_signal=margin)
    assert isinstance(rule.gate, GatePolicy)
    assert isinstance(rule.exit, ExitPolicy)
    gate, stop = rule.gate.begin(2), rule.exit.begin(2)
    assert isinstance(gate, Gate)
    assert isinstance(stop, Exit)
    assert (gate.watches, stop.watches, stop.max_length) == (margin, confidence, 3)
    assert replace(rule, draft_signal=entropy).exit.begin(1).watches is entropy


@each_drafter
def test_a_row_drafts_where_the_chance_by_its_last_token_pays(drafter):
    made, said = drafting(LOOP.gate, drafter, exit_policy=LOOP.exit), set()
    for row in range(len(PROMPTS)):
        seen = seen_after(made, row, "confidence")[:-1]
        wanted = [LOOP.opening.at(value) > LOOP.least_opening for value in seen]
        assert [each.gate_open for each in rounds(made, row)] == [False, *wanted]
        said |= set(wanted)
    assert said == {True, False}


DEAR = replace(LOOP, rate=1e6)
CHEAP = replace(
    LOOP,
    rate=1e-9,
    opening=Curve((0.0,), (0.1,)),
    stands=Curve((0.0,), (0.5,)),
    follows=Curve((0.0,), (0.5,)),
)


@each_drafter
def test_at_a_rate_beyond_reach_nothing_is_drafted_and_at_next_to_none_all_that_may_be(drafter):
    made = drafting(DEAR.gate, drafter, exit_policy=DEAR.exit)
    assert made.trace == drafting(None, None).trace
    made = drafting(CHEAP.gate, drafter, exit_policy=CHEAP.exit)
    assert made == drafting(None, drafter, exit_policy=FixedLength(CHEAP.max_length))
    assert made.trace.drafted > 0


def test_its_drafts_have_the_lengths_that_their_own_tokens_make_worth_their_time():
    made = drafting(LOOP.gate, exit_policy=LOOP.exit)
    assert set(made.trace.table()["drafted"]) == set(range(LOOP.max_length + 1))


@each_drafter
def test_greedy_text_stays_autoregressive_decoding_s(family, drafter):
    made = drafting(LOOP.gate, drafter, family=family, sampler=GREEDY, exit_policy=LOOP.exit)
    assert made.tokens == plain_greedy(family)
    assert made.trace.drafted > 0


def test_a_row_drafts_in_a_batch_as_it_does_alone():
    options = {"sampler": GREEDY, "exit_policy": LOOP.exit}
    together = drafting(LOOP.gate, **options)
    for row, prompt in enumerate(PROMPTS):
        alone = drafting(LOOP.gate, prompts=[prompt], **options)
        assert [(each.gate_open, each.drafted, each.tokens) for each in rounds(together, row)] == [
            (each.gate_open, each.drafted, each.tokens) for each in rounds(alone, 0)
        ]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: Curve((), ()), "0 knots and 0 values: give one or more, as many"),
        (lambda: Curve((0.0, 1.0), (0.5,)), "2 knots and 1 values"),
        (lambda: Curve((0.0, 0.0), (0.1, 0.2)), "they must ascend: sort them, each once"),
        (lambda: Curve((1.0, 0.0), (0.1, 0.2)), "they must ascend"),
        (lambda: Curve((0.0, math.inf), (0.1, 0.2)), "they must be finite: leave out the others"),
        (lambda: Curve((0.0, math.nan, 1.0), (0.1, 0.2, 0.3)), "they must be finite"),
        (lambda: Curve((0.0, 1.0), (0.1, 1.2)), "they are chances: 0 to 1"),
        (lambda: Curve((0.0,), (math.nan,)), "they are chances"),
        (lambda: replace(RULE, max_length=0), "max_length 0; a draft has 1 token or more"),
        (lambda: replace(RULE, rate=0), "rate is 0; it must be finite and above 0: measure it"),
        (lambda: replace(RULE, rate=math.inf), "rate is inf"),
        (lambda: replace(RULE, rate=math.nan), "rate is nan"),
        (lambda: replace(RULE, later=1.1), "later is 1.1; it is a chance: 0 to 1"),
        (lambda: replace(RULE, later=math.nan), "later is nan"),
        (
            lambda: replace(RULE, max_length=5),
            r"up to 5 tokens, but no verification of \[4, 5\] was timed: time it, or draft less",
        ),
        (lambda: replace(RULE, costs=Costs(1.0, 0.1, {1: 1.0, 3: 1.2})), r"verification of \[2\]"),
    ],
)
def test_what_makes_no_rule_is_refused(call, told):
    with pytest.raises(ValueError, match=told):
        call()
