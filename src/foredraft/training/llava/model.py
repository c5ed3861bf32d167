"""A small LLaVA, built here: tokenizer, processor, configuration, weights to start from, folder.

It has the parts of LLaVA-1.5 (arXiv 2310.03744): a CLIP tower, whose last layer but one a two-layer
projector reads, and a Llama. A character is a token, so that a word never seen can be spelled.
"""

import math
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from foredraft.training.llava.table_images import SIZE
from foredraft.types import Float, Tensor

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
READ = "Read the text."
"""What the model is asked in pre-training."""
CONVERT = "Convert this table to Markdown."
"""What it may be taught to answer afterwards: one token, so that asking costs no time."""
PHRASES = (
    "USER:",
    " ASSISTANT:",
    READ,
    CONVERT,
    *("| ", " | ", " |", " |\n| "),
    *("---", ":---", "---:", ":---:"),
)
"""Texts of one token: what conversations repeat, and what Markdown tables are made of."""
PAPER, SPREAD = 0.9, 0.3
"""Mean and deviation that pixels (0 to 1) are normalised by: a page is mostly paper."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The shape of a small LLaVA; `image` and `patch` are sides in pixels.

    The tower has one layer more than `tower_layers`, which nothing reads, as in LLaVA-1.5.
    """

    image: int = SIZE
    patch: int = 10
    tower_width: int = 192
    tower_layers: int = 3
    tower_heads: int = 4
    width: int = 192
    layers: int = 4
    heads: int = 4
    intermediate: int = 512

    @property
    def image_tokens(self) -> int:
        """Patches, and so tokens, of an image."""
        return (self.image // self.patch) ** 2


def tokenizer() -> PreTrainedTokenizerFast:
    """Give the tokenizer: bytes, and the PHRASES; any text encodes and decodes back."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *alphabet))}
    bytes_alone = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    bytes_alone.add_tokens([AddedToken(phrase, normalized=False) for phrase in PHRASES])
    return PreTrainedTokenizerFast(
        tokenizer_object=bytes_alone,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def processor(sizes: Sizes) -> LlavaProcessor:
    """Give what turns conversations and images into the model's inputs, in LLaVA-1.5's words."""
    from foredraft.training.llava.answer_labels import LLAVA15_TEMPLATE

    pixels = CLIPImageProcessorPil(
        size={"shortest_edge": sizes.image},
        crop_size={"height": sizes.image, "width": sizes.image},
        image_mean=[PAPER] * 3,
        image_std=[SPREAD] * 3,
    )
    return LlavaProcessor(
        image_processor=pixels,
        tokenizer=tokenizer(),
        patch_size=sizes.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA15_TEMPLATE,
    )


def config(sizes: Sizes) -> LlavaConfig:
    """Describe the model in transformers' terms."""
    tower = CLIPVisionConfig(
        hidden_size=sizes.tower_width,
        intermediate_size=4 * sizes.tower_width,
        num_hidden_layers=sizes.tower_layers + 1,
        num_attention_heads=sizes.tower_heads,
        hidden_act="gelu",
        image_size=sizes.image,
        patch_size=sizes.patch,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=sizes.width,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        max_position_embeddings=1024,
        initializer_range=0.05,
        bos_token_id=SPECIAL.index("<s>"),
        eos_token_id=SPECIAL.index("</s>"),
        pad_token_id=SPECIAL.index("<pad>"),
    )
    return LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=SPECIAL.index("<image>"),
        image_seq_length=sizes.image_tokens,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def untrained(sizes: Sizes, *, seed: int) -> LlavaForConditionalGeneration:
    """Draw the weights to start from; the tower's first layers look at neighbouring patches."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config(sizes))
        seen = (model.model.vision_tower, model.model.multi_modal_projector)
        for name, layer in (pair for part in seen for pair in part.named_modules()):
            if isinstance(layer, nn.Linear):
                joins = name.endswith(("fc2", "out_proj"))
                nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5 / (1 + joins))
                nn.init.zeros_(layer.bias)
        look_around(model, sizes)
    return model


OFFSETS = ((0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (1, 1))
"""Rows down and columns to the right of the patch that each head looks at first."""
LOCAL_LAYERS = 2
SHARPNESS = 3.0
FASTEST, SLOWEST = 1.6, 0.1
"""Radians a patch of the position code's waves."""


@torch.no_grad()
def look_around(model: LlavaForConditionalGeneration, sizes: Sizes) -> None:
    """Give the tower positions made of waves, and its first layers heads that look one patch aside.

    A glyph lies across patches that the tower cuts without overlap. Where a query is the code of
    its own position, turned by an offset, it meets the key of the patch at that offset: attention
    starts as a convolution does (as in arXiv 2103.10697), and is free to become something else.
    """
    tower = dict(model.model.vision_tower.named_modules())
    embeddings = next(part for name, part in tower.items() if name.endswith("embeddings"))
    patch = embeddings.patch_embedding.weight
    nn.init.trunc_normal_(patch, std=patch[0].numel() ** -0.5)
    embeddings.position_embedding.weight[1:] = waves(sizes)
    layers = [part for name, part in tower.items() if name.endswith("self_attn")]
    head = sizes.tower_width // sizes.tower_heads
    for attention in layers[:LOCAL_LAYERS]:
        for index, offset in zip(range(sizes.tower_heads), OFFSETS, strict=False):
            rows = slice(index * head, (index + 1) * head)
            for projection, turn in ((attention.q_proj, offset), (attention.k_proj, (0, 0))):
                weight = projection.weight[rows]
                weight.mul_(0.3).add_(_turned(sizes, turn), alpha=SHARPNESS**0.5)


def waves(sizes: Sizes) -> Float[Tensor, "patches width"]:
    """Code each patch's row, then its column, in sines and cosines of a quarter of the width."""
    side = sizes.image // sizes.patch
    angles = torch.arange(side)[:, None] * _frequencies(sizes)
    code = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
    rows, columns = code[:, None].expand(-1, side, -1), code[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


def _frequencies(sizes: Sizes) -> Float[Tensor, " waves"]:
    exponents = torch.linspace(0, 1, sizes.tower_width // 4)
    return FASTEST * (SLOWEST / FASTEST) ** exponents


def _turned(sizes: Sizes, offset: tuple[int, int]) -> Float[Tensor, "head width"]:
    """Pick, for one head, some waves of the position code and move them by an offset in patches."""
    frequencies, head = _frequencies(sizes), sizes.tower_width // sizes.tower_heads
    chosen = torch.linspace(0, len(frequencies) - 1, head // 4).round().long().tolist()
    matrix = torch.zeros(head, sizes.tower_width)
    for axis, distance in enumerate(offset):
        for order, wave in enumerate(chosen):
            angle = float(frequencies[wave]) * distance
            sine, cosine = math.sin(angle), math.cos(angle)
            row = axis * head // 2 + 2 * order
            column = axis * sizes.tower_width // 2 + 2 * wave
            matrix[row : row + 2, column : column + 2] = torch.tensor(
                [[cosine, sine], [-sine, cosine]]
            )
    return matrix


def save(model: LlavaForConditionalGeneration, sizes: Sizes, folder: Path) -> None:
    """Write the model in bf16, with its processor, as a folder that transformers loads."""
    narrow = deepcopy(model).to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as part:
        processor(sizes).save_pretrained(part)
        narrow.save_pretrained(part)
        for file in sorted(Path(part).iterdir()):
            file.chmod(0o644)
            file.replace(folder / file.name)
