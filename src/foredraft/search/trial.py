"""Trials: what each plan was measured to give, and the log that keeps them through any crash."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final, get_args

import pandas

from foredraft.analysis.statistics import Estimate
from foredraft.errors import unknown
from foredraft.models.skip import SkipPlan

Origin = Literal["start", "sobol", "model", "random", "uniform", "greedy", "swap", "exhaustive"]
"""Why a plan was tried."""


Objective = Callable[[SkipPlan], Mapping[str, Estimate]]
"""Measures a plan: an estimate for each of its metrics, the same metrics for every plan."""


@final
@dataclass(frozen=True, slots=True)
class Trial:
    """One plan that was measured, as the index-th of its search."""

    index: int
    plan: SkipPlan
    values: Mapping[str, Estimate]
    origin: Origin

    def to_json(self) -> str:
        """Write the trial as one line; floats come back bit for bit."""
        fields = {
            "index": self.index,
            "plan": json.loads(self.plan.to_json()),
            "origin": self.origin,
            "values": {name: [each.mean, each.sem] for name, each in self.values.items()},
        }
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> "Trial":
        """Read what `to_json` wrote; ValueError if it is anything else."""
        try:
            fields = json.loads(text)
            plan = SkipPlan.from_json(json.dumps(fields["plan"]))
            values = {name: Estimate(*pair) for name, pair in fields["values"].items()}
            index, origin = fields["index"], fields["origin"]
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"{text[:80]!r} is no trial: {error}") from error
        if origin not in get_args(Origin):
            raise unknown("origin of a trial", str(origin), get_args(Origin))
        return cls(index, plan, values, origin)


@final
@dataclass(frozen=True, slots=True)
class Aim:
    """A metric to be made large, or small if it falls; in writing "speedup", or "-cost"."""

    metric: str
    falls: bool

    @classmethod
    def of(cls, text: str) -> "Aim":
        """Read a metric's name, with a minus in front if it is to be made small."""
        return cls(text.removeprefix("-"), text.startswith("-"))

    def value(self, values: Mapping[str, Estimate]) -> float:
        """Give the mean, its sign turned if the metric is to fall: more is better."""
        if self.metric not in values:
            raise unknown("metric", self.metric, values)
        mean = values[self.metric].mean
        return -mean if self.falls else mean


def best(trials: Sequence[Trial], goal: str = "speedup") -> Trial:
    """Find the trial of the best mean, the first among equals; ValueError if there is none."""
    if not trials:
        raise ValueError("no trial was made; measure one plan or more")
    aim = Aim.of(goal)
    return max(trials, key=lambda trial: aim.value(trial.values))


def table(trials: Sequence[Trial], goal: str = "speedup") -> pandas.DataFrame:
    """Lay out one row a trial; `best` is the best mean so far of the metric in `goal`.

    Columns: index, plan (JSON), branches, origin, for each metric <metric> and <metric>_sem, best.
    """
    aim, reached, rows = Aim.of(goal), -math.inf, []
    for trial in trials:
        reached = max(reached, aim.value(trial.values))
        rows.append(
            {
                "index": trial.index,
                "plan": trial.plan.to_json(),
                "branches": len(trial.plan),
                "origin": trial.origin,
                **_columns(trial.values),
                "best": -reached if aim.falls else reached,
            }
        )
    columns = None if rows else ["index", "plan", "branches", "origin", "best"]
    return pandas.DataFrame(rows, columns=columns)


def _columns(values: Mapping[str, Estimate]) -> dict[str, float]:
    named = [((name, each.mean), (f"{name}_sem", each.sem)) for name, each in values.items()]
    return dict(pair for pairs in named for pair in pairs)


@final
@dataclass(frozen=True, slots=True)
class Log:
    """The trials of one search, in order, in a file of one JSON line each.

    A last line that was torn by a kill does not count: reading drops it, appending overwrites it.
    """

    path: Path

    def read(self) -> list[Trial]:
        """Give all trials that were written whole; ValueError if one of them is damaged."""
        trials: list[Trial] = []
        for line in self._whole().decode().splitlines():
            try:
                trials.append(Trial.from_json(line))
            except ValueError as error:
                raise self._damaged(len(trials), str(error)) from error
            if trials[-1].index != len(trials) - 1:
                raise self._damaged(len(trials) - 1, f"its index is {trials[-1].index}")
        return trials

    def append(self, trial: Trial) -> None:
        """Write a trial, and return when it is on disk."""
        whole = len(self._whole())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.truncate(whole)
            file.write(f"{trial.to_json()}\n".encode())
            file.flush()
            os.fsync(file.fileno())

    def _whole(self) -> bytes:
        written = self.path.read_bytes() if self.path.exists() else b""
        return written[: written.rfind(b"\n") + 1]

    def _damaged(self, index: int, reason: str) -> ValueError:
        return ValueError(
            f"{self.path}, line {index + 1}: {reason}; remove this line and all after it, or "
            "search in another folder"
        )
