"""From logits to one distribution to a token: parity with `transformers`, ties, laws, refusals.

Both sides are given the float32 copy of half-precision logits.
"""

import itertools
import math

import pytest
import torch

from foredraft import sampling
from foredraft.benchmarks.sampling import flat_logits, peaked_logits, transformers_processors
from foredraft.sampling import (
    Sampler,
    greedy,
    invert,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    penalise_repetition,
    poisoned,
)

GRID = [
    Sampler(*values)
    for values in itertools.product(
        (0.7, 1.0), (0, 1, 5, 10**6), (1.0, 0.9, 0.3), (0.0, 0.1), (1.0, 0.5), (1.0, 1.3)
    )
]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def blind(monkeypatch):
    """Run what a device other than the CPU runs, where no value is looked at."""
    monkeypatch.setattr(sampling, "_may_look", lambda tensor: False)


def reference(sampler: Sampler, logits: torch.Tensor, prefix: torch.Tensor) -> torch.Tensor:
    flat = logits.reshape(-1, logits.shape[-1])
    ids = prefix.reshape(len(flat), -1)
    return transformers_processors(sampler)(ids, flat).softmax(-1).reshape(logits.shape)


def assert_same_law(ours, theirs, scores, tolerance):
    """Equal probabilities, but for equal scores of which the reference kept another one."""
    ours_alone, theirs_alone = (ours > 0) & (theirs == 0), (ours == 0) & (theirs > 0)
    assert torch.equal(scores[ours_alone].sort().values, scores[theirs_alone].sort().values)
    same = ~(ours_alone | theirs_alone)
    assert (ours - theirs)[same].abs().max() <= tolerance


def some_logits(shape, generator, *, masked=False):
    logits = 3 * torch.randn(shape, generator=generator)
    if masked:
        barred = torch.rand(shape, generator=generator) < 0.4
        barred[..., 0] = False
        logits = logits.masked_fill(barred, -math.inf)
    return logits


@pytest.mark.parametrize(
    ("dtype", "masked"),
    [
        (torch.float32, False),
        (torch.float32, True),
        (torch.bfloat16, True),
        (torch.float16, True),
    ],
)
@pytest.mark.parametrize("vocab", [1, 13, 500])
def test_the_law_is_that_of_transformers(vocab, dtype, masked, generator):
    logits = some_logits((3, vocab), generator, masked=masked).to(dtype)
    prefix = torch.randint(vocab, (3, 6), generator=generator)
    scores = logits.float()
    for sampler in GRID:
        probs = sampler.probs(logits, prefix)
        assert probs.dtype == torch.float32
        assert_same_law(probs, reference(sampler, scores, prefix), scores, 1e-6)


@pytest.mark.parametrize("share", [1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8])
@pytest.mark.parametrize("field", ["top_p", "min_p", "typical_p"])
def test_a_cut_that_falls_exactly_on_a_token_falls_as_in_transformers(field, share):
    """Powers of two, whose sums are exact."""
    logits = torch.tensor([[0.25, 0.5, 0.0625, 0.125, 0.03125, 0.03125]]).log2() * math.log(2)
    sampler = Sampler(**{field: share})
    expected = transformers_processors(sampler)(None, logits).softmax(-1)
    assert_same_law(sampler.probs(logits), expected, logits, 1e-6)


def test_top_p_keeps_the_best_token_however_small_it_is(generator):
    logits = some_logits((4, 30), generator)
    assert torch.equal(Sampler(top_p=1e-9).probs(logits), greedy(logits))


def test_float64_logits_stay_float64(generator):
    logits = some_logits((3, 40), generator, masked=True).double()
    prefix = torch.randint(40, (3, 6), generator=generator)
    for sampler in GRID:
        probs = sampler.probs(logits, prefix)
        assert probs.dtype == torch.float64
        assert_same_law(probs, reference(sampler, logits, prefix), logits, 1e-14)


@pytest.mark.usefixtures("blind")
def test_the_law_without_looking_at_values_is_that_of_transformers(generator):
    logits = some_logits((3, 40), generator, masked=True).bfloat16().float()
    prefix = torch.randint(40, (3, 6), generator=generator)
    for sampler in GRID:
        probs = sampler.probs(logits, prefix)
        assert_same_law(probs, reference(sampler, logits, prefix), logits, 1e-6)


