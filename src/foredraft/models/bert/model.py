"""BERT (arXiv 1810.04805): embeddings → layers → pooler, and the heads that it is trained with.

A layer normalises after each residual sum, not before each branch as the decoder does:

    hidden ──┬─────────────⊕── norm ──┬───────⊕── norm ── hidden
             └─ attention ─┘          └─ MLP ─┘

All of it works on packed tokens, [tokens, hidden]: one row for each real token of a batch and none
for padding (see `foredraft.models.bert.padding`).
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
import torch.nn.functional as F
from torch import nn

from foredraft.models.bert.config import BertConfig
from foredraft.models.bert.fused import ActivatedLinear, ResidualLinear
from foredraft.models.bert.padding import Layout, Mask
from foredraft.models.bert.weights import Pretrained
from foredraft.types import Bool, Float, Hidden, Int, Logits, Tensor, Tokens

Packed = Float[Tensor, "tokens hidden"]
"""Features of the tokens of a batch, one after another."""
Pooled = Float[Tensor, "batch hidden"]
"""Features of whole rows."""


@final
class Embeddings(nn.Module):
    """What a token is, to which sentence it belongs and where it stands: summed, normalised."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.segments = nn.Embedding(config.n_segments, config.hidden_size)
        self.positions = nn.Embedding(config.max_positions, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        tokens: Int[Tensor, " tokens"],
        positions: Int[Tensor, " tokens"],
        segments: Int[Tensor, " tokens"] | None = None,
    ) -> Packed:
        """Embed each token; without `segments`, all belong to the first sentence."""
        segment = self.segments.weight[0] if segments is None else self.segments(segments)
        return self.dropout(self.norm(self.words(tokens) + segment + self.positions(positions)))


@final
class Attention(nn.Module):
    """Self-attention in both directions; one projection for query, key and value."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.n_heads, self.head_dim = config.n_heads, config.head_dim
        self.dropout = config.attention_dropout
        self.qkv = ActivatedLinear(config.hidden_size, 3 * config.hidden_size)
        self.out = ResidualLinear(config.hidden_size, config.hidden_size, config.hidden_dropout)

    def forward(self, hidden: Packed, layout: Layout) -> Packed:
        """Add to each token what it gathers from all tokens of its row."""
        mask = None if layout.mask is None else layout.mask[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        mixed = [
            F.scaled_dot_product_attention(*heads, attn_mask=mask, dropout_p=dropout)
            for heads in self._heads(self.qkv(hidden), layout)
        ]
        rows = [block.transpose(1, 2).reshape(-1, hidden.shape[-1]) for block in mixed]
        return self.out(rows[0] if len(rows) == 1 else torch.cat(rows), hidden)

    def weights(self, hidden: Packed, layout: Layout) -> Float[Tensor, "batch head seq seq"]:
        """Give how much each token looks at each other one; nothing looks from or at padding."""
        query, key, _ = next(self._heads(self.qkv(hidden), layout))
        scores = query @ key.transpose(-1, -2) * self.head_dim**-0.5
        if layout.mask is None:
            return scores.softmax(-1)
        at, looking = layout.mask[:, None, None, :], layout.mask[:, None, :, None]
        return scores.masked_fill(~at, -torch.inf).softmax(-1) * looking

    def _heads(
        self, qkv: Float[Tensor, "tokens qkv"], layout: Layout
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """View each block as query, key and value, [rows, head, length, head_dim] each."""
        parts = qkv.split([block.size for block in layout.blocks])
        for block, part in zip(layout.blocks, parts, strict=True):
            shape = (block.rows, block.length, 3, self.n_heads, self.head_dim)
            query, key, value = part.view(shape).permute(2, 0, 3, 1, 4).unbind(0)
            yield query, key, value


@final
class MLP(nn.Module):
    """Two linear maps with a Gaussian error linear unit (arXiv 1606.08415) between them."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.up = ActivatedLinear(size, inner, config.activation)
        self.down = ResidualLinear(inner, size, config.hidden_dropout)

    def forward(self, hidden: Packed) -> Packed:
        """Add to each token what it makes of itself."""
        return self.down(self.up(hidden), hidden)


@final
class Layer(nn.Module):
    """Attention and MLP, each added to what it reads and then normalised."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = MLP(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)

    def forward(self, hidden: Packed, layout: Layout) -> Packed:
        """Let the tokens of each row read each other, then each go on by itself."""
        return self.mlp_norm(self.mlp(self.attention_norm(self.attention(hidden, layout))))


@final
class Pooler(nn.Module):
    """A row in one vector: a linear map and tanh of its first token, [CLS]."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, first: Pooled) -> Pooled:
        """Give tanh(x·Wᵀ + b)."""
        return torch.tanh(self.dense(first))


@final
@dataclass(frozen=True, slots=True)
class BertOutput:
    """What a BERT makes of a batch: zeros at padding; no pooler, no `pooler_output`."""

    last_hidden_state: Hidden
    pooler_output: Pooled | None


