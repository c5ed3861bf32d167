"""What the run of an article writes: its figures, its table, values and claims, and one record.

The record, `data/results/<slug>.stamp.json`, holds the full stamp and the digest of everything that
was written; each file leads to it by its mark. `data/results/<slug>.figures.json` keeps the values
that the figures draw, so that they can be drawn again in another format (`redraw`).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from foredraft import figures, live, paths, results, values
from foredraft.files import write_text
from foredraft.machine import Processor, this_processor
from foredraft.panel import Panel
from foredraft.provenance import Mark, Stamp, stamp, write_csv, write_marked
from foredraft.results import Claim


@dataclass(frozen=True, slots=True)
class Produced:
    """The digests of what a run wrote: values and claims, the table, and each figure by name.

    `drawings` is that of the file of values that all of the figures draw.
    """

    results: str
    table: str
    drawings: str
    figures: Mapping[str, str]

    def everything(self) -> tuple[str, ...]:
        """All of the digests."""
        return (self.results, self.table, self.drawings, *self.figures.values())


@dataclass(frozen=True, slots=True)
class Record:
    """What an article's results were made from, on which processor, and what was produced.

    `recorded` names the recording behind each figure that draws one and, as `#key`, behind the
    values under each key.
    """

    stamp: Stamp
    processor: Processor
    produced: Produced
    recorded: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The record as it is kept; the processor stays last, since only drift hangs on it."""
        document = {
            **asdict(self.stamp),
            "produced": asdict(self.produced),
            "recorded": dict(self.recorded),
            "processor": asdict(self.processor),
        }
        return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """Read what `to_json` wrote."""
        document = json.loads(text)
        ran_on = document.pop("processor")
        processor = Processor(ran_on["name"], tuple(ran_on["features"]))
        produced = Produced(**document.pop("produced"))
        recorded = document.pop("recorded")
        return cls(Stamp(**document), processor, produced, recorded)


def read_record(path: Path) -> Record:
    """Read an article's record; ValueError if it is missing or not whole."""
    if not path.is_file():
        raise ValueError(f"{path.name} is missing: `foredraft run` writes it, `git restore` too")
    try:
        return Record.from_json(path.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path.name} is not a whole record ({error!r}): `git restore` it, or run its article"
        ) from None


class Outputs:
    """Collects what a run of an article's notebook writes.

    `inputs` are the files besides its own notebook that make its results what they are: weights,
    prompts, recordings. Everything goes below `paths.outputs()`.
    """

    def __init__(
        self,
        slug: str,
        params: Mapping[str, Any],
        inputs: Iterable[Path] = (),
        *,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        self.slug = slug
        self.stamp = stamp(
            slug, params, [paths.notebook(slug), *inputs], device=device, dtype=dtype
        )
        self._drawings: dict[str, dict[str, Any]] = {}
        self._marks: dict[str, str] = {}
        self._recorded: dict[str, str] = {}

    def save(self, drawn: Figure | Panel, name: str, *, recorded: Path | None = None) -> "Shown":
        """Write a figure, and show it in the notebook: small, with a link to the file.

        It must come from a `figures.drawing`. A panel is saved as it is at first; `recorded` is
        the file of the recording that the figure draws, if it draws one.
        """
        figure = drawn.still if isinstance(drawn, Panel) else drawn
        if not isinstance(figure, figures.Drawn) or figure.drawing is None:
            raise ValueError(
                f"figure {name!r} of {self.slug} does not know its values: draw it by a function "
                "that is a figures.drawing"
            )
        mark = Mark(self.slug, name, values.digest(figure.arguments))
        self._drawings[name] = {"drawing": figure.drawing, "values": figure.arguments}
        self._marks[name] = mark.data
        if recorded is not None:
            self._recorded[name] = paths.label(recorded)
        (path,) = figures.save(figure, paths.figures(self.slug), mark)
        return Shown(figures.preview(figure), path, drawn if isinstance(drawn, Panel) else None)

    def finish(
        self,
        table: pd.DataFrame,
        found: Mapping[str, Any],
        claims: Iterable[Claim],
        *,
        recorded: Mapping[str, Path] | None = None,
    ) -> None:
        """Write table, values and claims, what the figures draw, and last the record of it all.

        `recorded` has the file of the recording that the values under a key come from.

        ValueError as of `results.checked`. A record whose digests and stamp are as before keeps
        the processor that it names: it is where these values were first made.
        """
        content = results.checked(self.slug, found, claims)
        csv = write_csv(paths.results(self.slug, "csv"), table)
        written = write_marked(
            paths.results(self.slug), self.slug, "results", {"table": csv, **content}
        )
        drawings = write_marked(
            paths.figure_tables(self.slug),
            self.slug,
            "figures",
            {"figures": self._drawings},
            indent=None,
        )
        produced = Produced(written.data, csv["digest"], drawings.data, dict(self._marks))
        behind = {f"#{key}": paths.label(file) for key, file in (recorded or {}).items()}
        record = Record(self.stamp, this_processor(), produced, {**self._recorded, **behind})
        path = paths.record(self.slug)
        if not _says_the_same(path, record):
            write_text(path, record.to_json())


def _says_the_same(path: Path, record: Record) -> bool:
    """Check whether a record differs from the one that is there by the processor at most."""
    try:
        before = read_record(path)
    except ValueError:
        return False
    return (before.stamp.to_json(), before.produced, dict(before.recorded)) == (
        record.stamp.to_json(),
        record.produced,
        dict(record.recorded),
    )


@dataclass(frozen=True, slots=True)
class Shown:
    """A saved figure as a notebook shows it: its preview, and below it a link to the file."""

    png: bytes
    path: Path
    panel: Panel | None = None

    def _ipython_display_(self) -> None:
        from IPython.display import Image, Markdown, display

        if self.panel is not None and live.is_live():
            display(self.panel.moving())
        else:
            display(Image(self.png, format="png"))
        link = self.path.relative_to(paths.outputs()).as_posix()
        display(Markdown(f"[{self.path.name}](../{link})"))
