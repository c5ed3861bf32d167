"""A Ray cluster is joined where there is one, and started where there is none."""

import os
import sys

import pytest
import ray

from foredraft import parallel
from foredraft.parallel import variable


@pytest.fixture
def asked(monkeypatch):
    """Instead of starting Ray, note what it is asked, and with what in the environment."""
    calls = []

    def init(**options):
        calls.append((options["address"], options.get("num_cpus"), os.environ.copy()))

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: bool(calls))
    return calls


def test_a_cluster_is_started_once_with_as_many_cpus_and_no_reports_of_usage(asked):
    assert parallel.start(workers=3)
    assert not parallel.start(workers=3)
    ((address, cpus, environment),) = asked
    assert (address, cpus) == ("local", 3)
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ


def test_a_cluster_that_runs_keeps_its_own_size(asked):
    assert parallel.start(workers=3, address="auto")
    assert asked[0][:2] == ("auto", None)


def test_without_ray_it_says_how_to_install_it_and_what_does_without(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"requirements\.lock ray` installs it; this does without"):
        parallel.require_ray(otherwise="this")


@pytest.mark.parametrize("before", [None, "old"])
def test_a_variable_is_as_before_whatever_happens_meanwhile(monkeypatch, before):
    monkeypatch.delenv("FOREDRAFT_TRIAL", raising=False)
    if before is not None:
        monkeypatch.setenv("FOREDRAFT_TRIAL", before)
    with pytest.raises(KeyError, match="new"), variable("FOREDRAFT_TRIAL", "new"):
        raise KeyError(os.environ["FOREDRAFT_TRIAL"])
    assert os.environ.get("FOREDRAFT_TRIAL") == before
