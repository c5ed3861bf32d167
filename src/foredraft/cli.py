"""The `foredraft` command: run an article, use a model, measure, publish results.

What a command needs is imported when it runs, so that `--help` is there at once.
"""

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from foredraft.articles import article
from foredraft.hints import unknown

app = typer.Typer(
    help="Speculative decoding, measured: run the articles, use the models, publish the results.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_progress = Console(stderr=True, highlight=False)
_output = Console(highlight=False)

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
    import json

    from foredraft import paths

    table = Table("name", "layers", "hidden", "MB", box=None, pad_edge=False)
    for config in sorted(paths.MODELS.glob("*/config.json")):
        shape = json.loads(config.read_text(encoding="utf-8"))
        size = sum(file.stat().st_size for file in config.parent.glob("*.safetensors")) / 1e6
        layers, hidden = str(shape["num_hidden_layers"]), str(shape["hidden_size"])
        table.add_row(config.parent.name, layers, hidden, f"{size:.1f}")
    _output.print(table)
    _output.print(
        "Also any folder in the Hugging Face format, or hub id, with a Llama, Mistral, Qwen2 or "
        "Gemma-2 model in safetensors."
    )


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    model: Annotated[
        str, typer.Option(help="Name, folder or hub id; see `foredraft models`.")
    ] = "pocket-llama",
    n: Annotated[int, typer.Option("-n", help="How many tokens at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.8,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
) -> None:
    """Continue a text, shown as it is made."""
    import torch

    import foredraft as fd

    decoder, tokenizer = fd.load(model)
    shown: list[int] = []

    def show(tokens: list[int]) -> None:
        before = tokenizer.decode(shown)
        shown.extend(tokens)
        _output.print(tokenizer.decode(shown)[len(before) :], end="", markup=False, soft_wrap=True)

    fd.generate(
        decoder,
        [tokenizer.encode(prompt)],
        sampler=fd.Sampler(temperature=temperature),
        max_new_tokens=n,
        generator=torch.Generator().manual_seed(seed),
        on_round=show,
    )
    _output.print()


@app.command()
def pretrain(
    name: Annotated[str, typer.Argument(help="The pocket model, such as pocket-llama.")],
    device: Device = "cpu",
) -> None:
    """Train a pocket model by its recipe; an interrupted run goes on where it stopped."""
    from foredraft.training.pretrain import pretrain as train

    train(name, device=device)


@app.command()
def bench(slug: Slug) -> None:
    """Measure on this machine and show the ratios; nothing is written."""
    frame = _benchmark(slug)
    table = Table(*frame.columns, box=None, pad_edge=False)
    for row in frame.itertuples(index=False):
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    _output.print(table)


@app.command()
def record(slug: Slug, device: Device = "cpu") -> None:
    """Measure on this machine and keep it under data/recorded, for the notebooks to draw."""
    from foredraft import paths, recording
    from foredraft.provenance import stamp

    source = paths.PACKAGES["foredraft"] / "bench.py"
    path = recording.record(
        slug, device, _benchmark(slug), stamp(slug, {}, [source], device=device)
    )
    _progress.print(f"✓ {paths.label(path)}")


def _benchmark(slug: str) -> Any:
    from foredraft import bench as benchmarks

    known = {"sampling": benchmarks.sampling_benchmark}
    if slug not in known:
        raise unknown("benchmark", slug, known)
    return known[slug]()


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
