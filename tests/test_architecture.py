"""The import contract: who may import whom, and what nobody may do.

A layer is a module or a package directly under `foredraft`; all may use the ground.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from foredraft import paths
from foredraft.imports import closure, imported

GROUND = {"errors", "files", "imports", "machine", "parallel", "paths", "registry", "types"}
ENGINE = GROUND | {"kernels", "sampling", "models", "decoding"}
MAY_IMPORT = {
    **dict.fromkeys(GROUND, GROUND),
    "prompts": GROUND,
    "kernels": {"types"},
    "sampling": {"types", "kernels"},
    "models": GROUND | {"kernels"},
    "decoding": ENGINE,
    "analysis": ENGINE,
    "repro": GROUND,
    "viz": GROUND | {"repro"},
    "benchmarks": ENGINE | {"analysis", "prompts"},
    "training": ENGINE | {"analysis", "repro"},
    "search": ENGINE | {"analysis", "benchmarks", "prompts", "repro", "training"},
    "articles": ENGINE
    | {"analysis", "benchmarks", "prompts", "repro", "search", "training", "viz"},
    "sweep": GROUND | {"repro", "viz"},
    "__main__": {"cli"},
}
"""The layers that each layer may import besides itself; `cli`, at the top, may import all."""

SOURCES = sorted(
    path for package in paths.PACKAGES.values() for path in package.rglob("*.py") if path.is_file()
)
every_source = pytest.mark.parametrize("source", SOURCES, ids=paths.label)


def layer(source: Path) -> str:
    if source.is_relative_to(paths.PACKAGES["foredraft.kernels"]):
        return "kernels"
    return source.relative_to(paths.PACKAGES["foredraft"]).parts[0].removesuffix(".py")


def layers_imported(source: Path) -> set[str]:
    homes = {paths.module(name) for name in imported(source)} - {None}
    root = paths.PACKAGES["foredraft"] / "__init__.py"
    return {layer(home) for home in homes if home and home != root} - {layer(source)}


@every_source
def test_a_module_imports_only_what_lies_below_it(source):
    name = layer(source)
    if name not in {"cli", "__init__"}:
        assert layers_imported(source) <= MAY_IMPORT[name]


@every_source
def test_an_article_imports_no_other_article(source):
    articles = paths.PACKAGES["foredraft"] / "articles"
    if source.parent.parent == articles:
        homes = {paths.module(name) for name in imported(source)} - {None}
        theirs = {home.parent for home in homes if home and home.parent.parent == articles}
        assert theirs <= {source.parent}


def test_verify_is_pure_tensors():
    source = paths.PACKAGES["foredraft"] / "decoding" / "verify.py"
    if source.is_file():
        # sampling, since there is one way to draw a token from weights
        assert layers_imported(source) <= {"types", "kernels", "sampling"}


def test_only_loading_may_touch_a_hub():
    hub = [source for source in SOURCES if any("hub" in name for name in imported(source))]
    assert {paths.label(source) for source in hub} <= {"src/foredraft/models/loading.py"}


def test_importing_the_package_loads_no_torch():
    code = "import sys, foredraft; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_figures_never_import_torch_not_even_lazily():
    package = paths.PACKAGES["foredraft"]
    plots = [*package.glob("articles/*/*plots.py"), *package.glob("viz/*.py")]
    assert len(plots) > 10
    for source in closure(*sorted(plots), package / "sweep" / "plots.py"):
        assert not {"torch", "jaxtyping", "transformers"} & imported(source), source


def literals(source: Path) -> list[str]:
    """The strings of a module that are not documentation."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    documentation = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node not in documentation
    ]


@every_source
def test_only_paths_builds_a_path_of_this_repository(source):
    if source.name != "paths.py":
        assert "__file__" not in source.read_text(encoding="utf-8")
        built = [text for text in literals(source) if re.match(r"(data|figures|notebooks)/", text)]
        assert not built


@every_source
def test_only_timing_reads_a_fine_clock(source):
    if source.name != "timing.py":
        assert "perf_counter" not in source.read_text(encoding="utf-8")


@every_source
def test_nothing_seeds_global_state(source):
    """But where the state is put back: transformers draws first weights from the global one."""
    put_back = r"with torch\.random\.fork_rng\(devices=\[\]\):\n +torch\.manual_seed\("
    seeding = r"\b(torch|np\.random|numpy\.random|random)\.(manual_seed|seed)\(|\bset_seed\("
    assert not re.search(seeding, re.sub(put_back, "", source.read_text(encoding="utf-8")))


@every_source
def test_a_package_file_holds_a_docstring_and_nothing_else(source):
    if source.name == "__init__.py" and source.parent != paths.PACKAGES["foredraft"]:
        body = ast.parse(source.read_text(encoding="utf-8")).body
        assert len(body) == 1
        assert isinstance(body[0], ast.Expr)


def test_notebooks_use_the_package_and_nothing_beside_it():
    for notebook in paths.NOTEBOOKS.glob("*.py"):
        text = notebook.read_text(encoding="utf-8")
        assert not re.search(r"sys\.path|!pip|%pip|^class ", text, re.MULTILINE)
        ours = {paths.module(name) for name in imported(notebook)} - {None}
        assert "cli" not in {layer(home) for home in ours if home}
        assert paths.module("foredraft.repro.notebooks") not in ours
