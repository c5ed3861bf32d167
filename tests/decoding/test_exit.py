"""Exits that learn or count: controllers as published, each row by itself, no text changed."""

import copy
import itertools
import math
import random
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch

import foredraft as fd
from foredraft.decoding import theory
from foredraft.decoding.exit import RULES, Exit, ExitPolicy, threshold_path
from foredraft.decoding.signal import confidence
from tests.decoding.test_speculation import GREEDY, PROMPTS, target

DTYPE = torch.float64
LIVELY = {"target": 0.5, "step": 0.04, "memory": 0.5, "inertia": 0.5}
"""So that thresholds wander over the confidences of the tiny models, 0.08 to 0.2."""
POLICIES = {
    "Draft & Verify": fd.AdaptiveExit("draft_and_verify", 0.14, 6, **LIVELY),
    "article": fd.AdaptiveExit("article", 0.14, 6, **LIVELY),
    "worth its time": fd.CostAwareExit(0.003, 6),
}
every_rule = pytest.mark.parametrize("rule", RULES)
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


@cache
def kin(family):
    """Give a drafter that is right as often as not: the target with some noise in its weights."""
    model, generator = copy.deepcopy(target(family, DTYPE)), torch.Generator().manual_seed(7)
    for weights in model.parameters():
        noise = torch.randn(weights.shape, generator=generator, dtype=DTYPE)
        weights.data.add_(0.02 * noise)
    return fd.ModelDrafter(model)


def drafting(policy, prompts=PROMPTS, drafter=None, family="llama", **options):
    """Greedy text in float64, so that a row alone and in a batch sees the same confidences."""
    options = {"max_new_tokens": 24, "sampler": GREEDY} | options
    drafter = drafter or kin(family)
    ours = target(family, DTYPE)
    return fd.generate(ours, prompts, drafter=drafter, exit_policy=policy, **options)


def outcomes(made, row):
    """Give the drafted and the accepted tokens of a row's rounds."""
    table = made.trace.table().query("row == @row")
    return table["drafted"].tolist(), table["accepted"].tolist()


def decisions(stop, seen):
    return stop.goes_on(torch.tensor(seen)).tolist()


def thresholds_are(stop, wanted):
    n = len(wanted)
    at, below = decisions(stop, wanted), decisions(stop, [each - 1e-6 for each in wanted])
    return (at, below) == ([True] * n, [False] * n)


@pytest.mark.parametrize(
    ("drafted", "accepted", "draft_and_verify", "article"),
    [
        (2, 0, +1, +1),
        (3, 1, +1, +1),
        (2, 1, -1, +1),  # at the target itself
        (3, 2, -1, -1),
        (3, 3, -1, -1),
        (4, 0, +1, 0),  # of full length
        (4, 1, +1, 0),
        (4, 2, 0, 0),
        (4, 4, 0, 0),
    ],
)
def test_the_rules_move_a_threshold_as_published(drafted, accepted, draft_and_verify, article):
    """By (1 − inertia) · step = 0.025, from the acceptance of this round alone."""
    for rule, moves in (("draft_and_verify", draft_and_verify), ("article", article)):
        policy = fd.AdaptiveExit(rule, 0.5, 4, target=0.5, step=0.1, memory=0.0, inertia=0.75)
        after = threshold_path(policy, [drafted], [accepted])
        assert after == pytest.approx([0.5, 0.5 + moves * 0.025], abs=1e-15)


def test_the_acceptance_followed_is_a_moving_average_from_zero():
    """Target 0.9, memory 0.5: of rounds all accepted the fourth is the first to reach it."""
    for rule in RULES:
        path = threshold_path(fd.AdaptiveExit(rule), [3] * 6, [3] * 6)
        assert path == pytest.approx([0.5, 0.501, 0.502, 0.503, 0.502, 0.501, 0.5], abs=1e-12)


