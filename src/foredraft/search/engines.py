"""Where plans are measured: in this process, or on a cluster through Ray."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, final, runtime_checkable

from foredraft import parallel
from foredraft.analysis.statistics import Estimate
from foredraft.models.skip import SkipPlan
from foredraft.parallel import RETRIES
from foredraft.search.trial import Objective


@runtime_checkable
class Engine(Protocol):
    """Measures several plans."""

    def measure(
        self, objective: Objective, plans: Sequence[SkipPlan]
    ) -> Iterable[Mapping[str, Estimate]]:
        """Give what the objective says of each plan, in the order of the plans, as it is known."""
        ...


@final
class Local:
    """Measure in this process, one plan after another."""

    def measure(
        self, objective: Objective, plans: Sequence[SkipPlan]
    ) -> Iterator[Mapping[str, Estimate]]:
        """Give what the objective says of each plan."""
        return map(objective, plans)


@final
class Ray:
    """Measure with several workers at once, on this machine or on a Ray cluster at `address`.

    Each worker is a process with one CPU, no accelerator, and its own copy of the objective, which
    is sent once. On a cluster every machine needs this package. A worker that dies is replaced and
    its plan measured again, up to RETRIES times. Used as `with Ray(workers=4) as engine:`, it stops
    at the end of the block what it has started; nothing starts before the first measurement. A
    cluster that is started here reports no usage to its makers.
    """

    def __init__(self, *, workers: int, address: str | None = None) -> None:
        if workers < 1:
            raise ValueError(f"workers={workers}: give 1 or more, or use Local()")
        parallel.require_ray(otherwise="Local()")
        self.workers, self.address = workers, address
        self._started = False
        self._objective: Objective | None = None
        self._shared: list[Any] = []
        self._pool: list[Any] = []

    def __enter__(self) -> "Ray":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def measure(
        self, objective: Objective, plans: Sequence[SkipPlan]
    ) -> Iterator[Mapping[str, Estimate]]:
        """Give what the objective says of each plan; an error it raises is raised here."""
        import ray
        from ray.util import ActorPool

        self._start()
        if objective is not self._objective:
            self._objective, self._shared = objective, [ray.put(objective)]
        shared = self._shared
        pool: Any = ActorPool(self._pool)
        return pool.map(lambda worker, plan: worker.measure.remote(shared, plan), [*plans])

    def close(self) -> None:
        """Stop the workers, and the cluster if it was started here."""
        import ray

        for worker in self._pool:
            ray.kill(worker)
        self._objective, self._shared, self._pool = None, [], []
        if self._started:
            parallel.stop()
            self._started = False

    def _start(self) -> None:
        import ray

        self._started |= parallel.start(workers=self.workers, address=self.address)
        if not self._pool:
            actor = ray.remote(num_cpus=1, max_restarts=RETRIES, max_task_retries=RETRIES)
            self._pool = [actor(_Worker).remote() for _ in range(self.workers)]


class _Worker:
    """A process that keeps the objective that it was sent last."""

    def __init__(self) -> None:
        self.shared: list[Any] = []

    def measure(self, shared: list[Any], plan: SkipPlan) -> Mapping[str, Estimate]:
        """Fetch the objective if it is another; it comes by reference, in a list of one."""
        import ray

        if shared != self.shared:
            self.objective: Objective = ray.get(shared[0])
            self.shared = shared
        return self.objective(plan)
