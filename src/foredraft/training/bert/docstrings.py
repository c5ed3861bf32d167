"""The docstrings of the pinned dependencies: what the pocket BERT reads and is asked about.

They are taken from the same files as the decoders' corpus, so everyone has the identical text. One
package is held out whole, and one file in a hundred of the others; a held-out docstring that also
stands in the training text is left out.
"""

import ast
import gc
import hashlib
import json
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from foredraft import paths
from foredraft.files import write_text
from foredraft.training.corpus import (
    HELD_OUT_PACKAGE,
    TRAIN_PACKAGES,
    Document,
    documents,
    manifest,
)

KINDS = {
    ast.Module: "module",
    ast.ClassDef: "class",
    ast.FunctionDef: "function",
    ast.AsyncFunctionDef: "function",
}
COMPOUND = (
    ast.If,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.With,
    ast.AsyncWith,
    ast.Try,
    ast.TryStar,
)
"""Statements in which others stand."""
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n\s*\n")


@dataclass(frozen=True, slots=True)
class Docstring:
    """A docstring and whose it is: `name` is dotted, from the package down to the function."""

    package: str
    name: str
    kind: str
    parameters: tuple[str, ...]
    text: str

    @property
    def summary(self) -> str:
        """Its first paragraph, on one line."""
        return " ".join(self.text.split("\n\n", 1)[0].split())

    @property
    def body(self) -> str:
        """What follows the first paragraph; empty if nothing does."""
        return self.text.partition("\n\n")[2].strip()

    @property
    def sentences(self) -> list[str]:
        """Its sentences in order, each on one line; a paragraph ends one too."""
        parts = (" ".join(part.split()) for part in SENTENCE_END.split(self.text))
        return [part for part in parts if part]


@dataclass(frozen=True, slots=True)
class Docstrings:
    """The three splits; no text stands in two of them, or twice in one."""

    train: tuple[Docstring, ...]
    held_out_files: tuple[Docstring, ...]
    held_out_package: tuple[Docstring, ...]


def docstrings(document: Document) -> Iterator[Docstring]:
    """Give a file's docstrings as they stand in it; none if it is not Python of this version."""
    with warnings.catch_warnings(), _uncollected():
        warnings.simplefilter("ignore")  # such as of an invalid escape
        try:
            tree = ast.parse(document.text)
        except SyntaxError:
            return
    yield from _within(tree, document.package, _module(document.path))


def load_docstrings() -> Docstrings:
    """Read the splits of the installed packages, or what this code read before from that text."""
    source = paths.module(__name__)
    assert source is not None
    key = hashlib.sha256(source.read_bytes())
    for row in manifest():
        key.update(row.sha256.encode())
    folder = paths.token_streams(key.hexdigest()[:16])
    files = [folder / f"{name}.jsonl" for name in ("train", "files", "package")]
    if not all(file.exists() for file in files):
        for file, part in zip(files, _splits(), strict=True):
            write_text(file, "".join(json.dumps(asdict(each)) + "\n" for each in part))
    return Docstrings(*map(_read, files))


def words(name: str) -> list[str]:
    """Split an identifier, dotted or not, into lower-case words.

    >>> words("scipy.sparse.csgraph.minimumSpanning_tree2")
    ['scipy', 'sparse', 'csgraph', 'minimum', 'spanning', 'tree', '2']
    """
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


def distinct(found: Iterable[Docstring], seen: set[str]) -> Iterator[Docstring]:
    """Leave out what was seen, blanks and case aside, and remember what is given."""
    for docstring in found:
        text = " ".join(docstring.text.lower().split())
        if text and text not in seen:
            seen.add(text)
            yield docstring


def _splits() -> tuple[list[Docstring], list[Docstring], list[Docstring]]:
    """Read all packages; the first of several equal docstrings stays, training's before others."""
    known = [document for package in TRAIN_PACKAGES for document in documents(package)]
    seen: set[str] = set()
    train, files, package = (
        list(distinct((found for doc in docs for found in docstrings(doc)), seen))
        for docs in (
            [doc for doc in known if not doc.is_held_out],
            [doc for doc in known if doc.is_held_out],
            documents(HELD_OUT_PACKAGE),
        )
    )
    return train, files, package


def _within(node: ast.AST, package: str, name: str) -> Iterator[Docstring]:
    """Give the docstring of a module, class or function, and those of what is defined in it."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text:
            yield Docstring(package, name, KINDS[type(node)], _parameters(node), text)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _within(child, package, f"{name}.{child.name}")
        elif isinstance(child, COMPOUND):
            yield from _within(child, package, name)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the collector from searching a tree that grows, over and over."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _parameters(node: ast.AST) -> tuple[str, ...]:
    """Name a function's parameters in order, without `self` and `cls`."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return ()
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return tuple(each.arg for each in given if each.arg not in ("self", "cls"))


def _module(path: str) -> str:
    """Turn a file's path inside the installation into the name under which it is imported."""
    return ".".join(Path(path).with_suffix("").parts).removesuffix(".__init__")


def _read(file: Path) -> tuple[Docstring, ...]:
    rows = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    return tuple(Docstring(**{**row, "parameters": tuple(row["parameters"])}) for row in rows)
