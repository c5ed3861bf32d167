"""The machine that a measurement was made on."""

import pytest

from foredraft import machine


def test_the_processor_has_a_name_and_cores_and_no_driver():
    here = machine.this_machine("cpu")
    assert here.name
    assert here.cores >= 1
    assert here.driver == ""


def test_a_device_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"no CUDA device here .*use --device cpu"):
        machine.this_machine("cuda")


def test_an_unknown_device_names_the_nearest():
    with pytest.raises(ValueError, match="unknown device 'cude': did you mean 'cuda'"):
        machine.this_machine("cude")


def test_a_graphics_card_is_told_with_its_driver(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 570.1'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    here = machine.this_machine("cuda")
    assert (here.name, here.driver) == ("NVIDIA H100 80GB HBM3", "570.1")
