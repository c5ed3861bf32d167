"""An executed notebook as a page: what its cells say and show, in their order."""

import base64
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import links
import nbformat

from foredraft import paths
from foredraft.files import write_bytes
from foredraft.registry import Article

SAVED = re.compile(r"\[\w+\.png\]\(\.\./(?P<file>\w+/\w+\.png)\)")
"""What an executed notebook has below the small picture of a figure: a link to the saved one."""


def page(article: Article, folder: Path, linked: Callable[[str], str]) -> str:
    """The article as Markdown; pictures that are saved nowhere go to a folder of its own.

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
        yield from _outputs(cell.outputs, folder, f"{stem}/{at}", heading, linked)


def _outputs(
    outputs: list[Any], folder: Path, name: str, heading: str, linked: Callable[[str], str]
) -> Iterator[str]:
    """What a cell shows. A figure is the saved one: the small one before its link is left out."""
    for number, output in enumerate(outputs):
        following = outputs[number + 1] if number + 1 < len(outputs) else None
        if output.output_type == "stream":
            yield _block(output.text, "text", "output")
        elif output.output_type == "error":
            raise ValueError(f"a cell of {name} ended in {output.ename}; run it again")
        elif found := _saved(output):
            saved = f"figures/{found}"
            yield f"[![{heading}](/{links.PLACE}/{saved})]({links.SCHEME}:{saved})"
        elif "image/png" in output.data and not (following and _saved(following)):
            picture = f"{name}_{number}.png"
            write_bytes(folder / picture, base64.b64decode(output.data["image/png"]))
            yield f"![{heading}](/{folder.name}/{picture})"
        elif "image/png" not in output.data:
            yield _words(output.data, linked)


def _saved(output: Any) -> str | None:
    """The file of a saved figure, below the folder of figures, if an output is a link to it."""
    found = SAVED.fullmatch(output.get("data", {}).get("text/markdown", ""))
    return found["file"] if found else None


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


def _block(text: str, language: str, name: str) -> str:
    fence = "`" * max(3, *(len(ticks) + 1 for ticks in re.findall("`+", text)), 0)
    return f"{fence}{{code-block}} {language}\n:class: {name}\n\n{text.rstrip()}\n{fence}"
