"""Commands about articles: run, sweep, reproduce, draw, cite."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.table import Table

from foredraft.cli.options import Address, AsJson, EngineName, Slug, require_engine
from foredraft.cli.output import output, print_json, progress
from foredraft.errors import unknown
from foredraft.registry import ARTICLES, article

if TYPE_CHECKING:
    from foredraft.sweep.engines import Engine
    from foredraft.sweep.point import Point

commands = typer.Typer()

FORMATS = ("text", "bibtex", "json")
"""How a citation is written."""


@commands.command()
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
    """Execute an article's notebook and write its figures, results and executed copy."""
    from foredraft.repro import notebooks

    overrides = dict(_assignment(each) for each in parameter or [])
    name = f"{article(slug).number:02d} {slug}"
    progress.print(f"▶ {name} …")
    start = time.monotonic()
    notebooks.run(slug, overrides, out=out)
    progress.print(f"✓ {name}  {time.monotonic() - start:.0f} s")


@commands.command()
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
    require_engine(engine, address)
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
        print_json({"points": told, "files": [str(file) for file in files]})
    elif dry_run:
        for point in planned:
            typer.echo(f"{'done ' if point in done else 'to do'} {point}")
    for file in files:
        progress.print(f"✓ {paths.label(file)}", markup=False, soft_wrap=True)
    if errors:
        raise RuntimeError(
            f"{len(errors)} of {len(planned)} points failed; the same command runs those again"
        )


def _make(planned: "Sequence[Point]", engine: "Engine") -> dict[Path, str]:
    """Make what is not done, and show it; give the errors by the points' folders."""
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    from foredraft.sweep.engines import made

    errors: dict[Path, str] = {}
    shown = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*shown, console=progress) as bar:
        task = bar.add_task("points", total=len(planned))
        for point, error in made(planned, engine):
            bar.advance(task)
            mark = "✓" if error is None else "✗"
            bar.console.print(f"{mark} {point}", markup=False, soft_wrap=True)
            if error is not None:
                errors[point.folder] = error
                bar.console.print(error, style="red", markup=False, soft_wrap=True)
    return errors


@commands.command()
def sync() -> None:
    """Write each notebook's .ipynb twin from its .py, and docs/tree.md from the files."""
    from foredraft import paths
    from foredraft.repro import pairs, tree

    for path in [*pairs.sync(), *tree.sync()]:
        progress.print(f"✓ {paths.label(path)}")


@commands.command("digests")
def write_digests() -> None:
    """Write data/digests: for each article, the digest of the code that its notebook reaches."""
    from foredraft import paths
    from foredraft.repro import digests

    for path in digests.write():
        progress.print(f"✓ {paths.label(path)}")


@commands.command()
def reproduce(
    slugs: Annotated[
        list[str] | None, typer.Argument(metavar="[ARTICLE]...", help="Without one: all.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="How many articles at a time.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Compute articles again and compare every claim; exit code 1 if one differs."""
    from foredraft.repro import reproduction, verdicts

    def say(line: str) -> None:
        progress.print(line, markup=False, soft_wrap=True)

    chosen = [article(slug) for slug in dict.fromkeys(slugs or [])] or list(ARTICLES)
    report = reproduction.reproduce(chosen, say, jobs=jobs)
    if as_json:
        typer.echo(report.to_json())
    else:
        output.print(verdicts.table(report))
        for line in verdicts.lines(report):
            output.print(line, markup=False, soft_wrap=True)
    if not report.reproduced:
        raise RuntimeError(verdicts.failure(report))


@commands.command("figures")
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
    from foredraft.articles.redraw import redraw

    endings = [each.strip() for each in formats.split(",") if each.strip()]
    if not endings:
        raise ValueError(f"--formats {formats!r} names no format: give pdf, svg or png")
    below = (out or paths.BUILD / "figures").absolute()
    chosen = [article(slug) for slug in dict.fromkeys(slugs or [])] or list(ARTICLES)
    for each in chosen:
        written = list(redraw(each.slug, endings, below / each.slug))
        progress.print(f"✓ {len(written)} files in {paths.label(below / each.slug)}")


@commands.command()
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
    from foredraft.repro.cite import cite as cited

    if form not in (None, *FORMATS):
        raise unknown("format", form, FORMATS)
    citation = cited(target)
    if as_json or form == "json":
        print_json(citation.document())
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


@commands.command()
def trace(
    file: Annotated[Path, typer.Argument(help="A PNG, SVG, PDF, JSON or CSV file, anywhere.")],
    as_json: AsJson = False,
) -> None:
    """Show what made a downloaded figure or result, and whether this checkout still has it so."""
    from dataclasses import asdict

    from foredraft.repro.origin import trace as traced

    origin = traced(file)
    if as_json:
        print_json(asdict(origin))
        return
    typer.echo(origin.text())


@commands.command()
def results(as_json: AsJson = False) -> None:
    """Write RESULTS.md, results.tex and the numbers in the pages from the results; show claims."""
    from dataclasses import asdict

    from foredraft.repro import readme
    from foredraft.repro.claims import ours, publish, shown

    published = publish()
    readme.write(published)
    if as_json:
        print_json([asdict(found) | {"file": found.file} for found in published])
        return
    table = Table("claim", "article", "ours", "n", box=None, pad_edge=False)
    for found in published:
        for claim in found.claims:
            cells = (shown(claim.article), ours(claim, found.values), str(claim.n))
            table.add_row(claim.text, *cells)
    output.print(table)


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"parameter {text!r} is not name=value; write -p seed=1, say")
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"parameter {text!r}: the value is not YAML ({error})") from None
