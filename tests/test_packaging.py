"""The environment and the package: pins that agree, one list, and nothing that shadows."""

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from importlib.util import find_spec

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import foredraft
from foredraft import paths

ENVIRONMENT = yaml.safe_load((paths.ROOT / "environment.yml").read_text())
PROJECT = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())
LOCK = {
    canonicalize_name(pin.name): str(pin.specifier)
    for line in (paths.ROOT / "requirements.lock").read_text().splitlines()
    if not line.startswith("#") and (pin := Requirement(line))
}
DIRECT = [Requirement(text) for text in ENVIRONMENT["dependencies"][-1]["pip"]]
CUDA_BUILD_NEEDS = [
    "setuptools>=77.0.3",
    "sympy>=1.13.3",
    "networkx>=2.5.1",
    "jinja2",
    "fsspec>=0.8.5",
    "filelock",
    "typing-extensions>=4.10",
    "triton==3.7.1",
]
MODULES = [
    name
    for package in (foredraft, importlib.import_module("foredraft.kernels"))
    for _, name, _ in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]


def test_every_direct_dependency_is_pinned_exactly_and_as_the_lock_has_it():
    assert len({pin.name for pin in DIRECT}) == len(DIRECT)
    for pin in DIRECT:
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), pin
        assert LOCK[canonicalize_name(pin.name)] == str(pin.specifier), pin


def test_the_lock_pins_everything_and_holds_for_every_build_of_torch():
    for name, specifier in LOCK.items():
        assert re.fullmatch(r"==[\w.]+", specifier), f"{name}: exact, and no local version"
        assert not re.match("nvidia|cuda", name), f"{name} comes with the CUDA build of torch only"


@pytest.mark.parametrize("needed", CUDA_BUILD_NEEDS)
def test_the_cuda_build_of_torch_can_be_installed_with_the_lock(needed):
    requirement = Requirement(needed)
    pinned = LOCK[canonicalize_name(requirement.name)].removeprefix("==")
    assert requirement.specifier.contains(pinned)


def test_what_is_installed_is_what_is_pinned():
    for pin in DIRECT:
        if pin.marker is None or pin.marker.evaluate():
            assert pin.specifier.contains(version(pin.name)), f"{pin}: run `make setup`"


def test_set_up_reads_the_same_list_as_conda_does():
    """`.ci/setup` reads environment.yml before there is a YAML parser."""
    read = "source <(sed -n '/^requirements() {/,/^}/p' .ci/setup); requirements"
    told = subprocess.run(
        ["bash", "-c", read], cwd=paths.ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert told.splitlines() == ENVIRONMENT["dependencies"][-1]["pip"]


def test_set_up_refuses_another_python_and_says_what_to_do():
    environment = {**os.environ, "PY": "false"}
    told = subprocess.run(
        [paths.ROOT / ".ci" / "setup"], env=environment, check=False, capture_output=True, text=True
    )
    assert told.returncode == 1
    assert "foredraft needs Python 3.11" in told.stderr
    assert "make PY=" in told.stderr


def test_python_is_the_same_everywhere():
    assert "python=3.11" in ENVIRONMENT["dependencies"]
    assert PROJECT["project"]["requires-python"] == "==3.11.*"
    assert sys.version_info[:2] == (3, 11)


def test_every_package_on_disk_is_in_the_package_map():
    folders = {path.parent for path in paths.PACKAGES["foredraft"].rglob("__init__.py")}
    source = paths.PACKAGES["foredraft"].parent
    names = {".".join(folder.relative_to(source).parts) for folder in folders}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == names | {"foredraft.kernels"}


def test_our_kernels_are_importable_and_do_not_shadow_hugging_faces():
    assert find_spec("foredraft.kernels") is not None
    bare = find_spec("kernels")
    assert bare is None or not str(bare.origin).startswith(str(paths.ROOT))


@pytest.mark.parametrize("name", MODULES)
def test_every_module_can_be_imported_and_its_examples_hold(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