@pytest.mark.parametrize("leading", [(), (0,), (4,), (2, 3), (2, 1, 3)])
def test_any_leading_dimensions_are_rows(leading, generator):
    logits = some_logits((*leading, 17), generator)
    prefix = torch.randint(17, (*leading, 5), generator=generator)
    sampler = Sampler(0.8, 9, 0.9, 0.02, 0.9, 1.2)
    probs = sampler.probs(logits, prefix)
    expected = reference(sampler, logits, prefix) if math.prod(leading) else logits
    torch.testing.assert_close(probs, expected, rtol=0, atol=1e-6)
    assert sampler.draw(probs, generator=generator).shape == leading


@pytest.mark.parametrize("vocab", [9_000, 40_001])
@pytest.mark.parametrize("make", [peaked_logits, flat_logits])
@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(0.8, top_k=50),
        Sampler(0.8, top_k=2000),
        Sampler(0.8, top_p=0.9),
        Sampler(1.3, top_p=0.9, min_p=0.001),
        Sampler(0.8, 50, 0.9, 0.01, 0.9),
    ],
)
def test_the_law_of_a_wide_vocabulary_is_that_of_transformers(vocab, make, sampler, generator):
    logits = make(2, vocab, generator=generator)
    expected = transformers_processors(sampler)(None, logits).softmax(-1)
    assert_same_law(sampler.probs(logits), expected, logits, 1e-6)


@pytest.mark.parametrize("coarseness", [0, 8, 1], ids=["float32", "eighths", "integers"])
@pytest.mark.parametrize(
    "sampler", [Sampler(0.7, top_k=40), Sampler(0.7, top_p=0.95), Sampler(0.7, 40, 0.95, 0.05, 0.9)]
)
def test_a_shortlist_changes_nothing(coarseness, sampler, generator, monkeypatch):
    logits = peaked_logits(3, 9_000, generator=generator)
    logits = (coarseness * logits).round() / coarseness if coarseness else logits
    short = sampler.probs(logits)
    if not coarseness:  # no ties: the shortlist must do
        assert sampler._shortlist(logits) is not None
    monkeypatch.setattr(sampling, "WIDE", math.inf)
    whole = sampler.probs(logits)
    torch.testing.assert_close(short, whole, rtol=0, atol=1e-6)
    assert torch.equal(short > 0, whole > 0)


def test_rows_with_fewer_finite_logits_than_top_k_keep_them_all(generator):
    logits = torch.full((2, 9_000), -math.inf)
    logits[:, [5, 8_000]] = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    probs = Sampler(top_k=50).probs(logits)
    torch.testing.assert_close(probs, logits.softmax(-1), rtol=0, atol=1e-7)


def test_with_every_filter_off_the_law_is_the_softmax(generator):
    logits = some_logits((2, 3, 50), generator)
    assert torch.equal(Sampler().probs(logits), logits.softmax(-1))
    assert torch.equal(Sampler(0.7).probs(logits), (logits / 0.7).softmax(-1))


@pytest.mark.parametrize("sampler", GRID[::7])
def test_probabilities_sum_to_one_on_a_support_that_is_not_empty(sampler, generator):
    logits = some_logits((4, 300), generator, masked=True)
    probs = sampler.probs(logits, torch.randint(300, (4, 9), generator=generator))
    assert (probs >= 0).all()
    assert (probs[logits == -math.inf] == 0).all()
    bound = 300 * torch.finfo(torch.float32).eps
    assert (probs.double().sum(-1) - 1).abs().max() <= bound


@pytest.mark.parametrize("sampler", GRID[::7])
def test_renaming_the_tokens_renames_the_law(sampler, generator):
    logits = some_logits((60,), generator)
    order = torch.randperm(60, generator=generator)
    prefix = torch.randint(60, (9,), generator=generator)
    renamed = sampler.probs(logits[order], order.argsort()[prefix])
    torch.testing.assert_close(renamed, sampler.probs(logits, prefix)[order], rtol=0, atol=1e-6)


def test_the_order_is_penalty_temperature_k_p_min_typical(generator):
    logits = some_logits((200,), generator) / 3
    prefix = torch.randint(200, (9,), generator=generator)
    scores = penalise_repetition(logits, prefix, 1.4) / 0.9
    for keep, argument in (
        (keep_top_k, 100),
        (keep_top_p, 0.9),
        (keep_min_p, 0.2),
        (keep_typical, 0.6),
    ):
        filtered = keep(scores, argument)
        assert (filtered == -math.inf).sum() > (scores == -math.inf).sum(), f"{keep} had no effect"
        scores = filtered
    probs = Sampler(0.9, 100, 0.9, 0.2, 0.6, 1.4).probs(logits, prefix)
    assert torch.equal(probs, scores.softmax(-1))


