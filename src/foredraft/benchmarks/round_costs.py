"""Time what gates are judged by: the parts of a round of any drafter, whole policies, and a gate.

As in the other benchmarks a case is a prompt, all ways to decode continue it in alternation, and
figures are in units of our own plain decoding of the same prompt.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import final

import numpy
import pandas
import torch

from foredraft.analysis.statistics import ratio
from foredraft.benchmarks.decoding import Made, paired
from foredraft.benchmarks.harness import Pace, Parts, paced, plain_round
from foredraft.benchmarks.timing import (
    Lap,
    Schedule,
    Spread,
    alternate,
    columns,
    compare,
    now,
    synchronised,
)
from foredraft.decoding.draft import Drafter
from foredraft.decoding.exit import ConfidenceExit, ExitPolicy, FixedLength
from foredraft.decoding.gate import GatePolicy
from foredraft.decoding.loop import Generation, generate
from foredraft.decoding.theory import Costs
from foredraft.decoding.trace import Round
from foredraft.models.decoder import Decoder
from foredraft.sampling import Sampler

PARTS, POLICY, GATE = "parts of a round", "policy", "gate"
"""What rows of each kind have in the column `strategy`."""

PLAIN = "never"
"""The policy that all others are measured by: not to draft."""

LENGTHS = (1, 2, 4, 8)
"""Lengths of the drafts whose parts are timed."""

DECIDING = Schedule(repeats=51, warmup=5, inner=20)
"""How often a gate decides to be timed."""


@final
@dataclass(frozen=True, slots=True)
class Way:
    """How to decode: whether to draft, and how far; `stop` None never drafts."""

    stop: ExitPolicy | None = None
    gate: GatePolicy | None = None


@final
@dataclass(frozen=True, slots=True)
class Setting:
    """A target and its drafter, the prompts, how they are continued, and how often."""

    target: Decoder
    drafter: Drafter
    prompts: Sequence[Sequence[int]]
    sampler: Sampler
    new_tokens: int = 96
    repeats: int = 1

    @property
    def cases(self) -> list[int]:
        """Number what is decoded: all prompts, then all again with other draws."""
        return list(range(len(self.prompts) * self.repeats))

    def prompt(self, case: int) -> Sequence[int]:
        """Give the prompt of a case."""
        return self.prompts[case % len(self.prompts)]


def laps_of(
    setting: Setting, ways: Mapping[str, Way], *, clock: Callable[[], float] = now
) -> dict[str, list[Lap[Made]]]:
    """Decode all prompts in all ways, in alternation, every round timed in place."""
    read = synchronised(clock, setting.target.device)
    runs = {name: partial(_made, setting, way, read) for name, way in ways.items()}
    return alternate(runs, setting.cases, device=setting.target.device, clock=clock)


def round_costs(setting: Setting, *, clock: Callable[[], float] = now) -> pandas.DataFrame:
    """Time what drafting takes, and what follows it, for drafts of several lengths; a row each.

    `drafting` and `rest` are in plain rounds, with their spread over prompts. Each is timed twice:
    `watched` is under an exit that looks at every token and never stops.
    """
    ways = {PLAIN: Way()}
    for n in LENGTHS:
        ways |= {_name(n, False): Way(FixedLength(n)), _name(n, True): Way(ConfidenceExit(0.0, n))}
    paces = {name: _paces(laps) for name, laps in laps_of(setting, ways, clock=clock).items()}
    rows = []
    for length, watched in product(LENGTHS, (False, True)):
        parts, plain = [], []
        for alone, pace in zip(paces[PLAIN], paces[_name(length, watched)], strict=True):
            if pace.full(length):
                parts.append(Parts.of([pace], length))
                plain.append(plain_round([alone]))
        pairs = list(zip(parts, plain, strict=True))
        drafting = Spread.of([each.step * length / base for each, base in pairs])
        rest = Spread.of([each.rest / base for each, base in pairs])
        row = {"strategy": PARTS, "length": length, "watched": watched, "n": rest.n}
        rows.append({**row, **columns("drafting", drafting), **columns("rest", rest)})
    return pandas.DataFrame(rows)


def _name(length: int, watched: bool) -> str:
    return f"{'watched' if watched else 'fixed'} {length}"


@final
@dataclass(frozen=True, slots=True)
class RoundCosts:
    """What rounds cost under exits that look at no token, and under those that look at each."""

    unwatched: Costs
    watched: Costs

    @property
    def target(self) -> float:
        """A plain round."""
        return float(self.unwatched.target)

    def under(self, stop: ExitPolicy) -> Costs:
        """Choose by what an exit does."""
        return self.unwatched if stop.begin(1).watches is None else self.watched


def costs(timed: pandas.DataFrame, *, longest: int) -> RoundCosts:
    """Put the costs of all lengths together from the rows of `round_costs`.

    Drafting and what follows it are each a line in the length, by least squares; what drafting
    takes before its first step counts as `other`. What follows is the same, watched or not.
    """
    apart = (_costs(timed, timed.loc[timed["watched"] == watched], longest) for watched in (0, 1))
    return RoundCosts(*apart)


def _costs(timed: pandas.DataFrame, drafts: pandas.DataFrame, longest: int) -> Costs:
    own = drafts["length"].to_numpy(float)
    step, start = numpy.polyfit(own, drafts["drafting_median"].to_numpy(float), 1).tolist()
    lengths = timed["length"].to_numpy(float)
    slope, rest = numpy.polyfit(lengths, timed["rest_median"].to_numpy(float), 1).tolist()
    verify = {n: max(1e-3, rest + slope * n) for n in range(1, longest + 1)}
    return Costs(target=1.0, draft=max(0.0, step), verify=verify, other=max(0.0, start))


def policy_times(
    setting: Setting,
    ways: Mapping[str, Way],
    *,
    over: str = PLAIN,
    clock: Callable[[], float] = now,
) -> pandas.DataFrame:
    """Decode all prompts in all ways; a row each, `speedup` over plain decoding case by case.

    `rounds_speedup` is of all rounds together, without the prefills; `gain` is the same over the
    rounds of the way `over`, with its standard error over prompts, all cases of a prompt as one.
    """
    laps = laps_of(setting, {PLAIN: Way()} | dict(ways), clock=clock)
    seconds = {name: _seconds(each, len(setting.prompts)) for name, each in laps.items()}
    rows = []
    for name, each in laps.items():
        traces = [lap.result.generation.trace for lap in each if lap.result.generation]
        drafted = sum(trace.drafted for trace in traces)
        passes = sum(trace.row_passes - 1 for trace in traces)
        row = {"strategy": POLICY, "policy": name, "n": len(each)}
        row |= columns("speedup", paired(each, laps[PLAIN]))
        row["rounds_speedup"] = seconds[PLAIN].sum() / seconds[name].sum()
        gain = ratio(seconds[over], seconds[name])
        row |= {"gain": gain.mean, "gain_sem": gain.sem}
        row["acceptance"] = sum(t.accepted for t in traces) / drafted if drafted else float("nan")
        rows.append({**row, "drafted": drafted / passes})
    return pandas.DataFrame(rows)


def gate_times(
    setting: Setting, gates: Mapping[str, GatePolicy], *, clock: Callable[[], float] = now
) -> pandas.DataFrame:
    """Time each gate's look at one row and its decision; `share` is of a plain step beside it."""
    model, prompt = setting.target, torch.tensor([setting.prompts[0]], device=setting.target.device)
    cache = model.new_cache(1, prompt.shape[1] + 1)
    with torch.inference_mode():
        logits = model(prompt, cache)[:, -1]
    cache.commit(prompt.shape[1])
    token = logits.argmax(-1)

    def step() -> None:
        with torch.inference_mode():
            model(token[:, None], cache)

    def decide(policy: GatePolicy) -> None:
        gate = policy.begin(1)
        gate.opens([0.0] if gate.watches is None else gate.watches(logits, token).tolist())

    arms = {PLAIN: step} | {name: partial(decide, gate) for name, gate in gates.items()}
    timed = compare(arms, schedule=DECIDING, device=model.device, clock=clock)
    rows = []
    for name in gates:
        share = timed.ratio(name, PLAIN)
        row = {"strategy": GATE, "policy": name, "n": share.n}
        rows.append({**row, **columns("share", share)})
    return pandas.DataFrame(rows)


