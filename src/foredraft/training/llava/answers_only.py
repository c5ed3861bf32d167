"""Save the last layer of a language model the work that no loss depends on.

Of a conversation about an image, most tokens are the image and the question. The last layer's
output there reaches nothing but the loss of tokens that are not learnt; only its keys and values
are looked at, by the answer behind. So queries, output projection and MLP work from the first
answered token on. Loss and gradients are the same but for the order of sums.
"""

from typing import Any, final

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb
from trl.trainer.sft_trainer import SFTTrainer

from foredraft.training.llava.answer_labels import NO_LOSS
from foredraft.types import Int, Tensor


@final
class AnswersOnly:
    """The last layer of a Llama, which runs in full until it has seen labels."""

    def __init__(self, layer: nn.Module) -> None:
        """Take the layer's place; a layer of another model is left as it is."""
        self.layer: Any = layer
        self.first = 0
        if type(layer) is LlamaDecoderLayer:
            self.whole = self.layer.forward
            self.layer.forward = self.forward

    def look(self, labels: Int[Tensor, "rows tokens"]) -> None:
        """Note from where on a batch's labels are predicted."""
        columns = (labels != NO_LOSS).any(0).nonzero()
        self.first = max(0, int(columns[0]) - 1) if len(columns) else 0

    def forward(self, hidden_states: Tensor, **context: Any) -> Tensor:
        """Run the layer; before the first answer its input stands for its output."""
        first, n_tokens = self.first, hidden_states.shape[1]
        if not 0 < first < n_tokens or context.get("attention_mask") is not None:
            return self.whole(hidden_states, **context)
        asked = hidden_states[:, first:]
        asked = asked + self._attended(hidden_states, first, *context["position_embeddings"])
        asked = asked + self.layer.mlp(self.layer.post_attention_layernorm(asked))
        return torch.cat([hidden_states[:, :first], asked], 1)

    def _attended(self, hidden: Tensor, first: int, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend from the answers to everything before and themselves."""
        attention = self.layer.self_attn
        normed = self.layer.input_layernorm(hidden)
        query, keys, values = (
            project(x).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for project, x in (
                (attention.q_proj, normed[:, first:]),
                (attention.k_proj, normed),
                (attention.v_proj, normed),
            )
        )
        query, _ = apply_rotary_pos_emb(query, query, cos[:, first:], sin[:, first:])
        keys, _ = apply_rotary_pos_emb(keys, keys, cos, sin)
        sees = torch.ones(query.shape[2], keys.shape[2], dtype=torch.bool, device=hidden.device)
        mixed = F.scaled_dot_product_attention(
            query,
            keys,
            values,
            attn_mask=sees.tril(first),
            scale=attention.scaling,
            enable_gqa=query.shape[1] != keys.shape[1],
        )
        return attention.o_proj(mixed.transpose(1, 2).flatten(2))


@final
class AnswersTrainer(SFTTrainer):
    """TRL's trainer, which shows the last layer where the answers of each batch begin."""

    answers: AnswersOnly | None = None

    def compute_loss(self, model: Any, inputs: Any, *rest: Any, **settings: Any) -> Any:
        """Look at the labels first."""
        if self.answers is not None and "labels" in inputs:
            self.answers.look(inputs["labels"])
        return super().compute_loss(model, inputs, *rest, **settings)
