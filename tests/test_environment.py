"""Variables that are set for a while are afterwards as they were."""

import os

import pytest

from foredraft.environment import variable


@pytest.mark.parametrize("before", [None, "old"])
def test_a_variable_is_as_before_whatever_happens_meanwhile(monkeypatch, before):
    monkeypatch.delenv("FOREDRAFT_TRIAL", raising=False)
    if before is not None:
        monkeypatch.setenv("FOREDRAFT_TRIAL", before)
    with pytest.raises(KeyError, match="new"), variable("FOREDRAFT_TRIAL", "new"):
        raise KeyError(os.environ["FOREDRAFT_TRIAL"])
    assert os.environ.get("FOREDRAFT_TRIAL") == before
