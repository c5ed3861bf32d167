"""Weights in the processor's own layout: the same numbers, the same state dict, no way back."""

import pytest
import torch
from torch import nn

import foredraft as fd
from foredraft.models.packing import PackedLinear, can_pack
from tests.decoding.conftest import tiny

bf16_is_packed = can_pack(torch.zeros(2, 2, dtype=torch.bfloat16))
where_packed = pytest.mark.skipif(
    not bf16_is_packed, reason="this processor has no bf16 layout, nor the operations"
)


def plain(family):
    return tiny(family, 40, 3, torch.bfloat16)


def packed(family):
    return fd.Decoder.from_tensors(plain(family).config, plain(family).state_dict()).pack()


@where_packed
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_packed_decoder_gives_the_plain_one_s_logits(family):
    """Up to bf16's rounding of sums that are taken in another order."""
    tokens = torch.randint(40, (2, 9), generator=torch.Generator().manual_seed(0))
    wanted = plain(family)(tokens).float()
    bound = 8 * torch.finfo(torch.bfloat16).eps * wanted.abs().max().item()
    torch.testing.assert_close(packed(family)(tokens).float(), wanted, atol=bound, rtol=0)


@where_packed
@pytest.mark.parametrize("rows", [1, 2, 5, 8])
def test_a_row_s_result_does_not_depend_on_its_neighbours(rows):
    """What makes verifying several tokens at once the same as decoding them one by one."""
    generator = torch.Generator().manual_seed(1)
    linear = PackedLinear(torch.randn(48, 32, generator=generator).bfloat16())
    x = torch.randn(9, 32, generator=generator).bfloat16()
    assert torch.equal(linear(x[:rows].contiguous()), linear(x)[:rows])


@where_packed
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_state_dict_is_the_plain_one(family):
    wanted, found = plain(family).state_dict(), packed(family).state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@where_packed
def test_a_bias_is_kept_and_added():
    generator = torch.Generator().manual_seed(2)
    weight, bias = (torch.randn(s, generator=generator).bfloat16() for s in ((6, 4), (6,)))
    linear, x = PackedLinear(weight, bias), torch.eye(4).bfloat16()
    assert torch.equal(linear.state_dict()["bias"], bias)
    torch.testing.assert_close(linear(x), weight.T + bias, atol=0, rtol=2**-7)


@where_packed
def test_what_is_packed_cannot_be_moved_or_converted_and_stays_whole():
    decoder = packed("llama")
    with pytest.raises(ValueError, match="load it again"):
        decoder.to(torch.float32)
    assert decoder.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wider_weights_stay_as_they_are(dtype):
    decoder = tiny("llama", 40, 3, dtype).pack()
    assert not decoder.is_packed
    assert PackedLinear not in {type(module) for module in decoder.modules()}


def test_a_pocket_model_is_packed_where_the_processor_can(tmp_path):
    decoder, _ = fd.load("pocket-llama")
    kinds = {type(module) for module in decoder.modules()}
    assert (PackedLinear in kinds) == bf16_is_packed
    assert (nn.Linear in kinds) != bf16_is_packed
