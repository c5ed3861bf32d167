"""The `foredraft` command: run an article, use a model, measure, publish results.

What a command needs is imported when it runs, so that `--help` is there at once.
"""

import json
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Column, Table

from foredraft.articles import article
from foredraft.hints import unknown

if TYPE_CHECKING:
    from pandas import DataFrame
    from transformers import PreTrainedTokenizerBase

    from foredraft.decoding.draft import Drafter
    from foredraft.decoding.exit import ExitPolicy
    from foredraft.streaming import Look

app = typer.Typer(
    help="Speculative decoding, measured: run the articles, use the models, publish the results.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_progress = Console(stderr=True, highlight=False)
_output = Console(highlight=False)

LOOKUP = "lookup"
"""The drafter that is no model: the text itself."""

BENCHMARKS = {"decode": "speculative_decoding", "decode --self": "layer_skipping"}
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
}
"""The modules whose speed an article's recording holds; what they import goes with them."""

WITH_PARAMETERS = ("self_speculation", "confidence_gating", "llava_sft")
"""The articles whose recording depends on their parameters."""

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
    from foredraft.models.loading import pocket_models

    name = Column("name", no_wrap=True, min_width=max(map(len, pocket_models()), default=0))
    table = Table(
        *(name, "architecture", "layers", "parameters", "MB", "bits/byte, held out"),
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
    decoder, tokenizer = fd.load(model, device=device)
    proposes = _drafter(drafter, tokenizer, device)
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
        generator=torch.Generator(device).manual_seed(seed),
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
    name: str | None, tokenizer: "PreTrainedTokenizerBase", device: str
) -> "Drafter | None":
    import foredraft as fd
    from foredraft.models.loading import require_same_tokens

    if name is None:
        return None
    if name == LOOKUP:
        return fd.PromptLookupDrafter()
    draft, read_by = fd.load(name, device=device)
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
    engine: Annotated[str, typer.Option(help="local, or ray for a cluster.")] = "local",
    workers: Annotated[int, typer.Option(help="Of ray: plans tried at a time.")] = 2,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
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
    if engine not in ("local", "ray"):
        raise unknown("engine", engine, ("local", "ray"))
    given = {"profile": profile, "objective": objective, "trials": trials, "seed": seed}
    given |= {"temperature": temperature, "device": device}
    params = load_params("self_speculation", given)
    if engine == "ray" and params.device != "cpu":
        raise ValueError(f"Ray's workers have no {params.device}: search there with engine local")
    with Ray(workers=workers) if engine == "ray" else nullcontext() as cluster:
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
    from foredraft.training.pretrain_bert import POCKET_BERT
    from foredraft.training.pretrain_llava import POCKET_LLAVA
    from foredraft.training.recipes import RECIPES

    if name == POCKET_LLAVA.name:
        _pretrain_llava(device)
    elif name == POCKET_BERT.name:
        _pretrain_bert(device)
    elif name in RECIPES:
        _pretrain_decoder(name, device)
    else:
        raise unknown("pocket model", name, (*RECIPES, POCKET_LLAVA.name, POCKET_BERT.name))


def _pretrain_decoder(name: str, device: str) -> None:
    from rich.progress import Progress

    from foredraft.training.pocket import make
    from foredraft.training.pretrain import Step
    from foredraft.training.recipes import RECIPES

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


def _pretrain_llava(device: str) -> None:
    from rich.progress import Progress

    from foredraft.training.pocket_llava import make
    from foredraft.training.pretrain_llava import POCKET_LLAVA, Step

    with Progress(console=_progress) as bar:
        task = bar.add_task(POCKET_LLAVA.name, total=POCKET_LLAVA.steps)

        def show(step: Step) -> None:
            doing = f"{POCKET_LLAVA.name}, stage {step.stage}, loss {step.loss:.3f}"
            bar.update(task, completed=step.number, description=doing)
            if step.held_out_error is not None:
                bar.console.print(f"step {step.number}, held-out error {step.held_out_error:.4f}")

        folder = make(POCKET_LLAVA, device=device, report=show)
    _progress.print(f"✓ {folder.name}")


def _pretrain_bert(device: str) -> None:
    from rich.progress import Progress

    from foredraft.training.pocket_bert import make
    from foredraft.training.pretrain_bert import POCKET_BERT, Step

    with Progress(console=_progress) as bar:
        task = bar.add_task(POCKET_BERT.name, total=POCKET_BERT.tokens)

        def show(step: Step) -> None:
            doing = f"{POCKET_BERT.name}, loss {step.losses.words:.2f} + {step.losses.follows:.2f}"
            bar.update(task, completed=step.tokens, description=doing)
            if step.held_out_loss is not None:
                told = f"{step.tokens:,} tokens, held-out loss {step.held_out_loss:.3f}"
                bar.console.print(told)

        folder = make(POCKET_BERT, device=device, report=show)
    _progress.print(f"✓ {folder.name}")


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="sampling or decode, or an article of these.")],
    device: Device = "cpu",
    itself: Annotated[
        bool, typer.Option("--self", help="Of decode: let the models draft for themselves.")
    ] = False,
) -> None:
    """Measure on this machine and show medians with least and most; nothing is written."""
    from foredraft.benchmarks import decoding, self_drafting

    name = f"{name} --self" if itself else name
    slug = BENCHMARKS.get(name, name)
    frame = _benchmarks()[_known(slug, device)]()
    asked = {"speculative_decoding": decoding.asked, "layer_skipping": self_drafting.asked}
    _print(frame.filter(_narrow(frame)))
    same = [name for name in ("n", *WHERE) if name in frame and len(set(frame[name])) == 1]
    _output.print(", ".join(f"{name} {frame[name].iloc[0]}" for name in same))
    if slug in asked:
        _output.print()
        _print(asked[slug](frame))


def _print(frame: "DataFrame") -> None:
    names = _columns(frame)
    table = Table(*names, box=None, pad_edge=False)
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
    }


def _columns(frame: "DataFrame") -> list[str]:
    """Name each measured figure once: its least, most and spread go into the same cell."""
    hidden = ("_min", "_max", "_iqr")
    shown = [column for column in frame.columns if not column.endswith(hidden)]
    return [column.removesuffix("_median") for column in shown]


def _cell(row: Mapping[Hashable, Any], name: str) -> str:
    if f"{name}_max" in row:
        middle, least, most = (row[f"{name}_{end}"] for end in ("median", "min", "max"))
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
    text = said.get("held_out_package")
    loss = f"{text['bits_per_byte']:.3f}" if text else "reads images"
    return [said["name"], said["architecture"], *counts, loss]


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
