"""Which modules of ours a file imports."""

from pathlib import Path

import pytest

from foredraft import paths
from foredraft.imports import closure, imported

SOURCE = '''
"""import nothing"""
import numpy as np
from typing import TYPE_CHECKING
import foredraft as fd
from foredraft import paths
if TYPE_CHECKING:
    from foredraft.viz.figures import Style

def lazily():
    from foredraft.repro.provenance import Stamp
    return fd.Sampler, fd.__doc__, np.load
'''


@pytest.fixture
def script(tmp_path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SOURCE)
    return path


def test_imports_inside_functions_and_public_names_count(script):
    names = imported(script)
    assert {"numpy", "foredraft.paths", "foredraft.repro.provenance", "foredraft.sampling"} <= names


def test_imports_for_the_type_checker_do_not_count(script):
    assert not any("figures" in name for name in imported(script))


def test_a_public_name_imported_from_the_package_counts_as_its_home(tmp_path):
    path = tmp_path / "script.py"
    path.write_text("from foredraft import SkipPlan")
    assert "foredraft.models.skip" in imported(path)


def test_the_closure_is_transitive_and_has_no_package_files(script):
    found = {paths.label(path) for path in closure(script)}
    assert "src/foredraft/files.py" in found, "through provenance"
    assert not any(name.endswith("__init__.py") for name in found)
    assert "src/foredraft/registry.py" not in found, "a registry"


def test_a_file_that_imports_nothing_is_its_own_closure(tmp_path):
    path = tmp_path / "alone.py"
    path.write_text("x = 1")
    assert closure(path) == (path,)
