"""From a name, a folder or a hub id to a LLaVA and its processor: whole, or not at all.

The Pillow image processor is asked for: what reads the pixels must not depend on whether
torchvision happens to be installed. (Asked of AutoProcessor, `backend` would reach the tokenizer.)
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.utils.quantization_config import QuantizationConfigMixin

from foredraft.models.loading import locate
from foredraft.types import Tensor


def load_llava(
    name_or_path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    quantization: QuantizationConfigMixin | None = None,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Load a LLaVA, in eval mode, and its processor.

    Raises ValueError if the weights cannot be had, are damaged, or leave a tensor without a value.
    """
    folder = locate(name_or_path)
    processor = load_processor(folder)
    try:
        loaded: Any = LlavaForConditionalGeneration.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            quantization_config=quantization,
        )
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"the weights in {folder} cannot be read: {_reason(error)}") from error
    model, found = loaded
    absent = sorted(found["missing_keys"])
    if absent:
        raise ValueError(
            f"{folder} lacks {len(absent)} tensors, such as {absent[0]!r}: "
            "download or save it again"
        )
    if quantization is None:
        model = model.to(torch.device(device))
    _skip_unused_layers(model)
    return model.eval(), processor


def _skip_unused_layers(model: LlavaForConditionalGeneration) -> None:
    """Do not run the layers of the vision tower after the one whose features are taken.

    transformers runs them all, whatever `vision_feature_layer` says.
    """
    taken = model.config.vision_feature_layer
    encoder = getattr(model.model.vision_tower, "encoder", None)
    if encoder is None or not isinstance(taken, int) or taken >= 0:
        return
    for layer in encoder.layers[len(encoder.layers) + 1 + taken :]:
        layer.forward = _unchanged


def _unchanged(hidden_states: Tensor, *_: object, **__: object) -> Tensor:
    return hidden_states


def load_processor(folder: Path) -> LlavaProcessor:
    """Load what turns conversations and images into the model's inputs."""
    _config(folder)
    try:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        pixels = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} has no processor: {_reason(error)}") from error
    if not isinstance(processor, LlavaProcessor):
        raise ValueError(
            f"{folder} has a {type(processor).__name__} where a LlavaProcessor is needed: "
            "save the processor, not the tokenizer alone, beside the model"
        )
    processor.image_processor = pixels
    return processor


def image_tokens(folder: Path) -> int:
    """Count the tokens that an image takes: one a patch."""
    vision = _config(folder)["vision_config"]
    return (vision["image_size"] // vision["patch_size"]) ** 2


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{file} is missing: a model folder needs config.json")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        kind = fields["model_type"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} names no model_type; download or copy it again") from error
    if kind != "llava":
        raise ValueError(f"{file} is of a {kind!r} model; choose a 'llava' one, which sees images")
    return fields


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
