"""The numbers in README.md: the text of a link to `data/results/<article>.json#key` is that value.

So none is typed: `foredraft results` writes them, and a test compares.
"""

import re
from collections.abc import Sequence

from foredraft import paths
from foredraft.errors import unknown
from foredraft.files import write_text
from foredraft.repro.claims import Findings, ours, shown

LINK = re.compile(r"\[[^\]]*\]\((?P<file>[\w/]+\.json)#(?P<key>[\w.-]+)\)")


def write(found: Sequence[Findings]) -> None:
    """Fill in README.md where this run writes, if there is one; ValueError as of `filled`."""
    path = paths.outputs() / "README.md"
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        if (written := filled(text, found)) != text:
            write_text(path, written)


def filled(text: str, found: Sequence[Findings]) -> str:
    """The text with every linked value as RESULTS.md shows it; ValueError for an unknown key.

    Files of articles that have no results stay as they are.
    """
    files = {each.file: each for each in found}

    def value(link: re.Match[str]) -> str:
        if link["file"] not in files:
            return link[0]
        told = _shown(files[link["file"]], link["key"])
        return f"[{told}]({link['file']}#{link['key']})"

    return LINK.sub(value, text)


def _shown(found: Findings, key: str) -> str:
    if key not in found.values:
        raise unknown(f"value of {found.file}, which README.md links to", key, found.values)
    claim = next((each for each in found.claims if each.key == key), None)
    return ours(claim, found.values) if claim else shown(found.values[key])
