"""Draw an article's figures again, in any format, from the values that it kept.

Only functions of articles' plots are called, whatever a file of values says.
"""

import re
from collections.abc import Collection, Iterator
from importlib import import_module
from pathlib import Path

from matplotlib.figure import Figure

from foredraft import paths
from foredraft.errors import unknown
from foredraft.repro import values
from foredraft.repro.provenance import Mark, read_marked
from foredraft.viz import figures

PLOTS = re.compile(r"foredraft\.(articles\.\w+|sweep)\.(\w+_)?plots")
"""The full name of a module that draws figures."""


def redraw(slug: str, formats: Collection[str], folder: Path) -> Iterator[Path]:
    """Write every figure of an article's results below a folder, with its mark.

    ValueError for a format that there is not, or a file of values that was edited.
    """
    for ending in formats:
        if ending not in figures.FORMATS:
            raise unknown("format of a figure", ending, figures.FORMATS)
    path = paths.figure_tables(slug)
    if not path.is_file():
        raise ValueError(f"{paths.label(path)} is missing: `foredraft run {slug}` writes it")
    for name, kept in read_marked(path)["figures"].items():
        mark = Mark(slug, name, values.digest(kept["values"]))
        yield from figures.save(draw(kept["drawing"], kept["values"]), folder, mark, formats)


def draw(name: str, arguments: values.JSON) -> Figure:
    """Call a function of an article's plots by its full name; ValueError if there is none."""
    module, _, function = name.rpartition(".")
    if not PLOTS.fullmatch(module) or function.startswith("_"):
        raise ValueError(
            f"{name!r} draws no figure: only public functions of articles' plots are called"
        )
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError):
        raise ValueError(
            f"{name!r} is not there any more: run the article again, or use the commit that "
            "made its results"
        ) from None
    if getattr(found, "__module__", None) != module or not hasattr(found, "__wrapped__"):
        raise ValueError(f"{name!r} draws no figure: it is no figures.drawing of {module}")
    return figures.draw_again(found, arguments)
