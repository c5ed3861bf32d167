"""Prompts that a model has read once, for all generations and readings that begin with them.

A pass over the prompts is often as long as all that is decoded behind them. Where many plans, draft
lengths or rules are compared on the same prompts, it is the same pass each time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from foredraft.decoding.reader import Reader
from foredraft.decoding.text import Text
from foredraft.models.cache import KVCache
from foredraft.models.decoder import Decoder
from foredraft.types import Float, Tensor


@final
@dataclass(frozen=True, slots=True)
class Prefill:
    """Prompts, the keys and values that a model gave them, and the logits behind each.

    `keys[layer]` and `values[layer]` have shape [batch, kv_head, longest prompt, head_dim].
    """

    prompts: tuple[tuple[int, ...], ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    logits: Float[Tensor, "batch 1 vocab"]

    def fill(self, cache: KVCache) -> None:
        """Write keys and values into an empty cache of the same model, and commit the prompts."""
        for ours, theirs in ((self.keys, cache.keys), (self.values, cache.values)):
            for source, target in zip(ours, theirs, strict=True):
                target[:, :, : source.shape[2]] = source
        cache.commit([len(prompt) for prompt in self.prompts])

    def require(self, prompts: Sequence[Sequence[int]]) -> None:
        """Raise ValueError unless these are the prompts that were read, in the same order."""
        if self.prompts != tuple(map(tuple, prompts)):
            raise ValueError(
                f"the prefill is of {len(self.prompts)} prompts and not of these {len(prompts)}: "
                "read these with `prefill`"
            )


@torch.inference_mode()
def prefill(model: Decoder, prompts: Sequence[Sequence[int]]) -> Prefill:
    """Read prompts, in the very pass with which `generate` begins."""
    longest = max(map(len, prompts))
    reader = Reader(model, len(prompts), longest, 0)
    logits = reader.read(Text(prompts, longest, model.device))
    cache = reader.cache
    return Prefill(
        tuple(map(tuple, prompts)),
        tuple(keys[:, :, :longest] for keys in cache.keys),
        tuple(values[:, :, :longest] for values in cache.values),
        logits,
    )
