"""Which tests go to one worker together, and which first: the slowest, so that none is left over.

xdist would start with the files that have the most tests.
"""

import re

import pytest
from xdist.scheduler import LoadScopeScheduling

NOTEBOOKS = "tests/test_notebooks.py"
SLOWEST = (NOTEBOOKS,)


def together(nodeid: str) -> str:
    """Give the name that tests share which one worker runs: a file, or an article's notebook."""
    file = nodeid.partition("::")[0]
    article = re.search(r"\[([a-z_0-9]+)", nodeid) if file == NOTEBOOKS else None
    return f"{file}[{article[1]}]" if article else file


def slowest_first(nodeid: str) -> int:
    """Give a place in the queue."""
    names = [*SLOWEST, ""]
    return next(place for place, name in enumerate(names) if together(nodeid).startswith(name))


class SlowestFirst(LoadScopeScheduling):
    """Hands out what belongs together, in the order of the tests."""

    def __init__(self, config: pytest.Config, log: object) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return together(nodeid)
