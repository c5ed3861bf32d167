"""Wilson's interval is scipy's, holds what it promises, and takes means that are no counts."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from foredraft.analysis.statistics import wilson


@pytest.mark.parametrize(("right", "n"), [(0, 1), (0, 200), (7, 200), (199, 200), (200, 200)])
def test_intervals_of_shares_are_scipys(right, n):
    ends = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right / n, n) == pytest.approx((ends.low, ends.high), abs=1e-12)


def test_the_interval_holds_the_share_in_95_of_100_samples():
    """The exact chance over all outcomes of 60 draws, for several shares."""
    hits = np.arange(61)
    bounds = np.array([wilson(hit / 60, 60) for hit in hits])
    for share in (0.05, 0.3, 0.5):
        holds = (bounds[:, 0] <= share) & (share <= bounds[:, 1])
        assert 0.92 < binom.pmf(hits, 60, share)[holds].sum() < 0.98


@pytest.mark.parametrize("mean", [0.0, 0.123, 1.0])
def test_the_mean_lies_in_its_interval_and_the_interval_between_0_and_1(mean):
    low, high = wilson(mean, 7)
    assert 0 <= low <= mean + 1e-15
    assert mean - 1e-15 <= high <= 1


@pytest.mark.parametrize(("mean", "n"), [(0.5, 0), (-0.1, 5), (1.1, 5), (float("nan"), 5)])
def test_no_sample_and_what_is_no_share_are_refused(mean, n):
    with pytest.raises(ValueError, match=f"n={n}: give a mean in"):
        wilson(mean, n)
