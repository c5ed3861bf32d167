"""Attention of one query equals its reference and the decoder's own, however it is split."""

import pytest
import torch

from foredraft.kernels.decode_attention import (
    TYPES,
    Scores,
    bytes_moved,
    decode_attention,
    reference,
)
from foredraft.models.attention import attend

PLAIN = Scores(0.25)
SCORES = {
    "plain": PLAIN,
    "soft-capped": Scores(0.3, softcap=5.0),
    "window": Scores(0.3, window=17),
    "window of one": Scores(0.3, softcap=2.0, window=1),
}


@pytest.fixture
def layer(drawn, device, generator):
    """Queries, one layer of a cache and lengths; behind each length lies NaN."""

    def make(batch, heads, kv_heads, dim, capacity, dtype=torch.float32):
        query = drawn(batch, heads, dim, dtype=dtype)
        keys, values = (drawn(batch, kv_heads, capacity, dim, dtype=dtype) for _ in range(2))
        lengths = torch.randint(1, capacity + 1, (batch,), generator=generator, device=device)
        for row, length in enumerate(lengths.tolist()):
            keys[row, :, length:], values[row, :, length:] = torch.nan, torch.nan
        return query, keys, values, lengths

    return make


def wanted(query, keys, values, lengths, scores):
    """The reference, which must not meet the NaN behind the lengths."""
    clean = [each.nan_to_num() for each in (keys, values)]
    return reference(query, *clean, lengths, scores)


@pytest.mark.parametrize("name", SCORES)
def test_groups_of_heads_at_every_split_give_what_the_reference_gives(layer, name):
    """An online softmax of n terms is exact to about n ε; the largest of the values is about 4."""
    for shape in ((1, 1, 1, 8, 5), (2, 6, 2, 20, 130)):
        given = layer(*shape)
        right = wanted(*given, SCORES[name])
        for parts in (1, 3, None):
            found = decode_attention(*given, SCORES[name], parts=parts)
            assert (found - right).abs().max() < 4 * shape[-1] * 1.2e-7, (shape, parts)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_right_to_a_few_roundings(layer, dtype):
    """Weights, the largest 1, and the result are rounded: three of half an ε on values to 4."""
    assert dtype in TYPES
    given = layer(2, 4, 2, 16, 70, dtype)
    found = decode_attention(*given, SCORES["soft-capped"])
    far = (found.float() - wanted(*given, SCORES["soft-capped"]).float()).abs().max()
    assert far < 3 * 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_it_is_what_the_decoder_computes(layer, softcap):
    query, keys, values, _ = layer(2, 6, 2, 16, 33)
    keys, values = keys.nan_to_num(), values.nan_to_num()
    lengths = torch.full((2,), 33, device=query.device)
    found = decode_attention(query, keys, values, lengths, Scores(0.25, softcap))
    theirs = attend(query[:, None], keys, values, None, scale=0.25, softcap=softcap)
    torch.testing.assert_close(found.flatten(1), theirs.squeeze(1), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"heads": 5}, "as many heads for each kv_head"),
        ({"dim": 9}, r"query \(2, 4, 9\)"),
        ({"dtype": torch.float64}, "float64"),
        ({"lengths": torch.tensor([0, 3])}, "from 0 to 3; they must be 1 to 6"),
        ({"lengths": torch.tensor([2, 7])}, "from 2 to 7"),
        ({"parts": 0}, "parts is 0"),
        ({"layout": "turned"}, "not contiguous"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(change, told):
    dtype = change.get("dtype", torch.float32)
    query = torch.zeros(2, change.get("heads", 4), change.get("dim", 8), dtype=dtype)
    stored = torch.zeros(2, 2, 6, 8)
    if "layout" in change:
        stored = torch.zeros(2, 6, 2, 8).transpose(1, 2)
    lengths = change.get("lengths", torch.tensor([1, 6]))
    with pytest.raises(ValueError, match=told):
        decode_attention(query, stored, stored, lengths, PLAIN, parts=change.get("parts"))


def test_scores_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="softcap is 0"):
        Scores(1.0, softcap=0.0)
    with pytest.raises(ValueError, match="window is 0"):
        Scores(1.0, window=0)


def test_what_is_seen_moves_once_for_all_heads_of_a_group():
    assert bytes_moved((10, 20), 8, 2, 64, torch.bfloat16) == (2 * 30 * 2 + 2 * 2 * 8) * 64 * 2
