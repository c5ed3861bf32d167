"""The reference, read from the sources without importing them: signatures as they are written.

A docstring is Markdown as the rest of the site is; a `name` in backticks leads to what it names.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from foredraft import paths

FOLDER = "reference"
Function = ast.FunctionDef | ast.AsyncFunctionDef
LONGEST_VALUE = 88
"""Characters of a constant's value that are shown; of a longer one, the source."""


@dataclass(frozen=True)
class Module:
    """A module of the package by its dotted name, and the file that holds it."""

    name: str
    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        """What the file says."""
        return ast.parse(self.path.read_text(encoding="utf-8"))

    @property
    def is_package(self) -> bool:
        """Whether other modules lie below it."""
        return self.path.name == "__init__.py"

    @cached_property
    def defined(self) -> set[str]:
        """The names that it gives a meaning to."""
        return {name for name in map(_name, self.tree.body) if name}

    @cached_property
    def known(self) -> dict[str, str]:
        """What a name in an annotation stands for, in full, if the reference has it."""
        every = {module.name: module for module in modules()}
        nodes = (node for node in ast.walk(self.tree) if isinstance(node, ast.ImportFrom))
        ours = ((every[node.module], node) for node in nodes if node.module in every)
        imported = {
            each.asname or each.name: f"{home.name}.{each.name}"
            for home, node in ours
            for each in node.names
            if each.name in home.defined
        }
        return imported | {name: f"{self.name}.{name}" for name in self.defined}

    @property
    def first_line(self) -> str:
        """What it says of itself in one line."""
        return first_line(self.tree)


@cache
def modules() -> tuple[Module, ...]:
    """Every module in the order of names, each package before what lies below it."""
    found: dict[str, Module] = {}
    for package, home in paths.PACKAGES.items():
        for path in home.rglob("*.py"):
            below = path.relative_to(home).with_suffix("").parts
            name = ".".join([package, *below]).removesuffix(".__init__")
            found[name] = Module(name, path)
    return tuple(found[name] for name in sorted(found))


def pages() -> dict[str, str]:
    """A page a module by its name on the site."""
    every = modules()
    return {f"{FOLDER}/{each.name}": page(each, _below(each, every)) for each in every}


def page(module: Module, below: list[Module]) -> str:
    """What a module says of itself and of each public name, and the modules below it."""
    parts = [f"# {module.name}", f"```{{py:module}} {module.name}\n```", prose(module.tree)]
    if module.name == "foredraft":
        parts += [_table(list(public()))]
    if below:
        parts += ["## Modules" if module.name == "foredraft" else ""]
        parts += [_table([(each.name, each.first_line) for each in below])]
        parts += ["\n".join(["```{toctree}", ":hidden:", "", *(m.name for m in below), "```"])]
    parts += _members(module, module.tree.body, "data", "function", 7)
    return "\n\n".join(part for part in parts if part) + "\n"


def homes() -> dict[str, str]:
    """The names that `import foredraft` offers, each with its name in the module it comes from."""
    (package,) = (module for module in modules() if module.name == "foredraft")
    nodes = (node for node in ast.walk(package.tree) if isinstance(node, ast.ImportFrom))
    ours = (node for node in nodes if (node.module or "").startswith("foredraft."))
    names = ((node.module, each.name) for node in ours for each in node.names)
    return {f"foredraft.{name}": f"{home}.{name}" for home, name in names}


def public() -> Iterator[tuple[str, str]]:
    """The same names, each with what it says of itself in one line."""
    every = {module.name: module for module in modules()}
    for name, full in homes().items():
        home, _, own = full.rpartition(".")
        yield name, first_line(next(n for n in every[home].tree.body if _name(n) == own))


def first_line(node: ast.AST) -> str:
    """The first line of a docstring."""
    return prose(node).splitlines()[0]


def prose(node: ast.AST) -> str:
    """A docstring as Markdown: outside of backticks, what would be HTML or a formula is text."""
    assert isinstance(node, ast.Module | ast.ClassDef | Function)
    return _literally(ast.get_docstring(node) or "")


def _literally(text: str) -> str:
    pieces = re.split(r"(`[^`]*`)", text)
    pieces[::2] = [re.sub(r"[<$]", r"\\\g<0>", piece) for piece in pieces[::2]]
    return "".join(pieces)


