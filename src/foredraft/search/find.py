"""Search a model for the skip plan that pays most, and measure what the search found.

Half of the prompts are searched on, the other half is held out for whatever is measured of the
plans that were found.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import final

import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from foredraft import paths
from foredraft.analysis.statistics import Estimate, ratio
from foredraft.benchmarks.self_drafting import Contest
from foredraft.benchmarks.timing import now
from foredraft.files import digest, write_text
from foredraft.imports import closure
from foredraft.models.decoder import Decoder
from foredraft.models.loading import load
from foredraft.models.skip import SkipPlan
from foredraft.prompts import chat_ids, chat_prompts, code_prompts
from foredraft.repro.live import counter
from foredraft.repro.params import SelfSpeculation
from foredraft.repro.provenance import stamp, write_json
from foredraft.sampling import Sampler
from foredraft.search import bayes
from foredraft.search.engines import Ray
from foredraft.search.measured_costs import STEP, VERIFY, by_clock, finalists, round_costs
from foredraft.search.predict import ByBytes, CostModel, Objective, Prediction, Rounds
from foredraft.search.space import Space
from foredraft.search.teacher_forced import Rehearsal, rehearse
from foredraft.search.trial import Aim, Trial
from foredraft.search.trial import Objective as Judge
from foredraft.types import DTYPES

MEASURED_TOKENS, MEASURED_PROMPTS = 96, 12
"""What the finalists are timed on."""

FINALISTS = 2
"""How many plans of a search are measured in earnest, best first."""

INSTEAD = "foredraft run self_speculation -p profile=pocket"
"""What runs where a published model does not."""


@final
@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that may draft for itself; the prompts that are searched on, and those held out."""

    name: str
    decoder: Decoder
    searched: list[list[int]]
    held_out: list[list[int]]
    tokenizer: PreTrainedTokenizerBase | None = None

    def asked(self, question: str) -> list[int]:
        """Put a question into the model's chat template; ValueError if it has no tokenizer."""
        if self.tokenizer is None:
            raise ValueError(f"{self.name} has no tokenizer here: load it with `chosen`")
        return list(chat_ids(self.tokenizer, question))


@cache
def candidate(
    name: str, n_prompts: int, kind: str = "code", device: str = "cpu", dtype: str = "bfloat16"
) -> Candidate:
    """Load a model, in half precision as it is to be decoded with, and its prompts.

    `kind` "code" takes pieces of the held-out package, "chat" what users say, in the model's own
    chat template.
    """
    decoder, tokenizer = _loaded(name, device, DTYPES[dtype])
    if kind == "chat":
        ids = [list(chat_ids(tokenizer, prompt.turns[0])) for prompt in chat_prompts()]
    else:
        ids = [tokenizer.encode(prompt.text()) for prompt in code_prompts()]
    searched, held_out = (some(ids[start::2], n_prompts) for start in (0, 1))
    return Candidate(name, decoder, searched, held_out, tokenizer)


def _loaded(name: str, device: str, dtype: torch.dtype) -> tuple[Decoder, PreTrainedTokenizerBase]:
    """Load a model; ValueError, with what to run instead, if it cannot be had."""
    try:
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"{name!r} is to run on {device!r}, and torch sees no such device")
        return load(name, device=device, dtype=dtype)
    except ValueError as error:
        told = f"{error}. What runs anywhere are the pocket models: {INSTEAD}"
        raise ValueError(told) from error


def chosen(name: str, params: SelfSpeculation, dtype: str = "bfloat16") -> Candidate:
    """Load a model as the parameters say."""
    return candidate(name, params.n_prompts, params.prompts, params.device, dtype)


