"""Time whole generations: ours and those of `transformers`, on the same weights and prompts.

A case is a prompt; every arm continues it by the same number of tokens, in alternation, and no
text ends early. A speed-up is the ratio, prompt by prompt, to our own autoregressive decoding of
one row with the same sampler. What the measured costs and acceptances predict stands beside it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import pandas
import torch
from transformers import PreTrainedModel

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
from foredraft.decoding.draft import Drafter, ModelDrafter, PromptLookupDrafter
from foredraft.decoding.exit import ConfidenceExit, ExitPolicy, FixedLength
from foredraft.decoding.loop import Generation, generate
from foredraft.decoding.theory import Costs, position_acceptances, predicted_speedup
from foredraft.decoding.trace import Round
from foredraft.models.decoder import Decoder
from foredraft.models.loading import load, load_transformers, require_same_tokens
from foredraft.prompts import code_prompts
from foredraft.sampling import Sampler

SAMPLERS: Mapping[str, Sampler] = {
    "greedy": Sampler(temperature=0.0),
    "temperature 1": Sampler(),
}

TARGET, DRAFT = "pocket-llama", "pocket-llama-draft"

DRAFTING, BLOCK, CONFIDENT = "draft model", "draft model, block", "draft model, confident"
"""A draft model's tokens verified one by one; as a block; as a block that ends where it doubts."""

THRESHOLD, LONGEST = 0.4, 8
"""Of the drafts that end where the draft model doubts; the threshold is that of transformers."""

Prompt = list[int]


@final
@dataclass(frozen=True, slots=True)
class Arm:
    """One way to decode: who drafts, how many tokens, which library, how many rows at once.

    With a `threshold`, a draft ends early after a token of less confidence.
    """

    sampler: str
    strategy: str
    library: str = "foredraft"
    batch: int = 1
    length: int = 0
    verification: str = "token"
    threshold: float = 0.0

    @property
    def label(self) -> str:
        """Tell it from the other arms."""
        return f"{self.sampler}, {self.library}, {self.strategy} {self.length}, batch {self.batch}"


@final
@dataclass(frozen=True, slots=True)
class Made:
    """What one run of an arm made: tokens over all rows and, of ours, how, and at what pace."""

    tokens: int
    generation: Generation | None = None
    pace: Pace | None = None


@final
@dataclass(frozen=True, slots=True)
class Contest:
    """The models on both sides, the prompts, and what is compared.

    `theirs` and `their_draft` are the same weights as `target` and `draft`, in `transformers`.
    """

    target: Decoder
    draft: Decoder
    theirs: PreTrainedModel
    their_draft: PreTrainedModel
    prompts: Sequence[Prompt]
    new_tokens: int = 128
    length: int = 4
    lengths: Sequence[int] = (1, 2, 3, 4, 6)
    batch: int = 8
    samplers: Mapping[str, Sampler] = field(default_factory=lambda: SAMPLERS)

    def __post_init__(self) -> None:
        """Refuse a contest that would compare different precisions, or too few prompts."""
        precisions = {model.dtype for model in (self.target, self.draft)}
        precisions |= {model.dtype for model in (self.theirs, self.their_draft)}
        if len(precisions) > 1:
            raise ValueError(f"the models have {precisions}: load all four in one dtype")
        if len(self.prompts) < self.batch:
            raise ValueError(
                f"{len(self.prompts)} prompts for a batch of {self.batch}: give at least as many"
            )


def pocket_contest(*, device: str = "cpu", n_prompts: int = 20) -> Contest:
    """Set up the contest of the pocket models, in bf16, on prompts from the held-out package."""
    place = {"device": device, "dtype": torch.bfloat16}
    target, tokenizer = load(TARGET, **place)
    draft, read_by = load(DRAFT, **place)
    require_same_tokens(tokenizer, read_by)
    theirs, their_draft = (load_transformers(name, **place) for name in (TARGET, DRAFT))
    for model in (theirs, their_draft):
        model.generation_config.eos_token_id = None  # no text ends early
    prompts = [tokenizer.encode(prompt.text()) for prompt in code_prompts(n=n_prompts)]
    return Contest(target, draft, theirs, their_draft, prompts)


