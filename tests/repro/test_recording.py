"""Measurements that are kept with the machine that they were made on."""

import re
from dataclasses import replace

import pandas as pd
import pytest

from foredraft import paths
from foredraft.repro import provenance, recording

TABLE = pd.DataFrame({"what": ["ours", "theirs"], "ms": [1.5, 12.0], "n": 5, "spread": [0.1, 0.2]})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RECORDED", tmp_path)
    return tmp_path


def test_a_recording_comes_back_with_machine_date_and_source(folder):
    stamp = provenance.stamp("sampling", {}, [paths.PARAMS])
    path = recording.record("sampling", "cpu", TABLE, stamp)
    assert path == folder / "sampling.cpu.json"
    read = recording.recordings("sampling")["cpu"]
    assert read.file == path
    pd.testing.assert_frame_equal(read.table, TABLE)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", read.date)
    assert read.machine.device == "cpu"
    assert read.machine.name
    assert read.machine.cores >= 1
    assert read.source_changed == ()


def test_a_recording_says_which_source_has_changed_since(folder):
    old = provenance.Stamp(what="x", params={}, inputs={"params.yaml": "0" * 16}, versions={})
    recording.record("sampling", "cpu", TABLE, old)
    assert recording.recordings("sampling")["cpu"].source_changed == ("params.yaml",)


def test_a_recording_counts_with_the_code_that_its_module_reaches(folder):
    """Not with the bytes of files that it never calls."""
    stamp = provenance.stamp("sampling", {}, [paths.ROOT / "src/foredraft/benchmarks/timing.py"])
    recording.record("sampling", "cpu", TABLE, stamp)
    read = recording.recordings("sampling")["cpu"]
    assert set(read.stamp.code) == {"src/foredraft/benchmarks/timing.py"}
    assert read.source_changed == ()
    older = replace(stamp, code={"src/foredraft/benchmarks/timing.py": "0" * 16})
    recording.record("sampling", "cpu", TABLE, older)
    assert recording.recordings("sampling")["cpu"].source_changed == (
        "src/foredraft/benchmarks/timing.py",
    )


def test_a_table_without_n_and_spread_is_refused(folder):
    stamp = provenance.stamp("sampling", {}, [])
    for missing in ("n", "spread"):
        with pytest.raises(ValueError, match="needs a column n and one ending in _iqr or spread"):
            recording.record("sampling", "cpu", TABLE.drop(columns=missing), stamp)
    assert recording.recordings("sampling") == {}


def test_every_committed_recording_can_be_read():
    for path in paths.RECORDED.glob("*.json"):
        assert not recording.read(path).table.empty


def test_what_was_not_measured_is_left_out_on_disk_and_nan_when_read(folder):
    table = TABLE.assign(acceptance=[float("nan"), 0.5], never=float("nan"))
    path = recording.record("sampling", "cpu", table, provenance.stamp("sampling", {}, []))
    assert path.read_text().count('"acceptance":') == 1
    assert '"never":' not in path.read_text()
    pd.testing.assert_frame_equal(recording.read(path).table, table)
