"""The `foredraft` command: run an article, use a model, measure, publish results.

What a command needs is imported when it runs, so that `--help` is there at once.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from foredraft.articles import article
from foredraft.hints import unknown

if TYPE_CHECKING:
    from pandas import DataFrame

app = typer.Typer(
    help="Speculative decoding, measured: run the articles, use the models, publish the results.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_progress = Console(stderr=True, highlight=False)
_output = Console(highlight=False)

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a character decodes to whose last bytes are still to come."""

Slug = Annotated[str, typer.Argument(help="The article, such as sampling.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]


def main() -> None:
    """Entry point: what the user can mend is one message and exit code 2, a failed notebook 1."""
    try:
        app()
    except ValueError as error:
        _fail(error, 2)
    except RuntimeError as error:
        _fail(error, 1)


@app.command()
def run(
    slug: Slug,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", help="name=value, as often as needed; values are YAML."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write below this folder instead of into the repository.")
    ] = None,
) -> None:
    """Execute an article's notebook: its figures, results and executed copy are written anew."""
    from foredraft import runner

    overrides = dict(_assignment(each) for each in parameter or [])
    name = f"{article(slug).number:02d} {slug}"
    _progress.print(f"▶ {name} …")
    start = time.monotonic()
    runner.run(slug, overrides, out=out)
    _progress.print(f"✓ {name}  {time.monotonic() - start:.0f} s")


@app.command()
def sync() -> None:
    """Write each notebook's .ipynb twin, without outputs, from its .py."""
    from foredraft import pairs, paths

    for path in pairs.sync():
        _progress.print(f"✓ {paths.label(path)}")


@app.command()
def results() -> None:
    """Write RESULTS.md and figures/results.tex from the results on disk, and show the claims."""
    from foredraft.results import ours, publish, shown

    table = Table("claim", "article", "ours", "n", box=None, pad_edge=False)
    for found in publish():
        for claim in found.claims:
            cells = (shown(claim.article), ours(claim, found.values), str(claim.n))
            table.add_row(claim.text, *cells)
    _output.print(table)


@app.command()
def models() -> None:
    """List the models that are shipped or trained here, and what else can be loaded."""
    from foredraft import paths

    table = Table(
        *("name", "architecture", "layers", "parameters", "MB", "bits/byte, held out"),
        box=None,
        pad_edge=False,
    )
    for card in sorted(paths.MODELS.glob("*/card.json")):
        table.add_row(*_described(card))
    _output.print(table)
    _output.print(
        "Also any folder in the Hugging Face format, or hub id, with a Llama, Mistral, Qwen2 or "
        "Gemma-2 model in safetensors."
    )


@app.command()
def generate(  # noqa: PLR0913 - one option a knob
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    model: Annotated[
        str, typer.Option(help="Name, folder or hub id; see `foredraft models`.")
    ] = "pocket-llama",
    n: Annotated[int, typer.Option("-n", help="How many tokens at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Keep this many tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep this much mass; 1: all.")] = 1.0,
    device: Device = "cpu",
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
) -> None:
    """Continue a text, shown as it is made."""
    import torch

    import foredraft as fd
    from foredraft.decoding.trace import Round

    sampler = fd.Sampler(temperature=temperature, top_k=top_k, top_p=top_p)
    decoder, tokenizer = fd.load(model, device=device)
    made: list[int] = []
    shown = ""

    def show(each: Round) -> None:
        nonlocal shown
        made.extend(each.rows[0].tokens)
        text = str(tokenizer.decode(made))
        if not text.endswith(UNFINISHED):
            typer.echo(text[len(shown) :], nl=False)
            shown = text

    fd.generate(
        decoder,
        [tokenizer.encode(prompt)],
        sampler=sampler,
        max_new_tokens=n,
        generator=torch.Generator(device).manual_seed(seed),
        on_round=show,
    )
    typer.echo(str(tokenizer.decode(made))[len(shown) :])


@app.command()
def pretrain(
    name: Annotated[str, typer.Argument(help="The pocket model, such as pocket-llama.")],
    device: Device = "cpu",
) -> None:
    """Train a pocket model by its recipe; an interrupted run goes on where it stopped."""
    from rich.progress import Progress

    from foredraft.training.pocket import make
    from foredraft.training.pretrain import Step
    from foredraft.training.recipes import RECIPES

    if name not in RECIPES:
        raise unknown("pocket model", name, RECIPES)
    recipe = RECIPES[name]
    with Progress(console=_progress) as bar:
        task = bar.add_task(name, total=recipe.tokens)

        def show(step: Step) -> None:
            doing = f"{name}, {step.n_layers} layers, loss {step.loss:.2f}"
            bar.update(task, completed=step.tokens, description=doing)
            if step.held_out_loss is not None:
                told = f"{step.tokens:,} tokens, held-out loss {step.held_out_loss:.3f}"
                bar.console.print(told)

        folder = make(recipe, device=device, report=show)
    _progress.print(f"✓ {folder.name}")


@app.command()
def bench(slug: Slug, device: Device = "cpu") -> None:
    """Measure on this machine and show the medians; nothing is written."""
    frame = _benchmarks()[_known(slug, device)]()
    kept = [name for name in frame.columns if not name.endswith(("_min", "_max", "_iqr"))]
    table = Table(*(name.removesuffix("_median") for name in kept), box=None, pad_edge=False)
    for row in frame[kept].itertuples(index=False):
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    _output.print(table)


@app.command()
def record(
    slug: Annotated[
        str | None, typer.Argument(help="The article; without one, all that can be measured here.")
    ] = None,
    device: Device = "cpu",
) -> None:
    """Measure on this machine and keep it under data/recorded, for the notebooks to draw."""
    from foredraft import paths, recording
    from foredraft.provenance import stamp

    source = paths.PACKAGES["foredraft"] / "bench.py"
    for key, measure in _benchmarks().items():
        if key == (_known(slug, device) if slug else (key[0], device)):
            _progress.print(f"▶ {key[0]} on {device} …")
            made_from = stamp(key[0], {}, [source], device=device)
            written = recording.record(key[0], device, measure(), made_from)
            _progress.print(f"✓ {paths.label(written)}")


def _benchmarks() -> dict[tuple[str, str], Callable[[], "DataFrame"]]:
    """What can be measured: article and device."""
    from foredraft import bench as benchmarks

    return {("sampling", "cpu"): benchmarks.sampling_benchmark}


def _known(slug: str, device: str) -> tuple[str, str]:
    if (slug, device) not in _benchmarks():
        known = (f"{name} on {where}" for name, where in _benchmarks())
        raise unknown("benchmark", f"{slug} on {device}", known)
    return slug, device


def _described(card: Path) -> list[str]:
    """One line about a model: from its card, and the size of its weights."""
    said = json.loads(card.read_text(encoding="utf-8"))
    size = sum(file.stat().st_size for file in card.parent.glob("*.safetensors")) / 1e6
    counts = f"{said['n_layers']}", f"{said['parameters']:,}", f"{size:.1f}"
    loss = said["held_out_package"]["bits_per_byte"]
    return [said["name"], said["architecture"], *counts, f"{loss:.3f}"]


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"parameter {text!r} is not name=value; write -p seed=1, say")
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"parameter {text!r}: the value is not YAML ({error})") from None


def _fail(error: Exception, code: int) -> None:
    _progress.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
    sys.exit(code)
