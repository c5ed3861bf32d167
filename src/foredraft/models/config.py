"""The shape of a decoder: one description for Llama, Mistral, Qwen2 and Gemma-2."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PretrainedConfig

from foredraft.models.rotary import Llama3Scaling

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

    @classmethod
    def from_hf(cls, config: PretrainedConfig) -> "DecoderConfig":
        """Read a transformers configuration.

        Raises ValueError for an architecture, activation or position encoding that the decoder
        does not have.
        """
        family = _FAMILIES.get(config.model_type)
        if family is None:
            raise ValueError(
                f"architecture {config.model_type!r} is not supported; the decoder speaks "
                f"{', '.join(sorted(_FAMILIES))}"
            )
        return cls(architecture=config.model_type, **_common(config), **family(config))


def _common(config: PretrainedConfig) -> dict[str, Any]:
    rope = config.rope_parameters
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "head_dim": config.to_dict().get("head_dim")
        or config.hidden_size // config.num_attention_heads,
        "max_positions": config.max_position_embeddings,
        "rope_theta": float(rope["rope_theta"]),
        "rope_scaling": _rope_scaling(rope),
        "norm_eps": config.rms_norm_eps,
        "tied": config.tie_word_embeddings,
        "eos_token_ids": _token_ids(config.eos_token_id),
        "initializer_range": config.initializer_range,
    }


def _llama(config: PretrainedConfig) -> dict[str, Any]:
    return {
        "activation": _activation(config.hidden_act),
        "qkv_bias": config.attention_bias,
        "out_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "windows": (None,) * config.num_hidden_layers,
    }


def _mistral(config: PretrainedConfig) -> dict[str, Any]:
    return {
        "activation": _activation(config.hidden_act),
        "windows": (config.sliding_window,) * config.num_hidden_layers,
    }


def _qwen2(config: PretrainedConfig) -> dict[str, Any]:
    return {
        "activation": _activation(config.hidden_act),
        "qkv_bias": True,
        "windows": _windows(config),
    }


def _gemma2(config: PretrainedConfig) -> dict[str, Any]:
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


_FAMILIES: dict[str, Callable[[PretrainedConfig], dict[str, Any]]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "gemma2": _gemma2,
}


def _windows(config: PretrainedConfig) -> tuple[int | None, ...]:
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


def _token_ids(ids: int | list[int] | None) -> tuple[int, ...]:
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else tuple(ids)
