"""What a search goes by, what it finds, and what is kept of it."""

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from unittest.mock import call, create_autospec

import pandas as pd
import pytest
import torch
from transformers import PreTrainedTokenizerBase

import foredraft as fd
from foredraft import paths
from foredraft.analysis.statistics import Estimate
from foredraft.imports import closure
from foredraft.models.skip import PublishedPlan
from foredraft.prompts import chat_prompts
from foredraft.repro import params
from foredraft.repro.provenance import Stamp, read_json
from foredraft.search import find as plan_search
from foredraft.search import measured_costs
from foredraft.search.engines import Ray
from foredraft.search.find import Candidate, Found, Reloaded
from foredraft.search.measured_costs import STEP, VERIFIED, VERIFY, timed_plans
from foredraft.search.predict import ByBytes, ByClock, Line, Objective
from foredraft.search.space import Space
from foredraft.search.trial import Trial
from tests.articles.conftest import letters
from tests.benchmarks.conftest import Toll
from tests.benchmarks.conftest import tiny as of_transformers
from tests.decoding.conftest import tiny
from tests.search.conftest import toy

VOCAB, N_LAYERS = 11, 2
SIZES = {"trials": 6, "initial": 2, "longest": 3, "max_new_tokens": 8}


def settings(**changes) -> params.SelfSpeculation:
    return params.load("self_speculation", {"profile": "smoke", **SIZES, **changes})


@pytest.fixture(scope="module", autouse=True)
def sources() -> Iterator[tuple[Path, ...]]:
    """What a search is made from, looked up once."""
    found = closure(paths.module(plan_search.__name__))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_search, "closure", lambda *_: found)
        yield found


def decoder() -> fd.Decoder:
    return tiny("llama", VOCAB, 3, torch.float32, hidden=32)


@pytest.fixture(scope="module")
def subject() -> Candidate:
    searched, held_out = [[1, 2, 3], [4], [5, 6, 7, 8]], [[9, 2], [3, 3, 1], [10]]
    return Candidate("tiny", decoder(), searched, held_out)


def ticking():
    """A clock that moves on by one second each time that it is read."""
    ticks = count()
    return lambda: float(next(ticks))


def stand_in(patch: pytest.MonkeyPatch, subject: Candidate, folder: Path) -> None:
    """Search the tiny model instead of any other, decode little, keep the trials elsewhere."""
    patch.setattr(paths, "CACHE", folder)
    patch.setattr(plan_search, "chosen", lambda *_: subject)
    patch.setattr(plan_search, "MEASURED_TOKENS", 24)
    patch.setattr(plan_search, "MEASURED_PROMPTS", 1)
    patch.setattr(measured_costs, "VERIFIED", (1, 3))
    patch.setattr(measured_costs, "AFTER_EXITS", (1, 3))


@pytest.fixture
def small(monkeypatch, subject, tmp_path) -> None:
    stand_in(monkeypatch, subject, tmp_path)


@pytest.fixture
def undecoded(small, monkeypatch) -> None:
    """What is found is decoded in other tests."""
    monkeypatch.setattr(plan_search, "measured", lambda *_, **__: pd.DataFrame())


def find(**options) -> Found:
    told = {"temperature": 1.0, "times": False, "clock": ticking(), "params": settings()}
    return plan_search.find("tiny", **(told | options))


@pytest.fixture(scope="module")
def found(subject, tmp_path_factory) -> Found:
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch, subject, tmp_path_factory.mktemp("cache"))
        return find(times=True)


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def by_bytes(subject, told, tmp_path_factory) -> Found:
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch, subject, tmp_path_factory.mktemp("cache"))
        return find(report=told.append)


