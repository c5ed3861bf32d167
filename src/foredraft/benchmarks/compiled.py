"""Time generations whose steps are compiled, beside eager ones and those of `transformers`.

A case is a prompt; the ways take turns on it. Compiling comes before the first measured case, and
only once on a machine: `foredraft.models.compiling.ahead` keeps what it made.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import pandas
import torch

from foredraft.benchmarks.decoding import (
    DRAFTING,
    Arm,
    Contest,
    Made,
    paired,
    pocket_contest,
    runner,
)
from foredraft.benchmarks.ratios import value_of
from foredraft.benchmarks.timing import Lap, Spread, alternate, columns, now
from foredraft.models.decoder import Decoder
from foredraft.types import Tensor

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
    decides no choice. `rounding` is how far logits of steps lie from those of the same weights in
    float64, ÷ how far the eager ones do, prompt by prompt; it stands where there is no draft.
    """
    contest = contest or pocket_contest(device=device)
    compiled = with_compiled_steps(contest)
    report("rounding, against float64")
    rounded = rounding(contest.target, compiled.target, contest.prompts)
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
        told = [_row(contest, way, {each: laps[each.label] for each in ways}) for way in ways]
        rows += [
            row | columns("rounding", rounded) if way == Way(ways[0].arm, COMPILED) else row
            for way, row in zip(ways, told, strict=True)
        ]
    return pandas.DataFrame(rows)


def with_compiled_steps(contest: Contest) -> Contest:
    """Give the same contest with steps of both our models compiled."""
    target, draft = (
        model.unpacked().pack().compile_steps() for model in (contest.target, contest.draft)
    )
    return replace(contest, target=target, draft=draft)


def rounding(
    eager: Decoder, compiled: Decoder, prompts: Sequence[Sequence[int]], n_steps: int = 16
) -> Spread:
    """Say how far compiled logits lie from those of float64, ÷ how far eager ones do.

    Root mean squares over the last `n_steps` tokens of each prompt, read one at a time; about 1
    where all that sets the two apart is rounding. What stands before them is read at once, which
    both do alike. ValueError for a prompt of one token, behind which no step is read.
    """
    if min(map(len, prompts)) < 2:
        raise ValueError("a prompt of one token leaves no step to compare: give longer ones")
    weights = {name: tensor.double() for name, tensor in eager.state_dict().items()}
    exact = Decoder.from_tensors(eager.config, weights)
    ratios = []
    for prompt in prompts:
        right, *ours = (
            _step_by_step(decoder, prompt, n_steps) for decoder in (exact, compiled, eager)
        )
        errors = [float((logits.double() - right).square().mean().sqrt()) for logits in ours]
        ratios.append(errors[0] / errors[1])
    return Spread.of(ratios)


def asked(table: pandas.DataFrame) -> pandas.DataFrame:
    """Give what compiling is worth: ÷ the eager path, and ÷ theirs, of the same strategy."""
    rows = table.loc[table["library"] == COMPILED].to_dict("records")
    ratios = (("compiled ÷ eager", "over_eager"), ("÷ transformers", "over_theirs"))
    lines = [
        {"ratio": ratio, "of": f"{row['sampler']}, {row['strategy']}", **value_of(row, name)}
        for row in rows
        for ratio, name in ratios
    ]
    logits = {"ratio": "rounding ÷ eager's", "of": "logits, against float64"}
    return pandas.DataFrame([*lines, {**logits, **value_of(rows[0], "rounding")}])


def _step_by_step(decoder: Decoder, prompt: Sequence[int], n_steps: int) -> Tensor:
    """Give the logits after each of the last tokens, each read in a step of its own."""
    tokens = torch.tensor([prompt], device=decoder.device)
    n_begun = max(1, len(prompt) - n_steps)
    cache = decoder.new_cache(1, len(prompt))
    logits = []
    with torch.inference_mode():
        for part in (tokens[:, :n_begun], *tokens[:, n_begun:].split(1, dim=1)):
            logits.append(decoder.logits(decoder.hidden(part, cache)[:, -1])[0])
            cache.commit(part.shape[1])
    return torch.stack(logits[1:])


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
