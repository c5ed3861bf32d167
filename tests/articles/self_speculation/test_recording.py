"""The race of the methods goes on where it was stopped, and searches are worth what is said."""

from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import foredraft as fd
from foredraft import paths
from foredraft.articles.self_speculation import recording as search_race
from foredraft.imports import closure
from foredraft.repro import params, recording
from foredraft.repro.provenance import stamp
from foredraft.search import find as plan_search
from foredraft.search.find import Candidate, Found
from foredraft.search.predict import ByBytes, rounds
from foredraft.search.space import Space
from foredraft.search.trial import Trial
from tests.benchmarks.conftest import tiny as of_transformers
from tests.decoding.conftest import tiny
from tests.search.conftest import toy

N_LAYERS, TRIALS, RACE_TRIALS, SEEDS = 4, 7, 5, 2
SIZES = {
    **{"model": "tiny", "models": ["tiny"], "trials": TRIALS, "initial": 2},
    **{"free_layers": [0, 1, 2], "race_trials": RACE_TRIALS, "race_seeds": SEEDS},
    **{"n_prompts": 6, "max_new_tokens": 16},
}


def settings(**changes) -> params.SelfSpeculation:
    return params.load("self_speculation", {"profile": "smoke", **SIZES, **changes})


@pytest.fixture(scope="module")
def sources() -> dict[Path, tuple[Path, ...]]:
    """What the race is made from, looked up once."""
    race = paths.module(search_race.__name__)
    return {race: closure(race)}


@pytest.fixture(autouse=True)
def looked_up(monkeypatch, sources) -> None:
    monkeypatch.setattr(search_race, "closure", sources.__getitem__)


