"""An executed notebook as a page: what its cells say and show, in their order."""

import base64
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import links
import nbformat

from foredraft import paths
from foredraft.articles import Article
from foredraft.files import write_bytes

SAVED = re.compile(r"figures\.save\([^\n]*?\"(\w+)\", \"(\w+)\"")
"""How a cell keeps the figure that it shows."""


def page(article: Article, folder: Path, linked: Callable[[str], str]) -> str:
    """The article as Markdown; its pictures are written to a folder of its own below this one.

    Prose goes through `linked`; code and what it printed stay as they are.
    """
    notebook = nbformat.read(paths.executed(article.slug), as_version=4)
    return "\n\n".join(_pieces(notebook.cells, folder, article.stem, linked)) + "\n"


def summary(text: str) -> str:
    """The sentence in bold with which an article begins."""
    found = re.search(r"^\*\*(.+?)\*\*", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError("an article begins with a sentence in bold that says what it settles")
    return " ".join(found[1].split())


def _pieces(
    cells: list[Any], folder: Path, stem: str, linked: Callable[[str], str]
) -> Iterator[str]:
    heading = ""
    for at, cell in enumerate(cells):
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE) or [heading])[-1]
            yield linked(cell.source)
            continue
        if cell.source:
            yield _block(cell.source, "python", "input")
        for number, output in enumerate(cell.outputs):
            if output.output_type == "stream":
                yield _block(output.text, "text", "output")
            elif output.output_type == "error":
                raise ValueError(f"a cell of {stem} ended in {output.ename}; run it again")
            elif "image/png" in output.data:
                picture = f"{stem}/{at}_{number}.png"
                write_bytes(folder / picture, base64.b64decode(output.data["image/png"]))
                yield _opens_large(f"![{heading}](/{folder.name}/{picture})", cell.source)
            else:
                yield _words(output.data, linked)


def _words(data: Any, linked: Callable[[str], str]) -> str:
    """A table, prose or text, whichever of them comes first."""
    if "text/html" in data:
        return f"```{{raw}} html\n{table(data['text/html'])}\n```"
    if "text/markdown" in data:
        return linked(data["text/markdown"])
    return _block(data["text/plain"], "text", "output")


def table(html: str) -> str:
    """A data frame as a table that scrolls in its own box, without a look of its own."""
    plain = re.sub(r"<style.*?</style>| border=\"1\"", "", html, flags=re.DOTALL)
    return f'<div class="frame" tabindex="0">{plain}</div>'


def _opens_large(image: str, source: str) -> str:
    """An image that leads to the drawing its cell saved, which stays sharp at any size."""
    saved = SAVED.search(source)
    drawing = saved and paths.figures(saved[1]) / f"{saved[2]}.svg"
    if drawing is None or not drawing.is_file():
        return image
    return f"[{image}]({links.SCHEME}:{paths.label(drawing)})"


def _block(text: str, language: str, name: str) -> str:
    fence = "`" * max(3, *(len(ticks) + 1 for ticks in re.findall("`+", text)), 0)
    return f"{fence}{{code-block}} {language}\n:class: {name}\n\n{text.rstrip()}\n{fence}"
