"""What counting knows of masked tokens is what was counted, and scores have honest bounds."""

import math

import pandas as pd
import pytest
import torch

from foredraft.training.mlm import Passage
from foredraft.training.pocket_bert import Neighbours, score


@pytest.fixture
def counted():
    """Of seven tokens, 5 is followed by 6, but once by 3; 4 by nothing and 2 is never seen."""
    return Neighbours.of([Passage(0, ((5, 6, 5, 6), (5, 6, 5))), Passage(1, ((5, 3, 4),))], 7)


def test_counted_laws_sum_to_one_and_know_the_likeliest_neighbour(counted):
    assert torch.allclose(counted.follows.sum(1), torch.ones(7))
    assert counted.single.sum() == pytest.approx(1)
    assert counted.follows[5].argmax() == 6
    assert counted.single.argmax() == 5
    assert torch.equal(counted.follows[2], counted.single)


def test_absolute_discounting_takes_three_quarters_from_each_kind_of_pair(counted):
    spared = 0.75 * 2 / 4
    expected = (3 - 0.75) / 4 + spared * counted.single[6]
    assert counted.follows[5, 6].item() == pytest.approx(expected.item())


def test_both_neighbours_are_bayes_rule_on_pairs(counted):
    law = counted.from_both(torch.tensor([5]), torch.tensor([4]))[0]
    by_hand = torch.stack([counted.follows[5, x] * counted.follows[x, 4] for x in range(7)])
    assert torch.allclose(law, by_hand / by_hand.sum())
    assert law.argmax() == 3


def test_a_score_s_bounds_are_those_of_documents_not_of_tokens():
    """Ten tokens that are right or wrong together count as one."""
    alone = pd.DataFrame({"document": range(100), "right": [i % 2 == 0 for i in range(100)]})
    alone["nats"] = 1.0
    together = alone.loc[alone.index.repeat(10)]
    one, ten = score(alone), score(together)
    assert (one["accuracy"], one["low"], one["high"]) == (ten["accuracy"], ten["low"], ten["high"])
    assert (one["n"], ten["n"], ten["documents"]) == (100, 1000, 100)
    normal = 1.96 * math.sqrt(0.25 / 100)
    assert one["high"] - one["low"] == pytest.approx(2 * normal, rel=0.15)
