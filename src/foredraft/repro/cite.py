"""How a figure, a file or a value of this repository is cited: words, BibTeX, and what made it.

Who and what stands in CITATION.cff; what made the file stands in dvc.lock; the commit is git's.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from foredraft import paths
from foredraft.errors import unknown
from foredraft.registry import ARTICLES
from foredraft.repro import claims, git, pipeline, recording
from foredraft.repro.claims import Findings, Value, tex
from foredraft.repro.pipeline import Output
from foredraft.repro.record import Record, read_record


@dataclass(frozen=True, slots=True)
class Commit:
    """The commit that last changed a file, its day, and whether the file was changed since."""

    digest: str
    date: str
    is_changed: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """Where and when the recorded measurements were made that a result draws on.

    `changed` are the sources that are no longer what they were made with; empty: it is current.
    """

    file: str
    machine: str
    date: str
    changed: tuple[str, ...] = ()

    def __str__(self) -> str:
        older = f"; made by older sources: {len(self.changed)} changed since" * bool(self.changed)
        return f"on {self.machine}, {self.date}, {self.file}{older}"


@dataclass(frozen=True, slots=True)
class Figure:
    """A value as it is cited: its key, itself, and what its claim says of it, if it has one."""

    key: str
    value: Value
    claim: str | None = None
    spread: float | int | None = None
    n: int | None = None

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" ± {claims.shown(self.spread)}"
        n = "" if self.n is None else f" (n = {self.n})"
        return f"{claims.shown(self.value)}{spread}{n}"


@dataclass(frozen=True, slots=True)
class Citation:
    """A file or value that is still what its stage made, and all that a reader needs to find it.

    `parameters` and `inputs` (MD5 by file) are those in dvc.lock; without git there is no commit.
    """

    cited: str
    software: Mapping[str, Any]
    made: Output
    commit: Commit | None
    measured: tuple[Measured, ...]
    figure: Figure | None = None
    record: Record | None = None

    @property
    def outdated(self) -> tuple[Measured, ...]:
        """The recordings behind it that were made by older sources."""
        return tuple(each for each in self.measured if each.changed)

    def text(self) -> str:
        """One sentence for a list of references."""
        year = f" ({self.commit.date[:4]})" if self.commit else ""
        version = f", version {self.software['version']}"
        told = f": {self.figure}" if self.figure else ""
        url = f" {self._url}" if self._url else ""
        return (
            f"{self._authors(' and ')}{year}. {self.software['title']}{version}{url}. "
            f"{self.cited}{told}, stage {self.made.stage}{self._at_commit}."
        )

    def bibtex(self) -> str:
        """An entry that classic styles know: @misc."""
        told = f": {tex(str(self.figure))}".replace("±", r"$\pm$") if self.figure else ""
        fields = {
            "author": self._authors(" and ", braced=True),
            "title": f"{{{self.software['title']}}}",
            "year": self.commit.date[:4] if self.commit else None,
            "version": self.software["version"],
            "howpublished": f"Software{self._at_commit}",
            "note": f"{tex(self.cited)}{told}",
            "url": self._url,
        }
        lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
        return "\n".join([f"@misc{{{self._key},", *lines, "}"])

    def provenance(self) -> str:
        """What made it, a line a fact."""
        facts = [("stage", f"{self.made.stage}: {self.made.command}")]
        if self.commit:
            since = ", changed since" if self.commit.is_changed else ""
            facts.append(("commit", f"{self.commit.digest} of {self.commit.date}{since}"))
        if self.record:
            facts.append(("record", paths.label(paths.record(self.record.stamp.what))))
            facts += [("code", f"{each} {name}") for name, each in self.record.stamp.code.items()]
            facts.append(("processor", str(self.record.processor)))
        facts += [("measured", str(each)) for each in self.measured]
        facts += [("parameter", f"{name}: {value}") for name, value in self.made.params.items()]
        facts += [("input", f"{digest} {name}") for name, digest in self.made.inputs.items()]
        return "\n".join(f"{name:<10} {fact}" for name, fact in facts)

    def document(self) -> dict[str, Any]:
        """All of it, for machines."""
        made = asdict(self.made)
        return {
            "cited": self.cited,
            "value": asdict(self.figure) if self.figure else None,
            "text": self.text(),
            "bibtex": self.bibtex(),
            "commit": asdict(self.commit) if self.commit else None,
            "stage": made["stage"],
            "command": made["command"],
            "output": {"path": made["path"], "md5": made["md5"]},
            "parameters": made["params"],
            "inputs": made["inputs"],
            "measured": [asdict(each) for each in self.measured],
            "record": json.loads(self.record.to_json()) if self.record else None,
        }

    @property
    def _key(self) -> str:
        commit = f"-{self.commit.digest[:7]}" if self.commit else ""
        return "foredraft-" + re.sub(r"[^A-Za-z0-9]+", "-", self.cited).strip("-") + commit

    @property
    def _at_commit(self) -> str:
        return f", commit {self.commit.digest[:7]}" if self.commit else ""

    @property
    def _url(self) -> str | None:
        return self.software.get("url") or self.software.get("repository-code")

    def _authors(self, joined: str, *, braced: bool = False) -> str:
        names = [
            (f"{{{each['name']}}}" if braced else each["name"])
            if "name" in each
            else f"{each['family-names']}, {each['given-names']}"
            for each in self.software["authors"]
        ]
        return joined.join(names)


def cite(target: str) -> Citation:
    """Cite a file that a stage made, or `file#key`, a value of a file of results.

    The file is looked for from the working directory, then from the repository. ValueError if no
    stage made it or it has no such value, lock.Outdated if it is not what its stage made.
    """
    name, _, key = target.partition("#")
    path = Path(name) if Path(name).exists() else paths.ROOT / name
    made = pipeline.output(path)
    made.require_current()
    file = paths.label(path)
    record = _record(made.stage)
    return Citation(
        cited=f"{file}#{key}" if key else file,
        software=yaml.safe_load(paths.CITATION.read_text(encoding="utf-8")),
        made=made,
        commit=_commit(path),
        measured=tuple(map(_measured, _recordings(made, record, path, key))),
        figure=_figure(file, key) if key else None,
        record=record,
    )


def _figure(file: str, key: str) -> Figure:
    found = _findings(file)
    if key not in found.values:
        raise unknown(f"value of {file}", key, found.values)
    claim = next((each for each in found.claims if each.key == key), None)
    if claim is None:
        return Figure(key, found.values[key])
    return Figure(key, found.values[key], claim.text, claim.spread, claim.n)


def _findings(file: str) -> Findings:
    files = {paths.cited(article.slug): article.slug for article in ARTICLES}
    if file not in files:
        raise unknown("file of results, which have values to cite", file, files)
    found = claims.read(files[file], below=paths.ROOT)
    assert found is not None, "a file that is current is there"
    return found


def _record(slug: str) -> Record | None:
    """The committed record of an article; None for the stage of the page of results."""
    if slug not in {each.slug for each in ARTICLES}:
        return None
    file = paths.ROOT / paths.label(paths.record(slug))
    return read_record(file) if file.is_file() else None


def _recordings(made: Output, record: Record | None, path: Path, key: str) -> list[str]:
    """The recordings behind a value or a figure; of another file, all that its stage draws on."""
    if record is not None and key:
        behind = record.recorded.items()
        return [file for name, file in behind if f"#{key}.".startswith(f"{name}.")]
    if record is not None and path.parent.name == made.stage:
        return [file for name, file in record.recorded.items() if name == path.stem]
    if made.stage == "results":
        records = filter(None, (_record(each.slug) for each in ARTICLES))
        return sorted({file for each in records for file in each.recorded.values()})
    return [name for name in made.inputs if _is_recording(name)]


def _is_recording(name: str) -> bool:
    return (paths.ROOT / name).parent == paths.RECORDED


def _measured(name: str) -> Measured:
    kept = recording.read(paths.ROOT / name)
    machine = f"{kept.machine.name}, {kept.machine.cores} cores"
    return Measured(name, machine, kept.date, kept.source_changed)


def _commit(path: Path) -> Commit | None:
    """The last commit of a file; None without git, or before the file is committed."""
    found = git.output("log", "-1", "--format=%H %cs", "--", str(path.resolve()))
    if not found:
        return None
    digest, date = found.split()
    return Commit(
        digest, date, bool(git.output("status", "--porcelain", "--", str(path.resolve())))
    )
