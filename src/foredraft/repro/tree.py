"""Write docs/tree.md: every module with the first line of its docstring, and what else there is."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from foredraft import paths
from foredraft.files import write_text
from foredraft.repro import git

NOTES: Mapping[str, str] = {
    "CITATION.cff": "how to cite this repository",
    "LICENSE": "Apache-2.0",
    "LOG.md": "dated findings, failures included",
    "Makefile": "every command of development; `make` lists them",
    "README.md": "the front page",
    "RESULTS.md": "every claim with its value, written by the pipeline",
    "data": "models, prompts, skip plans, recorded times, results",
    "docs": "the pages behind README.md",
    "dvc.lock": "what each stage was made from and what it made, by digest",
    "dvc.yaml": "the pipeline: a stage per article, one for the code, one for the results",
    "environment.yml": "the list of direct dependencies, with exact pins",
    "figures": "written by the pipeline, a folder per article",
    "findings": "scripts that show unexpected behaviour of other libraries, run by hand",
    "jupytext.toml": "how notebooks and scripts are paired",
    "kernels": "",
    "notebooks": "NN_<article>.py, which is the source, and its .ipynb twin without outputs",
    "params.yaml": "every number that a reader may change, a section per article",
    "pyproject.toml": "packages, the command, ruff, pyright, pytest",
    "requirements.lock": "the full resolution of the dependencies",
    "site": "how `make site` builds the web pages",
    "src": "",
    "tests": "one file per module, and the contracts of the whole",
}
"""What is at the top. A folder of modules needs no words: its own docstring is taken."""

INSIDE: Mapping[str, Mapping[str, str]] = {
    "data": {
        "corpus.json": "which packages, files and bytes the pocket models were trained on",
        "digests": "one line per article: the digest of the code that its notebook reaches",
        "models": "the pocket models, each with its card",
        "plans": "skip plans, published or found by `foredraft search`",
        "prompts": "prompts as JSON lines",
        "recorded": "times measured by `foredraft record`, with machine and date",
        "results": "what each notebook computed: table, values, figures' values, stamp",
    },
    "figures": {"executed": "the executed notebooks", "results.tex": "every value as a TeX macro"},
}
"""What is in folders that hold no modules."""

WIDTH = 28
"""Columns of the names."""

HEAD = """# Files and folders

This page is generated: `foredraft sync` (or `make sync`) writes it from the first line of each
module's docstring. Modules of `kernels/` are imported as `foredraft.kernels`.

"""


def sync() -> list[Path]:
    """Write the page if it has changed, and return the paths that were written."""
    text = page()
    if paths.TREE.is_file() and paths.TREE.read_text(encoding="utf-8") == text:
        return []
    write_text(paths.TREE, text)
    return [paths.TREE]


def page() -> str:
    """Give the text of the page."""
    lines, python = ["foredraft/"], modules()
    for name in sorted(top(), key=str.lower):
        lines += _entry(paths.ROOT / name, 1, NOTES[name])
        lines += _listed(name)
        lines += _modules(name, [each for each in python if each.startswith(f"{name}/")], 2)
    return f"{HEAD}```text\n" + "\n".join(lines) + "\n```\n"


def top() -> list[str]:
    """Name the files and folders at the top that have a note and exist."""
    return [name for name in NOTES if (paths.ROOT / name).exists()]


def modules() -> list[str]:
    """Name every Python module of the package and the site, relative to the repository."""
    folders = [*paths.PACKAGES.values(), paths.ROOT / "site"]
    if git.is_repository():
        words = ("ls-files", "--cached", "--others", "--exclude-standard", "--")
        names = git.output(*words, *map(paths.label, folders)).splitlines()
    else:
        names = [paths.label(path) for folder in folders for path in folder.rglob("*.py")]
    python = {name for name in names if name.endswith(".py") and (paths.ROOT / name).is_file()}
    return sorted(python)


def _listed(name: str) -> Iterator[str]:
    """Give the lines of what `INSIDE` names in a folder at the top, as far as it exists."""
    for inner, note in INSIDE.get(name, {}).items():
        if (paths.ROOT / name / inner).exists():
            yield from _entry(paths.ROOT / name / inner, 2, note)


def _modules(folder: str, names: Iterable[str], level: int) -> Iterator[str]:
    """Give a line per module directly in a folder, then each folder with what it holds."""
    below: dict[str, list[str]] = {}
    for name in names:
        first, _, rest = name.removeprefix(f"{folder}/").partition("/")
        if rest:
            below.setdefault(first, []).append(name)
        elif first != "__init__.py":
            yield from _entry(paths.ROOT / name, level, "")
    for first, inner in below.items():
        yield from _entry(paths.ROOT / folder / first, level, "")
        yield from _modules(f"{folder}/{first}", inner, level + 1)


def _entry(path: Path, level: int, note: str) -> Iterator[str]:
    """Give the line of a file or folder, with a note or what its docstring says."""
    name = "  " * level + path.name + ("/" if path.is_dir() else "")
    said = note or _first_line(path / "__init__.py" if path.is_dir() else path)
    yield f"{name:<{WIDTH}}{said}".rstrip() if len(name) < WIDTH else f"{name}  {said}".rstrip()


def _first_line(path: Path) -> str:
    """Give the first line of a module's docstring; nothing if there is none."""
    if not path.is_file():
        return ""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0].removesuffix(".")
