"""Gated linear units equal torch's, from halves of one matrix as well."""

import pytest
import torch
import torch.nn.functional as F

from foredraft.kernels.gated_linear_unit import (
    ACTIVATIONS,
    TYPES,
    bytes_moved,
    gated_linear_unit,
    reference,
)

EXACT = {"silu": F.silu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_halves_of_a_projection_are_gated_as_the_reference_does(drawn, activation, dtype):
    """Each of two roundings may fall the other way, and torch's tanh form loses four more bits."""
    for inner in (1, 65, 1025):
        gate, up = drawn(2, 2 * inner, dtype=dtype).chunk(2, -1)
        found = gated_linear_unit(gate, up, activation=activation)
        wanted = EXACT[activation](gate.double()) * up.double()
        eps = max(2 * torch.finfo(dtype).eps, 16 * torch.finfo(torch.float32).eps)
        scale = gate.double().abs() * up.double().abs()
        assert ((found.double() - wanted).abs() <= eps * scale + 1e-7).all(), inner
        assert found.is_contiguous()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_halves_are_rounded_after_each_operation(drawn, activation):
    gate, up = drawn(3, 200, dtype=torch.bfloat16), drawn(3, 200, dtype=torch.bfloat16)
    found = gated_linear_unit(gate, up, activation=activation)
    agree = found == reference(gate, up, activation=activation)
    assert agree.double().mean() > 0.99, "but where float32 falls the other way"


def test_very_large_gates_neither_overflow_nor_vanish(device):
    gate = torch.tensor([[-200.0, -80.0, 0.0, 80.0, 200.0]], device=device)
    one = torch.ones_like(gate)
    for activation in ACTIVATIONS:
        found = gated_linear_unit(gate, one, activation=activation)
        torch.testing.assert_close(found, reference(gate, one, activation=activation))


def test_batches_of_any_shape_and_views_are_rows(drawn):
    gate, up = drawn(8, 3, 2).permute(2, 1, 0), drawn(2, 3, 16)[..., ::2]
    torch.testing.assert_close(gated_linear_unit(gate, up), reference(gate, up))


@pytest.mark.parametrize(
    ("gate", "up", "activation", "told"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), "silu", r"up \(2, 4\)"),
        (torch.ones(2), torch.ones(2, dtype=torch.float16), "silu", "up torch.float16"),
        (torch.ones(2).double(), torch.ones(2).double(), "silu", "float64"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(gate, up, activation, told):
    with pytest.raises(ValueError, match=told):
        gated_linear_unit(gate, up, activation=activation)


def test_three_numbers_move_for_each_that_comes_out():
    assert bytes_moved(2, 10, torch.bfloat16) == 120
