"""What a plan is worth: rounds along the texts, costs, and real decoding beside the prediction."""

from itertools import islice

import numpy as np
import pytest
import torch

import foredraft as fd
from foredraft.analysis.statistics import ratio
from foredraft.decoding.theory import Costs
from foredraft.decoding.trace import Round, RowRound, Trace
from foredraft.search.predict import ByBytes, ByClock, Line, Objective, Rounds, moments, rounds
from foredraft.search.teacher_forced import Chances, along, rehearse
from tests.decoding.conftest import tiny

PROMPTS = [[1, 2, 3], [4, 3, 2, 1, 0, 1, 2, 3, 4], [2], [3, 3]]
EXIT = fd.SkipPlan.early_exit(1, 2)
UNIT = dict.fromkeys(range(1, 9), 1.0)


def chances(*rows):
    """One text; a row for each place in a draft."""
    return [Chances(torch.tensor([row]), torch.tensor([row])) for row in rows]


def test_without_acceptance_each_round_yields_one_token():
    found = rounds(chances([0.0] * 5, [0.0] * 5), 2)
    assert found.count.tolist() == [5]
    assert found.accepted.tolist() == [0]
    assert found.by_drafted.tolist() == [[1, 1, 3]]  # the last rounds have room for fewer


def test_with_full_acceptance_rounds_are_as_few_as_can_be():
    found = rounds(chances([1.0] * 6, [1.0] * 6), 2)
    assert found.count.tolist() == [2]
    assert found.by_drafted.tolist() == [[0, 0, 2]]
    assert found.tokens.tolist() == [6]


def test_rounds_start_where_the_last_one_ended():
    """The first draft stands with 1/4: two places on, else one."""
    found = rounds(chances([0.25, 0.5, 0.0]), 1)
    assert found.count.tolist() == pytest.approx([1 + 0.75 + (0.25 + 0.75 * 0.5)])
    assert found.by_drafted.tolist() == [pytest.approx([0.625, 1.75])]
    assert found.drafted.tolist() == pytest.approx([1.75])


def test_later_starts_are_weighed_by_what_happened_before():
    """To average over all places, as likely as not in reality, would give 1.5 tokens a round."""
    found = rounds(chances([0.0, 1.0, 0.0, 1.0, 0.0]), 1)
    assert found.count.tolist() == [3]
    assert float(found.tokens[0] / found.count[0]) == pytest.approx(5 / 3)


def decoded_as(*rounds: tuple[int, int]) -> Trace:
    """A prefill, then rounds of so many drafts of which so many stand."""
    rows = [
        RowRound(0, drafted, accepted, (1,) * (accepted + 1), "recovered", True, 0.5)
        for drafted, accepted in [(0, 0), *rounds]
    ]
    return Trace(tuple(Round(index, (row,)) for index, row in enumerate(rows)))


def test_rounds_are_counted_by_what_they_drafted_and_the_prefill_is_none():
    texts = decoded_as((2, 1), (2, 2), (0, 0)), decoded_as((2, 0), (2, 2), (1, 1))
    found = Rounds.counted(texts, 3)
    assert (found.length, found.places) == (3, 6)
    assert found.by_drafted.tolist() == [[1, 0, 2, 0], [0, 1, 2, 0]]
    assert found.accepted.tolist() == [3, 3]
    assert found.tokens.tolist() == [6, 6]
    assert found.drafted.tolist() == [4, 5]
    costs = Costs(target=10.0, draft=1.0, verify={1: 11.0, 2: 13.0, 3: 14.0}, other=0.5)
    assert found.time(costs).tolist() == [10 + 2 * 15.5, 12.5 + 2 * 15.5]


