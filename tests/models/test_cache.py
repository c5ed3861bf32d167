"""A cached forward pass computes what an uncached one does, however the rows advance."""

import random
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from foredraft.models.cache import KVCache
from foredraft.models.compiling.ahead import AheadSteps
from foredraft.models.decoder import Decoder
from foredraft.models.skip import SkipPlan

LENGTH = 29
CLOSE = {"rtol": 0, "atol": 1e-12}
CHUNKS = {
    "at once": [LENGTH],
    "token by token": [1] * LENGTH,
    "a prefill, then token by token": [11, *[1] * (LENGTH - 11)],
    "shorter than the window": [3, 5, 1, 6, 2, 4, 1, 1, 6],
    "longer than the window": [2, 9, 1, 17],
    "exactly the window": [7, 7, 7, 7, 1],
    "one more than the window": [8, 8, 8, 5],
}


def in_chunks(decoder: Decoder, tokens: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    cache = decoder.new_cache(tokens.shape[0], LENGTH)
    logits = []
    for chunk in tokens.split(sizes, dim=1):
        logits.append(decoder(chunk, cache))
        cache.commit(chunk.shape[1])
    return torch.cat(logits, dim=1)


def prefilled(decoder: Decoder, tokens: torch.Tensor) -> KVCache:
    cache = decoder.new_cache(tokens.shape[0], tokens.shape[1] + 16)
    decoder(tokens, cache)
    cache.commit(tokens.shape[1])
    return cache


def held(cache: KVCache, row: int) -> torch.Tensor:
    """The committed keys and values of a row: [layer, 2, kv_head, length, head_dim]."""
    length = cache.lengths[row]
    pairs = zip(cache.keys, cache.values, strict=True)
    return torch.stack([torch.stack([k[row, :, :length], v[row, :, :length]]) for k, v in pairs])


def spoilt(tokens: torch.Tensor) -> torch.Tensor:
    return (tokens + 1) % 97


class RaggedRun:
    """Rows that advance at their own pace, as when each accepts its own number of draft tokens.

    Every pass feeds each row `n_new` tokens, of which the row keeps the first few; those after
    them are wrong, as rejected drafts are.
    """

    def __init__(
        self, decoder: Decoder, tokens: torch.Tensor, prompts: list[int], cache: KVCache
    ) -> None:
        self.decoder, self.tokens, self.cache = decoder, tokens, cache
        self.logits: list[list[torch.Tensor]] = [[] for _ in prompts]
        self.advance(max(prompts), prompts)

    def advance(self, n_new: int, kept: list[int]) -> None:
        starts = self.cache.lengths
        fed = torch.stack(
            [self._feed(row, starts[row], n_new, count) for row, count in enumerate(kept)]
        )
        for row, logits in enumerate(self.decoder(fed, self.cache)):
            self.logits[row].append(logits[: kept[row]])
        self.cache.commit(kept)

    def _feed(self, row: int, start: int, n_new: int, kept: int) -> torch.Tensor:
        right, wrong = self.tokens[row, start : start + n_new].split([kept, n_new - kept])
        return torch.cat([right, spoilt(wrong)])


@pytest.fixture
def decoder(family, exact_decoder) -> Decoder:
    return exact_decoder(family)


@pytest.fixture(params=enumerate([Decoder.new_cache, AheadSteps().new_cache]))
def ragged(request, decoder, text) -> RaggedRun:
    """Three rows after five ragged passes, past the sliding window; also where storage is roomier.

    The cache of compiled steps has a slot more in storage than it may fill.
    """
    seed, new_cache = request.param
    dice = random.Random(seed)
    run = RaggedRun(decoder, text(3, 64), [3, 11, 7], new_cache(decoder, 3, 64))
    for n_new in (4, 1, 9, 2, 6):
        run.advance(n_new, [dice.randint(0, n_new) for _ in range(3)])
    return run


@pytest.mark.parametrize("sizes", CHUNKS.values(), ids=CHUNKS)
def test_chunks_give_the_logits_of_one_uncached_pass(decoder, text, sizes):
    tokens = text(3, LENGTH)
    assert_close(in_chunks(decoder, tokens, sizes), decoder(tokens), **CLOSE)


@pytest.mark.parametrize("seed", range(2))
def test_random_chunks_give_the_logits_of_one_uncached_pass(decoder, text, seed):
    dice = random.Random(seed)
    cuts = sorted(dice.sample(range(1, LENGTH), 6))
    sizes = [stop - start for start, stop in pairwise([0, *cuts, LENGTH])]
    tokens = text(2, LENGTH, seed)
    assert_close(in_chunks(decoder, tokens, sizes), decoder(tokens), **CLOSE)


def test_rows_that_advance_raggedly_give_the_logits_of_each_row_alone(decoder, ragged):
    for row, logits in enumerate(ragged.logits):
        alone = decoder(ragged.tokens[row : row + 1, : ragged.cache.lengths[row]])[0]
        assert_close(torch.cat(logits), alone, **CLOSE)


def test_ragged_commits_hold_the_keys_and_values_of_a_fresh_prefill(decoder, ragged):
    for row, length in enumerate(ragged.cache.lengths):
        fresh = prefilled(decoder, ragged.tokens[row : row + 1, :length])
        assert_close(held(ragged.cache, row), held(fresh, 0), **CLOSE)


def test_a_draft_that_was_not_committed_leaves_no_trace(decoder, text):
    tokens = text(2, LENGTH)
    cache = prefilled(decoder, tokens[:, :10])
    decoder(spoilt(tokens[:, 10:20]), cache)
    assert_close(decoder(tokens[:, 10:24], cache), decoder(tokens)[:, 10:24], **CLOSE)


@pytest.mark.parametrize("lengths", [5, 0, [2, 13], [0, 13]])
def test_after_rollback_the_logits_are_those_of_the_text_that_is_left(decoder, text, lengths):
    tokens = text(2, LENGTH)
    cache = prefilled(decoder, torch.cat([tokens[:, :2], spoilt(tokens[:, 2:13])], dim=1))
    cache.rollback([2, 2])
    decoder(tokens[:, 2:13], cache)
    cache.commit(11)
    cache.rollback(lengths)
    starts = [lengths, lengths] if isinstance(lengths, int) else lengths
    rest = torch.stack([row[start : start + 9] for row, start in zip(tokens, starts, strict=True)])
    for row, (start, logits) in enumerate(zip(starts, decoder(rest, cache), strict=True)):
        alone = decoder(tokens[row : row + 1, : start + 9])[0, start:]
        assert_close(logits, alone, **CLOSE)


def test_after_rollback_and_another_pass_keys_and_values_are_those_of_a_fresh_prefill(
    decoder, text
):
    tokens = text(2, LENGTH)
    cache = prefilled(decoder, tokens[:, :15])
    cache.rollback([4, 9])
    decoder(torch.stack([tokens[0, 4:20], tokens[1, 9:25]]), cache)
    cache.commit([16, 3])
    for row, length in enumerate((20, 12)):
        assert_close(
            held(cache, row), held(prefilled(decoder, tokens[row : row + 1, :length]), 0), **CLOSE
        )


def test_a_draft_under_a_plan_leaves_no_trace_after_the_target_pass(decoder, text):
    """The draft fills the shared cache with its own keys and values, and holes where it skips."""
    tokens = text(2, LENGTH)
    plan = SkipPlan(attn=[0, 2], mlp=[1])
    cache = prefilled(decoder, tokens[:, :10])
    for position in range(10, 14):
        decoder(tokens[:, position : position + 1], cache, skip=plan)
        cache.commit(1)
    cache.rollback(10)
    assert_close(decoder(tokens[:, 10:15], cache), decoder(tokens)[:, 10:15], **CLOSE)
    cache.commit(5)
    assert_close(held(cache, 1), held(prefilled(decoder, tokens[1:, :15]), 0), **CLOSE)


def test_keep_rows_keeps_exactly_the_rows_named(decoder, ragged):
    before = [held(ragged.cache, row) for row in range(3)]
    lengths = ragged.cache.lengths
    ragged.cache.keep_rows([2, 0])
    assert ragged.cache.batch == 2
    assert ragged.cache.lengths == (lengths[2], lengths[0])
    assert torch.equal(held(ragged.cache, 0), before[2])
    assert torch.equal(held(ragged.cache, 1), before[0])


def test_rows_kept_go_on_as_if_the_others_had_never_been(decoder, ragged):
    lengths = ragged.cache.lengths
    ragged.cache.keep_rows([2, 0])
    new = torch.stack([ragged.tokens[row, lengths[row] : lengths[row] + 3] for row in (2, 0)])
    for row, logits in zip((2, 0), decoder(new, ragged.cache), strict=True):
        alone = decoder(ragged.tokens[row : row + 1, : lengths[row] + 3])[0, -3:]
        assert_close(logits, alone, **CLOSE)


def test_the_last_position_of_the_cache_can_be_used(decoder, text):
    cache = decoder.new_cache(2, 5)
    decoder(text(2, 5), cache)
    cache.commit(5)
    assert cache.lengths == (5, 5)


@pytest.fixture
def cache(exact_decoder) -> KVCache:
    """Two rows of 3 and 6 committed positions, of 8."""
    cache = exact_decoder("llama").new_cache(2, 8)
    cache.commit([3, 6])
    return cache


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda cache: cache.commit(3), "length 9 exceeds the cache's capacity 8"),
        (lambda cache: cache.commit([0, 3]), "length 9 exceeds the cache's capacity 8"),
        (lambda cache: cache.commit(-1), "cannot commit -1 positions"),
        (lambda cache: cache.commit([1]), "1 numbers for 2 rows"),
        (lambda cache: cache.rollback(4), "row 0 holds 3 positions and cannot be cut to 4"),
        (lambda cache: cache.rollback([3, 7]), "row 1 holds 6 positions and cannot be cut to 7"),
        (lambda cache: cache.rollback(-1), "row 0 holds 3 positions and cannot be cut to -1"),
        (lambda cache: cache.rollback([1, 1, 1]), "3 numbers for 2 rows"),
        (lambda cache: cache.positions(3), "3 more positions after 6 exceed the cache's 8"),
        (lambda cache: cache.keep_rows([]), r"cannot keep rows \[\]"),
        (lambda cache: cache.keep_rows([2]), r"cannot keep rows \[2\]: name some of 0 to 1"),
        (lambda cache: cache.keep_rows([-1]), r"cannot keep rows \[-1\]"),
        (lambda cache: cache.keep_rows([0, 0]), r"cannot keep rows \[0, 0\].*each once"),
    ],
)
def test_misuse_is_refused_and_changes_nothing(cache, misuse, message):
    with pytest.raises(ValueError, match=message):
        misuse(cache)
    assert cache.lengths == (3, 6)
    assert (cache.batch, cache.shortest, cache.longest) == (2, 3, 6)
    assert cache.positions(1).tolist() == [[3], [6]]
    assert cache.keys[0].shape[0] == 2


def test_tokens_that_do_not_fit_are_refused_before_anything_is_written(exact_decoder, cache, text):
    with pytest.raises(ValueError, match="allocate a larger one"):
        exact_decoder("llama")(text(2, 3), cache)
    assert not any(keys.any() for keys in cache.keys)


def test_tokens_of_another_batch_are_refused(exact_decoder, cache, text):
    with pytest.raises(ValueError, match="3 rows of tokens for a cache of 2 rows"):
        exact_decoder("llama")(text(3, 1), cache)


@pytest.mark.parametrize(
    ("batch", "capacity", "message"),
    [
        (0, 8, "batch=0, capacity=8"),
        (1, 0, "batch=1, capacity=0"),
        (1, 129, "capacity 129 exceeds the model's 128 positions"),
    ],
)
def test_a_cache_that_cannot_be_is_refused(exact_decoder, batch, capacity, message):
    with pytest.raises(ValueError, match=message):
        exact_decoder("llama").new_cache(batch, capacity)
