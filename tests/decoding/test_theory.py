"""The formulas agree with the paper, with each other, and with enumeration; no model, no luck."""

import itertools
import math

import pandas as pd
import pytest
import torch

from foredraft.decoding import theory
from foredraft.decoding.verify import RULES

ALPHAS = (0.0, 0.3, 0.5, 0.8, 0.95, 1.0)
COSTS = theory.Costs(target=10.0, draft=2.0, verify={1: 11.0, 2: 12.0, 4: 15.0}, other=1.0)


def rounds(*drafted_and_accepted: tuple[int, int]) -> pd.DataFrame:
    return pd.DataFrame(drafted_and_accepted, columns=["drafted", "accepted"])


def test_the_overlap_of_a_law_with_itself_is_one_and_with_a_disjoint_one_zero():
    p = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    torch.testing.assert_close(theory.overlap(p, p), torch.ones(2))
    assert theory.overlap(p[0], torch.tensor([0.0, 0.0, 1.0])) == 0


def test_the_overlap_is_the_share_that_token_verification_accepts():
    """Summed over every token that q can draw, through the shipped rule."""
    p, q = torch.rand(2, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p, q = p / p.sum(), q / q.sum()
    drafts = torch.arange(7)[:, None]
    rule = RULES["token"](
        drafts, q.expand(7, 1, 7), p.expand(7, 2, 7), torch.ones(7, dtype=torch.int64)
    )
    accepted = (q * rule.chances[:, 0].clamp(max=1)).sum()
    torch.testing.assert_close(theory.overlap(p, q), accepted)


def test_the_overlap_is_one_less_the_total_variation():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.1, 0.3, 0.6])
    torch.testing.assert_close(theory.overlap(p, q), 1 - (p - q).abs().sum() / 2)


@pytest.mark.parametrize("length", [0, 1, 2, 5, 13])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_one_acceptance_is_the_same_as_a_sequence_of_it(alpha, length):
    geometric = length + 1 if alpha == 1 else (1 - alpha ** (length + 1)) / (1 - alpha)
    assert theory.expected_tokens(alpha, length) == pytest.approx(geometric)
    assert theory.expected_tokens([alpha] * length, length) == pytest.approx(geometric)


def test_expected_tokens_are_those_of_enumerating_every_outcome():
    alphas = (0.9, 0.4, 0.7)
    total = 0.0
    for coins in itertools.product((True, False), repeat=3):
        mass = math.prod(a if coin else 1 - a for a, coin in zip(alphas, coins, strict=True))
        total += mass * (1 + len(list(itertools.takewhile(bool, coins))))
    assert theory.expected_tokens(alphas, 3) == pytest.approx(total)


@pytest.mark.parametrize(
    ("alpha", "cost", "length", "gain"),
    [
        (0.5, 0.1, 2, 1.46),
        (0.6, 0.2, 2, 1.40),
        (0.7, 0.3, 2, 1.37),
        (0.8, 0.1, 6, 2.47),
        (0.8, 0.6, 1, 1.12),
        (0.85, 0.3, 4, 1.69),
        (0.9, 0.1, 10, 3.43),
        (0.95, 0.2, 10, 2.87),
        (0.99, 0.7, 8, 1.31),
    ],
)
def test_the_best_length_and_its_speedup(alpha, cost, length, gain):
    """Evaluated by hand from theorem 3.8."""
    assert theory.best_length(alpha, cost=cost) == length
    assert theory.speedup(alpha, length, cost=cost) == pytest.approx(gain, abs=0.005)


@pytest.mark.parametrize("cost", [0.05, 0.3, 0.9])
def test_drafting_pays_if_and_only_if_acceptance_exceeds_cost(cost):
    """Corollary 3.9, with its gain of at least (1 + α) ÷ (1 + c)."""
    assert theory.best_length(cost, cost=cost) == 0
    assert theory.best_length(cost - 0.01, cost=cost) == 0
    better = cost + 0.01
    length = theory.best_length(better, cost=cost)
    assert length > 0
    assert theory.speedup(better, length, cost=cost) >= (1 + better) / (1 + cost) - 1e-12


