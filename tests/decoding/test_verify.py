"""The verifier by itself: counts, kinds, edges, refusals, and its statistics."""

import pytest
import torch

import foredraft as fd
from foredraft.decoding import verify

HALF = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
FIRST = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
LAST = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
rules = pytest.mark.parametrize("verification", ["token", "block"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@rules
def test_a_draft_that_is_the_target_s_own_is_kept_and_followed_by_a_bonus(verification):
    target = torch.stack([HALF, HALF, LAST])
    verdict = fd.verify(
        torch.tensor([0, 1]), target[:2], target, generator=generator(), verification=verification
    )
    assert (verdict.n_accepted, verdict.token, verdict.kind) == (2, 2, "bonus")


@rules
def test_what_the_target_forbids_is_rejected_and_recovered_from_the_residual(verification):
    verdict = fd.verify(
        torch.tensor([0, 0]),
        torch.stack([HALF, HALF]),
        torch.stack([HALF, LAST, FIRST]),
        generator=generator(),
        verification=verification,
    )
    assert (verdict.n_accepted, verdict.token, verdict.kind) == (1, 2, "recovered")


@rules
def test_an_empty_draft_gives_a_token_of_the_target(verification):
    verdict = fd.verify(
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0, 3).double(),
        LAST[None],
        generator=generator(),
        verification=verification,
    )
    assert (verdict.n_accepted, verdict.token, verdict.kind) == (0, 2, "bonus")


def test_a_uniform_of_zero_does_not_accept_what_the_target_forbids():
    zero = torch.zeros(1, 2, dtype=torch.float64)
    assert verify.accepts(zero, torch.tensor([[0.0, 1e-300]], dtype=torch.float64)).tolist() == [
        [False, True]
    ]


def test_a_residual_without_mass_falls_back_to_the_target():
    left = verify.residual(
        HALF[None, None],
        torch.stack([HALF, LAST])[None],
        torch.ones(1, 2),
        torch.tensor([0]),
        torch.tensor([1]),
    )
    assert torch.equal(left[0], HALF)


def test_what_the_filters_removed_has_no_mass_in_the_residual():
    p, q = torch.tensor([0.3, 0.7, 0.0, 0.0]), torch.tensor([0.6, 0.2, 0.2, 0.0])
    left = verify.residual(
        q[None, None],
        torch.stack([p, p])[None],
        torch.ones(1, 2),
        torch.tensor([0]),
        torch.tensor([1]),
    )
    assert (left[0] > 0).tolist() == [False, True, False, False]


@rules
def test_rows_are_judged_by_their_own_lengths(verification):
    """Behind a row's length stands what would be accepted; it must not count."""
    q = HALF.expand(3, 2, 3)
    target = torch.stack([HALF, HALF, HALF]).expand(3, 3, 3)
    verdicts = verify.verify_rows(
        torch.zeros(3, 2, dtype=torch.int64),
        q,
        target,
        torch.tensor([0, 1, 2]),
        verification=verification,
        generator=generator(),
    )
    assert verdicts.n_accepted.tolist() == [0, 1, 2]


@rules
def test_sampled_verdicts_follow_the_target_s_law(verification):
    """χ² on 20,000 rows, false-alarm probability 1e-6 each; the draft's law is caught."""
    from scipy.stats import chisquare

    rows = 20_000
    q = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    p = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    drafts = fd.Sampler().draw(q.expand(rows, 1, 3), generator=generator(1))
    verdicts = verify.verify_rows(
        drafts,
        q.expand(rows, 1, 3),
        p.expand(rows, 2, 3),
        torch.ones(rows, dtype=torch.int64),
        verification=verification,
        generator=generator(2),
    )
    first = torch.where(verdicts.n_accepted == 1, drafts[:, 0], verdicts.token)
    counts = torch.bincount(first, minlength=3).numpy()
    assert chisquare(counts, (p * rows).numpy()).pvalue > 1e-6
    assert chisquare(counts, (q * rows).numpy()).pvalue < 1e-6


@pytest.mark.parametrize("length", [1, 2])
def test_coins_are_independent_of_each_other_and_of_the_draws(length):
    """Of 20,000 rows no two columns correlate; false-alarm probability below 1e-5 for all pairs."""
    rows, limit = 20_000, 4.9 / 20_000**0.5
    p, q = torch.tensor([0.25, 0.75]).double(), torch.tensor([0.5, 0.5]).double()
    drafts = torch.zeros(rows, length, dtype=torch.int64)
    seen = []
    accepts = verify.accepts

    def watch(uniforms, chances):
        seen.append(uniforms)
        return accepts(uniforms, chances)

    patch = pytest.MonkeyPatch()
    patch.setattr(verify, "accepts", watch)
    try:
        verdicts = verify.verify_rows(
            drafts,
            q.expand(rows, length, 2),
            torch.stack([q] * length + [p]).expand(rows, -1, 2),
            torch.full((rows,), length),
            verification="token",
            generator=generator(3),
        )
    finally:
        patch.undo()
    columns = torch.stack([*seen[0].T, verdicts.token.double()])
    correlation = torch.corrcoef(columns) - torch.eye(length + 1)
    assert correlation.abs().max() < limit


def test_what_cannot_have_been_drawn_is_refused():
    with pytest.raises(ValueError, match="probability 0"):
        fd.verify(torch.tensor([2]), HALF[None], torch.stack([HALF, HALF]), generator=generator())


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 1, 3\) from the draft and \(1, 2, 3\)"):
        fd.verify(torch.tensor([0]), HALF[None], HALF[None], generator=generator())