class Numbered:
    """A prompt whose text is its number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def text(self) -> str:
        return str(self.number)


@pytest.fixture
def loaded(monkeypatch):
    """Load nothing: note what was to be loaded, and with which tokenizer prompts are read."""
    calls, tokenizer = [], create_autospec(PreTrainedTokenizerBase, instance=True)
    tokenizer.encode.side_effect = lambda text: [int(text)]

    def load(name, **place):
        calls.append((name, place))
        return decoder(), tokenizer

    monkeypatch.setattr(plan_search, "load", load)
    plan_search.candidate.cache_clear()
    yield calls, tokenizer
    plan_search.candidate.cache_clear()


@pytest.fixture
def numbered(monkeypatch, loaded):
    def have(n: int) -> None:
        monkeypatch.setattr(plan_search, "code_prompts", lambda: [*map(Numbered, range(n))])

    return have


def test_a_search_and_what_is_held_out_from_it_share_no_prompt_and_lie_evenly(numbered):
    numbered(21)
    found = plan_search.candidate("tiny", 5)
    assert found.searched == [[0], [4], [8], [12], [16]]
    assert found.held_out == [[1], [5], [9], [13], [17]]
    every = plan_search.candidate("tiny", 10)
    assert [token for (token,) in every.held_out] == [*range(1, 20, 2)]


def test_more_prompts_than_half_of_them_are_refused(numbered):
    numbered(21)
    told = "11 prompts are asked for, and half of all are 10: ask for fewer"
    with pytest.raises(ValueError, match=told):
        plan_search.candidate("tiny", 11)


def test_what_users_say_goes_through_the_chat_template_once(loaded):
    _, tokenizer = loaded
    template = tokenizer.apply_chat_template
    template.side_effect = lambda messages, **_: [template.call_count]
    found = plan_search.candidate("tiny", 4, "chat")
    how = {"tokenize": True, "add_generation_prompt": True, "return_dict": False}
    assert template.call_args_list == [
        call([{"role": "user", "content": prompt.turns[0]}], **how) for prompt in chat_prompts()
    ]
    tokenizer.encode.assert_not_called()
    assert (found.searched[0], found.held_out[0]) == ([1], [2])


def test_a_model_is_loaded_once_in_each_precision_where_the_parameters_say(loaded, numbered):
    calls, _ = loaded
    numbered(20)
    first, again = (plan_search.chosen("tiny", settings(n_prompts=3)) for _ in range(2))
    plan_search.chosen("tiny", settings(n_prompts=3), "float32")
    assert first is again
    assert [name for name, _ in calls] == ["tiny"] * 2
    assert [place["dtype"] for _, place in calls] == [torch.bfloat16, torch.float32]
    assert {place["device"] for _, place in calls} == {"cpu"}


FAST, SLOW = (
    ByClock(step, 0.05, 0.1, 0.01, {0: Line(1.0, step / 10)}, n_layers=6) for step in (0.8, 1.1)
)


def recorded(model: str, sampler: str, known: ByClock) -> pd.DataFrame:
    """What timing gives if the parts of a round take what is known."""
    where = {"model": model, "sampler": sampler, "reuse": False, "layers": 6}
    third = fd.SkipPlan([1], [1])
    steps = [
        {"strategy": STEP, "plan": plan.to_json(), "length": 4, "cost_median": known(plan).draft}
        for plan in timed_plans(6)
    ]
    checks = [
        {
            **{"strategy": VERIFY, "plan": third.to_json(), "length": n},
            "cost_median": known(third).verify[n],
        }
        for n in VERIFIED
    ]
    return pd.DataFrame([{**where, **row} for row in steps + checks])


@pytest.fixture
def recordings() -> pd.DataFrame:
    other = {"model": "tiny", "sampler": "temperature 1", "strategy": "self-drafting"}
    return pd.concat(
        [
            recorded("another", "temperature 1", SLOW),
            recorded("tiny", "greedy", SLOW),
            pd.DataFrame([other]),
            recorded("tiny", "temperature 1", FAST),
        ],
        ignore_index=True,
    )


@pytest.mark.parametrize(("temperature", "known"), [(0.0, SLOW), (1.0, FAST), (0.7, FAST)])
def test_costs_are_those_recorded_of_the_model_and_sampler(subject, recordings, temperature, known):
    costs = plan_search.costs(subject, recordings, temperature)
    for plan in (fd.SkipPlan(), fd.SkipPlan([0]), fd.SkipPlan([1], [0, 1])):
        assert costs(plan).draft == pytest.approx(known(plan).draft)
        assert costs(plan).verify == pytest.approx(known(plan).verify)


def test_a_model_that_was_not_timed_costs_what_its_weights_do(subject, recordings):
    by_bytes = ByBytes(subject.decoder.config)
    elsewhere = replace(subject, name="elsewhere")
    assert plan_search.costs(elsewhere, recordings, 1.0) == by_bytes
    assert plan_search.costs(subject, pd.DataFrame(), 1.0) == by_bytes


def test_the_texts_searched_on_and_those_held_out_follow_their_own_prompts(subject, small):
    """Those held out are as long as what is timed, and follow the prompts that are timed."""
    own, other = (
        plan_search.rehearsal(subject, settings(), temperature=0.0, held_out=is_held_out)
        for is_held_out in (False, True)
    )
    prompts = {True: plan_search.timed_prompts(subject), False: subject.searched}
    assert prompts[True] == subject.held_out[:1]
    for is_held_out, texts in ((False, own), (True, other)):
        made = fd.generate(
            subject.decoder,
            prompts[is_held_out],
            sampler=fd.Sampler(temperature=0),
            max_new_tokens=24 if is_held_out else 8,
            eos_token_id=[],
        )
        assert texts.tokens.tolist() == made.tokens


def test_a_search_goes_by_costs_that_are_timed_first(found, subject):
    """By a clock that ticks when it is read, a draft of four takes as long as a plain round."""
    steps, checks = (found.costs["strategy"] == part for part in (STEP, VERIFY))
    assert found.costs.loc[steps, "cost_median"].tolist() == pytest.approx([1 / 4] * steps.sum())
    assert found.costs.loc[checks, "cost_median"].tolist() == pytest.approx([2] * checks.sum())
    assert [best.cost for best in found.best] == pytest.approx([1 / 4] * 2)
    assert (found.temperature, found.subject) == (1.0, subject)


def test_only_the_search_itself_counts_as_the_time_of_a_search(found):
    assert found.seconds == 1


def test_the_best_trials_are_decoded_best_first_beside_what_was_foretold(found, subject, small):
    ranked = sorted((t.values["speedup"].mean for t in found.trials), reverse=True)
    assert [best.speedup.mean for best in found.best] == ranked[: plan_search.FINALISTS]
    rows = found.measured.set_index("name")
    assert len(rows) == 1 + plan_search.FINALISTS
    judge = plan_search.objective(
        subject,
        settings(),
        plan_search.costs(subject, found.costs, 1.0),
        temperature=1.0,
        held_out=True,
    )
    for place, best in enumerate(found.best, start=1):
        row, again = rows.loc[f"found {place}"], judge.predict(best.plan, best.length)
        assert fd.SkipPlan.from_json(row["plan"]) == best.plan
        assert row["length"] == best.length
        assert (row["predicted"], row["predicted_sem"]) == (best.speedup.mean, best.speedup.sem)
        assert row["predicted_held_out"] == again.speedup.mean != best.speedup.mean
    plain = found.measured.iloc[0]
    assert plain[["predicted", "predicted_held_out", "summed"]].isna().all()
    assert plain["rounds_speedup"] == 1


def test_the_same_seed_finds_the_same_and_another_tries_other_plans(by_bytes, undecoded):
    again, other = find(), find(params=settings(seed=1))
    assert (again.trials, again.best) == (by_bytes.trials, by_bytes.best)
    assert [trial.values for trial in other.trials] != [trial.values for trial in again.trials]


def stop(*_, **__):
    raise InterruptedError


def test_a_search_that_was_interrupted_times_and_judges_nothing_again(small, found, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(plan_search, "round_costs", lambda *_, **__: found.costs)
        patch.setattr(plan_search, "measured", stop)
        with pytest.raises(InterruptedError):
            find(times=True)
    with monkeypatch.context() as patch:
        patch.setattr(plan_search, "round_costs", stop)
        patch.setattr(Objective, "__call__", stop)
        again = find(times=True)
    assert (again.trials, again.best) == (found.trials, found.best)
    assert again.seconds != again.seconds, "of a part of a search nobody knows how long it takes"
    pd.testing.assert_frame_equal(again.costs, found.costs)


@pytest.mark.parametrize("end", ["forgotten", "kept"])
def test_a_search_whose_plan_is_kept_or_forgotten_begins_anew(
    by_bytes, small, folder, monkeypatch, end
):
    with monkeypatch.context() as patch:
        patch.setattr(plan_search, "measured", lambda *_, **__: by_bytes.measured)
        found = find()
    assert found.folder.is_dir()
    if end == "kept":
        plan_search.keep(found, settings())
    else:
        plan_search.forget(found)
    assert not found.folder.exists()
    monkeypatch.setattr(Objective, "__call__", stop)
    with pytest.raises(InterruptedError):
        find()


def test_searches_with_other_settings_do_not_meet(found, small, monkeypatch):
    folders = []

    def noted(*_, folder, **__):
        folders.append(folder)
        raise InterruptedError

    monkeypatch.setattr(plan_search, "round_costs", lambda *_, **__: found.costs)
    monkeypatch.setattr(plan_search, "searched", noted)
    changes = [
        *({}, {"temperature": 0.0}, {"params": settings(seed=1)}, {"times": True}),
        {"engine": Ray(workers=2)},
    ]
    for change in [*changes, {}]:
        with pytest.raises(InterruptedError):
            find(**change)
    assert len(set(folders)) == len(changes)
    assert folders[0] == folders[-1]


def test_without_a_clock_costs_are_by_bytes_and_none_are_kept(by_bytes, subject):
    assert by_bytes.costs.empty
    for best in by_bytes.best:
        assert best.cost == pytest.approx(best.plan.cost(subject.decoder.config))


@pytest.mark.parametrize("objective", ["-cost", "overlap"])
def test_what_is_to_be_small_is_made_small_and_what_is_to_be_large_large(undecoded, objective):
    found = find(params=settings(objective=objective))
    metric = objective.removeprefix("-")
    tried = sorted(trial.values[metric].mean for trial in found.trials)
    top = tried[0] if objective.startswith("-") else tried[-1]
    assert found.best[0].metrics()[metric].mean == pytest.approx(top)


def test_a_metric_that_nobody_gives_is_refused_by_its_name(undecoded):
    with pytest.raises(ValueError, match="unknown metric 'speed': did you mean 'speedup'"):
        find(params=settings(objective="speed"))


def test_whoever_waits_is_told_what_is_being_done(by_bytes, told):
    best = f"{by_bytes.best[0].speedup.mean:.3f}"
    assert told == [
        "tiny, temperature 1: 6 trials",
        f"tiny, temperature 1: the best of them, decoded; {best} foretold",
    ]


def test_an_engine_gets_a_plan_for_each_worker_and_settings_instead_of_weights(
    by_bytes, undecoded, monkeypatch
):
    batches = []

    def measure(self, judge, plans):
        batches.append((judge, len(plans)))
        return [judge(plan) for plan in plans]

    monkeypatch.setattr(Ray, "measure", measure)
    found = find(engine=Ray(workers=4))
    assert [n for _, n in batches] == [4, 2]
    assert {type(judge) for judge, _ in batches} == {Reloaded}
    assert len({id(judge) for judge, _ in batches}) == 1
    assert found.trials == by_bytes.trials


def test_what_travels_to_a_worker_holds_no_weights_and_judges_as_the_objective(small, subject):
    chosen, costs = settings(), ByBytes(subject.decoder.config)
    sent = pickle.dumps(Reloaded("tiny", chosen, costs, 1.0))
    weights = sum(each.numel() * each.element_size() for each in subject.decoder.parameters())
    assert len(sent) < 4_000 < weights
    arrived = pickle.loads(sent)
    here = plan_search.objective(subject, chosen, costs, temperature=1.0)
    for plan in (fd.SkipPlan(), fd.SkipPlan([0]), fd.SkipPlan.early_exit(1, N_LAYERS)):
        assert arrived(plan) == here(plan)


def test_a_search_is_kept_elsewhere_when_a_source_or_the_weights_change(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "MODELS", tmp_path)
    digest, folders = plan_search.digest, []

    def named(changed: str = "") -> None:
        monkeypatch.setattr(
            plan_search, "digest", lambda path: changed if path.stem == changed else digest(path)
        )
        folders.append(plan_search._folder("tiny", settings(), 1.0, times=True, batch=1))

    for source in ("", "teacher_forced", "predict", "bayes", "measured_costs", "self_draft"):
        named(source)
    (tmp_path / "tiny").mkdir()
    for weights in (b"one", b"other"):
        (tmp_path / "tiny" / "model.safetensors").write_bytes(weights)
        named()
    assert len(set(folders)) == len(folders)


def test_a_search_sets_out_from_plans_that_skip_little_and_from_early_exits():
    deep = Candidate("deep", fd.Decoder.from_hf(of_transformers(n_layers=12)), [], [])
    trials = plan_search.searched(deep, toy, settings(trials=9))
    exits = [fd.SkipPlan.early_exit(n, 12) for n in (6, 4, 3)]
    assert [trial.plan for trial in trials] == [*Space(12).few_skips(), *exits]
    assert {trial.origin for trial in trials} == {"start"}


def test_where_a_round_is_the_sum_of_its_parts_so_is_what_is_measured(monkeypatch):
    """By a clock that moves on with the branches that are read, and with nothing else."""
    decoder = fd.Decoder.from_hf(of_transformers(n_layers=3))
    clock = Toll(decoder, attention=2.0, mlp=3.0, head=0.0)
    subject = Candidate("tiny", decoder, [[1, 2, 3], [4, 5]], [[6, 7], [8]])
    monkeypatch.setattr(plan_search, "MEASURED_TOKENS", 14)
    monkeypatch.setattr(measured_costs, "VERIFIED", (1, 3))
    monkeypatch.setattr(measured_costs, "AFTER_EXITS", (1, 3))
    timed = measured_costs.round_costs(
        plan_search.contest(subject, 1.0), "temperature 1", clock=clock
    )
    known = plan_search.costs(subject, timed, 1.0)
    judge = plan_search.objective(subject, settings(), known, temperature=1.0, held_out=True)
    plans = [
        (fd.SkipPlan([0], [1]), 2),
        (fd.SkipPlan.early_exit(1, 3), 3),
        (fd.SkipPlan(mlp=[0]), 1),
    ]
    found = [judge.predict(*each) for each in plans]
    rows = plan_search.measured(subject, found, judge, temperature=1.0, clock=clock).iloc[1:]
    assert rows["summed"].tolist() == pytest.approx(rows["rounds_speedup"].tolist())
    assert rows["summed"].is_unique
    assert rows["predicted_held_out"].tolist() == rows["predicted"].tolist(), "the same texts"
    assert rows["summed"].tolist() != rows["predicted"].tolist()


CHAT = "{% for message in messages %}<user>{{ message['content'] }}<end>{% endfor %}"


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    """A tiny model and its tokenizer, where any process can load them from."""
    folder, marks = tmp_path_factory.mktemp("models") / "stored", ("<user>", "<end>")
    model = of_transformers(n_layers=N_LAYERS, vocab=len(marks) + 256, positions=4096)
    model.to(torch.bfloat16).save_pretrained(folder)
    letters(marks, CHAT, *marks).save_pretrained(folder)
    return folder


WORKER = """
import pickle, sys
from foredraft.search.trial import Trial