def _members(
    module: Module, body: list[ast.stmt], value: str, function: str, length: int
) -> Iterator[str]:
    """The public names of a module or a class, each once."""
    seen = set()
    for at, node in enumerate(body):
        name = _name(node)
        if name is None or name.startswith("_") or name in seen or name == "__all__":
            continue
        seen.add(name)
        if isinstance(node, ast.ClassDef):
            inner = "\n\n".join(_members(module, node.body, "attribute", "method", length - 2))
            yield _object(
                "class", name + _of_class(module, node), f"{prose(node)}\n\n{inner}", length
            )
        elif isinstance(node, Function):
            yield _function(module, node, function, length)
        elif (said := _said(body[at + 1 : at + 2])) or value == "data":
            yield _object(value, name, said, length, _value(module, node))


def _function(module: Module, node: Function, kind: str, length: int) -> str:
    marks = {ast.unparse(each).split(".")[-1] for each in node.decorator_list}
    if marks & {"property", "cached_property"}:
        options = [f":type: {_annotation(module, node.returns)}"] if node.returns else []
        return _object("property", node.name, prose(node), length, options)
    options = [f":{mark}:" for mark in ("classmethod", "staticmethod") if mark in marks]
    arguments = _arguments(
        module, node.args, bound=kind == "method" and "staticmethod" not in marks
    )
    returned = f" -> {_annotation(module, node.returns)}" if node.returns else ""
    return _object(kind, f"{node.name}({arguments}){returned}", prose(node), length, options)


def _object(kind: str, signature: str, said: str, length: int, options: Iterable[str] = ()) -> str:
    fence = "~" * length  # not of backticks: a signature may hold some
    return "\n".join([f"{fence}{{py:{kind}}} {signature}", *options, "", said.strip(), fence])


def _of_class(module: Module, node: ast.ClassDef) -> str:
    """How one is made: the arguments of `__init__`, or the fields of a dataclass."""
    made = [n for n in node.body if isinstance(n, Function) and n.name == "__init__"]
    if made:
        return f"({_arguments(module, made[0].args, bound=True)})"
    if not any("dataclass" in ast.unparse(each) for each in node.decorator_list):
        return ""
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
    told = (
        f"{ast.unparse(n.target)}: {_annotation(module, n.annotation)}"
        + (f" = {ast.unparse(n.value)}" if n.value else "")
        for n in fields
        if not ast.unparse(n.target).startswith("_")
    )
    return f"({', '.join(told)})"


def _arguments(module: Module, arguments: ast.arguments, *, bound: bool) -> str:
    """The arguments as they are written; those of a method without the first."""
    written = ast.parse(f"def f({ast.unparse(arguments)}): pass").body[0]
    assert isinstance(written, ast.FunctionDef)
    for each in ast.walk(written.args):
        if isinstance(each, ast.arg) and each.annotation:
            each.annotation = _InFull(module.known).visit(each.annotation)
    if bound and (first := written.args.posonlyargs or written.args.args):
        first.pop(0)
    return ast.unparse(written.args)


def _annotation(module: Module, node: ast.expr) -> str:
    return ast.unparse(_InFull(module.known).visit(ast.parse(ast.unparse(node), mode="eval").body))


class _InFull(ast.NodeTransformer):
    """Names as what they stand for, so that each leads there."""

    def __init__(self, known: dict[str, str]) -> None:
        self.known = known

    def visit_Name(self, node: ast.Name) -> ast.expr:
        name = self.known.get(node.id)
        return ast.parse(name, mode="eval").body if name else node


def _value(module: Module, node: ast.stmt) -> list[str]:
    """The options that tell the type and the value of a name."""
    assert isinstance(node, ast.Assign | ast.AnnAssign)
    options = []
    if isinstance(node, ast.AnnAssign):
        options.append(f":type: {_annotation(module, node.annotation)}")
    if node.value and len(value := ast.unparse(node.value)) <= LONGEST_VALUE:
        options.append(f":value: {value}")
    return options


def _said(following: list[ast.stmt]) -> str:
    """The string that follows an assignment and documents it."""
    node = following[0] if following else None
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return _literally(str(node.value.value))
    return ""


def _name(node: ast.stmt) -> str | None:
    if isinstance(node, ast.ClassDef | Function):
        return node.name
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return targets[0].id if isinstance(targets[0], ast.Name) else None


def _below(package: Module, every: Iterable[Module]) -> list[Module]:
    """The modules directly below a package."""
    if not package.is_package:
        return []
    return [each for each in every if each.name.rpartition(".")[0] == package.name]


def _table(rows: list[tuple[str, str]]) -> str:
    cells = (f"| `{name}` | {said.replace('|', chr(92) + '|')} |" for name, said in rows)
    return "\n".join(["| name | what it is |", "|---|---|", *cells])
