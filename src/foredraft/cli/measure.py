"""Commands that measure: benchmarks, and the recordings of articles."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from foredraft.cli.options import Device
from foredraft.cli.output import cell, output, progress
from foredraft.errors import unknown

if TYPE_CHECKING:
    from pandas import DataFrame


commands = typer.Typer()

OVERVIEW = "overview"
"""All benchmarks, each briefly."""

BENCHMARKS = {
    "decode": "speculative_decoding",
    "decode --self": "layer_skipping",
    "kernels": "vector_add",
}
"""What a benchmark is called, beside the article that draws it."""

WHERE = ("new_tokens", "dtype", "device", "threads")
"""Columns that say under what circumstances a benchmark ran."""

MEASURED = {
    "sampling": ("foredraft.benchmarks.sampling",),
    "speculative_decoding": ("foredraft.benchmarks.decoding",),
    "layer_skipping": ("foredraft.benchmarks.self_drafting",),
    "self_speculation": ("foredraft.articles.self_speculation.recording",),
    "confidence_gating": ("foredraft.articles.confidence_gating.recording",),
    "llava_sft": ("foredraft.articles.llava_sft.recording",),
    "bert": ("foredraft.benchmarks.bert",),
    "vector_add": ("foredraft.benchmarks.kernels",),
}
"""The modules whose speed an article's recording holds; what they import goes with them."""

WITH_PARAMETERS = ("self_speculation", "confidence_gating", "llava_sft")
"""The articles whose recording depends on their parameters."""


@commands.command()
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
        partial(apart[slug], device=device, report=progress.print)
        if slug in apart
        else _benchmarks()[_known(slug, device)]
    )
    frame = measure()
    asked = {"speculative_decoding": decoding.asked, "layer_skipping": self_drafting.asked}
    asked |= {"roofline": roofline.asked, "contexts": contexts.asked, "compiled": compiled.asked}
    asked |= {"rounds": rounds.asked}
    _print(frame.filter(_narrow(frame)))
    same = [name for name in ("n", *WHERE) if name in frame and len(set(frame[name])) == 1]
    output.print(", ".join(f"{name} {frame[name].iloc[0]}" for name in same))
    if slug in asked:
        output.print()
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
    from foredraft import paths
    from foredraft.repro import recording
    from foredraft.repro.provenance import stamp

    modules = MEASURED.get(slug, (f"foredraft.benchmarks.{slug}",))
    inputs = [source for each in modules if (source := paths.module(each))]
    recording.keep(out, device, frame, stamp(slug, {}, inputs, device=device))
    progress.print(f"✓ {out}", markup=False, soft_wrap=True)


def _print(frame: "DataFrame") -> None:
    """Print a row a line, or folded where the terminal is too narrow: no figure is cut."""
    names = _columns(frame)
    table = Table(*(Column(name, overflow="fold") for name in names), box=None, pad_edge=False)
    for row in frame.to_dict("records"):
        table.add_row(*(cell(row, name) for name in names))
    output.print(table)


def _narrow(frame: "DataFrame") -> list[str]:
    """Leave out what is one and the same in all rows, such as the device, and costs in parts."""
    return [
        name
        for name in frame.columns
        if name != "plan"
        and not name.endswith("_ms")
        and (len(frame) == 1 or len(set(map(str, frame[name]))) > 1)
    ]


@commands.command()
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
    from foredraft import paths
    from foredraft.repro import recording
    from foredraft.repro.params import load as load_params
    from foredraft.repro.provenance import stamp

    if profile is not None and slug not in WITH_PARAMETERS:
        raise ValueError(
            f"profile {profile!r} is for {', '.join(WITH_PARAMETERS)}: name one of them, or leave "
            "the profile out"
        )
    for key, measure in _benchmarks(profile).items():
        if key == (_known(slug, device) if slug else (key[0], device)):
            progress.print(f"▶ {key[0]} on {device} …")
            inputs = [source for each in MEASURED[key[0]] if (source := paths.module(each))]
            told: dict[str, Any] = {}
            if key[0] in WITH_PARAMETERS:
                told = load_params(key[0], {"profile": profile, "device": device}).model_dump(
                    mode="json"
                )
            made_from = stamp(key[0], told, inputs, device=device)
            written = recording.record(key[0], device, measure(), made_from)
            progress.print(f"✓ {paths.label(written)}")


def _benchmarks(profile: str | None = None) -> dict[tuple[str, str], Callable[[], "DataFrame"]]:
    """What can be measured: article and device."""
    from foredraft.articles.confidence_gating.recording import gating_benchmark
    from foredraft.articles.self_speculation.recording import search_benchmark
    from foredraft.benchmarks import decoding, sampling, self_drafting
    from foredraft.repro.params import load as load_params

    def decode(device: str) -> Callable[[], "DataFrame"]:
        return lambda: decoding.decoding_benchmark(
            decoding.pocket_contest(device=device), report=progress.print
        )

    def drafting_for_itself(device: str) -> Callable[[], "DataFrame"]:
        return lambda: self_drafting.self_drafting_benchmark(
            self_drafting.pocket_contests(device=device), report=progress.print
        )

    def searching(device: str) -> Callable[[], "DataFrame"]:
        params = load_params("self_speculation", {"profile": profile, "device": device})
        return lambda: search_benchmark(params, report=progress.print)

    def gating(device: str) -> Callable[[], "DataFrame"]:
        params = load_params("confidence_gating", {"profile": profile, "device": device})
        return lambda: gating_benchmark(params, report=progress.print)

    def teaching(device: str) -> Callable[[], "DataFrame"]:
        def measure() -> "DataFrame":
            from foredraft.articles.llava_sft.recording import growth_benchmark

            params = load_params("llava_sft", {"profile": profile, "device": device})
            return growth_benchmark(params, report=progress.print)

        return measure

    def encoding(device: str) -> Callable[[], "DataFrame"]:
        def measure() -> "DataFrame":
            from foredraft.benchmarks.bert import bert_benchmark

            return bert_benchmark(device=device, report=progress.print)

        return measure

    def timing_kernels() -> "DataFrame":
        from foredraft.benchmarks.kernels import kernels_benchmark

        return kernels_benchmark(report=progress.print)

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


def _known(slug: str, device: str) -> tuple[str, str]:
    if (slug, device) not in _benchmarks():
        known = (f"{name} on {where}" for name, where in _benchmarks())
        raise unknown("benchmark", f"{slug} on {device}", known)
    return slug, device
