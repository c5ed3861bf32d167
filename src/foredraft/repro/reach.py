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

import ast
import copy
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from foredraft import paths
from foredraft.imports import homes

WHOLE = "*"
"""Stands for all definitions of a module."""

REGISTRIES = frozenset(
    {
        ("foredraft.registry", "ARTICLES"),
        ("foredraft.repro.params", "SECTIONS"),
        ("foredraft", "_HOMES"),
    }
)
"""Tables that are not followed: a new article or public name changes no other's results."""

INSTRUMENTS = frozenset({"foredraft.repro.digests", "foredraft.imports", "foredraft.repro.reach"})
"""Modules that only say what code there is: what they find stands in the digests already."""

PURE_DECORATORS = frozenset(
    (
        *("cache", "cached_property", "classmethod", "contextmanager", "dataclass", "drawing"),
        *("device_function", "final", "inference_mode", "jit", "lru_cache", "no_grad"),
        *("no_type_check", "overload", "property", "runtime_checkable", "staticmethod", "wraps"),
    )
)
"""Decorators that register nothing: what they decorate counts only if it is used."""

PURE_FUNCTIONS = frozenset(
    (
        *("compile", "constexpr", "from_list", "frozenset", "get_args", "isatty", "maketrans"),
        *("range", "replace", "resolve", "round", "sorted", "split", "tuple", "values"),
        *(
            "ConfigDict",
            "Field",
            "FuncFormatter",
            "MappingProxyType",
            "ParamSpec",
            "Path",
            "TypeVar",
        ),
    )
)
"""What an assignment may call without counting at import; a class of ours is none of these."""

PACKAGE = paths.PACKAGES["foredraft"] / "__init__.py"
"""Where the public names stand."""

Key = tuple[Path, int]
"""A statement: its file and its number there."""

Target = tuple[str, str]
"""The full name of a module of ours, and that of a definition in it or WHOLE."""

Scope = dict[str, "list[Binding] | None"]
"""The names that a function or class binds: None for a variable, else what it imports."""


@dataclass(frozen=True, slots=True)
class Binding:
    """What a name stands for: a statement of its own module, or something imported."""

    name: str
    statement: int | None = None
    module: str = ""
    attribute: str | None = None


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


@dataclass(frozen=True)
class Source:
    """A Python file of ours, parsed: its statements and what its top-level names stand for."""

    path: Path
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return ast.parse(self.text)

    @cached_property
    def lines(self) -> list[str]:
        """Its lines, as they are written."""
        return self.text.splitlines()

    @cached_property
    def statements(self) -> list[ast.stmt]:
        """The top-level statements that run, without docstring and imports for a type checker."""
        body = [each for each in self.tree.body if not _is_only_for_type_checkers(each)]
        return body[1:] if body and _is_docstring(body[0]) else body

    @cached_property
    def bindings(self) -> Mapping[str, list[Binding]]:
        """What each top-level name stands for: more than one thing where it is bound again."""
        found: dict[str, list[Binding]] = {}
        for number, statement in enumerate(self.statements):
            for name, binding in _bound(statement, number):
                found.setdefault(name, []).append(binding)
        return found

    @cached_property
    def at_import(self) -> list[int]:
        """The statements whose effect does not hang on a name: they count once it is imported."""
        return [n for n, each in enumerate(self.statements) if not _only_binds(each)]

    @cached_property
    def imports(self) -> list[str]:
        """The modules of ours that importing this one imports."""
        nodes = [node for each in self.statements for node in _executed_at_import(each)]
        return [name for node in nodes for name in _modules_of(node)]

    @cached_property
    def stars(self) -> list[str]:
        """The modules of ours all of whose names this one takes."""
        nodes = [node for each in self.statements for node in _executed_at_import(each)]
        stars = [
            node for node in nodes if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
        ]
        return [node.module for node in stars if node.module and paths.module(node.module)]

    def statement_at(self, line: int) -> int | None:
        """The number of the function or class at a line, decorators included; None: neither."""
        for number, each in enumerate(self.statements):
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                first = min([each.lineno, *(d.lineno for d in each.decorator_list)])
                if first <= line <= (each.end_lineno or first):
                    return number
        return None


@dataclass(frozen=True, slots=True)
class Normal:
    """A statement as text without docstrings, what it refers to, and the modules it imports."""

    text: str
    targets: tuple[Target, ...]
    imported: tuple[str, ...]