@every_rule
def test_no_round_moves_the_default_threshold_by_more_than_a_thousandth(rule):
    chance = random.Random(3)
    drafted = [chance.randint(1, 8) for _ in range(400)]
    accepted = [chance.randint(0, n) for n in drafted]
    path = threshold_path(fd.AdaptiveExit(rule), drafted, accepted)
    moves = [abs(after - before) for before, after in itertools.pairwise(path)]
    assert max(moves) == pytest.approx(0.001, abs=1e-12)
    # A hundred tokens are at most a hundred rounds; from 0.5 to 0.9 takes four hundred.
    hopeless = threshold_path(fd.AdaptiveExit(rule), [1] * 400, [0] * 400)
    assert hopeless[100] == pytest.approx(0.6, abs=1e-9)
    assert hopeless[400] == pytest.approx(0.9, abs=1e-9)


def test_the_published_controllers_part_over_full_drafts_that_are_rejected():
    first, second = (threshold_path(fd.AdaptiveExit(r), [8] * 100, [2] * 100)[-1] for r in RULES)
    assert (first, second) == pytest.approx((0.6, 0.5), abs=1e-9)


@every_rule
def test_rounds_that_drafted_nothing_move_nothing(rule):
    policy = fd.AdaptiveExit(rule)
    with_pauses = threshold_path(policy, [0, 2, 0, 0, 3, 0], [0, 1, 0, 0, 3, 0])
    assert sorted(set(with_pauses)) == sorted(set(threshold_path(policy, [2, 3], [1, 3])))
    assert with_pauses[-1] == threshold_path(policy, [2, 3], [1, 3])[-1]


@every_rule
def test_each_row_has_the_threshold_of_its_own_rounds(rule):
    """Three rows, of which the last and then the first go on after the fourth round."""
    policy = fd.AdaptiveExit(rule, 0.4, 4, **LIVELY)
    drafted = [[3, 2, 3, 0, 1, 2, 4], [3, 3, 3, 3], [2, 1, 0, 1, 4, 3, 4]]
    accepted = [[0, 1, 3, 0, 1, 2, 4], [3, 3, 0, 0], [1, 1, 0, 1, 1, 3, 0]]
    paths = [threshold_path(policy, *rounds) for rounds in zip(drafted, accepted, strict=True)]
    assert len({path[4] for path in paths}) == 3
    stop, rows = policy.begin(3), [0, 1, 2]
    for index in range(7):
        stop.learn([drafted[row][index] for row in rows], [accepted[row][index] for row in rows])
        assert thresholds_are(stop, [paths[row][index + 1] for row in rows])
        if index == 3:
            rows = [2, 0]
            stop.keep_rows(rows)
            assert thresholds_are(stop, [paths[row][index + 1] for row in rows])


def test_a_token_as_sure_as_the_threshold_goes_on():
    stop = fd.AdaptiveExit(threshold=0.5).begin(2)
    assert decisions(stop, [0.5, 0.5 - 1e-7]) == [True, False]


def test_a_draft_is_worth_going_on_while_all_of_it_likely_stands():
    """By hand: 0.9 · 0.8 = 0.72 and 0.72 · 0.5 = 0.36, against a cost of 0.4; row by row."""
    stop = fd.CostAwareExit(0.4).begin(2)
    assert decisions(stop, [0.9, 0.39]) == [True, False]
    assert decisions(stop, [0.8, 1.0]) == [True, False]
    assert decisions(stop, [0.5, 1.0]) == [False, False]


def test_each_draft_is_counted_afresh():
    stop = fd.CostAwareExit(0.4).begin(3)
    assert decisions(stop, [0.5, 0.5, 0.1]) == [True, True, False]
    stop.learn([1, 1, 1], [0, 1, 1])
    stop.keep_rows([2, 0])
    assert decisions(stop, [0.5, 0.3]) == [True, False]


@pytest.mark.parametrize("acceptance", [0.3, 0.62, 0.8, 0.95])
@pytest.mark.parametrize("cost", [0.04, 0.11, 0.3, 0.7])
def test_at_the_best_rate_a_draft_goes_as_far_as_theory_says(acceptance, cost):
    """All tokens alike: the length of the highest speed-up, once a draft is begun."""
    best = theory.best_length(acceptance, cost=cost)
    rate = theory.speedup(acceptance, best, cost=cost)
    stop = fd.CostAwareExit(cost, 64, rate, acceptance).begin(1)
    drafted = 1
    while stop.goes_on(torch.tensor([acceptance], dtype=torch.float64)).item():
        drafted += 1
    assert drafted == max(1, best)


