"""LoRA on a LLaVA (arXiv 2106.09685): what is adapted, how the rest is held, the sum of both.

The Trainer's checkpoints hold adapters only; what is handed on is their sum with the base, a plain
LLaVA that needs no peft.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration

from foredraft.training.llava.folder import load_llava

OUTPUT_HEAD = "lm_head"
"""Never adapted: TRL multiplies by its weight directly and would pass an adapter by."""


def adapters(model: LlavaForConditionalGeneration, rank: int, freeze: Sequence[str]) -> LoraConfig:
    """Configure adapters that add twice their product, whatever the rank."""
    return LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=adapted(model, freeze)
    )


def adapted(model: nn.Module, freeze: Sequence[str]) -> list[str]:
    """Name the linear layers that LoRA adapts: all but the output head and what is frozen."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not {OUTPUT_HEAD, *freeze} & {*name.split(".")}
    ]


def merged(
    base: str | Path, checkpoint: Path, *, dtype: torch.dtype
) -> LlavaForConditionalGeneration:
    """Add a checkpoint's adapters to the base's weights: a plain LLaVA."""
    model, _ = load_llava(base, dtype=dtype)
    with past_deprecation():
        return PeftModel.from_pretrained(model, checkpoint).merge_and_unload()


@contextmanager
def past_deprecation() -> Iterator[None]:
    """Keep from the reader that peft asks this transformers for a word that a later one drops."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def parts(model: LlavaForConditionalGeneration, names: Sequence[str]) -> list[nn.Module]:
    """Find the named ones of a LLaVA's three parts."""
    found = dict(model.model.named_children())
    absent = [name for name in names if name not in found]
    if absent:
        raise ValueError(f"freeze names {absent[0]!r}; a LLaVA's parts are {', '.join(found)}")
    return [found[name] for name in names]


def four_bit() -> BitsAndBytesConfig:
    """Configure QLoRA's four bits (arXiv 2305.14314); raise ValueError without its library."""
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            "four_bit needs bitsandbytes, which is not installed: "
            "`pip install bitsandbytes`, or choose four_bit=False"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
