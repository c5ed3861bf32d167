"""The published LLaVA-1.5 7B (arXiv 2310.03744): its shape, and what training it should take.

Nothing here is measured: memory and time are predictions from the configuration.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from foredraft.training.llava.lora import adapted
from foredraft.training.llava.tuning import FineTuning

NAME = "llava-hf/llava-1.5-7b-hf"
PARAMETERS = 7_063_427_072


def architecture() -> LlavaConfig:
    """Describe the published model's shape."""
    tower = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=32064,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
    )
    return LlavaConfig(
        vision_config=tower, text_config=text, image_token_index=32000, image_seq_length=576
    )


def shaped(config: LlavaConfig) -> LlavaForConditionalGeneration:
    """Build a model without weights: on the meta device, in no memory and no time."""
    with torch.device("meta"):
        return LlavaForConditionalGeneration(config)


@final
@dataclass(frozen=True, slots=True)
class Prediction:
    """What training should take by arithmetic alone: bytes on the device, seconds a step."""

    parameters: int
    trained: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    flops_per_step: int
    seconds_per_step: float

    @property
    def gigabytes(self) -> float:
        """All that is held at once, in 10⁹ bytes."""
        held = (
            *(self.weight_bytes, self.gradient_bytes),
            *(self.optimizer_bytes, self.activation_bytes),
        )
        return sum(held) / 1e9


def predict(
    config: LlavaConfig, tuning: FineTuning, *, tokens: int, flops_per_second: float
) -> Prediction:
    """Predict what a step on rows of `tokens` tokens, images' included, takes on one device.

    `flops_per_second` is what the device reaches, not its peak. Left out: what the allocator
    loses, the kernels' own memory, and logits, which TRL computes in pieces.
    """
    if tokens < 1 or not flops_per_second > 0:
        raise ValueError(f"tokens={tokens} and flops_per_second={flops_per_second} must be above 0")
    model = shaped(config)
    trained, by_lora = _trained(model, tuning), tuning.method == "lora"
    parameters = _size(model)
    bits = 4 if tuning.four_bit else 8 * tuning.dtype.itemsize
    # peft keeps adapters in float32 beside weights of bfloat16
    trained_width = 4 if by_lora else tuning.dtype.itemsize
    flops = tuning.batch_size * _flops_per_row(model, tuning, tokens)
    return Prediction(
        parameters=parameters,
        trained=trained,
        weight_bytes=parameters * bits // 8 + (trained * trained_width if by_lora else 0),
        gradient_bytes=trained * trained_width,
        optimizer_bytes=2 * trained * trained_width,
        activation_bytes=tuning.share(1) * tokens * _activation_bytes_per_token(config, tuning),
        flops_per_step=flops,
        seconds_per_step=flops / flops_per_second,
    )


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _trained(model: LlavaForConditionalGeneration, tuning: FineTuning) -> int:
    if tuning.method == "full":
        frozen = {id(p) for name in tuning.freeze for p in getattr(model.model, name).parameters()}
        return sum(p.numel() for p in model.parameters() if id(p) not in frozen)
    layers: dict[str, Any] = dict(model.named_modules())
    shapes = (layers[name].weight.shape for name in adapted(model, tuning.freeze))
    return sum(tuning.rank * sum(shape) for shape in shapes)


def _flops_per_row(model: LlavaForConditionalGeneration, tuning: FineTuning, tokens: int) -> int:
    """Count multiplications and additions: 2 a weight and token forward, and as many for each of
    the gradients of inputs and of weights; causal attention reads half of the row.
    """
    text: Any = model.config.text_config
    vision: Any = model.config.vision_config
    weights = sum(
        layer.weight.numel()
        for part in (model.model.language_model, model.model.multi_modal_projector, model.lm_head)
        for layer in part.modules()
        if isinstance(layer, nn.Linear)
    )
    attention = 2 * text.num_hidden_layers * tokens * text.hidden_size
    forward = tokens * (2 * weights + attention)
    passes = 1 + 1 + (tuning.method == "full") + tuning.activation_checkpointing
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    seen = 2 * patches * _size(model.model.vision_tower)
    return passes * forward + seen * (1 if "vision_tower" in tuning.freeze else passes)


def _activation_bytes_per_token(config: LlavaConfig, tuning: FineTuning) -> int:
    """Count what the language model's backward pass keeps; with checkpointing, inputs of layers
    and the inside of one.
    """
    text: Any = config.text_config
    width = 2 if tuning.autocast else tuning.dtype.itemsize
    keys = text.hidden_size * text.num_key_value_heads // text.num_attention_heads
    # inputs, normed inputs, queries, attended, and again inputs, normed; gate, up, their products
    inside = width * (6 * text.hidden_size + 2 * keys + 4 * text.intermediate_size)
    if not tuning.activation_checkpointing:
        return text.num_hidden_layers * inside
    return width * text.num_hidden_layers * text.hidden_size + inside
