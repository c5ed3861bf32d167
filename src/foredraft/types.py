"""The shape vocabulary: what a tensor means, with dimensions in words that all modules share.

Dimensions: `batch` rows decoded together, `seq` positions, `vocab` token ids, `hidden` features,
`head` attention heads, `layer` decoder layers. `*batch` stands for any number of leading ones.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Tokens = Int[Tensor, "batch seq"]
"""Token ids, one row a sequence."""

Logits = Float[Tensor, "*batch vocab"]
"""Unnormalised log-probabilities of the next token."""

Probs = Float[Tensor, "*batch vocab"]
"""A distribution over the next token: non-negative, float32 or better, summing to one."""

Hidden = Float[Tensor, "batch seq hidden"]
"""The residual stream."""

__all__ = ["Bool", "Float", "Hidden", "Int", "Logits", "Probs", "Tensor", "Tokens"]


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
