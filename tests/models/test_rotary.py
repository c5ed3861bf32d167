"""Rotary embedding turns feature pairs by angles that grow with the position."""

import math

import pytest
import torch
from torch.testing import assert_close
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from foredraft.models.config import DecoderConfig
from foredraft.models.rotary import Llama3Scaling, Rotation, frequencies

CPU = torch.device("cpu")
CLOSE = {"rtol": 0, "atol": 1e-12}


def llama3_config(factor: float, low: float, high: float, original: int) -> LlamaConfig:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    return LlamaConfig(
        hidden_size=512, num_attention_heads=4, num_key_value_heads=4, rope_parameters=rope
    )


@pytest.mark.parametrize(
    ("factor", "low", "high", "original"), [(8, 1, 4, 8192), (32, 1, 4, 8192), (3.5, 0.7, 2, 100)]
)
def test_llama_3_frequencies_are_those_of_transformers(factor, low, high, original, widened):
    hf_config = llama3_config(factor, low, high, original)
    with widened:
        expected, attention_factor = ROPE_INIT_FUNCTIONS["llama3"](hf_config, CPU)
    config = DecoderConfig.from_hf(hf_config)
    ours = frequencies(config.head_dim, config.rope_theta, config.rope_scaling, CPU)
    assert attention_factor == 1
    assert_close(ours, expected, rtol=1e-12, atol=0)


def test_llama_3_scaling_keeps_short_waves_slows_long_ones_and_blends_between():
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 100)
    waves = torch.tensor([25.0, 100.0, 40.0], dtype=torch.float64)  # 4, 1 and 2.5 turns
    slowed = waves.reciprocal() * torch.tensor([1, 1 / 8, 0.5 + 0.5 / 8])
    frequency = 2 * math.pi / waves
    assert_close(scaling(frequency), 2 * math.pi * slowed, **CLOSE)
    assert_close(scaling(frequency * 1e3), frequency * 1e3, rtol=1e-12, atol=0)
    assert_close(scaling(frequency / 1e3), frequency / 8e3, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("low", "high"), [(4.0, 4.0), (4.0, 1.0), (0.0, 4.0)])
def test_factors_with_nothing_between_them_are_refused(low, high):
    with pytest.raises(ValueError, match=f"low_frequency_factor={low}"):
        Llama3Scaling(8.0, low, high, 8192)


def test_plain_frequencies_are_powers_of_theta():
    expected = [10_000.0 ** (-2 * pair / 10) for pair in range(5)]
    assert_close(frequencies(10, 10_000.0, None, CPU), torch.tensor(expected, dtype=torch.float64))


@pytest.fixture
def rotate():
    """Turn one row of heads at given positions."""

    def turn(x: torch.Tensor, positions: list[int]) -> torch.Tensor:
        rate = frequencies(x.shape[-1], 10_000.0, None, CPU)
        return Rotation.at(torch.tensor([positions]), rate, torch.float64)(x)

    return turn


@pytest.fixture
def heads() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 5, 3, 16, generator=generator, dtype=torch.float64)


def test_position_zero_turns_nothing(rotate, heads):
    assert torch.equal(rotate(heads, [0] * 5), heads)


def test_turning_keeps_lengths(rotate, heads):
    assert_close(rotate(heads, [0, 1, 7, 100, 5000]).norm(dim=-1), heads.norm(dim=-1), **CLOSE)


def test_scores_depend_on_the_distance_alone(rotate, heads):
    def scores(positions: list[int]) -> torch.Tensor:
        turned = rotate(heads, positions)
        return torch.einsum("bqhd,bkhd->bhqk", turned, turned)

    near, far = [0, 1, 3, 8, 9], [1000, 1001, 1003, 1008, 1009]
    assert_close(scores(near), scores(far), rtol=0, atol=1e-11)


def test_a_table_looked_up_is_the_table_at_those_positions():
    rate = frequencies(8, 10_000.0, None, CPU)
    positions = torch.tensor([[3, 0, 9], [1, 1, 5]])
    found = Rotation.at(torch.arange(10), rate, torch.float64)[positions]
    direct = Rotation.at(positions, rate, torch.float64)
    assert torch.equal(found.cos, direct.cos)
    assert torch.equal(found.sin, direct.sin)


def test_a_float32_table_is_right_to_its_last_digit_at_far_positions():
    rate = frequencies(8, 10_000.0, None, CPU)
    positions = [131_071, 1_000_003]
    table = Rotation.at(torch.tensor(positions), rate, torch.float32)
    expected = [[math.cos(p * 10_000.0 ** (-i / 4)) for i in range(4)] for p in positions]
    rounding = torch.finfo(torch.float32).eps / 2
    assert_close(
        table.cos[:, 0, :4].double(), torch.tensor(expected).double(), rtol=rounding, atol=1e-9
    )


@pytest.mark.parametrize(
    ("weights", "table"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_the_table_of_a_model_is_in_its_precision_but_float32_at_least(weights, table):
    config = DecoderConfig.from_hf(llama3_config(8, 1, 4, 8192))
    rotation = config.rotation(torch.arange(3), weights)
    assert rotation.cos.dtype == rotation.sin.dtype == table


def test_heads_keep_their_precision_and_the_table_its_own(heads):
    rate = frequencies(16, 10_000.0, None, CPU)
    rotation = Rotation.at(torch.arange(5)[None], rate, torch.float32)
    turned = rotation(heads.bfloat16())
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotation(heads.bfloat16().float()).bfloat16())
