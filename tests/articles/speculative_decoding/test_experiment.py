"""Article 02's measures mean what their names say."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from foredraft.analysis.acceptance import (
    acceptance_by_position,
    acceptance_rate,
    logits_after,
    tokens_per_pass,
)
from foredraft.analysis.statistics import interval, ratios
from foredraft.articles.speculative_decoding import experiment, policies
from foredraft.decoding import theory
from foredraft.prompts import Prompt, chat_ids
from foredraft.repro import claims as results
from foredraft.repro import params
from tests.articles.conftest import cached, edit, letters, only, template_within
from tests.decoding.conftest import tiny

TEMPLATE = (
    "<s>{% for message in messages %}<u> {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
SPECIAL = {"bos_token": "<s>", "additional_special_tokens": ["<u>", "<a>"]}
COSTS = theory.Costs(target=10.0, draft=1.0, verify={1: 10.0, 2: 12.0, 3: 14.0}, other=1.0)


@pytest.fixture
def tokenizer():
    words = {"<s>": 0, "<u>": 1, "<a>": 2, "why": 3, "?": 4}
    model = Tokenizer(models.WordLevel(words, unk_token="?"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=model, chat_template=TEMPLATE, **SPECIAL)


@pytest.fixture
def chosen():
    sizes = {"length": 2, "lengths": [1, 2, 3], "temperatures": [1.0], "max_new_tokens": 9}
    return params.load("speculative_decoding", {"profile": "smoke", "samples": 2, **sizes})


@pytest.fixture
def pair(tokenizer):
    target, draft = (tiny("llama", 5, seed, torch.float32) for seed in (3, 4))
    return experiment.Pair(target, draft, tokenizer)


@pytest.fixture
def asked():
    return [Prompt("short", (0, 1)), Prompt("long", (0, 2, 3, 1, 4))]


def rounds(*lines):
    """Rounds as (text, length, drafted, accepted)."""
    frame = pd.DataFrame(lines, columns=["text", "length", "drafted", "accepted"])
    return frame.assign(one=1, kind="code", temperature=1.0)


def test_a_question_is_put_with_one_bos_and_the_turn_of_the_answer(tokenizer):
    ids = chat_ids(tokenizer, "why ?")
    assert ids == (0, 1, 3, 4, 2)
    assert tokenizer.encode(tokenizer.decode(ids)) == [0, *ids], "encoded again there were two"


def test_every_sample_of_every_prompt_has_its_rounds_and_its_text(pair, asked, chosen):
    run = experiment.speculate(pair, asked, chosen)
    assert [text[: len(p.ids)] for text, p in zip(run.texts[::2], asked, strict=True)] == [
        list(p.ids) for p in asked
    ]
    assert [len(text) - start for text, start in zip(run.texts, run.starts, strict=True)] == [9] * 4
    assert set(run.rounds["text"]) == {0, 1, 2, 3}
    assert set(run.rounds["kind"]) == {"short", "long"}
    assert (run.rounds["drafted"] > 0).all()


def test_acceptance_is_that_of_the_sums_and_its_interval_that_of_the_texts():
    table = acceptance_rate(rounds((0, 2, 2, 2), (0, 2, 2, 1), (1, 2, 1, 0)))
    (row,) = table.to_dict("records")
    assert row["mean"] == pytest.approx(3 / 5)
    assert (row["low"], row["high"], row["n"]) == (0, 3 / 4, 2)


def test_one_text_has_no_spread():
    found = interval(np.array([[3.0, 4.0]]))
    assert (found["mean"], found["low"], found["high"]) == (0.75, 0.75, 0.75)


def test_tokens_a_pass_are_those_of_full_drafts():
    table = tokens_per_pass(rounds((0, 2, 2, 1), (0, 2, 1, 1), (0, 2, 2, 2)))
    assert table["mean"].tolist() == [pytest.approx(2.5)]


def test_acceptance_by_position_is_the_theory_s():
    table = rounds((0, 3, 3, 3), (0, 3, 3, 1), (1, 3, 2, 2), (1, 3, 3, 0), (1, 3, 1, 1))
    found = acceptance_by_position(table).sort_values("position")["mean"].tolist()
    assert found == pytest.approx(theory.position_acceptances(table))


def test_alphas_by_position_foretell_the_tokens_of_the_drafts_they_come_from():
    table = rounds(*[(i % 3, 3, 3, n) for i, n in enumerate((0, 1, 1, 3, 3, 2, 0))])
    (row,) = experiment.tokens_foretold(table).to_dict("records")
    assert row["by_position"] == pytest.approx(row["mean"])


def test_logits_after_a_text_do_not_depend_on_its_neighbours(pair):
    texts = [[0, 1, 2], [4, 3, 2, 1, 0, 1]]
    together = logits_after(pair.target, texts, 2)
    for text, logits in zip(texts, together, strict=True):
        torch.testing.assert_close(logits, pair.target(torch.tensor([text]))[0, -2:])


def test_a_model_that_drafts_for_itself_overlaps_itself(pair, asked, chosen):
    alone = experiment.Pair(pair.target, pair.target, pair.tokenizer)
    run = experiment.speculate(alone, asked, chosen)
    table = experiment.overlaps(alone, run, chosen)
    assert table["overlap"].to_numpy() == pytest.approx(1, abs=1e-5)
    assert (table["favourite"] <= table["overlap"] + 1e-5).all()
    assert len(table) == 4 * 9
    assert acceptance_rate(run.rounds)["mean"].tolist() == [1.0]


def test_block_verification_expects_as_much_of_every_draft_and_the_same_of_one_token(
    pair, asked, chosen
):
    run = experiment.speculate(pair, asked, chosen)
    table = experiment.rules_compared(pair, run, chosen)
    assert (table["gain"] > -1e-6).all()
    assert table.loc[table["length"] == 1, "gain"].to_numpy() == pytest.approx(0, abs=1e-6)
    assert (table[["token", "block"]] <= table["length"].to_numpy()[:, None] + 1 + 1e-6).all().all()
    shares = ratios(table, ["length"], "gain", "token")
    assert shares["length"].tolist() == [1, 2, 3]
    assert shares["n"].tolist() == [4] * 3


def test_greedy_texts_do_not_part_in_float32(pair, asked, chosen, monkeypatch):
    monkeypatch.setattr(experiment, "load_pair", lambda *_: pair)
    monkeypatch.setattr(experiment, "SPARSE", 1)
    table = experiment.divergences(asked, chosen)
    assert set(table["dtype"]) == {"float32", "bfloat16"}
    assert table["position"].tolist() == [-1] * 4
    assert table["margin"].isna().all()


def test_the_margin_is_counted_in_units_of_the_last_place():
    logits = torch.tensor([2.0, 2.0 + 2**-6, -1.0], dtype=torch.bfloat16)
    assert experiment._margin(logits) == pytest.approx(2**-6 / (2.015625 * 2**-7), rel=1e-3)


def test_the_oracle_is_at_least_as_fast_as_any_fixed_length_that_accepts_the_same():
    table = rounds(*[(i, 3, 3, n) for i, n in enumerate((0, 1, 3, 3, 2, 0, 1))])
    (row,) = policies.policies(table, "kind", 3, COSTS).to_dict("records")
    assert row["fixed"] <= row["best"] <= row["oracle"]
    lengths = policies.lengths_compared(table, "kind", COSTS)
    assert lengths["length"].tolist() == [0, 1, 2, 3]
    assert row["best"] == lengths["speedup"].max()


def test_an_oracle_that_never_drafts_gains_nothing():
    assert policies.oracle_speedup(rounds((0, 3, 3, 0)), COSTS) == 1


def test_the_surface_never_falls_below_one_and_rises_only_above_the_diagonal():
    grid = policies.surface(points=8)
    assert (grid["speedup"] >= 1).all()
    assert (grid.loc[grid["acceptance"] <= grid["cost"], "length"] == 0).all()
    assert (grid.loc[grid["acceptance"] > grid["cost"] + 1e-9, "speedup"] > 1).all()


def test_a_pair_that_was_not_recorded_costs_what_its_weights_do(pair, chosen):
    other = chosen.model_copy(update={"model": "elsewhere"})
    costs = experiment.costs(pair, other, pd.DataFrame())
    assert costs.draft == experiment.weight_ratio(pair) == 1
    assert costs.verify == {1: 1.0, 2: 1.0, 3: 1.0}


def test_recorded_costs_cover_every_length_up_to_the_longest_that_was_timed(pair):
    lines = [("temperature 1", "draft model", "foredraft", 1, k, 9.0) for k in (1, 4)]
    table = recorded(*lines).assign(target_ms=10.0, draft_ms=2.0, verify_ms=[11, 20])
    costs = experiment.costs(pair, params.load("speculative_decoding"), table)
    assert costs.verify == pytest.approx({1: 11, 2: 14, 3: 17, 4: 20})
    assert (costs.target, costs.draft, costs.other) == (10, 2, 0)


def test_a_fixed_length_beyond_the_longest_draft_is_that():
    table = rounds(*[(i, 3, 3, n) for i, n in enumerate((0, 1, 3, 3))])
    (row,) = policies.policies(table, "kind", 12, COSTS).to_dict("records")
    assert row["fixed_length"] == 3


def test_weights_that_cannot_be_had_are_told_with_what_runs_instead(chosen):
    nowhere = chosen.model_copy(update={"draft_model": "pocket-llama-daft"})
    with pytest.raises(ValueError, match=r"pocket-llama-daft.*profile=pocket"):
        experiment.load_pair(nowhere)


def recorded(*lines):
    """Recorded arms as (sampler, strategy, library, batch, length, tokens a second)."""
    names = ["sampler", "strategy", "library", "batch", "length", "tokens_per_second_median"]
    table = pd.DataFrame(lines, columns=names)
    speedups = {f"speedup_{name}": table[names[-1]] / 10 for name in ("median", "min", "max")}
    return table.assign(**speedups, speedup_iqr=0.2, n=4)


@pytest.fixture
def arms():
    return recorded(
        *(
            (sampler, "draft model", library, 1, length, speed)
            for sampler in ("greedy", "temperature 1")
            for library, length, speed in (
                ("foredraft", 2, 15.0),
                ("foredraft", 4, 18.0),
                ("transformers", 4, 9.0),
            )
        ),
        ("temperature 1", "draft model, block", "foredraft", 1, 3, 19.0),
        ("greedy", "autoregressive", "foredraft", 8, 0, 40.0),
        ("greedy", "draft model", "foredraft", 8, 4, 50.0),
    )


def test_the_fastest_length_of_each_way_to_decode_is_taken(arms):
    found = experiment.fastest_arms(arms, library="foredraft")
    assert found["length"].tolist() == [4, 4, 3]
    assert len(experiment.fastest_arms(arms, batch=None)) == 7


def test_the_gain_of_a_batch_is_over_plain_decoding_of_that_batch(arms):
    gains = experiment.gain_by_batch(arms[arms["batch"] == 8])
    assert gains["draft model"].tolist() == [1.25]


def test_every_claim_has_its_value_its_n_and_its_spread(arms):
    one = pd.DataFrame([{"mean": 0.5, "low": 0.4, "high": 0.7, "n": 3, "kind": "code"}])
    values, claims = experiment.findings(
        {**dict.fromkeys(experiment.CLAIMS, one), "kinds": one}, arms
    )
    flat = results.flattened(values)
    told = {claim.id: (flat[claim.key], claim.n, claim.spread) for claim in claims}
    assert told["acceptance"] == (0.5, 3, pytest.approx(0.15))
    assert told["speedup_greedy"] == (1.8, 4, pytest.approx(1.57 * 0.2 / 2))
    assert values["speedup_sampled"]["strategy"] == "draft model, block"
    assert values["speedup_sampled"]["median"] == 1.9
    assert told["transformers_greedy"][0] == 0.9


CHAT = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SMOLLM2 = {
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": {"heads": 4, "kv_heads": 4, "theta": 130_000.0},
    "HuggingFaceTB/SmolLM2-135M-Instruct": {"heads": 3, "kv_heads": 1, "theta": 100_000.0},
}


def publish(folder: Path, heads: int, kv_heads: int, theta: float, swapped: bool) -> None:
    """Save a tiny random model as SmolLM2 is published: in shards, by an older transformers."""
    rope = {"rope_type": "default", "rope_theta": theta}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = LlamaConfig(
        vocab_size=len(MARKS) + 256,
        hidden_size=8 * heads,
        intermediate_size=24 * heads,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        rope_parameters=rope,
        **ends,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(heads)
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="10KB")
    _, start, end = MARKS
    letters(MARKS, CHAT, start, end, swapped=swapped).save_pretrained(folder)
    template_within(folder)
    edit(folder / "config.json", "rope_parameters", "dtype", rope_theta=theta, rope_scaling=None)
    edit(folder / "config.json", torch_dtype="bfloat16")


def published(monkeypatch, root: Path, *, swapped: bool = False) -> None:
    """Fill a hub cache with the pair of profile smollm2, as far as the names go; no network."""
    for name, sizes in SMOLLM2.items():
        publish(root / "made", **sizes, swapped=swapped and "135M" in name)
        cached(root / "hub", name, root / "made")
    only(monkeypatch, root / "hub")


@pytest.fixture
def smollm2(monkeypatch, tmp_path):
    """The parameters of the profile, with shorter answers, and its models in the hub's cache."""
    published(monkeypatch, tmp_path)
    return params.load("speculative_decoding", {"profile": "smollm2", "max_new_tokens": 10})


