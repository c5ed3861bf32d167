"""A model folder is loaded whole or refused with the file and the tensor at fault."""

import gc
import json
import os
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import huggingface_hub.constants
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

import foredraft as fd
from foredraft import paths
from foredraft.models import loading
from foredraft.models.decoder import Decoder
from foredraft.models.loading import INDEX, WEIGHTS, locate, pocket_models, write
from foredraft.models.placement import Files, Placement

NORM = "model.norm.weight"
TEXT = "do re mi"


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer of eight words."""
    words = ["<unk>", "<s>", "</s>", "do", "re", "mi", "fa", "so"]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture
def letters() -> PreTrainedTokenizerBase:
    """A byte-level tokenizer of single letters, which AutoTokenizer reads in any folder."""
    words = ["<s>", "</s>", *"Ġdefimor"]
    model = models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def saved(tmp_path_factory, reference, tokenizer) -> Callable[..., Path]:
    """Save a family as transformers does, whole or sharded; give a folder that nobody changes."""
    root = tmp_path_factory.mktemp("saved")

    def save(family: str, dtype: torch.dtype = torch.float32, shard: str = "1GB") -> Path:
        folder = root / f"{family}-{dtype}-{shard}"
        if not folder.exists():
            reference(family, dtype).save_pretrained(folder, max_shard_size=shard)
            tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A llama in one file, to be damaged."""
    return shutil.copytree(saved("llama"), tmp_path / "model")


@pytest.fixture
def sharded(saved, tmp_path) -> Path:
    """A llama in several files, to be damaged."""
    return shutil.copytree(saved("llama", shard="50KB"), tmp_path / "sharded")


