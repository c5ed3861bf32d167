"""The `foredraft` command: run an article, use a model, measure, publish results.

What a command needs is imported when it runs, so that `--help` is there at once.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Column, Table

from foredraft.articles import ARTICLES, article
from foredraft.hints import unknown

if TYPE_CHECKING:
    import torch
    from pandas import DataFrame
    from transformers import PreTrainedTokenizerBase

    from foredraft.decoding.draft import Drafter
    from foredraft.decoding.exit import ExitPolicy
    from foredraft.streaming import Look
    from foredraft.sweep.engines import Engine
    from foredraft.sweep.point import Point


def _at_hand(device: str | None) -> str | None:
    """Refuse a device that this machine does not have, before anything is loaded or measured."""
    if device in (None, "cpu"):
        return device
    import torch

    if device.partition(":")[0] != "cuda":
        raise ValueError(f"device {device!r} is not known: choose cpu or cuda")
    if not torch.cuda.is_available():
        raise ValueError(f"this machine has no CUDA device for --device {device}: use --device cpu")
    return device


app = typer.Typer(
    help="Speculative decoding, measured: run the articles, use the models, publish the results.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

WIDEST = 400
"""Characters a line of a table may have where it goes into a file or a pipe."""

_progress = Console(stderr=True, highlight=False)
_output = Console(highlight=False, width=None if sys.stdout.isatty() else WIDEST)

LOOKUP = "lookup"
"""The drafter that is no model: the text itself."""

OVERVIEW = "overview"
"""All benchmarks, each briefly."""

BENCHMARKS = {
    "decode": "speculative_decoding",
    "decode --self": "layer_skipping",
    "kernels": "vector_add",
}
"""What a benchmark is called, beside the article that draws it."""

OBJECTIVES = ("speedup", "acceptance", "tokens_per_round", "overlap", "cost", "length")
"""What a search can make large, or small with a minus in front."""

WHERE = ("new_tokens", "dtype", "device", "threads")
"""Columns that say under what circumstances a benchmark ran."""

MEASURED = {
    "sampling": ("foredraft.benchmarks.sampling",),
    "speculative_decoding": ("foredraft.benchmarks.decoding",),
    "layer_skipping": ("foredraft.benchmarks.self_drafting",),
    "self_speculation": ("foredraft.experiments.search_race",),
    "confidence_gating": ("foredraft.experiments.gating_race",),
    "llava_sft": ("foredraft.experiments.llava_growth",),
    "bert": ("foredraft.benchmarks.bert",),
    "vector_add": ("foredraft.benchmarks.kernels",),
}
"""The modules whose speed an article's recording holds; what they import goes with them."""

WITH_PARAMETERS = ("self_speculation", "confidence_gating", "llava_sft")
"""The articles whose recording depends on their parameters."""

ENGINES = ("local", "ray")
"""Where searches and sweeps run."""

FORMATS = ("text", "bibtex", "json")
"""How a citation is written."""