class Judge:
    """The toy objective: it notes each plan that it is asked for, and breaks down after some."""

    def __init__(self, most: int = 10**6) -> None:
        self.asked, self.most = [], most

    def __call__(self, plan):
        if len(self.asked) == self.most:
            raise InterruptedError
        self.asked.append(plan)
        return toy(plan)


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Start a race in an empty folder, or go on with it, with a judge or another."""
    subject = Candidate("tiny", fd.Decoder.from_hf(of_transformers(n_layers=N_LAYERS)), [], [])
    monkeypatch.setattr(search_race, "chosen", lambda *_: subject)
    monkeypatch.setattr(paths, "CACHE", tmp_path)

    def start(judge: Judge, **changes) -> pd.DataFrame:
        monkeypatch.setattr(search_race, "objective", lambda *_, **__: judge)
        return search_race.race(settings(**changes))

    return start


def test_a_race_has_a_row_for_each_trial_of_each_method_and_seed(started):
    table = started(Judge())
    assert set(table["strategy"]) == {search_race.RACE}
    assert set(table["model"]) == {"tiny"}
    assert set(table["n"]) == {1}
    sizes = table.groupby(["space", "method", "seed"]).size().to_dict()
    for space, trials in (("small", RACE_TRIALS), ("all", TRIALS)):
        for method in ("random", "Ax"):
            for seed in range(SEEDS):
                assert sizes.pop((space, method, seed)) == trials
        for method in ("uniform", "greedy"):
            assert 1 <= sizes.pop((space, method, 0)) <= trials
    assert sizes == {("small", "exhaustive", 0): 1}
    for _, rows in table.loc[table["method"] != "exhaustive"].groupby(["space", "method", "seed"]):
        assert rows["index"].tolist() == [*range(len(rows))]
        assert rows["best"].tolist() == rows["value"].cummax().tolist()
        assert rows["plan"].is_unique
        worth = [toy(fd.SkipPlan.from_json(plan))["speedup"].mean for plan in rows["plan"]]
        assert rows["value"].tolist() == worth


def test_plans_at_random_set_out_from_the_plans_that_ax_sets_out_from(started):
    table = started(Judge())
    free = {"small": [("mlp", layer) for layer in range(3)], "all": None}
    for (space, _), rows in table.query("method in ['random', 'Ax']").groupby(["space", "seed"]):
        starts = [plan.to_json() for plan in Space(N_LAYERS, free[space]).few_skips()]
        for _, tried in rows.groupby("method"):
            assert tried["plan"].tolist()[: len(starts)] == starts[: len(tried)]
    drawn = table.query("method == 'random' and space == 'all' and index == @TRIALS - 1")
    assert drawn["plan"].nunique() == SEEDS


def test_in_the_small_space_every_plan_is_tried(started):
    (row,) = started(Judge()).query("method == 'exhaustive'").to_dict("records")
    plans = [fd.SkipPlan(mlp=[i for i in range(3) if n >> i & 1]) for n in range(8)]
    worth = {plan: toy(plan)["speedup"].mean for plan in plans}
    assert row["index"] == len(worth) - 1
    assert row["value"] == pytest.approx(sum(worth.values()) / len(worth))
    assert row["best"] == max(worth.values())
    assert fd.SkipPlan.from_json(row["plan"]) == max(worth, key=worth.__getitem__)


def test_a_race_that_was_run_judges_no_plan_again(started):
    judge = Judge()
    table = started(judge)
    pd.testing.assert_frame_equal(started(Judge(most=0)), table)
    small = [plan for plan in judge.asked if not plan.attn and plan.mlp <= {0, 1, 2}]
    others = [plan for plan in judge.asked if plan not in small]
    assert len(others) == len(set(others)), "one method knows what another has tried"


@pytest.mark.parametrize("most", [3, 9, 15])
def test_a_race_that_was_interrupted_goes_on(started, tmp_path, monkeypatch, most):
    whole, first, second = Judge(), Judge(most), Judge()
    table = started(whole)
    monkeypatch.setattr(paths, "CACHE", tmp_path / "other")
    with pytest.raises(InterruptedError):
        started(first)
    pd.testing.assert_frame_equal(started(second), table)
    assert first.asked + second.asked == whole.asked


def test_more_seeds_and_trials_go_on_with_what_was_tried(started):
    started(Judge())
    judge = Judge()
    longer = started(judge, trials=TRIALS + 1, race_seeds=SEEDS + 1)
    before = started(Judge(most=0))
    known = {*before.loc[before["space"] == "all", "plan"]}
    assert judge.asked
    assert not known & {plan.to_json() for plan in judge.asked}
    assert set(longer["seed"]) == {0, 1, 2}


def test_a_race_for_little_is_won_by_the_least(started):
    table = started(Judge(), objective="-cost")
    for _, rows in table.loc[table["method"] != "exhaustive"].groupby(["space", "method", "seed"]):
        assert rows["best"].tolist() == rows["value"].cummin().tolist()
    (every,) = table.query("method == 'exhaustive'").to_dict("records")
    assert every["best"] == toy(fd.SkipPlan(mlp=[0, 1, 2]))["cost"].mean
    assert fd.SkipPlan.from_json(every["plan"]) == fd.SkipPlan(mlp=[0, 1, 2])


@pytest.mark.parametrize(
    "change",
    [
        *({"seed": 1}, {"model": "pocket-gemma2"}, {"prompts": "chat"}, {"temperature": 0.5}),
        *({"objective": "overlap"}, {"initial": 3}, {"longest": 2}, {"n_prompts": 5}),
        *({"max_new_tokens": 9}, {"free_layers": (0, 1)}),
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_was_tried_under_other_settings_is_kept_elsewhere(change):
    assert search_race.race_folder(settings(**change)) != search_race.race_folder(settings())


@pytest.mark.parametrize(
    "change",
    [
        *({"exit_tokens": 50}, {"samples": 3}, {"pareto_trials": 20}, {"plans_checked": 4}),
        *({"trials": 99}, {"race_trials": 6}, {"race_seeds": 9}, {"models": ["another"]}),
    ],
    ids=lambda change: next(iter(change)),
)
def test_settings_that_a_plan_s_worth_does_not_depend_on_change_no_folder(change):
    assert search_race.race_folder(settings(**change)) == search_race.race_folder(settings())


def test_other_weights_make_another_race(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "MODELS", tmp_path)
    folders = {search_race.race_folder(settings())}
    (tmp_path / "tiny").mkdir()
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / "tiny" / file).write_text("one")
        folders.add(search_race.race_folder(settings()))
    (tmp_path / "tiny" / "model.safetensors").write_text("another")
    folders.add(search_race.race_folder(settings()))
    assert len(folders) == 5


@pytest.mark.parametrize("rule", ["teacher_forced", "predict", "bayes", "baselines", "decoder"])
def test_other_rules_make_another_race(monkeypatch, rule):
    before, digest = search_race.race_folder(settings()), search_race.digest

    def changed(path):
        return "0" * 16 if path.stem == rule else digest(path)

    monkeypatch.setattr(search_race, "digest", changed)
    assert search_race.race_folder(settings()) != before


@pytest.fixture(scope="module")
def subject() -> Candidate:
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8], [9, 1], [10, 10], [3, 8, 0]]
    return Candidate("tiny", tiny("llama", 11, 3, torch.float32), prompts, [])


PLAN, LENGTH = fd.SkipPlan(attn=[0], mlp=[1]), 2


def judge_of(subject: Candidate, temperature: float):
    by_bytes = ByBytes(subject.decoder.config)
    return plan_search.objective(subject, settings(), by_bytes, temperature=temperature)


def found(subject: Candidate, temperature: float, plan: fd.SkipPlan = PLAN) -> Found:
    best = judge_of(subject, temperature).predict(plan, LENGTH)
    frames = pd.DataFrame(), pd.DataFrame()
    return Found(subject, temperature, [], [best], *frames, seconds=2.0, folder=Path("nowhere"))


def ticking():
    """A clock that moves on by one second each time that it is read."""
    ticks = count()
    return lambda: float(next(ticks))


def test_greedy_texts_vary_alike_foretold_or_decoded(subject):
    """So if one text takes as long to decode as all take to foretell, it is as many times as long.

    They are as many, and decoded one by one.
    """
    told = search_race.effort(found(subject, 0.0), settings(), clock=ticking())
    assert told["effort"] == pytest.approx(len(subject.searched))


def noise(tokens: np.ndarray, time: np.ndarray) -> float:
    """The variance between texts of a ratio of sums, to first order."""
    ratio = tokens.sum() / time.sum()
    off = (tokens - ratio * time) / time.mean()
    return float((off**2).sum() / (len(off) - 1))


def test_sampled_effort_is_that_of_both_variances_worked_out_by_hand(subject):
    """A round of n drafts takes 1 + c n."""
    cost = PLAN.cost(subject.decoder.config)
    times = []
    for case, prompt in enumerate(subject.searched):
        made = fd.generate(
            subject.decoder,
            [prompt],
            sampler=fd.Sampler(),
            max_new_tokens=16,
            drafter=fd.SelfDrafter(PLAN),
            exit_policy=fd.FixedLength(LENGTH),
            generator=torch.Generator().manual_seed(case),
            eos_token_id=[],
        )
        times.append(sum(1 + cost * each.rows[0].drafted for each in made.trace.rounds[1:]))
    decoded = noise(np.full(len(times), 15.0), np.array(times))
    chances = list(islice(judge_of(subject, 1.0).rehearsal.drafts(PLAN), LENGTH))
    along = rounds(chances, LENGTH)
    foretold = noise(along.tokens, along.count + cost * along.drafted)
    told = search_race.effort(found(subject, 1.0), settings(), clock=ticking())
    assert told["effort"] == pytest.approx(len(times) * decoded / foretold)


def test_effort_is_a_positive_number_by_a_real_clock(subject):
    told = search_race.effort(found(subject, 1.0), settings())
    assert 0 < told["effort"] < float("inf")


def test_where_no_text_differs_from_another_there_is_no_effort_to_compare(subject):
    told = search_race.effort(found(subject, 0.0, fd.SkipPlan()), settings(), clock=ticking())
    assert np.isnan(told["effort"])


def test_the_bound_is_the_best_that_a_search_by_bytes_finds_and_is_kept(
    subject, monkeypatch, tmp_path
):
    asked = []

    def search(found, judge, chosen, *, folder):
        asked.append((judge.costs, judge.rehearsal.sampler.temperature, folder.parent))
        return plan_search.bayes.search(
            plan_search.Space.of(found.decoder.config), judge, trials=7, seed=0, folder=folder
        )

    monkeypatch.setattr(paths, "CACHE", tmp_path)
    monkeypatch.setattr(search_race, "chosen", lambda *_: subject)
    monkeypatch.setattr(search_race, "searched", search)
    table = search_race.ceiling("tiny", settings(), temperature=0.0)
    ((costs, temperature, folder),) = asked
    assert (costs, temperature) == (ByBytes(subject.decoder.config, settings().longest), 0.0)
    assert folder == search_race.race_folder(settings(temperature=0.0))
    (row,) = table.to_dict("records")
    assert (row["strategy"], row["sampler"], row["n"]) == (search_race.CEILING, "greedy", 1)
    plan = fd.SkipPlan.from_json(row["plan"])
    predicted = judge_of(subject, 0.0).predict(plan)
    assert (row["value"], row["length"]) == (predicted.speedup.mean, predicted.length)
    assert row["cost_bytes"] == pytest.approx(plan.cost(subject.decoder.config))


@pytest.fixture
def bounded(monkeypatch) -> None:
    """Know the bounds without a search."""
    bound = pd.DataFrame([{"strategy": search_race.CEILING, "value": 1.3, "n": 1}])
    monkeypatch.setattr(search_race, "ceiling", lambda *_, **__: bound)


@pytest.mark.parametrize("step", ["find", "effort"])
def test_a_benchmark_that_is_interrupted_at_its_last_search_leaves_all_plans_as_they_are(
    subject, monkeypatch, bounded, tmp_path, step
):
    """Where it is not, those of temperature 1 are written."""
    monkeypatch.setattr(paths, "PLANS", tmp_path / "plans")
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    best = {"name": "found 1", "acceptance": 0.5, "n": 1, "predicted_held_out": 1.2}
    best |= {f"speedup_{end}": 1.1 for end in ("median", "min", "max", "iqr")}
    breaks = True

    def at(name, temperature, here):
        if breaks and (name, temperature, here) == ("two", 1.0, step):
            raise InterruptedError

    def find(name, chosen, *, temperature, **_):
        at(name, temperature, "find")
        timed = pd.DataFrame([best])
        named = replace(subject, name=name)
        where = tmp_path / "cache" / name / str(temperature)
        where.mkdir(parents=True, exist_ok=True)
        return replace(found(subject, temperature), subject=named, measured=timed, folder=where)

    def effort(each, *_, **__):
        at(each.subject.name, each.temperature, "effort")
        return {"effort": 30.0}

    monkeypatch.setattr(search_race, "find", find)
    monkeypatch.setattr(search_race, "effort", effort)
    monkeypatch.setattr(search_race, "race", lambda *_, **__: pd.DataFrame([{"n": 1}]))
    with pytest.raises(InterruptedError):
        search_race.search_benchmark(settings(models=["one", "two"]))
    assert not (tmp_path / "plans").exists()
    assert (tmp_path / "cache" / "one" / "1.0").is_dir(), "and goes on with what it has found"
    breaks = False
    search_race.search_benchmark(settings(models=["one", "two"]))
    assert {path.name for path in (tmp_path / "plans").iterdir()} == {"one.json", "two.json"}
    assert not [*(tmp_path / "cache").glob("*/*")]


def test_every_model_is_searched_at_both_temperatures_and_one_plan_of_each_is_kept(
    subject, monkeypatch, tmp_path, bounded
):
    kept, forgotten, searched = [], [], []

    def told(each):
        return each.subject.name, each.temperature

    def find(name, chosen, *, temperature, **_):
        searched.append((name, temperature))
        named = replace(subject, name=name)
        costs = pd.DataFrame([{"model": name, "strategy": "draft step", "cost_median": 0.5}])
        rows = pd.DataFrame([{"model": name, "strategy": "self-drafting", "speedup_iqr": 0.1}])
        trials = [Trial(0, fd.SkipPlan(), {}, "start")] * 3
        rows["n"] = costs["n"] = 4
        new = {"subject": named, "trials": trials, "costs": costs, "measured": rows}
        return replace(found(subject, temperature), **new)

    monkeypatch.setattr(search_race, "find", find)
    monkeypatch.setattr(search_race, "keep", lambda each, _: kept.append(told(each)))
    monkeypatch.setattr(search_race, "forget", lambda each: forgotten.append(told(each)))
    monkeypatch.setattr(search_race, "effort", lambda *_, **__: {"effort": 30.0})
    race = pd.DataFrame([{"strategy": search_race.RACE, "seed": 0, "best": 1.1, "n": 1}])
    monkeypatch.setattr(search_race, "race", lambda *_, **__: race)
    table = search_race.search_benchmark(settings(models=["one", "two"]))
    assert searched == [(name, heat) for name in ("one", "two") for heat in (0.0, 1.0)]
    assert kept == [("one", 1.0), ("two", 1.0)]
    assert forgotten == [("one", 0.0), ("two", 0.0)]
    rows = table.loc[table["strategy"] == search_race.SEARCH]
    assert rows[["model", "sampler"]].to_numpy().tolist() == [
        [name, sampler] for name in ("one", "two") for sampler in ("greedy", "temperature 1")
    ]
    assert rows[["seconds", "trials", "effort"]].to_numpy().tolist() == [[2.0, 3, 30.0]] * 4
    counts = table["strategy"].value_counts().to_dict()
    assert counts == {"race": 1, "ceiling": 4, "search": 4, "draft step": 4, "self-drafting": 4}
    monkeypatch.setattr(paths, "RECORDED", tmp_path)
    recording.record("self_speculation", "cpu", table, stamp("self_speculation", {}, []))
    assert len(recording.recordings("self_speculation")["cpu"].table) == len(table)
