"""What every test stands on: no network, no window, a repository that is left alone."""

import os
from pathlib import Path

import pytest

from tests.proofs import told

os.environ |= {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that takes whatever the test writes instead of the repository."""
    monkeypatch.setenv("FOREDRAFT_OUTPUT", str(tmp_path))
    return tmp_path


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell which test catches which known bug, and how exact the laws are."""
    lines = [*told(terminalreporter.stats.get("passed", []))]
    if lines:
        terminalreporter.section("proofs")
    for line in lines:
        terminalreporter.line(line)
