"""One point of a sweep: a notebook under one setting, in a folder of its own, done or not.

The folder is named by a digest of all parameters. A point is done when its folder holds the marker
`point.json`, which is written last; it carries the stamp of the results, so that what was made from
other sources, weights or versions is made again. Of files that lie elsewhere and that a parameter
names, a reader's prompts or model, size and time of change are kept: to digest a model takes long.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from filelock import FileLock

from foredraft import paths
from foredraft.files import digest, write_text
from foredraft.repro import claims, notebooks
from foredraft.repro.claims import Findings
from foredraft.repro.provenance import read_json, stamp, write_json
from foredraft.repro.record import read_record
from foredraft.sweep.grid import Setting

MADE = ("data", "figures", "failed")
"""The folders that a run leaves below a point's."""


@final
@dataclass(frozen=True, slots=True)
class Point:
    """A setting of an article's notebook, all the parameters that follow from it, and a folder."""

    slug: str
    setting: Setting
    params: Mapping[str, Any]
    folder: Path

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.setting.items()) or "as it stands"

    @property
    def marker(self) -> Path:
        """What says that it is finished: its parameters, the stamp and digest of its results."""
        return self.folder / "point.json"

    @property
    def log(self) -> Path:
        """What its process said."""
        return self.folder / "log.txt"

    def is_done(self) -> bool:
        """Whether it is finished and would come out the same now."""
        return self.marker.is_file() and not self._changed()

    def make(self) -> None:
        """Run the notebook, unless this is done; what fails is kept for `error` to tell.

        Whoever comes while another process makes the same point waits for it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "lock"):
            if self.is_done():
                return
            self.marker.unlink(missing_ok=True)
            for name in MADE:
                shutil.rmtree(self.folder / name, ignore_errors=True)
            named = self._named()  # before it is read: what changes meanwhile shows afterwards
            try:
                notebooks.run(self.slug, self.setting, out=self.folder)
                self._finish(named)
            except (notebooks.NotebookError, ValueError) as error:
                write_text(self._error, str(error))

    def error(self) -> str | None:
        """Why it is not done although it was made; None if it is."""
        if self.is_done():
            return None
        if self.marker.is_file():
            return f"while it was made, these have changed: {', '.join(self._changed())}"
        if self._error.is_file():
            return self._error.read_text(encoding="utf-8")
        return (
            f"its process ended before it was done, as {self.log} may tell, "
            "or wrote into a folder that this machine does not see"
        )

    def findings(self) -> Findings:
        """The claims and values of a point that is done."""
        found = claims.read(self.slug, below=self.folder)
        assert found is not None, "a point that is done has results"
        return found

    @property
    def _result(self) -> Path:
        return self.folder / paths.cited(self.slug)

    @property
    def _error(self) -> Path:
        return self.folder / "failed" / "error.txt"

    def _changed(self) -> list[str]:
        """The inputs, versions and results that are no longer as they were when it was done."""
        marked, versions = read_json(self.marker), stamp("", {}, []).versions
        others = [name for name in versions if versions[name] != marked.stamp.versions.get(name)]
        if not self._result.is_file() or digest(self._result) != marked.content["results"]:
            others.append(paths.cited(self.slug))
        named, now = marked.content.get("named", {}), self._named()
        others += sorted(name for name in named | now if named.get(name) != now.get(name))
        return [*marked.stamp.changed_inputs(), *others]

    def _named(self) -> dict[str, str]:
        """The files that parameters name, or that lie in a folder they name, with their state."""
        files: list[Path] = []
        for value in _texts(self.params):
            path = paths.ROOT / Path(value).expanduser()
            files += [path] if path.is_file() else sorted(path.glob("*.*")) if path.is_dir() else []
        states = ((path, path.stat()) for path in files if path.is_file())
        return {str(path): f"{state.st_size} {state.st_mtime_ns}" for path, state in states}

    def _finish(self, named: Mapping[str, str]) -> None:
        if not self._result.is_file():
            raise ValueError(f"the notebook {self.slug} has left no {paths.cited(self.slug)}")
        results_digest = digest(self._result)
        content = {"parameters": self.params, "results": results_digest, "named": named}
        record = self._result.with_name(paths.record(self.slug).name)
        write_json(self.marker, content, read_record(record).stamp)


def _texts(value: Any) -> Iterator[str]:
    """The strings in parameters that may name a file: those with a slash or an ending."""
    if isinstance(value, str):
        if "/" in value or Path(value).suffix:
            yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def points(slug: str, settings: list[Setting], below: Path) -> list[Point]:
    """The points of some settings, one for those that come to the same parameters.

    ValueError for a parameter that the notebook does not have, or a value that is not allowed.
    """
    found: dict[str, Point] = {}
    for setting in settings:
        params = notebooks.resolved(slug, setting)
        written = json.dumps([slug, dict(params)], sort_keys=True)
        name = hashlib.sha256(written.encode()).hexdigest()[:16]
        found.setdefault(name, Point(slug, setting, params, below.absolute() / name))
    return list(found.values())