Slug = Annotated[
    str,
    typer.Argument(
        metavar="ARTICLE",
        help="Such as sampling.",
        autocompletion=lambda: [each.slug for each in ARTICLES],
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON, for machines.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.", callback=_at_hand)]
EngineName = Annotated[str, typer.Option(help="local, or ray for a cluster.")]
Address = Annotated[
    str | None, typer.Option(help="Of ray: a running cluster; without one, it is started here.")
]


def main() -> None:
    """Entry point: what the user can mend is one message and exit code 2, a failed notebook 1."""
    _use_the_copy_that_dvc_made()
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
def sweep(  # noqa: PLR0913 - one option a knob
    slug: Slug,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter", "-p", help="name=value,value: an axis of the grid; values are YAML."
        ),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="A table of settings: a row a point, a column a parameter.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="How many points at a time.")] = 1,
    engine: EngineName = "local",
    address: Address = None,
    out: Annotated[
        Path | None, typer.Option(help="Keep the points here instead of in sweeps/<article>.")
    ] = None,
    show: Annotated[
        list[str] | None,
        typer.Option(help="A value to draw, as often as needed; without one, the claims."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the points, run none.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run an article's notebook under many settings: resumable, one table and one figure."""
    from foredraft import paths
    from foredraft.sweep.engines import Local, Ray
    from foredraft.sweep.grid import grid, rows
    from foredraft.sweep.point import points
    from foredraft.sweep.table import report, require_known

    folder = (out or paths.sweeps(slug)).absolute()
    planned = points(slug, grid(parameter or [], rows(csv) if csv else ({},)), folder)
    _require_engine(engine, address)
    maker = Ray(jobs=jobs, address=address) if engine == "ray" else Local(jobs=jobs)
    require_known(show or [], planned)
    errors = {} if dry_run else _make(planned, maker)
    done = [point for point in planned if point.is_done()]
    files: list[Path] = []
    if done and not dry_run:
        files = report(done, folder, show or [])
    if as_json:
        told = [
            {
                "setting": point.setting,
                "folder": str(point.folder),
                "done": point in done,
                "error": errors.get(point.folder),
            }
            for point in planned
        ]
        _print_json({"points": told, "files": [str(file) for file in files]})
    elif dry_run:
        for point in planned:
            typer.echo(f"{'done ' if point in done else 'to do'} {point}")
    for file in files:
        _progress.print(f"✓ {paths.label(file)}", markup=False, soft_wrap=True)
    if errors:
        raise RuntimeError(
            f"{len(errors)} of {len(planned)} points failed; the same command runs those again"
        )


def _require_engine(engine: str, address: str | None) -> None:
    """Refuse an engine that there is not, and the address of a cluster without Ray."""
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if address is not None and engine != "ray":
        raise ValueError(f"--address {address} is that of a Ray cluster: add --engine ray")


def _make(planned: "Sequence[Point]", engine: "Engine") -> dict[Path, str]:
    """Make what is not done, and show it; give the errors by the points' folders."""
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    from foredraft.sweep.engines import made

    errors: dict[Path, str] = {}
    shown = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*shown, console=_progress) as bar:
        task = bar.add_task("points", total=len(planned))
        for point, error in made(planned, engine):
            bar.advance(task)
            mark = "✓" if error is None else "✗"
            bar.console.print(f"{mark} {point}", markup=False, soft_wrap=True)
            if error is not None:
                errors[point.folder] = error
                bar.console.print(error, style="red", markup=False, soft_wrap=True)
    return errors


@app.command()
def sync() -> None:
    """Write each notebook's .ipynb twin from its .py."""
    from foredraft import pairs, paths

    for path in pairs.sync():
        _progress.print(f"✓ {paths.label(path)}")


@app.command("digests")
def write_digests() -> None:
    """Write data/digests: for each article, the digest of the code that its notebook reaches."""
    from foredraft import digests, paths

    for path in digests.write():
        _progress.print(f"✓ {paths.label(path)}")


@app.command()
def reproduce(
    slugs: Annotated[
        list[str] | None, typer.Argument(metavar="[ARTICLE]...", help="Without one: all.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="How many articles at a time.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Compute articles again and compare every claim; exit code 1 if one differs."""
    from foredraft import reproduction, verdicts

    def say(line: str) -> None:
        _progress.print(line, markup=False, soft_wrap=True)

    chosen = [article(slug) for slug in dict.fromkeys(slugs or [])] or list(ARTICLES)
    report = reproduction.reproduce(chosen, say, jobs=jobs)
    if as_json:
        typer.echo(report.to_json())
    else:
        _output.print(verdicts.table(report))
        for line in verdicts.lines(report):
            _output.print(line, markup=False, soft_wrap=True)
    if not report.reproduced:
        raise RuntimeError(verdicts.failure(report))


@app.command("figures")
def draw_figures(
    slugs: Annotated[
        list[str] | None, typer.Argument(metavar="[ARTICLE]...", help="Without one: all.")
    ] = None,
    formats: Annotated[str, typer.Option(help="png, svg or pdf, with commas between.")] = "pdf,svg",
    out: Annotated[
        Path | None, typer.Option(help="Write below this folder instead of build/figures.")
    ] = None,
) -> None:
    """Draw figures again, in any format, from the values that their articles kept."""
    from foredraft import paths
    from foredraft.redraw import redraw

    endings = [each.strip() for each in formats.split(",") if each.strip()]
    if not endings:
        raise ValueError(f"--formats {formats!r} names no format: give pdf, svg or png")
    below = (out or paths.BUILD / "figures").absolute()
    chosen = [article(slug) for slug in dict.fromkeys(slugs or [])] or list(ARTICLES)
    for each in chosen:
        written = list(redraw(each.slug, endings, below / each.slug))
        _progress.print(f"✓ {len(written)} files in {paths.label(below / each.slug)}")


@app.command()
def cite(
    target: Annotated[
        str, typer.Argument(help="A file under figures or data/results, or file#key.")
    ],
    form: Annotated[
        str | None,
        typer.Option("--format", help="text, bibtex or json; without one, all there is."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Cite a figure or a value: words, BibTeX and what made it.

    Exit code 1 if it is not what its stage made, or if a recording behind it is older than the
    code that it speaks for.
    """
    from foredraft.citation import cite as cited

    if form not in (None, *FORMATS):
        raise unknown("format", form, FORMATS)
    citation = cited(target)
    if as_json or form == "json":
        _print_json(citation.document())
    else:
        parts = {"text": citation.text(), "bibtex": citation.bibtex()}
        wanted = [parts[form]] if form else [*parts.values(), citation.provenance()]
        typer.echo("\n\n".join(wanted))
    for each in citation.outdated:
        slug = Path(each.file).name.partition(".")[0]
        raise RuntimeError(
            f"{each.file} of {each.date} was measured with older sources; {len(each.changed)} have "
            f"changed since, {', '.join(each.changed[:3])} among them: "
            f"`foredraft record {slug}` measures it with those of today"
        )


@app.command()
def trace(
    file: Annotated[Path, typer.Argument(help="A PNG, SVG, PDF, JSON or CSV file, anywhere.")],
    as_json: AsJson = False,
) -> None:
    """Show what made a downloaded figure or result, and whether this checkout still has it so."""
    from dataclasses import asdict

    from foredraft.origin import trace as traced

    origin = traced(file)
    if as_json:
        _print_json(asdict(origin))
        return
    typer.echo(origin.text())


@app.command()
def results(as_json: AsJson = False) -> None:
    """Write RESULTS.md, results.tex and README's numbers from the results on disk; show claims."""
    from dataclasses import asdict

    from foredraft import readme
    from foredraft.results import ours, publish, shown

    published = publish()
    readme.write(published)
    if as_json:
        _print_json([asdict(found) | {"file": found.file} for found in published])
        return
    table = Table("claim", "article", "ours", "n", box=None, pad_edge=False)
    for found in published:
        for claim in found.claims:
            cells = (shown(claim.article), ours(claim, found.values), str(claim.n))
            table.add_row(claim.text, *cells)
    _output.print(table)


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the models that are shipped or trained here, and what else can be loaded."""
    from foredraft import paths
    from foredraft.models.loading import pocket_models

    cards = sorted(paths.MODELS.glob("*/card.json"))
    if as_json:
        _print_json([json.loads(card.read_text(encoding="utf-8")) for card in cards])
        return
    name = Column("name", no_wrap=True, min_width=max(map(len, pocket_models()), default=0))
    table = Table(
        *(name, "architecture", "layers", "parameters", "MB", "bits/byte, held out"),
        box=None,
        pad_edge=False,
    )
    for card in cards:
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
    device_map: Annotated[
        str | None,
        typer.Option(help="auto: spread the model over all devices, memory and files, as it fits."),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile decoding steps: on a processor minutes, once, then kept in files; CUDA "
            "graphs on a GPU.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    drafter: Annotated[
        str | None,
        typer.Option(help="A smaller model, or `lookup` in the text; without one, nobody drafts."),
    ] = None,
    draft_length: Annotated[int, typer.Option(help="How many tokens a draft has at most.")] = 4,
    confidence_exit: Annotated[
        float | None,
        typer.Option(help="Stop drafting after a token of less than this confidence."),
    ] = None,
    verification: Annotated[str, typer.Option(help="token or block.")] = "token",
    marks: Annotated[
        bool | None,
        typer.Option(
            "--marks/--no-marks",
            help="Mark recovered and bonus tokens; without either, where there is no colour.",
        ),
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Neither colours nor marks.")] = False,
) -> None:
    """Continue a text, shown as it is made: what was accepted, recovered or a bonus, told apart."""
    import torch

    import foredraft as fd
    from foredraft.streaming import Look, Piece, TokenStream, summary

    sampler = fd.Sampler(temperature=temperature, top_k=top_k, top_p=top_p)
    stop = _exit(drafter, draft_length, confidence_exit)
    decoder, tokenizer = fd.load(model, device=device, compile=compiled, device_map=device_map)
    proposes = _drafter(drafter, tokenizer, decoder.device, compiled)
    ids = tokenizer.encode(prompt)
    decode = partial(tokenizer.decode, skip_special_tokens=True)
    stream = TokenStream(lambda tokens: str(decode(tokens)), ids)
    look = Look() if plain or drafter is None else _look(marks)

    def show(pieces: list[Piece]) -> None:
        for piece in pieces:
            typer.echo(look.dress(piece), nl=False, color=look.colours)

    if look.legend():
        _progress.print(look.legend(), markup=False, soft_wrap=True)
    made = fd.generate(
        decoder,
        [ids],
        sampler=sampler,
        max_new_tokens=n,
        drafter=proposes,
        exit_policy=stop,
        generator=torch.Generator(decoder.device).manual_seed(seed),
        verification=verification,
        on_round=lambda each: show(stream.feed(each.rows[0])),
    )
    show(stream.finish())
    typer.echo()
    _progress.print(summary(made), markup=False, soft_wrap=True)


def _exit(drafter: str | None, draft_length: int, threshold: float | None) -> "ExitPolicy":
    """When to stop drafting; only a draft model has confidences."""
    import foredraft as fd

    if threshold is None:
        return fd.FixedLength(draft_length)
    if drafter in (None, LOOKUP):
        raise ValueError(
            f"--confidence-exit {threshold} looks at a draft model's confidences: give one with "
            "--drafter"
        )
    return fd.ConfidenceExit(threshold, draft_length)


def _drafter(
    name: str | None, tokenizer: "PreTrainedTokenizerBase", device: "torch.device", compiled: bool
) -> "Drafter | None":
    """Load a draft model onto the device on which the target reads tokens, compiled if that is."""
    import foredraft as fd
    from foredraft.models.loading import require_same_tokens

    if name is None:
        return None
    if name == LOOKUP:
        return fd.PromptLookupDrafter()
    draft, read_by = fd.load(name, device=device, compile=compiled)
    require_same_tokens(tokenizer, read_by)
    return fd.ModelDrafter(draft)


def _look(marks: bool | None) -> "Look":
    """Colours where the output has them; marks where it has none, or as the reader says."""
    from foredraft.streaming import Look

    coloured = _output.color_system not in (None, "windows") and not _output.no_color
    return Look(colours=coloured, marks=not coloured if marks is None else marks)


@app.command()
def search(  # noqa: PLR0913 - one option a knob
    model: Annotated[
        str | None, typer.Option(help="Name, folder or hub id; without one, what params.yaml says.")
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(help="What to make large: speedup, acceptance, overlap; -cost for small."),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="How many plans to try.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed tries the same plans.")] = None,
    profile: Annotated[
        str | None, typer.Option(help="Overlay of params.yaml, where what is not given stands.")
    ] = None,
    costs: Annotated[
        str, typer.Option(help="clock: time the parts of a round first; bytes: another machine's.")
    ] = "clock",
    engine: EngineName = "local",
    address: Address = None,
    workers: Annotated[int, typer.Option(help="Of ray: plans tried at a time.")] = 2,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", callback=_at_hand)] = None,
) -> None:
    """Search a model for its best skip plan, decode under it, and keep it in data/plans."""
    from foredraft import paths
    from foredraft.experiments import plan_search
    from foredraft.params import load as load_params
    from foredraft.search.engines import Ray

    if objective is not None and objective.removeprefix("-") not in OBJECTIVES:
        raise unknown("objective", objective.removeprefix("-"), OBJECTIVES)
    if costs not in ("clock", "bytes"):
        raise unknown("kind of costs", costs, ("clock", "bytes"))
    _require_engine(engine, address)
    given = {"profile": profile, "objective": objective, "trials": trials, "seed": seed}
    given |= {"temperature": temperature, "device": device}
    params = load_params("self_speculation", given)
    if engine == "ray" and params.device != "cpu":
        raise ValueError(f"Ray's workers have no {params.device}: search there with engine local")
    joined = Ray(workers=workers, address=address) if engine == "ray" else nullcontext()
    with joined as cluster:
        found = plan_search.find(
            model or params.model,
            params,
            temperature=params.temperature,
            times=costs == "clock",
            engine=cluster,
            report=_progress.print,
        )
    best, rows = found.best[0], found.measured.to_dict("records")
    timed = next(row for row in rows if row["name"] == "found 1")
    _output.print(f"{best.plan}, draft length {best.length}", soft_wrap=True)
    _output.print(
        f"speed-up foretold {best.speedup.mean:.3f} ± {best.speedup.sem:.3f}, by held-out texts "
        f"{timed['predicted_held_out']:.3f}, decoded {_cell(timed, 'speedup')}, "
        f"n {int(timed['n'])}",
        soft_wrap=True,
    )
    _progress.print(f"✓ {paths.label(plan_search.keep(found, params))}")


@app.command()
def pretrain(
    name: Annotated[str, typer.Argument(help="The pocket model, such as pocket-llama.")],
    device: Device = "cpu",
) -> None:
    """Train a pocket model by its recipe; an interrupted run goes on where it stopped."""
    from foredraft.training import pocket, pocket_bert, pocket_llava
    from foredraft.training.pretrain_bert import POCKET_BERT
    from foredraft.training.pretrain_llava import POCKET_LLAVA
    from foredraft.training.recipes import RECIPES

    if name == POCKET_LLAVA.name:

        def told(step: Any) -> tuple[int, str, float | None]:
            return step.number, f"stage {step.stage}, loss {step.loss:.3f}", step.held_out_error

        _train(partial(pocket_llava.make, POCKET_LLAVA), name, POCKET_LLAVA.steps, device, told)
    elif name == POCKET_BERT.name:

        def told(step: Any) -> tuple[int, str, float | None]:
            losses = f"loss {step.losses.words:.2f} + {step.losses.follows:.2f}"
            return step.tokens, losses, step.held_out_loss

        _train(partial(pocket_bert.make, POCKET_BERT), name, POCKET_BERT.tokens, device, told)
    elif name in RECIPES:

        def told(step: Any) -> tuple[int, str, float | None]:
            losses = f"{step.n_layers} layers, loss {step.loss:.2f}"
            return step.tokens, losses, step.held_out_loss

        recipe = RECIPES[name]
        _train(partial(pocket.make, recipe), name, recipe.tokens, device, told)
    else:
        raise unknown("pocket model", name, (*RECIPES, POCKET_LLAVA.name, POCKET_BERT.name))


def _train(
    make: Callable[..., Path],
    name: str,
    total: int,
    device: str,
    told: Callable[[Any], tuple[int, str, float | None]],
) -> None:
    """Make a model, showing what `told` says of each step: how far, how, and how well if judged."""
    from rich.progress import Progress

    with Progress(console=_progress) as bar:
        task = bar.add_task(name, total=total)

        def show(step: Any) -> None:
            done, doing, judged = told(step)
            bar.update(task, completed=done, description=f"{name}, {doing}")
            if judged is not None:
                bar.console.print(f"{done:,} of {total:,}, held-out {judged:.4f}")

        folder = make(device=device, report=show)
    _progress.print(f"✓ {folder.name}")


@app.command()
def bench(
    name: Annotated[
        str | None,
        typer.Argument(
            help="roofline, contexts, compiled, rounds, bert, sampling, decode or kernels, or an "
            "article; without one, the ratios of all but rounds and kernels, in minutes."
        ),
    ] = None,
    device: Device = "cpu",
    itself: Annotated[
        bool, typer.Option("--self", help="Of decode: let the models draft for themselves.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write the table to this JSON file too, stamped.")
    ] = None,
) -> None:
    """Measure on this machine and show medians with least and most."""
    from foredraft.benchmarks import compiled, contexts, decoding, roofline, rounds, self_drafting

    name = (name or OVERVIEW) + " --self" * itself
    slug = BENCHMARKS.get(name, name)
    apart = _apart()
    offered = {*BENCHMARKS, *apart, *(article for article, _ in _benchmarks())}
    if name not in offered:
        raise unknown("benchmark", name, offered)
    if out is not None:
        _require_room(out)
    measure = (
        partial(apart[slug], device=device, report=_progress.print)
        if slug in apart
        else _benchmarks()[_known(slug, device)]
    )
    frame = measure()
    asked = {"speculative_decoding": decoding.asked, "layer_skipping": self_drafting.asked}
    asked |= {"roofline": roofline.asked, "contexts": contexts.asked, "compiled": compiled.asked}
    asked |= {"rounds": rounds.asked}
    _print(frame.filter(_narrow(frame)))
    same = [name for name in ("n", *WHERE) if name in frame and len(set(frame[name])) == 1]
    _output.print(", ".join(f"{name} {frame[name].iloc[0]}" for name in same))
    if slug in asked:
        _output.print()
        _print(asked[slug](frame))
    if out is not None:
        _keep(out, slug, device, frame)


def _apart() -> dict[str, Callable[..., "DataFrame"]]:
    """What can be measured and is no article's; any of it on either device."""
    from foredraft.benchmarks import compiled, contexts, overview, roofline, rounds

    return {
        OVERVIEW: overview.overview,
        "roofline": roofline.roofline_benchmark,
        "contexts": contexts.contexts_benchmark,
        "compiled": compiled.compiled_benchmark,
        "rounds": rounds.rounds_benchmark,
    }


def _require_room(out: Path) -> None:
    """Refuse, before anything is measured for it, a file that could not be written."""
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder: name a file in it, say {out / 'bench.json'}")
    above = next(each for each in out.absolute().parents if each.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(
            f"--out {out} cannot be written: {above} is no folder that you may write to; name a "
            "file in one"
        )


def _keep(out: Path, slug: str, device: str, frame: "DataFrame") -> None:
    """Write a benchmark's table with machine, day and stamp."""
    from foredraft import paths, recording
    from foredraft.provenance import stamp

    modules = MEASURED.get(slug, (f"foredraft.benchmarks.{slug}",))
    inputs = [source for each in modules if (source := paths.module(each))]
    recording.keep(out, device, frame, stamp(slug, {}, inputs, device=device))
    _progress.print(f"✓ {out}", markup=False, soft_wrap=True)


def _print(frame: "DataFrame") -> None:
    """Print a row a line, or folded where the terminal is too narrow: no figure is cut."""
    names = _columns(frame)
    table = Table(*(Column(name, overflow="fold") for name in names), box=None, pad_edge=False)
    for row in frame.to_dict("records"):
        table.add_row(*(_cell(row, name) for name in names))
    _output.print(table)


def _narrow(frame: "DataFrame") -> list[str]:
    """Leave out what is one and the same in all rows, such as the device, and costs in parts."""
    return [
        name
        for name in frame.columns
        if name != "plan"
        and not name.endswith("_ms")
        and (len(frame) == 1 or len(set(map(str, frame[name]))) > 1)
    ]


@app.command()
def record(
    slug: Annotated[
        str | None, typer.Argument(help="The article; without one, all that can be measured here.")
    ] = None,
    device: Device = "cpu",
    profile: Annotated[
        str | None, typer.Option(help="Overlay of params.yaml: other models than the pocket ones.")
    ] = None,
) -> None:
    """Measure on this machine and keep it under data/recorded, for the notebooks to draw."""
    from foredraft import paths, recording
    from foredraft.params import load as load_params
    from foredraft.provenance import stamp

    if profile is not None and slug not in WITH_PARAMETERS:
        raise ValueError(
            f"profile {profile!r} is for {', '.join(WITH_PARAMETERS)}: name one of them, or leave "
            "the profile out"
        )
    for key, measure in _benchmarks(profile).items():
        if key == (_known(slug, device) if slug else (key[0], device)):
            _progress.print(f"▶ {key[0]} on {device} …")
            inputs = [source for each in MEASURED[key[0]] if (source := paths.module(each))]
            told: dict[str, Any] = {}
            if key[0] in WITH_PARAMETERS:
                told = load_params(key[0], {"profile": profile, "device": device}).model_dump(
                    mode="json"
                )
            made_from = stamp(key[0], told, inputs, device=device)
            written = recording.record(key[0], device, measure(), made_from)
            _progress.print(f"✓ {paths.label(written)}")


def _benchmarks(profile: str | None = None) -> dict[tuple[str, str], Callable[[], "DataFrame"]]:
    """What can be measured: article and device."""
    from foredraft.benchmarks import decoding, sampling, self_drafting
    from foredraft.experiments.gating_race import gating_benchmark
    from foredraft.experiments.search_race import search_benchmark
    from foredraft.params import load as load_params

    def decode(device: str) -> Callable[[], "DataFrame"]:
        return lambda: decoding.decoding_benchmark(
            decoding.pocket_contest(device=device), report=_progress.print
        )

    def drafting_for_itself(device: str) -> Callable[[], "DataFrame"]:
        return lambda: self_drafting.self_drafting_benchmark(
            self_drafting.pocket_contests(device=device), report=_progress.print
        )

    def searching(device: str) -> Callable[[], "DataFrame"]:
        params = load_params("self_speculation", {"profile": profile, "device": device})
        return lambda: search_benchmark(params, report=_progress.print)

    def gating(device: str) -> Callable[[], "DataFrame"]:
        params = load_params("confidence_gating", {"profile": profile, "device": device})
        return lambda: gating_benchmark(params, report=_progress.print)

    def teaching(device: str) -> Callable[[], "DataFrame"]:
        def measure() -> "DataFrame":
            from foredraft.experiments.llava_growth import growth_benchmark

            params = load_params("llava_sft", {"profile": profile, "device": device})
            return growth_benchmark(params, report=_progress.print)

        return measure

    def encoding(device: str) -> Callable[[], "DataFrame"]:
        def measure() -> "DataFrame":
            from foredraft.benchmarks.bert import bert_benchmark

            return bert_benchmark(device=device, report=_progress.print)

        return measure

    def timing_kernels() -> "DataFrame":
        from foredraft.benchmarks.kernels import kernels_benchmark

        return kernels_benchmark(report=_progress.print)

    return {
        ("sampling", "cpu"): sampling.sampling_benchmark,
        ("speculative_decoding", "cpu"): decode("cpu"),
        ("speculative_decoding", "cuda"): decode("cuda"),
        ("layer_skipping", "cpu"): drafting_for_itself("cpu"),
        ("layer_skipping", "cuda"): drafting_for_itself("cuda"),
        ("self_speculation", "cpu"): searching("cpu"),
        ("self_speculation", "cuda"): searching("cuda"),
        ("confidence_gating", "cpu"): gating("cpu"),
        ("confidence_gating", "cuda"): gating("cuda"),
        ("llava_sft", "cpu"): teaching("cpu"),
        ("llava_sft", "cuda"): teaching("cuda"),
        ("bert", "cpu"): encoding("cpu"),
        ("bert", "cuda"): encoding("cuda"),
        ("vector_add", "cuda"): timing_kernels,
    }


def _columns(frame: "DataFrame") -> list[str]:
    """Name each measured figure once: its least, most and spread go into the same cell."""
    hidden = ("_min", "_max", "_iqr")
    shown = [column for column in frame.columns if not column.endswith(hidden)]
    return [column.removesuffix("_median") for column in shown]


def _cell(row: Mapping[Hashable, Any], name: str) -> str:
    if f"{name}_max" in row:
        middle, least, most = (row[f"{name}_{end}"] for end in ("median", "min", "max"))
        if middle != middle:
            return "–"
        return f"{middle:.3g} ({least:.3g}–{most:.3g})"
    value = row.get(name, row.get(f"{name}_median"))
    if isinstance(value, float):
        return "–" if value != value else f"{value:.4g}"
    return str(value)


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
    return [said["name"], said["architecture"], *counts, _judged(said.get("held_out_package"))]


def _judged(text: Mapping[str, Any] | None) -> str:
    """What a card says of held-out text; of a BERT, the share of masked tokens that it guesses."""
    if text is None:
        return "reads images"
    if "bert" in text:
        return f"guesses {text['bert']['accuracy']:.0%}"
    return f"{text['bits_per_byte']:.3f}"


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"parameter {text!r} is not name=value; write -p seed=1, say")
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"parameter {text!r}: the value is not YAML ({error})") from None


def _print_json(document: object) -> None:
    typer.echo(json.dumps(document, indent=1, ensure_ascii=False))


def _use_the_copy_that_dvc_made() -> None:
    """Start anew from the copy of the repository in which DVC runs a queued experiment.

    The package is installed from where it was set up; its parameters, sources and outputs would be
    those, and not the experiment's.
    """
    from foredraft import paths

    source = Path.cwd() / "src"
    is_stage = "DVC_STAGE" in os.environ and (source / "foredraft" / "cli.py").is_file()
    environment = {**os.environ, "PYTHONPATH": str(source)}
    if is_stage and Path.cwd() != paths.ROOT and environment != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def _fail(error: Exception, code: int) -> None:
    _progress.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
    sys.exit(code)