judge, plan = pickle.load(sys.stdin.buffer)
print(Trial(0, plan, judge(plan), "start").to_json())
"""


def test_another_process_loads_the_model_for_itself_and_judges_a_plan_alike(stored):
    """As a worker does, to which nothing else comes than settings and plans."""
    few, plan = settings(n_prompts=2, prompts="chat"), fd.SkipPlan([0], [1])
    config = plan_search.chosen(str(stored), few).decoder.config
    judge = Reloaded(str(stored), few, ByBytes(config), temperature=0.0)
    told = subprocess.run(
        [sys.executable, "-c", WORKER],
        input=pickle.dumps((judge, plan)),
        check=True,
        capture_output=True,
    ).stdout
    assert Trial.from_json(told.decode()).values == judge(plan)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "PLANS", tmp_path / "plans")
    return tmp_path / "plans"


@pytest.fixture
def stamped(monkeypatch) -> None:
    """Look through no sources for a stamp."""

    def quick(what, told, inputs, **place):
        return Stamp(what=what, params=told, inputs={}, versions={}, **place)

    monkeypatch.setattr(plan_search, "stamp", quick)


def test_what_is_kept_reads_as_any_plan_with_what_was_foretold_and_measured(found, folder, stamped):
    path = plan_search.keep(found, settings())
    assert [*folder.iterdir()] == [path]
    kept, best = PublishedPlan.read("tiny"), found.best[0]
    assert (kept.plan, kept.gamma, kept.model) == (best.plan, best.length, "tiny")
    row = found.measured.set_index("name").loc["found 1"]
    for name in ("speedup", "acceptance", "tokens_per_round", "overlap"):
        assert kept.predicted[name] == pytest.approx(getattr(best, name).mean, rel=1e-5)
    assert kept.predicted["cost"] == pytest.approx(best.cost, rel=1e-5)
    assert kept.predicted["speedup_held_out"] == pytest.approx(row["predicted_held_out"], rel=1e-5)
    for name in ("speedup_median", "speedup_min", "speedup_max", "acceptance", "n"):
        assert kept.measured[name] == pytest.approx(row[name], rel=1e-5)


def test_all_trials_are_kept_in_order(found, folder, stamped):
    content = read_json(plan_search.keep(found, settings())).content
    kept = [Trial.from_json(json.dumps(trial)) for trial in content["trials"]]
    assert [(t.index, t.plan, t.origin) for t in kept] == [
        (t.index, t.plan, t.origin) for t in found.trials
    ]
    for one, other in zip(kept, found.trials, strict=True):
        for name, value in other.values.items():
            assert one.values[name].mean == pytest.approx(value.mean, rel=1e-5)


def test_a_kept_plan_says_what_it_was_made_from(found, folder):
    stamp = read_json(plan_search.keep(found, settings(seed=7))).stamp
    assert (stamp.what, stamp.seed, stamp.device) == ("search", 7, "cpu")
    assert stamp.params["model"] == "tiny"
    assert stamp.params["temperature"] == 1.0
    assert stamp.params["trials"] == 6
    assert set(stamp.code) == {"src/foredraft/search/find.py"}


def test_a_plan_that_was_found_on_a_gpu_says_so(found, folder, stamped):
    stamp = read_json(plan_search.keep(found, settings(device="cuda"))).stamp
    assert stamp.device == "cuda"


def test_a_plan_for_a_model_of_the_hub_is_one_file_without_folders(found, folder, stamped):
    named = replace(found, subject=replace(found.subject, name="org/model"))
    assert plan_search.keep(named, settings()) == folder / "org--model.json"
    assert PublishedPlan.read("org--model").model == "org/model"


def test_what_cannot_be_written_leaves_the_plan_that_was_kept_before(found, folder, stamped):
    path = plan_search.keep(found, settings())
    before = path.read_bytes()
    broken = replace(found.best[0], speedup=Estimate(1.5, 0.0), cost=float("nan"))
    with pytest.raises(ValueError, match="JSON"):
        plan_search.keep(replace(found, best=[broken]), settings())
    assert path.read_bytes() == before
    assert [*folder.iterdir()] == [path]
