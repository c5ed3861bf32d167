"""Bayesian optimisation of a skip plan with Ax: ask, measure, tell; durable and resumable.

What is asked for next is a function of the settings and of the trials so far, and of nothing else:
the model is built anew from the log for every ask. So the log is all the state there is, and a
search that was killed at any moment goes on as if it had not been.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from filelock import FileLock, Timeout

from foredraft import files
from foredraft.analysis.statistics import Estimate
from foredraft.errors import unknown
from foredraft.models.skip import SkipPlan
from foredraft.search.engines import Engine, Local
from foredraft.search.quiet import quiet_ax
from foredraft.search.space import Space
from foredraft.search.trial import Aim, Log, Objective, Origin, Trial

if TYPE_CHECKING:
    from ax.adapter.registry import Generators
    from ax.api.client import Client

Goal = str | tuple[str, str]
"""A metric to be made large, or small with a minus in front; or two of them, to be traded off."""

LEAST_KEPT = 1e-5
"""Ax looks for plans by throwing coins, and finds none where the budget allows too few of them."""

NOISE = 1e-3
"""Without any, the fit of an exact metric, such as a cost, can take 15 s instead of 1."""


def search(  # noqa: PLR0913 - the one call that readers make
    space: Space,
    objective: Objective,
    *,
    trials: int,
    seed: int,
    goal: Goal = "speedup",
    thresholds: Mapping[str, float] | None = None,
    starts: Sequence[SkipPlan] | None = None,
    initial: int = 8,
    batch: int = 1,
    engine: Engine | None = None,
    folder: Path | None = None,
    name: str = "",
    report: Callable[[Trial], None] | None = None,
) -> list[Trial]:
    """Measure the most promising plans of a space, `trials` of them at most.

    First the one that skips nothing beyond `space.always` and those of `starts` (None: the space's
    `few_skips`), then `initial` quasi-random ones, then those that a Gaussian process thinks best.
    `goal` names the metric to be made large, or two of them, such as ("-cost", "acceptance"), whose
    trade-offs are sought (`pareto`); `thresholds` gives the worst values of these that count.

    `engine` (None: `Local()`) measures `batch` plans at a time. With a `folder` they are on disk as
    soon as they are measured, and the same call goes on where an earlier one was stopped; more
    `trials` than before continue the search. `name` tells one objective from another. `report` is
    called with each new trial.

    Raises ValueError for settings that make no search, a start outside the space, a metric that the
    objective does not give, and a folder that holds another search.
    """
    wanted, engine = min(_at_least_one("trials", trials), space.size), engine or Local()
    settings = Settings(
        space=space,
        seed=seed,
        goal=(goal,) if isinstance(goal, str) else goal,
        thresholds={metric: float(bound) for metric, bound in (thresholds or {}).items()},
        starts=_distinct(space.always, *(space.few_skips() if starts is None else starts)),
        initial=initial,
        batch=batch,
        name=name,
    )
    with nullcontext() if folder is None else _alone_in(folder):
        log = None if folder is None else _claimed(folder, settings)
        done = [] if log is None else log.read()
        design = settings.design() if len(done) < wanted else []
        while len(done) < wanted:
            asked = _ask(settings, design, done)[: wanted - len(done)]
            if not asked:
                break
            measured = engine.measure(objective, [plan for plan, _ in asked])
            for (plan, origin), values in zip(asked, measured, strict=True):
                settings.require_metrics(values)
                done.append(Trial(len(done), plan, values, origin))
                if log is not None:
                    log.append(done[-1])
                if report is not None:
                    report(done[-1])
    return done[:wanted]


def pareto(trials: Sequence[Trial], goal: tuple[str, str]) -> list[Trial]:
    """Give the trials that no other beats in one metric without losing in the other.

    By what was measured, not by what a model predicts; in the order of the first metric.
    """
    first, second = (Aim.of(text) for text in goal)
    points = [(first.value(trial.values), second.value(trial.values)) for trial in trials]
    kept = [
        (point, trial)
        for point, trial in zip(points, trials, strict=True)
        if not any(_dominates(other, point) for other in points)
    ]
    return [trial for _, trial in sorted(kept, key=lambda pair: (pair[0], -pair[1].index))[::-1]]


def _dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] >= other[0] and one[1] >= other[1]


@final
@dataclass(frozen=True, slots=True)
class Settings:
    """All that decides which plans a search asks for; a search is resumed with the same only."""

    space: Space
    seed: int
    goal: tuple[str, ...]
    thresholds: Mapping[str, float]
    starts: tuple[SkipPlan, ...]
    initial: int
    batch: int
    name: str

    def __post_init__(self) -> None:
        metrics = [aim.metric for aim in self.aims]
        if len(set(metrics)) < len(metrics) or not all(metrics):
            raise ValueError(f"goal={self.goal}: name one metric, or two that differ")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed}: a seed is 0 to {2**32 - 1}")
        for metric in self.thresholds:
            if len(metrics) == 1 or metric not in metrics:
                raise ValueError(f"threshold for {metric!r}: they are for two goals, {metrics}")
        if _kept(self.space) < LEAST_KEPT:
            raise ValueError(
                f"a budget of {self.space.budget} allows {_kept(self.space):.0e} of all sets of "
                f"{len(self.space.free)} branches, less than {LEAST_KEPT:.0e}: free fewer of them, "
                "raise the budget, or use a baseline"
            )
        _at_least_one("initial", self.initial)
        _at_least_one("batch", self.batch)
        for plan in self.starts:
            self.space.require(plan)

    @property
    def aims(self) -> tuple[Aim, ...]:
        """What is to be made large or small."""
        return tuple(Aim.of(text) for text in self.goal)

    def header(self) -> dict[str, Any]:
        """Write the settings as JSON knows them."""
        space = {
            "n_layers": self.space.n_layers,
            "free": [list(branch) for branch in self.space.free],
            "always": json.loads(self.space.always.to_json()),
            "budget": self.space.budget,
        }
        return {
            "space": space,
            "seed": self.seed,
            "goal": list(self.goal),
            "thresholds": dict(self.thresholds),
            "starts": [json.loads(plan.to_json()) for plan in self.starts],
            "initial": self.initial,
            "batch": self.batch,
            "name": self.name,
        }

    def design(self) -> list[tuple[SkipPlan, Origin]]:
        """List the plans that are tried whatever they give: the starts, then a Sobol sequence."""
        drawn = _sobol(self) if self.space.free else []
        new = _distinct(*self.starts, *drawn)[len(self.starts) :]
        return [*((plan, "start") for plan in self.starts), *((plan, "sobol") for plan in new)]

    def require_metrics(self, values: Mapping[str, Estimate]) -> None:
        """Raise ValueError if the objective does not give what is to be optimised."""
        for aim in self.aims:
            if aim.metric not in values:
                raise unknown("metric", aim.metric, values)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes out of a search's folder; ValueError if one is in it already."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"another process is searching in {folder}: wait for it, or give another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _claimed(folder: Path, settings: Settings) -> Log:
    """Give the log in a folder that is empty or holds a search with the same settings."""
    path, log, header = folder / "search.json", Log(folder / "trials.jsonl"), settings.header()
    if not path.exists():
        if log.path.exists():
            raise ValueError(f"{log.path} has no {path.name} beside it: give another folder")
        files.write_text(path, json.dumps(header, indent=2) + "\n")
        return log
    before = json.loads(path.read_text(encoding="utf-8"))
    differing = [key for key in header if before.get(key) != header[key]]
    if differing:
        changes = "; ".join(f"{key} {before.get(key)}, now {header[key]}" for key in differing)
        raise ValueError(
            f"{folder} holds a search with other settings: {changes}. Go on with the same, or give "
            "another folder"
        )
    return log


def _ask(
    settings: Settings, design: list[tuple[SkipPlan, Origin]], done: list[Trial]
) -> list[tuple[SkipPlan, Origin]]:
    """Give the plans to measure next, a batch or what is left of one that was interrupted."""
    if len(done) < len(design):
        return design[len(done) : len(done) + settings.batch]
    begun = len(done) - (len(done) - len(design)) % settings.batch
    known = {trial.plan for trial in done}
    left = [plan for plan in _modelled(settings, done[:begun]) if plan not in known]
    return [(plan, "model") for plan in left or _modelled(settings, done)]


def _sobol(settings: Settings) -> list[SkipPlan]:
    """Draw the quasi-random plans, which flip half of the free branches, budget allowing."""
    with quiet_ax():
        from ax.adapter.registry import Generators

        client = _client(settings, Generators.SOBOL, {"generator_kwargs": {"seed": settings.seed}})
        return _suggested(settings, client, settings.initial)


def _modelled(settings: Settings, done: Sequence[Trial]) -> list[SkipPlan]:
    """Ask a Gaussian process of the trials for a batch of new plans, or for all that are left."""
    left = settings.space.size - len(done)
    asked = min(settings.batch, left)
    with quiet_ax():
        from ax.adapter.registry import Generators

        optimizer = {"optimizer_kwargs": _effort(settings.space, left, asked)}
        options = {"generator_gen_kwargs": {"model_gen_options": optimizer}}
        client = _client(settings, Generators.BOTORCH_MODULAR, options)
        told = [_told([trial.values[aim.metric] for trial in done]) for aim in settings.aims]
        for trial, *pairs in zip(done, *told, strict=True):
            index = client.attach_trial({**settings.space.values(trial.plan)})
            client.complete_trial(index, {f"goal_{i}": pair for i, pair in enumerate(pairs)})
        return _suggested(settings, client, asked)


def _effort(space: Space, left: int, asked: int) -> dict[str, int]:
    """Say how hard Ax looks for the best plans to ask for: a third of its default, as good plans.

    It sets out from plans that coins have thrown, as many as the budget leaves of them.
    """
    throws = math.ceil(64 / _kept(space))
    return {"num_restarts": max(1, min(4, left - asked + 1)), "raw_samples": min(throws, 2**14)}


def _kept(space: Space) -> float:
    """The share of all sets of free branches that the budget allows."""
    return space.size / 2 ** len(space.free)


def _told(known: Sequence[Estimate]) -> list[tuple[float, float]]:
    """Give means and errors, these at least NOISE of the range of the means."""
    means = [each.mean for each in known]
    least = NOISE * (max(means) - min(means))
    return [(each.mean, max(each.sem, least)) for each in known]


def _suggested(settings: Settings, client: "Client", n: int) -> list[SkipPlan]:
    return [settings.space.plan(values) for values in client.get_next_trials(n).values()]


def _client(settings: Settings, generator: "Generators", options: Mapping[str, Any]) -> "Client":
    """Set up Ax with one way to generate plans, and metrics under names that it can parse."""
    from ax.api.client import Client
    from ax.generation_strategy.generation_node import GenerationNode
    from ax.generation_strategy.generation_strategy import GenerationStrategy
    from ax.generation_strategy.generator_spec import GeneratorSpec

    named = [(f"goal_{i}", aim) for i, aim in enumerate(settings.aims)]
    bounds = [
        f"{name} {'<=' if aim.falls else '>='} {settings.thresholds[aim.metric]!r}"
        for name, aim in named
        if aim.metric in settings.thresholds
    ]
    client = Client(random_seed=settings.seed)
    client.configure_experiment(
        parameters=settings.space.parameters(),
        parameter_constraints=settings.space.constraints(),
    )
    client.configure_optimization(
        objective=", ".join(f"-{name}" if aim.falls else name for name, aim in named),
        outcome_constraints=bounds,
    )
    spec = GeneratorSpec(generator_enum=generator, **options)
    node = GenerationNode(name="only", generator_specs=[spec], should_deduplicate=True)
    client.set_generation_strategy(GenerationStrategy(name="only", nodes=[node]))
    return client


def _distinct(*plans: SkipPlan) -> tuple[SkipPlan, ...]:
    return tuple(dict.fromkeys(plans))


def _at_least_one(what: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{what}={value}: give 1 or more")
    return value