SURE, UNSURE, LONGEST = 0.95, 0.35, 6


def attained(policy, cost):
    """Give tokens ÷ time of rounds whose tokens are sure or unsure by a coin, and rightly so."""
    patterns = torch.cartesian_prod(*[torch.tensor([SURE, UNSURE], dtype=torch.float64)] * LONGEST)
    stop = policy.begin(len(patterns))
    drafted = torch.ones(len(patterns), dtype=torch.int64)
    going = torch.ones(len(patterns), dtype=torch.bool)
    for place in range(LONGEST - 1):
        going = going & (stop.goes_on(patterns[:, place]) if stop.watches is not None else True)
        drafted += going & (drafted < stop.max_length)
    stands = patterns.cumprod(1) * (torch.arange(LONGEST) < drafted[:, None])
    return ((1 + stands.sum(1)).mean() / (1 + cost * drafted).mean()).item()


@pytest.mark.parametrize("cost", [0.05, 0.2, 0.45])
def test_with_true_confidences_no_fixed_length_and_no_threshold_gains_more(cost):
    """The rate is found as that of the stop itself, from plain decoding's on."""
    rate = 1.0
    for _ in range(6):
        policy = fd.CostAwareExit(cost, LONGEST, rate, (SURE + UNSURE) / 2)
        rate = attained(policy, cost)
    others = [
        *(fd.FixedLength(length) for length in range(1, LONGEST + 1)),
        *(fd.ConfidenceExit(0.5, length) for length in range(1, LONGEST + 1)),
    ]
    assert attained(fd.CostAwareExit(cost, LONGEST, rate, (SURE + UNSURE) / 2), cost) == rate
    assert rate >= max(attained(other, cost) for other in others)


@every_policy
def test_what_begins_is_an_exit_as_the_loop_expects_it(policy):
    assert isinstance(policy, ExitPolicy)
    stop = policy.begin(2)
    assert isinstance(stop, Exit)
    assert (stop.max_length, stop.watches) == (6, confidence)


@every_policy
def test_greedy_text_stays_autoregressive_decoding_s(family, policy):
    ours = target(family, DTYPE)
    wanted = fd.generate(ours, PROMPTS, sampler=GREEDY, max_new_tokens=24).tokens
    for drafter in (kin(family), fd.SelfDrafter(fd.SkipPlan.early_exit(1, 2))):
        assert drafting(policy, drafter=drafter, family=family).tokens == wanted


END = 19
"""A token that ends the rows at different times, some of them late."""


@every_policy
def test_a_row_drafts_in_a_batch_as_it_does_alone(policy):
    together = drafting(policy, eos_token_id=END)
    assert len({len(tokens) for tokens in together.tokens}) > 2
    assert len(set(together.trace.table()["drafted"])) > 3
    for row, prompt in enumerate(PROMPTS):
        assert outcomes(together, row) == outcomes(drafting(policy, [prompt], eos_token_id=END), 0)


def test_how_far_a_draft_is_worth_its_time_depends_on_the_text_alone():
    """Not on earlier rounds: a generation that begins with the same text drafts as far."""
    policy, prompt = POLICIES["worth its time"], PROMPTS[3]
    made = drafting(policy, [prompt])
    drafted, accepted = outcomes(made, 0)
    emitted = list(itertools.accumulate(n + 1 for n in accepted))
    assert len(set(drafted[1:6])) > 1
    for index in range(1, 6):
        text = prompt + made.tokens[0][: emitted[index - 1] - 1]
        assert outcomes(drafting(policy, [text]), 0)[0][1] == drafted[index]


@dataclass
class Watched:
    """A policy whose work can be looked at."""

    policy: fd.AdaptiveExit

    def begin(self, batch):
        self.stop = self.policy.begin(batch)
        return self.stop