def some(prompts: list[list[int]], n: int) -> list[list[int]]:
    """Take n of them at equal distances."""
    if n > len(prompts):
        raise ValueError(
            f"{n} prompts are asked for, and half of all are {len(prompts)}: ask for fewer"
        )
    return [prompts[i * len(prompts) // n] for i in range(n)]


def sampler_name(temperature: float) -> str:
    """Say what rows call the sampler of this temperature."""
    return "greedy" if temperature == 0 else f"temperature {temperature:g}"


def rehearsal(
    subject: Candidate, params: SelfSpeculation, *, temperature: float, held_out: bool = False
) -> Rehearsal:
    """Let the model write what plans are judged by: on the prompts searched on, or held out.

    Held-out texts are those that plans are timed on: the same prompts, and as many tokens.
    """
    return rehearse(
        subject.decoder,
        timed_prompts(subject) if held_out else subject.searched,
        sampler=Sampler(temperature=temperature),
        new_tokens=MEASURED_TOKENS if held_out else params.max_new_tokens,
        generator=torch.Generator(subject.decoder.device).manual_seed(params.seed + held_out),
    )


def costs(
    subject: Candidate, recorded: pd.DataFrame, temperature: float, longest: int = 8
) -> CostModel:
    """Give the costs that were recorded for the model, or those by bytes if there are none."""
    if len(recorded):
        rows = recorded.loc[recorded["strategy"].isin([STEP, VERIFY])]
        own = rows.loc[rows["model"] == subject.name]
        names = (sampler_name(temperature), sampler_name(min(temperature, 1.0)), "temperature 1")
        for name in names if temperature else names[:1]:
            if len(found := own.loc[own["sampler"] == name]):
                return by_clock(found, longest=longest)
    return ByBytes(subject.decoder.config, longest)


def objective(
    subject: Candidate,
    params: SelfSpeculation,
    cost_model: CostModel,
    *,
    temperature: float,
    held_out: bool = False,
) -> Objective:
    """Set up what foretells the model's speed-ups."""
    texts = rehearsal(subject, params, temperature=temperature, held_out=held_out)
    return Objective(texts, cost_model, longest=params.longest)


@final
@dataclass(frozen=True)
class Reloaded:
    """The objective, set up where it is first asked: it travels to workers as its settings."""

    name: str
    params: SelfSpeculation
    costs: CostModel
    temperature: float

    @cached_property
    def judge(self) -> Objective:
        """Load the model, and let it write the texts."""
        subject = chosen(self.name, self.params)
        return objective(subject, self.params, self.costs, temperature=self.temperature)

    def __call__(self, plan: SkipPlan) -> Mapping[str, Estimate]:
        """Give the metrics of a plan."""
        return self.judge(plan)


@final
@dataclass(frozen=True, slots=True)
class Found:
    """What a search of one model at one temperature came to.

    `costs` are the rows of what was timed beforehand, `measured` those of the best plans decoded in
    earnest, `seconds` how long the search took (NaN if it was interrupted), `folder` where it is as
    long as it may go on.
    """

    subject: Candidate
    temperature: float
    trials: list[Trial]
    best: list[Prediction]
    costs: pd.DataFrame
    measured: pd.DataFrame
    seconds: float
    folder: Path


def find(  # noqa: PLR0913 - what the command line offers
    name: str,
    params: SelfSpeculation,
    *,
    temperature: float,
    times: bool = True,
    engine: Ray | None = None,
    report: Callable[[str], None] = lambda told: None,
    clock: Callable[[], float] = now,
) -> Found:
    """Search all branches of a model, then decode under the best plans on held-out prompts.

    With `times` the costs that the search goes by are measured first, else they are by bytes. Costs
    and trials are on disk as soon as they are known, and a search that was interrupted goes on,
    until `keep` or `forget` ends it.
    """
    subject, told = chosen(name, params), f"{name}, {sampler_name(temperature)}"
    batch = 1 if engine is None else engine.workers
    folder = _folder(name, params, temperature, times, batch)
    timed = pd.DataFrame()
    if times:
        report(f"{told}: what the parts of a round cost")
        timed = _timed_once(folder / "costs.json", subject, temperature, clock)
    known = costs(subject, timed, temperature, params.longest)
    judge = objective(subject, params, known, temperature=temperature)
    asked = judge if engine is None else Reloaded(name, params, judge.costs, temperature)
    report(f"{told}: {params.trials} trials")
    goes_on, start = (folder / "trials.jsonl").exists(), clock()
    trials = searched(subject, asked, params, engine=engine, folder=folder)
    seconds = float("nan") if goes_on else clock() - start
    best = foretold(judge, trials, params)
    report(f"{told}: the best of them, decoded; {best[0].speedup.mean:.3f} foretold")
    held_out = objective(subject, params, judge.costs, temperature=temperature, held_out=True)
    rows = measured(subject, best, held_out, temperature=temperature, clock=clock)
    return Found(subject, temperature, trials, best, timed, rows, seconds, folder)


def _folder(
    name: str, params: SelfSpeculation, temperature: float, times: bool, batch: int
) -> Path:
    """Name a folder for a search with these settings, weights, prompts and rules."""
    told = [params.model_dump_json(), str(temperature), str(times), str(batch), name]
    rules = closure(*(each for each in [paths.module(__name__)] if each is not None))
    texts = [paths.prompts("pocket"), paths.prompts("chat")]
    told += map(digest, [*paths.weights(name), *texts, *rules])
    return paths.searches(hashlib.sha256("\n".join(told).encode()).hexdigest()[:16])


def _timed_once(
    path: Path, subject: Candidate, temperature: float, clock: Callable[[], float]
) -> pd.DataFrame:
    """Time the parts of a round, or read what an interrupted search has timed."""
    if not path.exists():
        whole = contest(subject, temperature)
        less = replace(whole, prompts=whole.prompts[::2], new_tokens=whole.new_tokens // 2)
        rows = round_costs(less, sampler_name(temperature), clock=clock)
        write_text(path, json.dumps(rows.to_dict("records")))
    return pd.DataFrame(json.loads(path.read_text(encoding="utf-8")))


def forget(found: Found) -> None:
    """End a search: the next one with the same settings begins anew."""
    ended = found.folder.with_name(f"{found.folder.name}.ended")
    shutil.rmtree(ended, ignore_errors=True)  # of an end that was itself interrupted
    if found.folder.exists():
        found.folder.rename(ended)
    shutil.rmtree(ended, ignore_errors=True)


def keep(found: Found, params: SelfSpeculation) -> Path:
    """Write the best plan that was found, what is known of it, and all trials, to data/plans."""
    best, rows = found.best[0], found.measured.set_index("name")
    timed = rows.loc["found 1"]
    names = ("speedup", "acceptance", "tokens_per_round", "overlap")
    predicted = {each: getattr(best, each).mean for each in names} | {"cost": best.cost}
    predicted |= {"speedup_sem": best.speedup.sem, "temperature": found.temperature}
    predicted["speedup_held_out"] = timed["predicted_held_out"]
    ours = {f"speedup_{end}": timed[f"speedup_{end}"] for end in ("median", "min", "max", "iqr")}
    ours |= {"acceptance": timed["acceptance"], "n": int(timed["n"])}
    content = {
        "plan": json.loads(best.plan.to_json()),
        "model": found.subject.name,
        "source": "found by `foredraft search`",
        "gamma": best.length,
        "predicted": predicted,
        "measured": {name: float(value) for name, value in ours.items()},
        "trials": [json.loads(trial.to_json()) for trial in found.trials],
    }
    path = paths.plan(found.subject.name.replace("/", "--"))
    inputs = [path for path in (paths.module(__name__),) if path is not None]
    inputs += paths.weights(found.subject.name)
    told = {"model": found.subject.name, "temperature": found.temperature}
    told = params.model_dump(mode="json") | told
    made_from = stamp("search", told, inputs, device=params.device, dtype="bfloat16")
    write_json(path, content, made_from)
    forget(found)
    return path


def searched(
    subject: Candidate,
    judge: Judge,
    params: SelfSpeculation,
    *,
    engine: Ray | None = None,
    folder: Path | None = None,
) -> list[Trial]:
    """Search all branches of the model by Bayesian optimisation, on all workers there are.

    It sets out from plans that skip little, and from early exits.
    """
    space, n_layers = Space.of(subject.decoder.config), subject.decoder.config.n_layers
    exits = [SkipPlan.early_exit(n_layers // share, n_layers) for share in (2, 3, 4)]
    told = counter("plans tried", params.trials)
    return bayes.search(
        space,
        judge,
        trials=params.trials,
        starts=[*space.few_skips(), *exits],
        seed=params.seed,
        goal=params.objective,
        initial=params.initial,
        engine=engine,
        batch=1 if engine is None else engine.workers,
        folder=folder,
        report=lambda trial: told(trial.index + 1),
    )


def foretold(
    judge: Objective, trials: Sequence[Trial], params: SelfSpeculation
) -> list[Prediction]:
    """Give the predictions for the best plans of a search, best first."""
    aim = Aim.of(params.objective)
    ranked = sorted(trials, key=lambda trial: -aim.value(trial.values))
    return [judge.predict(trial.plan) for trial in ranked[:FINALISTS]]


def timed_prompts(subject: Candidate) -> list[list[int]]:
    """Take the held-out prompts that plans are timed on."""
    return subject.held_out[:: max(1, len(subject.held_out) // MEASURED_PROMPTS)][:MEASURED_PROMPTS]


def contest(subject: Candidate, temperature: float) -> Contest:
    """Set up what plans are timed on: held-out prompts, at this temperature."""
    return Contest(
        subject.name,
        subject.decoder,
        None,
        timed_prompts(subject),
        {},
        new_tokens=MEASURED_TOKENS,
        samplers={sampler_name(temperature): Sampler(temperature=temperature)},
    )


def measured(
    subject: Candidate,
    found: Sequence[Prediction],
    judge: Objective,
    *,
    temperature: float,
    clock: Callable[[], float] = now,
) -> pd.DataFrame:
    """Decode under the plans that were found, beside plain decoding, on held-out prompts.

    `predicted` is what the search went by, `predicted_held_out` the same by the texts of `judge`,
    which come from the very prompts that are decoded, and `summed` what the costs make of the
    rounds that came out: what then differs from `rounds_speedup` is the costs alone.
    """
    name = sampler_name(temperature)
    plans = {f"found {i}": (each.plan, each.length) for i, each in enumerate(found, start=1)}
    rows, traces = finalists(contest(subject, temperature), name, plans, clock=clock)
    again = [judge.predict(each.plan, each.length) for each in found]
    known: dict[str, dict[str, float]] = {}
    for label, before, now_known in zip(plans, found, again, strict=True):
        made = Rounds.counted(traces[label], before.length)
        costs_of = judge.costs(before.plan)
        known[label] = {
            **{"predicted": before.speedup.mean, "predicted_sem": before.speedup.sem},
            "predicted_held_out": now_known.speedup.mean,
            "predicted_held_out_sem": now_known.speedup.sem,
            "summed": ratio(made.tokens * costs_of.target, made.time(costs_of)).mean,
        }
    columns = pd.DataFrame.from_dict(known, orient="index")
    return rows.join(columns, on="name")
