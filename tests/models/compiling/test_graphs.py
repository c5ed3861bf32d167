"""Compiled steps give the eager tokens, compile once for all plans and lengths, and stay bounded.

What torch.compile makes is tried in a process of its own: it cannot look into functions whose
types are checked as they run, as those of the other tests are.
"""

import gc
import json
import subprocess
import sys
from functools import partial
from itertools import combinations, islice, product

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import Gemma2Config, LlamaConfig

import foredraft as fd
from foredraft.models.cache import FRONT, fitting
from foredraft.models.compiling import graphs
from foredraft.models.compiling.graphs import MOST_CAPTURED, MOST_SPARE, CompiledSteps
from foredraft.models.config import DecoderConfig

VOCAB, WINDOW = 61, 20
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "eos_token_id": None,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "gemma2": Gemma2Config(**SIZES, sliding_window=WINDOW),
}
PROMPTS = [[3, 4, 5] * 35, [6, 7, 3, 8] * 24, [9] * 110]
SOME = [layers for n in range(4) for layers in combinations(range(3), n)]
PLANS = [fd.SkipPlan(attn=attn, mlp=mlp) for attn, mlp in islice(product(SOME, SOME), 1, 60, 3)]
MODES = {"greedy": fd.Sampler(temperature=0.0), "sampled": fd.Sampler(temperature=1.5)}