@final
class Bert(Pretrained):
    """The encoder: embeddings, layers and, if there is one, the pooler."""

    def __init__(self, config: BertConfig, *, pooler: bool = True) -> None:
        """Build with random weights; see `initialise`, `from_hf` and `from_pretrained`."""
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.pooler = Pooler(config) if pooler else None

    @classmethod
    def skeleton(cls, config: BertConfig, names: Collection[str]) -> "Bert":
        """Build what a checkpoint with tensors of these names has weights for."""
        return cls(config, pooler="pooler.dense.weight" in names)

    @property
    def architecture(self) -> str:
        """What transformers calls it."""
        return "BertModel"

    def forward(
        self,
        ids: Tokens,
        attention_mask: Mask | None = None,
        token_type_ids: Tokens | None = None,
    ) -> BertOutput:
        """Encode a batch; the mask is 0 at padding, the type of a token is the sentence it is in.

        Padding costs nothing, is seen by nobody and gets zeros. The pooler reads each row's first
        real token. `torch.compile` computes padding too, since shapes must not depend on the mask's
        values there, and gives the same. Raises ValueError for a row of padding only, ids or
        lengths that the model does not have, or shapes that do not fit.
        """
        layout = self._layout(ids, attention_mask)
        hidden = self._embedded(ids, token_type_ids, layout)
        for layer in self.layers:
            hidden = layer(hidden, layout)
        pooled = None if self.pooler is None else self.pooler(hidden[layout.firsts])
        return BertOutput(layout.unpack(hidden), pooled)

    def hidden_states(
        self,
        ids: Tokens,
        attention_mask: Mask | None = None,
        token_type_ids: Tokens | None = None,
    ) -> tuple[Hidden, ...]:
        """Give what goes into the first layer, then what comes out of each; zeros at padding."""
        layout = self._layout(ids, attention_mask)
        states = [self._embedded(ids, token_type_ids, layout)]
        for layer in self.layers:
            states.append(layer(states[-1], layout))
        return tuple(layout.unpack(state) for state in states)

    def attention_maps(
        self,
        ids: Tokens,
        attention_mask: Mask | None = None,
        token_type_ids: Tokens | None = None,
    ) -> tuple[Float[Tensor, "batch head seq seq"], ...]:
        """Give each layer's attention: from each token (row) to each (column), 0 at padding."""
        layout = self._layout(ids, attention_mask, keep_padding=True)
        hidden = self._embedded(ids, token_type_ids, layout)
        maps = []
        for layer in self.layers:
            assert isinstance(layer, Layer)
            maps.append(layer.attention.weights(hidden, layout))
            hidden = layer(hidden, layout)
        return tuple(maps)

    def _embedded(self, ids: Tokens, token_type_ids: Tokens | None, layout: Layout) -> Packed:
        _require_below("ids", ids, self.config.vocab_size)
        segments = None
        if token_type_ids is not None:
            _require_below("token_type_ids", token_type_ids, self.config.n_segments)
            segments = layout.pack(token_type_ids)
        return self.embeddings(layout.pack(ids), layout.positions(), segments)

    def _layout(self, ids: Tokens, mask: Mask | None, *, keep_padding: bool = False) -> Layout:
        batch, seq = ids.shape
        if seq > self.config.max_positions:
            raise ValueError(
                f"{seq} tokens a row, but the model has {self.config.max_positions} positions: "
                "cut the text, or split it"
            )
        if mask is None:
            return Layout.dense(batch, seq, ids.device)
        if mask.shape != ids.shape:
            raise ValueError(
                f"attention_mask of shape {tuple(mask.shape)} for ids of shape "
                f"{tuple(ids.shape)}: give one entry a token"
            )
        keep_padding = keep_padding or torch.compiler.is_compiling()
        return Layout.padded(mask) if keep_padding else Layout.packed(mask)


def _require_below(name: str, values: Tokens, bound: int) -> None:
    """Refuse what no embedding is there for, wherever looking costs nothing."""
    if torch.compiler.is_compiling() or not values.is_cpu or not values.numel():
        return
    low, high = (int(value) for value in values.aminmax())
    if low < 0 or high >= bound:
        raise ValueError(
            f"{name} lie between {low} and {high}, but the model has {bound} of them: "
            f"give 0 to {bound - 1}"
        )


@final
class MaskedLanguageHead(nn.Module):
    """Guesses a token: its transformed state against every word's embedding, plus a bias a word."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.transform = ActivatedLinear(config.hidden_size, config.hidden_size, config.activation)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(
        self, hidden: Float[Tensor, "*batch hidden"], words: Float[Tensor, "vocab hidden"]
    ) -> Logits:
        """Give each word's logit; `words` are the encoder's own embeddings."""
        return F.linear(self.norm(self.transform(hidden)), words, self.bias)


@final
class NextSentenceHead(nn.Module):
    """Judges from the pooled output whether the second sentence follows the first."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.classifier = nn.Linear(config.hidden_size, 2)

    def forward(self, pooled: Pooled) -> Float[Tensor, "batch 2"]:
        """Give the logits of "it follows" and "it does not"."""
        return self.classifier(pooled)


