"""Time rounds of speculation at a scripted acceptance: how much of theory's speed-up arrives.

The models have the size that one asks about and random weights, so a published shape can be timed
without its weights. Their sampler is so hot that any token is as likely as another, for target and
draft alike; a draft whose own law is divided by α before it is verified then stands with chance α,
position by position, as theory wants it. Passes, draws and verification are those of any other
generation. The text means nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, field, replace
from functools import partial
from typing import final

import pandas
import torch

from foredraft.benchmarks.compiled import COMPILED, EAGER
from foredraft.benchmarks.ratios import value_of
from foredraft.benchmarks.roofline import LLAMA_120M, drawn
from foredraft.benchmarks.timing import Spread, alternate, columns, now, synchronised
from foredraft.decoding.draft import Draft, Drafter, Job, ModelDrafter, Proposer
from foredraft.decoding.exit import Exit, FixedLength
from foredraft.decoding.loop import generate
from foredraft.decoding.text import Text
from foredraft.decoding.theory import speedup
from foredraft.decoding.trace import Round
from foredraft.models.config import DecoderConfig
from foredraft.models.decoder import Decoder
from foredraft.sampling import Sampler

HOT = Sampler(temperature=1e6)
"""Any token is as likely as another, to some 1e-5."""

DRAFT_OF_120M = replace(
    LLAMA_120M,
    hidden_size=256,
    intermediate_size=704,
    n_layers=2,
    n_heads=4,
    n_kv_heads=4,
    windows=(None,) * 2,
)
"""A draft model of 4 million parameters, half of them its embedding."""


@final
@dataclass(frozen=True, slots=True)
class Trial:
    """Who decodes, at which acceptances, and how long; `repeats` texts in each way."""

    target: Decoder
    draft: Decoder
    acceptances: Sequence[float] = (0.6, 0.8, 0.9)
    length: int = 4
    prompt_tokens: int = 100
    new_tokens: int = 96
    repeats: int = 7

    def __post_init__(self) -> None:
        for acceptance in self.acceptances:
            if not 0 < acceptance <= 1:
                raise ValueError(f"acceptance {acceptance} is no chance above 0, at most 1")
        fitting = (self.new_tokens - 3) // 2
        if not 1 <= self.length <= fitting:
            raise ValueError(
                f"drafts of {self.length} in texts of {self.new_tokens} new tokens: a first draft, "
                f"which is not counted, and one more must fit; give 1 to {fitting}, or longer texts"
            )


def rounds_benchmark(
    trial: Trial | None = None,
    *,
    device: str = "cpu",
    report: Callable[[str], None] = lambda told: None,
    clock: Callable[[], float] = now,
) -> pandas.DataFrame:
    """Decode plainly and at each acceptance, eagerly and compiled; a row each, ratios text by text.

    `speedup` is tokens a second ÷ those of plain decoding in the same engine, without prefill and
    the first draft. `predicted` is theorem 3.8 of arXiv 2211.17192, c being a draft pass ÷ a target
    pass of plain decoding, and `arrived` is measured ÷ predicted. `overhead` is the share of a
    round that is neither draft nor target pass. Passes are timed in place, in runs of their own
    that take their turn with the others: on a GPU the host waits around each of them, so that
    overhead is what it is where nothing hides behind a pass.
    """
    trial = trial or random_trial(device)
    rows = []
    for engine, target, draft in (
        (EAGER, trial.target, trial.draft),
        (COMPILED, *(each.unpacked().compile_steps() for each in (trial.target, trial.draft))),
    ):
        report(f"{engine}: {1 + len(trial.acceptances)} ways, {trial.repeats} texts each")
        rows += _rows(replace(trial, target=target, draft=draft), engine, clock)
    return pandas.DataFrame(rows)


def random_trial(device: str) -> Trial:
    """Draw models in bf16: 120 million parameters and 4; on a GPU Gemma-2's shapes, 9B and 2B."""
    shapes = (LLAMA_120M, DRAFT_OF_120M) if device == "cpu" else (gemma2_9b(), gemma2_2b())
    target, draft = (drawn(shape, device) for shape in shapes)
    return Trial(target, draft)