def test_the_order_of_top_k_and_top_p_matters():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    k_first = Sampler(top_k=2, top_p=0.5).probs(logits)
    p_first = keep_top_k(keep_top_p(logits, 0.5), 2).softmax(-1)
    assert (k_first > 0).tolist() == [True, False, False, False]
    assert (p_first > 0).tolist() == [True, True, False, False]


@pytest.mark.parametrize(("keep", "argument"), [(keep_top_k, 7), (keep_min_p, 0.1)])
def test_top_k_and_min_p_keep_again_what_they_kept(keep, argument, generator):
    once = keep(some_logits((5, 90), generator), argument)
    assert torch.equal(keep(once, argument), once)


@pytest.mark.parametrize("vocab", [10, 10_000])
@pytest.mark.parametrize("looks", [True, False], ids=["cpu", "other device"])
def test_top_p_keeps_the_lowest_of_equal_ids(vocab, looks, monkeypatch):
    monkeypatch.setattr(sampling, "_may_look", lambda tensor: looks)
    logits = torch.zeros(2, vocab)
    logits[1, -1] = 1e-3  # the best is last and stays; of the others the lowest ids go with it
    kept = Sampler(top_p=0.25).probs(logits) > 0
    n_kept = kept.sum(-1, keepdim=True)
    assert ((n_kept - 0.25 * vocab).abs() <= 1).all()
    lowest = torch.arange(vocab) < n_kept
    assert torch.equal(kept[0], lowest[0])
    assert torch.equal(
        kept[1], (lowest[1] & (torch.arange(vocab) < n_kept[1] - 1)) | (logits[1] > 0)
    )


@pytest.mark.parametrize("top_k", [0, 25])
def test_top_p_keeps_the_lowest_of_equal_ids_on_a_shortlist(top_k, generator):
    logits = torch.linspace(-10, -8, 9_000)
    tied = torch.randperm(9_000, generator=generator)[:20]
    logits[tied] = 5.0
    kept = Sampler(top_k=top_k, top_p=0.475).probs(logits).nonzero().flatten()
    assert torch.equal(kept, tied.sort().values[: len(kept)])
    assert len(kept) == 10


def test_top_k_keeps_all_that_equal_its_last_one():
    logits = torch.tensor([1.0, 2.0, 1.0, 0.0, 1.0])
    kept = Sampler(top_k=2).probs(logits) > 0
    assert kept.tolist() == [True, True, True, False, True]


def test_temperature_zero_takes_the_lowest_of_the_highest_and_no_filter_counts(generator):
    logits = torch.tensor([[1.0, 3.0, 3.0], [0.0, 0.0, 0.0], [-5.0, -math.inf, -1.0]])
    expected = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert torch.equal(Sampler(0).probs(logits), expected)
    assert torch.equal(Sampler(0, 1, 0.1, 0.9, 0.1).probs(logits), expected)
    assert Sampler(0).draw(expected, generator=generator).tolist() == [1, 0, 2]


def test_temperature_zero_obeys_the_repetition_penalty():
    logits = torch.tensor([2.0, 1.5, -1.0])
    probs = Sampler(0, repetition_penalty=2.0).probs(logits, torch.tensor([0]))
    assert probs.tolist() == [0.0, 1.0, 0.0]


def test_temperatures_towards_zero_approach_greedy(generator):
    logits = some_logits((5, 40), generator)
    assert torch.equal(Sampler(1e-6).probs(logits), greedy(logits))


def test_padding_with_minus_one_penalises_each_row_as_if_it_were_alone(generator):
    logits = some_logits((5, 12), generator)
    rows = [[3, 3, 7], [0], [], [11, 0, 0, 5], [2]]
    padded = torch.tensor(
        [[3, 3, 7, -1], [-1, 0, -1, -1], [-1, -1, -1, -1], [11, 0, 0, 5], [-1, 2, -1, -1]]
    )
    sampler = Sampler(0.9, repetition_penalty=1.5)
    together = sampler.probs(logits, padded)
    for row, ids in enumerate(rows):
        alone = sampler.probs(logits[row], torch.tensor(ids, dtype=torch.long))
        assert torch.equal(together[row], alone)
    assert torch.equal(together[2], Sampler(0.9).probs(logits[2]))


