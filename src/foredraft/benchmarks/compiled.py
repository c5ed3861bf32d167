"""Time generations whose steps are compiled, beside eager ones and those of `transformers`.

A case is a prompt; the ways take turns on it. Compiling comes before the first measured case, and
only once on a machine: `foredraft.models.ahead` keeps what it made.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import pandas
import torch

from foredraft.bench import Lap, Spread, alternate, columns, now
from foredraft.benchmarks.decoding import (
    DRAFTING,
    Arm,
    Contest,
    Made,
    paired,
    pocket_contest,
    runner,
)

EAGER, COMPILED, THEIRS = "foredraft", "foredraft, compiled", "transformers"


@final
@dataclass(frozen=True, slots=True)
class Way:
    """A strategy, in one of three engines."""

    arm: Arm
    engine: str

    @property
    def label(self) -> str:
        """Tell it from the other ways."""
        return f"{self.engine}: {self.arm.label}"


def compiled_benchmark(
    contest: Contest | None = None,
    *,
    lengths: Sequence[int] = (4,),
    device: str = "cpu",
    report: Callable[[str], None] = lambda told: None,
    clock: Callable[[], float] = now,
) -> pandas.DataFrame:
    """Decode with and without a draft model, by the drafts' `lengths`; one row a way.

    `speedup` is tokens a second ÷ those of our eager autoregressive decoding, and `over_theirs` ÷
    those of `transformers` in the same strategy, both prompt by prompt. `same` is the share of
    prompts whose tokens are those of the eager path: all in float32, and in bf16 as far as rounding
    decides no choice.
    """
    contest = contest or pocket_contest(device=device)
    compiled = with_compiled_steps(contest)
    rows = []
    for sampler in contest.samplers:
        ways = _ways(sampler, lengths)
        report(f"{sampler}: {len(ways)} ways to decode, {len(contest.prompts)} prompts")
        runs = {
            way.label: runner(compiled if way.engine == COMPILED else contest, way.arm)
            for way in ways
        }
        cases = list(range(len(contest.prompts)))
        laps = alternate(runs, cases, device=contest.target.device, clock=clock)
        rows += [_row(contest, way, {each: laps[each.label] for each in ways}) for way in ways]
    return pandas.DataFrame(rows)


def with_compiled_steps(contest: Contest) -> Contest:
    """Give the same contest with steps of both our models compiled."""
    target, draft = (
        model.unpacked().pack().compile_steps() for model in (contest.target, contest.draft)
    )
    return replace(contest, target=target, draft=draft)


def asked(table: pandas.DataFrame) -> pandas.DataFrame:
    """Give what compiling is worth: ÷ the eager path, and ÷ theirs, of the same strategy."""
    rows = table.loc[table["library"] == COMPILED]
    return pandas.DataFrame(
        {
            "ratio": ratio,
            "of": f"{row['sampler']}, {row['strategy']}",
            **{f"value_{end}": row[f"{name}_{end}"] for end in ("median", "min", "max", "iqr")},
            "n": row["n"],
        }
        for row in rows.to_dict("records")
        for ratio, name in (("compiled ÷ eager", "over_eager"), ("÷ transformers", "over_theirs"))
    )


def _ways(sampler: str, lengths: Sequence[int]) -> list[Way]:
    """Our plain eager decoding first: speed-ups are over it."""
    arms = [Arm(sampler, "autoregressive")]
    arms += [Arm(sampler, DRAFTING, length=length) for length in lengths]
    return [
        Way(replace(arm, library=THEIRS) if engine == THEIRS else arm, engine)
        for arm in arms
        for engine in (EAGER, COMPILED, THEIRS)
    ]


def _row(contest: Contest, way: Way, laps: dict[Way, list[Lap[Made]]]) -> dict[str, object]:
    mine, arm = laps[way], replace(way.arm, library=EAGER)
    plain = laps[Way(Arm(arm.sampler, "autoregressive"), EAGER)]
    eager, theirs = laps[Way(arm, EAGER)], laps[Way(replace(arm, library=THEIRS), THEIRS)]
    rate = Spread.of([lap.result.tokens / lap.seconds for lap in mine])
    return {
        **{"sampler": arm.sampler, "strategy": arm.strategy, "library": way.engine},
        "length": arm.length,
        **columns("tokens_per_second", rate),
        **columns("speedup", paired(mine, plain)),
        **columns("over_eager", paired(mine, eager)),
        **columns("over_theirs", paired(mine, theirs)),
        "same": _same(mine, eager),
        **{"n": rate.n, "new_tokens": contest.new_tokens, "device": str(contest.target.device)},
        "dtype": str(contest.target.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def _same(mine: Sequence[Lap[Made]], eager: Sequence[Lap[Made]]) -> float:
    """Give the share of prompts with the same tokens; NaN for theirs, which are not kept."""
    made = ([lap.result.generation for lap in laps] for laps in (mine, eager))
    pairs = [(one, other) for one, other in zip(*made, strict=True) if one and other]
    same = [one.tokens == other.tokens for one, other in pairs]
    return sum(same) / len(same) if same else float("nan")