class Library:
    """Our files as they are now, each read and parsed once, for walks that share them."""

    def __init__(self) -> None:
        self._sources: dict[Path, Source] = {}
        self._homes: dict[str, Path | None] = {}
        self._normal: dict[Key, Normal] = {}

    def source(self, path: Path) -> Source:
        """Parse a file of ours."""
        if path not in self._sources:
            self._sources[path] = Source(path, path.read_text(encoding="utf-8"))
        return self._sources[path]

    def home(self, module: str) -> Path | None:
        """The file of a module of ours; None if there is no such module to follow."""
        if module not in self._homes:
            self._homes[module] = None if module in INSTRUMENTS else paths.module(module)
        return self._homes[module]

    def normal(self, key: Key) -> Normal:
        """A statement without what changes nothing, and what it refers to."""
        if key not in self._normal:
            self._normal[key] = _Resolver(self, self.source(key[0])).normal(key[1])
        return self._normal[key]

    def defined(self, target: Target) -> list[Key]:
        """The statements that bind a name of a module, or all of them."""
        home = self.home(target[0])
        if home is None or target in REGISTRIES:
            return []
        read = self.source(home)
        if target[1] == WHOLE:
            return [(home, number) for number in range(len(read.statements))]
        bound = read.bindings.get(target[1], ())
        return [(home, each.statement) for each in bound if each.statement is not None]

    def reexported(self, home: Path) -> list[Target]:
        """What a module that counts whole offers of others: the definitions that it imports."""
        bound = (each for every in self.source(home).bindings.values() for each in every)
        found = [self.locate(each.module, (each.attribute,)) for each in bound if each.attribute]
        if home == PACKAGE:
            found += [self.locate(module, (name,)) for name, module in homes().items()]
        return [target for target, _ in found if target is not None and target[1] != WHOLE]

    @cached_property
    def registries(self) -> frozenset[Key]:
        """The statements that bind the REGISTRIES."""
        found = ((self.home(module), name) for module, name in REGISTRIES)
        return frozenset(
            (home, each.statement)
            for home, name in found
            if home is not None
            for each in self.source(home).bindings.get(name, ())
            if each.statement is not None
        )

    def locate(self, module: str, names: tuple[str, ...]) -> tuple[Target | None, tuple[str, ...]]:
        """Find the definition that `module.name...` is, through submodules and re-exports.

        Returns it and the names that are left, its own attributes; None for what is not ours.
        """
        home = self.home(module)
        if home is None:
            return None, names
        if not names:
            return (module, WHOLE), ()
        first, rest = names[0], names[1:]
        if f"{module}.{first}" in INSTRUMENTS:
            return None, names
        if self.home(f"{module}.{first}"):
            return self.locate(f"{module}.{first}", rest)
        if home == PACKAGE and first in homes():  # by its __getattr__, which is always counted
            return self.locate(homes()[first], names)
        bound = self.source(home).bindings.get(first, [])
        if any(each.statement is not None for each in bound):
            return (module, first), rest
        if len(bound) == 1:
            inner = (bound[0].attribute,) if bound[0].attribute else ()
            return self.locate(bound[0].module, (*inner, *rest))
        return (module, WHOLE), names


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


