"""What a memory lets a layer see: no more than its window, the same in static shapes."""

import pytest
import torch
from torch.testing import assert_close

from foredraft.models.attention import StaticMemory, TextMemory, _summed, attend
from foredraft.models.cache import KVCache
from foredraft.models.decoder import Decoder

WINDOW = 7
NEW = 3


@pytest.fixture
def decoder(exact_decoder) -> Decoder:
    """Gemma-2: every other layer has a window."""
    return exact_decoder("gemma2")


def filled(decoder: Decoder, lengths: list[int]) -> KVCache:
    cache = decoder.new_cache(len(lengths), 100)
    generator = torch.Generator().manual_seed(2)
    for layer in (*cache.keys, *cache.values):
        layer.copy_(torch.randn(layer.shape, generator=generator, dtype=layer.dtype))
    cache.commit(lengths)
    return cache


def new(decoder: Decoder, batch: int, heads: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(heads)
    shape = (batch, NEW, heads, decoder.config.head_dim)
    return torch.randn(shape, generator=generator, dtype=decoder.dtype)


@pytest.mark.parametrize(("lengths", "reach"), [([50], 0), ([50, 50], 0), ([41, 50], 9)])
def test_a_windowed_layer_reads_what_its_window_reaches_however_long_the_text(
    decoder, lengths, reach
):
    """The other rows of a ragged batch reach as much further as they are shorter."""
    cache = filled(decoder, lengths)
    tokens = torch.zeros(len(lengths), NEW, dtype=torch.int64)
    memory = TextMemory(decoder.config, tokens, cache, decoder.dtype)
    kv = new(decoder, len(lengths), decoder.config.n_kv_heads)
    seen = {None: 50 + NEW, WINDOW: WINDOW - 1 + NEW + reach}
    assert set(decoder.config.windows) == set(seen)
    for layer, window in enumerate(decoder.config.windows):
        assert memory.extend(layer, kv, kv, window)[0].shape[2] == seen[window]
        mask = memory.mask(window)
        assert mask is not None
        assert mask.shape[-1] == seen[window]


@pytest.mark.parametrize("lengths", [[50], [4], [41, 50, 2]])
@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("is_long", [True, False])
def test_static_shapes_attend_to_the_same(decoder, lengths, window, is_long):
    if window is None and is_long:
        is_long = False  # there is no window to copy out
    config, cache = decoder.config, filled(decoder, lengths)
    batch = len(lengths)
    query, kv = new(decoder, batch, config.n_heads), new(decoder, batch, config.n_kv_heads)
    tokens = torch.zeros(batch, NEW, dtype=torch.int64)
    usual = TextMemory(config, tokens, cache, decoder.dtype)
    positions = cache.positions(NEW).contiguous()
    group = config.n_heads // config.n_kv_heads
    front = (cache.keys[0][:, :, :64], cache.values[0][:, :, :64])
    rotation = cache.rotation_at(positions)
    static = StaticMemory(rotation, positions, *front, group, window, is_long)
    seen = []
    for memory in (usual, static):
        keys, values = memory.extend(0, kv, -kv, window)
        mask = memory.mask(window)
        seen.append(attend(query, keys, values, mask, scale=0.3, softcap=config.attention_softcap))
    assert_close(*seen, rtol=0, atol=1e-12)
    assert static.extend(0, kv, -kv, window)[0].shape[2] == (WINDOW - 1 + NEW if is_long else 64)
    assert_close(rotation(kv), usual.rotation(kv), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_written_as_a_sum_is_the_product(dtype):
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(2, 3, 2, 40, generator=generator).to(dtype)
    right = torch.randn(2, 3, 7, 40, generator=generator).to(dtype).transpose(-1, -2)
    summed = _summed(left, right)
    assert summed.dtype == dtype
    assert_close(summed, left @ right)