@pytest.mark.parametrize("name", ["Draft & Verify", "article"])
def test_while_rows_come_and_go_each_keeps_to_the_path_of_its_own_rounds(name):
    watched, rounds, n_different = Watched(POLICIES[name]), [([], []) for _ in PROMPTS], []

    def compare(each):
        for row in each.rows:
            rounds[row.row][0].append(row.drafted)
            rounds[row.row][1].append(row.accepted)
        now = [threshold_path(watched.policy, *rounds[row.row])[-1] for row in each.rows]
        assert thresholds_are(watched.stop, now)
        n_different.append(len(set(now)))

    drafting(watched, eos_token_id=END, on_round=compare)
    assert max(n_different) > 2


@every_policy
def test_a_policy_begins_anew_with_each_generation(policy):
    policy = replace(policy, max_length=5)  # not begun by another test
    first, second = drafting(policy), drafting(policy)
    for row in range(len(PROMPTS)):
        assert outcomes(first, row) == outcomes(second, row)


@every_rule
def test_generations_at_the_same_time_learn_apart(rule):
    policy = fd.AdaptiveExit(rule)
    one, other = policy.begin(2), policy.begin(2)
    one.learn([2, 2], [0, 0])
    assert thresholds_are(one, [0.501, 0.501])
    assert thresholds_are(other, [0.5, 0.5])
    assert thresholds_are(policy.begin(2), [0.5, 0.5])


@pytest.mark.parametrize("name", ["Draft & Verify", "article"])
def test_what_was_learnt_changes_how_far_rows_draft(name):
    policy = POLICIES[name]
    constant = drafting(fd.ConfidenceExit(policy.threshold, policy.max_length))
    assert drafting(policy).trace.drafted != constant.trace.drafted
    still = drafting(replace(policy, step=0))
    assert all(outcomes(still, row) == outcomes(constant, row) for row in range(len(PROMPTS)))


@pytest.mark.parametrize(
    "policy", [fd.AdaptiveExit(threshold=1, step=0), fd.CostAwareExit(1.0)], ids=repr
)
def test_a_token_that_ends_a_draft_is_kept(policy):
    """Never sure enough: each round drafts one token, which is verified."""
    made = drafting(policy, drafter=fd.ModelDrafter(target("llama", DTYPE)))
    drafted, accepted = outcomes(made, 3)
    assert set(drafted[1:-1]) == {1}
    assert drafted == accepted


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: fd.AdaptiveExit("articles"), "unknown rule 'articles': did you mean 'article'"),
        (lambda: fd.AdaptiveExit(threshold=1.5), "threshold is 1.5; it is a share: choose 0 to 1"),
        (lambda: fd.AdaptiveExit(target=-0.1), "target is -0.1"),
        (lambda: fd.AdaptiveExit(memory=2), "memory is 2"),
        (lambda: fd.AdaptiveExit(inertia=math.nan), "inertia is nan"),
        (lambda: fd.AdaptiveExit(step=-0.01), "step is -0.01; a threshold moves by a finite step"),
        (lambda: fd.AdaptiveExit(step=math.inf), "step is inf"),
        (lambda: fd.AdaptiveExit(max_length=0), "a draft of at most 0 tokens"),
        (lambda: fd.CostAwareExit(0.0), "cost is 0.0; it must be finite and above 0: measure it"),
        (lambda: fd.CostAwareExit(math.nan), "cost is nan"),
        (lambda: fd.CostAwareExit(0.5, rate=math.inf), "rate is inf"),
        (lambda: fd.CostAwareExit(0.5, acceptance=0), "acceptance is 0; it is a chance above 0"),
        (lambda: fd.CostAwareExit(0.5, acceptance=1.1), "acceptance is 1.1"),
        (lambda: fd.CostAwareExit(0.5, 0), "a draft of at most 0 tokens"),
        (lambda: threshold_path(fd.AdaptiveExit(), [2], [3]), "3 tokens accepted of 2 drafted"),
        (lambda: threshold_path(fd.AdaptiveExit(), [2], [-1]), "-1 tokens accepted of 2 drafted"),
        (lambda: threshold_path(fd.AdaptiveExit(), [2, 1], [0]), "shorter"),
    ],
)
def test_what_makes_no_exit_is_refused(call, told):
    with pytest.raises(ValueError, match=told):
        call()
