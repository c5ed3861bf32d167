"""Which tokens of a conversation carry loss: the answers with their end, and nothing else.

TRL's own collator is used: with `assistant_only_loss` it labels what a chat template marks as
generated. What it needs is a template that marks answers *and* their end of text. LLaVA-1.5's
published one marks answers only, so that a model learns to speak and never to stop, and it leaves
the beginning of the text to the tokenizer, which TRL tells to add nothing. `training_template`
therefore replaces it by one that asks in the same words; whatever it may not replace it refuses.
"""

from collections.abc import Sequence
from copy import copy
from typing import Any

from transformers import LlavaProcessor
from trl.chat_template_utils import has_generation_markers, is_chat_template_stop_token_trained
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

NO_LOSS = -100
"""The label of a token that is not to be learnt."""
Message = dict[str, Any]
"""A turn: `role`, and `content`, a list of parts with `type` "text" or "image"."""

LLAVA15_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}ASSISTANT:{% generation %}"
    "{% for part in message['content'] if part['type'] == 'text' %} {{ part['text'] }}{% endfor %}"
    "{{ eos_token }}{% endgeneration %}{% else %}"
    "{% if message['role'] != 'system' %}{{ message['role'] | upper }}: {% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""LLaVA-1.5's words, with the beginning and the end of the text where its own training had them."""


def training_template(processor: LlavaProcessor) -> str:
    """Give the processor's chat template if its labels teach to stop, else LLaVA-1.5's that does.

    Raises ValueError if the template neither teaches to stop nor asks in the words of LLaVA-1.5.
    """
    own = processor.chat_template
    if not isinstance(own, str):
        raise ValueError("the processor has no single chat template: save one beside the model")
    if has_generation_markers(own) and is_chat_template_stop_token_trained(processor):
        return own
    theirs, ours = (_question(processor, template) for template in (own, LLAVA15_TEMPLATE))
    if theirs != ours:
        raise ValueError(
            f"the chat template asks {theirs!r} and does not mark answers with their end of text, "
            f"and it is no LLaVA-1.5 template, which asks {ours!r}: put the answer and eos_token "
            "between {% generation %} and {% endgeneration %}"
        )
    return LLAVA15_TEMPLATE


def prepared(processor: LlavaProcessor) -> LlavaProcessor:
    """Copy a processor, with its training template; what is saved after training asks by it too."""
    twin = copy(processor)
    twin.chat_template = training_template(processor)
    return twin


def collator(processor: LlavaProcessor) -> DataCollatorForVisionLanguageModeling:
    """Make batches of conversations: inputs padded on the right, and labels, -100 where no loss."""
    return DataCollatorForVisionLanguageModeling(
        processor, assistant_only_loss=True, chat_template=training_template(processor)
    )


def token_lengths(
    processor: LlavaProcessor, conversations: Sequence[Sequence[Message]], image_tokens: int
) -> list[int]:
    """Count the tokens of each conversation, `image_tokens` an image, without reading an image."""
    template = training_template(processor)
    texts = [
        processor.apply_chat_template([*messages], chat_template=template, tokenize=False)
        for messages in conversations
    ]
    ids = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
    image = processor.image_token_id
    return [len(row) + row.count(image) * (image_tokens - 1) for row in ids]


def _question(processor: LlavaProcessor, template: str) -> str:
    """Render how a template asks about an image, without the beginning of the text."""
    parts: Any = [{"type": "image"}, {"type": "text", "text": "What?"}]
    rendered = processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        chat_template=template,
        tokenize=False,
        add_generation_prompt=True,
    )
    return str(rendered).removeprefix(processor.tokenizer.bos_token or "")
