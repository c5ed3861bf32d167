"""The decoder: embed → residual branches → norm → head.

Llama, Mistral, Qwen2 and Gemma-2 are configurations of it.
A layer is two residual branches, and a skip plan can switch off each of them:

    hidden ──┬───────────────────────────────────────⊕──┬─────────────────────────────────⊕── hidden
             └─ norm ─ attention ─ post-norm(Gemma-2) ┘  └─ norm ─ MLP ─ post-norm(Gemma-2) ┘
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, final

import torch
import torch.nn.functional as F
from torch import nn

from foredraft.models.attention import Memory, TextMemory, attend, attend_causally
from foredraft.models.cache import KVCache, Storage
from foredraft.models.compiling.ahead import AheadSteps
from foredraft.models.compiling.graphs import CompiledSteps, is_few
from foredraft.models.config import DecoderConfig
from foredraft.models.packing import can_pack, pack, packed_linear
from foredraft.models.placement import Files, Placement, dispatch
from foredraft.models.skip import SkipPlan
from foredraft.models.weights import decoder_tensors
from foredraft.types import Float, Hidden, Int, Logits, Tensor, Tokens

if TYPE_CHECKING:  # takes longer to import than torch
    import transformers

_ACTIVATE = {"silu": F.silu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}


@final
class Norm(nn.Module):
    """Root-mean-square normalisation (arXiv 1910.07467), in float32 or better."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.offset, self.eps = config.norm_offset, config.norm_eps
        self.weight = nn.Parameter(torch.full((config.hidden_size,), 1.0 - self.offset))
        self.frozen: tuple[Tensor, Tensor] | None = None

    def freeze(self) -> None:
        """Keep the constants as they are applied, in float32, for inference."""
        scale, eps = self._constants(torch.float32)
        self.frozen = scale.detach(), eps

    def forward(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """Scale each position's features to unit mean square, times the learnt scale."""
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        scale, eps = self.frozen or self._constants(wide.dtype)
        # 9 µs for a few positions where F.rms_norm takes 12: it is several operations there, too
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        rate = torch.addcmul(eps, length, length, value=1 / hidden.shape[-1]).rsqrt()
        return (wide * rate * scale).to(hidden.dtype)

    def _constants(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Give the scale and ε."""
        scale = self.weight.to(dtype) + self.offset
        return scale, scale.new_full((), self.eps)


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
        heads = self.qkv(hidden).view(*hidden.shape[:2], -1, config.head_dim)
        turned, values = heads.split((config.n_heads + config.n_kv_heads, config.n_kv_heads), dim=2)
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
        self.post_norm = Norm(config) if config.post_norms else None

    def forward(self, hidden: Hidden, *context: Memory) -> Hidden:
        """Give what the branch adds to the residual stream."""
        added = self.operation(self.norm(hidden), *context)
        return added if self.post_norm is None else self.post_norm(added)


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
        rows = torch.empty(config.vocab_size, config.hidden_size)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size, _weight=rows)
        if not rows.is_meta:  # where drawing numbers would only take long: it loads the compiler
            self.embedding.reset_parameters()
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.n_layers))
        self.norm = Norm(config)
        self.head: nn.Module | None = (
            None if config.tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        self.is_packed = False
        self.steps: CompiledSteps | AheadSteps | None = None
        self.placement: Placement | None = None
        self.files: Files | None = None

    @classmethod
    def from_hf(cls, hf_model: "transformers.PreTrainedModel") -> "Decoder":
        """Take over an in-memory transformers model: same logits, in eval mode, same dtype.

        Tensors that need no rearranging are shared with it, not copied.
        """
        config = DecoderConfig.from_hf(hf_model.config)
        return cls.from_tensors(config, decoder_tensors(config, hf_model.state_dict()))

    @classmethod
    def from_tensors(cls, config: DecoderConfig, tensors: dict[str, Tensor]) -> "Decoder":
        """Build around given weights, without initialising any; in eval mode."""
        return cls.without_weights(config).take(tensors)

    @classmethod
    def without_weights(cls, config: DecoderConfig) -> "Decoder":
        """Build on the device `meta`, which holds nothing."""
        with torch.device("meta"):
            return cls(config)

    def take(self, tensors: dict[str, Tensor]) -> "Decoder":
        """Take over weights, all that there are, for inference."""
        self.load_state_dict(tensors, assign=True)
        return self.eval().requires_grad_(False)

    def separate_head(self) -> "Decoder":
        """Give a decoder without weights a head that can be placed by itself, tied or not."""
        size = self.config.hidden_size, self.config.vocab_size
        self.head = self.head or nn.Linear(*size, bias=False, device="meta")
        return self

    def place(self, placement: Placement, files: Files) -> "Decoder":
        """Let each part run where it is placed, from now on; see `foredraft.models.placement`.

        Raises ValueError for a compiled model.
        """
        if self.steps is not None:
            raise ValueError("a compiled model cannot be placed: load it with device_map= alone")
        homes = placement.homes
        if self.config.tied and self.head is not None and homes["embedding"] == homes["head"]:
            self.head.weight = self.embedding.weight
        dispatch(self, placement, files)
        self.placement, self.files = placement, files
        return self

    def pack(self) -> "Decoder":
        """Lay bf16 weights out for this processor, for inference; others stay as they are."""
        if not can_pack(self.embedding.weight):
            return self
        pack(self)
        if self.head is None:
            self.head = packed_linear(self.embedding.weight, is_copy=True)
        for module in self.modules():
            if isinstance(module, Norm):
                module.freeze()
        self.is_packed = True
        return self

    def unpacked(self) -> "Decoder":
        """Give a decoder of the same weights, in their plain layout, that compiles nothing."""
        return Decoder.from_tensors(self.config, self.state_dict())

    def compile_steps(self, plans: Iterable[SkipPlan] = ()) -> "Decoder":
        """Compile decoding steps, as fits the device, when they are first made.

        On a GPU all plans share what is compiled. On a processor passes of all branches are, and
        those of `plans`, each by itself; see `models.compiling.ahead`. The weights must stay as
        they are from then on.

        Raises ValueError for a model that lies on several devices.
        """
        if self.placement is not None:
            raise ValueError("a placed model cannot be compiled: load it onto one device")
        is_cpu = self.device.type == "cpu"
        self.steps = AheadSteps(plans) if is_cpu else CompiledSteps()
        return self

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "Decoder":
        states = {
            "packed": self.is_packed,
            "placed": self.placement is not None,
            "compiled": self.steps is not None,
        }
        told = [state for state, holds in states.items() if holds]
        if told:
            raise ValueError(
                f"a {told[0]} model cannot be moved or converted: load it again with device= and "
                "dtype="
            )
        return super()._apply(fn, recurse)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are; of several devices, the one that reads tokens."""
        if self.placement is not None:
            return self.placement.runs_on("embedding")
        return self.embedding.weight.device

    def new_cache(self, batch: int, capacity: int, *, spare: int = 0) -> KVCache:
        """Allocate a cache of this model's shape, dtype and device; see `KVCache`."""
        place = {"dtype": self.dtype, "device": self.device}
        if self.steps is not None:
            return self.steps.new_cache(self, batch, capacity, spare=spare)
        if self.placement is not None:
            homes = self.placement.layer_devices()
            storage = Storage.allocate(self.config, batch, capacity + spare, self.dtype, homes)
            return KVCache(self.config, batch, capacity, spare=spare, storage=storage, **place)
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
        self,
        tokens: Tokens,
        cache: KVCache | None = None,
        *,
        skip: SkipPlan | None = None,
        start: Hidden | None = None,
    ) -> Hidden:
        """Run all branches but the skipped ones; give the residual stream before the final norm.

        `start` takes the place of the tokens' embeddings: with the first layers skipped, it is what
        an earlier pass gave after these.
        """
        plan, steps = skip or SkipPlan(), self.steps
        if steps is not None and cache is not None and steps.takes(tokens, cache, plan, start):
            plan.check(self.config.n_layers)
            return steps.hidden(self, tokens, cache, plan, start)
        return deque(self.hidden_states(tokens, cache, skip=skip, start=start), maxlen=1).pop()

    def hidden_states(
        self,
        tokens: Tokens,
        cache: KVCache | None = None,
        *,
        skip: SkipPlan | None = None,
        start: Hidden | None = None,
    ) -> Iterator[Hidden]:
        """Give the residual stream before the first layer, then after each layer in turn."""
        plan = skip or SkipPlan()
        plan.check(self.config.n_layers)
        memory = TextMemory(self.config, tokens, cache, self.dtype)
        hidden = self.embedded(tokens) if start is None else start
        yield hidden
        yield from self.through(hidden, memory, plan)

    def through(self, hidden: Hidden, memory: Memory, plan: SkipPlan) -> Iterator[Hidden]:
        """Give the residual stream after each layer, which sees what the memory lets it see."""
        for layer in self.layers:
            hidden = layer(hidden, memory, plan)
            yield hidden

    def embedded(self, tokens: Tokens) -> Hidden:
        """Look the tokens up: where the residual stream begins."""
        hidden = self.embedding(tokens)
        if self.config.embedding_scale != 1.0:  # the reference rounds the factor to the dtype too
            hidden = hidden * hidden.new_full((), self.config.embedding_scale)
        return hidden

    def logits(
        self, hidden: Float[Tensor, "*batch hidden"], head: nn.Module | None = None
    ) -> Logits:
        """Apply the final norm, the head (or some rows of it) and Gemma-2's final soft-cap."""
        if self.steps is not None and head is None and is_few(hidden):
            return self.steps.logits(self, hidden)
        logits = self.all_logits(hidden, head)
        return logits if self.placement is None else logits.to(self.device)

    def all_logits(self, hidden: Tensor, head: nn.Module | None = None) -> Tensor:
        """Do so as it stands, not compiled."""
        normed = self.norm(hidden)
        head = self.head if head is None else head
        logits = F.linear(normed, self.embedding.weight) if head is None else head(normed)
        cap = self.config.final_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def head_rows(self, tokens: Int[Tensor, " kept"]) -> nn.Module:
        """Copy the head's rows of these tokens, packed if it can be: a head for `logits`."""
        own = self.embedding if self.head is None or self.config.tied else self.head
        rows = own.state_dict()["weight"]
        if rows.is_meta:
            raise ValueError("the head lies on disk or on the host: place it where it can be read")
        rows = rows[tokens.to(rows.device)]
        if self.placement is not None:
            rows = rows.to(self.placement.runs_on("norm"))
        if can_pack(rows):
            return packed_linear(rows, is_copy=True)
        head = nn.Linear(*reversed(rows.shape), bias=False, device="meta")
        head.weight = nn.Parameter(rows, requires_grad=False)
        return head
