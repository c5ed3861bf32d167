"""Time what a search needs to know, what each part of a round costs, and what it has found.

The costs of all plans are put together from a few that are timed: draft steps with some attentions
and some MLPs off, as many as a third or two thirds of the layers have, and what follows drafts of
several lengths. All are in place, and in units of a plain round.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import product

import numpy
import pandas

from foredraft.bench import Spread, columns, now
from foredraft.benchmarks.pace import Pace, Parts, plain_round
from foredraft.benchmarks.self_drafting import PLAIN, Arm, Contest, paces_of, race
from foredraft.models.skip import SkipPlan
from foredraft.search.objective import ByClock

STEP, VERIFY = "draft step", "after a draft"
"""What a row of costs has in the column where others have their strategy."""

STEP_LENGTH = 4
"""Length of the drafts whose steps are timed."""

VERIFIED = (1, 2, 3, 4, 6, 8)
"""Lengths of the drafts whose verification is timed."""


def timed_plans(n_layers: int) -> list[SkipPlan]:
    """Give the plans whose steps are timed: each number of attentions with each number of MLPs."""
    some = [SkipPlan.spread(n * n_layers // 3, n_layers) for n in range(3)]
    return [SkipPlan(one.attn, other.mlp) for one, other in product(some, some)]


def round_costs(
    contest: Contest, sampler: str, *, clock: Callable[[], float] = now
) -> pandas.DataFrame:
    """Time the parts of a round; `cost` is in plain rounds, with its spread over prompts.

    A row for a draft step under each of `timed_plans`, and for what follows drafts of each length.
    """
    n_layers = contest.target.config.n_layers
    plain, all_off = Arm(sampler, PLAIN), SkipPlan.layers(range(n_layers))
    arms = [
        Arm(sampler, STEP, name=plan.to_json(), plan=plan, length=STEP_LENGTH)
        for plan in timed_plans(n_layers)
    ]
    arms += [Arm(sampler, VERIFY, name="head", plan=all_off, length=n) for n in VERIFIED]
    paces = paces_of(contest, [plain, *arms], clock=clock)
    rows = []
    for arm in arms:
        part = "step" if arm.strategy == STEP else "rest"
        cost = _spread(paces[plain], paces[arm], arm.length, part)
        row = {"model": contest.model, "sampler": sampler, "strategy": arm.strategy}
        row |= {"library": arm.library, "plan": arm.plan.to_json(), "length": arm.length}
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


def by_clock(costs: pandas.DataFrame) -> ByClock:
    """Put the costs of all plans of a model and sampler together from the rows of `round_costs`.

    Least squares for steps; verification of lengths between those timed is interpolated.
    """
    steps = costs.loc[costs["strategy"] == STEP]
    plans = [SkipPlan.from_json(plan) for plan in steps["plan"]]
    off = numpy.array([[1.0, -len(p.attn), -len(p.mlp), len(p.attn) * len(p.mlp)] for p in plans])
    fitted, *_ = numpy.linalg.lstsq(off, steps["cost_median"].to_numpy(float))
    checks = costs.loc[costs["strategy"] == VERIFY].sort_values("length")
    known = [0, *checks["length"].astype(int)]
    lengths = range(1, known[-1] + 1)
    rests = numpy.interp(lengths, known, [1.0, *checks["cost_median"]])
    step, attention, mlp, both = fitted.tolist()
    return ByClock(step, attention, mlp, both, dict(zip(lengths, rests.tolist(), strict=True)))


def finalists(
    contest: Contest,
    sampler: str,
    plans: Mapping[str, tuple[SkipPlan, int]],
    *,
    clock: Callable[[], float] = now,
) -> pandas.DataFrame:
    """Decode under each plan at its draft length, beside plain decoding; a row each.

    An early exit's layers are not run again in verification.
    """
    arms = [Arm(sampler, PLAIN)]
    n_layers = contest.target.config.n_layers
    for name, (plan, length) in plans.items():
        is_exit = plan.exit_layer(n_layers) is not None
        arms.append(Arm(sampler, name=name, plan=plan, reuse=is_exit, length=length))
    return pandas.DataFrame(race(contest, arms, dict.fromkeys(plans, float("nan")), clock=clock))
