"""Ax without its log lines and warnings."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_ax() -> Iterator[None]:
    """Silence what Ax, and what it imports, logs and warns of, for as long as the block runs.

    Importing Ax warns too (torch.jit.script is deprecated), so it belongs inside.
    """
    with warnings.catch_warnings(action="ignore"):
        import ax.utils.common.logger  # noqa: F401 - from now on its handlers exist

        handlers = logging.getLogger("ax").handlers
        levels = [handler.level for handler in handlers]
        for handler in handlers:
            handler.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for handler, level in zip(handlers, levels, strict=True):
                handler.setLevel(level)