def random_decoder(family: str) -> fd.Decoder:
    """A decoder whose argmaxes are decided."""
    decoder = fd.Decoder(DecoderConfig.from_hf(CONFIGS[family]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * (0.3 if parameter.dim() == 1 else parameter.shape[1] ** -0.5))
        decoder.embedding.weight.mul_(1.5)
    return decoder.eval().requires_grad_(False)


def drafters(decoder: fd.Decoder) -> dict[str, object]:
    return {
        "autoregressive": None,
        "a plan": fd.SelfDrafter(fd.SkipPlan(attn=[0], mlp=[2])),
        "an exit": fd.SelfDrafter(fd.SkipPlan.early_exit(1, 3)),
        "a model": fd.ModelDrafter(decoder, fd.Sampler(temperature=2.0)),
    }


def made(decoder: fd.Decoder, prompts, drafter, sampler: fd.Sampler) -> fd.Generation:
    """Forty tokens, with which prompts of a hundred outgrow the first front of the cache."""
    return fd.generate(
        decoder,
        prompts,
        sampler=sampler,
        max_new_tokens=40,
        drafter=drafter,
        generator=torch.Generator().manual_seed(1),
        eos_token_id=[],
    )


def same_texts(family: str, prompts, ways: int, modes=MODES) -> dict[str, bool]:
    """Whether the first ways to decode give the same tokens compiled and not."""
    eager, steps = random_decoder(family), random_decoder(family)
    steps.steps = CompiledSteps()
    names = list(drafters(eager))[:ways]
    return {
        f"{family}, {name}, {mode}": made(eager, prompts, drafters(eager)[name], sampler).tokens
        == made(steps, prompts, drafters(steps)[name], sampler).tokens
        for name in names
        for mode, sampler in modes.items()
    }


def graphs_of_plans() -> dict[str, int]:
    """Count the graphs after three plans, then those after twenty others, and the rounds made."""
    decoder = random_decoder("gemma2")
    decoder.steps = CompiledSteps()
    counters.clear()

    def decode(plan: fd.SkipPlan, length: int) -> int:
        drafter = fd.SelfDrafter(plan, reuse=False)
        return len(made(decoder, [[5] * length], drafter, MODES["greedy"]).trace.rounds)

    for plan in (fd.SkipPlan(attn=[0, 1]), fd.SkipPlan(mlp=[0, 1]), fd.SkipPlan(mlp=[0])):
        decode(plan, 110)
    first = counters["stats"]["unique_graphs"]
    rounds = sum(decode(plan, 1 + 25 * i) for i, plan in enumerate(PLANS))
    return {"first": first, "last": counters["stats"]["unique_graphs"], "rounds": rounds}


def main() -> None:
    """Say what was found, as JSON: with a compiler that only traces, then with the real one."""
    whole = torch.compile
    torch.compile = partial(whole, backend="eager")
    found = {"graphs": graphs_of_plans()}
    found["traced"] = {k: v for f in CONFIGS for k, v in same_texts(f, PROMPTS, 4).items()}
    torch.compile = whole
    found["compiled"] = same_texts("llama", [[3, 4, 5]], 2, {"greedy": MODES["greedy"]})
    print(json.dumps(found))  # noqa: T201


@pytest.fixture(scope="module")
def found() -> dict:
    """What `main` says."""
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_compiled_steps_give_the_eager_tokens(found):
    assert len(found["compiled"]) == 2
    assert len(found["traced"]) == 2 * 4 * 2
    everything = {**found["traced"], **found["compiled"]}
    assert [name for name, same in everything.items() if not same] == []


def test_twenty_plans_and_two_hundred_rounds_compile_nothing_anew(found):
    """On texts of two to five hundred tokens, whose fronts have 128 to 1,024 slots."""
    assert len(set(PLANS)) == 20
    assert found["graphs"]["rounds"] >= 200
    assert found["graphs"]["last"] == found["graphs"]["first"]
    both, alone, heads = 2 * 2 * 2, 2 * 2 * 2, 2  # windows, tokens or parts, fronts
    assert found["graphs"]["first"] <= both + alone + heads


def test_fronts_are_few_and_hold_what_is_asked_for():
    sizes = {fitting(n) for n in range(1, 10_000)}
    assert sizes == {FRONT << i for i in range(8)}
    assert all(n <= fitting(n) < max(2 * n, FRONT + 1) for n in range(1, 10_000))


@pytest.fixture
def decoder() -> fd.Decoder:
    decoder = random_decoder("llama")
    decoder.steps = CompiledSteps()
    return decoder


def test_the_storage_of_a_cache_that_is_gone_serves_the_next_one_clean(decoder):
    cache = decoder.new_cache(2, 100, spare=3)
    cache.keys[0].fill_(torch.nan)
    cache.graphs["a step"] = torch.neg
    place = cache.keys[0].data_ptr()
    del cache
    again = decoder.new_cache(2, 90, spare=7)
    assert again.keys[0].data_ptr() == place
    assert not any(keys.any() for keys in again.keys)
    assert again.graphs == {"a step": torch.neg}
    assert decoder.new_cache(2, 100).keys[0].data_ptr() != place


def test_rows_that_leave_take_no_graphs_along(decoder):
    cache = decoder.new_cache(2, 100)
    cache.graphs["a step"] = torch.neg
    cache.keep_rows([1])
    assert not cache.graphs


def test_few_storages_wait_for_another_cache(decoder):
    for slots in range(1, MOST_SPARE + 4):
        decoder.new_cache(slots, 100)
    gc.collect()
    held = [storage for each in decoder.steps._spare.values() for storage in each]
    assert len(held) == MOST_SPARE


def test_a_step_is_captured_once_and_the_least_used_makes_room(decoder, monkeypatch):
    made = []

    def capture(run, inputs):
        made.append(run.key)
        return lambda *inputs: run.key

    monkeypatch.setattr(graphs, "_Captured", capture)
    cache = decoder.new_cache(1, 100)
    runs = [
        graphs._Pass(decoder.steps, decoder, cache, fd.SkipPlan(), n_new, False)
        for n_new in range(1, MOST_CAPTURED + 2)
    ]
    for run in (*runs[:-1], runs[0], runs[-1], runs[0]):
        assert graphs._replayed(run, cache, ())() == run.key
    assert made == [run.key for run in runs]
    assert len(cache.graphs) == MOST_CAPTURED
    assert runs[1].key not in cache.graphs


def test_a_batch_that_is_not_the_caches_is_refused(decoder):
    cache = decoder.new_cache(2, 100)
    cache.commit(3)
    with pytest.raises(ValueError, match="3 rows of tokens for a cache of 2 rows"):
        decoder(torch.zeros(3, 1, dtype=torch.int64), cache)


def test_a_prefill_is_not_compiled(decoder, monkeypatch):
    monkeypatch.setattr(CompiledSteps, "hidden", lambda *_: pytest.fail("compiled"))
    tokens = torch.zeros(1, 40, dtype=torch.int64)
    assert torch.equal(
        decoder.hidden(tokens, decoder.new_cache(1, 100)), random_decoder("llama").hidden(tokens)
    )


if __name__ == "__main__":
    main()