@final
@dataclass(frozen=True, slots=True)
class PretrainingOutput:
    """Logits of words, [batch, seq, vocab] or [chosen, vocab], and of the next sentence."""

    prediction_logits: Logits
    seq_relationship_logits: Float[Tensor, "batch 2"] | None


@final
class BertForPretraining(Pretrained):
    """A BERT with the heads that it is trained with; without `next_sentence`, with one of them."""

    def __init__(self, bert: Bert, *, next_sentence: bool = True) -> None:
        super().__init__()
        if next_sentence and bert.pooler is None:
            raise ValueError("the next sentence head reads a pooler: give a Bert with one")
        self.config, self.bert = bert.config, bert
        self.masked_language = MaskedLanguageHead(bert.config)
        self.next_sentence = NextSentenceHead(bert.config) if next_sentence else None

    @classmethod
    def skeleton(cls, config: BertConfig, names: Collection[str]) -> "BertForPretraining":
        """Build what a checkpoint with tensors of these names has weights for."""
        next_sentence = "cls.seq_relationship.weight" in names
        return cls(Bert.skeleton(config, names), next_sentence=next_sentence)

    @property
    def architecture(self) -> str:
        """What transformers calls it."""
        return "BertForMaskedLM" if self.next_sentence is None else "BertForPreTraining"

    def forward(
        self,
        ids: Tokens,
        attention_mask: Mask | None = None,
        token_type_ids: Tokens | None = None,
        *,
        chosen: Bool[Tensor, "batch seq"] | None = None,
    ) -> PretrainingOutput:
        """Guess the token at each of the chosen places, row by row; None: at all of them.

        The logits of a word at a place are the largest product of all, so that a loss over the 15 %
        of masked tokens wants no others.
        """
        encoded = self.bert(ids, attention_mask, token_type_ids)
        hidden, pooled = encoded.last_hidden_state, encoded.pooler_output
        hidden = hidden if chosen is None else hidden[chosen]
        words = self.masked_language(hidden, self.bert.embeddings.words.weight)
        follows = None if self.next_sentence is None else self.next_sentence(pooled)
        return PretrainingOutput(words, follows)


@final
class SequenceClassifier(Pretrained):
    """A BERT that gives each row a logit a label, from the pooled output."""

    def __init__(self, bert: Bert, labels: Sequence[str]) -> None:
        super().__init__()
        if bert.pooler is None:
            raise ValueError("a sequence classifier reads a pooler: give a Bert with one")
        self.config, self.bert = replace(bert.config, labels=tuple(labels)), bert
        self.dropout = nn.Dropout(self.config.head_dropout)
        self.classifier = nn.Linear(self.config.hidden_size, len(labels))

    @classmethod
    def skeleton(cls, config: BertConfig, names: Collection[str]) -> "SequenceClassifier":
        """Build what a checkpoint has weights for."""
        return cls(Bert(config), config.labels)

    @property
    def architecture(self) -> str:
        """What transformers calls it."""
        return "BertForSequenceClassification"

    def forward(
        self,
        ids: Tokens,
        attention_mask: Mask | None = None,
        token_type_ids: Tokens | None = None,
    ) -> Float[Tensor, "batch label"]:
        """Give the logits of each row's labels."""
        pooled = self.bert(ids, attention_mask, token_type_ids).pooler_output
        return self.classifier(self.dropout(pooled))


@final
class TokenClassifier(Pretrained):
    """A BERT that gives each token a logit a label; what it gives padding means nothing."""

    def __init__(self, bert: Bert, labels: Sequence[str]) -> None:
        super().__init__()
        self.config, self.bert = replace(bert.config, labels=tuple(labels)), bert
        self.dropout = nn.Dropout(self.config.head_dropout)
        self.classifier = nn.Linear(self.config.hidden_size, len(labels))

    @classmethod
    def skeleton(cls, config: BertConfig, names: Collection[str]) -> "TokenClassifier":
        """Build what a checkpoint has weights for."""
        return cls(Bert.skeleton(config, names), config.labels)

    @property
    def architecture(self) -> str:
        """What transformers calls it."""
        return "BertForTokenClassification"

    def forward(
        self,
        ids: Tokens,
        attention_mask: Mask | None = None,
        token_type_ids: Tokens | None = None,
    ) -> Float[Tensor, "batch seq label"]:
        """Give the logits of each token's labels."""
        hidden = self.bert(ids, attention_mask, token_type_ids).last_hidden_state
        return self.classifier(self.dropout(hidden))
