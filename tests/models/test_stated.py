"""A config.json that says everything is read as transformers reads it, and no other is."""

import json
import subprocess
import sys

import pytest
from transformers import AutoConfig

from foredraft import paths
from foredraft.models.config import DecoderConfig
from foredraft.models.stated import stated

SAID = {
    name: json.loads((paths.model(name) / "config.json").read_text(encoding="utf-8"))
    for name in ("pocket-llama", "pocket-gemma2")
}
CHANGES = [
    {"num_key_value_heads": 1},
    {"head_dim": 16},
    {"tie_word_embeddings": False},
    {"attention_bias": True},
    {"eos_token_id": None},
    {"eos_token_id": 7},
    {"rms_norm_eps": 1e-3},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000}},
    {"initializer_range": 0.5},
    {"max_position_embeddings": 77},
]
GEMMA2 = [
    {"attn_logit_softcapping": None},
    {"final_logit_softcapping": 5.0},
    {"sliding_window": 17},
    {"layer_types": ["full_attention"] * 12},
    {"query_pre_attn_scalar": 100},
]
CASES = [(name, change) for name in SAID for change in [{}, *CHANGES]]
CASES += [("pocket-gemma2", change) for change in GEMMA2]


def by_transformers(fields: dict, folder) -> DecoderConfig:
    (folder / "config.json").write_text(json.dumps(fields))
    return DecoderConfig.from_hf(AutoConfig.from_pretrained(folder))


@pytest.mark.parametrize(("name", "change"), CASES)
def test_what_is_stated_is_read_as_transformers_reads_it(name, change, tmp_path):
    fields = SAID[name] | change
    config = stated(fields)
    assert config is not None
    assert DecoderConfig.from_hf(config) == by_transformers(fields, tmp_path)


@pytest.mark.parametrize("name", SAID)
def test_a_file_that_leaves_anything_out_is_not_read(name):
    """Or the reading would be a guess; what is never read may be missing."""
    read = [key for key in SAID[name] if stated({**SAID[name], key: object()}) is None]
    assert len(read) > 14
    for key in read:
        rest = {other: value for other, value in SAID[name].items() if other != key}
        assert stated(rest) is None


@pytest.mark.parametrize("name", SAID)
@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "320"},
        {"hidden_size": -320},
        {"num_hidden_layers": True},
        {"num_attention_heads": 3},
        {"rms_norm_eps": 0},
        {"eos_token_id": [1, "</s>"]},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0}},
        {"rope_parameters": None},
        {"initializer_range": 2.0},
        {"model_type": "qwen2"},
        {"tie_word_embeddings": "yes"},
        {"layer_types": ["full_attention"]},
        {"layer_types": ["no_attention"] * 12},
        {"layer_types": None},
        {"layer_types": "full_attention"},
    ],
)
def test_what_only_transformers_can_judge_is_left_to_it(name, change):
    assert stated(SAID[name] | change) is None


def test_a_first_token_needs_neither_the_compiler_nor_the_engine_of_transformers():
    """Each takes longer to import than torch."""
    code = (
        "import sys, foredraft as fd\n"
        "model, tokenizer = fd.load('pocket-llama')\n"
        "fd.generate(model, [[5, 6]], sampler=fd.Sampler(), max_new_tokens=1)\n"
        "names = 'torch._dynamo', 'transformers.activations', 'transformers.core_model_loading'\n"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
