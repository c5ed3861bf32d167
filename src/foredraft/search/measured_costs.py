"""Time what a search needs to know, what each part of a round costs, and what it has found.

The costs of all plans are put together from a few that are timed: draft steps with some attentions
and some MLPs off, as many as a third or two thirds of the layers have, and what follows drafts of
several lengths: under a plan that skips a third, which leaves the caches as a draft does, and under
early exits, of which verification is spared a part. All are in place, in units of a plain round.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy
import pandas

from foredraft.benchmarks.harness import Pace, Parts, plain_round
from foredraft.benchmarks.self_drafting import PLAIN, Arm, Contest, laps_of, paces_of, told
from foredraft.benchmarks.timing import Spread, columns, now
from foredraft.decoding.trace import Trace
from foredraft.models.skip import SkipPlan
from foredraft.search.predict import ByClock, Line

STEP, VERIFY = "draft step", "after a draft"
"""What a row of costs has in the column where others have their strategy."""

STEP_LENGTH = 4
"""Length of the drafts whose steps are timed."""

VERIFIED, AFTER_EXITS = (1, 2, 3, 4, 6, 8), (2, 6)
"""Lengths of the drafts whose verification is timed: of a plan's, and of early exits'."""


def timed_plans(n_layers: int) -> list[SkipPlan]:
    """Give the plans whose steps are timed: each number of attentions with each number of MLPs."""
    some = [SkipPlan.spread(n * n_layers // 3, n_layers) for n in range(3)]
    return [SkipPlan(one.attn, other.mlp) for one, other in product(some, some)]


def round_costs(
    contest: Contest, sampler: str, *, clock: Callable[[], float] = now
) -> pandas.DataFrame:
    """Time the parts of a round; `cost` is in plain rounds, with its spread over prompts.

    A row for a draft step under each of `timed_plans`, and for what follows drafts of each length,
    under a plan of which verification is spared nothing, and under the exits after half of the
    layers and after all of them.
    """
    n_layers = contest.target.config.n_layers
    plain, third = Arm(sampler, PLAIN), SkipPlan.spread(n_layers // 3, n_layers)
    arms = [Arm(sampler, STEP, plan=p, length=STEP_LENGTH) for p in timed_plans(n_layers)]
    arms += [Arm(sampler, VERIFY, plan=third, length=n) for n in VERIFIED]
    exits = [SkipPlan.early_exit(n, n_layers) for n in (n_layers // 2, n_layers)]
    arms += [
        Arm(sampler, VERIFY, plan=plan, length=n, reuse=True)
        for plan, n in product(exits, AFTER_EXITS)
    ]
    arms = [replace(arm, name=arm.plan.to_json()) for arm in arms]
    paces = paces_of(contest, [plain, *arms], clock=clock)
    rows = []
    for arm in arms:
        part = "step" if arm.strategy == STEP else "rest"
        cost = _spread(paces[plain], paces[arm], arm.length, part)
        row = {"model": contest.model, "sampler": sampler, "strategy": arm.strategy}
        row |= {"library": arm.library, "plan": arm.plan.to_json(), "length": arm.length}
        row |= {"reuse": arm.reuse, "layers": n_layers}
        rows.append({**row, **columns("cost", cost), "n": cost.n})
    return pandas.DataFrame(rows)


def _spread(plain: Sequence[Pace], timed: Sequence[Pace], length: int, part: str) -> Spread:
    """Divide a part by the plain round, prompt by prompt."""
    return Spread.of(
        [
            getattr(Parts.of([pace], length), part) / plain_round([alone])
            for alone, pace in zip(plain, timed, strict=True)
        ]
    )


def by_clock(costs: pandas.DataFrame, *, longest: int = 8) -> ByClock:
    """Put the costs of all plans of a model and sampler together from the rows of `round_costs`.

    By least squares: steps by the branches that are off, verification as a line in the length.
    """
    steps, checks = (costs.loc[costs["strategy"] == part] for part in (STEP, VERIFY))
    plans = [SkipPlan.from_json(plan) for plan in steps["plan"]]
    off = numpy.array([[1.0, -len(p.attn), -len(p.mlp), len(p.attn) * len(p.mlp)] for p in plans])
    fitted, *_ = numpy.linalg.lstsq(off, steps["cost_median"].to_numpy(float))
    step, attention, mlp, both = fitted.tolist()
    n_layers, rest = int(steps["layers"].iloc[0]), {}
    for (plan, reuses), rows in checks.groupby(["plan", "reuse"]):
        spared = SkipPlan.from_json(str(plan)).exit_layer(n_layers) if reuses else 0
        rest[spared or 0] = _line(rows)
    return ByClock(step, attention, mlp, both, rest, n_layers, longest)


def _line(rows: pandas.DataFrame) -> Line:
    """Lay a line through verifications of several lengths."""
    lengths, medians = (rows[name].to_numpy(float) for name in ("length", "cost_median"))
    slope, start = numpy.polyfit(lengths, medians, 1).tolist()
    return Line(start, slope)


def finalists(
    contest: Contest,
    sampler: str,
    plans: Mapping[str, tuple[SkipPlan, int]],
    *,
    clock: Callable[[], float] = now,
) -> tuple[pandas.DataFrame, dict[str, list[Trace]]]:
    """Decode under each plan at its draft length, beside plain decoding; a row each, and traces.

    `speedup` is of whole generations, prompt by prompt, `rounds_speedup` of all their rounds
    together, without the prefills. An early exit's layers are not run again in verification.
    """
    arms, n_layers = [Arm(sampler, PLAIN)], contest.target.config.n_layers
    for name, (plan, length) in plans.items():
        is_exit = plan.exit_layer(n_layers) is not None
        arms.append(Arm(sampler, name=name, plan=plan, reuse=is_exit, length=length))
    laps = laps_of(contest, arms, clock=clock)
    made = {arm: [lap.result for lap in each] for arm, each in laps.items()}
    table = pandas.DataFrame(told(contest, laps, dict.fromkeys(plans, float("nan"))))
    seconds = [
        sum(beat.whole for each in made[arm] if each.pace for beat in each.pace.beats)
        for arm in arms
    ]
    traces = {
        str(arm.name): [each.generation.trace for each in made[arm] if each.generation]
        for arm in arms[1:]
    }
    return table.assign(rounds_speedup=seconds[0] / numpy.array(seconds)), traces
