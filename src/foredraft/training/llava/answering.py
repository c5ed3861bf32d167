"""Answers of a LLaVA to questions about images, greedily, many at a time.

Prompts are padded on the left, so that every row's next token stands in the last column. Keys and
values have their place from the start: growing them by a column a token took half as long again as
the whole of decoding (32 rows on a processor, the pocket model).
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image
from transformers import BatchFeature, LlavaForConditionalGeneration, LlavaProcessor, StaticCache

from foredraft.training.llava.answer_labels import training_template
from foredraft.types import Int, Tensor


def answer(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    images: Sequence[Image],
    prompts: str | Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int = 32,
) -> list[str]:
    """Give the model's most likely next tokens, up to its end of text, as one text an image.

    One prompt is put to all images, or each to its own. A question is asked as training asks it.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(
            f"max_new_tokens={max_new_tokens} and batch_size={batch_size} must be at least 1"
        )
    prompts = [prompts] * len(images) if isinstance(prompts, str) else prompts
    if len(prompts) != len(images):
        raise ValueError(
            f"{len(prompts)} prompts for {len(images)} images: give one prompt, or one for each"
        )
    texts = [""] * len(images)
    # prompts of like length side by side need no padding
    order = sorted(range(len(images)), key=lambda i: len(prompts[i]))
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        inputs = questions(processor, [images[i] for i in rows], [prompts[i] for i in rows])
        ids = _decoded(model, processor, inputs.to(model.device, model.dtype), max_new_tokens)
        answers = processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        for i, text in zip(rows, answers, strict=True):
            texts[i] = text.strip()
    return texts


def questions(
    processor: LlavaProcessor, images: Sequence[Image], prompts: Sequence[str]
) -> BatchFeature:
    """Make a batch of questions, each about its image, padded on the left."""
    conversations: list[Any] = [
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": image}, {"type": "text", "text": prompt}],
            }
        ]
        for image, prompt in zip(images, prompts, strict=True)
    ]
    made: Any = processor.apply_chat_template(
        conversations,
        chat_template=training_template(processor),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left", "add_special_tokens": False},
    )
    return made


@torch.inference_mode()
def _decoded(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    inputs: BatchFeature,
    max_new_tokens: int,
) -> Int[Tensor, "rows new"]:
    """Decode a batch up to the end of text that training teaches; padding follows it."""
    n_asked = inputs["input_ids"].shape[1]
    length = n_asked + max_new_tokens
    tokens = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        past_key_values=StaticCache(config=model.config.get_text_config(), max_cache_len=length),
        eos_token_id=processor.tokenizer.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    return tokens[:, n_asked:]
