"""A tiny model of transformers, whose weights both sides of a contest have."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def tiny(seed: int = 0, n_layers: int = 2, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """A Llama with random weights that never ends a text."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).to(dtype).eval()
