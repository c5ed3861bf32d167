"""Tiny random models, in float64 where laws are integrated, and drafters of every temper."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from transformers import Gemma2Config, LlamaConfig

import foredraft as fd
from foredraft.decoding.draft import Draft, Job
from foredraft.models.config import DecoderConfig

WINDOW = 6


@cache
def tiny(family: str, vocab: int, seed: int, dtype: torch.dtype) -> fd.Decoder:
    """A decoder with random weights large enough for uneven distributions."""
    sizes = {
        "vocab_size": vocab,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 160,
        "eos_token_id": None,
    }
    hf = (
        LlamaConfig(**sizes)
        if family == "llama"
        else Gemma2Config(**sizes, sliding_window=WINDOW, query_pre_attn_scalar=8)
    )
    decoder = fd.Decoder(DecoderConfig.from_hf(hf)).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            scale = 0.2 if parameter.dim() == 1 else parameter.shape[1] ** -0.5
            parameter.copy_(noise * scale + (parameter if parameter.dim() == 1 else 0))
        decoder.embedding.weight.mul_(1.5)
    return decoder.eval().requires_grad_(False)


@dataclass(frozen=True)
class Scripted:
    """A reader's own drafter: proposes what `choose` says for each text, as one-hot proposals."""

    choose: Callable[[list[int], int], list[int]]

    def begin(self, job: Job) -> "Scripted":
        object.__setattr__(self, "vocab", job.target.model.config.vocab_size)
        return self

    def propose(self, text, limits: Sequence[int], stop, *, generator) -> Draft:
        rows = [
            self.choose(tokens[:length], limit)[:limit]
            for tokens, length, limit in zip(
                text.tokens.tolist(), text.lengths, limits, strict=True
            )
        ]
        width = max(map(len, rows))
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows]).long()
        tokens = tokens.view(len(rows), width)
        probs = torch.nn.functional.one_hot(tokens, self.vocab).double()
        return Draft(tokens, probs, torch.tensor([len(row) for row in rows]))

    def settle(self, text) -> None:
        pass

    def keep_rows(self, rows) -> None:
        pass


@pytest.fixture(params=["llama", "gemma2"])
def family(request) -> str:
    """Each family, Gemma-2 with a window that the texts outgrow."""
    return request.param
