"""One digest per program over all of our code that it reaches; data/digests has one per article.

An article's stage depends on its own line there, so an edit makes stale what it can change and
nothing else. A notebook's text counts as it stands, since its executed copy shows it.
"""

import ast
import hashlib
from functools import lru_cache
from pathlib import Path

from foredraft import paths
from foredraft.files import write_text
from foredraft.registry import ARTICLES, Article
from foredraft.repro.library import Library, Target
from foredraft.repro.reach import Reach, reach

SECTIONS: Target = ("foredraft.repro.params", "SECTIONS")
"""The table that gives each article the class of its parameters."""


RUN: Target = ("foredraft.repro.notebooks", "run")
"""What executes a notebook, and decides on its surroundings."""

ARTICLE: Target = ("foredraft.registry", "Article")
"""What the list of articles holds, which is not followed itself."""

PAGE: tuple[Target, ...] = (
    ("foredraft.repro.claims", "publish"),
    ("foredraft.repro.readme", "write"),
)
"""What writes the page of results, whose stage has a line of its own."""


def write() -> list[Path]:
    """Bring data/digests up to date and return the files that changed."""
    lines = {paths.digest_line(each.slug): f"{of_article(each)}\n" for each in ARTICLES}
    lines[paths.DIGESTS / "results.txt"] = f"{_reached((), PAGE, _library(_state())).digest}\n"
    changed = [path for path, line in lines.items() if not _holds(path, line)]
    for path in changed:
        write_text(path, lines[path])
    for path in set(paths.DIGESTS.glob("*.txt")) - set(lines):
        path.unlink()
    return changed


def of(program: Path) -> str:
    """The digest of a Python file and of all of ours that it reaches."""
    found = next((each for each in ARTICLES if paths.notebook(each.slug) == program), None)
    return of_article(found) if found else _reached((program,), (), _library(_state())).digest


def of_article(article: Article) -> str:
    """The digest of an article: its notebook's text, what that reaches, and its parameters."""
    text = paths.notebook(article.slug).read_bytes()
    return hashlib.sha256(text + reached(article).digest.encode()).hexdigest()[:16]


def reached(article: Article) -> Reach:
    """What an article's notebook reaches, with the class of its parameters and what runs it."""
    library = _library(_state())
    targets = (_section(library, article.slug), RUN, ARTICLE)
    return _reached((paths.notebook(article.slug),), targets, library)


@lru_cache(maxsize=64)
def _reached(roots: tuple[Path, ...], targets: tuple[Target, ...], library: Library) -> Reach:
    return reach(*roots, targets=targets, library=library)


def _section(library: Library, slug: str) -> Target:
    """Find the class of an article's parameters; ValueError if SECTIONS has none for it."""
    home = library.home(SECTIONS[0])
    assert home is not None, "the parameters are a module"
    read = library.source(home)
    for binding in read.bindings[SECTIONS[1]]:
        assert binding.statement is not None, "a table that is defined there"
        for node in ast.walk(read.statements[binding.statement]):
            if isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == slug:
                        return SECTIONS[0], ast.unparse(value)
    raise ValueError(f"SECTIONS of {home.name} has no class for {slug!r}: add one like the others")


def _state() -> tuple[tuple[Path, int, int], ...]:
    """All our files with size and time of change: another state needs another reading."""
    folders = [*paths.PACKAGES.values(), paths.NOTEBOOKS]
    files = sorted(path for folder in folders for path in folder.rglob("*.py"))
    states = ((path, path.stat()) for path in files)
    return tuple((path, state.st_size, state.st_mtime_ns) for path, state in states)


@lru_cache(maxsize=1)
def _library(_: tuple[tuple[Path, int, int], ...]) -> Library:
    return Library()


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()