def test_decoded_rounds_are_counted_text_by_text_after_the_prefill():
    decoder = tiny("llama", 11, 2, torch.float32)
    traces = [
        fd.generate(
            decoder,
            [prompt],
            sampler=fd.Sampler(),
            max_new_tokens=9,
            drafter=fd.SelfDrafter(EXIT),
            exit_policy=fd.FixedLength(2),
            generator=torch.Generator().manual_seed(len(prompt)),
            eos_token_id=[],
        ).trace
        for prompt in PROMPTS
    ]
    found = Rounds.counted(traces, 2)
    assert (found.length, found.places) == (2, 8)
    assert found.tokens.tolist() == [8] * len(PROMPTS)
    for trace, count, drafted in zip(traces, found.by_drafted, found.drafted, strict=True):
        table = trace.table().query("round > 0")
        assert count.tolist() == [(table["drafted"] == n).sum() for n in range(3)]
        assert drafted == table["drafted"].sum()


def test_moments_are_those_of_the_rounds_that_can_happen():
    """Two if the first draft stands (1/4), or else the second (3/4 · 1/2); three otherwise."""
    mean, variance = moments(chances([0.25, 0.5, 0.0]), 1)
    assert mean.tolist() == pytest.approx([2.375])
    assert variance.tolist() == pytest.approx([0.625 * 0.375])


def test_both_ways_along_a_text_count_the_same_rounds(rehearsal):
    drafts = list(islice(rehearsal.drafts(EXIT), 3))
    mean, variance = moments(drafts, 3)
    assert mean.tolist() == pytest.approx(rounds(drafts, 3).count.tolist())
    assert (variance >= -1e-12).all()
    assert variance.sum() > 0


def test_a_length_without_chances_is_refused():
    for length in (0, 3):
        with pytest.raises(ValueError, match=f"length is {length}: chances are known for 1 to 2"):
            rounds(chances([0.5] * 4, [0.5] * 4), length)


def test_time_counts_drafts_passes_and_rounds_that_draft_nothing():
    found = rounds(chances([0.0] * 3, [0.0] * 3), 2)
    costs = Costs(target=10.0, draft=1.0, verify={1: 11.0, 2: 13.0}, other=0.5)
    assert found.time(costs).tolist() == [10 + (1 + 11 + 0.5) + (2 + 13 + 0.5)]


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def decoder(request) -> fd.Decoder:
    return tiny(request.param, 7, 4, torch.float64)


def decoded(decoder, prompts, temperature, seed, *, plan=EXIT, length=2, n_new=14):
    return fd.generate(
        decoder,
        prompts,
        sampler=fd.Sampler(temperature=temperature),
        max_new_tokens=n_new,
        drafter=fd.SelfDrafter(plan),
        exit_policy=fd.FixedLength(length),
        generator=torch.Generator().manual_seed(seed),
        eos_token_id=[],
    )


def counted(made):
    """Rounds of each text after its prefill, and what they drafted."""
    table = made.trace.table().query("round > 0").groupby("row")
    return table.size().to_numpy(), table["drafted"].sum().to_numpy()


@pytest.mark.parametrize("length", [1, 3])
def test_greedy_rounds_are_foretold_exactly(decoder, length):
    made = decoded(decoder, PROMPTS, 0, 0, length=length)
    found = along(decoder, PROMPTS, made.tokens, sampler=fd.Sampler(temperature=0))
    foretold = rounds(list(islice(found.drafts(EXIT), length)), length)
    rounds_made, drafted = counted(made)
    assert foretold.count.tolist() == rounds_made.tolist()
    assert foretold.drafted.tolist() == drafted.tolist()


def test_sampled_rounds_are_foretold_given_the_text(decoder):
    """|z| < 5.5: a false alarm in 26 million; rounds that are 10 % fewer are found out."""
    prompts = PROMPTS * 60
    made = decoded(decoder, prompts, 1.0, 1)
    found = along(decoder, prompts, made.tokens, sampler=fd.Sampler())
    foretold = rounds(list(islice(found.drafts(EXIT), 2)), 2)
    rounds_made, drafted = counted(made)
    assert abs(z(rounds_made - foretold.count)) < 5.5
    assert abs(z(drafted - foretold.drafted)) < 5.5
    assert abs(z(rounds_made - 0.9 * foretold.count)) > 5.5


