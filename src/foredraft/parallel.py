"""A Ray cluster: one that runs already, or one that is started here and stopped again."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

RETRIES = 3
"""How often work is given to a new worker after its own has died."""


def require_ray(otherwise: str) -> None:
    """Raise ValueError, naming what does without, if Ray is not installed."""
    if find_spec("ray") is None:
        raise ValueError(
            "Ray is not installed: `make setup` or `pip install -c requirements.lock ray` "
            f"installs it; {otherwise} does without"
        )


def start(*, workers: int, address: str | None = None) -> bool:
    """Join the cluster at `address`, or start one of so many CPUs here; False: joined already.

    What is started here reports no usage to its makers.
    """
    import ray

    if ray.is_initialized():
        return False
    local = {"num_cpus": workers, "include_dashboard": False}
    with variable("RAY_USAGE_STATS_ENABLED", "0"):
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **({} if address else local),
        )
    return True


def stop() -> None:
    """Leave the cluster; one that was started here ends."""
    import ray

    ray.shutdown()


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Set a variable, also for the processes that are started meanwhile; then it is as before."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
