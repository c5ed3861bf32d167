"""Which definitions a program reaches, followed by name through our modules, without running it.

A definition is a top-level statement of a module: a function, a class or an assignment. A function
reaches the names that it uses, a class all that its methods use. Statements of a module that are
none of these (calls, loops, functions under a decorator that may register them) count as soon as
the module is imported. Where names do not tell, as with `getattr(module, ...)` or a module handed
on as a value, all of the module counts.

The digest of what is reached holds neither comments nor docstrings, unless the program shows its
source (`inspect.getsource`), nor the names of our modules: to move or rename one that a notebook
does not name itself changes no digest. An article's results depend on it (`digests`).

To make an object in a default or a class's body is taken to do nothing else: a constructor there
that registers what it makes would not be seen.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from foredraft.repro.library import REGISTRIES, WHOLE, Key, Library, Normal, Target


@dataclass(frozen=True, slots=True)
class Reach:
    """What a program reaches: statements by file and number, imported files, and their digest."""

    statements: frozenset[Key]
    modules: frozenset[Path]
    digest: str
    library: "Library"

    def covers(self, path: Path, line: int) -> bool:
        """Check whether the definition at a line of a file is among those that are reached."""
        found = self.library.source(path).statement_at(line)
        return found is None or (path, found) in self.statements


def reach(*roots: Path, targets: Iterable[Target] = (), library: Library | None = None) -> Reach:
    """Follow programs, all of whose statements run, and further definitions by name."""
    walk = _Walk(library or Library())
    for root in roots:
        walk.load(root)
        walk.waiting += [(root, n) for n in range(len(walk.library.source(root).statements))]
    for target in targets:
        walk.take(target)
    walk.finish()
    return Reach(frozenset(walk.found), frozenset(walk.loaded), walk.digest(), walk.library)


@dataclass
class _Walk:
    """The state of one walk: what is found, and what is still to be read."""

    library: Library
    loaded: set[Path] = field(default_factory=set)
    whole: set[Path] = field(default_factory=set)
    found: dict[Key, Normal] = field(default_factory=dict)
    waiting: list[Key] = field(default_factory=list)

    def load(self, path: Path) -> None:
        """Count what importing a module runs, and the modules that it imports in turn."""
        waiting = [path]
        while waiting:
            path = waiting.pop()
            if path not in self.loaded:
                self.loaded.add(path)
                read = self.library.source(path)
                self.waiting += [(path, number) for number in read.at_import]
                waiting += [home for name in read.imports if (home := self.library.home(name))]
                for name in read.stars:
                    self.take((name, WHOLE))

    def take(self, target: Target) -> None:
        """Count a definition, or all of a module."""
        home = self.library.home(target[0])
        if home is not None and target not in REGISTRIES:
            self.load(home)
            self.waiting += self.library.defined(target)
            if target[1] == WHOLE and home not in self.whole:
                self.whole.add(home)
                for each in self.library.reexported(home):
                    self.take(each)

    def finish(self) -> None:
        while self.waiting:
            key = self.waiting.pop()
            if key in self.found or key in self.library.registries:
                continue
            normal = self.found[key] = self.library.normal(key)
            for home in filter(None, map(self.library.home, normal.imported)):
                self.load(home)
            for target in normal.targets:
                self.take(target)

    def digest(self) -> str:
        """Digest all definitions, each with those that it refers to, whatever their modules."""
        marks = {key: _hash(normal.text) for key, normal in self.found.items()}
        referred = {
            key: [(name, self.library.defined((module, name))) for module, name in normal.targets]
            for key, normal in self.found.items()
        }
        n_kinds = 0
        while n_kinds < (n_kinds := len(set(marks.values()))):
            marks = {
                key: _hash(
                    marks[key],
                    *(
                        _hash(name, *(marks[each] for each in keys if each in marks))
                        for name, keys in referred[key]
                    ),
                )
                for key in self.found
            }
        in_order = [
            _hash(*(marks[path, number] for number in numbers if (path, number) in marks))
            for path in self.loaded
            if len(numbers := self.library.source(path).at_import) > 1
        ]
        shown = [self._as_written(key) for key in self.found] if self._shows_source() else []
        return _hash(*sorted(marks.values()), *sorted(in_order), *sorted(shown))[:16]

    def _shows_source(self) -> bool:
        return any("getsource" in normal.text for normal in self.found.values())

    def _as_written(self, key: Key) -> str:
        """A statement with comments and docstrings, for a program that shows its source."""
        read = self.library.source(key[0])
        statement = read.statements[key[1]]
        return "\n".join(read.lines[statement.lineno - 1 : statement.end_lineno])


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