@pytest.mark.usefixtures("blind")
def test_where_no_value_is_looked_at_ids_beyond_the_vocabulary_are_ignored(generator):
    logits = some_logits((2, 6), generator)
    sampler = Sampler(repetition_penalty=1.5)
    beyond, padded = torch.tensor([[1, 6], [9, 9]]), torch.tensor([[1, -1], [-1, -1]])
    assert torch.equal(sampler.probs(logits, beyond), sampler.probs(logits, padded))


def test_arguments_are_left_as_they_were(generator):
    for vocab in (30, 9_000):
        logits = peaked_logits(2, vocab, generator=generator)
        prefix = torch.randint(vocab, (2, 8), generator=generator)
        before = logits.clone(), prefix.clone()
        probs = Sampler(0.8, 20, 0.9, 0.01, 0.9, 1.2).probs(logits, prefix)
        drawn_from = probs.clone()
        Sampler().draw(probs, generator=generator)
        assert torch.equal(logits, before[0])
        assert torch.equal(prefix, before[1])
        assert torch.equal(probs, drawn_from)


def p_value(counts: torch.Tensor, probs: torch.Tensor) -> float:
    """The chance of a chi-square statistic as large as this one under `probs`."""
    expected = probs.double() * counts.sum()
    assert expected.min() > 5, "too few draws for the approximation"
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(probs) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))


@pytest.mark.parametrize("wide", [False, True], ids=["one stage", "two stages"])
def test_draws_follow_the_distribution_and_not_one_near_it(wide, generator, monkeypatch):
    """A false alarm has probability 1e-6; the generator is fixed besides."""
    if wide:
        monkeypatch.setattr(sampling, "WIDE", 0)
        monkeypatch.setattr(sampling, "BLOCK", 4)
    probs = torch.tensor([1.0, 1, 1, 1, 0, 20, 1, 1, 5, 5, 10]) / 46
    drawn = Sampler().draw(probs.expand(40_000, -1), generator=generator)
    counts = drawn.bincount(minlength=11)
    assert counts[4] == 0
    positive = probs > 0
    assert p_value(counts[positive], probs[positive]) > 1e-6
    near = probs.sqrt() / probs.sqrt().sum()
    assert p_value(counts[positive], near[positive]) < 1e-6


def test_inversion_gives_each_token_its_exact_share():
    weights = torch.tensor([3.0, 0.0, 1.0, 4.0])
    uniforms = (torch.arange(8, dtype=torch.float64) + 0.5) / 8
    tokens = invert(weights.expand(8, -1), uniforms)
    assert tokens.tolist() == [0, 0, 0, 2, 3, 3, 3, 3]


@pytest.mark.parametrize("uniform", [0.0, 5e-324, 0.5, 1 - 2**-53, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_uniform_draws_a_token_of_probability_zero(uniform, dtype, generator):
    tiny = torch.finfo(dtype).smallest_normal
    weights = torch.tensor(
        [
            [0.0, 0.5, 0.0, 0.5, 0.0],
            [0.0, 0.0, 1.0, 0.0, 0.0],
            [0.0, 1.0, tiny, tiny, 0.0],
            [0.0, tiny, 0.0, 0.0, 0.0],
            [0.0, 0.1, 0.2, 0.3, 0.0],
        ],
        dtype=dtype,
    )
    tokens = invert(weights, torch.full((5,), uniform, dtype=torch.float64))
    assert (weights.gather(-1, tokens[:, None]) > 0).all()


@pytest.mark.parametrize("vocab", [20, 9_001])
def test_the_generator_alone_decides_the_draw(vocab):
    probs = torch.full((6, vocab), 1 / vocab)

    def draws(seed: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [Sampler().draw(probs, generator=generator) for _ in range(2)]

    first, again, other = draws(1), draws(1), draws(2)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])
    assert first[0].dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_residual_is_drawn_from_without_being_normalised(dtype, generator):
    target = torch.tensor([0.5, 0.3, 0.2], dtype=dtype)
    draft = torch.tensor([0.6, 0.2, 0.2], dtype=dtype)
    residual = (target - draft).clamp(min=0).expand(50, -1)
    assert (Sampler().draw(residual, generator=generator) == 1).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -0.1}, r"temperature is -0\.1; .* 0 is greedy"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf; it must be a finite number"),
        ({"top_k": -1}, "top_k is -1; .* 0 switches it off"),
        ({"top_k": 1.5}, r"top_k is 1\.5; it must be an integer"),
        ({"top_k": True}, "top_k is True"),
        ({"top_p": 0.0}, r"top_p is 0\.0; .*\(0, 1\]; 1 switches it off"),
        ({"top_p": 1.01}, r"top_p is 1\.01"),
        ({"top_p": math.nan}, "top_p is nan"),
        ({"min_p": -0.1}, r"min_p is -0\.1; .*\[0, 1\); 0 switches it off"),
        ({"min_p": 1.0}, r"min_p is 1\.0"),
        ({"typical_p": 0.0}, r"typical_p is 0\.0; .*\(0, 1\]; 1 switches it off"),
        ({"typical_p": 2.0}, r"typical_p is 2\.0"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty is 0\.0; .* above 0; 1 switches it off"),
        ({"repetition_penalty": -1.0}, r"repetition_penalty is -1\.0"),
    ],
)
def test_a_setting_out_of_bounds_is_refused_in_words(wrong, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**wrong)


