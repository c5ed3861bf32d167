"""Fill in the numbers of README.md and docs/*.md from data/results.

The text of a link to `data/results/<article>.json#key` is that value. So none is typed:
`foredraft results` writes them, and a test compares.
"""

import re
from collections.abc import Sequence

from foredraft import paths
from foredraft.errors import unknown
from foredraft.files import write_text
from foredraft.repro.claims import Findings, ours, shown

LINK = re.compile(r"\[[^\]]*\]\((?P<up>(?:\.\./)*)(?P<file>[\w/]+\.json)#(?P<key>[\w.-]+)\)")


def write(found: Sequence[Findings]) -> None:
    """Fill in the pages that exist where this run writes; ValueError as of `filled`."""
    for path in paths.pages():
        text = path.read_text(encoding="utf-8")
        if (written := filled(text, found)) != text:
            write_text(path, written)


def filled(text: str, found: Sequence[Findings]) -> str:
    """Give the text with every linked value as RESULTS.md shows it.

    Files of articles that have no results stay as they are. ValueError for an unknown key.
    """
    files = {each.file: each for each in found}

    def value(link: re.Match[str]) -> str:
        if link["file"] not in files:
            return link[0]
        number = _shown(files[link["file"]], link["key"])
        return f"[{number}]({link['up']}{link['file']}#{link['key']})"

    return LINK.sub(value, text)


def _shown(found: Findings, key: str) -> str:
    if key not in found.values:
        raise unknown(f"value of {found.file}, which a page links to", key, found.values)
    claim = next((each for each in found.claims if each.key == key), None)
    return ours(claim, found.values) if claim else shown(found.values[key])
