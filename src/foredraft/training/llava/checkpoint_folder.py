"""Folders that are whole or count for nothing: the Trainer's checkpoints, sealed when complete.

The Trainer writes a checkpoint file by file into its final folder. A seal, written last and
atomically, lists every file with its digest: a folder without one, or that differs from it, is the
work of a run that was killed, and nothing is ever resumed from it.
"""

import json
import re
from pathlib import Path

from foredraft.files import digest, write_text

SEAL = "complete.json"
STATE = "trainer_state.json"


def seal(folder: Path) -> None:
    """State that a folder is complete as it stands."""
    files = {file.name: digest(file) for file in _files(folder)}
    write_text(folder / SEAL, json.dumps(files, indent=1, sort_keys=True) + "\n")


def flaw(folder: Path) -> str | None:
    """Say what is wrong with a folder; None if it is whole."""
    if not (folder / SEAL).is_file():
        return "it was never completed"
    for name, expected in json.loads((folder / SEAL).read_text(encoding="utf-8")).items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if digest(folder / name) != expected:
            return f"{name} is damaged"
    return None


def require_whole(folder: Path) -> None:
    """Raise ValueError that says what is wrong unless a folder is whole."""
    found = flaw(folder)
    if found:
        raise ValueError(f"{folder} cannot be used: {found}. Delete it and run again")


def newest(run: Path) -> Path | None:
    """Find the whole checkpoint of a run with the most steps; None if there is none."""
    return next((folder for folder in reversed(checkpoints(run)) if flaw(folder) is None), None)


def checkpoints(run: Path) -> list[Path]:
    """List a run's checkpoints, whole or not, by step."""
    folders = [path for path in run.glob("checkpoint-*") if re.fullmatch(r"\d+", _step(path))]
    return sorted(folders, key=step)


def step(checkpoint: Path) -> int:
    """Read from its name after how many steps a checkpoint was taken."""
    return int(_step(checkpoint))


def _step(path: Path) -> str:
    return path.name.rpartition("-")[2]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name != SEAL)
