"""The shipped pocket models are what their cards say."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import foredraft as fd
from foredraft import paths
from foredraft.files import digest
from foredraft.models.loading import pocket_models
from foredraft.training.bert.pretrain import POCKET_BERT
from foredraft.training.decoder.recipes import RECIPES
from foredraft.training.decoder.ship import rendered
from foredraft.training.llava.pretrain import POCKET_LLAVA

MEGABYTES = {
    "pocket-llama": 35,
    "pocket-gemma2": 35,
    "pocket-gemma2-layerskip": 35,
    "pocket-gemma2-shallow": 11,
    "pocket-llama-draft": 4,
}
SHIPPED = [name for name in pocket_models() if name in RECIPES]
TARGETS = [name for name in SHIPPED if not RECIPES[name].name.endswith("-draft")]
every_model = pytest.mark.parametrize("name", SHIPPED)
every_target = pytest.mark.parametrize("name", TARGETS)


def card(name):
    return json.loads((paths.model(name) / "card.json").read_text(encoding="utf-8"))


@every_model
def test_the_card_is_the_recipe_s_and_the_page_is_the_card_s(name):
    told, recipe = card(name), RECIPES[name]
    assert told["command"] == f"foredraft pretrain {name}"
    assert told["tokens_seen"] >= recipe.tokens
    assert [stage["tokens"] for stage in told["stages"]] == [s.tokens for s in recipe.stages]
    assert (paths.model(name) / "README.md").read_text(encoding="utf-8") == rendered(told)


@every_model
def test_the_card_was_measured_on_these_weights(name):
    told, teacher = card(name), RECIPES[name].teacher
    assert told["weights"] == digest(paths.model(name) / "model.safetensors")
    if teacher is not None:
        assert told["teacher_weights"] == digest(paths.model(teacher) / "model.safetensors")


@every_model
def test_weights_are_bfloat16_and_small_enough(name):
    decoder, _ = fd.load(name)
    assert decoder.dtype == torch.bfloat16
    assert decoder.config.max_positions == 4096
    size = (paths.model(name) / "model.safetensors").stat().st_size
    assert size <= MEGABYTES[name] * 1e6


@every_model
def test_transformers_loads_the_folder_and_agrees(name):
    theirs = AutoModelForCausalLM.from_pretrained(
        paths.model(name), dtype=torch.float32, attn_implementation="eager"
    )
    tokenizer = AutoTokenizer.from_pretrained(paths.model(name))
    ours, same = fd.load(name, dtype=torch.float32)
    text = "def shortest_path(G, source, target):\n    "
    assert tokenizer.encode(text) == same.encode(text)
    ids = torch.tensor([tokenizer.encode(text)])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=5e-5, rtol=0)


@every_target
def test_a_target_clearly_beats_counting(name):
    told = card(name)
    assert told["held_out_package"]["bits_per_byte"] < 0.9 * told["five_gram_bits_per_byte"]


def test_every_recipe_is_shipped():
    assert set(RECIPES) == set(SHIPPED)
    assert {*pocket_models()} - {*RECIPES} <= {POCKET_LLAVA.name, POCKET_BERT.name}


@every_target
def test_long_contexts_do_not_collapse(name):
    """Late in a window of 1,024 the loss is no worse than early in it, where less is seen."""
    positions = card(name)["held_out_package"]["by_position"]
    assert positions["512-1023"] < positions["32-127"]
    assert positions["512-1023"] < 1.05 * positions["128-255"]


def test_the_draft_is_clearly_worse_than_its_target_and_mostly_agrees_with_it():
    draft, target = card("pocket-llama-draft"), card("pocket-llama")
    for text in ("held_out_package", "held_out_files"):
        assert draft[text]["nats_per_token"] > target[text]["nats_per_token"] + 0.14
    overlaps = draft["overlap_with_teacher"]
    assert all(overlap >= 0.70 for texts in overlaps.values() for overlap in texts.values())


def test_all_pocket_models_share_one_tokenizer():
    tokenizers = {(paths.model(name) / "tokenizer.json").read_bytes() for name in SHIPPED}
    assert len(tokenizers) == 1


def test_a_held_out_continuation_is_likelier_than_the_same_tokens_shuffled():
    """The weights have learnt order, not only which tokens are frequent."""
    decoder, tokenizer = fd.load("pocket-llama", dtype=torch.float32)
    text = torch.tensor(tokenizer.encode("for node in G.nodes():\n    if node not in visited:\n"))
    shuffled = text[torch.randperm(len(text), generator=torch.Generator().manual_seed(0))]
    losses = [
        torch.nn.functional.cross_entropy(decoder(ids[None, :-1])[0], ids[1:]).item()
        for ids in (text, shuffled)
    ]
    assert losses[0] < losses[1] - 1
