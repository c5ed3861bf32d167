"""Time what a token costs as its text grows, far beyond where the pocket models end.

The shapes are theirs, the weights drawn at random, the positions as many as are asked for; and
Gemma-2's shape once more without windows, so that its windowed layers show what they are spared.
All arms take turns, so each growth is a ratio of neighbours in time.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pandas

from foredraft.benchmarks.ratios import value_of
from foredraft.benchmarks.roofline import Sizes, Work, drawn, forward_pass
from foredraft.benchmarks.timing import Comparison, columns, compare, now
from foredraft.models.decoder import Decoder
from foredraft.models.loading import load

SIZES = Sizes(new_tokens=(1,), compiled_tokens=(1,), contexts=(100, 2000, 8000))

LARGE = replace(SIZES, contexts=(*SIZES.contexts, 32_000))
"""For a GPU."""

UNLIMITED = "without windows"
"""What follows the name of a model of the same shape whose layers see all there is."""


def contexts_benchmark(
    models: Mapping[str, Decoder] | None = None,
    *,
    device: str = "cpu",
    sizes: Sizes | None = None,
    report: Callable[[str], None] = lambda told: None,
    clock: Callable[[], float] = now,
) -> pandas.DataFrame:
    """Time one token behind each context; a row a model and context.

    `growth` is the time ÷ that behind the least context, `bytes_growth` the same of what must be
    read, weights and all: no less can be hoped for where memory sets the pace. `over_unlimited` is
    the time ÷ that of the same shape without windows. Each model comes once more with compiled
    steps, unless `sizes.compiled_tokens` is empty.
    """
    sizes = sizes or (SIZES if device == "cpu" else LARGE)
    models = dict(models or random_models(device, max(sizes.contexts) + 1))
    if sizes.compiled_tokens:
        models |= {
            _compiled(name): decoder.unpacked().compile_steps() for name, decoder in models.items()
        }
    arms = {
        (name, context): forward_pass(name, decoder, 1, context)
        for name, decoder in models.items()
        for context in sizes.contexts
    }
    report(f"{len(models)} models behind {', '.join(map(str, sizes.contexts))} tokens")
    runs = {_label(*arm): work.run for arm, work in arms.items()}
    timed = compare(runs, schedule=sizes.schedule, device=device, clock=clock)
    return pandas.DataFrame([_row(arm, arms, timed, min(sizes.contexts)) for arm in arms])


def random_models(device: str, positions: int) -> dict[str, Decoder]:
    """Draw models of the pocket models' shapes with this many positions, in bf16."""
    shapes = {
        name: replace(load(f"pocket-{name}")[0].config, max_positions=positions)
        for name in ("llama", "gemma2")
    }
    windowed = shapes["gemma2"]
    shapes[f"gemma2 {UNLIMITED}"] = replace(windowed, windows=(None,) * windowed.n_layers)
    return {name: drawn(config, device) for name, config in shapes.items()}


def asked(table: pandas.DataFrame) -> pandas.DataFrame:
    """Give what the longest context costs: ÷ the least, and ÷ the same without windows."""
    near, far = table["context"].min(), table["context"].max()
    rows = table.loc[table["context"] == far].to_dict("records")
    grown = [("growth", f"context {far:.0f} ÷ {near:.0f}", row) for row in rows]
    spared = [
        ("over_unlimited", f"÷ {UNLIMITED}, context {far:.0f}", row)
        for row in rows
        if pandas.notna(row.get("over_unlimited_median"))
    ]
    return pandas.DataFrame(
        {"ratio": ratio, "of": row["model"], **value_of(row, name)}
        for name, ratio, row in (*grown, *spared)
    )


def _row(
    arm: tuple[str, int], arms: Mapping[tuple[str, int], Work], timed: Comparison, near: int
) -> dict[str, object]:
    name, context = arm
    work, least = arms[arm], arms[name, near]
    spread = timed.spread(_label(*arm))
    row = {
        **work.about,
        "batch": 1,
        "megabytes": work.megabytes,
        **columns("ms", spread),
        **columns("growth", timed.ratio(_label(*arm), _label(name, near))),
        "bytes_growth": work.megabytes / least.megabytes,
        "n": spread.n,
        **timed.labels,
    }
    unlimited = _unlimited(name), context
    if unlimited in arms:
        row |= columns("over_unlimited", timed.ratio(_label(*arm), _label(*unlimited)))
    return row


def _label(name: str, context: int) -> str:
    return f"{name}, {context}"


def _compiled(name: str) -> str:
    return f"{name}, compiled"


def _unlimited(name: str) -> str:
    """Name the twin without windows of a model, whether its steps are compiled or not."""
    model, comma, compiled = name.partition(",")
    return f"{model} {UNLIMITED}{comma}{compiled}"