@pytest.fixture
def pockets(monkeypatch, tmp_path, saved) -> Path:
    """A repository that ships two pocket models."""
    for name in ("pocket-llama", "pocket-gemma2"):
        shutil.copytree(saved(name.removeprefix("pocket-")), tmp_path / "models" / name)
    monkeypatch.setattr(paths, "MODELS", tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Path:
    """An empty hub cache, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def edit_json(file: Path, **fields: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def edit_tensors(file: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def shard_of(folder: Path, tensor: str) -> str:
    return json.loads((folder / INDEX).read_text())["weight_map"][tensor]


def refusal(folder: Path | str) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        fd.load(folder)
    assert type(caught.value) is ValueError
    return str(caught.value)


@pytest.mark.parametrize("shard", ["1GB", "50KB"])
def test_what_transformers_saves_loads_with_the_same_logits(family, saved, reference, text, shard):
    folder = saved(family, shard=shard)
    assert len(list(folder.glob("*.safetensors"))) == 1 or shard == "50KB"
    decoder, tokenizer = fd.load(folder)
    tokens = text(2, 17)
    assert torch.equal(
        decoder(tokens), fd.Decoder.from_hf(reference(family, torch.float32))(tokens)
    )
    assert tokenizer.encode(TEXT) == [3, 4, 5]
    assert not decoder.training


def test_a_checkpoint_keeps_its_precision_unless_told_otherwise(saved):
    folder = saved("gemma2", torch.bfloat16)
    assert fd.load(folder)[0].dtype == torch.bfloat16
    assert fd.load(folder, dtype=torch.float64)[0].dtype == torch.float64


def test_mixed_precisions_need_a_choice(folder):
    edit_tensors(folder / WEIGHTS, lambda t: t.update({NORM: t[NORM].bfloat16()}))
    message = refusal(folder)
    assert WEIGHTS in message
    assert "mixes torch.bfloat16, torch.float32: choose one with dtype=" in message
    assert fd.load(folder, dtype=torch.float32)[0].norm.weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_loads_here_and_in_transformers_alike(
    family, saved, letters, text, tmp_path, dtype
):
    source = saved(family, dtype)
    config = AutoModelForCausalLM.from_pretrained(source).config
    write(fd.load(source)[0], letters, config, tmp_path, dtype=dtype)
    tokens, (written, tokenizer) = text(2, 17), fd.load(tmp_path)
    assert torch.equal(written(tokens), fd.load(source)[0](tokens))
    assert written.dtype == AutoModelForCausalLM.from_pretrained(tmp_path).dtype == dtype
    wide = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        difference = fd.load(tmp_path, dtype=torch.float32)[0](tokens) - wide(tokens).logits
    assert difference.abs().max() <= 2e-5
    spelt = [letters.convert_tokens_to_ids(letter) for letter in "doĠreĠmi"]
    assert tokenizer.encode(TEXT) == AutoTokenizer.from_pretrained(tmp_path).encode(TEXT) == spelt


def test_writing_is_to_bfloat16_and_leaves_the_decoder_alone(saved, tokenizer, tmp_path):
    decoder, _ = fd.load(saved("llama"))
    config = AutoModelForCausalLM.from_pretrained(saved("llama")).config
    write(decoder, tokenizer, config, tmp_path)
    assert {t.dtype for t in load_file(tmp_path / WEIGHTS).values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert decoder.dtype == torch.float32
    assert config.dtype == torch.float32


def test_the_generation_configuration_says_which_tokens_end_a_text(folder):
    assert fd.load(folder)[0].config.eos_token_ids == (2,)
    edit_json(folder / "generation_config.json", eos_token_id=[5, 7])
    assert fd.load(folder)[0].config.eos_token_ids == (5, 7)
    (folder / "generation_config.json").unlink()
    assert fd.load(folder)[0].config.eos_token_ids == (2,)


def test_a_name_of_a_pocket_model_is_enough(pockets):
    assert pocket_models() == ["pocket-gemma2", "pocket-llama"]
    assert fd.load("pocket-gemma2")[0].config.architecture == "gemma2"


def test_a_name_with_a_typo_gets_the_near_match(pockets):
    assert "no model 'pocket-lama': did you mean 'pocket-llama'?" in refusal("pocket-lama")


@pytest.mark.parametrize("name", ["tolstoy", "./nowhere", "/no/where", "~/nowhere", "a/b/c"])
def test_a_name_that_is_nothing_is_told_what_names_there_are(pockets, name):
    message = refusal(name)
    assert repr(name) in message
    assert "pocket-gemma2, pocket-llama" in message
    assert "nor a folder, nor a hub id such as" in message


def test_a_hub_id_is_found_in_the_local_cache(hub, saved, text):
    entry, revision = hub / "models--someone--some-llama", "0" * 40
    shutil.copytree(saved("llama", shard="50KB"), entry / "snapshots" / revision)
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text(revision)
    decoder, tokenizer = fd.load("someone/some-llama")
    assert torch.equal(decoder(text(1, 9)), fd.load(saved("llama"))[0](text(1, 9)))
    assert tokenizer.encode(TEXT) == [3, 4, 5]


def test_a_hub_id_that_cannot_be_had_says_which_why_and_what_to_run_instead(hub, pockets):
    message = refusal("someone/some-llama")
    assert "the weights of 'someone/some-llama' are not on this machine" in message
    assert "LocalEntryNotFoundError" in message
    assert "Pocket models need no network: pocket-gemma2, pocket-llama" in message


def test_a_string_that_is_no_hub_id_is_refused(hub):
    assert "'some one/model'" in refusal("some one/model")


def test_a_hub_snapshot_that_lacks_its_weights_is_refused(hub, saved):
    snapshot = hub / "models--someone--half" / "snapshots" / ("0" * 40)
    shutil.copytree(saved("llama"), snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    (snapshot / WEIGHTS).unlink()
    assert f"{snapshot / WEIGHTS} is missing" in refusal("someone/half")


def test_a_folder_beats_a_hub_id(hub, folder, monkeypatch):
    monkeypatch.chdir(folder.parent.parent)
    relative = f"{folder.parent.name}/{folder.name}"
    assert locate(relative) == Path(relative)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", WEIGHTS])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert f"{folder / name} is missing" in refusal(folder)


def test_a_missing_shard_is_named(sharded):
    shard = shard_of(sharded, NORM)
    (sharded / shard).unlink()
    assert f"{sharded / shard} is missing" in refusal(sharded)


@pytest.mark.parametrize("kept", [0, 7, 100, -4])
def test_truncated_weights_are_refused(folder, kept):
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:kept])
    assert f"{file} is damaged" in refusal(folder)


def test_a_truncated_shard_is_refused(sharded):
    file = sharded / shard_of(sharded, NORM)
    file.write_bytes(file.read_bytes()[:-4])
    assert f"{file} is damaged" in refusal(sharded)


def test_a_missing_tensor_is_named(folder):
    edit_tensors(folder / WEIGHTS, lambda t: t.pop("model.layers.2.mlp.up_proj.weight"))
    message = refusal(folder)
    assert str(folder / WEIGHTS) in message
    assert "'model.layers.2.mlp.up_proj.weight' of shape (80, 48) is missing" in message


def test_a_renamed_tensor_is_named(folder):
    edit_tensors(folder / WEIGHTS, lambda t: t.update({"model.nrom.weight": t.pop(NORM)}))
    message = refusal(folder)
    assert str(folder / WEIGHTS) in message
    assert "'model.nrom.weight'" in message


def test_an_extra_tensor_is_named(folder):
    edit_tensors(folder / WEIGHTS, lambda t: t.update({"model.adapter.weight": torch.ones(2)}))
    message = refusal(folder)
    assert str(folder / WEIGHTS) in message
    assert "'model.adapter.weight'" in message
    assert "no place in a decoder of architecture 'llama'" in message


@pytest.mark.parametrize("tensor", [NORM, "model.layers.1.self_attn.k_proj.weight"])
def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(folder, tensor):
    edit_tensors(folder / WEIGHTS, lambda t: t.update({tensor: torch.ones(5, 3)}))
    message = refusal(folder)
    assert f"{folder / WEIGHTS}: tensor {tensor!r} has shape (5, 3)" in message
    assert "config.json asks for (" in message


def test_a_tensor_of_integers_is_refused(folder):
    edit_tensors(folder / WEIGHTS, lambda t: t.update({NORM: t[NORM].to(torch.int8)}))
    assert f"tensor {NORM!r} holds torch.int8: quantised" in refusal(folder)


def test_weights_of_another_size_than_config_json_are_refused(folder):
    edit_json(folder / "config.json", intermediate_size=96)
    message = refusal(folder)
    assert str(folder / WEIGHTS) in message
    assert "config.json asks for (96, 48)" in message


def test_an_index_that_lies_about_a_shard_is_refused(sharded):
    weight_map = json.loads((sharded / INDEX).read_text())["weight_map"]
    other = next(shard for shard in weight_map.values() if shard != weight_map[NORM])
    edit_json(sharded / INDEX, weight_map=weight_map | {NORM: other})
    message = refusal(sharded)
    assert f"{sharded / other} has no tensor {NORM!r}" in message
    assert INDEX in message


@pytest.mark.parametrize("shard", [f"../sharded/{WEIGHTS}", f"sub/{WEIGHTS}", "/dev/zero", 5, None])
def test_an_index_that_points_outside_its_folder_is_refused(sharded, shard):
    edit_json(sharded / INDEX, weight_map={NORM: shard})
    message = refusal(sharded)
    assert f"{sharded / INDEX} names {shard!r}, which is no file of its folder" in message


def test_an_index_without_a_map_is_refused(sharded):
    (sharded / INDEX).write_text('{"metadata": {}}')
    assert f"{sharded / INDEX} has no 'weight_map'" in refusal(sharded)


@pytest.mark.parametrize("content", ["{", "", "[]", "3", '"text"', b"\xff\xfe"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", INDEX])
def test_malformed_json_is_refused_by_file_name(sharded, name, content):
    data = content if isinstance(content, bytes) else content.encode()
    (sharded / name).write_bytes(data)
    assert f"{sharded / name} " in refusal(sharded)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt2"}, "'gpt2' is not supported; the decoder speaks gemma2, llama"),
        ({"model_type": "no-such"}, "'no-such' is not supported"),
        ({"model_type": None}, "None is not supported"),
        ({"model_type": ["llama"]}, "['llama'] is not supported"),
        ({"hidden_act": "relu"}, "activation 'relu' is not supported"),
        ({"hidden_size": "big"}, "hidden_size"),
        ({"num_attention_heads": 5}, "hidden size (48)"),
        ({"num_key_value_heads": 4}, "n_heads=6 is no multiple of n_kv_heads=4"),
        ({"num_key_value_heads": 0}, "n_kv_heads=0"),
        ({"num_hidden_layers": -1}, "n_layers=-1"),
        ({"eos_token_id": "end"}, "eos_token_id"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
            "rotary embedding of type 'yarn' is not supported: default or llama3",
        ),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_parameters"),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_a_configuration_that_is_not_supported_is_refused(folder, fields, message):
    edit_json(folder / "config.json", **fields)
    refused = refusal(folder)
    assert refused.startswith(f"{folder / 'config.json'}: ")
    assert message in refused


def test_end_tokens_that_are_no_numbers_are_refused(folder):
    edit_json(folder / "generation_config.json", eos_token_id=["</s>"])
    message = refusal(folder)
    assert str(folder / "generation_config.json") in message
    assert "eos_token_id=['</s>']" in message


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", '{"added_tokens_decoder": 3, "model": 3}'])
def test_a_damaged_tokenizer_is_refused(folder, name, content):
    (folder / name).write_text(content)
    assert str(folder / "tokenizer.json") in refusal(folder)


def test_a_tokenizer_larger_than_the_model_is_refused(folder, tokenizer):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"word{i}" for i in range(97)])
    tokenizer.save_pretrained(folder)
    message = refusal(folder)
    assert f"{folder / 'tokenizer.json'} has 105 tokens, the model 97" in message


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_pickle_is_refused_and_never_opened(folder, tmp_path):
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    message = refusal(folder)
    assert f"{folder / WEIGHTS} is missing" in message
    assert "pytorch_model.bin is a pickle, which is never loaded" in message
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("model_type", ["llama", "custom"])
def test_code_that_comes_with_a_model_is_never_run(folder, tmp_path, model_type):
    marker = tmp_path / "ran"
    (folder / "code.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    edit_json(
        folder / "config.json",
        model_type=model_type,
        auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    )
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Words", None]})
    if model_type == "custom":
        assert "'custom' is not supported" in refusal(folder)
    else:
        fd.load(folder)
    assert not marker.exists()


def test_every_tensor_is_read_once_and_its_file_mapped_once(folder, monkeypatch):
    """But for the first, at which the type checker of the tests looks too; and for the names."""
    reads: Counter[str] = Counter()
    opened: list[object] = []
    read = loading.StoredTensors.__getitem__

    def counting(weights: loading.StoredTensors, name: str) -> torch.Tensor:
        reads[name] += 1
        return read(weights, name)

    def opening(*args: Any, **options: Any) -> Any:
        opened.append(args)
        return safe_open(*args, **options)

    monkeypatch.setattr(loading.StoredTensors, "__getitem__", counting)
    monkeypatch.setattr(loading, "safe_open", opening)
    fd.load(folder)
    first, *others = load_file(folder / WEIGHTS)
    assert {reads[name] for name in others} == {1}
    assert reads[first] >= 1
    assert len(opened) == 2


def test_a_draft_model_must_read_the_same_tokens(tokenizer, letters):
    loading.require_same_tokens(tokenizer, tokenizer)
    with pytest.raises(
        ValueError, match=r"differs from the target's in \d+ tokens.*'<s>' \(1, 0\)"
    ):
        loading.require_same_tokens(tokenizer, letters)


MAPS = {
    "two layers in files": {"": "cpu", "layers.1": "disk", "layers.3": "disk"},
    "only the layers in memory": {"": "disk", "layers": "cpu"},
    "all in files": {"": "disk"},
}
SELF = fd.SelfDrafter(fd.SkipPlan(attn=[0, 2], mlp=[1]))
SETTINGS = {"sampler": fd.Sampler(temperature=0.0), "max_new_tokens": 12, "eos_token_id": []}


@pytest.mark.parametrize("device_map", MAPS.values(), ids=MAPS)
def test_a_model_partly_in_files_decodes_as_it_does_in_memory(family, saved, text, device_map):
    whole, _ = fd.load(saved(family))
    placed, _ = fd.load(saved(family), device_map=device_map)
    assert placed.embedding.weight.is_meta == (device_map[""] == "disk")
    assert torch.equal(placed(text(2, 11)), whole(text(2, 11)))
    prompts = [[3, 4, 5], [6, 7, 3, 4, 5, 6, 7]]
    for drafter in (None, SELF, fd.ModelDrafter(placed)):
        made = fd.generate(placed, prompts, drafter=drafter, **SETTINGS)
        assert made.tokens == fd.generate(whole, prompts, **SETTINGS).tokens


def test_a_tied_head_can_be_placed_by_itself(reference, tokenizer, tmp_path, text):
    reference("llama-tied", torch.bfloat16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    whole, _ = fd.load(tmp_path)
    for device_map in ({"": "cpu", "head": "disk"}, {"": "cpu", "layers.0": "disk"}):
        placed, _ = fd.load(tmp_path, device_map=device_map)
        assert torch.allclose(placed(text(2, 5)), whole(text(2, 5)), atol=2**-5)


def test_the_files_of_a_placed_model_are_gone_with_it(saved):
    decoder, _ = fd.load(saved("llama"), device_map={"": "cpu", "layers.0": "disk"})
    folder = decoder.files.path
    held = {file.stem for file in folder.glob("*.dat")}
    assert held == {name for name in decoder.state_dict() if name.startswith("layers.0.")}
    del decoder
    gc.collect()
    assert not folder.exists()


def test_on_one_device_a_map_changes_nothing(saved):
    for device_map in ("auto", {"": "cpu"}):
        decoder, _ = fd.load(saved("llama", torch.bfloat16), device_map=device_map)
        assert decoder.placement is None
        assert decoder.is_packed


def test_what_no_longer_fits_into_memory_goes_into_files(saved, text, monkeypatch):
    whole, _ = fd.load(saved("llama"))
    size = sum(tensor.numel() * 4 for tensor in whole.state_dict().values())
    monkeypatch.setattr(accelerate.utils, "get_balanced_memory", lambda *_, **__: {"cpu": size / 2})
    decoder, _ = fd.load(saved("llama"), device_map="auto")
    assert {"cpu", "disk"} == set(decoder.placement.homes.values())
    assert torch.equal(decoder(text(1, 9)), whole(text(1, 9)))


def test_every_part_meets_its_inputs_on_its_own_device(family, saved, monkeypatch):
    """The second device is `meta`: it holds no values, but refuses what lies on the first one.

    Weights lie in their places already; inputs are left to be moved.
    """
    monkeypatch.setattr(accelerate.hooks, "set_module_tensor_to_device", lambda *_, **__: None)
    loaded, _ = fd.load(saved(family))
    decoder = Decoder.without_weights(loaded.config).separate_head()
    first, second = dict.fromkeys(("embedding", "layers.0", "layers.1"), "cpu:0"), "meta"
    placement = Placement(first | dict.fromkeys(("layers.2", "layers.3", "norm", "head"), second))
    held = {"head.weight": loaded.embedding.weight, **loaded.state_dict()}
    state = {name: each.to(placement.home_of(name)) for name, each in held.items()}
    decoder.take(state).place(placement, Files())
    cache = decoder.new_cache(2, 64)
    assert [keys.device.type for keys in cache.keys] == ["cpu", "cpu", "meta", "meta"]
    for counts in ([5, 5], [1, 3], [0, 1]):
        tokens = torch.zeros(2, max(counts), dtype=torch.int64)
        hidden = decoder.hidden(tokens, cache, skip=fd.SkipPlan(attn=[2], mlp=[0]))
        assert decoder.all_logits(hidden).shape == (2, max(counts), loaded.config.vocab_size)
        cache.commit(counts)
    with pytest.raises(RuntimeError, match=r"expected device|same device"):
        decoder.norm.weight + loaded.norm.weight


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": "balanced"}, "unknown device_map 'balanced'"),
        ({"device_map": {"layers.4": "cpu", "": "cpu"}}, "names 'layers.4': the parts are"),
        ({"device_map": {"layers.0.mlp": "disk", "": "cpu"}}, "a layer is placed whole"),
        ({"device_map": {"layers": "cpu"}}, "gives 'embedding' no home"),
        ({"device_map": {"": "elsewhere"}}, "names 'elsewhere', neither 'disk' nor usable"),
        ({"device_map": "auto", "device": "meta"}, "device='meta' and device_map"),
        ({"device_map": "auto", "compile": True}, "compile=True and device_map"),
    ],
    ids=str,
)
def test_a_map_that_cannot_be_followed_is_refused(saved, options, message):
    with pytest.raises(ValueError, match=message):
        fd.load(saved("llama"), **options)


def test_a_placed_model_stays_where_it_is(saved):
    decoder, _ = fd.load(saved("llama"), device_map={"": "cpu", "layers.0": "disk"})
    with pytest.raises(ValueError, match="a placed model cannot be moved"):
        decoder.double()
    with pytest.raises(ValueError, match="a placed model cannot be compiled"):
        decoder.compile_steps()
    with pytest.raises(ValueError, match="the head lies on disk"):
        fd.load(saved("llama"), device_map={"": "disk"})[0].head_rows(torch.tensor([1]))
