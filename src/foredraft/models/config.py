"""The shape of a decoder: one description for Llama, Mistral, Qwen2 and Gemma-2."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PretrainedConfig

from foredraft.models.rotary import Llama3Scaling, Rotation, frequencies
from foredraft.models.stated import StatedConfig
from foredraft.types import Int, Tensor

HfConfig = PretrainedConfig | StatedConfig
Activation = Literal["silu", "gelu_tanh"]
_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """What distinguishes one decoder-only family from another, as data.

    Sizes count features, heads or positions; `windows[i]` is how many positions layer i attends to
    (itself included), None for all of them.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    max_positions: int
    windows: tuple[int | None, ...]
    rope_theta: float = 10_000.0
    rope_scaling: Llama3Scaling | None = None
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    """Gemma stores its norm scales as the difference from one."""
    post_norms: bool = False
    """Gemma-2 normalises the output of each branch too, before it joins the residual stream."""
    activation: Activation = "silu"
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    attention_scale: float | None = None
    attention_softcap: float | None = None
    final_softcap: float | None = None
    embedding_scale: float = 1.0
    tied: bool = False
    eos_token_ids: tuple[int, ...] = ()
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        """Refuse sizes that cannot make a decoder."""
        for name, size in self._sizes().items():
            if size < 1:
                raise ValueError(f"{name}={size}: it must be at least 1")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads={self.n_heads} is no multiple of n_kv_heads={self.n_kv_heads}: "
                "each key/value head must serve the same number of query heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd: rotary embedding pairs features")
        if len(self.windows) != self.n_layers:
            raise ValueError(
                f"{len(self.windows)} windows for {self.n_layers} layers: give one each"
            )
        if any(window is not None and window < 1 for window in self.windows):
            raise ValueError(f"windows={self.windows}: each must be at least 1, or None for all")

    @property
    def query_size(self) -> int:
        """Features of all query heads together."""
        return self.n_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Features of all key (or value) heads together."""
        return self.n_kv_heads * self.head_dim

    @property
    def scale(self) -> float:
        """What attention scores are multiplied by."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    def rotation(self, positions: Int[Tensor, "*positions"], dtype: torch.dtype) -> Rotation:
        """Tabulate the rotary embedding of positions, in this precision, float32 at least."""
        rate = frequencies(self.head_dim, self.rope_theta, self.rope_scaling, positions.device)
        return Rotation.at(positions, rate, torch.promote_types(dtype, torch.float32))

    @classmethod
    def from_hf(cls, config: HfConfig) -> "DecoderConfig":
        """Read a transformers configuration, or a file that says as much.

        Raises ValueError for an architecture, activation or position encoding that the decoder
        does not have.
        """
        check_architecture(config.model_type)
        family = _FAMILIES[config.model_type]
        return cls(architecture=config.model_type, **_common(config), **family(config))

    def _sizes(self) -> dict[str, int]:
        return {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
            "n_kv_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "max_positions": self.max_positions,
        }


def check_architecture(model_type: object) -> None:
    """Raise ValueError if a configuration's `model_type` is no family that the decoder speaks."""
    if model_type not in list(_FAMILIES):
        raise ValueError(
            f"architecture {model_type!r} is not supported; the decoder speaks "
            f"{', '.join(sorted(_FAMILIES))}"
        )


def token_ids(ids: object) -> tuple[int, ...]:
    """Read an `eos_token_id`: one token, several or none; ValueError if it is anything else."""
    given = ids if isinstance(ids, list) else [] if ids is None else [ids]
    tokens = tuple(token for token in given if isinstance(token, int))
    if len(tokens) < len(given):
        raise ValueError(f"eos_token_id={ids!r}: give an integer or a list of them")
    return tokens


def _common(config: HfConfig) -> dict[str, Any]:
    rope = config.rope_parameters
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads,
        "max_positions": config.max_position_embeddings,
        "rope_theta": float(rope["rope_theta"]),
        "rope_scaling": _rope_scaling(rope),
        "norm_eps": config.rms_norm_eps,
        "tied": config.tie_word_embeddings,
        "eos_token_ids": token_ids(config.eos_token_id),
        "initializer_range": config.initializer_range,
    }


def _llama(config: HfConfig) -> dict[str, Any]:
    return {
        "activation": _activation(config.hidden_act),
        "qkv_bias": config.attention_bias,
        "out_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "windows": (None,) * config.num_hidden_layers,
    }


def _mistral(config: HfConfig) -> dict[str, Any]:
    return {
        "activation": _activation(config.hidden_act),
        "windows": (config.sliding_window,) * config.num_hidden_layers,
    }


def _qwen2(config: HfConfig) -> dict[str, Any]:
    return {
        "activation": _activation(config.hidden_act),
        "qkv_bias": True,
        "windows": _windows(config),
    }


def _gemma2(config: HfConfig) -> dict[str, Any]:
    if config.use_bidirectional_attention:
        raise ValueError("use_bidirectional_attention=True is no language model; load a causal one")
    return {
        "activation": _activation(config.hidden_activation),
        "qkv_bias": config.attention_bias,
        "out_bias": config.attention_bias,
        "windows": _windows(config),
        "norm_offset": 1.0,
        "post_norms": True,
        "attention_scale": config.query_pre_attn_scalar**-0.5,
        "attention_softcap": config.attn_logit_softcapping,
        "final_softcap": config.final_logit_softcapping,
        "embedding_scale": config.hidden_size**0.5,
    }


_FAMILIES: dict[str, Callable[[HfConfig], dict[str, Any]]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "gemma2": _gemma2,
}


def _windows(config: HfConfig) -> tuple[int | None, ...]:
    return tuple(
        config.sliding_window if kind == "sliding_attention" else None
        for kind in config.layer_types
    )


def _activation(name: str) -> Activation:
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not supported; known: {sorted(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _rope_scaling(rope: dict[str, Any]) -> Llama3Scaling | None:
    if rope["rope_type"] == "default":
        return None
    if rope["rope_type"] != "llama3":
        raise ValueError(
            f"rotary embedding of type {rope['rope_type']!r} is not supported: default or llama3"
        )
    return Llama3Scaling(
        factor=float(rope["factor"]),
        low_frequency_factor=float(rope["low_freq_factor"]),
        high_frequency_factor=float(rope["high_freq_factor"]),
        original_max_positions=int(rope["original_max_position_embeddings"]),
    )
