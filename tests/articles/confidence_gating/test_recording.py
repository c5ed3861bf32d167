"""What is recorded of article 05, and what costs are taken from it."""

from dataclasses import replace
from itertools import count

import pandas as pd
import pytest
import torch

import foredraft as fd
from foredraft import paths
from foredraft.articles.confidence_gating import recording as gating_race
from foredraft.articles.confidence_gating.experiment import Subject
from foredraft.benchmarks import round_costs as benchmark
from foredraft.benchmarks.round_costs import GATE, PARTS, POLICY
from foredraft.prompts import Prompt
from foredraft.repro import recording
from foredraft.repro.provenance import stamp
from tests.articles.confidence_gating.test_experiment import KINDS, TEXTS, letters, settings
from tests.decoding.conftest import tiny


@pytest.fixture(scope="module")
def subjects() -> dict[str, Subject]:
    target, draft = (tiny("llama", 11, seed, torch.float32) for seed in (3, 4))
    prompts = [Prompt(kind, tuple(ids)) for kind, ids in zip(KINDS, TEXTS, strict=True)]
    drafters = {"draft model": fd.ModelDrafter(draft), "prompt lookup": fd.PromptLookupDrafter()}
    return {
        name: Subject(name, "tiny", "", target, drafter, prompts, prompts[::-1], letters())
        for name, drafter in drafters.items()
    }


@pytest.fixture(scope="module")
def recorded(subjects) -> pd.DataFrame:
    ticks = count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gating_race, "subject", lambda name, _: subjects[name])
        patch.setattr(benchmark, "LENGTHS", (1, 2))
        return gating_race.gating_benchmark(settings(), clock=lambda: float(next(ticks)))


def test_parts_policies_and_gates_are_recorded_of_each_drafter_at_both_temperatures(recorded):
    sizes = recorded.groupby(["strategy", "drafter", "sampler"]).size()
    for drafter in ("draft model", "prompt lookup"):
        for sampler in ("greedy", "temperature 1"):
            assert sizes[PARTS, drafter, sampler] == 4
            rows = recorded.loc[
                (recorded["strategy"] == POLICY)
                & (recorded["drafter"] == drafter)
                & (recorded["sampler"] == sampler)
            ]
            names = {"never", *gating_race.RACED, gating_race.AGAIN}
            if drafter == "prompt lookup":
                names.remove("draft's confidence")
            assert set(rows["policy"]) == names
            others = rows.loc[rows["policy"] != "never"]
            known = ["foretold", "foretold_gain", "gain", "gain_sem", "length", "speedup_median"]
            assert others[known].notna().all(axis=None)
            assert (others["n"] == gating_race.REPEATS * len(TEXTS)).all()
            fixed = others.set_index("policy").loc["fixed length"]
            assert (fixed["gain"], fixed["gain_sem"], fixed["foretold_gain"]) == (1, 0, 1)
    gates = recorded.loc[recorded["strategy"] == GATE, "policy"].tolist()
    assert gates == ["always", "confidence", "entropy", "margin", "expected gain"]


def test_what_is_recorded_can_be_kept(recorded, monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "RECORDED", tmp_path)
    recording.record("confidence_gating", "cpu", recorded, stamp("confidence_gating", {}, []))
    assert len(recording.recordings("confidence_gating")["cpu"].table) == len(recorded)


@pytest.mark.parametrize(
    ("temperature", "sampler"), [(0.0, "greedy"), (1.0, "temperature 1"), (0.7, "temperature 1")]
)
def test_costs_are_those_recorded_of_drafter_and_sampler(recorded, subjects, temperature, sampler):
    found = gating_race.known_costs(recorded, subjects["draft model"], temperature, 3)
    rows = recorded.loc[
        (recorded["strategy"] == PARTS)
        & (recorded["drafter"] == "draft model")
        & (recorded["sampler"] == sampler)
    ]
    assert found == benchmark.costs(rows, longest=3)


def test_what_was_not_timed_costs_what_its_weights_do(recorded, subjects):
    target = subjects["draft model"].target
    plan = fd.SkipPlan([0], [1])
    for drafter, wanted in (
        (fd.SelfDrafter(plan), plan.cost(target.config)),
        (fd.ModelDrafter(target), 1.0),
        (fd.PromptLookupDrafter(), 0.0),
    ):
        other = replace(subjects["draft model"], model="elsewhere", drafter=drafter)
        found = gating_race.known_costs(recorded, other, 1.0, 2)
        assert found.watched == found.unwatched
        assert found.watched.draft == pytest.approx(wanted)
        assert found.watched.verify == {1: 1.0, 2: 1.0}