def _made(setting: Setting, way: Way, read: Callable[[], float], case: int) -> Made:
    drafter = None if way.stop is None else setting.drafter
    made, pace = paced(partial(_decoded, setting, way, case), drafter, read)
    return Made(sum(map(len, made.tokens)), made, pace)


def _decoded(
    setting: Setting,
    way: Way,
    case: int,
    drafter: Drafter | None,
    on_round: Callable[[Round], None] | None = None,
) -> Generation:
    return generate(
        setting.target,
        [setting.prompt(case)],
        sampler=setting.sampler,
        max_new_tokens=setting.new_tokens,
        drafter=drafter,
        exit_policy=way.stop,
        gate=way.gate,
        generator=torch.Generator(setting.target.device).manual_seed(case),
        eos_token_id=[],
        on_round=on_round,
    )


def _paces(laps: Sequence[Lap[Made]]) -> list[Pace]:
    return [lap.result.pace for lap in laps if lap.result.pace is not None]


def _seconds(laps: Sequence[Lap[Made]], n_prompts: int) -> numpy.ndarray:
    """Add up the rounds of all cases of each prompt."""
    seconds = [sum(beat.whole for beat in pace.beats) for pace in _paces(laps)]
    return numpy.reshape(seconds, (-1, n_prompts)).sum(0)
