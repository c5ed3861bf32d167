"""Trials come back as they were written, and as far as they were written."""

import json
import math

import pytest

from foredraft.analysis.statistics import Estimate
from foredraft.models.skip import SkipPlan
from foredraft.search.trial import Aim, Log, Trial, best, table


def trial(index, plan, speedup, cost, origin) -> Trial:
    return Trial(index, plan, {"speedup": Estimate(*speedup), "cost": Estimate(cost, 0.0)}, origin)


TRIALS = [
    trial(0, SkipPlan(), (1.0, 0.1), 0.5, "start"),
    trial(1, SkipPlan([2], [0]), (1 / 3, 1e-17), 0.4, "sobol"),
    trial(2, SkipPlan([1]), (1.5, 0.25), 0.45, "model"),
    trial(3, SkipPlan([3]), (1.5, 0.25), 0.45, "model"),
]


@pytest.fixture
def log(tmp_path) -> Log:
    log = Log(tmp_path / "new" / "trials.jsonl")
    assert log.read() == []
    for each in TRIALS:
        log.append(each)
    return log


def test_trials_come_back_bit_for_bit(log):
    assert log.read() == TRIALS
    assert Log(log.path).read() == TRIALS


@pytest.mark.parametrize("kept", [0, 1, 40, -1])
def test_a_torn_last_line_is_dropped_and_overwritten(log, kept):
    lines = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(b"".join(lines[:3]) + lines[3][:kept])
    assert log.read() == TRIALS[:3]
    log.append(TRIALS[3])
    assert log.path.read_bytes() == b"".join(lines)


def test_a_trial_is_on_disk_when_append_returns(log, monkeypatch):
    synced = []
    monkeypatch.setattr("os.fsync", lambda _: synced.append(log.path.read_text().count("\n")))
    log.append(Trial(4, SkipPlan(mlp=[1]), TRIALS[0].values, "model"))
    assert synced == [5]


@pytest.mark.parametrize(
    "damage",
    [
        "nonsense",
        "[1]",
        json.dumps({**json.loads(TRIALS[2].to_json()), "plan": {"attn": [-1], "mlp": []}}),
        json.dumps({**json.loads(TRIALS[2].to_json()), "values": {"speedup": [1.0]}}),
        json.dumps({**json.loads(TRIALS[2].to_json()), "origin": "guess"}),
        TRIALS[1].to_json(),
    ],
)
def test_a_damaged_line_is_named(log, damage):
    lines = log.path.read_text().splitlines()
    log.path.write_text("\n".join([*lines[:2], damage, lines[3]]) + "\n")
    with pytest.raises(ValueError, match=r"trials.jsonl, line 3: .*search in another folder"):
        log.read()


def test_the_table_has_a_row_a_trial_and_the_best_so_far():
    frame = table(TRIALS)
    assert [*frame] == [
        *("index", "plan", "branches", "origin"),
        *("speedup", "speedup_sem", "cost", "cost_sem", "best"),
    ]
    assert frame["best"].tolist() == [1.0, 1.0, 1.5, 1.5]
    assert table(TRIALS, "-cost")["best"].tolist() == [0.5, 0.4, 0.4, 0.4]
    assert frame["branches"].tolist() == [0, 2, 1, 1]
    assert [SkipPlan.from_json(text) for text in frame["plan"]] == [t.plan for t in TRIALS]
    assert frame["speedup_sem"].tolist() == [0.1, 1e-17, 0.25, 0.25]
    assert [*table([])] == ["index", "plan", "branches", "origin", "best"]


def test_the_best_trial_is_the_first_of_the_best_mean():
    assert best(TRIALS) == TRIALS[2]
    assert best(TRIALS, "-cost") == TRIALS[1]
    assert best(TRIALS, "-speedup") == TRIALS[1]
    with pytest.raises(ValueError, match="no trial was made"):
        best([])


def test_a_metric_that_was_not_measured_is_named():
    with pytest.raises(ValueError, match="unknown metric 'speed_up': did you mean 'speedup'"):
        Aim.of("-speed_up").value(TRIALS[0].values)


@pytest.mark.parametrize(
    ("mean", "sem"), [(math.nan, 0.0), (math.inf, 0.0), (1.0, -0.1), (1.0, math.nan)]
)
def test_an_estimate_is_finite_and_its_error_not_negative(mean, sem):
    with pytest.raises(ValueError, match="needs finite numbers"):
        Estimate(mean, sem)
