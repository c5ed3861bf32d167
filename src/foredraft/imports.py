"""Which modules of ours a file imports: read from its source, so that nothing is executed.

Imports inside functions count, those under `if TYPE_CHECKING:` do not. The public names of
`foredraft/__init__.py` resolve on first use: using one counts as importing the module it lives in.
"""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from foredraft import paths


def imported(path: Path) -> frozenset[str]:
    """The full names of all that a Python file imports, ours and others'."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(_executed(tree))
    return frozenset({*_names(nodes), *_public(nodes)})


REGISTRIES = frozenset({"foredraft.registry", "foredraft.repro.params"})
"""They grow with every article; what they give to a result stands in its stamp by value."""


def closure(*files: Path) -> tuple[Path, ...]:
    """The given files and every module of ours that they import, directly or not.

    Package files (`__init__.py`), which hold names only, and the REGISTRIES are left out.
    """
    found: set[Path] = set()
    waiting = list(files)
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            homes = (paths.module(name) for name in imported(path) - REGISTRIES)
            waiting += [home for home in homes if home and home.name != "__init__.py"]
    return tuple(sorted(found))


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _executed(child)


def _names(nodes: list[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _public(nodes: list[ast.AST]) -> Iterator[str]:
    """The homes of the public names used as `foredraft.name` or imported from `foredraft`."""
    ours = {
        alias.asname or alias.name
        for node in nodes
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "foredraft"
    }
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in ours and node.attr in homes():
                yield homes()[node.attr]
        elif isinstance(node, ast.ImportFrom) and node.module == "foredraft":
            yield from (homes()[name.name] for name in node.names if name.name in homes())


@cache
def homes() -> Mapping[str, str]:
    """Where each public name of the package lives, which resolves it on first use."""
    package = ast.parse((paths.PACKAGES["foredraft"] / "__init__.py").read_text(encoding="utf-8"))
    assigned = [node for node in package.body if isinstance(node, ast.Assign)]
    homes = next(node.value for node in assigned if ast.unparse(node.targets[0]) == "_HOMES")
    return ast.literal_eval(homes)