class _Resolver(ast.NodeTransformer):
    """Replace names by what they stand for, and note those that are definitions of ours."""

    def __init__(self, library: Library, read: Source) -> None:
        self.library, self.read = library, read
        self.targets: list[Target] = []
        self.imported: list[str] = []
        self.scopes: list[tuple[str, Scope]] = []

    def normal(self, number: int) -> Normal:
        """Resolve one statement of the file."""
        statement = self.visit(copy.deepcopy(self.read.statements[number]))
        text = "" if statement is None else _text(statement)
        return Normal(text, tuple(self.targets), tuple(self.imported))

    def visit_Name(self, node: ast.Name) -> ast.AST:
        found = self._bindings(node.id) if isinstance(node.ctx, ast.Load) else None
        return self._referring(found, ()) if found else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        base, names = _chain(node)
        found = self._bindings(base.id) if isinstance(base, ast.Name) else None
        if found and all(each.module for each in found):
            return self._referring(found, names)
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """A module or name of ours in a string, as `python -m` takes it, counts as its use."""
        text = node.value if isinstance(node.value, str) else ""
        for named in re.findall(r"foredraft(?:[.:]\w+)+", text):
            parts = re.split("[.:]", named)
            known = [n for n in range(1, len(parts) + 1) if self.library.home(".".join(parts[:n]))]
            module, rest = ".".join(parts[: max(known, default=1)]), parts[max(known, default=1) :]
            target, _ = self.library.locate(module, tuple(rest))
            self.targets += [target] if target else []
        return node

    def visit_Import(self, node: ast.Import) -> ast.AST | None:
        return self._imports(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return self._imports(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._function(node)

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        self._defaults(node.args)
        with_arguments: Scope = dict.fromkeys(_arguments(node.args))
        self.scopes.append(("function", with_arguments))
        node.body = self.visit(node.body)
        self.scopes.pop()
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        for name in ("decorator_list", "bases", "keywords"):
            setattr(node, name, [self.visit(each) for each in getattr(node, name)])
        self.scopes.append(("class", _scope(node.body)))
        node.body = self._body(node.body)
        self.scopes.pop()
        return node

    def visit_ListComp(self, node: ast.ListComp) -> ast.AST:
        return self._comprehension(node)

    def visit_SetComp(self, node: ast.SetComp) -> ast.AST:
        return self._comprehension(node)

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> ast.AST:
        return self._comprehension(node)

    def visit_DictComp(self, node: ast.DictComp) -> ast.AST:
        return self._comprehension(node)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        """Annotations stay as they stand: they run nothing that a caller does not reach."""
        node.decorator_list = [self.visit(each) for each in node.decorator_list]
        self._defaults(node.args)
        bound = _scope(node.body) | dict.fromkeys(_arguments(node.args))
        self.scopes.append(("function", bound))
        node.body = self._body(node.body)
        self.scopes.pop()
        return node

    def _defaults(self, arguments: ast.arguments) -> None:
        arguments.defaults = [self.visit(each) for each in arguments.defaults]
        arguments.kw_defaults = [each and self.visit(each) for each in arguments.kw_defaults]

    def _body(self, body: list[ast.stmt]) -> list[ast.stmt]:
        rest = body[1:] if body and _is_docstring(body[0]) else body
        return [kept for each in rest if (kept := self.visit(each)) is not None]

    def _comprehension(self, node: ast.AST) -> ast.AST:
        """The first iterable is read outside, everything else inside the comprehension's scope."""
        assert isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp)
        node.generators[0].iter = self.visit(node.generators[0].iter)
        first, node.generators[0].iter = node.generators[0].iter, ast.Constant(None)
        inner = dict.fromkeys(name for each in node.generators for name in _stored(each.target))
        self.scopes.append(("function", inner))
        self.generic_visit(node)
        self.scopes.pop()
        node.generators[0].iter = first
        return node

    def _imports(self, node: ast.Import | ast.ImportFrom) -> ast.AST | None:
        """An import of ours leaves no text: what is used of it stands where it is used."""
        ours = list(_modules_of(node))
        self.imported += ours
        if any(alias.name == "*" for alias in node.names):
            self.targets += [(name, WHOLE) for name in ours]
        return None if ours else node

    def _bindings(self, name: str) -> list[Binding] | None:
        innermost = len(self.scopes) - 1
        outside = list(self.read.bindings.get(name, ()))
        for depth, (kind, names) in reversed(list(enumerate(self.scopes))):
            if name in names and kind == "function":
                return names[name]
            if name in names and depth == innermost:
                return [*(names[name] or []), *outside]  # a class may read before it binds
        return outside

    def _referring(self, found: list[Binding], names: tuple[str, ...]) -> ast.AST:
        """Note all that a name with its attributes may stand for, and name that in the text."""
        texts = (self._named(each, names) for each in found)
        return ast.Name(" | ".join(dict.fromkeys(texts)), ast.Load())

    def _named(self, binding: Binding, names: tuple[str, ...]) -> str:
        if binding.statement is not None:
            self.targets.append((_module_name(self.read.path), binding.name))
            return f"<{binding.name}>"
        full = (binding.attribute,) if binding.attribute else ()
        target, rest = self.library.locate(binding.module, (*full, *names))
        if target is None:
            return ".".join([binding.module, *full, *names])
        self.targets.append(target)
        return ".".join([f"<{target[1]}>", *rest])


def _module_name(path: Path) -> str:
    """The full name of a file of ours; for another program, a notebook say, its path."""
    for package, folder in paths.PACKAGES.items():
        if path.is_relative_to(folder):
            parts = path.relative_to(folder).with_suffix("").parts
            return ".".join([package, *(part for part in parts if part != "__init__")])
    return str(path)


def _chain(node: ast.expr) -> tuple[ast.expr, tuple[str, ...]]:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return node, tuple(reversed(names))


def _bound(statement: ast.stmt, number: int) -> Iterator[tuple[str, Binding]]:
    """The names that a top-level statement binds."""
    for node in _executed_at_import(statement):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from _imported_names(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, Binding(node.name, number)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, Binding(node.id, number)


def _imported_names(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, Binding]]:
    if isinstance(node, ast.ImportFrom) and node.level:
        raise ValueError(
            f"`{ast.unparse(node)}` is relative, and what it reaches is not followed: name the "
            "module in full"
        )
    for alias in node.names:
        name = alias.asname or alias.name
        if isinstance(node, ast.ImportFrom):
            yield name, Binding(name, None, node.module or "", alias.name)
        elif alias.asname:
            yield name, Binding(name, None, alias.name)
        else:
            top = name.partition(".")[0]
            yield top, Binding(top, None, top)


def _modules_of(node: ast.AST) -> Iterator[str]:
    """The modules of ours that an import statement imports, the packages around them included."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
        names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        if node.module == "foredraft":
            names += [homes()[alias.name] for alias in node.names if alias.name in homes()]
    for name in names:
        parts = name.split(".")
        around = (".".join(parts[:n]) for n in range(1, len(parts) + 1))
        yield from (each for each in around if paths.module(each))


def _executed_at_import(statement: ast.stmt) -> Iterator[ast.AST]:
    """A statement and what in it runs when it does: not the bodies of functions."""
    waiting: list[ast.AST] = [statement]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        skipped = node.body if isinstance(node, ast.If) and _is_for_type_checkers(node) else []
        waiting += (each for each in ast.iter_child_nodes(node) if each not in skipped)


def _only_binds(statement: ast.stmt) -> bool:
    """Check for a statement that does nothing but give something a name."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return True
    if isinstance(statement, ast.FunctionDef) and statement.name == "__getattr__":
        return False
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return all(_decorator(each) in PURE_DECORATORS for each in statement.decorator_list)
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return all(isinstance(each, ast.Name) for each in targets) and not _may_act(statement)
    return _is_docstring(statement)


def _may_act(statement: ast.stmt) -> bool:
    """Check whether an assignment calls a function that may do more than return a value."""
    calls = (node for node in _executed_at_import(statement) if isinstance(node, ast.Call))
    names = (ast.unparse(node.func).rpartition(".")[2] for node in calls)
    return any(name not in PURE_FUNCTIONS for name in names)


def _decorator(node: ast.expr) -> str:
    called = node.func if isinstance(node, ast.Call) else node
    return ast.unparse(called).rpartition(".")[2]


def _is_docstring(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _is_for_type_checkers(node: ast.If) -> bool:
    return ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING"


def _is_only_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and _is_for_type_checkers(node) and not node.orelse


def _arguments(arguments: ast.arguments) -> list[str]:
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [each for each in (arguments.vararg, arguments.kwarg) if each]
    return [each.arg for each in every]


def _stored(node: ast.AST) -> list[str]:
    return [
        each.id
        for each in ast.walk(node)
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
    ]


def _scope(body: list[ast.stmt]) -> Scope:
    """The names that the body of a function or class binds, with what it imports."""
    names: Scope = {}
    outside: set[str] = set()
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names[node.name] = None
            continue
        if isinstance(node, ast.Global | ast.Nonlocal):
            outside |= set(node.names)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for name, binding in _imported_names(node):
                names[name] = [*(names.get(name) or []), binding]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.setdefault(node.id, None)
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            names.setdefault(node.name, None)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            names.setdefault(node.rest, None)
        waiting += _in_the_same_scope(node)
    return {name: found for name, found in names.items() if name not in outside}


def _in_the_same_scope(node: ast.AST) -> list[ast.AST]:
    if isinstance(node, ast.Lambda):
        return []
    if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
        return [each.target for each in ast.walk(node) if isinstance(each, ast.NamedExpr)]
    return list(ast.iter_child_nodes(node))


def _text(node: object) -> str:
    """A syntax tree as text that is the same in every version of Python."""
    if isinstance(node, list):
        return "[" + ",".join(map(_text, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    given = (
        (name, value)
        for name, value in ast.iter_fields(node)
        if name not in ("kind", "type_comment", "ctx") and value is not None and value != []
    )
    inner = ",".join(f"{name}={_text(value)}" for name, value in given)
    return f"{type(node).__name__}({inner})"


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
