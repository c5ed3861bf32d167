"""Whether somebody watches a notebook run, and how far a long cell has come if so.

A notebook is live while it is open in JupyterLab: Jupyter's server names it in the environment of
its kernel. papermill, nbclient and nbconvert start kernels of their own, and what they leave behind
is to be the same each time: no bar, no slider.
"""

import os
from collections.abc import Callable, Collection, Iterable
from typing import TypeVar

Item = TypeVar("Item")

SESSION_VARIABLE = "JPY_SESSION_NAME"
"""What Jupyter's server sets for the kernel of an open notebook: the notebook's path."""

PATIENCE = 3.0
"""Seconds before a bar is shown: what takes less needs none."""


def is_live() -> bool:
    """Say whether this runs in a notebook that somebody has open."""
    return SESSION_VARIABLE in os.environ


def steps(items: Collection[Item], what: str) -> Iterable[Item]:
    """Go through items; with a bar if that takes long and somebody watches."""
    if not is_live():
        return items
    from tqdm.auto import tqdm

    return tqdm(items, desc=what, delay=PATIENCE, leave=False)


def counter(what: str, total: int) -> Callable[[int], None]:
    """Give a function that is told how many of `total` are done, and moves a bar as `steps` does.

    The bar goes when all are done.
    """
    if not is_live():
        return lambda done: None
    from tqdm.auto import tqdm

    bar = tqdm(total=total, desc=what, delay=PATIENCE, leave=False)

    def tell(done: int) -> None:
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return tell
