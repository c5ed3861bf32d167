"""Definitions by name: what a statement refers to, through imports and re-exports."""

import ast
import copy
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from foredraft import paths
from foredraft.imports import homes
from foredraft.repro.syntax import (
    Binding,
    Scope,
    Source,
    argument_names,
    is_docstring,
    modules_of,
    scope_of,
    stored_names,
    syntax_text,
)

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


INSTRUMENTS = frozenset(
    (
        "foredraft.imports",
        "foredraft.repro.digests",
        "foredraft.repro.library",
        "foredraft.repro.reach",
        "foredraft.repro.syntax",
    )
)
"""Modules that only say what code there is: what they find stands in the digests already."""


PACKAGE = paths.PACKAGES["foredraft"] / "__init__.py"
"""Where the public names stand."""


Key = tuple[Path, int]
"""A statement: its file and its number there."""


Target = tuple[str, str]
"""The full name of a module of ours, and that of a definition in it or WHOLE."""


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
        text = "" if statement is None else syntax_text(statement)
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
        with_arguments: Scope = dict.fromkeys(argument_names(node.args))
        self.scopes.append(("function", with_arguments))
        node.body = self.visit(node.body)
        self.scopes.pop()
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        for name in ("decorator_list", "bases", "keywords"):
            setattr(node, name, [self.visit(each) for each in getattr(node, name)])
        self.scopes.append(("class", scope_of(node.body)))
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
        bound = scope_of(node.body) | dict.fromkeys(argument_names(node.args))
        self.scopes.append(("function", bound))
        node.body = self._body(node.body)
        self.scopes.pop()
        return node

    def _defaults(self, arguments: ast.arguments) -> None:
        arguments.defaults = [self.visit(each) for each in arguments.defaults]
        arguments.kw_defaults = [each and self.visit(each) for each in arguments.kw_defaults]

    def _body(self, body: list[ast.stmt]) -> list[ast.stmt]:
        rest = body[1:] if body and is_docstring(body[0]) else body
        return [kept for each in rest if (kept := self.visit(each)) is not None]

    def _comprehension(self, node: ast.AST) -> ast.AST:
        """The first iterable is read outside, everything else inside the comprehension's scope."""
        assert isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp)
        node.generators[0].iter = self.visit(node.generators[0].iter)
        first, node.generators[0].iter = node.generators[0].iter, ast.Constant(None)
        inner = dict.fromkeys(
            name for each in node.generators for name in stored_names(each.target)
        )
        self.scopes.append(("function", inner))
        self.generic_visit(node)
        self.scopes.pop()
        node.generators[0].iter = first
        return node

    def _imports(self, node: ast.Import | ast.ImportFrom) -> ast.AST | None:
        """An import of ours leaves no text: what is used of it stands where it is used."""
        ours = list(modules_of(node))
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
