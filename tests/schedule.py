"""Which tests go to one worker together, and which go first: the slowest, so that none ends late.

xdist would begin with the files that have the most tests.
"""

import re

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

NOTEBOOKS = "tests/test_notebooks.py"
SLOWEST = (
    NOTEBOOKS,
    "tests/models/compiling/test_ahead.py",
    "tests/test_site.py",
    "tests/models/compiling/test_graphs.py",
    "tests/decoding/test_soak.py",
    "tests/kernels/test_compiled.py",
    "tests/test_sweep.py",
    "tests/search/test_bayes.py",
    "tests/decoding/test_speculation.py",
    "tests/viz/test_figures.py",
    "tests/training/llava/test_sft.py",
    "tests/training/decoder/test_pretrain.py",
    "tests/test_add_article.py",
    "tests/articles/self_speculation/test_gemma2_9b_profile.py",
    "tests/search/test_engines.py",
    "tests/search/test_find.py",
    "tests/decoding/test_law.py",
    "tests/training/bert/test_pretrain.py",
    "tests/test_jupyterlab.py",
    "tests/decoding/test_statistics.py",
    "tests/training/bert/test_ship.py",
    "tests/kernels/test_environment.py",
    "tests/articles/confidence_gating/test_recording.py",
)
"""In this order, before all others. Take it from `pytest --durations=0` when it is out of date."""


def together(nodeid: str) -> str:
    """Give the name that tests share which one worker runs: a file, or an article's notebook."""
    file = nodeid.partition("::")[0]
    article = re.search(r"\[([a-z0-9_]+)", nodeid) if file == NOTEBOOKS else None
    return f"{file}[{article[1]}]" if article else file


def place(item: pytest.Item) -> int:
    """Give a test's place in the queue."""
    file = item.nodeid.partition("::")[0]
    return SLOWEST.index(file) if file in SLOWEST else len(SLOWEST)


class SlowestFirst(LoadScopeScheduling):
    """Hands out the tests that belong together, in the order in which they were collected."""

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return together(nodeid)
