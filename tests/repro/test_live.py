"""Bars are for who watches; what is executed by itself shows none."""

import pytest

from foredraft.repro import live


@pytest.fixture(params=[False, True], ids=["alone", "watched"])
def watched(request, monkeypatch) -> bool:
    monkeypatch.delenv(live.SESSION_VARIABLE, raising=False)
    if request.param:
        monkeypatch.setenv(live.SESSION_VARIABLE, "notebooks/01_sampling.ipynb")
    return request.param


def test_a_notebook_is_live_where_jupyters_server_names_it(watched):
    assert live.is_live() == watched


def test_steps_gives_all_items_and_a_bar_only_to_who_watches(watched, monkeypatch, capsys):
    monkeypatch.setattr(live, "PATIENCE", 0.0)
    assert list(live.steps(range(5), "plans")) == [*range(5)]
    told = capsys.readouterr()
    assert ("plans" in told.err) == watched
    assert told.out == ""


def test_a_counter_tells_only_who_watches(watched, monkeypatch, capsys):
    monkeypatch.setattr(live, "PATIENCE", 0.0)
    tell = live.counter("tables", 40)
    for done in (10, 40):
        tell(done)
    assert ("tables" in capsys.readouterr().err) == watched


def test_what_is_quick_shows_no_bar(monkeypatch, capsys):
    monkeypatch.setenv(live.SESSION_VARIABLE, "notebooks/01_sampling.ipynb")
    assert sum(live.steps([1, 2, 3], "plans")) == 6
    tell = live.counter("tables", 2)
    for done in (1, 2):
        tell(done)
    told = capsys.readouterr().err
    assert "plans" not in told
    assert "tables" not in told