BAD_ROWS = [
    ([math.nan, 0.0, 1.0], r"logits are NaN at \[1, 0\]; look for an overflow"),
    ([0.0, math.nan, -math.inf], r"logits are NaN at \[1, 1\]"),
    ([0.0, math.inf, 1.0], r"logits are \+inf at \[1, 1\]; to force a token"),
    ([-math.inf] * 3, r"all logits of row \[1\] are -inf; leave at least one"),
]
LAWS = [
    Sampler(),
    Sampler(0),
    Sampler(0.5, top_k=2),
    Sampler(top_p=0.5),
    Sampler(min_p=0.1),
    Sampler(typical_p=0.5),
    Sampler(0.5, 2, 0.5, 0.1, 0.5),
]


@pytest.mark.parametrize("sampler", LAWS)
@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
@pytest.mark.parametrize("vocab", [3, 9_000])
def test_a_row_without_a_law_is_refused_in_words(vocab, row, message, sampler):
    filler = torch.full((vocab - 3,), -math.inf)
    logits = torch.stack([torch.tensor(values) for values in ([0.0, 1.0, 2.0], row)])
    logits = torch.cat([logits, filler.expand(2, -1)], dim=-1)
    with pytest.raises(ValueError, match=message):
        sampler.probs(logits)


@pytest.mark.usefixtures("blind")
@pytest.mark.parametrize("sampler", LAWS)
@pytest.mark.parametrize("row", [row for row, _ in BAD_ROWS])
def test_where_no_value_is_looked_at_a_row_without_a_law_is_flagged(row, sampler):
    good, bad = torch.tensor([0.0, 1.0, 2.0]), torch.tensor(row)
    probs = sampler.probs(torch.stack([good, bad]))
    assert probs[1].isnan().any()
    assert poisoned(probs)
    assert not poisoned(sampler.probs(good[None]))


def test_a_temperature_that_overflows_is_refused_in_words():
    with pytest.raises(ValueError, match=r"overflows logits as high as 5\.0; .* 0 for greedy"):
        Sampler(1e-38).probs(torch.tensor([5.0, 1.0]))


def test_an_empty_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"logits have shape \[2, 0\]"):
        Sampler().probs(torch.zeros(2, 0))


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (None, r"repetition_penalty is 1\.1 but prefix is None; pass the ids"),
        ([[0, 5], [1, 2]], "holds the id 5, outside the vocabulary of 5; .* pad with -1"),
        ([[0, 1]], r"prefix has shape \[1, 2\] and logits \[2, 5\]; .* padded with -1"),
    ],
)
def test_a_prefix_that_does_not_fit_is_refused_in_words(prefix, message):
    ids = None if prefix is None else torch.tensor(prefix)
    with pytest.raises(ValueError, match=message):
        Sampler(repetition_penalty=1.1).probs(torch.zeros(2, 5), ids)


@pytest.mark.parametrize(
    "row", [[0.0, 0.0, 0.0], [0.5, -0.1, 0.6], [math.nan, 0.5, 0.5], [math.inf, 0.0, 0.0]]
)
def test_weights_that_cannot_be_drawn_from_are_refused_in_words(row, generator):
    probs = torch.tensor([[0.2, 0.3, 0.5], row])
    with pytest.raises(ValueError, match=r"probs of row \[1\] sum to .* must be non-negative"):
        Sampler().draw(probs, generator=generator)


@pytest.mark.usefixtures("blind")
@pytest.mark.parametrize("vocab", [3, 9_000])
def test_where_no_value_is_looked_at_a_bad_row_still_gives_an_id(vocab, generator):
    probs = torch.full((3, vocab), math.nan)
    probs[1] = 0.0
    probs[2] = 1 / vocab
    tokens = Sampler().draw(probs, generator=generator)
    assert ((tokens >= 0) & (tokens < vocab)).all()
