"""Run an article's notebook from nothing: papermill, strict parameters, the same bytes each time.

Papermill lets an unknown parameter pass with a log line, and stamps times and random ids into
every cell. Here a parameter must be declared by the notebook and valid for its article, and what is
written has nothing in it that a second run would change.
"""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jupytext
import nbformat
from filelock import FileLock
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from foredraft import paths
from foredraft.errors import unknown
from foredraft.files import write_text
from foredraft.repro import live, params
from foredraft.repro.pairs import identify

RUNNING = paths.CACHE / "running"
"""Where an article writes until it is done."""

FAILED = paths.CACHE / "failed"
"""Where a notebook that failed is kept, with its outputs up to the error; else below `out`."""

KERNEL_STARTS_WITHIN = 180
"""Seconds; a loaded machine is slow to import."""


class NotebookError(RuntimeError):
    """A cell of a notebook failed, or its kernel died."""


def run(slug: str, overrides: Mapping[str, Any], *, out: Path | None = None) -> Path:
    """Execute an article's notebook and return the path of its executed copy.

    Everything that the run writes goes below `out`, or into the repository if that is None: there
    only when all of it is done, so that a run that is stopped leaves the former results whole.
    Raises ValueError for a parameter that is not allowed, before anything is executed, and
    NotebookError if a cell fails; what an earlier run wrote then stays as it was.
    """
    threads = int(resolved(slug, overrides)["threads"])
    if out is None and paths.outputs() != paths.ROOT:
        out = paths.outputs()
    if out is not None:
        return _execute(slug, overrides, out=out, failed=out / FAILED.name, threads=threads)
    folder = RUNNING / slug
    RUNNING.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        _execute(slug, overrides, out=folder, failed=FAILED, threads=threads)
        _replace(slug, folder)
        shutil.rmtree(folder)
    return paths.executed(slug)


def _execute(
    slug: str, overrides: Mapping[str, Any], *, out: Path, failed: Path, threads: int
) -> Path:
    with _environment(out, threads):
        target = paths.executed(slug)
        executed = _executed(read(slug), slug, overrides, failed=failed / f"{slug}.ipynb")
        write_text(target, normalised(executed))
    return target


def _replace(slug: str, folder: Path) -> None:
    """Put what a run wrote in the place of what an earlier one left: the record goes last."""
    written = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    last = paths.record(slug).relative_to(paths.outputs())
    for name in sorted(written, key=lambda name: (name == last, name)):
        target = paths.outputs() / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder / name, target)
    for left in set(paths.figures(slug).glob("*")) - {paths.outputs() / name for name in written}:
        left.unlink()


def resolved(slug: str, overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    """Every parameter of a run with these overrides, the notebook's own switches among them.

    ValueError for one that is not allowed: the notebook must declare it. One whose default is None
    is params.yaml's, any other the notebook's own switch.
    """
    defaults = declared(read(slug))
    switches = {name: value for name, value in defaults.items() if value is not None}
    for name, value in overrides.items():
        if name not in defaults:
            raise unknown(f"parameter of the notebook {slug}", name, defaults)
        if name in switches and type(value) is not type(switches[name]):
            kind = type(switches[name]).__name__
            raise ValueError(
                f"parameter {slug}.{name}: {value!r} is not allowed; it must be {kind}"
            )
    switched = {name: overrides.get(name, value) for name, value in switches.items()}
    given = {name: value for name, value in overrides.items() if name not in switches}
    return {**params.load(slug, given).model_dump(mode="json"), **switched}


def declared(notebook: NotebookNode) -> Mapping[str, Any]:
    """Names and defaults in the cell that is tagged `parameters`; the defaults must be literals."""
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"a notebook has one cell tagged 'parameters'; this one has {len(cells)}")
    found: dict[str, Any] = {}
    for node in ast.parse(cells[0].source).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            found |= dict.fromkeys(names, ast.literal_eval(node.value))
    return found


