"""Time rounds of speculation at a scripted acceptance: how much of theory's speed-up arrives.

The models have the size that one asks about and random weights, so a published shape can be timed
without its weights. Their sampler is so hot that any token is as likely as another, for target and
draft alike; a draft whose own law is divided by α before it is verified then stands with chance α,
position by position, as theory wants it. Passes, draws and verification are those of any other
generation. The text means nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import final

import pandas
import torch

from foredraft.bench import Lap, Spread, alternate, columns, now, synchronised
from foredraft.benchmarks.compiled import COMPILED, EAGER
from foredraft.benchmarks.pace import Pace, paced
from foredraft.benchmarks.ratios import value_of
from foredraft.benchmarks.roofline import LLAMA_120M, drawn, forward_pass
from foredraft.decoding.draft import Draft, Drafter, Job, ModelDrafter, Proposer
from foredraft.decoding.exit import Exit, FixedLength
from foredraft.decoding.loop import Generation, generate
from foredraft.decoding.text import Text
from foredraft.decoding.theory import speedup
from foredraft.decoding.trace import Round
from foredraft.models.config import DecoderConfig
from foredraft.models.decoder import Decoder
from foredraft.sampling import Sampler

HOT = Sampler(temperature=1e6)
"""Any token is as likely as another, to some 1e-5."""

N_CALLS = 4
"""Passes in one sample."""

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
        if not 1 <= self.length < self.new_tokens - 1:
            raise ValueError(
                f"drafts of {self.length} in texts of {self.new_tokens} new tokens: a first round, "
                "which is not counted, and one more must fit"
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
    the first draft. `predicted` is theorem 3.8 of arXiv 2211.17192, with the costs of passes timed
    by themselves, and `arrived` is measured ÷ predicted. `overhead` is the share of a round that is
    neither pass: 1 − (γ draft passes + one target pass of γ + 1 tokens) ÷ round. Passes by
    themselves find their weights in caches more often, so overhead is at most that.
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
class _Rounds:
    """The rounds of one text that count: seconds of each on average, and tokens that it gave."""

    seconds: float
    tokens: float

    @classmethod
    def of(cls, made: Generation, pace: Pace, length: int) -> "_Rounds":
        """Leave out the prefill, the first draft, which reads the prompt, and shorter drafts."""
        each = zip(pace.beats, made.trace.rounds[1:], strict=True)
        counted = [
            (beat.whole, len(done.rows[0].tokens)) for beat, done in each if beat.drafted == length
        ][min(length, 1) :]
        return cls(*(sum(column) / len(counted) for column in zip(*counted, strict=True)))


def _rows(trial: Trial, engine: str, clock: Callable[[], float]) -> list[dict[str, object]]:
    """Time the ways in turn, and the passes that they are made of among them."""
    read = synchronised(clock, trial.target.device)
    ways = (None, *trial.acceptances)
    behind = trial.prompt_tokens + trial.new_tokens // 2
    passes = {
        "draft": forward_pass("draft", trial.draft, 1, behind),
        "target": forward_pass("target", trial.target, 1, behind),
        "verify": forward_pass("target", trial.target, trial.length + 1, behind),
    }
    arms: dict[str, Callable[[int], _Rounds | None]]
    arms = {name: partial(_repeated, work.run) for name, work in passes.items()}
    arms |= {str(way): partial(_decoded, trial, way, read) for way in ways}
    laps = alternate(arms, range(trial.repeats), device=trial.target.device, clock=clock)
    return [_row(trial, engine, way, laps) for way in ways]


def _repeated(run: Callable[[], object], _: int) -> None:
    for _call in range(N_CALLS):
        run()


def _decoded(
    trial: Trial, acceptance: float | None, read: Callable[[], float], case: int
) -> _Rounds:
    """Continue a random prompt; all ways of one case continue the same."""
    device, words = trial.target.device, trial.target.config.vocab_size
    generator = torch.Generator(device).manual_seed(case)
    size = (1, trial.prompt_tokens)
    prompt = torch.randint(words, size, generator=generator, device=device)
    length = 0 if acceptance is None else trial.length

    def decode(drafter: Drafter | None, on_round: Callable[[Round], None]) -> Generation:
        return generate(
            trial.target,
            prompt,
            sampler=HOT,
            max_new_tokens=trial.new_tokens,
            drafter=drafter,
            exit_policy=FixedLength(length) if length else None,
            generator=generator,
            eos_token_id=[],
            on_round=on_round,
        )

    scripted = None if acceptance is None else Scripted(ModelDrafter(trial.draft), acceptance)
    return _Rounds.of(*paced(decode, scripted, read), length)


def _row(
    trial: Trial,
    engine: str,
    way: float | None,
    laps: Mapping[str, Sequence[Lap[_Rounds | None]]],
) -> dict[str, object]:
    draft, target, verify = (
        [lap.seconds / N_CALLS for lap in laps[name]] for name in ("draft", "target", "verify")
    )
    rounds, plain = (
        [lap.result for lap in laps[str(each)] if lap.result is not None] for each in (way, None)
    )
    length = 0 if way is None else trial.length
    passes = [
        length * one + (whole if length else alone)
        for one, alone, whole in zip(draft, target, verify, strict=True)
    ]
    measured = [
        one.tokens / one.seconds / (base.tokens / base.seconds)
        for one, base in zip(rounds, plain, strict=True)
    ]
    predicted = [
        1.0 if way is None else speedup(way, length, cost=one / alone)
        for one, alone in zip(draft, target, strict=True)
    ]
    return {
        **{"library": engine, "acceptance": float("nan") if way is None else way, "length": length},
        **columns("speedup", Spread.of(measured)),
        **columns("predicted", Spread.of(predicted)),
        **columns("arrived", _ratios(measured, predicted)),
        **columns("overhead", Spread.of([1 - each for each in _shares(passes, rounds)])),
        **columns("tokens_per_round", Spread.of([each.tokens for each in rounds])),
        **columns("round_ms", Spread.of([1e3 * each.seconds for each in rounds])),
        **{"batch": 1, "prompt": trial.prompt_tokens, "new_tokens": trial.new_tokens},
        **{"n": trial.repeats, "device": str(trial.target.device)},
        "dtype": str(trial.target.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def _shares(passes: Sequence[float], rounds: Sequence[_Rounds]) -> list[float]:
    return [one / each.seconds for one, each in zip(passes, rounds, strict=True)]


def _ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    return Spread.of([one / other for one, other in zip(above, below, strict=True)])
