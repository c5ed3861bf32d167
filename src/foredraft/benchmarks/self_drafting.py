"""Time a model that drafts for itself: our skip plans, and the early exits of `transformers`.

As in `benchmarks.decoding` a case is a prompt, all ways to decode continue it in alternation, and
speed-ups are paired with our own autoregressive decoding. Each plan's cost stands there twice: by
the bytes that it leaves to read, and by the clock.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import final

import pandas
import torch
from transformers import PreTrainedModel

from foredraft.benchmarks.decoding import (
    SAMPLERS,
    Made,
    Prompt,
    paired,
    tell_to_draft,
    their_sampler,
)
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
from foredraft.decoding.exit import FixedLength
from foredraft.decoding.loop import Generation, generate
from foredraft.decoding.self_draft import SelfDrafter
from foredraft.decoding.trace import Round
from foredraft.models.decoder import Decoder
from foredraft.models.loading import load, load_transformers
from foredraft.models.skip import SkipPlan
from foredraft.prompts import code_prompts
from foredraft.sampling import Sampler

PLAIN, DRAFTING, BRANCH = "autoregressive", "self-drafting", "one branch off"

BRANCHES = Schedule(repeats=101, warmup=5, inner=4)
"""How often a step without a branch is timed, which saves a few hundredths of it."""

LENGTHS = (2, 4)

POCKET: Mapping[str, Mapping[str, SkipPlan]] = {
    "pocket-llama": {
        "cheapest 10": SkipPlan(attn=(3, 6, 9), mlp=(3, 5, 6, 7, 8, 9, 10)),
        "cheapest 11": SkipPlan(attn=(3, 6, 9), mlp=(2, 3, 5, 6, 7, 8, 9, 10)),
        "cheapest 16": SkipPlan(attn=(3, 6, 7, 8, 9, 10), mlp=range(1, 11)),
    },
    "pocket-gemma2": {"cheapest 4": SkipPlan(mlp=(6, 7, 8, 10))},
    "pocket-gemma2-layerskip": {},
}
"""The plans that article 03 finds best by β and bytes; the early exits come to them."""

EXITS: Mapping[str, Sequence[int]] = {
    "pocket-llama": (3, 6),
    "pocket-gemma2": (3, 6),
    "pocket-gemma2-layerskip": (2, 3, 4, 6),
}


@final
@dataclass(frozen=True, slots=True)
class Arm:
    """One way to decode: under which plan, if any, how far, in which library."""

    sampler: str
    strategy: str = DRAFTING
    library: str = "foredraft"
    name: str | None = None
    plan: SkipPlan = field(default_factory=SkipPlan)
    reuse: bool = False
    length: int = 0

    @property
    def label(self) -> str:
        """Tell it from the other arms."""
        how = f"{self.library}, {self.strategy}, {self.name} {self.length}, reuse {self.reuse}"
        return f"{self.sampler}, {how}"


@final
@dataclass(frozen=True, slots=True)
class Contest:
    """A model on both sides, or ours alone, the prompts, and the plans to try at each length."""

    model: str
    target: Decoder
    theirs: PreTrainedModel | None
    prompts: Sequence[Prompt]
    plans: Mapping[str, SkipPlan]
    lengths: Sequence[int] = LENGTHS
    new_tokens: int = 96
    samplers: Mapping[str, Sampler] = field(default_factory=lambda: SAMPLERS)

    def __post_init__(self) -> None:
        """Refuse a contest of different precisions."""
        if self.theirs is not None and self.target.dtype != self.theirs.dtype:
            raise ValueError(
                f"ours is in {self.target.dtype}, theirs in {self.theirs.dtype}: load both in one"
            )


def pocket_contests(*, device: str = "cpu", n_prompts: int = 8) -> list[Contest]:
    """Set up a contest for each pocket model that is a target, in bf16, on held-out prompts."""
    place = {"device": device, "dtype": torch.bfloat16}
    found = []
    for name, plans in POCKET.items():
        target, tokenizer = load(name, **place)
        theirs = load_transformers(name, **place)
        theirs.generation_config.eos_token_id = None  # no text ends early
        prompts = [tokenizer.encode(prompt.text()) for prompt in code_prompts(n=n_prompts)]
        n = target.config.n_layers
        exits = {f"exit {layer}": SkipPlan.early_exit(layer, n) for layer in EXITS[name]}
        found.append(Contest(name, target, theirs, prompts, {**exits, **plans}))
    return found


def self_drafting_benchmark(
    contests: Sequence[Contest],
    *,
    report: Callable[[str], None] = lambda told: None,
    clock: Callable[[], float] = now,
) -> pandas.DataFrame:
    """Run all ways of all contests on all their prompts; one row a way, with medians and spreads.

    `cost_bytes` is the plan's share of the weight bytes, `cost_measured` the time of a draft step
    ÷ that of an autoregressive round, both in place. Below them stand the `branch_times`.
    """
    rows, branches = [], []
    for contest in contests:
        costs = measured_costs(contest, clock=clock)
        branches.append(branch_times(contest, clock=clock))
        for sampler in contest.samplers:
            arms = _arms(contest, sampler)
            report(f"{contest.model}, {sampler}: {len(arms)} ways, {len(contest.prompts)} prompts")
            rows += race(contest, arms, costs, clock=clock)
    return pandas.concat([pandas.DataFrame(rows), *branches], ignore_index=True)


def race(
    contest: Contest,
    arms: Sequence[Arm],
    costs: Mapping[str, float],
    *,
    clock: Callable[[], float] = now,
) -> list[dict[str, object]]:
    """Run the arms on all prompts in alternation; a row each, speed-ups over the first of them.

    `costs` is c of each plan by the clock, as far as it is known.
    """
    return told(contest, laps_of(contest, arms, clock=clock), costs)


def laps_of(
    contest: Contest, arms: Sequence[Arm], *, clock: Callable[[], float] = now
) -> dict[Arm, list[Lap[Made]]]:
    """Run the arms on all prompts in alternation, the rounds of ours timed in place."""
    read = synchronised(clock, contest.target.device)
    runs = {arm.label: _runner(contest, arm, read) for arm in arms}
    cases = list(range(len(contest.prompts)))
    laps = alternate(runs, cases, device=contest.target.device, clock=clock)
    return {arm: laps[arm.label] for arm in arms}


def told(
    contest: Contest, laps: Mapping[Arm, Sequence[Lap[Made]]], costs: Mapping[str, float]
) -> list[dict[str, object]]:
    """Give a row an arm, its speed-ups over the first of them."""
    base = next(iter(laps.values()))
    return [_row(contest, arm, each, base, costs) for arm, each in laps.items()]


def measured_costs(contest: Contest, *, clock: Callable[[], float] = now) -> dict[str, float]:
    """Time a draft step under each plan in place ÷ a round of autoregressive decoding, greedy."""
    sampler, length = next(iter(contest.samplers)), max(contest.lengths)
    plain = Arm(sampler, PLAIN)
    drafting = [Arm(sampler, name=n, plan=p, length=length) for n, p in contest.plans.items()]
    paces = paces_of(contest, (plain, *drafting), clock=clock)
    target = plain_round(paces[plain])
    return {str(arm.name): Parts.of(paces[arm], length).step / target for arm in drafting}


def paces_of(
    contest: Contest, arms: Sequence[Arm], *, clock: Callable[[], float] = now
) -> dict[Arm, list[Pace]]:
    """Run the arms on all prompts in alternation, and time their rounds in place."""
    laps = laps_of(contest, arms, clock=clock)
    return {arm: [lap.result.pace for lap in laps[arm] if lap.result.pace] for arm in arms}


def branch_times(contest: Contest, *, clock: Callable[[], float] = now) -> pandas.DataFrame:
    """Time a step of the model without one branch ÷ a whole step, for each; one row a branch.

    `share` is 1 less this ratio: what the branch takes of a step.
    """
    model, n = contest.target, contest.target.config.n_layers
    alone = {f"attention {i}": SkipPlan(attn=[i]) for i in range(n)}
    alone |= {f"MLP {i}": SkipPlan(mlp=[i]) for i in range(n)}
    prompt = contest.prompts[len(contest.prompts) // 2]
    cache = model.new_cache(1, len(prompt) + 1)
    tokens = torch.tensor([prompt], device=model.device)
    with torch.inference_mode():
        model(tokens, cache)
    cache.commit(len(prompt))

    def step(plan: SkipPlan) -> None:
        with torch.inference_mode():
            model(tokens[:, -1:], cache, skip=plan)

    arms = {PLAIN: partial(step, SkipPlan())}
    arms |= {name: partial(step, plan) for name, plan in alone.items()}
    timed = compare(arms, schedule=BRANCHES, device=model.device, clock=clock)
    rows = []
    for name, plan in alone.items():
        ratio = timed.ratio(name, PLAIN)
        share = Spread(
            *(1 - ratio.median, 1 - ratio.maximum, 1 - ratio.minimum, ratio.interquartile, ratio.n)
        )
        row = {"model": contest.model, "strategy": BRANCH, "name": name, "plan": plan.to_json()}
        row |= {"library": "foredraft", "sampler": "none", "reuse": False, "length": 0}
        cost = {"cost_bytes": plan.cost(model.config)}
        rows.append({**row, **cost, **columns("share", share), "n": share.n})
    return pandas.DataFrame(rows)


def _arms(contest: Contest, sampler: str) -> list[Arm]:
    """Our autoregressive decoding first: the others are measured by it."""
    n_layers = contest.target.config.n_layers
    arms = [Arm(sampler, PLAIN), Arm(sampler, PLAIN, "transformers")]
    for name, plan in contest.plans.items():
        for length in contest.lengths:
            ours = Arm(sampler, name=name, plan=plan, length=length)
            arms.append(ours)
            if plan.exit_layer(n_layers) is not None:
                arms += [replace(ours, reuse=True), replace(ours, library="transformers")]
    return arms


def _runner(contest: Contest, arm: Arm, read: Callable[[], float]) -> Callable[[int], Made]:
    if arm.library == "transformers":
        return partial(_theirs, contest, arm)
    return partial(_ours, contest, arm, read)


def _ours(contest: Contest, arm: Arm, read: Callable[[], float], case: int) -> Made:
    made, pace = paced(partial(_decoded, contest, arm, case), _drafter(arm), read)
    return Made(sum(map(len, made.tokens)), made, pace)


def _drafter(arm: Arm) -> Drafter | None:
    return SelfDrafter(arm.plan, reuse=arm.reuse) if arm.length else None


def _decoded(
    contest: Contest,
    arm: Arm,
    case: int,
    drafter: Drafter | None,
    on_round: Callable[[Round], None] | None = None,
) -> Generation:
    return generate(
        contest.target,
        [contest.prompts[case]],
        sampler=contest.samplers[arm.sampler],
        max_new_tokens=contest.new_tokens,
        drafter=drafter,
        exit_policy=FixedLength(arm.length) if arm.length else None,
        generator=torch.Generator(contest.target.device).manual_seed(case),
        eos_token_id=[],
        on_round=on_round,
    )


def _theirs(contest: Contest, arm: Arm, case: int) -> Made:
    """Let `transformers` leave after as many layers, and draft as many tokens each round."""
    theirs = contest.theirs
    if theirs is None:
        raise ValueError(f"{contest.model} was loaded on our side alone: load_transformers it too")
    prompt = torch.tensor([contest.prompts[case]], device=theirs.device)
    settings = their_sampler(contest.samplers[arm.sampler])
    if arm.strategy == DRAFTING:
        tell_to_draft(theirs, arm.length)
        settings["assistant_early_exit"] = arm.plan.exit_layer(contest.target.config.n_layers)
    made = theirs.generate(  # pyright: ignore[reportCallIssue]
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=contest.new_tokens,
        **settings,
    )
    return Made(made.shape[1] - prompt.shape[1])


def _row(
    contest: Contest,
    arm: Arm,
    laps: Sequence[Lap[Made]],
    base: Sequence[Lap[Made]],
    costs: Mapping[str, float],
) -> dict[str, object]:
    rate = Spread.of([lap.result.tokens / lap.seconds for lap in laps])
    drafts, nan = arm.name is not None, float("nan")
    traces = [lap.result.generation.trace for lap in laps if lap.result.generation is not None]
    drafted = sum(trace.drafted for trace in traces)
    passes = sum(trace.row_passes for trace in traces)
    return {
        **{"model": contest.model, "sampler": arm.sampler, "strategy": arm.strategy},
        **{"library": arm.library, "name": arm.name, "plan": arm.plan.to_json()},
        **{"reuse": arm.reuse, "length": arm.length},
        "cost_bytes": arm.plan.cost(contest.target.config) if drafts else nan,
        "cost_measured": costs[arm.name] if arm.name and arm.library == "foredraft" else nan,
        **columns("tokens_per_second", rate),
        **columns("speedup", paired(laps, base)),
        "acceptance": sum(trace.accepted for trace in traces) / drafted if drafted else nan,
        "tokens_per_pass": sum(trace.emitted for trace in traces) / passes if passes else nan,
        **{"n": rate.n, "new_tokens": contest.new_tokens, "device": str(contest.target.device)},
        "dtype": str(contest.target.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def asked(table: pandas.DataFrame) -> pandas.DataFrame:
    """Give the ratios that a reader asks for: ours at its fastest, and beside transformers' exits.

    Of each model and sampler: our fastest plan ÷ our own autoregressive decoding, and of each exit
    ours ÷ theirs at the same number of drafted tokens, the least and the most of these ratios.
    """
    lines: list[dict[str, object]] = []
    decoding = table.loc[table["strategy"] != BRANCH]
    for _, rows in decoding.groupby(["model", "sampler"], sort=False):
        ours = rows.loc[(rows["library"] == "foredraft") & (rows["strategy"] == DRAFTING)]
        best = ours.loc[ours["speedup_median"].idxmax()]
        where = {"model": best["model"], "sampler": best["sampler"]}
        about = f"{best['name']}, length {best['length']}"
        value = best["speedup_median"]
        lines.append({**where, "ratio": "÷ autoregressive", "of": about, "value": value})
        theirs = rows.loc[(rows["library"] == "transformers") & (rows["strategy"] == DRAFTING)]
        met = theirs.merge(ours.loc[ours["reuse"]], on=["name", "length"], suffixes=("", "_ours"))
        met["value"] = met["tokens_per_second_median_ours"] / met["tokens_per_second_median"]
        for end in ("min", "max"):
            row = met.loc[getattr(met["value"], f"idx{end}")()]
            about, value = f"{row['name']}, length {row['length']}", row["value"]
            lines.append({**where, "ratio": f"÷ early exit of transformers, {end}", "of": about})
            lines[-1]["value"] = value
    return pandas.DataFrame(lines)
