"""A tiny model of transformers, whose weights both sides of a contest have; a clock for readers."""

from functools import partial

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import foredraft as fd


def tiny(
    seed: int = 0,
    n_layers: int = 2,
    dtype: torch.dtype = torch.float32,
    *,
    vocab: int = 64,
    positions: int = 128,
) -> LlamaForCausalLM:
    """A Llama with random weights that never ends a text."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=positions,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).to(dtype).eval()


class Toll:
    """A clock that moves on as a model is read: by so much for each branch, and for the head."""

    def __init__(self, decoder: fd.Decoder, *, attention: float, mlp: float, head: float) -> None:
        self.seconds = 0.0
        tolls = [(decoder.norm, head)]
        for layer in decoder.layers:
            tolls += [(layer.attention, attention), (layer.mlp, mlp)]
        for module, seconds in tolls:
            module.register_forward_pre_hook(partial(self.pay, seconds))

    def pay(self, seconds, module, inputs) -> None:
        self.seconds += seconds

    def __call__(self) -> float:
        return self.seconds