def decoding_benchmark(
    contest: Contest,
    *,
    report: Callable[[str], None] = lambda told: None,
    clock: Callable[[], float] = now,
) -> pandas.DataFrame:
    """Run all arms on all prompts; one row an arm, with medians and spreads over the prompts.

    `speedup` is paired by prompt with our own autoregressive decoding of one row. `predicted` is
    theory's, from α_k and what the parts of a round cost (`draft_ms`, `verify_ms`, `target_ms`),
    for the tokens after the first; `residual` is measured ÷ predicted − 1. The parts are timed in
    place, in runs of their own that take their turn with the others. `roofline` is the share of the
    measured memory bandwidth at which weights were read.
    """
    bandwidth = memory_bandwidth(contest.target.device, clock=clock)
    rows = []
    for name in contest.samplers:
        arms = _arms(contest, name)
        report(f"{name}: {len(arms)} ways to decode, {len(contest.prompts)} prompts")
        runs = {arm.label: runner(contest, arm) for arm in arms}
        timed = [arm for arm in arms if _is_in_parts(arm)]
        runs |= {_in_parts(arm): _paced_runner(contest, arm, clock) for arm in timed}
        cases = list(range(len(contest.prompts)))
        laps = alternate(runs, cases, device=contest.target.device, clock=clock)
        by_arm = {arm: laps[arm.label] for arm in arms}
        paces = {arm: _paces(laps[_in_parts(arm)]) for arm in timed}
        rows += [_row(contest, arm, by_arm, paces, bandwidth) for arm in arms]
    return pandas.DataFrame(rows)


def _is_in_parts(arm: Arm) -> bool:
    """Whether the parts of its rounds are timed: what theory has a formula for, one row."""
    ours = arm.library == "foredraft" and arm.batch == 1
    return ours and arm.strategy in ("autoregressive", DRAFTING)


def _in_parts(arm: Arm) -> str:
    return f"{arm.label}, in parts"


def _paces(laps: Sequence[Lap[Made]]) -> list[Pace]:
    return [lap.result.pace for lap in laps if lap.result.pace is not None]


def asked(table: pandas.DataFrame) -> pandas.DataFrame:
    """Give the ratios that a reader asks for, of medians of tokens a second: a row each."""
    arm = ["sampler", "strategy", "library", "batch", "length"]
    rates = {
        tuple(row[key] for key in arm): row["tokens_per_second_median"]
        for row in table.to_dict("records")
    }
    lines: list[dict[str, object]] = []
    for (sampler, strategy, library, batch, length), rate in rates.items():
        if library != "foredraft":
            continue
        others = {
            "ours ÷ transformers": (strategy, "transformers", batch, length),
            f"batch {batch} ÷ batch 1": (strategy, library, 1, length) if batch > 1 else None,
            "÷ autoregressive": ("autoregressive", library, 1, 0)
            if length and batch == 1
            else None,
        }
        for name, other in others.items():
            below = rates.get((sampler, *other)) if other else None
            if below is not None:
                line = {"ratio": name, "strategy": strategy, "sampler": sampler, "length": length}
                lines.append({**line, "value": rate / below})
    return pandas.DataFrame(lines).sort_values("ratio", kind="stable", ignore_index=True)


