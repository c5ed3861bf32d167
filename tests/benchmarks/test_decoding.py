"""The contest of whole generations: who takes part, and what each row of its table says."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import foredraft as fd
from foredraft.benchmarks.decoding import Contest, decoding_benchmark, memory_bandwidth

NEW_TOKENS = 12


def tiny(seed: int, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).to(dtype).eval()


@pytest.fixture(scope="module")
def contest() -> Contest:
    theirs, their_draft = tiny(0), tiny(1)
    return Contest(
        *(fd.Decoder.from_hf(theirs), fd.Decoder.from_hf(their_draft), theirs, their_draft),
        prompts=[[1 + i, 2, 3, 4 + i] for i in range(3)],
        new_tokens=NEW_TOKENS,
        length=2,
        lengths=(1, 2),
        batch=2,
    )


@pytest.fixture(scope="module")
def table(contest):
    return decoding_benchmark(contest)


def test_every_strategy_meets_its_counterpart_on_the_same_prompts(table):
    found = set(table[["strategy", "library", "batch"]].itertuples(index=False, name=None))
    for strategy in ("autoregressive", "draft model", "prompt lookup"):
        assert {(strategy, "foredraft", 1), (strategy, "transformers", 1)} <= found
    assert {("autoregressive", "foredraft", 2), ("draft model", "foredraft", 2)} <= found
    assert set(table["sampler"]) == {"greedy", "temperature 1"}
    assert (table["n"] == 3).all()


def test_our_own_autoregressive_decoding_is_the_measure_of_all_others(table):
    plain = table.query("strategy == 'autoregressive' and library == 'foredraft' and batch == 1")
    assert (plain[["speedup_median", "speedup_min", "speedup_max"]] == 1).all(axis=None)
    assert (table["speedup_median"] > 0).all()


def test_a_prediction_stands_beside_each_draft_length(table):
    drafted = table.query("strategy == 'draft model' and library == 'foredraft' and batch == 1")
    assert sorted(drafted["length"].unique()) == [1, 2]
    assert drafted[["predicted", "residual", "draft_ms", "verify_ms"]].notna().all(axis=None)
    others = table.drop(drafted.index)
    assert others["predicted"].isna().all()


def test_acceptance_is_known_of_our_own_arms_alone(table):
    drafted = table.query("library == 'foredraft' and strategy == 'draft model'")
    assert drafted["acceptance"].between(0, 1).all()
    assert table.query("library == 'transformers'")["acceptance"].isna().all()


def test_models_of_different_precision_are_not_compared(contest):
    with pytest.raises(ValueError, match="one dtype"):
        replace(contest, theirs=tiny(0, torch.bfloat16))


def test_a_batch_needs_as_many_prompts(contest):
    with pytest.raises(ValueError, match="3 prompts for a batch of 4"):
        replace(contest, batch=4)


def test_bandwidth_is_bytes_by_seconds():
    ticks = iter(range(100))
    found = memory_bandwidth("cpu", megabytes=1, clock=lambda: float(next(ticks)))
    assert math.isclose(found, 2**20)
