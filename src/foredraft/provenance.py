"""What made a result: the stamp that is written into, or beside, everything a run leaves behind.

A stamp holds content only: parameters, digests of sources and weights, versions, device, dtype,
seed. It holds no commit, date or machine path, so that a committed result changes only when
something that made it did. The commit is looked up when a result is cited.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from foredraft import imports, paths
from foredraft.files import digest, write_text

SIGNIFICANT_DIGITS = 6
"""Beyond them processors disagree."""

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pandas", "matplotlib", "seaborn")
"""Whose versions a stamp states; requirements.lock has the rest."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a result was made from; two runs with the same stamp are to give the same bytes."""

    what: str
    params: Mapping[str, Any]
    inputs: Mapping[str, str]
    versions: Mapping[str, str]
    device: str = "cpu"
    dtype: str = "float32"
    seed: int | None = None

    def to_json(self) -> str:
        """One line of JSON, keys in order."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Stamp":
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))

    def changed_inputs(self) -> tuple[str, ...]:
        """The inputs in this repository that are gone, or no longer what this was made from."""
        ours = (name for name in self.inputs if not name.startswith(f"{paths.ELSEWHERE}/"))
        return tuple(name for name in ours if _digest_now(name) != self.inputs[name])


@dataclass(frozen=True, slots=True)
class Stamped:
    """Content read back from a file, with the stamp that it carried."""

    stamp: Stamp
    content: Mapping[str, Any]


def stamp(
    what: str,
    params: Mapping[str, Any],
    inputs: Iterable[Path],
    *,
    device: str = "cpu",
    dtype: str = "float32",
) -> Stamp:
    """The stamp of a result made here and now.

    `params` are those that took effect, `seed` among them if there is one. With a Python file in
    `inputs` come the modules of ours that it imports; every file stands there with its digest.
    """
    given = set(inputs)
    scripts = imports.closure(*(path for path in given if path.suffix == ".py"))
    digests = {paths.label(path): digest(path) for path in {*given, *scripts}}
    return Stamp(
        what=what,
        params=json.loads(json.dumps(dict(params), allow_nan=False)),
        inputs=dict(sorted(digests.items())),
        versions={name: version(name).partition("+")[0] for name in PACKAGES},
        device=device,
        dtype=dtype,
        seed=params.get("seed"),
    )


def write_json(path: Path, content: Mapping[str, Any], stamp: Stamp) -> None:
    """Write content with its stamp: atomic, floats of six significant digits, stable bytes."""
    if "stamp" in content:
        raise ValueError(f"{path.name}: the key 'stamp' is the stamp's own; rename the value")
    document = {"stamp": asdict(stamp), **_rounded(content)}
    write_text(path, json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_table(
    path: Path, frame: pd.DataFrame, stamp: Stamp, content: Mapping[str, Any] | None = None
) -> None:
    """Write a tidy table as CSV; beside it, as `.json`, its stamp, digest and further content."""
    floats = f"%.{SIGNIFICANT_DIGITS}g"
    write_text(path, frame.to_csv(index=False, float_format=floats, lineterminator="\n"))
    table = {"file": path.name, "digest": digest(path)}
    write_json(path.with_suffix(".json"), {"table": table, **(content or {})}, stamp)


def read_json(path: Path) -> Stamped:
    """Read what `write_json` wrote; ValueError if the file carries no stamp."""
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict) or "stamp" not in document:
        raise ValueError(f"{path.name} has no stamp; write it with provenance.write_json")
    return Stamped(stamp=Stamp(**document.pop("stamp")), content=document)


def read_table(path: Path) -> pd.DataFrame:
    """Read what `write_table` wrote; ValueError if it has no stamp beside it or was changed."""
    beside = path.with_suffix(".json")
    if not beside.is_file():
        raise ValueError(f"{path.name} has no stamp ({beside.name}); use provenance.write_table")
    if read_json(beside).content.get("table", {}).get("digest") != digest(path):
        raise ValueError(f"{path.name} is not the table of {beside.name}; run its stage again")
    return pd.read_csv(path)


def _digest_now(name: str) -> str | None:
    path = paths.ROOT / name
    return digest(path) if path.is_file() else None


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    return value