def test_the_profile_smollm2_is_the_article_s_pair_and_prompt():
    told = params.load("speculative_decoding", {"profile": "smollm2"})
    assert [told.model, told.draft_model] == [*SMOLLM2]
    assert (told.dtype, told.length, told.max_new_tokens) == ("bfloat16", 5, 100)
    assert told.questions == ("What is the capital of Taiwan. And why?",)


def test_a_published_pair_is_read_from_the_hub_s_cache_as_it_stands_there(smollm2, tmp_path):
    snapshots = [*tmp_path.glob("hub/*/snapshots/*/model-*.safetensors")]
    assert len(snapshots) > 4
    assert all(path.is_symlink() for path in snapshots)
    pair = experiment.load_pair(smollm2)
    assert {pair.target.dtype, pair.draft.dtype} == {torch.bfloat16}
    configs = pair.target.config, pair.draft.config
    assert [config.n_kv_heads for config in configs] == [4, 1]
    assert [config.rope_theta for config in configs] == [130_000.0, 100_000.0]
    assert all(config.tied and config.eos_token_ids == (2,) for config in configs)


def test_its_question_is_put_in_the_chat_template_once_with_every_turn_s_mark_once(smollm2):
    tokenizer = experiment.load_pair(smollm2).tokenizer
    (prompt,) = experiment.prompts(tokenizer, smollm2)
    assert tokenizer.decode(prompt.ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of Taiwan. And why?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    start = tokenizer.bos_token_id
    assert (prompt.ids[0], prompt.ids.count(start)) == (start, 3)
    assert (start, start) not in itertools.pairwise(prompt.ids)


def test_a_readers_own_prompts_take_the_place_of_all_others(smollm2, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"text": "A"}\n{"text": "Why?", "kind": "question", "chat": true}\n')
    mine = smollm2.model_copy(update={"prompts_file": str(file)})
    tokenizer = experiment.load_pair(mine).tokenizer
    plain, chat = experiment.prompts(tokenizer, mine)
    assert plain == Prompt("own", tuple(tokenizer.encode("A")))
    assert tokenizer.decode(chat.ids).endswith(
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert experiment.prompt_file(mine) == file


def test_the_whole_article_runs_on_a_published_pair(smollm2):
    """As its notebook does, with the costs that the weights suggest."""
    pair = experiment.load_pair(smollm2)
    asked = experiment.prompts(pair.tokenizer, smollm2)
    run = experiment.speculate(pair, asked, smollm2, length=max(smollm2.lengths))
    assert len(run.texts) == smollm2.samples == 8
    assert len({tuple(text) for text in run.texts}) > 4
    table = experiment.overlaps(pair, run, smollm2)
    assert table["overlap"].between(0, 1 + 1e-5).all()
    assert len(table) == sum(map(len, run.texts)) - sum(run.starts)
    assert acceptance_rate(run.rounds)["n"].tolist() == [8]
    assert set(experiment.rules_compared(pair, run, smollm2)["length"]) == {1, 2, 3, 5, 8}
    costs = experiment.costs(pair, smollm2, pd.DataFrame())
    (row,) = policies.policies(run.rounds, "kind", smollm2.length, costs).to_dict("records")
    assert row["fixed"] <= row["best"] <= row["oracle"]
    assert set(experiment.divergences(asked, smollm2)["dtype"]) == {"bfloat16"}


def test_at_temperature_zero_all_samples_of_a_question_are_one_text(smollm2):
    pair = experiment.load_pair(smollm2)
    asked = experiment.prompts(pair.tokenizer, smollm2)
    run = experiment.speculate(pair, asked, smollm2, temperature=0.0)
    assert len({tuple(text) for text in run.texts}) == 1


def test_a_pair_of_the_same_size_but_other_tokens_is_refused_by_their_names(monkeypatch, tmp_path):
    published(monkeypatch, tmp_path, swapped=True)
    told = params.load("speculative_decoding", {"profile": "smollm2"})
    with pytest.raises(ValueError, match=r"in 2 tokens.*'\S+' \(257, 258\).*profile=pocket"):
        experiment.load_pair(told)
