"""Searches find good plans, and go on after any interruption as if there had been none."""

import io
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from foredraft.analysis.statistics import Estimate
from foredraft.models.skip import SkipPlan
from foredraft.search.bayes import pareto, search
from foredraft.search.engines import Local
from foredraft.search.space import Space, branches
from foredraft.search.trial import Log, Trial, best

TRIALS = 14
OPTIONS = {"trials": TRIALS, "seed": 5, "initial": 4}

KILLED = """
import os, signal, sys, time
from pathlib import Path
from foredraft.models.skip import SkipPlan
from foredraft.search.bayes import search
from foredraft.search.quiet import quiet_ax
from foredraft.search.space import Space, branches
from tests.search.conftest import toy

folder = Path(sys.argv[1])
space = Space(4, free=branches(SkipPlan(attn=range(4), mlp=range(3))))
fsync = os.fsync

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def run(objective=toy, report=None):
    search(space, objective, trials=14, seed=5, initial=4, folder=folder, report=report)

def while_measuring(plan, left=[2]):
    left[0] -= 1
    return toy(plan) if left[0] else die()

def while_writing(descriptor):
    size = os.fstat(descriptor).st_size
    if size > 1200:
        os.ftruncate(descriptor, size - 50)
        die()
    fsync(descriptor)

def tear():
    os.fsync = while_writing
    run()

def after_measuring(trial):
    if trial.origin == "model":
        die()

moments = [
    lambda: run(while_measuring),
    tear,
    lambda: run(report=after_measuring),
    lambda: run(while_measuring),
    run,
]
with quiet_ax():
    import ax.adapter.registry  # once, for all the children
for moment in moments:
    child = os.fork()
    if child == 0:
        moment()
        os._exit(0)
    if moment is run:
        time.sleep(0.5)
        os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    written = (folder / "trials.jsonl").read_bytes()
    print(written.count(b"\\n"), written.endswith(b"\\n"))
"""


@pytest.fixture(scope="module")
def uninterrupted(space, objective) -> list[Trial]:
    return search(space, objective, **OPTIONS)


def never(plan):
    raise AssertionError(f"{plan} was measured")


def test_a_killed_search_goes_on_as_if_it_had_not_been(tmp_path, space, objective, uninterrupted):
    """Killed while it measures, while it writes, between two trials, and at any moment."""
    told = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    ).stdout.split("\n")
    counts = [int(line.split()[0]) for line in told if line]
    assert [line.split()[1] for line in told if line] == ["True", "False", "True", "True", "True"]
    assert counts[0] == 1
    assert counts == sorted(counts)
    assert counts[-1] < TRIALS
    measured = []
    resumed = search(
        space, objective, folder=tmp_path, report=lambda t: measured.append(t), **OPTIONS
    )
    assert resumed == uninterrupted
    assert measured == uninterrupted[counts[-1] :]


def test_a_search_that_is_complete_measures_nothing(tmp_path, space, objective, uninterrupted):
    assert search(space, objective, folder=tmp_path, **OPTIONS) == uninterrupted
    assert Log(tmp_path / "trials.jsonl").read() == uninterrupted
    assert search(space, never, folder=tmp_path, **OPTIONS) == uninterrupted
    fewer = {**OPTIONS, "trials": 5}
    assert search(space, never, folder=tmp_path, **fewer) == uninterrupted[:5]


def test_more_trials_continue_a_search_and_a_batch_that_was_torn_apart(tmp_path, space, objective):
    options = {"seed": 1, "initial": 2, "batch": 3, "starts": ()}
    whole = search(space, objective, trials=11, **options)
    for trials in (2, 4, 8):
        assert search(space, objective, trials=trials, folder=tmp_path, **options) == whole[:trials]
    assert search(space, objective, trials=11, folder=tmp_path, **options) == whole
    assert [trial.origin for trial in whole] == ["start", *["sobol"] * 2, *["model"] * 8]
    assert len({trial.plan for trial in whole}) == 11


def test_a_batch_is_measured_at_once(space, objective):
    class Watched:
        sizes = ()

        def measure(self, objective, plans):
            self.sizes += (len(plans),)
            return Local().measure(objective, plans)

    engine = Watched()
    search(space, objective, trials=8, seed=1, initial=2, batch=3, starts=(), engine=engine)
    assert engine.sizes == (3, 3, 2)


