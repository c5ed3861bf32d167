"""What every test stands on: no network, no window, a repository that is left alone."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from xdist.remote import Producer

from tests import schedule, typechecks
from tests.proofs import told

typechecks.install()  # before any test imports the package
os.environ |= {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}
if not torch.cuda.is_available():
    # Before any test imports Triton, by way of transformers say: kernels are interpreted.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that takes whatever the test writes instead of the repository."""
    monkeypatch.setenv("FOREDRAFT_OUTPUT", str(tmp_path))
    return tmp_path


@pytest.fixture(autouse=True, scope="module")
def accelerators_of_this_file_alone() -> Iterator[None]:
    """Let the next file choose its own precision: accelerate keeps one for the whole process."""
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(True)
        GradientState._reset_state()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the slowest files begin."""
    items.sort(key=schedule.place)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> schedule.SlowestFirst:
    """Let `make test` hand out the tests in that order."""
    return schedule.SlowestFirst(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell which test catches which known bug, and how exact the laws are."""
    lines = [*told(terminalreporter.stats.get("passed", []))]
    if lines:
        terminalreporter.section("proofs")
    for line in lines:
        terminalreporter.line(line)
