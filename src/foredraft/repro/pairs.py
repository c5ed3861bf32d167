"""Notebook pairs: the percent script, which people edit, and its .ipynb twin without outputs.

The twin is a function of the script alone, cell ids included, so that it changes only when the
script does. JupyterLab may save outputs into a twin; writing it anew drops them.
"""

import hashlib
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

from foredraft import paths
from foredraft.files import write_text


def twin(script: Path) -> str:
    """The text of a script's .ipynb twin."""
    notebook = jupytext.read(script)
    identify(notebook)
    return nbformat.writes(notebook) + "\n"


def sync() -> list[Path]:
    """Write the twin of every notebook that has changed, and return their paths."""
    twins = {script.with_suffix(".ipynb"): twin(script) for script in paths.NOTEBOOKS.glob("*.py")}
    stale = [path for path, text in sorted(twins.items()) if not _holds(path, text)]
    for path in stale:
        write_text(path, twins[path])
    return stale


def identify(notebook: NotebookNode) -> None:
    """Give each cell an id that its place and source determine, instead of a random one."""
    for number, cell in enumerate(notebook.cells):
        cell.id = hashlib.sha256(f"{number}\n{cell.source}".encode()).hexdigest()[:8]


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()
