"""What the run of an article writes: its figures, its table, values and claims, and one record.

The record, `data/results/<slug>.stamp.json`, holds the full stamp and the digest of everything that
was written; each file leads to it by its mark. `data/results/<slug>.figures.json` keeps the values
that the figures draw, so that they can be drawn again in another format (`redraw`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from foredraft import paths
from foredraft.files import write_text
from foredraft.machine import this_processor
from foredraft.repro import claims as results
from foredraft.repro import live, values
from foredraft.repro.claims import Claim
from foredraft.repro.provenance import Mark, stamp, write_csv, write_marked
from foredraft.repro.record import Produced, Record, read_record
from foredraft.viz import figures
from foredraft.viz.panel import Panel


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
