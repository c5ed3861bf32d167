"""The stages of dvc.yaml: each depends on every module that its notebook imports.

What else a stage depends on, such as weights and recordings, stands there by hand and stays.
"""

import re
from pathlib import Path

from foredraft import paths
from foredraft.articles import ARTICLES, Article
from foredraft.files import write_text
from foredraft.imports import closure


def sync() -> list[Path]:
    """Write dvc.yaml anew if the modules of a stage are no longer those listed; give what changed.

    ValueError for an article without a stage.
    """
    path = paths.ROOT / "dvc.yaml"
    before = path.read_text(encoding="utf-8")
    after = before
    for article in ARTICLES:
        after = synced(after, article)
    if after == before:
        return []
    write_text(path, after)
    return [path]


def synced(text: str, article: Article) -> str:
    """The text of dvc.yaml with the modules of one article's stage as they are now."""
    stage = rf"^  {article.slug}:\n(?:    .*\n|\n)*?    deps:\n"
    found = re.search(stage, text, re.MULTILINE)
    if found is None:
        raise ValueError(
            f"dvc.yaml has no stage {article.slug!r} with a list of deps: add one like the others"
        )
    listed = re.compile(r"(?:      - .*\n)*").match(text, found.end())
    assert listed is not None, "an empty list matches too"
    others = [line for line in listed[0].splitlines() if not line.endswith(".py")]
    lines = [*(f"      - {name}" for name in _modules(article)), *others]
    return text[: found.end()] + "\n".join(lines) + "\n" + text[listed.end() :]


def _modules(article: Article) -> list[str]:
    """The notebook, then what it imports."""
    notebook = paths.notebook(article.slug)
    imported = [path for path in closure(notebook) if path != notebook]
    return [paths.label(path) for path in (notebook, *imported)]
