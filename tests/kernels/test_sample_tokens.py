"""Tokens drawn without a sort follow the sampler's law, ties and all."""

import pytest
import torch
from scipy import stats

import foredraft as fd
from foredraft.kernels.sample_tokens import (
    Filters,
    bytes_moved,
    n_passes,
    pick_tokens,
    reference,
    sample_tokens,
)
from tests.kernels.conftest import guarded

SETTINGS = {
    "none": Filters(),
    "temperature": Filters(0.7),
    "top-k": Filters(1.0, top_k=3),
    "top-p": Filters(1.3, top_p=0.8),
    "min-p": Filters(1.0, min_p=0.1),
    "all": Filters(0.9, top_k=6, top_p=0.9, min_p=0.05),
}
N = 300
"""Draws of a χ² test."""


def sampler(filters: Filters) -> fd.Sampler:
    return fd.Sampler(filters.temperature, filters.top_k, filters.top_p, filters.min_p)


def at_shares(probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The tokens that the sampler's own law has at these shares."""
    cumulated = probs.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(cumulated, uniforms * cumulated[:, -1:], right=True)


def evenly(rows: int, n: int, device: str) -> torch.Tensor:
    shares = (torch.arange(n, dtype=torch.float64, device=device) + 0.5) / n
    return shares.expand(rows, n)


@pytest.mark.parametrize("name", SETTINGS)
def test_at_evenly_spread_shares_the_tokens_are_those_of_the_samplers_law(drawn, device, name):
    filters = SETTINGS[name]
    for logits in (2 * drawn(1, 11), (2 * drawn(2, 40)).round()):  # no ties; many
        logits[:, 3] = -torch.inf
        uniforms = evenly(len(logits), 6, device)
        found = pick_tokens(guarded(logits), filters, uniforms)
        assert torch.equal(found, at_shares(sampler(filters).probs(logits), uniforms))
        assert torch.equal(found, reference(logits, filters, uniforms))


@pytest.mark.parametrize("name", ["top-k", "all"])
def test_a_row_of_many_chunks_is_one_law(drawn, device, name):
    """Beyond a rounding at the ends of chunks: shares in the midst of tokens meet none."""
    logits = 2 * drawn(1, 9_001)
    probs = sampler(SETTINGS[name]).probs(logits)
    kept = probs[0].nonzero().flatten()
    middle = (probs[0].cumsum(-1, dtype=torch.float64) - probs[0].double() / 2)[kept][None]
    assert torch.equal(pick_tokens(logits, SETTINGS[name], middle), kept[None])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_widened_first(drawn, device, dtype):
    logits, uniforms = drawn(2, 19, dtype=dtype), evenly(2, 3, device)
    found = pick_tokens(logits, SETTINGS["all"], uniforms)
    assert torch.equal(found, at_shares(sampler(SETTINGS["all"]).probs(logits), uniforms))


def test_rows_may_be_views(drawn, device):
    logits, uniforms = drawn(3, 30)[:, 4:24], evenly(3, 2, device)
    assert torch.equal(
        pick_tokens(logits, SETTINGS["top-p"], uniforms),
        pick_tokens(logits.contiguous(), SETTINGS["top-p"], uniforms),
    )


def test_equal_scores_are_kept_from_the_lowest_id_up(device):
    level = torch.zeros(1, 10, device=device)
    found = pick_tokens(level, Filters(top_p=0.35), evenly(1, 8, device))
    assert sorted(set(found.flatten().tolist())) == [0, 1, 2, 3]


def test_both_zeros_are_one_score(device):
    logits = torch.tensor([[0.0, -0.0, -1.0, -0.0]], device=device)
    found = pick_tokens(logits, Filters(top_k=1), evenly(1, 6, device))
    assert set(found.flatten().tolist()) == {0, 1, 3}, "tied with the first"


def test_temperature_zero_takes_the_highest_the_lowest_id_on_ties(device, generator):
    logits = torch.tensor([[0.0, 2.0, 2.0], [3.0, 1.0, 3.0]], device=device)
    assert sample_tokens(logits, Filters(0.0), generator=generator).tolist() == [1, 0]


def test_a_seed_gives_the_tokens_that_the_sampler_gives(drawn, device):
    logits, filters = drawn(4, 60), SETTINGS["top-p"]
    ours, theirs = (torch.Generator(device).manual_seed(5) for _ in range(2))
    law = sampler(filters)
    assert torch.equal(
        sample_tokens(logits, filters, generator=ours),
        law.draw(law.probs(logits), generator=theirs),
    )


def drawn_many(filters: Filters, logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    place = {"dtype": torch.float64, "device": logits.device}
    uniforms = torch.rand((1, N), **place, generator=generator)
    return pick_tokens(logits, filters, uniforms).flatten()


def p_value(tokens: torch.Tensor, probs: torch.Tensor) -> float:
    expected = probs[probs > 0].double().cpu()
    counts = tokens.bincount(minlength=len(probs))[probs > 0].double().cpu()
    assert counts.sum() == len(tokens), "nothing beyond the law's support"
    return stats.chisquare(counts, expected / expected.sum() * len(tokens)).pvalue


def test_draws_follow_the_law_and_not_another(device, generator):
    """χ², false alarm in one of ten thousand runs; the generator is fixed.

    The control is the law at another temperature, whose support has one token more.
    """
    logits = torch.tensor([[1.5, 1.0, 0.5, 0.0, -0.5, -1.0]], device=device)
    tokens = drawn_many(Filters(0.6, top_p=0.95), logits, generator)
    right = fd.Sampler(0.6, top_p=0.95).probs(logits)[0]
    wrong = fd.Sampler(1.0, top_p=0.95).probs(logits)[0]
    assert set(right.nonzero().flatten().tolist()) <= set(wrong.nonzero().flatten().tolist())
    assert p_value(tokens, right) > 1e-4
    assert p_value(tokens, wrong) < 1e-4, "at another temperature"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"temperature": -1.0}, "temperature is -1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, r"top_p is 0.0; it must be in \(0, 1\]"),
        ({"min_p": 1.0}, "min_p is 1"),
    ],
)
def test_filters_that_make_no_sense_are_refused(fields, told):
    with pytest.raises(ValueError, match=told):
        Filters(**fields)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_row_is_refused_on_the_cpu_and_gives_minus_one_elsewhere(device, bad):
    logits = torch.tensor([[0.0, bad, 1.0], [0.0, 1.0, 2.0]], device=device)
    if device == "cpu":
        with pytest.raises(ValueError, match="NaN or \\+inf"):
            pick_tokens(logits, Filters(), evenly(2, 1, device))
    else:
        found = pick_tokens(logits, Filters(), evenly(2, 1, device)).flatten().tolist()
        assert found[0] == -1
        assert found[1] >= 0


def test_what_does_not_fit_is_refused_in_words():
    with pytest.raises(ValueError, match=r"uniforms \(3, 1\)"):
        pick_tokens(torch.zeros(2, 5), Filters(), torch.zeros(3, 1, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"uniforms torch\.float32"):
        pick_tokens(torch.zeros(2, 5), Filters(), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="draws from 1 to"):
        pick_tokens(torch.zeros(2, 0), Filters(), torch.zeros(2, 1, dtype=torch.float64))


def test_passes_are_counted_and_bytes_too():
    assert n_passes(Filters()) == 3
    assert n_passes(Filters(top_k=5, top_p=0.9)) == 19
    assert bytes_moved(2, 1000, torch.bfloat16) == 4000
