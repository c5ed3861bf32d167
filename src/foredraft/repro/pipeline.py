"""dvc.lock: which stage made a file, from what, and whether the file is still what it made."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from foredraft import paths
from foredraft.errors import unknown


class Outdated(RuntimeError):
    """A file is no longer what the lock says that its stage made."""


@dataclass(frozen=True, slots=True)
class Output:
    """A file or folder that a stage made, and what the stage made it from.

    `path` is as the lock has it, relative to the repository; digests are MD5, as DVC takes them,
    and `params` are the sections of params.yaml that the stage reads.
    """

    path: str
    md5: str
    stage: str
    command: str
    params: Mapping[str, Any]
    inputs: Mapping[str, str]

    def require_current(self) -> None:
        """Raise Outdated, saying what to run, if what is there is not what the stage made."""
        path = paths.ROOT / self.path
        found = md5(path) if path.exists() else None
        if found != self.md5:
            told = "is gone" if found is None else f"has the MD5 {found}, not {self.md5}"
            raise Outdated(
                f"{self.path} is not what the stage {self.stage} made: it {told}. "
                f"`git restore {self.path}` brings back what was committed, "
                f"`dvc repro {self.stage}` makes it anew"
            )


def output(path: Path) -> Output:
    """The output of a stage that a file is, or lies in; ValueError if there is no such file."""
    name, made = paths.label(path), list(_outputs())
    for each in made:
        if name == each.path:
            return each
        if name.startswith(f"{each.path}/"):
            if not path.is_file():
                files = (file.name for file in (paths.ROOT / each.path).glob("*"))
                raise unknown(f"file of {each.path}", path.name, files)
            return each
    raise unknown("output of a stage", name, (each.path for each in made))


def md5(path: Path) -> str:
    """The MD5 of a file; of a folder, as DVC takes it, that of its list of files, and `.dir`."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    files = sorted((file.relative_to(path).parts, file) for file in path.rglob("*"))
    listed = [
        {"md5": md5(file), "relpath": "/".join(parts)} for parts, file in files if file.is_file()
    ]
    return f"{hashlib.md5(json.dumps(listed, sort_keys=True).encode()).hexdigest()}.dir"


def _outputs() -> Iterator[Output]:
    if not paths.LOCK.is_file():
        raise ValueError(f"{paths.LOCK.name} is missing: `dvc repro` writes it")
    stages = yaml.safe_load(paths.LOCK.read_text(encoding="utf-8"))["stages"]
    for name, stage in stages.items():
        for made in stage.get("outs", []):
            yield Output(
                path=made["path"],
                md5=made["md5"],
                stage=name,
                command=stage["cmd"],
                params=stage.get("params", {}).get(paths.PARAMS.name, {}),
                inputs={each["path"]: each["md5"] for each in stage.get("deps", [])},
            )
