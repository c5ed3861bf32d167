"""The decoder: embed → residual branches → norm → head.

Llama, Mistral, Qwen2 and Gemma-2 are configurations of it.
A layer is two residual branches, and a skip plan can switch off each of them:

    hidden ──┬───────────────────────────────────────⊕──┬─────────────────────────────────⊕── hidden
             └─ norm ─ attention ─ post-norm(Gemma-2) ┘  └─ norm ─ MLP ─ post-norm(Gemma-2) ┘
"""

from typing import final

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from foredraft.models.attention import Memory, attend, attend_causally
from foredraft.models.cache import KVCache
from foredraft.models.config import DecoderConfig
from foredraft.models.skip import SkipPlan
from foredraft.models.weights import decoder_tensors
from foredraft.types import Float, Hidden, Logits, Tensor, Tokens

_ACTIVATE = {"silu": F.silu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}


@final
class Norm(nn.Module):
    """Root-mean-square normalisation (arXiv 1910.07467), in float32 or better."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.offset, self.eps = config.norm_offset, config.norm_eps
        self.weight = nn.Parameter(torch.full((config.hidden_size,), 1.0 - self.offset))

    def forward(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """Scale each position's features to unit mean square, times the learnt scale."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        scale = self.weight.to(wide) + self.offset
        return F.rms_norm(hidden.to(wide), scale.shape, scale, self.eps).to(hidden.dtype)


@final
class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions; one projection for query, key, value."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer, self.window = config, layer, config.windows[layer]
        qkv_size = config.query_size + 2 * config.kv_size
        self.qkv = nn.Linear(config.hidden_size, qkv_size, bias=config.qkv_bias)
        self.out = nn.Linear(config.query_size, config.hidden_size, bias=config.out_bias)

    def forward(self, hidden: Hidden, memory: Memory) -> Hidden:
        """Mix each new position with those that it sees, and remember it."""
        config = self.config
        heads = self.qkv(hidden).unflatten(-1, (-1, config.head_dim))
        turned, values = heads.tensor_split((config.n_heads + config.n_kv_heads,), dim=2)
        query, keys = memory.rotation(turned).split((config.n_heads, config.n_kv_heads), dim=2)
        keys, values = memory.extend(self.layer, keys, values, self.window)
        softcap = config.attention_softcap
        if softcap is None and memory.is_plainly_causal(self.window):
            return self.out(attend_causally(query, keys, values, scale=config.scale))
        mask = memory.mask(self.window)
        return self.out(attend(query, keys, values, mask, scale=config.scale, softcap=softcap))


@final
class MLP(nn.Module):
    """Gated linear unit (SwiGLU or GeGLU, arXiv 2002.05202); gate and up projected at once."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.activate = _ACTIVATE[config.activation]
        self.gate_up = nn.Linear(
            config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias
        )
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden: Hidden) -> Hidden:
        """Transform each position by itself."""
        gate, up = self.gate_up(hidden).chunk(2, dim=-1)
        return self.down(self.activate(gate) * up)


@final
class Branch(nn.Module):
    """One residual branch: norm, operation and, in Gemma-2, a second norm."""

    def __init__(self, config: DecoderConfig, operation: nn.Module) -> None:
        super().__init__()
        self.norm = Norm(config)
        self.operation = operation
        self.post_norm = Norm(config) if config.post_norms else nn.Identity()

    def forward(self, hidden: Hidden, *context: Memory) -> Hidden:
        """Give what the branch adds to the residual stream."""
        return self.post_norm(self.operation(self.norm(hidden), *context))


@final
class Layer(nn.Module):
    """An attention branch, then an MLP branch."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.index = layer
        self.attention = Branch(config, Attention(config, layer))
        self.mlp = Branch(config, MLP(config))

    def forward(self, hidden: Hidden, memory: Memory, plan: SkipPlan) -> Hidden:
        """Add what the branches that the plan leaves on have to say."""
        if self.index not in plan.attn:
            hidden = hidden + self.attention(hidden, memory)
        if self.index not in plan.mlp:
            hidden = hidden + self.mlp(hidden)
        return hidden


@final
class Decoder(nn.Module):
    """A decoder-only Transformer whose branches can be skipped, pass by pass."""

    def __init__(self, config: DecoderConfig) -> None:
        """Build with random weights, ready to train; see `from_hf` and `foredraft.load`."""
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.n_layers))
        self.norm = Norm(config)
        self.head = (
            None if config.tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )

    @classmethod
    def from_hf(cls, hf_model: PreTrainedModel) -> "Decoder":
        """Take over an in-memory transformers model: same logits, in eval mode, same dtype.

        Tensors that need no rearranging are shared with it, not copied.
        """
        config = DecoderConfig.from_hf(hf_model.config)
        return cls.from_tensors(config, decoder_tensors(config, hf_model.state_dict()))

    @classmethod
    def from_tensors(cls, config: DecoderConfig, tensors: dict[str, Tensor]) -> "Decoder":
        """Build around given weights, without initialising any; in eval mode."""
        with torch.device("meta"):
            decoder = cls(config)
        decoder.load_state_dict(tensors, assign=True)
        return decoder.eval().requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    def new_cache(self, batch: int, capacity: int, *, spare: int = 0) -> KVCache:
        """Allocate a cache of this model's shape, dtype and device; see `KVCache`."""
        place = {"dtype": self.dtype, "device": self.device}
        return KVCache(self.config, batch, capacity, spare=spare, **place)

    def forward(
        self, tokens: Tokens, cache: KVCache | None = None, *, skip: SkipPlan | None = None
    ) -> Float[Tensor, "batch seq vocab"]:
        """Give the logits of the token after each of `tokens`.

        With a cache, the tokens follow each row's committed length and their keys and values are
        written behind it, uncommitted. Branches in `skip` are left out: a skipped attention neither
        reads nor writes the cache.
        """
        return self.logits(self.hidden(tokens, cache, skip=skip))

    def hidden(
        self, tokens: Tokens, cache: KVCache | None = None, *, skip: SkipPlan | None = None
    ) -> Hidden:
        """Run all branches but the skipped ones; give the residual stream before the final norm."""
        plan = skip or SkipPlan()
        plan.check(self.config.n_layers)
        memory = Memory(self.config, tokens, cache, self.dtype)
        hidden = self.embedding(tokens)
        if self.config.embedding_scale != 1.0:  # the reference rounds the factor to the dtype too
            hidden = hidden * hidden.new_full((), self.config.embedding_scale)
        for layer in self.layers:
            hidden = layer(hidden, memory, plan)
        return hidden

    def logits(self, hidden: Float[Tensor, "*batch hidden"]) -> Logits:
        """Apply the final norm, the head and Gemma-2's final soft-cap."""
        head = self.embedding.weight if self.head is None else self.head.weight
        logits = F.linear(self.norm(hidden), head)
        cap = self.config.final_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)
