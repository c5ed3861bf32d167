"""From a name or a folder to a model and its tokenizer, and back.

The only module that may touch a hub. Weights are read from safetensors files only, never unpickled,
and no code that comes with a model is ever run. A folder is checked tensor by tensor before a model
exists, so nothing is half-loaded.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from transformers import (
    AutoConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from foredraft import paths
from foredraft.files import write_bytes, write_text
from foredraft.models.config import DecoderConfig, HfConfig, check_architecture, token_ids
from foredraft.models.decoder import Decoder
from foredraft.models.placement import FILES, DeviceMap, Files, Placement
from foredraft.models.stated import stated
from foredraft.models.weights import checkpoint_tensors, decoder_tensors
from foredraft.types import Tensor

if TYPE_CHECKING:  # takes longer to import than torch
    import transformers

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
HUB_FILES = ["*.json", "model*.safetensors", "*.jinja"]
"""Some folders hold the weights a second time, as `consolidated.safetensors`."""


def load(
    name_or_path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    compile: bool = False,
    device_map: DeviceMap | None = None,
) -> tuple[Decoder, PreTrainedTokenizerBase]:
    """Load a decoder, in eval mode, and its tokenizer.

    `name_or_path` is a pocket model's name, a folder in the Hugging Face format, or a hub id;
    `dtype` None keeps the checkpoint's precision. With `compile`, decoding steps are compiled when
    they are first made: on a GPU they are replayed as CUDA graphs (`models.compiling.graphs`), on a
    processor they are kept in files, with a copy of the weights (`models.compiling.ahead`).
    `device_map` spreads a model over several devices, the host's memory and files, instead of
    putting it on `device`: "auto", or a home for each part (`foredraft.models.placement`).

    Raises ValueError that names the file, and the tensor where there is one, if anything is
    missing, damaged or not supported; and for a device map that does not fit the model, or that
    comes with `compile` or a `device`.
    """
    folder = locate(name_or_path)
    config = _decoder_config(folder, _hf_config(folder))
    tokenizer = _tokenizer(folder, config)
    if device_map is not None:
        _refuse_beside_device_map(device, compile)
        return _placed(folder, config, dtype, device_map), tokenizer
    decoder = Decoder.from_tensors(config, _tensors(folder, config, device, dtype)).pack()
    return (decoder.compile_steps() if compile else decoder), tokenizer


def load_transformers(
    name_or_path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype
) -> "transformers.PreTrainedModel":
    """Load the same weights into the reference implementation, to be compared with."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        locate(name_or_path), dtype=dtype, trust_remote_code=False, use_safetensors=True
    )
    return model.to(torch.device(device)).eval()  # pyright: ignore[reportArgumentType]


def require_same_tokens(target: PreTrainedTokenizerBase, draft: PreTrainedTokenizerBase) -> None:
    """Raise ValueError, naming some tokens that differ, unless both read the same ids alike."""
    ours, theirs = (tokenizer.get_vocab() for tokenizer in (target, draft))
    differing = sorted(t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t))
    if differing:
        told = ", ".join(f"{t!r} ({ours.get(t)}, {theirs.get(t)})" for t in differing[:3])
        raise ValueError(
            f"the draft model's tokenizer differs from the target's in {len(differing)} tokens, "
            f"such as {told} (ids in target, draft): choose one with the target's tokenizer"
        )


def pocket_models() -> list[str]:
    """Name the models that this repository ships."""
    return sorted(path.parent.name for path in paths.MODELS.glob("*/config.json"))


def locate(name_or_path: str | Path) -> Path:
    """Find the folder of a model, downloading it from the hub if the name is a hub id."""
    name = str(name_or_path)
    if name in pocket_models():
        return paths.model(name)
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _download(name)
    near = get_close_matches(name, pocket_models(), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"no model {name!r}: {hint}It is neither a pocket model ({', '.join(pocket_models())}), "
        "nor a folder, nor a hub id such as 'google/gemma-2-9b-it'"
    )


def write(
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    folder: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write a folder that `load` and transformers' Auto classes read, each file atomically."""
    tokenizer.save_pretrained(folder)
    fields = config.to_dict() | {"dtype": str(dtype).removeprefix("torch.")}
    write_text(folder / "config.json", json.dumps(fields, indent=2, sort_keys=True) + "\n")
    ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    write_text(folder / "generation_config.json", json.dumps(ids, indent=1) + "\n")
    tensors = checkpoint_tensors(decoder.config, decoder.state_dict())
    tensors = {name: tensor.to(dtype).cpu() for name, tensor in tensors.items()}
    write_bytes(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))


