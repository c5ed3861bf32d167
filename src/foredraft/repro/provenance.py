"""What made a result: a full stamp, and the short mark by which a file leads to it.

A stamp states parameters, digests of code and data, versions, device, dtype and seed. It has no
commit, date or machine path: these are looked up when a result is cited. What an article writes
carries a mark only, its article and the digest of its values; the stamp is in the article's record
(`outputs`). So a file changes when its values do, not when something else does.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from foredraft import paths
from foredraft.files import digest, write_text
from foredraft.repro import digests, values
from foredraft.repro.values import SIGNIFICANT_DIGITS

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pandas", "matplotlib", "seaborn")
"""Whose versions a stamp states; requirements.lock has the rest."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a result was made from; two runs with the same stamp are to give the same bytes.

    `code` has, for each program, the digest of all that it reaches (`digests`); `inputs` the
    digests of files. Stamps of older results have their sources among the inputs, file by file.
    """

    what: str
    params: Mapping[str, Any]
    inputs: Mapping[str, str]
    versions: Mapping[str, str]
    device: str = "cpu"
    dtype: str = "float32"
    seed: int | None = None
    code: Mapping[str, str] = field(default_factory=dict)

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
        files = [name for name in ours if _digest_now(name) != self.inputs[name]]
        code = [name for name in self.code if _code_now(name) != self.code[name]]
        return (*files, *code)


@dataclass(frozen=True, slots=True)
class Mark:
    """What a file of an article carries: the article, what it is there, the digest of its values.

    `name` is a figure's name, or `results` and `figures` for the files of values.
    """

    article: str
    name: str
    data: str

    def to_json(self) -> str:
        """One line of JSON, keys in order."""
        return json.dumps(asdict(self), sort_keys=True)


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

    `params` are those that took effect, `seed` among them if there is one. A Python file among
    `inputs` counts with all of our code that it reaches, any other by its bytes.
    """
    given = sorted(set(inputs))
    return Stamp(
        what=what,
        params=json.loads(json.dumps(dict(params), allow_nan=False)),
        inputs={paths.label(path): digest(path) for path in given if path.suffix != ".py"},
        code={paths.label(path): digests.of(path) for path in given if path.suffix == ".py"},
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


def write_marked(
    path: Path, article: str, name: str, content: Mapping[str, Any], *, indent: int | None = 1
) -> Mark:
    """Write content with the mark of an article: atomic, rounded, the same bytes each time."""
    kept = _rounded(content)
    mark = Mark(article, name, values.digest(kept))
    document = {"stamp": asdict(mark), **kept}
    write_text(
        path, json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    )
    return mark


def write_csv(path: Path, frame: pd.DataFrame) -> Mapping[str, str]:
    """Write a tidy table as CSV; give its name and digest, for the JSON file beside it."""
    floats = f"%.{SIGNIFICANT_DIGITS}g"
    write_text(path, frame.to_csv(index=False, float_format=floats, lineterminator="\n"))
    return {"file": path.name, "digest": digest(path)}


def write_table(
    path: Path, frame: pd.DataFrame, stamp: Stamp, content: Mapping[str, Any] | None = None
) -> None:
    """Write a tidy table as CSV; beside it, as `.json`, its stamp, digest and further content."""
    table = write_csv(path, frame)
    write_json(path.with_suffix(".json"), {"table": table, **(content or {})}, stamp)


def read_json(path: Path) -> Stamped:
    """Read what `write_json` wrote; ValueError if the file carries no stamp."""
    document = _document(path)
    return Stamped(stamp=Stamp(**document.pop("stamp")), content=document)


def read_marked(path: Path) -> Mapping[str, Any]:
    """Read the content of an article's file; ValueError if it is not what its mark says."""
    document = _document(path)
    found = document.pop("stamp")
    if "data" in found and values.digest(document) != found["data"]:
        raise ValueError(
            f"{path.name} was edited after it was written: its values have the digest "
            f"{values.digest(document)}, its stamp says {found['data']}; `git restore` it, or run "
            "its stage again"
        )
    return document


def read_stamp(path: Path) -> Stamp | Mark:
    """The stamp or mark of a JSON file, whose content is checked against a mark."""
    found = _document(path)["stamp"]
    if "data" in found:
        read_marked(path)
        return Mark(**found)
    return Stamp(**found)


def parse(text: str) -> Stamp | Mark | None:
    """Read what a figure carries: a mark, the full stamp of a former version, or neither."""
    try:
        found = json.loads(text)
        return Mark(**found) if "data" in found else Stamp(**found)
    except (ValueError, TypeError):
        return None


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not a whole JSON file ({error})") from None
    if not isinstance(document, dict) or not isinstance(document.get("stamp"), dict):
        raise ValueError(f"{path.name} has no stamp: files that foredraft writes have one")
    return document


def read_table(path: Path) -> pd.DataFrame:
    """Read what `write_table` wrote; ValueError if it has no stamp beside it or was changed."""
    beside = path.with_suffix(".json")
    if not beside.is_file():
        raise ValueError(f"{path.name} has no stamp ({beside.name}); use provenance.write_table")
    if read_marked(beside).get("table", {}).get("digest") != digest(path):
        raise ValueError(
            f"{path.name} is not the table of {beside.name}: one of them was edited, or is of "
            "another commit; run its stage again"
        )
    return pd.read_csv(path)


def _digest_now(name: str) -> str | None:
    path = paths.ROOT / name
    return digest(path) if path.is_file() else None


def _code_now(name: str) -> str | None:
    path = paths.ROOT / name
    return digests.of(path) if path.is_file() else None


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if isinstance(value, float) and math.isfinite(value):
        return values.rounded(value)
    return value