@pytest.mark.parametrize("alpha", [0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("cost", [0.02, 0.2, 0.5])
def test_the_speedup_rises_to_one_peak_and_falls_after_it(alpha, cost):
    gains = [theory.speedup(alpha, length, cost=cost) for length in range(200)]
    peak = gains.index(max(gains))
    assert gains[: peak + 1] == sorted(gains[: peak + 1])
    assert gains[peak:] == sorted(gains[peak:], reverse=True)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_no_speedup_exceeds_its_ceiling_nor_the_tokens_of_a_round(alpha):
    for cost, length in itertools.product((0.1, 0.5), (1, 8, 64)):
        gain = theory.speedup(alpha, length, cost=cost)
        assert gain < theory.ceiling(cost)
        assert gain <= length + 1
        assert theory.expected_tokens(alpha, length) <= theory.oracle_tokens(alpha)


def test_longer_drafts_approach_the_oracle():
    assert theory.expected_tokens(0.8, 500) == pytest.approx(theory.oracle_tokens(0.8))
    assert theory.oracle_tokens(1.0) == math.inf


def test_arithmetic_grows_by_what_is_drafted_and_thrown_away():
    """Theorem 3.11 by hand: γ = 2, α = 1/2, ĉ = 1/4 is (1/2 + 3) ÷ (7/4)."""
    assert theory.arithmetic_factor(0.5, 2, cost_operations=0.25) == pytest.approx(2.0)
    assert theory.arithmetic_factor(0.5, 0, cost_operations=0.25) == 1


def test_measured_costs_reduce_to_the_paper_s_formula():
    plain = theory.Costs(target=4.0, draft=1.0, verify={3: 4.0})
    predicted = theory.predicted_speedup([0.7] * 3, 3, plain)
    assert predicted == pytest.approx(theory.speedup(0.7, 3, cost=0.25))


def test_measured_costs_count_the_pass_over_the_draft_and_the_rest():
    """1 + 0.8 + 0.4 tokens, 10 each on their own, in 2·2 + 12 + 1."""
    assert theory.predicted_speedup([0.8, 0.5], 2, COSTS) == pytest.approx(2.2 * 10 / 17)
    assert theory.predicted_speedup([], 0, COSTS) == 1


def test_the_best_length_looks_no_further_than_the_known_acceptances():
    assert theory.best_length([1.0, 1.0], cost=0.1) == 2
    assert theory.best_length([0.9, 0.0, 1.0], cost=0.1) == 1
    assert theory.best_length(1.0, cost=0.1, longest=5) == 5


def test_the_best_measured_length_is_the_fastest_of_those_that_were_timed():
    """By hand: γ = 1 gives 19 ÷ 14, γ = 2 27.1 ÷ 17, γ = 4 40.951 ÷ 24, and 3 was not timed."""
    alphas = [0.9] * 4
    gains = {n: theory.predicted_speedup(alphas, n, COSTS) for n in COSTS.verify}
    assert gains == pytest.approx({1: 19 / 14, 2: 27.1 / 17, 4: 40.951 / 24})
    assert theory.best_measured_length(alphas, COSTS) == 4
    assert theory.best_measured_length(alphas[:3], COSTS) == 2


@pytest.mark.parametrize(
    ("alphas", "best"),
    [([], 0), ([0.0] * 4, 0), ([0.4], 0), ([0.41], 1), ([0.3, 1.0], 0), ([0.39, 1.0], 2)],
)
def test_to_draft_at_all_is_best_only_where_a_timed_length_pays(alphas, best):
    """By hand: one draft expects 10 (1 + α) for 14, as much as none at α = 0.4; two cost 17."""
    assert theory.best_measured_length(alphas, COSTS) == best


def test_measured_and_given_costs_agree_on_the_best_length():
    for alpha, cost in itertools.product((0.3, 0.6, 0.8, 0.95), (0.05, 0.2, 0.5)):
        timed = theory.Costs(target=1.0, draft=cost, verify=dict.fromkeys(range(1, 20), 1.0))
        wanted = theory.best_length(alpha, cost=cost, longest=19)
        assert theory.best_measured_length([alpha] * 19, timed) == wanted


def test_what_a_slower_verification_of_longer_drafts_costs_shortens_the_best():
    alphas = [0.9] * 8
    even = theory.Costs(target=10.0, draft=1.0, verify=dict.fromkeys(range(1, 9), 10.0))
    steep = theory.Costs(target=10.0, draft=1.0, verify={n: 10.0 + 2 * n for n in range(1, 9)})
    assert theory.best_measured_length(alphas, even) > theory.best_measured_length(alphas, steep)


def random_laws(seed: int, n: int, vocab: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, vocab, generator=generator, dtype=torch.float64).softmax(-1)


@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize("seed", range(4))
def test_the_chances_to_stand_add_up_to_what_the_rule_accepts(rule, seed):
    """Over every draft of three and all their coins, through the shipped rule."""
    length, vocab = 3, 3
    p, q = random_laws(seed, length + 1)[None], random_laws(seed + 9, length)[None]
    counted = foretold = 0.0
    for tokens in itertools.product(range(vocab), repeat=length):
        drafts = torch.tensor([tokens])
        mass = q[0].gather(-1, drafts.T).prod().item()
        foretold += mass * theory.stand(drafts, q, p)[rule].sum().item()
        decided = RULES[rule](drafts, q, p, torch.tensor([length]))
        heads = decided.chances.clamp(max=1)
        for coins in itertools.product((True, False), repeat=length):
            said = torch.tensor([coins])
            share = torch.where(said, heads, 1 - heads).prod().item()
            counted += mass * share * decided.count(said).item()
    assert foretold == pytest.approx(counted, abs=1e-12)


def test_the_paper_s_example_expects_10_9_accepted_drafts_by_token_and_11_9_by_block():
    """2403.10444, section 2."""
    p, q = (torch.tensor(law, dtype=torch.float64) for law in ([1 / 3, 2 / 3], [2 / 3, 1 / 3]))
    drafts = torch.tensor([*itertools.product((0, 1), repeat=2)])
    stands = theory.stand(drafts, q.expand(4, 2, 2), p.expand(4, 3, 2))
    accepted = {rule: (q[drafts].prod(-1) * each.sum(-1)).sum() for rule, each in stands.items()}
    assert accepted == pytest.approx({"token": 10 / 9, "block": 11 / 9})


def test_block_verification_lets_no_draft_stand_less_and_the_first_the_same():
    p, q = random_laws(1, 60 * 6).view(60, 6, 3), random_laws(2, 60 * 5).view(60, 5, 3)
    stands = theory.stand(q.argmax(-1), q, p)
    assert (stands["block"] >= stands["token"] - 1e-12).all()
    assert (stands["block"] > stands["token"] + 0.01).any()
    torch.testing.assert_close(stands["block"][:, 0], stands["token"][:, 0])


def test_acceptance_by_position_is_conditional_on_the_positions_before():
    found = theory.position_acceptances(rounds((2, 2), (2, 1), (2, 0), (2, 0)))
    assert found == pytest.approx([2 / 4, 1 / 2])


def test_a_shorter_draft_counts_only_where_it_drafted():
    found = theory.position_acceptances(rounds((0, 0), (1, 1), (1, 0), (3, 3), (3, 1)))
    assert found == pytest.approx([3 / 4, 1 / 2, 1.0])


def test_positions_that_no_round_reached_gain_nothing():
    assert theory.position_acceptances(rounds((3, 0), (3, 1))) == [0.5, 0.0, 0.0]
    assert theory.position_acceptances(rounds((0, 0))) == []
    assert theory.position_acceptances(rounds()) == []


def test_acceptances_by_position_give_back_the_mean_tokens_of_the_rounds():
    table = rounds(*[(3, n) for n in (0, 1, 1, 2, 3, 3, 0, 2)])
    expected = theory.expected_tokens(theory.position_acceptances(table), 3)
    assert expected == pytest.approx(1 + table["accepted"].mean())


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: theory.expected_tokens(1.2, 2), r"acceptance is 1.2; a probability is 0 to 1"),
        (lambda: theory.expected_tokens(math.nan, 2), "acceptance is nan"),
        (lambda: theory.expected_tokens([0.5, -0.1], 1), r"acceptance 2 is -0.1"),
        (lambda: theory.expected_tokens(0.5, -1), "length is -1"),
        (lambda: theory.expected_tokens([0.5], 2), "known for 1 positions, a draft of 2"),
        (lambda: theory.speedup(0.5, 2, cost=0), r"cost is 0; it must be finite and above 0"),
        (lambda: theory.best_length(0.5, cost=-1), "cost is -1"),
        (lambda: theory.best_length(0.5, cost=0.5, longest=-1), "longest is -1"),
        (lambda: theory.ceiling(0), "cost is 0"),
        (lambda: theory.oracle_tokens(1.5), "acceptance is 1.5"),
        (lambda: theory.arithmetic_factor(0.5, 1, cost_operations=0), "cost_operations is 0"),
        (lambda: theory.predicted_speedup([0.5] * 3, 3, COSTS), r"of 3 drafts.*\[1, 2, 4\]"),
        (lambda: theory.Costs(0.0, 1.0, {}), "target is 0.0"),
        (lambda: theory.Costs(1.0, -1.0, {}), "draft is -1.0"),
        (lambda: theory.Costs(1.0, 1.0, {2: 0.0}), r"verify\[2\] is 0.0"),
    ],
)
def test_what_cannot_be_is_refused_with_the_value_and_the_bound(call, told):
    with pytest.raises(ValueError, match=told):
        call()