def gemma2_9b() -> DecoderConfig:
    """Give the shape of google/gemma-2-9b."""
    from transformers import Gemma2Config  # half of the library: only where it is asked for

    config = Gemma2Config(
        num_hidden_layers=42,
        hidden_size=3584,
        intermediate_size=14_336,
        num_attention_heads=16,
        num_key_value_heads=8,
    )
    return DecoderConfig.from_hf(config)


def gemma2_2b() -> DecoderConfig:
    """Give the shape of google/gemma-2-2b."""
    from transformers import Gemma2Config

    return DecoderConfig.from_hf(Gemma2Config())


def asked(table: pandas.DataFrame) -> pandas.DataFrame:
    """Give what arrives of the predicted speed-up, and what rounds spend on neither model."""
    lines = []
    for row in table.to_dict("records"):
        is_plain = pandas.isna(row["acceptance"])
        of = f"{row['library']}, {'autoregressive' if is_plain else row['acceptance']}"
        if not is_plain:
            lines.append({"ratio": "measured ÷ predicted", "of": of, **value_of(row, "arrived")})
        lines.append({"ratio": "overhead of a round", "of": of, **value_of(row, "overhead")})
    return pandas.DataFrame(lines).sort_values("ratio", kind="stable", ignore_index=True)


@final
@dataclass(frozen=True, slots=True)
class Scripted:
    """A drafter whose drafts stand with this chance where target and draft law are uniform."""

    drafter: Drafter
    acceptance: float

    def begin(self, job: Job) -> Proposer:
        """Put the drafter to work."""
        return _ScriptedProposer(self.drafter.begin(job), self.acceptance)


@final
@dataclass(frozen=True, slots=True)
class _ScriptedProposer:
    proposer: Proposer
    acceptance: float

    def propose(
        self, text: Text, limits: Sequence[int], stop: Exit, *, generator: torch.Generator
    ) -> Draft:
        draft = self.proposer.propose(text, limits, stop, generator=generator)
        return replace(draft, probs=draft.probs / self.acceptance)  # p ÷ (q ÷ α) is α where p is q

    def settle(self, text: Text) -> None:
        self.proposer.settle(text)

    def keep_rows(self, rows: Sequence[int]) -> None:
        self.proposer.keep_rows(rows)


@final
@dataclass(frozen=True, slots=True)
class Spent:
    """The seconds of a round, or of an average one: the whole, draft passes, target passes."""

    whole: float
    draft: float
    target: float
    tokens: float

    @property
    def passes(self) -> float:
        """Seconds in either model."""
        return self.draft + self.target


@final
@dataclass(slots=True)
class _Ledger:
    """Writes down what each round takes; what passes take only of models that are watched."""

    read: Callable[[], float]
    since: float
    draft: float = 0.0
    target: float = 0.0
    rounds: list[Spent] = field(default_factory=list)

    def close(self, done: Round) -> None:
        """End a round."""
        now = self.read()
        tokens = float(len(done.rows[0].tokens))
        self.rounds.append(Spent(now - self.since, self.draft, self.target, tokens))
        self.since, self.draft, self.target = now, 0.0, 0.0

    @contextmanager
    def watching(self, model: Decoder, name: str) -> Iterator[None]:
        """Add the seconds of this model's passes to those of `name`, draft or target."""

        def timed(run: Callable[..., object]) -> Callable[..., object]:
            def wrapped(*given: object, **options: object) -> object:
                start = self.read()
                made = run(*given, **options)
                setattr(self, name, getattr(self, name) + self.read() - start)
                return made

            return wrapped

        halves = {half: getattr(model, half) for half in ("hidden", "logits")}
        for half, run in halves.items():
            setattr(model, half, timed(run))
        try:
            yield
        finally:
            for half in halves:
                delattr(model, half)  # the class's own is behind it


