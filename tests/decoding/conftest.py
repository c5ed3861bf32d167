"""Tiny random models, in float64 where laws are integrated, and drafters of every temper."""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma2Config, LlamaConfig

import foredraft as fd
from foredraft.decoding.draft import Draft, Job
from foredraft.models.config import DecoderConfig

WINDOW = 6


@cache
def tiny(family: str, vocab: int, seed: int, dtype: torch.dtype, hidden: int = 16) -> fd.Decoder:
    """A decoder with random weights large enough for uneven distributions."""
    sizes = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden // 2,
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


class Opener:
    """A reader's own gate, which watches nothing and keeps nothing by row."""

    watches = None

    def begin(self, batch: int) -> "Opener":
        return self

    def keep_rows(self, rows: Sequence[int]) -> None:
        pass


class Waits(TorchFunctionMode):
    """Count, on the CPU, how often the host would wait for a device that holds the tensors.

    It waits for whatever depends on their values: a number that Python sees, a shape, a place
    (`asks`). It waits too where it sends numbers by any other way than `sent` (`sends`). Unless
    `looks`, each tensor says that it is not on the CPU, so that what runs is what runs on a GPU.
    """

    ASKS = frozenset(
        {
            *("item", "_local_scalar_dense", "equal", "allclose", "is_nonzero", "bincount"),
            *("nonzero", "nonzero_numpy", "argwhere", "masked_select", "repeat_interleave"),
            *("_unique2", "unique_dim", "unique_consecutive"),
        }
    )
    BRINGS = frozenset({"tolist", "numpy", "cpu", "__array__"})
    BY_PLACE = frozenset({"index", "index_put", "index_put_"})

    def __init__(self, *, looks: bool = False) -> None:
        super().__init__()
        self.asks, self.sends, self.looks = 0, 0, looks
        self._below: AbstractContextManager[object] = _Dispatched(self)

    def __enter__(self) -> "Waits":
        self._below.__enter__()
        return super().__enter__()

    def __exit__(self, *failure: object) -> None:
        super().__exit__(*failure)
        self._below.__exit__(*failure)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func == torch.Tensor.is_cpu.__get__ and not self.looks:
            return False
        by_list = func is torch.Tensor.__getitem__ and isinstance(args[1], list)
        unsent = func is torch.tensor and sys._getframe(1).f_code.co_name != "sent"
        self.sends += by_list or unsent
        self.asks += func.__name__ in self.BRINGS
        return func(*args, **(kwargs or {}))


class _Dispatched(TorchDispatchMode):
    """What reaches the dispatcher, where Python's own questions have few names.

    Some operations are seen in their parts, but whole in inference mode.
    """

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        places = args[1] if name in Waits.BY_PLACE else ()
        masked = any(place is not None and place.dtype is torch.bool for place in places)
        places_asked = name == "where" and len(args) == 1
        self.waits.asks += masked or places_asked or name in Waits.ASKS
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=["llama", "gemma2"])
def family(request) -> str:
    """Each family, Gemma-2 with a window that the texts outgrow."""
    return request.param