def normalised(notebook: NotebookNode) -> str:
    """An executed notebook as text, without times, random ids, versions, widgets and pairing."""
    notebook = deepcopy(notebook)
    for key in ("papermill", "widgets", "jupytext"):
        notebook.metadata.pop(key, None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    identify(notebook)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if "tags" in cell.metadata and not cell.metadata.tags:
            del cell.metadata["tags"]
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
            for output in cell.outputs:
                _lead_to_figures(output)
    return nbformat.writes(notebook) + "\n"


def read(slug: str) -> NotebookNode:
    """An article's notebook as its script has it."""
    path = paths.notebook(slug)
    if not path.is_file():
        raise ValueError(f"article {slug} has no notebook: {paths.label(path)} is missing")
    return jupytext.read(path)


def _fonts() -> Path:
    """A folder with matplotlib's list of fonts, which a cell would otherwise make, and say so."""
    folder = paths.CACHE / "matplotlib"
    if not list(folder.glob("fontlist-*.json")):
        code = "import matplotlib.font_manager"
        environment = {**os.environ, "MPLCONFIGDIR": str(folder)}
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [sys.executable, "-c", code], env=environment, check=True, capture_output=True
        )
    return folder


@contextmanager
def _environment(out: Path, threads: int) -> Iterator[None]:
    """What the kernel inherits: nothing of the user's own set-up that could change a result.

    The threads are the article's own: with another number sums are taken in another order.
    """
    before = dict(os.environ)
    with TemporaryDirectory() as folder:
        os.environ |= {
            "IPYTHONDIR": folder,
            "JUPYTER_RUNTIME_DIR": folder,
            "MPLCONFIGDIR": str(_fonts()),
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "PYTHONHASHSEED": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            paths.OUTPUT_VARIABLE: str(out.absolute()),
        }
        for name in ("COLUMNS", "LINES", "MATPLOTLIBRC", live.SESSION_VARIABLE):
            os.environ.pop(name, None)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ |= before


def _executed(
    notebook: NotebookNode, slug: str, overrides: Mapping[str, Any], *, failed: Path
) -> NotebookNode:
    """Execute in the notebooks' folder, as JupyterLab does, and return what papermill wrote."""
    from papermill import execute_notebook

    with TemporaryDirectory() as folder:
        written = Path(folder) / "executed.ipynb"
        try:
            execute_notebook(
                notebook,
                str(written),
                parameters=dict(overrides),
                kernel_name="python3",
                cwd=str(paths.NOTEBOOKS),
                progress_bar=sys.stderr.isatty(),
                request_save_on_cell_execute=False,
                start_timeout=KERNEL_STARTS_WITHIN,
                extra_arguments=["--log-level=ERROR"],
            )
        except DeadKernelError as error:
            raise NotebookError(f"{slug}: the kernel died, probably out of memory") from error
        except PapermillExecutionError as error:
            write_text(failed, written.read_text(encoding="utf-8"))
            raise NotebookError(_told(error, slug, failed)) from error
        return nbformat.read(written, as_version=4)


def _told(error: PapermillExecutionError, slug: str, kept: Path) -> str:
    first = error.source.strip().partition("\n")[0]
    return (
        f"{slug}: cell {error.exec_count} failed, which begins {first!r}\n"
        f"{error.ename}: {error.evalue}\n"
        f"the notebook up to there is {kept}"
    )


def _lead_to_figures(output: NotebookNode) -> None:
    """Let the links below figures lead on from where the executed copy lies, beside them."""
    text = output.get("data", {}).get("text/markdown")
    if text is not None:
        output.data["text/markdown"] = text.replace("](../figures/", "](../")


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Consecutive pieces of one stream as one: where they break is a matter of timing."""
    joined: list[NotebookNode] = []
    for output in outputs:
        last = joined[-1] if joined else None
        is_stream = last is not None and output.output_type == last.output_type == "stream"
        if last is not None and is_stream and output.name == last.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined
