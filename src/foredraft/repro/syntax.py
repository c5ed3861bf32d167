"""Our Python files, parsed: their statements, the names that these bind, what they import."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from foredraft import paths
from foredraft.imports import homes

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


Scope = dict[str, "list[Binding] | None"]
"""The names that a function or class binds: None for a variable, else what it imports."""


@dataclass(frozen=True, slots=True)
class Binding:
    """What a name stands for: a statement of its own module, or something imported."""

    name: str
    statement: int | None = None
    module: str = ""
    attribute: str | None = None


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
        return body[1:] if body and is_docstring(body[0]) else body

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
        return [name for node in nodes for name in modules_of(node)]

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


def modules_of(node: ast.AST) -> Iterator[str]:
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
    return is_docstring(statement)


def _may_act(statement: ast.stmt) -> bool:
    """Check whether an assignment calls a function that may do more than return a value."""
    calls = (node for node in _executed_at_import(statement) if isinstance(node, ast.Call))
    names = (ast.unparse(node.func).rpartition(".")[2] for node in calls)
    return any(name not in PURE_FUNCTIONS for name in names)


def _decorator(node: ast.expr) -> str:
    called = node.func if isinstance(node, ast.Call) else node
    return ast.unparse(called).rpartition(".")[2]


def is_docstring(statement: ast.stmt) -> bool:
    """Check for a string that stands for itself."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _is_for_type_checkers(node: ast.If) -> bool:
    return ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING"


def _is_only_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and _is_for_type_checkers(node) and not node.orelse


def argument_names(arguments: ast.arguments) -> list[str]:
    """Name all arguments of a function."""
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [each for each in (arguments.vararg, arguments.kwarg) if each]
    return [each.arg for each in every]


def stored_names(node: ast.AST) -> list[str]:
    """Name all variables that are assigned within a node."""
    return [
        each.id
        for each in ast.walk(node)
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
    ]


def scope_of(body: list[ast.stmt]) -> Scope:
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


def syntax_text(node: object) -> str:
    """A syntax tree as text that is the same in every version of Python."""
    if isinstance(node, list):
        return "[" + ",".join(map(syntax_text, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    given = (
        (name, value)
        for name, value in ast.iter_fields(node)
        if name not in ("kind", "type_comment", "ctx") and value is not None and value != []
    )
    inner = ",".join(f"{name}={syntax_text(value)}" for name, value in given)
    return f"{type(node).__name__}({inner})"
