"""Let the methods of search compete, and measure what all models' searches find: what is recorded.

The race goes by costs in bytes and reads no clock; what it has tried is kept, so that it goes on
where it was interrupted. The searches go by costs that are timed first.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from itertools import islice, product
from pathlib import Path

import pandas as pd
import torch

from foredraft import paths
from foredraft.analysis.statistics import Estimate, variance
from foredraft.benchmarks.timing import Spread, alternate, now
from foredraft.decoding.exit import FixedLength
from foredraft.decoding.loop import generate
from foredraft.decoding.self_draft import SelfDrafter
from foredraft.decoding.trace import Trace
from foredraft.files import digest
from foredraft.imports import closure
from foredraft.models.skip import SkipPlan
from foredraft.repro.params import SelfSpeculation
from foredraft.sampling import Sampler
from foredraft.search import baselines, bayes
from foredraft.search.find import (
    Found,
    chosen,
    costs,
    find,
    forget,
    keep,
    objective,
    sampler_name,
    searched,
)
from foredraft.search.predict import ByBytes, Rounds, rounds
from foredraft.search.space import Space
from foredraft.search.trial import Aim, Log, Trial, best, table
from foredraft.search.trial import Objective as Judge

RACE, SEARCH, CEILING = "race", "search", "ceiling"
"""What recorded rows of the race of the methods, of a search, and of its bound have in `strategy`.
"""

DECISIVE = {
    *("seed", "model", "prompts", "temperature", "objective", "initial", "longest"),
    *("n_prompts", "max_new_tokens", "free_layers"),
}
"""The parameters on which it depends what a plan is worth, and which is tried next."""


def search_benchmark(
    params: SelfSpeculation,
    *,
    report: Callable[[str], None] = lambda told: None,
    clock: Callable[[], float] = now,
) -> pd.DataFrame:
    """Let the methods race, then search every model, greedy and at temperature 1, and time it all.

    What was found at temperature 1 is kept in data/plans, once all of it is measured.
    """
    settings = list(product(params.models, (0.0, 1.0)))
    parts, ends = [race(params, report=report)], []
    parts += [ceiling(name, params, temperature=t, report=report) for name, t in settings]
    for name, temperature in settings:
        found = find(name, params, temperature=temperature, report=report, clock=clock)
        told = {"model": name, "sampler": sampler_name(temperature), "strategy": SEARCH}
        told |= {"seconds": found.seconds, "trials": len(found.trials), "n": 1}
        told |= effort(found, params, clock=clock)
        parts += [found.costs, found.measured, pd.DataFrame([told])]
        ends.append(found)
    for found in ends:
        if found.temperature:
            keep(found, params)
        else:
            forget(found)
    return pd.concat(parts, ignore_index=True)


def ceiling(
    name: str,
    params: SelfSpeculation,
    *,
    temperature: float,
    report: Callable[[str], None] = lambda told: None,
) -> pd.DataFrame:
    """Search a model by costs in bytes: what could be had if nothing but weights took time.

    Verification is then free but for a plain step, whatever its length. One row; reads no clock.
    """
    report(f"{name}, {sampler_name(temperature)}: by bytes")
    told = params.model_copy(update={"model": name, "temperature": temperature})
    subject = chosen(name, told)
    by_bytes = ByBytes(subject.decoder.config, params.longest)
    judge = objective(subject, told, by_bytes, temperature=temperature)
    top = best(searched(subject, judge, told, folder=race_folder(told) / "ceiling"), "speedup")
    row = {"model": name, "sampler": sampler_name(temperature), "strategy": CEILING, "n": 1}
    row |= {"plan": top.plan.to_json(), "value": top.values["speedup"].mean}
    row |= {"length": int(top.values["length"].mean), "cost_bytes": top.values["cost"].mean}
    return pd.DataFrame([row])


def effort(
    found: Found, params: SelfSpeculation, *, clock: Callable[[], float] = now
) -> dict[str, float]:
    """Say how much longer decoding takes to know the best plan's speed-up as well as foretelling.

    Decoding is of one text after the other, as whoever times it has to do, and is taken to have no
    noise but that of the texts. `effort` is seconds a text × variance between texts, of the one ÷
    of the other; NaN where no text differs from another.
    """
    subject, best = found.subject, found.best[0]
    judge = objective(
        subject,
        params,
        costs(subject, found.costs, found.temperature),
        temperature=found.temperature,
    )
    sampler = Sampler(temperature=found.temperature)
    traces: list[Trace] = []

    def decode(case: int) -> None:
        text = generate(
            subject.decoder,
            [subject.searched[case]],
            sampler=sampler,
            max_new_tokens=params.max_new_tokens,
            drafter=SelfDrafter(best.plan),
            exit_policy=FixedLength(best.length),
            generator=torch.Generator(subject.decoder.device).manual_seed(case),
            eos_token_id=[],
        )
        traces.append(text.trace)

    def predict(case: int) -> None:
        judge.predict(best.plan, best.length)

    arms = {"decode": decode, "predict": predict}
    cases, place = range(len(subject.searched)), subject.decoder.device
    laps = alternate(arms, cases, warmup=1, device=place, clock=clock)
    seconds = {name: Spread.of([lap.seconds for lap in each]).median for name, each in laps.items()}
    drafts = list(islice(judge.rehearsal.drafts(best.plan), best.length))
    foretold, decoded = rounds(drafts, best.length), Rounds.counted(traces[1:], best.length)
    time = judge.costs(best.plan)
    noise = {
        "decode": variance(decoded.tokens, decoded.time(time)),
        "predict": variance(foretold.tokens, foretold.time(time)),
    }
    a_text = {"decode": seconds["decode"], "predict": seconds["predict"] / len(cases)}
    decoding, foretelling = (a_text[name] * noise[name] for name in arms)
    return {"effort": decoding / foretelling if foretelling else float("nan")}


def race(
    params: SelfSpeculation,
    *,
    report: Callable[[str], None] = lambda told: None,
) -> pd.DataFrame:
    """Let the methods of search compete, by costs in bytes so that no clock has a say.

    In a `space` small enough to try every plan, and in that of all branches: a row a trial, `best`
    being the best so far. What was tried is kept, and a race that was interrupted goes on.
    """
    subject, folder = chosen(params.model, params), race_folder(params)
    by_bytes = ByBytes(subject.decoder.config)
    judge = objective(subject, params, by_bytes, temperature=params.temperature)
    n_layers, goal = subject.decoder.config.n_layers, params.objective
    metric = Aim.of(goal).metric
    small = Space(n_layers, [("mlp", layer) for layer in params.free_layers])
    ask_small, ask_all = (_once(judge, folder / f"{name}.jsonl") for name in ("small", "all"))
    every = _every_plan(small, ask_small, report)
    values, top = [trial.values[metric].mean for trial in every], best(every, goal)
    told = {"space": "small", "method": "exhaustive", "seed": 0, "index": len(values) - 1}
    told |= {"value": sum(values) / len(values), "best": top.values[metric].mean}
    told["plan"] = top.plan.to_json()
    parts = [pd.DataFrame([told])]
    for name, space, trials, ask in (
        ("small", small, params.race_trials, ask_small),
        ("all", Space.of(subject.decoder.config), params.trials, ask_all),
    ):
        for method, seed, found in _contestants(space, ask, trials, params, folder / name, report):
            lines = table(found, goal)
            lines = lines[["index", "best", "plan"]].assign(value=lines[metric])
            parts.append(lines.assign(space=name, method=method, seed=seed))
    return pd.concat(parts, ignore_index=True).assign(
        strategy=RACE, model=subject.name, layers=n_layers, n=1
    )


def race_folder(params: SelfSpeculation) -> Path:
    """Name a folder for what was tried, another one whenever the model or the rules change."""
    rules = closure(*(each for each in [paths.module(__name__)] if each is not None))
    made_from = [*paths.weights(params.model), paths.prompts("pocket"), paths.prompts("chat")]
    told = [params.model_dump_json(include=DECISIVE), *map(digest, [*made_from, *rules])]
    return paths.searches(hashlib.sha256("\n".join(told).encode()).hexdigest()[:16])


def _once(judge: Judge, path: Path) -> Judge:
    """Ask about each plan once, and keep what was said of it."""
    log = Log(path)
    known = {trial.plan: trial.values for trial in log.read()}

    def ask(plan: SkipPlan) -> Mapping[str, Estimate]:
        if plan not in known:
            known[plan] = judge(plan)
            log.append(Trial(len(known) - 1, plan, known[plan], "exhaustive"))
        return known[plan]

    return ask


def _every_plan(space: Space, judge: Judge, report: Callable[[str], None]) -> list[Trial]:
    """Try all plans of a small space."""
    done: list[Trial] = []
    for index, plan in enumerate(space.plans()):
        done.append(Trial(index, plan, judge(plan), "exhaustive"))
        if not len(done) % 100:
            report(f"{len(done)} of {space.size} plans")
    return done


def _contestants(
    space: Space,
    judge: Judge,
    trials: int,
    params: SelfSpeculation,
    folder: Path,
    report: Callable[[str], None],
) -> Iterator[tuple[str, int, list[Trial]]]:
    """Run each method, those that draw lots with several seeds."""
    goal = params.objective
    yield "uniform", 0, baselines.uniform(space, judge, trials=trials)
    yield "greedy", 0, baselines.greedy(space, judge, goal=goal, trials=trials)
    for seed in range(params.seed, params.seed + params.race_seeds):
        report(f"{folder.name}, seed {seed}")
        lots = torch.Generator().manual_seed(seed)
        yield (
            "random",
            seed,
            baselines.random_search(
                space, judge, trials=trials, starts=space.few_skips(), generator=lots
            ),
        )
        settings = {"seed": seed, "goal": goal, "initial": params.initial}
        place = folder / f"seed-{seed}"
        yield "Ax", seed, bayes.search(space, judge, trials=trials, folder=place, **settings)
