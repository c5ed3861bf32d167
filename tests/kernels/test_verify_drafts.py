"""Drafts verified in a batch fare as `foredraft.decoding.verify` has it, and keep the law."""

import pytest
import torch
from scipy import stats

from foredraft.decoding.verify import verify_rows
from foredraft.kernels.verify_drafts import bytes_moved, reference, settle_drafts, verify_drafts

N = 300
"""Rows of a χ² test."""


@pytest.fixture
def drafts(drawn, device, generator):
    """Drafted tokens, drawn from their law; both laws; lengths from none to all."""

    def make(batch, n_drafted, vocab):
        target = (2 * drawn(batch, n_drafted + 1, vocab)).softmax(-1)
        draft = (2 * drawn(batch, n_drafted, vocab)).softmax(-1)
        tokens = torch.multinomial(
            draft.flatten(0, 1) if n_drafted else target[:, 0], 1, generator=generator
        )[: batch * n_drafted].view(batch, n_drafted)
        lengths = torch.randint(0, n_drafted + 1, (batch,), generator=generator, device=device)
        return tokens, draft, target, lengths

    return make


@pytest.mark.parametrize(
    ("batch", "n_drafted", "vocab"), [(3, 1, 2), (4, 5, 30), (2, 2, 5_000), (1, 7, 17)]
)
def test_a_seed_gives_the_outcome_that_the_decoding_gives(drafts, device, batch, n_drafted, vocab):
    given = drafts(batch, n_drafted, vocab)
    for seed in range(3):
        ours, theirs = (torch.Generator(device).manual_seed(seed) for _ in range(2))
        found = verify_drafts(*given, generator=ours)
        wanted = verify_rows(*given, verification="token", generator=theirs)
        assert torch.equal(found.n_accepted, wanted.n_accepted)
        assert torch.equal(found.token, wanted.token)


def settled(given, generator):
    tokens = given[0]
    place = {"dtype": torch.float64, "device": tokens.device}
    coins = torch.rand(tokens.shape, **place, generator=generator)
    return coins, torch.rand(len(tokens), **place, generator=generator)


@pytest.mark.parametrize(("n_drafted", "vocab"), [(0, 9), (3, 12)])
def test_the_reference_agrees(drafts, generator, n_drafted, vocab):
    given = drafts(3, n_drafted, vocab)
    chances = settled(given, generator)
    found, wanted = settle_drafts(*given, *chances), reference(*given, *chances)
    assert torch.equal(found.n_accepted, wanted.n_accepted)
    assert torch.equal(found.token, wanted.token)


def test_drafts_from_the_targets_own_law_all_stand(drafts, generator):
    tokens, _, target, _ = drafts(3, 4, 10)
    whole = torch.full((3,), 4, device=tokens.device)
    given = (tokens, target[:, :4].contiguous(), target, whole)
    found = settle_drafts(*given, *settled(given, generator))
    assert found.n_accepted.tolist() == [4, 4, 4]


def test_what_the_target_never_says_falls_and_is_not_drawn_instead(device):
    target = torch.tensor([[[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]]], device=device)
    draft = torch.tensor([[[1.0, 0.0, 0.0]]], device=device)
    one = torch.ones(1, dtype=torch.int64, device=device)
    for share in (0.0, 0.3, 0.7, 1 - 1e-12):
        chances = (torch.zeros(1, 1), torch.full((1,), share))
        chances = [each.to(device=device, dtype=torch.float64) for each in chances]
        found = settle_drafts(torch.zeros_like(one)[:, None], draft, target, one, *chances)
        assert found.n_accepted.tolist() == [0]
        assert found.token.tolist() == [1 if share < 0.5 else 2]


def p_value(tokens: torch.Tensor, probs: torch.Tensor) -> float:
    counts = tokens.bincount(minlength=len(probs)).double().cpu()
    expected = probs.double().cpu()
    return stats.chisquare(counts, expected / expected.sum() * len(tokens)).pvalue


def test_the_first_emitted_token_follows_the_targets_law_and_a_draft_does_not(device, generator):
    """χ², false alarm in one of ten thousand runs; the generator is fixed.

    The control: what was drafted, and what comes of a residual that is drawn from p itself.
    """
    p = torch.tensor([0.7, 0.1, 0.1, 0.1], device=device)
    q = torch.tensor([0.1, 0.1, 0.1, 0.7], device=device)
    drafted = torch.multinomial(q.expand(N, 4), 1, generator=generator)
    ones = torch.ones(N, dtype=torch.int64, device=device)
    laws = q.expand(N, 1, 4).contiguous(), p.expand(N, 2, 4).contiguous()
    found = verify_drafts(drafted, *laws, ones, generator=generator)
    first = torch.where(found.n_accepted == 1, drafted[:, 0], found.token)
    assert p_value(first, p) > 1e-4
    assert p_value(drafted[:, 0], p) < 1e-4
    anew = torch.multinomial(p.expand(N, 4), 1, generator=generator)[:, 0]
    biased = torch.where(found.n_accepted == 1, drafted[:, 0], anew)
    assert p_value(biased, p) < 1e-4


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"vocab": 6}, r"they have \(\(2, 3, 6\)"),
        ({"dtype": torch.float64}, "draft_probs are torch.float64"),
        ({"lengths": torch.tensor([0, 4])}, "within 0 to 3"),
        ({"token": 5}, "outside the vocabulary of 5"),
        ({"lengths": torch.tensor([1, 1], dtype=torch.int32)}, "lengths torch.int32"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(change, told):
    draft = torch.ones(2, 3, change.get("vocab", 5), dtype=change.get("dtype", torch.float32))
    tokens = torch.full((2, 3), change.get("token", 1))
    lengths = change.get("lengths", torch.tensor([1, 3]))
    with pytest.raises(ValueError, match=told):
        verify_drafts(tokens, draft, torch.ones(2, 4, 5), lengths, generator=torch.Generator())


def test_two_laws_of_each_row_move():
    assert bytes_moved(3, 1000) == 3 * 2 * 1000 * 4
