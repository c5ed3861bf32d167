"""Signals are what their formulas say, in numpy, of laws of every shape and precision."""

import itertools

import numpy as np
import pytest
import scipy.stats
import torch

from foredraft.decoding.signal import SIGNALS, Blend, confidence, entropy, margin

NAMES = pytest.mark.parametrize("name", SIGNALS)
BY_HAND = {
    "confidence": lambda p, token: p[token],
    "entropy": lambda p, token: scipy.stats.entropy(p),
    "margin": lambda p, token: np.sort(p)[-1] - np.sort(p)[-2],
}


def by_hand(name, logits, token):
    """Give a signal of one law and its token in float64."""
    logits = logits.double().numpy()
    weights = np.exp(logits - logits.max())
    return BY_HAND[name](weights / weights.sum(), token)


def random_laws(vocab, dtype=torch.float64, scale=3.0):
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(20, vocab, generator=generator, dtype=torch.float64) * scale
    tokens = torch.randint(vocab, (20,), generator=generator)
    return logits.to(dtype), tokens


def require_by_hand(name, logits, tokens, within):
    wanted = [by_hand(name, *each) for each in zip(logits, tokens.tolist(), strict=True)]
    found = SIGNALS[name](logits, tokens)
    np.testing.assert_allclose(found.double().numpy(), wanted, atol=within, rtol=0)


@NAMES
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("vocab", [2, 3, 50])
def test_a_signal_is_what_its_formula_says(name, vocab, scale):
    require_by_hand(name, *random_laws(vocab, scale=scale), 1e-13)


@NAMES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_of_logits_in_half_precision_it_is_as_exact_as_of_float32(name, dtype):
    logits, tokens = random_laws(1000, dtype)
    require_by_hand(name, logits, tokens, 1e-5 if name == "entropy" else 1e-6)
    assert SIGNALS[name](logits, tokens).dtype == torch.float32


@NAMES
@pytest.mark.parametrize("n_left", [1, 2, 3])
def test_tokens_that_cannot_be_count_nothing(name, n_left):
    logits, tokens = random_laws(7)
    logits[:, n_left:] = -torch.inf
    require_by_hand(name, logits, tokens, 1e-13)
    kept = logits[:, :n_left] if n_left > 1 else logits[:, :2]
    possible = tokens % n_left
    torch.testing.assert_close(SIGNALS[name](logits, possible), SIGNALS[name](kept, possible))


def test_the_surest_law_and_the_least_sure_are_the_ends_of_each_scale():
    sure, unsure = torch.full((1, 4), -torch.inf), torch.full((1, 4), 1.7)
    sure[0, 2] = -5.0
    ends = {"confidence": (1.0, 0.25), "entropy": (0.0, np.log(4)), "margin": (1.0, 0.0)}
    for (name, wanted), place in itertools.product(ends.items(), range(2)):
        found = SIGNALS[name]((sure, unsure)[place], torch.tensor([2])).item()
        assert found == pytest.approx(wanted[place], abs=1e-7)
    assert confidence(sure, torch.tensor([1])).item() == 0.0


def test_two_likeliest_tokens_leave_no_margin():
    logits = torch.tensor([[3.0, 1.0, 3.0], [2.0, 2.0, -torch.inf]])
    assert margin(logits, torch.tensor([0, 1])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("signal", [entropy, margin])
def test_entropy_and_margin_are_of_the_law_whatever_the_token(signal):
    logits, tokens = random_laws(9)
    assert torch.equal(signal(logits, tokens), signal(logits, (tokens + 1) % 9))


@NAMES
def test_what_all_logits_share_is_no_matter_nor_does_it_overflow(name):
    logits, tokens = random_laws(9, torch.float32)
    for shift in (-1e4, 1e4):
        found = SIGNALS[name](logits.double() + shift, tokens)
        torch.testing.assert_close(found, SIGNALS[name](logits.double(), tokens))
        assert SIGNALS[name](logits + shift, tokens).isfinite().all()


@NAMES
def test_signals_of_several_places_are_those_of_each(name):
    logits, tokens = random_laws(9)
    whole = SIGNALS[name](logits.view(4, 5, 9), tokens.view(4, 5))
    assert torch.equal(whole.flatten(), SIGNALS[name](logits, tokens))


@NAMES
def test_signals_leave_logits_and_tokens_as_they_are(name):
    logits, tokens = random_laws(9)
    before = logits.clone(), tokens.clone()
    SIGNALS[name](logits, tokens)
    assert torch.equal(logits, before[0])
    assert torch.equal(tokens, before[1])


def test_a_blend_is_the_weighted_sum_from_its_start():
    logits, tokens = random_laws(9)
    blend = Blend({"entropy": -0.5, "confidence": 2}, start=0.25)
    wanted = 0.25 + 2 * confidence(logits, tokens) - 0.5 * entropy(logits, tokens)
    torch.testing.assert_close(blend(logits, tokens), wanted)


def test_a_blend_of_signals_that_are_known_looks_at_no_law():
    logits, tokens = random_laws(9)
    known = {name: signal(logits, tokens) for name, signal in SIGNALS.items()}
    blend = Blend({"margin": 1.5, "confidence": -1.0}, start=1)
    assert torch.equal(blend.of(known), blend(logits, tokens))


def test_a_blend_may_be_of_a_reader_s_own_signals():
    logits, tokens = random_laws(9)
    blend = Blend({"largest": 2.0}, signals={"largest": lambda logits, tokens: logits.amax(-1)})
    assert torch.equal(blend(logits, tokens), 2.0 * logits.amax(-1))


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"confidense": 1.0}, "unknown signal 'confidense': did you mean 'confidence'"),
        ({}, "a blend of no signals: weigh one or more of confidence, entropy, margin"),
    ],
)
def test_a_blend_of_nothing_that_is_known_is_refused(weights, told):
    with pytest.raises(ValueError, match=told):
        Blend(weights)
