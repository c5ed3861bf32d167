"""Engines give the same numbers in the same order, whatever dies on the way."""

import os
import signal
import sys

import pytest

from foredraft.analysis.statistics import Estimate
from foredraft.models.skip import SkipPlan
from foredraft.search.bayes import search
from foredraft.search.engines import Engine, Local, Ray
from foredraft.search.space import Space, branches

PLANS = [SkipPlan(attn=[i], mlp=range(i)) for i in range(6)]


@pytest.fixture(scope="module")
def cluster():
    with Ray(workers=2) as engine:
        yield engine


def deadly(folder):
    """An objective, sent by value, that kills its process the first time it sees PLANS[3]."""
    victim, marker = PLANS[3], folder / "killed"

    def objective(plan):
        if plan == victim and not marker.exists():
            marker.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return {
            "speedup": Estimate(1 + len(plan) / 8, 0.0),
            "pid": Estimate(float(os.getpid()), 0.0),
        }

    return objective


def speedups(measured):
    return [values["speedup"] for values in measured]


def test_a_worker_that_is_killed_loses_nothing(cluster, tmp_path):
    objective = deadly(tmp_path)
    measured = [*cluster.measure(objective, PLANS)]
    killed = int((tmp_path / "killed").read_text())
    assert speedups(measured) == speedups(Local().measure(objective, PLANS))
    pids = {int(values["pid"].mean) for values in measured}
    assert os.getpid() not in pids
    assert killed != os.getpid()
    assert len(pids) >= 2


def test_a_search_on_a_cluster_is_the_search_in_this_process(cluster):
    def objective(plan):
        return {"speedup": Estimate(1 + 0.1 * sum((-1) ** i for _, i in branches(plan)), 0.01)}

    options = {"trials": 9, "seed": 0, "initial": 2, "batch": 2}
    there = search(Space(3), objective, engine=cluster, **options)
    assert there == search(Space(3), objective, **options)


def test_an_error_of_the_objective_is_raised_here(cluster):
    def objective(plan):
        raise ValueError(f"cannot measure {plan}")

    with pytest.raises(ValueError, match="cannot measure"):
        [*cluster.measure(objective, PLANS[:1])]


def test_a_cluster_is_started_without_reports_of_usage_and_leaves_the_environment(cluster):
    import ray

    def objective(plan):
        value = float(os.environ.get("RAY_USAGE_STATS_ENABLED", "1"))
        return {"reports": Estimate(value, 0.0)}

    (told,) = cluster.measure(objective, PLANS[:1])
    assert told["reports"].mean == 0
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ
    assert ray.is_initialized()


def test_what_was_started_is_stopped_at_the_end(monkeypatch):
    import ray

    stopped = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "shutdown", lambda: stopped.append("ours"))
    with Ray(workers=1) as engine:
        engine._start()
    with Ray(workers=1):
        pass
    assert stopped == ["ours"]


def test_local_measures_in_order():
    seen = []

    def objective(plan):
        seen.append(plan)
        return {"index": Estimate(float(len(seen)), 0.0)}

    assert [v["index"].mean for v in Local().measure(objective, PLANS)] == [1, 2, 3, 4, 5, 6]
    assert seen == PLANS


def test_both_are_engines():
    assert isinstance(Local(), Engine)
    assert isinstance(Ray(workers=1), Engine)


def test_without_ray_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install -c requirements\.lock ray"):
        Ray(workers=2)
    with pytest.raises(ValueError, match="workers=0: give 1 or more"):
        Ray(workers=0)
