"""Where the points of a sweep are made: processes of this machine, or a cluster through Ray."""

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import Protocol, final, runtime_checkable

from foredraft import parallel
from foredraft.sweep.point import Point


@runtime_checkable
class Engine(Protocol):
    """Makes several points."""

    def make(self, points: Sequence[Point]) -> Iterator[Point]:
        """Make the points, and give each as it ends, done or not."""
        ...


@final
class Local:
    """Make so many points at a time on this machine, each in a process that dies with this one.

    The processes share the cores, unless OMP_NUM_THREADS says how many each may use.
    """

    def __init__(self, *, jobs: int) -> None:
        if jobs < 1:
            raise ValueError(f"jobs={jobs}: give 1 or more")
        self.jobs = jobs

    def make(self, points: Sequence[Point]) -> Iterator[Point]:
        """Make the points; those under way end when the iteration is given up."""
        context = get_context("spawn")
        threads = max(1, len(os.sched_getaffinity(0)) // self.jobs)
        waiting, running = deque(points), {}
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    point = waiting.popleft()
                    process = context.Process(target=_make_here, args=(point, threads))
                    process.start()
                    running[process.sentinel] = process, point
                for ended in wait([*running]):
                    process, point = running.pop(ended)
                    process.join()
                    yield point
        finally:
            for process, _ in running.values():
                process.terminate()
                process.join()


@final
class Ray:
    """Make points on a Ray cluster: the one at `address`, or one of `jobs` CPUs started here.

    Each point has one CPU and a process of its own; if that dies, another takes its place, up to
    cluster.RETRIES times. On a cluster every machine needs this repository and sees the folder.
    """

    def __init__(self, *, jobs: int, address: str | None = None) -> None:
        if jobs < 1:
            raise ValueError(f"jobs={jobs}: give 1 or more")
        parallel.require_ray(otherwise="the engine local")
        self.jobs, self.address = jobs, address

    def make(self, points: Sequence[Point]) -> Iterator[Point]:
        """Make the points; the cluster, if it was started here, ends with the iteration."""
        import ray
        from ray.exceptions import RayError

        started = parallel.start(workers=self.jobs, address=self.address)
        try:
            make = ray.remote(num_cpus=1, max_calls=1, max_retries=parallel.RETRIES)(_make)
            waiting = {make.remote(point): point for point in points}
            while waiting:
                (ended, *_), _ = ray.wait([*waiting])
                try:
                    ray.get(ended)
                except RayError as error:
                    _note(waiting[ended], error)
                yield waiting.pop(ended)
        finally:
            if started:
                parallel.stop()


def _make(point: Point) -> None:
    point.make()


def _make_here(point: Point, threads: int) -> None:
    """Make a point in this process, whose words go into the point's log."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    threading.Thread(target=_die_with_parent, daemon=True).start()
    point.folder.mkdir(parents=True, exist_ok=True)
    with point.log.open("w", encoding="utf-8") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        point.make()


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _note(point: Point, error: Exception) -> None:
    """Keep what Ray says of a point, where the point says that its log is."""
    point.folder.mkdir(parents=True, exist_ok=True)
    point.log.write_text(f"{error}\n", encoding="utf-8")


def made(points: Sequence[Point], engine: Engine) -> Iterator[tuple[Point, str | None]]:
    """Make the points that are not done; give each as it ends, with its error if it failed.

    Those that are done already come first.
    """
    done = [point for point in points if point.is_done()]
    yield from ((point, None) for point in done)
    for point in engine.make([point for point in points if point not in done]):
        yield point, point.error()
