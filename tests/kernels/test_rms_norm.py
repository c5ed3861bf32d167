"""Add + RMSNorm equals its reference, which equals the norms of transformers."""

import pytest
import torch
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from foredraft.kernels import rms_norm
from foredraft.kernels.rms_norm import FORMS, TYPES, add_rms_norm, reference

EPS = 1e-6


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_rows_of_any_width_are_normalised_as_the_reference_does(drawn, form, dtype):
    """The mean is summed in another order, which moves a result by a rounding, or two in halves."""
    for hidden in (1, 7, 64, 100):
        x, residual, weight = (
            *(drawn(3, hidden, dtype=dtype) for _ in range(2)),
            drawn(hidden, dtype=dtype),
        )
        found = add_rms_norm(x, residual, weight, eps=EPS, form=form)
        wanted = reference(x, residual, weight, eps=EPS, form=form)
        assert torch.equal(found.summed, wanted.summed)
        far = (found.normed.float() - wanted.normed.float()).abs()
        eps = max(torch.finfo(dtype).eps, 4 * torch.finfo(torch.float32).eps)
        assert (far <= 2 * eps * wanted.normed.float().abs() + 1e-30).all(), hidden


@pytest.mark.parametrize(("form", "norm"), [("llama", LlamaRMSNorm), ("gemma", Gemma2RMSNorm)])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_reference_rounds_where_transformers_does(drawn, form, norm, dtype):
    x, residual, weight = (
        *(drawn(4, 48, dtype=dtype) for _ in range(2)),
        drawn(48, dtype=dtype),
    )
    theirs = norm(48, eps=EPS).to(device=x.device, dtype=dtype)
    theirs.weight.data.copy_(weight)
    wanted = theirs(x + residual)
    assert torch.equal(reference(x, residual, weight, eps=EPS, form=form).normed, wanted)


def test_batches_of_any_shape_and_views_are_rows(drawn):
    x, residual, weight = drawn(16, 3, 2).permute(2, 1, 0), drawn(2, 3, 32)[..., ::2], drawn(16)
    found = add_rms_norm(x, residual, weight, eps=EPS)
    wanted = reference(x, residual, weight, eps=EPS)
    assert torch.equal(found.summed, wanted.summed)
    torch.testing.assert_close(found.normed, wanted.normed, rtol=1e-6, atol=0)


def test_no_rows_give_no_rows(drawn):
    empty = torch.empty(0, 8, device=drawn(1).device)
    assert add_rms_norm(empty, empty, drawn(8), eps=EPS).normed.shape == (0, 8)


@pytest.mark.parametrize(
    ("shapes", "dtype", "options", "told"),
    [
        (((2, 8), (2, 9), (8,)), torch.float32, {}, r"residual \(2, 9\)"),
        (((2, 8), (2, 8), (9,)), torch.float32, {}, r"weight \(9,\)"),
        (((2, 8), (2, 8), (8,)), torch.float64, {}, "float64"),
        (((1, 40_000), (1, 40_000), (40_000,)), torch.float32, {}, "1 to 32768"),
        (((2, 8), (2, 8), (8,)), torch.float32, {"eps": -1.0}, "eps -1.0"),
        (((2, 8), (2, 8), (8,)), torch.float32, {"form": "bert"}, "form 'bert'"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(shapes, dtype, options, told):
    tensors = [torch.zeros(shape, dtype=dtype) for shape in shapes]
    with pytest.raises(ValueError, match=told):
        add_rms_norm(*tensors, **{"eps": EPS, **options})


def test_fused_moves_fewer_bytes_than_one_by_one():
    for form in FORMS:
        apart = rms_norm.bytes_moved_one_by_one(64, 4096, torch.bfloat16, form=form)
        assert sum(apart.values()) > 4 * rms_norm.bytes_moved(64, 4096, torch.bfloat16)
    assert rms_norm.bytes_moved(1, 8, torch.float32) == 5 * 8 * 4
    plain = rms_norm.bytes_moved_one_by_one(1, 8, torch.float32)
    assert plain["to float32"] == plain["to type"] == 0