def _rows(trial: Trial, engine: str, clock: Callable[[], float]) -> list[dict[str, object]]:
    """Let the ways take turns, each once as it is and once with its passes timed."""
    read = synchronised(clock, trial.target.device)
    ways = (None, *trial.acceptances)
    arms = {
        (way, watched): partial(_decoded, trial, way, watched, read)
        for way in ways
        for watched in (False, True)
    }
    runs = {str(arm): run for arm, run in arms.items()}
    laps = alternate(runs, range(trial.repeats), device=trial.target.device, clock=clock)
    spent = {arm: [lap.result for lap in laps[str(arm)]] for arm in arms}
    return [_row(trial, engine, way, spent) for way in ways]


def _decoded(
    trial: Trial, acceptance: float | None, watched: bool, read: Callable[[], float], case: int
) -> Spent:
    """Continue a random prompt, the same in all ways of a case; give its average round.

    Left out are the prefill, the first draft, which reads the prompt, and drafts cut short by the
    end.
    """
    device, words = trial.target.device, trial.target.config.vocab_size
    generator = torch.Generator(device).manual_seed(case)
    size = (1, trial.prompt_tokens)
    prompt = torch.randint(words, size, generator=generator, device=device)
    drafter = None if acceptance is None else Scripted(ModelDrafter(trial.draft), acceptance)
    length = trial.length if drafter else 0
    ledger = _Ledger(read, since=read())
    with ExitStack() as stack:
        if watched:
            stack.enter_context(ledger.watching(trial.target, "target"))
            stack.enter_context(ledger.watching(trial.draft, "draft"))
        made = generate(
            trial.target,
            prompt,
            sampler=HOT,
            max_new_tokens=trial.new_tokens,
            drafter=drafter,
            exit_policy=FixedLength(length) if length else None,
            generator=generator,
            eos_token_id=[],
            on_round=ledger.close,
        )
    each = list(zip(ledger.rounds, made.trace.rounds, strict=True))[2 if drafter else 1 :]
    return _average([spent for spent, done in each if done.rows[0].drafted == length])


def _average(rounds: Sequence[Spent]) -> Spent:
    sums = (sum(column) for column in zip(*map(astuple, rounds), strict=True))
    return Spent(*(total / len(rounds) for total in sums))


def _row(
    trial: Trial,
    engine: str,
    way: float | None,
    spent: Mapping[tuple[float | None, bool], Sequence[Spent]],
) -> dict[str, object]:
    rounds, plain = spent[way, False], spent[None, False]
    in_parts, plain_in_parts = spent[way, True], spent[None, True]
    length = 0 if way is None else trial.length
    measured = [
        one.tokens / one.whole / (base.tokens / base.whole)
        for one, base in zip(rounds, plain, strict=True)
    ]
    predicted = [
        1.0 if way is None else speedup(way, length, cost=one.draft / length / base.target)
        for one, base in zip(in_parts, plain_in_parts, strict=True)
    ]
    arrived = [one / other for one, other in zip(measured, predicted, strict=True)]
    return {
        **{"library": engine, "acceptance": float("nan") if way is None else way, "length": length},
        **columns("speedup", Spread.of(measured)),
        **columns("predicted", Spread.of(predicted)),
        **columns("arrived", Spread.of(arrived)),
        **columns("overhead", Spread.of([1 - each.passes / each.whole for each in in_parts])),
        **columns("tokens_per_round", Spread.of([each.tokens for each in rounds])),
        **columns("round_ms", Spread.of([1e3 * each.whole for each in rounds])),
        **{"batch": 1, "prompt": trial.prompt_tokens, "new_tokens": trial.new_tokens},
        **{"n": trial.repeats, "device": str(trial.target.device)},
        "dtype": str(trial.target.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }
