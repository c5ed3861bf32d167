"""Profile gemma2-9b of article 04, end to end, on a tiny model that stands in for the real one.

Random weights, but in all else what the hub has under that name: 42 layers of Gemma-2, in shards of
bfloat16, and the chat template.
"""

import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

import foredraft as fd
from foredraft import paths
from foredraft.articles.self_speculation import experiment
from foredraft.decoding.theory import Costs
from foredraft.models.skip import PublishedPlan
from foredraft.prompts import chat_prompts
from foredraft.repro import params
from foredraft.repro.provenance import read_json
from foredraft.search import bayes, find
from foredraft.search.find import Candidate, Found
from foredraft.search.predict import ByBytes, Objective
from foredraft.search.space import Space
from tests.articles.conftest import cached, edit, letters, only, template_within
from tests.decoding.conftest import tiny

NAME, ARTICLE = "google/gemma-2-9b-it", "gemma-2-9b-it"
MARKS = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
SIZES = {
    **{"trials": 11, "initial": 1, "longest": 2, "pareto_trials": 8},
    **{"n_prompts": 2, "max_new_tokens": 4, "samples": 2, "exit_tokens": 4},
    **{"plans_checked": 2, "checked_length": 2, "checked_prompts": 2, "checked_tokens": 4},
}


def settings(**changes) -> params.SelfSpeculation:
    """The profile on a processor, with little of everything."""
    return params.load(
        "self_speculation", {"profile": "gemma2-9b", "device": "cpu", **SIZES, **changes}
    )


def publish(folder: Path) -> None:
    """Save a tiny random model as Gemma-2 is published: in shards, by an older transformers."""
    config = Gemma2Config(
        vocab_size=len(MARKS) + 256,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=42,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=64,
        max_position_embeddings=8192,
        **{"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2},
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = Gemma2ForCausalLM(config)
        for name, parameter in model.named_parameters():
            parameter += 0.3 * torch.randn_like(parameter)
            if "post_" in name:  # branches that add little, so that a draft without them is near
                parameter -= 0.8
        model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="100KB")
    _, end, start, *_ = MARKS
    letters(MARKS, CHAT, start, end, adds_start=True).save_pretrained(folder)
    template_within(folder)
    file = folder / "config.json"
    edit(file, "rope_parameters", "layer_types", "dtype", rope_theta=10_000.0)
    edit(file, hidden_act="gelu_pytorch_tanh", cache_implementation="hybrid")
    edit(file, torch_dtype="bfloat16", sliding_window_size=64)
    edit(folder / "generation_config.json", eos_token_id=[1, MARKS.index("<end_of_turn>")])


@pytest.fixture(scope="module", autouse=True)
def hub(tmp_path_factory) -> Path:
    """Have the model, and no other, in the hub's cache."""
    root = tmp_path_factory.mktemp("published")
    publish(root / "made")
    cached(root / "hub", NAME, root / "made")
    with pytest.MonkeyPatch.context() as patch:
        only(patch, root / "hub")
        find.candidate.cache_clear()
        yield root / "hub"
        find.candidate.cache_clear()


@pytest.fixture(scope="module")
def subject(hub) -> Candidate:
    return find.chosen(NAME, settings())


@pytest.fixture(scope="module")
def precise(hub) -> Candidate:
    """In float32, as the notebook holds what is foretold against decoding."""
    return find.chosen(NAME, settings(), "float32")


@pytest.fixture(scope="module")
def judge(subject) -> Objective:
    costs = find.costs(subject, pd.DataFrame(), settings().temperature)
    return find.objective(subject, settings(), costs, temperature=settings().temperature)


@pytest.fixture(scope="module")
def plan() -> fd.SkipPlan:
    return fd.SkipPlan.published(ARTICLE)


@pytest.fixture(scope="module")
def by_bytes(subject, plan) -> Costs:
    return ByBytes(subject.decoder.config, longest=3)(plan)


@pytest.fixture(scope="module")
def found(hub, tmp_path_factory) -> Found:
    """A search that times nothing beforehand, and decodes little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(find, "MEASURED_TOKENS", 4)
        patch.setattr(find, "MEASURED_PROMPTS", 1)
        return find.find(
            NAME,
            settings(),
            temperature=1.0,
            times=False,
            clock=map(float, itertools.count()).__next__,
        )


def test_the_profile_is_the_article_s_model_asked_in_chats_on_a_gpu():
    told = params.load("self_speculation", {"profile": "gemma2-9b"})
    assert told.model == NAME == PublishedPlan.read(ARTICLE).model
    assert told.models == (NAME,)
    assert (told.device, told.prompts) == ("cuda", "chat")
    assert (told.temperature, told.max_new_tokens, told.longest) == (1.0, 100, 8)
    assert max(told.free_layers) < 42
    elsewhere = params.load("self_speculation", {"profile": "gemma2-9b", "device": "cpu"})
    assert elsewhere == told.model_copy(update={"device": "cpu"})


def test_the_model_is_read_from_the_hub_s_cache_as_it_stands_there(hub, subject):
    shards = [*hub.glob("*/snapshots/*/model-*.safetensors")]
    assert len(shards) > 2
    assert all(path.is_symlink() for path in shards)
    config = subject.decoder.config
    assert (config.architecture, config.n_layers, subject.decoder.dtype) == (
        *("gemma2", 42),
        torch.bfloat16,
    )
    assert config.windows == (64, None) * 21
    assert (config.attention_softcap, config.final_softcap) == (50.0, 30.0)
    assert (config.eos_token_ids, config.tied) == ((1, 4), True)


def test_every_chat_goes_through_gemma_s_template_once_with_one_bos(subject):
    turns = [prompt.turns[0].strip() for prompt in chat_prompts()]
    texts, start = [turns[0], turns[30], turns[1], turns[31]], subject.tokenizer.bos_token_id
    for text, ids in zip(texts, subject.searched + subject.held_out, strict=True):
        assert subject.tokenizer.decode(ids) == (
            f"<bos><start_of_turn>user\n{text}<end_of_turn>\n<start_of_turn>model\n"
        )
        assert (ids[0], ids.count(start)) == (start, 1)
        again = subject.tokenizer.encode(subject.tokenizer.decode(ids))
        assert again == [start, *ids], "encoded again there were two"


def test_half_of_the_layers_are_foretold_as_the_notebook_does(subject, judge):
    half = fd.SkipPlan.early_exit(21, 42)
    foretold = judge.predict(half)
    assert foretold.cost == pytest.approx(half.cost(subject.decoder.config))
    assert foretold.length in (1, 2)
    assert 0 < foretold.overlap.mean < 1


def test_the_article_s_plan_fits_and_greedy_text_under_it_is_the_model_s_own(precise, plan):
    settings = {"sampler": fd.Sampler(temperature=0), "max_new_tokens": 10, "eos_token_id": []}
    plain = fd.generate(precise.decoder, precise.held_out, **settings)
    drafted = fd.generate(
        precise.decoder, precise.held_out, drafter=fd.SelfDrafter(plan), **settings
    )
    assert drafted.tokens == plain.tokens
    assert drafted.trace.drafted > 0


def test_a_search_goes_by_bytes_since_nobody_has_timed_the_model(found, subject):
    assert found.costs.empty
    assert [trial.origin for trial in found.trials][-2:] == ["sobol", "model"]
    assert len({trial.plan for trial in found.trials}) == 11
    for best in found.best:
        assert best.cost == pytest.approx(best.plan.cost(subject.decoder.config))
    timed = found.measured.set_index("name")
    assert timed.loc["found 1", "predicted"] == found.best[0].speedup.mean
    assert fd.SkipPlan.from_json(timed.loc["found 1", "plan"]) == found.best[0].plan


def test_what_is_found_is_kept_beside_the_article_s_plan(found, monkeypatch, tmp_path):
    mine = tmp_path / f"{ARTICLE}.json"
    shutil.copy(paths.plan(ARTICLE), mine)
    before = mine.read_bytes()
    monkeypatch.setattr(paths, "PLANS", tmp_path)
    path = find.keep(found, settings(device="cuda"))
    assert path.name == "google--gemma-2-9b-it.json"
    assert {*tmp_path.iterdir()} == {path, mine}
    assert mine.read_bytes() == before
    kept = PublishedPlan.read("google--gemma-2-9b-it")
    assert (kept.plan, kept.gamma, kept.model) == (found.best[0].plan, found.best[0].length, NAME)
    stamp = read_json(path).stamp
    assert (stamp.device, stamp.params["profile"]) == ("cuda", "gemma2-9b")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_foretold_is_held_against_decoding(precise, temperature):
    table = experiment.checked(precise, settings(), temperature=temperature)
    assert table["model"].tolist() == [NAME] * 2
    assert table["texts"].tolist() == [4 if temperature else 2] * 2
    assert table["off"].tolist() == [0, 0]
    assert table["decoded"].between(1, 3).all()
    if temperature:
        assert (table["z"].abs() < 6).all()
    else:
        assert table["foretold"].tolist() == pytest.approx(table["decoded"].tolist())


def test_the_notebook_s_search_and_its_front_try_plans_of_all_42_layers(subject, judge, found):
    tried = find.searched(subject, judge, settings(trials=2))
    assert [(trial.plan, trial.values) for trial in tried] == [
        (trial.plan, trial.values) for trial in found.trials[:2]
    ]
    goal = ("-cost", "overlap")
    both = bayes.search(
        Space.of(subject.decoder.config),
        judge,
        trials=settings().pareto_trials,
        seed=0,
        goal=goal,
        initial=settings().initial,
    )
    front = bayes.pareto([*tried, *both], goal)
    costs, overlaps = ([t.values[name].mean for t in front] for name in ("cost", "overlap"))
    assert len(both) == 8
    assert costs == sorted(costs)
    assert overlaps == sorted(overlaps)


def test_every_way_to_end_a_draft_runs_under_the_article_s_plan(subject, plan, by_bytes):
    table = experiment.policies(subject, plan, by_bytes, settings())
    assert table["policy"].tolist()[:3] == ["fixed 1", "fixed 2", "fixed 3"]
    assert len(table) == 7
    assert table["acceptance"].between(0, 1).all()
    assert (table["speedup"] > 0).all()


def test_both_rules_verify_under_the_article_s_plan(subject, plan):
    table = experiment.rules(subject, plan, (1, 8), settings())
    assert table["rule"].tolist() == ["token", "block"] * 2
    assert table["mean"].between(1, 3).all()


@pytest.fixture(scope="module")
def case(subject) -> Callable[..., pd.Series]:
    """Its one row, for texts of fewer tokens than the article's."""

    def decode(**changes) -> pd.Series:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(experiment, "ARTICLE_TOKENS", 8)
            (row,) = experiment.article_case(subject, settings(**changes)).to_dict("records")
        return pd.Series(row)

    return cache(decode)


def test_the_article_s_case_is_its_prompt_decoded_under_its_plan_with_its_exit(case, subject, plan):
    question = "<start_of_turn>user\nWhat is the capital of Taiwan. And why?<end_of_turn>\n"
    prompt = subject.tokenizer.encode(f"{question}<start_of_turn>model\n")
    made = fd.generate(
        subject.decoder,
        [prompt] * 2,
        sampler=fd.Sampler(temperature=1.0),
        max_new_tokens=8,
        drafter=fd.SelfDrafter(plan),
        exit_policy=fd.AdaptiveExit(rule="article", max_length=8),
        generator=torch.Generator().manual_seed(0),
        eos_token_id=[],
    )
    rows = [row for each in made.trace.rounds[1:] for row in each.rows]
    drafted, accepted = (sum(getattr(r, name) for r in rows) for name in ("drafted", "accepted"))
    found, plain = case(), 2 * 7
    assert found["model"] == NAME
    assert found["acceptance"] == pytest.approx(accepted / drafted)
    assert found["drafted"] == pytest.approx(drafted / len(rows))
    assert found["tokens_per_round"] == pytest.approx(plain / len(rows))
    assert found["cost"] == pytest.approx(plan.cost(subject.decoder.config))
    assert found["speedup"] == pytest.approx(plain / (len(rows) + found["cost"] * drafted))


def test_the_article_s_case_depends_on_nothing_but_the_seed_and_the_number_of_texts(case):
    others = {"temperature": 0.0, "exit_tokens": 3, "max_new_tokens": 3, "checked_prompts": 1}
    pd.testing.assert_series_equal(case(**others), case())
    assert (case(seed=1) != case()).any()


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_article_s_case_is_refused_for_a_model_that_its_plan_is_not_for(subject, family):
    other = replace(subject, name="tiny", decoder=tiny(family, 261, 0, torch.float32))
    with pytest.raises(ValueError, match=rf"tiny .*{family} of 2 layers.*42.*gemma2-9b"):
        experiment.article_case(other, settings())


def test_a_model_without_its_tokenizer_is_not_asked_anything(subject):
    with pytest.raises(ValueError, match="no tokenizer"):
        experiment.article_case(replace(subject, tokenizer=None), settings())


INSTEAD = r".*foredraft run self_speculation -p profile=pocket"


def test_weights_that_cannot_be_had_are_told_with_what_runs_instead(monkeypatch, tmp_path):
    only(monkeypatch, tmp_path)
    find.candidate.cache_clear()
    why = rf"{NAME}.* are not on this machine and could not be downloaded"
    with pytest.raises(ValueError, match=why + INSTEAD):
        find.chosen(NAME, settings())
    with pytest.raises(ValueError, match=why + INSTEAD):
        find.find(NAME, settings(), temperature=1.0, times=False)


def test_a_shard_that_is_missing_is_told_with_what_runs_instead(hub, monkeypatch, tmp_path):
    shutil.copytree(hub, tmp_path / "hub", symlinks=True)
    shard = next((tmp_path / "hub").glob("*/snapshots/*/model-00002-*.safetensors"))
    shard.unlink()
    only(monkeypatch, tmp_path / "hub")
    find.candidate.cache_clear()
    with pytest.raises(ValueError, match=f"{shard.name} is missing{INSTEAD}"):
        find.chosen(NAME, settings())


def test_a_gpu_that_is_not_there_is_told_before_anything_is_downloaded(monkeypatch, tmp_path):
    only(monkeypatch, tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"'{NAME}' is to run on 'cuda'.*no such device{INSTEAD}"):
        find.chosen(NAME, settings(device="cuda"))