def test_trials_start_with_few_skips_then_cover_the_space_then_follow_the_model(
    space, uninterrupted
):
    starts = space.few_skips()
    origins = [trial.origin for trial in uninterrupted]
    assert tuple(trial.plan for trial in uninterrupted[: len(starts)]) == starts
    assert origins[: len(starts)] == ["start"] * len(starts)
    assert origins[len(starts) :] == sorted(origins[len(starts) :], reverse=True)
    assert set(origins) == {"start", "sobol", "model"}
    assert [trial.index for trial in uninterrupted] == list(range(TRIALS))
    assert len({trial.plan for trial in uninterrupted}) == TRIALS


def test_the_random_state_of_the_process_is_neither_used_nor_changed(space, objective):
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1]
        runs.append(search(space, objective, trials=6, seed=3, initial=4, starts=()))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1] == before[1]).all()
    assert runs[0] == runs[1]
    other = search(space, objective, trials=6, seed=4, initial=4, starts=())
    assert [trial.plan for trial in other] != [trial.plan for trial in runs[0]]


def test_the_model_finds_a_plan_near_the_best_of_all(objective):
    """256 plans, of which 20 are tried: at least 95 % of what the best gains over the mean."""
    space = Space(4)
    every = [objective(plan)["speedup"].mean for plan in space.plans()]
    found = best(search(space, objective, trials=20, seed=0, initial=6, starts=()))
    gain = (found.values["speedup"].mean - np.mean(every)) / (max(every) - np.mean(every))
    assert gain >= 0.95


def test_a_metric_with_a_minus_is_made_small_and_the_budget_is_kept(objective):
    space = Space(6, always=SkipPlan(mlp=[5]), budget=3)
    trials = search(space, objective, trials=9, seed=0, goal="-speedup", initial=4)
    assert all(trial.plan in space for trial in trials)
    assert {trial.origin for trial in trials} == {"start", "sobol", "model"}
    rising = search(space, objective, trials=9, seed=0, initial=4)
    assert [t.plan for t in rising[:-2]] == [t.plan for t in trials[:-2]]
    assert rising[-1].values["speedup"].mean > trials[-1].values["speedup"].mean


@pytest.mark.parametrize("batch", [1, 3])
def test_a_space_is_searched_to_its_end_and_no_further(objective, batch):
    space = Space(2, free=[("attn", 0), ("mlp", 0), ("mlp", 1)])
    trials = search(space, objective, trials=20, seed=0, initial=2, starts=(), batch=batch)
    assert len(trials) == 8
    assert {trial.plan for trial in trials} == set(space.plans())
    alone = Space(2, free=[], always=SkipPlan([0]))
    assert [t.plan for t in search(alone, objective, trials=9, seed=0)] == [SkipPlan([0])]


def test_plans_are_found_under_a_budget_that_chance_hardly_keeps(objective):
    space = Space(8, free=[*branches(SkipPlan(attn=range(8), mlp=range(6)))], budget=1)
    trials = search(space, objective, trials=99, seed=0, initial=2, batch=7, starts=())
    assert len(trials) == space.size == 15
    assert {trial.plan for trial in trials} == set(space.plans())
    with pytest.raises(ValueError, match=r"allows 1e-06 of all sets of 24 branches.*raise the bud"):
        search(Space(12, budget=1), never, trials=3, seed=0)


def test_two_goals_are_traded_off(objective):
    """A search of 14 of 32 plans finds most of the front; 14 random ones find 2 or 3 of its 6."""
    space, goal = (
        Space(4, free=branches(SkipPlan(attn=range(3), mlp=range(2)))),
        ("-cost", "acceptance"),
    )
    every = [Trial(0, plan, objective(plan), "exhaustive") for plan in space.plans()]
    front = {trial.plan for trial in pareto(every, goal)}
    options = {"trials": 14, "seed": 1, "initial": 4, "starts": (), "goal": goal}
    found = {trial.plan for trial in search(space, objective, **options)}
    assert len(front) == 6
    assert len(found & front) >= 5


def test_thresholds_keep_two_goals_from_what_does_not_count(space, objective):
    options = {**OPTIONS, "starts": (), "goal": ("-cost", "acceptance"), "trials": 11}
    counted = {}
    for bound in (0.0, 0.6):
        trials = search(space, objective, thresholds={"acceptance": bound}, **options)
        modelled = [trial.values["acceptance"].mean for trial in trials if trial.origin == "model"]
        counted[bound] = sum(acceptance >= 0.6 for acceptance in modelled)
    assert counted[0.6] > counted[0.0]


