"""Plain autoregressive decoding: the reference's tokens, for ragged batches, with exact ends."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

import foredraft as fd
from foredraft import sampling
from foredraft.decoding.prefill import prefill
from foredraft.decoding.self_draft import SelfDrafter
from foredraft.models.cache import sent
from tests.decoding.conftest import Waits

VOCAB = 61
GREEDY = fd.Sampler(temperature=0.0)
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "eos_token_id": 7,
    "pad_token_id": 0,
}
CONFIGS = {"llama": LlamaConfig(**SIZES), "gemma2": Gemma2Config(**SIZES, sliding_window=6)}


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request):
    """A random transformers model with weights large enough for decided argmaxes, and ours."""
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(
        CONFIGS[request.param], dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return theirs, fd.Decoder.from_hf(theirs)


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(8, VOCAB, (n,), generator=generator).tolist() for n in (1, 5, 17, 9)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def reference(theirs, prompt, n, **options):
    ids = torch.tensor([prompt])
    made = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False, **options
    )
    return made[0, len(prompt) :].tolist()


def test_greedy_decoding_of_a_ragged_batch_equals_transformers(pair, prompts):
    theirs, ours = pair
    made = fd.generate(ours, prompts, sampler=GREEDY, max_new_tokens=30)
    assert made.tokens == [reference(theirs, prompt, 30) for prompt in prompts]


def test_the_repetition_penalty_sees_each_row_s_own_prefix(pair, prompts):
    theirs, ours = pair
    sampler = fd.Sampler(temperature=0.0, repetition_penalty=1.7)
    made = fd.generate(ours, prompts, sampler=sampler, max_new_tokens=20, eos_token_id=[])
    wanted = [
        reference(theirs, prompt, 20, repetition_penalty=1.7, eos_token_id=VOCAB + 1)
        for prompt in prompts
    ]
    assert made.tokens == wanted


def test_a_tensor_of_prompts_is_a_batch_of_rows(pair):
    _, ours = pair
    tensor = torch.randint(8, VOCAB, (3, 6), generator=generator())
    from_tensor = fd.generate(ours, tensor, sampler=GREEDY, max_new_tokens=5, drafter=None)
    from_lists = fd.generate(ours, tensor.tolist(), sampler=GREEDY, max_new_tokens=5)
    assert from_tensor.tokens == from_lists.tokens


@pytest.mark.parametrize("n", [0, 1, 2, 13])
def test_the_budget_is_exact(pair, prompts, n):
    _, ours = pair
    made = fd.generate(ours, prompts, sampler=GREEDY, max_new_tokens=n, eos_token_id=[])
    assert [len(tokens) for tokens in made.tokens] == [n] * len(prompts)


def test_a_row_ends_after_its_first_end_of_text_token_and_others_go_on(pair, prompts):
    _, ours = pair
    free = fd.generate(ours, prompts, sampler=GREEDY, max_new_tokens=25, eos_token_id=[]).tokens
    ends = [free[0][4], free[2][9]]
    made = fd.generate(ours, prompts, sampler=GREEDY, max_new_tokens=25, eos_token_id=ends).tokens
    for tokens, whole in zip(made, free, strict=True):
        cut = next((i + 1 for i, token in enumerate(whole) if token in ends), len(whole))
        assert tokens == whole[:cut]
    assert min(map(len, made)) < max(map(len, made))


def test_the_model_s_own_end_of_text_token_is_the_default(pair, prompts):
    _, ours = pair
    own = fd.generate(ours, prompts, sampler=GREEDY, max_new_tokens=30).tokens
    given = fd.generate(ours, prompts, sampler=GREEDY, max_new_tokens=30, eos_token_id=7).tokens
    assert own == given


def test_sampling_repeats_with_the_same_generator_and_differs_with_another(pair, prompts):
    _, ours = pair
    first, again, other = (
        fd.generate(
            ours, prompts, sampler=fd.Sampler(), max_new_tokens=20, generator=generator(seed)
        ).tokens
        for seed in (3, 3, 4)
    )
    assert first == again != other


def test_sampled_first_tokens_follow_the_sampler_s_law(pair):
    """χ² at a false-alarm probability of 1e-6, with a negative control that must fail."""
    from scipy.stats import chisquare

    _, ours = pair
    prompt, rows = [9, 11, 12], 4000
    sampler = fd.Sampler(temperature=0.7, top_k=8)
    made = fd.generate(
        ours, [prompt] * rows, sampler=sampler, max_new_tokens=1, generator=generator()
    )
    counts = torch.bincount(torch.tensor([t for (t,) in made.tokens]), minlength=VOCAB).double()
    law = sampler.probs(ours(torch.tensor([prompt]))[0, -1]).double()
    possible = law > 0
    assert counts[~possible].sum() == 0
    expected = (law[possible] / law[possible].sum() * rows).numpy()
    assert chisquare(counts[possible].numpy(), expected).pvalue > 1e-6
    biased = expected * torch.linspace(0.7, 1.3, len(expected)).numpy()
    biased *= rows / biased.sum()
    assert chisquare(counts[possible].numpy(), biased).pvalue < 1e-6


def test_rounds_are_reported_as_they_are_committed_and_fill_the_trace(pair, prompts):
    _, ours = pair
    seen = []
    made = fd.generate(
        ours, prompts, sampler=GREEDY, max_new_tokens=12, eos_token_id=[], on_round=seen.append
    )
    assert tuple(seen) == made.trace.rounds
    streamed = [[t for each in seen for t in each.rows[row].tokens] for row in range(len(prompts))]
    assert streamed == made.tokens
    table = made.trace.table()
    assert list(table.columns) == [
        *("row", "round", "drafted", "accepted", "emitted", "kind", "gate_open", "confidence")
    ]
    assert len(table) == 12 * len(prompts)
    assert made.tokens_per_target_pass == 1
    assert math.isnan(made.acceptance_rate)


def test_confidence_is_the_plain_softmax_s_probability_whatever_the_sampler(pair):
    _, ours = pair
    prompt = [9, 10, 11]
    made = fd.generate(ours, [prompt], sampler=GREEDY, max_new_tokens=4, eos_token_id=[])
    text = torch.tensor([prompt + made.tokens[0]])
    probs = ours(text)[0, len(prompt) - 1 : -1].softmax(-1)
    wanted = probs.gather(-1, text[0, len(prompt) :, None]).squeeze(-1)
    got = torch.tensor(made.trace.table()["confidence"].to_numpy(), dtype=torch.float32)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("looks", "told"), [(True, "logits are NaN at"), (False, "round 0 gave logits with NaN")]
)
def test_logits_without_a_finite_value_raise_at_once_or_at_the_commit(
    pair, looks, told, monkeypatch
):
    """At the commit where a look at values would wait for the device."""
    theirs, _ = pair
    broken = fd.Decoder.from_hf(theirs)
    broken.norm.weight = torch.nn.Parameter(torch.full_like(broken.norm.weight, torch.nan))
    monkeypatch.setattr(sampling, "_may_look", lambda tensor: looks)
    with pytest.raises(ValueError, match=told):
        fd.generate(broken, [[1, 2]], sampler=fd.Sampler(), max_new_tokens=2)


NUMBERS = torch.arange(5)
ASKS = {
    "a list": lambda: NUMBERS.tolist(),
    "a number": lambda: NUMBERS[2].item(),
    "a whole number": lambda: int(NUMBERS.max()),
    "a fraction": lambda: float(NUMBERS[1]),
    "a condition": lambda: bool((NUMBERS > 1).any()),
    "a length": lambda: NUMBERS[: NUMBERS[2]],
    "a mask": lambda: NUMBERS[NUMBERS > 2],
    "places": lambda: torch.where(NUMBERS > 1),
    "a copy": lambda: NUMBERS.cpu(),
    "numbers sent": lambda: torch.tensor([1, 2]),
    "places sent": lambda: NUMBERS[[1, 2]],
}
KEEPS = {
    "a choice": lambda: torch.where(NUMBERS > 1, NUMBERS, -1),
    "a sum": lambda: NUMBERS.cumsum(0).amax(),
    "a gather": lambda: NUMBERS[NUMBERS],
    "numbers sent without waiting": lambda: sent([1, 2], NUMBERS.device),
}


@pytest.mark.parametrize(
    ("call", "waits"),
    [*((call, 1) for call in ASKS.values()), *((call, 0) for call in KEEPS.values())],
    ids=[*ASKS, *KEEPS],
)
@pytest.mark.parametrize("infers", [True, False], ids=["inference mode", "no mode"])
def test_a_wait_for_the_device_is_counted_however_it_comes_about(call, waits, infers):
    with Waits() as seen, torch.inference_mode(infers):
        call()
    assert seen.asks + seen.sends == waits


def test_prompts_are_left_as_they_were(pair):
    _, ours = pair
    given = [[9, 10], [11]]
    fd.generate(ours, given, sampler=GREEDY, max_new_tokens=3)
    assert given == [[9, 10], [11]]


@pytest.mark.parametrize(
    ("prompts", "n", "told"),
    [
        ([[]], 4, "prompt 0 is empty"),
        ([[1], [VOCAB]], 4, "outside the vocabulary of 61"),
        ([[-1]], 4, "outside the vocabulary"),
        ([[1]], -1, "negative"),
        ([[1] * 120], 20, "128 positions"),
    ],
)
def test_bad_input_is_refused_with_the_reason(pair, prompts, n, told):
    _, ours = pair
    with pytest.raises(ValueError, match=told):
        fd.generate(ours, prompts, sampler=GREEDY, max_new_tokens=n)


def test_no_prompts_give_no_tokens_and_an_empty_table(pair):
    _, ours = pair
    made = fd.generate(ours, [], sampler=GREEDY, max_new_tokens=3)
    assert made.tokens == []
    assert len(made.trace.table()) == 0
    assert "confidence" in made.trace.table()


@pytest.mark.parametrize("prompts", [torch.tensor([1, 2]), torch.tensor([[1.0, 2.0]])])
def test_a_tensor_that_is_no_batch_of_ids_is_refused(pair, prompts):
    _, ours = pair
    with pytest.raises(ValueError, match=r"integer token ids \[batch, seq\]"):
        fd.generate(ours, prompts, sampler=GREEDY, max_new_tokens=3)


def test_a_generator_of_another_device_is_refused(pair):
    theirs, _ = pair
    elsewhere = fd.Decoder.from_hf(theirs).to("meta")
    with pytest.raises(ValueError, match="the generator is on cpu, the model on meta"):
        fd.generate(elsewhere, [[1]], sampler=GREEDY, max_new_tokens=1, generator=generator())


@pytest.mark.parametrize("drafter", [None, "plan"])
def test_prompts_read_beforehand_give_the_same_rounds(pair, prompts, drafter):
    _, ours = pair
    settings = {
        "sampler": fd.Sampler(),
        "max_new_tokens": 9,
        "drafter": drafter and SelfDrafter(fd.SkipPlan(mlp=[1])),
        "eos_token_id": [],
    }
    plain = fd.generate(ours, prompts, generator=generator(), **settings)
    known = prefill(ours, prompts)
    for _ in range(2):
        again = fd.generate(ours, prompts, generator=generator(), prefilled=known, **settings)
        assert again == plain


def test_a_prefill_of_other_prompts_is_refused(pair, prompts):
    _, ours = pair
    known = prefill(ours, prompts)
    with pytest.raises(ValueError, match=r"prefill is of 4 prompts and not of these 3"):
        fd.generate(ours, prompts[1:], sampler=GREEDY, max_new_tokens=2, prefilled=known)