def _download(hub_id: str) -> Path:
    try:
        return Path(snapshot_download(hub_id, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"the weights of {hub_id!r} are not on this machine and could not be downloaded "
            f"({type(error).__name__}: {reason}). Pocket models need no network: "
            f"{', '.join(pocket_models())}"
        ) from error


def _hf_config(folder: Path) -> HfConfig:
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{file} is missing: a model folder needs config.json")
    fields = read_object(file)
    try:
        check_architecture(fields.get("model_type"))
        return stated(fields) or AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise ValueError(f"{file}: {error}") from error


def _decoder_config(folder: Path, hf_config: HfConfig) -> DecoderConfig:
    """Read the architecture; which tokens end a text is the generation configuration's to say."""
    try:
        config = DecoderConfig.from_hf(hf_config)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error
    generation = folder / "generation_config.json"
    ends = read_object(generation).get("eos_token_id") if generation.is_file() else None
    if ends is None:
        return config
    try:
        return replace(config, eos_token_ids=token_ids(ends))
    except ValueError as error:
        raise ValueError(f"{generation}: {error}") from error


def _tokenizer(folder: Path, config: DecoderConfig) -> PreTrainedTokenizerBase:
    """Take tokenizer.json as it stands.

    AutoTokenizer goes by the architecture instead: in a qwen2 folder it keeps the vocabulary and
    the merges of the file and puts Qwen's own rules around them.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"{file} is missing: the model has no tokenizer")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises nothing more precise
        raise ValueError(f"{file} or tokenizer_config.json beside it: {error}") from error
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{file} has {len(tokenizer)} tokens, the model "
            f"{config.vocab_size}: the tokenizer belongs to another model"
        )
    return tokenizer


def read_object(file: Path) -> dict:
    """Read a file that holds a JSON object; ValueError, with the remedy, if it does not."""
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not JSON ({error}); download or copy it again") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{file} holds no JSON object; download or copy it again")
    return fields


def _refuse_beside_device_map(device: torch.device | str, compile: bool) -> None:
    if str(device) != "cpu":
        raise ValueError(f"device={str(device)!r} and device_map: give one of them")
    if compile:
        raise ValueError(
            "compile=True and device_map: compiled steps need all weights on one device; leave one "
            "of them out"
        )


def _placed(
    folder: Path, config: DecoderConfig, dtype: torch.dtype | None, device_map: DeviceMap
) -> Decoder:
    """Read each weight to where it belongs, one at a time; on a single device, as ever."""
    decoder = Decoder.without_weights(config).separate_head()
    weights = StoredTensors(folder, "cpu", dtype)
    width = next((tensor.dtype for tensor in weights.values()), torch.float32)
    placement = Placement.of(device_map, decoder, width)
    if placement.single is not None:
        return Decoder.from_tensors(
            config, _tensors(folder, config, placement.single, dtype)
        ).pack()
    files = Files()

    def put(name: str, tensor: Tensor) -> Tensor:
        home = placement.home_of(name)
        return files.take(name, tensor) if home == FILES else tensor.to(home)

    tensors = _read(weights, config, put)
    if config.tied:
        tensors["head.weight"] = put("head.weight", weights["model.embed_tokens.weight"])
    files.close()
    return decoder.take(tensors).place(placement, files)


def _tensors(
    folder: Path,
    config: DecoderConfig,
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    """Read and check all weights; only then is there anything to build a model from."""
    return _read(StoredTensors(folder, device, dtype), config, lambda name, tensor: tensor)


def _read(
    weights: "StoredTensors", config: DecoderConfig, put: Callable[[str, Tensor], Tensor]
) -> dict[str, Tensor]:
    try:
        tensors = decoder_tensors(config, weights, put)
    except ValueError as error:
        raise ValueError(f"{weights.source}: {error}") from error
    found = sorted({str(tensor.dtype) for tensor in tensors.values()})
    if len(found) > 1:
        raise ValueError(f"{weights.source} mixes {', '.join(found)}: choose one with dtype=")
    return tensors


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a folder by name, each read from its file when asked for.

    A file is mapped once, for as long as this lives: each mapping counts as memory of its own.
    """

    def __init__(self, folder: Path, device: torch.device | str, dtype: torch.dtype | None) -> None:
        self.folder, self.device, self.dtype = folder, str(device), dtype
        self._readers: dict[Path, safe_open] = {}
        self.source = folder / INDEX if (folder / INDEX).is_file() else folder / WEIGHTS
        self._files = self._sharded() if self.source.name == INDEX else self._single()

    def __getitem__(self, name: str) -> Tensor:
        file = self._files[name]
        try:
            tensor = self._reader(file).get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"tensor {name!r} cannot be read from {file}: {error}") from error
        return tensor if self.dtype is None else tensor.to(self.dtype)

    def _reader(self, file: Path) -> safe_open:
        if file not in self._readers:
            self._readers[file] = safe_open(file, "pt", device=self.device)
        return self._readers[file]

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def _single(self) -> dict[str, Path]:
        if not self.source.is_file():
            pickled = sorted(path.name for path in self.folder.glob("*.bin"))
            hint = f"; {pickled[0]} is a pickle, which is never loaded" if pickled else ""
            raise ValueError(f"{self.source} is missing{hint}: save the model as safetensors")
        return dict.fromkeys(_names(self.source), self.source)

    def _sharded(self) -> dict[str, Path]:
        listed = read_object(self.source).get("weight_map")
        if not isinstance(listed, dict):
            raise ValueError(f"{self.source} has no 'weight_map'; download or copy it again")
        for shard in listed.values():
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise ValueError(f"{self.source} names {shard!r}, which is no file of its folder")
        held = {shard: set(_names(self.folder / shard)) for shard in set(listed.values())}
        for name, shard in listed.items():
            if name not in held[shard]:
                raise ValueError(
                    f"{self.folder / shard} has no tensor {name!r}, which {INDEX} puts there"
                )
        return {name: self.folder / shard for name, shard in listed.items()}


def _names(file: Path) -> list[str]:
    if not file.is_file():
        raise ValueError(f"{file} is missing: download or copy it again")
    try:
        with safe_open(file, "pt") as reader:
            return list(reader.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged ({error}): download or copy it again") from error
