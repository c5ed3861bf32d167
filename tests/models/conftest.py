"""Tiny random models of every architecture, in the form of transformers and in ours."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from foredraft.models.decoder import Decoder

WINDOW = 7
SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES, head_dim=16),
    "mistral": lambda: MistralConfig(**SIZES, head_dim=16, sliding_window=WINDOW),
    "qwen2": lambda: Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2
    ),
    "gemma2": lambda: Gemma2Config(
        **SIZES,
        head_dim=16,
        sliding_window=WINDOW,
        query_pre_attn_scalar=12,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    ),
}
VARIANTS = FAMILIES | {
    "llama-tied": lambda: LlamaConfig(**SIZES, mlp_bias=True, tie_word_embeddings=True),
    "llama-3.1": lambda: LlamaConfig(**SIZES, attention_bias=True, rope_parameters=LLAMA3_ROPE),
    "mistral-wide": lambda: MistralConfig(**SIZES, sliding_window=None),
    "qwen2-wide": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True),
    "gemma2-biased": lambda: Gemma2Config(
        **SIZES,
        head_dim=10,
        sliding_window=WINDOW,
        attention_bias=True,
        tie_word_embeddings=False,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
    ),
}


class Widened(TorchFunctionMode):
    """Turn every request for float32 into one for float64.

    The implementations in transformers compute norms, rotary tables and attention weights in
    float32 whatever the precision of the model.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        func = torch.Tensor.double if func is torch.Tensor.float else func
        args = [self._widen(value) for value in args]
        return func(*args, **{name: self._widen(value) for name, value in (kwargs or {}).items()})

    @staticmethod
    def _widen(value: object) -> object:
        return torch.float64 if value is torch.float32 else value


def _build(variant: str, dtype: torch.dtype) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_config(
        VARIANTS[variant](), attn_implementation="eager", dtype=dtype
    )
    _randomise(model)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def _randomise(model: PreTrainedModel) -> None:
    """Draw weights that let every branch, norm, bias and soft-cap show in logits of size one."""
    generator = torch.Generator().manual_seed(11)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.ndim == 1:
            parameter += 0.3 * noise.to(parameter.dtype)
        else:
            parameter.copy_(noise * parameter.shape[1] ** -0.5)


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> str:
    """One of all the models."""
    return request.param


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """One model of each architecture."""
    return request.param


@pytest.fixture(scope="session")
def widened() -> TorchFunctionMode:
    """Within it, a float64 reference computes everything in float64."""
    return Widened()


@pytest.fixture(scope="session")
def reference() -> Callable[[str, torch.dtype], PreTrainedModel]:
    """Give the transformers model of a variant; the same weights in every precision."""
    return cache(_build)


@pytest.fixture(scope="session")
def exact_reference(widened: TorchFunctionMode) -> Callable[[str], PreTrainedModel]:
    """Give the float64 model of a variant whose constants were never rounded to float32."""

    @cache
    def build(variant: str) -> PreTrainedModel:
        with widened:
            return _build(variant, torch.float64)

    return build


@pytest.fixture(scope="session")
def exact_decoder(exact_reference) -> Callable[[str], Decoder]:
    """Give our float64 decoder with a variant's weights."""
    return cache(lambda variant: Decoder.from_hf(exact_reference(variant)))


@pytest.fixture
def decoder(variant: str, exact_decoder) -> Decoder:
    """Our float64 decoder of each variant."""
    return exact_decoder(variant)


@pytest.fixture(scope="session")
def text() -> Callable[..., torch.Tensor]:
    """Give random tokens, [rows, length]."""

    def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(SIZES["vocab_size"], (rows, length), generator=generator)

    return tokens
