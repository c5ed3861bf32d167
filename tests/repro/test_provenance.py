"""Stamps and marks, and what carries them."""

import json
import re

import pandas as pd
import pytest

from foredraft import paths
from foredraft.repro import digests, provenance, values
from foredraft.repro.provenance import Mark, Stamp

TABLE = pd.DataFrame({"knob": ["b", "a"], "entropy": [1 / 3, 1e-9], "count": [3, 10**12]})


@pytest.fixture
def stamp() -> Stamp:
    return provenance.stamp("sampling", {"seed": 3, "top_ps": (0.5, 1.0)}, [paths.PARAMS])


def test_a_stamp_survives_json(stamp):
    assert Stamp.from_json(stamp.to_json()) == stamp


def test_a_stamp_of_a_former_version_is_read():
    """It had its sources, file by file, among the inputs."""
    old = {"what": "x", "params": {}, "inputs": {"src/a.py": "0" * 16}, "versions": {}, "seed": 1}
    read = Stamp.from_json(json.dumps(old))
    assert (read.inputs, read.code) == ({"src/a.py": "0" * 16}, {})


def test_a_stamp_states_content_and_nothing_of_this_machine(stamp):
    text = stamp.to_json()
    assert stamp.seed == 3
    assert stamp.inputs == {"params.yaml": provenance.digest(paths.PARAMS)}
    assert str(paths.ROOT) not in text
    assert "+cpu" not in text
    assert not re.search(r"20\d\d-\d\d-\d\d", text), "a date"


def test_a_script_counts_with_all_that_it_reaches_and_other_files_by_their_bytes():
    source, notebook = paths.ROOT / "src/foredraft/viz/figures.py", paths.notebook("sampling")
    stamp = provenance.stamp("x", {}, [source, notebook, paths.PARAMS])
    assert stamp.inputs == {"params.yaml": provenance.digest(paths.PARAMS)}
    assert stamp.code == {
        "src/foredraft/viz/figures.py": digests.of(source),
        "notebooks/01_sampling.py": digests.of(notebook),
    }
    assert stamp.code["src/foredraft/viz/figures.py"] != provenance.digest(source)
    assert stamp.changed_inputs() == ()


def test_changed_inputs_are_those_that_differ_now(stamp):
    assert stamp.changed_inputs() == ()
    old = Stamp(
        what="x",
        params={},
        inputs={"params.yaml": "0" * 16, "gone.txt": "0" * 16, "elsewhere/m/w.safetensors": "0"},
        versions={},
        code={"notebooks/01_sampling.py": "0" * 16, "src/gone.py": "0" * 16},
    )
    assert old.changed_inputs() == (
        *("params.yaml", "gone.txt"),
        *("notebooks/01_sampling.py", "src/gone.py"),
    )


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
    with pytest.raises(ValueError, match="not JSON compliant"):
        provenance.write_marked(tmp_path / "a.json", "sampling", "results", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_marked_file_has_the_digest_of_its_rounded_content(tmp_path):
    path = tmp_path / "a.json"
    mark = provenance.write_marked(path, "sampling", "results", {"x": {"third": 1 / 3}})
    assert mark == Mark("sampling", "results", values.digest({"x": {"third": 0.333333}}))
    assert provenance.read_stamp(path) == mark
    assert provenance.read_marked(path) == {"x": {"third": 0.333333}}
    assert provenance.parse(mark.to_json()) == mark


def test_a_marked_file_is_the_same_bytes_each_time_however_the_last_digits_are(tmp_path):
    for name, third in (("a", 1 / 3), ("b", 1 / 3 + 1e-12)):
        provenance.write_marked(tmp_path / name, "sampling", "results", {"x": third})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_marked_file_may_be_laid_out_otherwise_but_not_edited(tmp_path):
    path = tmp_path / "a.json"
    provenance.write_marked(path, "sampling", "results", {"x": 1, "y": [2, 3]})
    document = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(document.items())), indent=4))
    assert provenance.read_marked(path) == {"x": 1, "y": [2, 3]}
    path.write_text(json.dumps({**document, "x": 2}))
    for read in (provenance.read_marked, provenance.read_stamp):
        with pytest.raises(ValueError, match=r"a\.json was edited after it was written"):
            read(path)


def test_a_stamped_file_of_a_former_version_is_read_as_it_is(tmp_path, stamp):
    provenance.write_json(tmp_path / "a.json", {"x": 1}, stamp)
    assert provenance.read_marked(tmp_path / "a.json") == {"x": 1}
    found = provenance.read_stamp(tmp_path / "a.json")
    assert isinstance(found, Stamp)
    assert found.to_json() == stamp.to_json()
    assert provenance.parse(stamp.to_json()) == found


def test_half_a_file_is_refused_by_name(tmp_path):
    path = tmp_path / "a.json"
    provenance.write_marked(path, "sampling", "results", {"x": 1})
    path.write_text(path.read_text()[:-10])
    for read in (provenance.read_marked, provenance.read_stamp, provenance.read_json):
        with pytest.raises(ValueError, match=r"a\.json is not a whole JSON file"):
            read(path)


def test_a_table_is_rounded_in_its_own_order_with_plain_line_ends(tmp_path, stamp):
    path = tmp_path / "t.csv"
    provenance.write_table(path, TABLE, stamp)
    assert path.read_bytes() == b"knob,entropy,count\nb,0.333333,3\na,1e-09,1000000000000\n"
    assert provenance.read_table(path)["knob"].tolist() == ["b", "a"]


def test_a_table_beside_a_marked_file_is_read(tmp_path):
    beside = provenance.write_csv(tmp_path / "t.csv", TABLE)
    assert beside == {"file": "t.csv", "digest": provenance.digest(tmp_path / "t.csv")}
    provenance.write_marked(tmp_path / "t.json", "sampling", "results", {"table": beside})
    assert provenance.read_table(tmp_path / "t.csv")["count"].tolist() == [3, 10**12]


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
    for text in ("{}", "[1]", '{"stamp": 1}'):
        (tmp_path / "x.json").write_text(text)
        for read in (provenance.read_json, provenance.read_marked, provenance.read_stamp):
            with pytest.raises(ValueError, match="no stamp"):
                read(tmp_path / "x.json")


def test_further_content_lies_beside_the_table(tmp_path, stamp):
    provenance.write_table(tmp_path / "t.csv", TABLE, stamp, {"values": {"x": 1}})
    written = json.loads((tmp_path / "t.json").read_text())
    assert list(written) == ["stamp", "table", "values"]