def memory_bandwidth(
    device: torch.device | str, *, megabytes: int = 512, clock: Callable[[], float] = now
) -> float:
    """Measure how many bytes a second are read from memory by summing what no cache can hold."""
    numbers = torch.ones(megabytes * 2**20 // 4, device=device)
    arms: dict[str, Callable[[], object]] = {"sum": lambda: torch.sum(numbers)}
    schedule = Schedule(repeats=5, warmup=1, inner=1)
    timed = compare(arms, schedule=schedule, device=device, clock=clock)
    return numbers.numel() * 4 / (timed.spread("sum").minimum / 1e3)


def _arms(contest: Contest, sampler: str) -> list[Arm]:
    """Our autoregressive decoding first: the others are measured by it."""
    n, batch = contest.length, contest.batch
    return [
        Arm(sampler, "autoregressive"),
        Arm(sampler, "autoregressive", "transformers"),
        *(Arm(sampler, DRAFTING, length=length) for length in contest.lengths),
        *(
            Arm(sampler, DRAFTING, "transformers", length=length)
            for length in contest.lengths
            if n // 2 <= length <= n
        ),
        Arm(sampler, BLOCK, length=n - 1, verification="block"),
        Arm(sampler, BLOCK, length=n, verification="block"),
        Arm(sampler, CONFIDENT, length=LONGEST, verification="block", threshold=THRESHOLD),
        Arm(sampler, CONFIDENT, "transformers", length=LONGEST, threshold=THRESHOLD),
        Arm(sampler, "prompt lookup", length=n),
        Arm(sampler, "prompt lookup", "transformers", length=n),
        Arm(sampler, "autoregressive", batch=batch),
        Arm(sampler, DRAFTING, batch=batch, length=n),
    ]


def runner(contest: Contest, arm: Arm) -> Callable[[int], Made]:
    """Give what decodes one case, a prompt by number, in one way."""
    if arm.library == "transformers":
        return lambda case: _theirs(contest, arm, case)
    return lambda case: _ours(contest, arm, case)


def _paced_runner(contest: Contest, arm: Arm, clock: Callable[[], float]) -> Callable[[int], Made]:
    read = synchronised(clock, contest.target.device)

    def run(case: int) -> Made:
        decode = partial(_decoded, contest, arm, case)
        made, pace = paced(decode, _drafter(contest, arm), read)
        return Made(sum(map(len, made.tokens)), made, pace)

    return run


def _ours(contest: Contest, arm: Arm, case: int) -> Made:
    made = _decoded(contest, arm, case, _drafter(contest, arm))
    return Made(sum(map(len, made.tokens)), made)


def _decoded(
    contest: Contest,
    arm: Arm,
    case: int,
    drafter: Drafter | None,
    on_round: Callable[[Round], None] | None = None,
) -> Generation:
    """Continue a prompt, or as many as the arm has rows, by exactly as many tokens as asked."""
    return generate(
        contest.target,
        [contest.prompts[(case + row) % len(contest.prompts)] for row in range(arm.batch)],
        sampler=contest.samplers[arm.sampler],
        max_new_tokens=contest.new_tokens,
        drafter=drafter,
        exit_policy=_exit(arm),
        verification=arm.verification,
        generator=torch.Generator(contest.target.device).manual_seed(case),
        eos_token_id=[],
        on_round=on_round,
    )


def _drafter(contest: Contest, arm: Arm) -> Drafter | None:
    if arm.strategy in (DRAFTING, BLOCK, CONFIDENT):
        return ModelDrafter(contest.draft)
    return PromptLookupDrafter() if arm.strategy == "prompt lookup" else None


def _exit(arm: Arm) -> ExitPolicy | None:
    if arm.threshold:
        return ConfidenceExit(arm.threshold, arm.length)
    return FixedLength(arm.length) if arm.length else None


def _theirs(contest: Contest, arm: Arm, case: int) -> Made:
    """Do the same with `transformers`, told to draft the same number of tokens each round."""
    prompt = torch.tensor([contest.prompts[case]], device=contest.theirs.device)
    settings: dict[str, Any] = their_sampler(contest.samplers[arm.sampler])
    if arm.strategy in (DRAFTING, CONFIDENT):
        tell_to_draft(contest.their_draft, arm.length, arm.threshold)
        settings["assistant_model"] = contest.their_draft
    if arm.strategy == "prompt lookup":
        settings["prompt_lookup_num_tokens"] = arm.length
        settings["max_matching_ngram_size"] = 3
    made = contest.theirs.generate(  # pyright: ignore[reportCallIssue]
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=contest.new_tokens,
        **settings,
    )
    return Made(made.shape[1] - prompt.shape[1])


def tell_to_draft(model: PreTrainedModel, length: int, threshold: float = 0.0) -> None:
    """Set how many tokens a model of `transformers` drafts, as an assistant, in each round."""
    model.generation_config.num_assistant_tokens = length
    model.generation_config.num_assistant_tokens_schedule = "constant"
    model.generation_config.assistant_confidence_threshold = threshold


def their_sampler(sampler: Sampler) -> dict[str, Any]:
    """Say in the arguments of `transformers` what a sampler is."""
    if sampler.temperature == 0:
        return {"do_sample": False}
    if sampler != Sampler(sampler.temperature, top_k=sampler.top_k, top_p=sampler.top_p):
        raise ValueError(f"{sampler}: only temperature, top-k and top-p are compared")
    return {
        "do_sample": True,
        "temperature": float(sampler.temperature),
        "top_k": int(sampler.top_k),
        "top_p": float(sampler.top_p),
    }


def _row(
    contest: Contest,
    arm: Arm,
    laps: Mapping[Arm, list[Lap[Made]]],
    paces: Mapping[Arm, list[Pace]],
    bandwidth: float,
) -> dict[str, object]:
    base = laps[Arm(arm.sampler, "autoregressive")]
    rate = Spread.of([lap.result.tokens / lap.seconds for lap in laps[arm]])
    speedup = paired(laps[arm], base)
    return {
        **{"sampler": arm.sampler, "strategy": arm.strategy, "library": arm.library},
        **{"batch": arm.batch, "length": arm.length},
        **{"verification": arm.verification, "threshold": arm.threshold},
        **columns("tokens_per_second", rate),
        **columns("speedup", speedup),
        **_told(contest, arm, laps, paces, bandwidth),
        **{"n": rate.n, "new_tokens": contest.new_tokens, "device": str(contest.target.device)},
        "dtype": str(contest.target.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def paired(laps: Sequence[Lap[Made]], base: Sequence[Lap[Made]]) -> Spread:
    """Summarise tokens a second ÷ those of the base, case by case."""
    return Spread.of(
        [
            lap.result.tokens / lap.seconds / (plain.result.tokens / plain.seconds)
            for lap, plain in zip(laps, base, strict=True)
        ]
    )


def _told(
    contest: Contest,
    arm: Arm,
    laps: Mapping[Arm, list[Lap[Made]]],
    paces: Mapping[Arm, list[Pace]],
    bandwidth: float,
) -> dict[str, float]:
    """Say of our own arms how the tokens came, and what theory makes of it."""
    names = ("acceptance", "tokens_per_pass", "roofline", "predicted", "residual")
    costs = ("draft_ms", "target_ms", "verify_ms")
    told: dict[str, float] = {name: float("nan") for name in (*names, *costs)}
    made = [lap.result.generation for lap in laps[arm] if lap.result.generation is not None]
    seconds = sum(lap.seconds for lap in laps[arm])
    if not made:
        if arm.strategy == "autoregressive":
            passes = sum(lap.result.tokens for lap in laps[arm])
            told["roofline"] = passes * _size(contest.target) / seconds / bandwidth
        return told
    told["acceptance"] = _ratio(made, lambda each: (each.trace.accepted, each.trace.drafted))
    told["tokens_per_pass"] = _ratio(made, lambda each: (each.trace.emitted, each.trace.row_passes))
    told["roofline"] = _bytes_read(contest, arm, made) / seconds / bandwidth
    if arm.strategy == DRAFTING and arm in paces:
        return told | _foretold(arm, laps, paces)
    return told


def _foretold(
    arm: Arm, laps: Mapping[Arm, list[Lap[Made]]], paces: Mapping[Arm, list[Pace]]
) -> dict[str, float]:
    """Predict the speed-up from the parts of a round, and compare it with the whole.

    Both are of all prompts together, as the α_k are, and leave out what happens once a text: the
    prefill of the target, and that of the draft model.
    """
    plain = Arm(arm.sampler, "autoregressive")
    parts = Parts.of(paces[arm], arm.length)
    costs = Costs(plain_round(paces[plain]), parts.step, {arm.length: parts.rest})
    once = sum(pace.prefill for pace in paces[plain])
    starts = sum(pace.start(parts.step) for pace in paces[arm])
    alone, drafted = (sum(lap.seconds for lap in laps[each]) - once for each in (plain, arm))
    made = (lap.result.generation for lap in laps[arm])
    rounds = pandas.concat([_rounds(each) for each in made if each is not None])
    predicted = predicted_speedup(position_acceptances(rounds), arm.length, costs)
    return {
        "predicted": predicted,
        "residual": alone / (drafted - starts) / predicted - 1,
        "draft_ms": 1e3 * costs.draft,
        "target_ms": 1e3 * costs.target,
        "verify_ms": 1e3 * costs.verify[arm.length],
    }


def _ratio(made: list[Generation], counts: Callable[[Generation], tuple[int, int]]) -> float:
    """Divide sums over all generations; NaN if there is nothing to divide by."""
    above, below = (sum(column) for column in zip(*map(counts, made), strict=True))
    return above / below if below else float("nan")


def _rounds(made: Generation) -> pandas.DataFrame:
    """Give the rounds that drafted in full, as neither the prefill nor the last of a text does."""
    table = made.trace.table()
    return table.query("drafted == drafted.max()")


def _bytes_read(contest: Contest, arm: Arm, made: list[Generation]) -> int:
    """Count the bytes of weights that target passes and draft steps had to read."""
    passes = sum(len(each.trace.rounds) for each in made)
    steps = sum(max(row.drafted for row in each.rows) for one in made for each in one.trace.rounds)
    draft = _size(contest.draft) if isinstance(_drafter(contest, arm), ModelDrafter) else 0
    return passes * _size(contest.target) + steps * draft


def _size(decoder: Decoder) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in decoder.state_dict().values())