def test_the_front_is_made_of_the_trials_that_none_beats():
    rng = np.random.default_rng(0)
    points = rng.integers(0, 6, (60, 2)).astype(float)
    trials = [
        Trial(i, SkipPlan([i]), {"a": Estimate(a, 0.1), "b": Estimate(b, 0.1)}, "random")
        for i, (a, b) in enumerate(points.tolist())
    ]
    for goal, signs in ((("a", "b"), (1, 1)), (("-a", "b"), (-1, 1)), (("-b", "-a"), None)):
        value = points * signs if signs else -points[:, ::-1]
        beaten = [
            any((other >= mine).all() and (other > mine).any() for other in value) for mine in value
        ]
        front = pareto(trials, goal)
        assert {t.index for t in front} == {i for i, lost in enumerate(beaten) if not lost}
        along = [value[trial.index, 0] for trial in front]
        assert along == sorted(along, reverse=True)


def test_another_search_in_the_same_folder_is_refused_and_the_difference_named(
    tmp_path, space, objective
):
    options = {"trials": 2, "seed": 0, "folder": tmp_path, "name": "one"}
    search(space, objective, **options)
    for change, message in {
        ("seed", 1): "seed 0, now 1",
        ("name", "two"): "name one, now two",
        ("goal", "-cost"): r"goal \['speedup'\], now \['-cost'\]",
        ("initial", 3): "initial 8, now 3",
        ("batch", 2): "batch 1, now 2",
        ("starts", ()): "starts .*, now",
    }.items():
        with pytest.raises(ValueError, match=f"other settings: {message}.*another folder"):
            search(space, never, **{**options, change[0]: change[1]})
    with pytest.raises(ValueError, match=r"other settings: space .*'budget': 3"):
        search(Space(4, free=space.free, budget=3), never, **options)
    (tmp_path / "search.json").unlink()
    with pytest.raises(ValueError, match=r"has no search\.json beside it"):
        search(space, never, **options)


def test_two_processes_cannot_search_in_one_folder_at_a_time(tmp_path, space, objective):
    options = {"trials": 3, "seed": 0, "folder": tmp_path}

    def breaks(plan):
        raise InterruptedError

    def meets(plan):
        with pytest.raises(ValueError, match=r"another process is searching in .*another folder"):
            search(space, never, **options)
        return objective(plan)

    with pytest.raises(InterruptedError):
        search(space, breaks, **options)
    assert len(search(space, meets, **options)) == 3


def test_what_an_engine_has_measured_of_a_batch_is_known_though_it_breaks_down(
    tmp_path, space, objective
):
    class Failing:
        def __init__(self, most):
            self.most, self.asked = most, []

        def measure(self, judge, plans):
            for plan in plans:
                if len(self.asked) == self.most:
                    raise InterruptedError
                self.asked.append(plan)
                yield judge(plan)

    options = {"trials": 12, "seed": 0, "initial": 3, "batch": 4, "folder": tmp_path}
    whole = search(space, objective, **{**options, "folder": None})
    for most in (2, 7, 1):
        with pytest.raises(InterruptedError):
            search(space, objective, engine=Failing(most), **options)
    last = Failing(10**6)
    assert search(space, objective, engine=last, **options) == whole
    assert len(last.asked) == 12 - 2 - 7 - 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "trials=0: give 1 or more"),
        ({"batch": 0}, "batch=0: give 1 or more"),
        ({"initial": 0}, "initial=0: give 1 or more"),
        ({"seed": -1}, "seed=-1: a seed is 0 to"),
        ({"goal": ("cost", "-cost")}, "two that differ"),
        ({"goal": "speed"}, "unknown metric 'speed': did you mean 'speedup'"),
        ({"thresholds": {"speedup": 1.0}}, "they are for two goals"),
        ({"goal": ("-cost", "speedup"), "thresholds": {"acceptance": 1.0}}, "for two goals"),
        ({"starts": [SkipPlan(mlp=[3])]}, "lies outside the space"),
    ],
)
def test_settings_that_make_no_search_are_refused(space, objective, options, message):
    with pytest.raises(ValueError, match=message):
        search(space, objective, **{"trials": 3, "seed": 0, **options})


def test_ax_is_silent_and_can_be_heard_again_afterwards(space, objective):
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    logging.getLogger("ax").addHandler(handler)
    try:
        search(space, objective, trials=4, seed=0, initial=1, starts=())
        assert heard.getvalue() == ""
        logging.getLogger("ax.api.client").info("again")
        assert heard.getvalue() == "again\n"
    finally:
        logging.getLogger("ax").removeHandler(handler)
