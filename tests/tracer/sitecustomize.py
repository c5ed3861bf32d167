"""Notes which functions of ours a process and its children run, for `tests/test_notebooks.py`.

Python imports this by itself where the folder is on PYTHONPATH. Each process leaves a file below
FOREDRAFT_TRACE with a line per function: its file and first line, or 0 for a module's own body.

Our modules are compiled with a note at the beginning of each function, which costs next to nothing.
A kernel that Triton interprets is compiled again from its source, without the notes: whoever runs
kernels asks for a profiler too, by FOREDRAFT_PROFILE, and that sees all functions of the main
thread.
"""

import ast
import atexit
import builtins
import cProfile
import importlib.machinery
import importlib.util
import os
import sys
import threading
import time
from pathlib import Path
from types import CodeType

NOTE = "__foredraft_ran__"
RAN: set[str] = set()
SECONDS = 2.0
PROFILE = cProfile.Profile(subcalls=False, builtins=False)


class Noted(ast.NodeTransformer):
    """Adds the note to every function, after its docstring; a lambda notes before it computes."""

    def __init__(self, file: str) -> None:
        self.file = file

    def note(self, line: int) -> ast.expr:
        return ast.parse(f"{NOTE}({f'{line} {self.file}'!r})", mode="eval").body

    def visit_FunctionDef(self, node):
        self.generic_visit(node)
        first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
        at = 1 if ast.get_docstring(node, clean=False) is not None else 0
        node.body.insert(at, ast.Expr(self.note(first)))
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node):
        self.generic_visit(node)
        node.body = ast.BoolOp(ast.Or(), [self.note(node.lineno), node.body])
        return node


class Loader(importlib.machinery.SourceFileLoader):
    """Compiles a module of ours with notes, past the compiled files that lie beside it."""

    def get_code(self, fullname):
        path = self.get_filename(fullname)
        tree = Noted(path).visit(ast.parse(self.get_data(path)))
        RAN.add(f"0 {path}")
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


class Finder:
    """Finds our modules as the others would, and lets `Loader` load them."""

    busy = threading.local()

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] != "foredraft" or getattr(cls.busy, "now", False):
            return None
        cls.busy.now = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            cls.busy.now = False
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


def write() -> None:
    """Leave what has run so far."""
    codes = {each.code for each in PROFILE.getstats() if isinstance(each.code, CodeType)}
    seen = {f"{code.co_firstlineno} {code.co_filename}" for code in codes if named(code)}
    folder = Path(os.environ["FOREDRAFT_TRACE"])
    part = folder / f".{os.getpid()}.part"
    part.write_text("\n".join(sorted(RAN | seen)))
    part.replace(folder / f"{os.getpid()}.txt")


def named(code: CodeType) -> bool:
    """Check for the code of a function; those of modules and classes are not optimised."""
    return bool(code.co_flags & 0x01)


def keep_writing() -> None:
    """Leave it again and again: a kernel may be killed before it could do so at its end."""
    while True:
        time.sleep(SECONDS)
        write()


if "FOREDRAFT_TRACE" in os.environ:
    setattr(builtins, NOTE, RAN.add)
    sys.meta_path.insert(0, Finder)
    atexit.register(write)
    threading.Thread(target=keep_writing, daemon=True).start()
    if "FOREDRAFT_PROFILE" in os.environ:
        PROFILE.enable()
