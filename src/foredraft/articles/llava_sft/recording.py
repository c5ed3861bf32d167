"""What is recorded of article 06: accuracy by fewer examples, and where a step's time goes.

Accuracies would come out the same elsewhere but take too long for a notebook; times would not.
"""

from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import pandas as pd

from foredraft.articles.llava_sft.experiment import (
    Taught,
    base,
    judged,
    scored,
    taught,
    training_rows,
)
from foredraft.benchmarks.timing import Spread, columns, now
from foredraft.repro.params import LlavaSft
from foredraft.training.llava.answer_labels import collator
from foredraft.training.llava.tuning import Method, Step

GROWTH, STEP = "growth", "step"
"""What rows of each kind have in the column `strategy`."""

SHARES = (0.1, 0.3)
"""Of the parameters' examples, how many are learnt from, each time from the base on; the notebook
itself learns from all.
"""

COLLATED = 30
"""How many batches are put together to be timed."""


def growth_benchmark(
    params: LlavaSft,
    *,
    report: Callable[[str], None] = lambda told: None,
    clock: Callable[[], float] = now,
) -> pd.DataFrame:
    """Fine-tune by both methods on more and more examples; a row for each and level.

    And a row a method for the steps of the longest run: tokens a second, and the share of a step
    that putting its batch together takes alone.
    """
    rows: list[dict[str, Any]] = []
    collation = collation_times(params, clock=clock)
    for method, share in product(params.methods, SHARES):
        n = max(params.batch_size, round(params.examples * share))
        report(f"{method}, {n} examples")
        found, seconds = _timed(params, method, n, clock)
        scores = scored(judged(found.model, found.processor, params, stage=method))
        for row in scores.to_dict("records"):
            told = {"strategy": GROWTH, "method": method, "examples": n}
            rows.append({**told, **row, "trained_parameters": found.trained_parameters})
        if share == SHARES[-1]:
            rows.append({"strategy": STEP, "method": method, **step_row(found, seconds, collation)})
    return pd.DataFrame(rows).drop(columns="stage")


def step_row(found: Taught, seconds: list[float], collation: list[float]) -> dict[str, Any]:
    """Summarise the steps of a run: `seconds` of each that no evaluation came between."""
    whole = Spread.of(seconds)
    apart = Spread.of([each / whole.median for each in collation])
    tokens = found.log["tokens"].diff().dropna().mean()
    return {
        "n": whole.n,
        "tokens_per_second": tokens / whole.median,
        **columns("seconds", whole),
        **columns("collation", apart),
        "padding": found.log["padding"].mean(),
    }


def collation_times(params: LlavaSft, *, clock: Callable[[], float] = now) -> list[float]:
    """Time what putting a batch together takes: reading images, drawing none, and tokenizing."""
    _, processor = base(params)
    rows = training_rows(params, params.batch_size * COLLATED)
    collate = collator(processor)
    seconds = []
    for first in range(0, len(rows), params.batch_size):
        start = clock()
        collate([rows[i] for i in range(first, first + params.batch_size)])
        seconds.append(clock() - start)
    return seconds[1:]


def _timed(
    params: LlavaSft, method: Method, n: int, clock: Callable[[], float]
) -> tuple[Taught, list[float]]:
    """Fine-tune, and give the seconds between two steps where no evaluation was."""
    beats: list[tuple[float, bool]] = []

    def told(step: Step) -> None:
        beats.append((clock(), step.eval_loss is not None))

    found = taught(params, method=method, n=n, report=told)
    steps = [
        later - earlier
        for (earlier, was_evaluated), (later, is_evaluated) in pairwise(beats)
        if not was_evaluated and not is_evaluated
    ]
    return found, steps[1:] or steps or [float("nan")]
