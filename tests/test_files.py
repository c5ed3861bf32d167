"""Whole files or none."""

import pytest

from foredraft import files


def test_a_file_is_replaced_as_a_whole_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new" / "file.txt"
    files.write_text(path, "old")
    files.write_text(path, "α\n")
    assert path.read_bytes() == "α\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    files.write_text(path, "old")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_digest_is_that_of_the_content(tmp_path):
    files.write_text(tmp_path / "a", "same")
    files.write_text(tmp_path / "b", "same")
    files.write_text(tmp_path / "c", "other")
    same, again, other = (files.digest(tmp_path / name) for name in "abc")
    assert same == again == "0967115f2813a354"
    assert other != same
