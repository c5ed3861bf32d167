"""The record of an article's run: what its results were made from, and digests of them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from foredraft.machine import Processor
from foredraft.repro.provenance import Stamp


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
