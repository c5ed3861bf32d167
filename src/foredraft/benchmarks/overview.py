"""All benchmarks on a short schedule, for their ratios: minutes, not the hours of a recording.

A ratio is paired: of arms that took turns, case by case or round by round, with its spread.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import pandas

from foredraft.benchmarks import (
    bert,
    compiled,
    contexts,
    decoding,
    roofline,
    sampling,
    self_drafting,
)
from foredraft.benchmarks.ratios import value_of
from foredraft.benchmarks.timing import Schedule, now
from foredraft.models.skip import SkipPlan

Report = Callable[[str], None]
Clock = Callable[[], float]

WHERE = ("n", "device", "dtype", "threads")

EXIT = 6
"""After how many layers the models leave that draft for themselves."""


SIZES = roofline.Sizes(new_tokens=(1, 4, 16), compiled_tokens=(1,), contexts=(100, 2000))
FAR = roofline.Sizes(new_tokens=(1,), compiled_tokens=(), contexts=(100, 8000))
SCHEDULE = Schedule(repeats=5, warmup=1)


@final
@dataclass(frozen=True, slots=True)
class Short:
    """How little is enough for a ratio."""

    sizes: roofline.Sizes = SIZES
    far: roofline.Sizes = FAR
    n_prompts: int = 8
    new_tokens: int = 32
    vocabs: Sequence[int] = (4096, 32_000)
    workload: str = "128 tokens each"
    schedule: Schedule = SCHEDULE


def overview(
    short: Short | None = None,
    *,
    device: str = "cpu",
    report: Report = lambda told: None,
    clock: Clock = now,
) -> pandas.DataFrame:
    """Run every benchmark briefly; one row a ratio, with its spread and what it was measured on."""
    short = short or Short()
    parts = [_roofline, _contexts, _decoding, _compiled, _self_drafting]
    parts += [_sampling, _bert] if device == "cpu" else []
    rows: list[dict[str, object]] = []
    for part in parts:
        name = part.__name__.removeprefix("_").replace("_", " ")
        report(name)
        rows += [{"benchmark": name, **row} for row in part(short, device, report, clock)]
    return pandas.DataFrame(rows)


def _roofline(
    short: Short, device: str, report: Report, clock: Clock
) -> Iterator[dict[str, object]]:
    """Give the share of the roof, and what contexts and tokens cost.

    On a processor the larger model is left eager: compiling it takes minutes.
    """
    compiled = [roofline.POCKET] if device == "cpu" else [roofline.POCKET, roofline.RANDOM]
    models = roofline.pocket_and_random(device, compiled)
    table = roofline.roofline_benchmark(
        models, device=device, sizes=short.sizes, report=report, clock=clock
    )
    passes = table.loc[table["what"] == roofline.FORWARD].iloc[0]
    for row in roofline.asked(table).to_dict("records"):
        yield {**row, **_where(passes)}


def _contexts(
    short: Short, device: str, report: Report, clock: Clock
) -> Iterator[dict[str, object]]:
    """Give what a long text costs, and what windows spare."""
    table = contexts.contexts_benchmark(device=device, sizes=short.far, report=report, clock=clock)
    for row in contexts.asked(table).to_dict("records"):
        yield {**row, **_where(table.iloc[0])}


def _decoding(
    short: Short, device: str, report: Report, clock: Clock
) -> Iterator[dict[str, object]]:
    """Give every way to decode one row ÷ our plain decoding, theirs among them."""
    contest = replace(
        decoding.pocket_contest(device=device, n_prompts=short.n_prompts),
        new_tokens=short.new_tokens,
        lengths=(4,),
    )
    table = decoding.decoding_benchmark(contest, report=report, clock=clock)
    for row in table.loc[table["batch"] == 1].to_dict("records"):
        if (row["strategy"], row["library"]) != ("autoregressive", "foredraft"):
            yield _speedup(row)


def _compiled(
    short: Short, device: str, report: Report, clock: Clock
) -> Iterator[dict[str, object]]:
    """Give compiled plain decoding ÷ the eager one, and ÷ theirs."""
    contest = replace(
        decoding.pocket_contest(device=device, n_prompts=short.n_prompts),
        new_tokens=short.new_tokens,
    )
    table = compiled.compiled_benchmark(contest, lengths=(), report=report, clock=clock)
    for row in compiled.asked(table).to_dict("records"):
        yield {**row, **_where(table.iloc[0])}


def _self_drafting(
    short: Short, device: str, report: Report, clock: Clock
) -> Iterator[dict[str, object]]:
    """Give an early exit of each model ÷ our plain decoding, and theirs."""
    for contest in self_drafting.pocket_contests(device=device, n_prompts=short.n_prompts):
        brief = replace(contest, new_tokens=short.new_tokens)
        arms = _exits(brief)
        report(f"{brief.model}: {len(arms)} ways")
        costs = {f"exit {EXIT}": float("nan")}
        for row in self_drafting.race(brief, arms, costs, clock=clock)[1:]:
            yield {**_speedup(row), "of": f"{row['model']}, {_way(row)}"}


def _exits(contest: self_drafting.Contest) -> list[self_drafting.Arm]:
    """Our plain decoding first, then theirs, then the exit in both."""
    sampler, n_layers = next(iter(contest.samplers)), contest.target.config.n_layers
    leaves = SkipPlan.early_exit(EXIT, n_layers)
    ours = self_drafting.Arm(sampler, name=f"exit {EXIT}", plan=leaves, reuse=True, length=3)
    plain = self_drafting.Arm(sampler, self_drafting.PLAIN)
    both = [plain, ours]
    return [*both, *(replace(arm, library="transformers", reuse=False) for arm in both)]


def _sampling(
    short: Short, device: str, report: Report, clock: Clock
) -> Iterator[dict[str, object]]:
    """Give theirs ÷ ours in seconds: the usual chain of filters, and the draw."""
    table = sampling.sampling_benchmark(vocabs=short.vocabs, schedule=short.schedule, clock=clock)
    usual = table["setting"].isin(["temperature, top-k, top-p", "draw"])
    for row in table.loc[usual & (table["logits"] == "peaked")].to_dict("records"):
        about = f"{row['setting']}, vocabulary {row['vocab']}"
        yield {"ratio": "transformers ÷ ours", "of": about, **value_of(row, "ratio"), **_where(row)}


def _bert(short: Short, device: str, report: Report, clock: Clock) -> Iterator[dict[str, object]]:
    """Give theirs ÷ ours in milliseconds or megabytes."""
    table = bert.bert_benchmark(
        workloads={short.workload: bert.WORKLOADS[short.workload]},
        schedule=replace(short.schedule, inner=1),
        device=device,
        clock=clock,
        report=report,
    )
    for row in table.to_dict("records"):
        about = f"{row['task']}, {row['unit']}"
        yield {"ratio": "transformers ÷ ours", "of": about, **value_of(row, "ratio"), **_where(row)}


def _speedup(row: Mapping[Any, Any]) -> dict[str, object]:
    """Give a way to decode, over our plain decoding of the same prompts."""
    told = {"ratio": "÷ our autoregressive", "of": f"{row['sampler']}, {_way(row)}"}
    return {**told, **value_of(row, "speedup"), **_where(row)}


def _way(row: Mapping[Any, Any]) -> str:
    length = f" of {row['length']}" if row["length"] else ""
    return f"{row['library']}, {row['strategy']}{length}"


def _where(row: Mapping[Any, Any] | pandas.Series) -> dict[str, object]:
    return {name: row[name] for name in WHERE}