def z(differences: np.ndarray) -> float:
    return float(differences.mean() / (differences.std(ddof=1) / len(differences) ** 0.5))


@pytest.fixture(scope="module")
def rehearsal(decoder):
    generator = torch.Generator().manual_seed(0)
    return rehearse(decoder, PROMPTS, sampler=fd.Sampler(), new_tokens=14, generator=generator)


def test_the_best_length_is_that_of_the_highest_speed_up(rehearsal):
    objective = Objective(rehearsal, lambda plan: Costs(1.0, 0.15, UNIT), longest=6)
    best = objective.predict(EXIT)
    tried = [objective.predict(EXIT, length).speedup.mean for length in range(1, 7)]
    assert tried[best.length - 1] == best.speedup.mean
    first_decrease = next((n for n in range(5) if tried[n + 1] <= tried[n]), 5)
    assert best.length == first_decrease + 1


def test_a_plan_that_skips_nothing_gains_nothing(rehearsal):
    objective = Objective(rehearsal, ByBytes(rehearsal.decoder.config))
    found = objective.predict(fd.SkipPlan())
    assert found.acceptance.mean == pytest.approx(1)
    assert found.overlap.mean == pytest.approx(1)
    assert found.cost == 1
    assert found.speedup.mean == pytest.approx(1)
    assert found.speedup.sem == pytest.approx(0, abs=1e-12)


def test_an_objective_names_its_metrics_each_with_an_error(rehearsal):
    metrics = Objective(rehearsal, ByBytes(rehearsal.decoder.config))(EXIT)
    assert set(metrics) == {
        *("speedup", "acceptance", "tokens_per_round", "overlap", "cost", "length")
    }
    assert metrics["cost"].mean == pytest.approx(EXIT.cost(rehearsal.decoder.config))
    assert metrics["cost"].sem == 0
    assert metrics["speedup"].sem > 0


def test_an_approximation_in_one_pass_can_be_asked_for(rehearsal):
    plan, costs = fd.SkipPlan.layers([0]), ByBytes(rehearsal.decoder.config)
    exact, once = (
        Objective(rehearsal, costs, exact=is_exact).predict(plan, 3) for is_exact in (True, False)
    )
    assert exact.overlap == once.overlap
    assert exact.acceptance != once.acceptance


def test_drafts_longer_than_the_texts_are_refused(rehearsal):
    with pytest.raises(ValueError, match="drafts of 1 to 12 tokens"):
        Objective(rehearsal, ByBytes(rehearsal.decoder.config), longest=13)


def test_costs_by_the_clock_lose_what_each_skipped_branch_costs():
    rest = {0: Line(1.0, 0.1), 60: Line(0.0, 0.0)}
    costs = ByClock(step=0.95, attention=0.02, mlp=0.05, both=0.001, rest=rest, n_layers=60)
    assert costs(fd.SkipPlan()).draft == 0.95
    assert costs(fd.SkipPlan(attn=[0])).verify[2] == pytest.approx(1.2)
    assert costs(fd.SkipPlan()).verify[2] == 1e-3, "a round takes some time in any case"
    assert costs(fd.SkipPlan(attn=[0, 1], mlp=[1])).draft == pytest.approx(0.95 - 0.09 + 0.002)
    assert costs(fd.SkipPlan(mlp=range(50))).draft == 0


def test_a_ratio_is_of_sums_and_its_error_comes_from_the_texts():
    """For equal denominators it is a mean, whose standard error is known."""
    above = np.random.default_rng(1).normal(3.0, 1.0, 400)
    found = ratio(above, np.full(400, 2.0))
    assert found.mean == pytest.approx(above.sum() / 800)
    assert found.sem == pytest.approx(above.std(ddof=1) / 2 / 20, rel=0.2)
