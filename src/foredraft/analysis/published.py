"""Published models by their configurations alone: what a branch is of their bytes."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from transformers import Gemma2Config, LlamaConfig, PretrainedConfig

from foredraft.models.config import DecoderConfig
from foredraft.models.skip import Parts

PUBLISHED: Mapping[str, tuple[type[PretrainedConfig], dict[str, int]]] = {
    "gemma-2-2b": (Gemma2Config, {"hidden": 2304, "mlp": 9216, "layers": 26, "heads": 8, "kv": 4}),
    "gemma-2-9b": (
        Gemma2Config,
        {"hidden": 3584, "mlp": 14336, "layers": 42, "heads": 16, "kv": 8},
    ),
    "gemma-2-27b": (
        Gemma2Config,
        {"hidden": 4608, "mlp": 36864, "layers": 46, "heads": 32, "kv": 16, "head_dim": 128},
    ),
    "Llama-3-8B": (
        LlamaConfig,
        {
            **{"hidden": 4096, "mlp": 14336, "layers": 32, "heads": 32, "kv": 8},
            **{"head_dim": 128, "vocabulary": 128256},
        },
    ),
}
"""Dimensions of published models; a head's are 256 and the vocabulary 256,000 unless they say."""


def published(name: str) -> PretrainedConfig:
    """Give the configuration of a published model, from its dimensions alone."""
    architecture, sizes = PUBLISHED[name]
    fields: dict[str, Any] = {
        "hidden_size": sizes["hidden"],
        "intermediate_size": sizes["mlp"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["kv"],
        "head_dim": sizes.get("head_dim", 256),
        "vocab_size": sizes.get("vocabulary", 256_000),
        "tie_word_embeddings": architecture is Gemma2Config,
    }
    return architecture(**fields)


def shares(configs: Mapping[str, DecoderConfig | PretrainedConfig]) -> pd.DataFrame:
    """Give the share of the bytes of a decode step that each part is; the head's bounds c below."""
    lines = []
    for name, config in configs.items():
        ours = config if isinstance(config, DecoderConfig) else DecoderConfig.from_hf(config)
        parts = Parts.of(ours)
        sizes = {
            "attention": ours.n_layers * parts.attention,
            "MLP": ours.n_layers * parts.mlp,
            "head": parts.head,
        }
        whole = parts.total(ours.n_layers)
        lines += [{"model": name, "part": part, "share": n / whole} for part, n in sizes.items()]
    return pd.DataFrame(lines)
