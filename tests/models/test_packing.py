"""Weights laid out for the processor: the same numbers, the same state dict, no way back."""

import pytest
import torch
from torch import nn

import foredraft as fd
from foredraft.models import packing
from foredraft.models.packing import MANY_ROWS, InferenceLinear, PackedLinear, WidenedLinear
from tests.decoding.conftest import tiny

KINDS = (PackedLinear, WidenedLinear) if packing.has_layout() else (WidenedLinear,)
"""Where oneDNN has no layout for bf16, there is nothing packed to test."""


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__, autouse=True)
def kind(request, monkeypatch) -> type[InferenceLinear]:
    """How weights are laid out, whatever suits this processor."""
    monkeypatch.setattr(packing, "has_layout", lambda: request.param is PackedLinear)
    return request.param


def plain(family):
    return tiny(family, 40, 3, torch.bfloat16)


def packed(family):
    return fd.Decoder.from_tensors(plain(family).config, plain(family).state_dict()).pack()


@pytest.mark.parametrize("seq", [1, 5, 9])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_packed_decoder_gives_the_plain_one_s_logits(family, seq):
    """Up to bf16's rounding of sums that are taken in another order."""
    tokens = torch.randint(40, (2, seq), generator=torch.Generator().manual_seed(0))
    wanted = plain(family)(tokens).float()
    bound = 8 * torch.finfo(torch.bfloat16).eps * wanted.abs().max().item()
    torch.testing.assert_close(packed(family)(tokens).float(), wanted, atol=bound, rtol=0)


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
def test_a_row_s_result_does_not_depend_on_its_neighbours(kind, rows):
    """What makes verifying a few tokens at once the same as decoding them one by one."""
    generator = torch.Generator().manual_seed(1)
    linear = kind(torch.randn(48, 32, generator=generator).bfloat16())
    x = torch.randn(9, 32, generator=generator).bfloat16()
    assert torch.equal(linear(x[:rows].contiguous()), linear(x)[:rows])


@pytest.mark.parametrize("shape", [(MANY_ROWS - 1,), (MANY_ROWS,), (3, 7), (1, 40)])
def test_many_rows_are_rounded_once(kind, shape, monkeypatch):
    """A weight of several parts, the last of them shorter."""
    monkeypatch.setattr(packing, "PART", 7 * 32)
    generator = torch.Generator().manual_seed(3)
    weight, bias = (torch.randn(s, generator=generator).bfloat16() for s in ((48, 32), (48,)))
    x = torch.randn(*shape, 32, generator=generator).bfloat16()
    wanted = x.double() @ weight.double().T + bias.double()
    found = kind(weight, bias)(x)
    assert found.dtype == torch.bfloat16
    bound = 0.51 * torch.finfo(torch.bfloat16).eps
    assert ((found.double() - wanted).abs() <= bound * wanted.abs() + 1e-4).all()


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_state_dict_is_the_plain_one(family):
    wanted, found = plain(family).state_dict(), packed(family).state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_bias_is_kept_and_added(kind):
    generator = torch.Generator().manual_seed(2)
    weight, bias = (torch.randn(s, generator=generator).bfloat16() for s in ((6, 4), (6,)))
    linear, x = kind(weight, bias), torch.eye(4).bfloat16()
    assert torch.equal(linear.state_dict()["bias"], bias)
    torch.testing.assert_close(linear(x), weight.T + bias, atol=0, rtol=2**-7)


def test_what_is_packed_cannot_be_moved_or_converted_and_stays_whole():
    decoder = packed("llama")
    with pytest.raises(ValueError, match="load it again"):
        decoder.to(torch.float32)
    assert decoder.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wider_weights_stay_as_they_are(dtype):
    decoder = tiny("llama", 40, 3, dtype).pack()
    assert not decoder.is_packed
    assert not any(isinstance(module, InferenceLinear) for module in decoder.modules())


def test_a_pocket_model_is_laid_out_for_the_processor(kind):
    decoder, _ = fd.load("pocket-llama")
    linear = {type(m) for m in decoder.modules() if isinstance(m, (InferenceLinear, nn.Linear))}
    assert linear == {kind}


def test_a_processor_with_avx_512_has_a_layout(monkeypatch):
    monkeypatch.undo()
    assert packing.has_layout() or torch.backends.cpu.get_cpu_capability() != "AVX512"
