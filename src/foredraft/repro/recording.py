"""Recordings: what was measured on some machine, kept because another would give other numbers.

Timings, and whatever needs hardware that a reader may lack, never come from a DVC stage: a stage
draws what is recorded. A recording says on what machine and when it was made, and whether the
source it was made with has changed since.
"""

import re
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from foredraft import paths
from foredraft.machine import Machine, this_machine
from foredraft.repro.provenance import Stamp, read_json, write_json

SPREAD = re.compile("spread$|_iqr$")
"""Columns that say how much a measurement varied."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A measured table with the machine and the day (UTC) it was measured on, and its file."""

    file: Path
    table: pd.DataFrame
    machine: Machine
    date: str
    stamp: Stamp

    @property
    def source_changed(self) -> tuple[str, ...]:
        """The source files that are no longer what this was measured with; empty: it is current."""
        return self.stamp.changed_inputs()


def record(slug: str, device: str, table: pd.DataFrame, stamp: Stamp) -> Path:
    """Keep a table measured here and now, as an article's; ValueError as of `keep`."""
    path = paths.recorded(slug, device)
    keep(path, device, table, stamp)
    return path


def keep(path: Path, device: str, table: pd.DataFrame, stamp: Stamp) -> None:
    """Write a table measured here and now, with machine and day.

    ValueError if it has no column `n` (how often each was measured) or none that tells a spread.
    """
    if "n" not in table.columns or not any(SPREAD.search(column) for column in table.columns):
        raise ValueError(
            f"a recorded table needs a column n and one ending in _iqr or spread; "
            f"this one has {', '.join(table.columns)}"
        )
    content = {
        "machine": asdict(this_machine(device)),
        "date": datetime.now(UTC).date().isoformat(),
        "columns": list(table.columns),
        "rows": [_without_nan(row) for row in table.to_dict(orient="records")],
    }
    write_json(path, content, stamp)


def _without_nan(row: Mapping[Hashable, object]) -> dict[str, object]:
    """Leave out of a row what was not measured, which is NaN again when read."""
    return {str(name): value for name, value in row.items() if value == value}


def recordings(slug: str) -> Mapping[str, Recording]:
    """All that is recorded for an article, by device."""
    return {path.name.split(".")[1]: read(path) for path in paths.recordings(slug)}


def read(path: Path) -> Recording:
    """Read what `record` wrote."""
    stamped = read_json(path)
    return Recording(
        file=path,
        table=pd.DataFrame(stamped.content["rows"], columns=stamped.content["columns"]),
        machine=Machine(**stamped.content["machine"]),
        date=stamped.content["date"],
        stamp=stamped.stamp,
    )
