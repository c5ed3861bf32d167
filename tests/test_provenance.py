"""Stamps, and what carries them."""

import json
import re

import pandas as pd
import pytest

from foredraft import paths, provenance
from foredraft.provenance import Stamp

TABLE = pd.DataFrame({"knob": ["b", "a"], "entropy": [1 / 3, 1e-9], "count": [3, 10**12]})


@pytest.fixture
def stamp() -> Stamp:
    return provenance.stamp("sampling", {"seed": 3, "top_ps": (0.5, 1.0)}, [paths.PARAMS])


def test_a_stamp_survives_json(stamp):
    assert Stamp.from_json(stamp.to_json()) == stamp


def test_a_stamp_states_content_and_nothing_of_this_machine(stamp):
    told = stamp.to_json()
    assert stamp.seed == 3
    assert stamp.inputs == {"params.yaml": provenance.digest(paths.PARAMS)}
    assert str(paths.ROOT) not in told
    assert "+cpu" not in told
    assert not re.search(r"20\d\d-\d\d-\d\d", told), "a date"


def test_a_script_brings_the_modules_that_it_imports():
    stamp = provenance.stamp("x", {}, [paths.ROOT / "src/foredraft/figures.py"])
    assert {"src/foredraft/figures.py", "src/foredraft/files.py"} <= set(stamp.inputs)


def test_changed_inputs_are_those_that_differ_now(stamp):
    assert stamp.changed_inputs() == ()
    old = Stamp(
        what="x",
        params={},
        inputs={"params.yaml": "0" * 16, "gone.py": "0" * 16, "elsewhere/m/w.safetensors": "0"},
        versions={},
    )
    assert old.changed_inputs() == ("params.yaml", "gone.py")


def test_json_is_rounded_stamped_and_the_same_each_time(tmp_path, stamp):
    content = {"values": {"third": 1 / 3, "n": [2, 0.1 + 0.2]}}
    for name in ("a.json", "b.json"):
        provenance.write_json(tmp_path / name, content, stamp)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    read = provenance.read_json(tmp_path / "a.json")
    assert read.stamp.to_json() == stamp.to_json()
    assert read.content == {"values": {"third": 0.333333, "n": [2, 0.3]}}


def test_json_refuses_what_no_reader_could_read(tmp_path, stamp):
    with pytest.raises(ValueError, match="not JSON compliant"):
        provenance.write_json(tmp_path / "a.json", {"x": float("nan")}, stamp)
    with pytest.raises(ValueError, match="the stamp's own"):
        provenance.write_json(tmp_path / "a.json", {"stamp": 1}, stamp)
    assert not list(tmp_path.iterdir())


def test_a_table_is_rounded_in_its_own_order_with_plain_line_ends(tmp_path, stamp):
    path = tmp_path / "t.csv"
    provenance.write_table(path, TABLE, stamp)
    assert path.read_bytes() == b"knob,entropy,count\nb,0.333333,3\na,1e-09,1000000000000\n"
    assert provenance.read_table(path)["knob"].tolist() == ["b", "a"]


def test_a_table_without_its_stamp_is_refused(tmp_path, stamp):
    path = tmp_path / "t.csv"
    provenance.write_table(path, TABLE, stamp)
    path.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match=r"t\.csv has no stamp"):
        provenance.read_table(path)


def test_a_table_changed_by_hand_is_refused(tmp_path, stamp):
    path = tmp_path / "t.csv"
    provenance.write_table(path, TABLE, stamp)
    path.write_text(path.read_text().replace("0.333333", "0.4"))
    with pytest.raises(ValueError, match="not the table of"):
        provenance.read_table(path)


def test_json_without_a_stamp_is_refused(tmp_path):
    for text in ("{}", "[1]"):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match="no stamp"):
            provenance.read_json(tmp_path / "x.json")


def test_further_content_lies_beside_the_table(tmp_path, stamp):
    provenance.write_table(tmp_path / "t.csv", TABLE, stamp, {"values": {"x": 1}})
    written = json.loads((tmp_path / "t.json").read_text())
    assert list(written) == ["stamp", "table", "values"]
