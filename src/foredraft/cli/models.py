"""Commands about models: list, generate, search for plans, train."""

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from foredraft.cli.options import (
    Address,
    AsJson,
    Device,
    EngineName,
    require_device,
    require_engine,
)
from foredraft.cli.output import cell, output, print_json, progress
from foredraft.errors import unknown

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from foredraft.decoding.draft import Drafter
    from foredraft.decoding.exit import ExitPolicy
    from foredraft.decoding.streaming import Look

commands = typer.Typer()

LOOKUP = "lookup"
"""The drafter that is no model: the text itself."""

OBJECTIVES = ("speedup", "acceptance", "tokens_per_round", "overlap", "cost", "length")
"""What a search can make large, or small with a minus in front."""


@commands.command()
def models(as_json: AsJson = False) -> None:
    """List the models that are shipped or trained here, and what else can be loaded."""
    from foredraft import paths
    from foredraft.models.loading import pocket_models

    cards = sorted(paths.MODELS.glob("*/card.json"))
    if as_json:
        print_json([json.loads(card.read_text(encoding="utf-8")) for card in cards])
        return
    name = Column("name", no_wrap=True, min_width=max(map(len, pocket_models()), default=0))
    table = Table(
        *(name, "architecture", "layers", "parameters", "MB", "bits/byte, held out"),
        box=None,
        pad_edge=False,
    )
    for card in cards:
        table.add_row(*_described(card))
    output.print(table)
    output.print(
        "Also any folder in the Hugging Face format, or hub id, with a Llama, Mistral, Qwen2 or "
        "Gemma-2 model in safetensors."
    )


@commands.command()
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
    """Continue a text, shown as it is made, coloured by accepted, recovered and bonus tokens."""
    import torch

    import foredraft as fd
    from foredraft.decoding.streaming import Look, Piece, TokenStream, summary

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
        progress.print(look.legend(), markup=False, soft_wrap=True)
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
    progress.print(summary(made), markup=False, soft_wrap=True)


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
    from foredraft.decoding.streaming import Look

    coloured = output.color_system not in (None, "windows") and not output.no_color
    return Look(colours=coloured, marks=not coloured if marks is None else marks)


@commands.command()
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
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda.", callback=require_device)
    ] = None,
) -> None:
    """Search a model for its best skip plan, decode under it, and keep it in data/plans."""
    from foredraft import paths
    from foredraft.repro.params import load as load_params
    from foredraft.search import find
    from foredraft.search.engines import Ray

    if objective is not None and objective.removeprefix("-") not in OBJECTIVES:
        raise unknown("objective", objective.removeprefix("-"), OBJECTIVES)
    if costs not in ("clock", "bytes"):
        raise unknown("kind of costs", costs, ("clock", "bytes"))
    require_engine(engine, address)
    given = {"profile": profile, "objective": objective, "trials": trials, "seed": seed}
    given |= {"temperature": temperature, "device": device}
    params = load_params("self_speculation", given)
    if engine == "ray" and params.device != "cpu":
        raise ValueError(f"Ray's workers have no {params.device}: search there with engine local")
    joined = Ray(workers=workers, address=address) if engine == "ray" else nullcontext()
    with joined as cluster:
        found = find.find(
            model or params.model,
            params,
            temperature=params.temperature,
            times=costs == "clock",
            engine=cluster,
            report=progress.print,
        )
    best, rows = found.best[0], found.measured.to_dict("records")
    timed = next(row for row in rows if row["name"] == "found 1")
    output.print(f"{best.plan}, draft length {best.length}", soft_wrap=True)
    output.print(
        f"speed-up foretold {best.speedup.mean:.3f} ± {best.speedup.sem:.3f}, by held-out texts "
        f"{timed['predicted_held_out']:.3f}, decoded {cell(timed, 'speedup')}, "
        f"n {int(timed['n'])}",
        soft_wrap=True,
    )
    progress.print(f"✓ {paths.label(find.keep(found, params))}")


@commands.command()
def pretrain(
    name: Annotated[str, typer.Argument(help="The pocket model, such as pocket-llama.")],
    device: Device = "cpu",
) -> None:
    """Train a pocket model by its recipe; an interrupted run goes on where it stopped."""
    from foredraft.training.bert import ship as bert
    from foredraft.training.bert.pretrain import POCKET_BERT
    from foredraft.training.decoder import ship as decoder
    from foredraft.training.decoder.recipes import RECIPES
    from foredraft.training.llava import ship as llava
    from foredraft.training.llava.pretrain import POCKET_LLAVA

    if name == POCKET_LLAVA.name:

        def told(step: Any) -> tuple[int, str, float | None]:
            return step.number, f"stage {step.stage}, loss {step.loss:.3f}", step.held_out_error

        _train(partial(llava.make, POCKET_LLAVA), name, POCKET_LLAVA.steps, device, told)
    elif name == POCKET_BERT.name:

        def told(step: Any) -> tuple[int, str, float | None]:
            losses = f"loss {step.losses.words:.2f} + {step.losses.follows:.2f}"
            return step.tokens, losses, step.held_out_loss

        _train(partial(bert.make, POCKET_BERT), name, POCKET_BERT.tokens, device, told)
    elif name in RECIPES:

        def told(step: Any) -> tuple[int, str, float | None]:
            losses = f"{step.n_layers} layers, loss {step.loss:.2f}"
            return step.tokens, losses, step.held_out_loss

        recipe = RECIPES[name]
        _train(partial(decoder.make, recipe), name, recipe.tokens, device, told)
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

    with Progress(console=progress) as bar:
        task = bar.add_task(name, total=total)

        def show(step: Any) -> None:
            done, doing, judged = told(step)
            bar.update(task, completed=done, description=f"{name}, {doing}")
            if judged is not None:
                bar.console.print(f"{done:,} of {total:,}, held-out {judged:.4f}")

        folder = make(device=device, report=show)
    progress.print(f"✓ {folder.name}")


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
