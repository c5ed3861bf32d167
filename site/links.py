"""Where a link of the repository's own texts leads on the site.

A notebook leads to its article, a module to its reference, a card, log, result or page of docs to
its page; a figure to the figure. Any other text file gets a page that shows it.
"""

import posixpath
import re
from collections.abc import Callable

import reference
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

from foredraft import paths
from foredraft.registry import ARTICLES

SCHEME = "repo"
"""`repo:figures/x.png` is a file that lies on the site as it lies in the repository."""

PLACE = "as_it_is"
"""Below the pages: what the site holds as the repository does, figures and tables."""

PAGES = {"README.md": "index", "RESULTS.md": "results", "LOG.md": "log"}
AS_IT_IS = (".png", ".csv")
INLINE_LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")


def rewritten(text: str, folder: str, show: Callable[[str], None]) -> str:
    """Markdown from a folder of the repository, its links leading to pages of the site.

    `show` is called with every file that needs a page to be shown on.
    """
    return INLINE_LINK.sub(lambda link: target(link[1], folder, show), text)


def target(link: str, folder: str, show: Callable[[str], None]) -> str:
    """Where one link leads; ValueError if there is nothing in the repository.

    One that begins with a slash leads to the site already.
    """
    if re.match(r"[a-z]+:|[#/]", link):
        return link
    path, _, anchor = link.partition("#")
    path = posixpath.normpath(posixpath.join(folder, path))
    if not (paths.ROOT / path).is_file():
        raise ValueError(f"the link {link!r} leads to no file; mend it in {folder or 'the root'}")
    if path.endswith(AS_IT_IS):
        return f"{SCHEME}:{path}"
    slug = next((a.slug for a in ARTICLES if path == paths.cited(a.slug)), None)
    if slug:
        return value(slug, anchor)
    page = page_of(path)
    if page is None:
        show(path)
        page = f"files/{path}.md"
    return f"/{page}" + (f"#{anchor}" if anchor else "")


def value(slug: str, key: str = "") -> str:
    """Where a value of an article stands, its key being the row's id."""
    return f"{SCHEME}:results/{slug}.html" + (f"#{key}" if key else "")


def page_of(path: str) -> str | None:
    """The page that a file of the repository has on the site, as its source is called there."""
    for each in ARTICLES:
        if path in (f"notebooks/{each.stem}.{ending}" for ending in ("ipynb", "py")):
            return f"articles/{each.stem}.md"
        if path == f"figures/executed/{each.stem}.ipynb":
            return f"articles/{each.stem}.md"
    if path in PAGES:
        return f"{PAGES[path]}.md"
    if card := re.fullmatch(r"data/models/([^/]+)/README\.md", path):
        return f"models/{card[1]}.md"
    if guide := re.fullmatch(r"docs/([^/]+)\.md", path):
        return f"guide/{guide[1]}.md"
    module = next((m for m in reference.modules() if paths.label(m.path) == path), None)
    return f"{reference.FOLDER}/{module.name}.md" if module else None


def resolve(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Make `repo:` links relative to their page, so that the site can lie anywhere."""
    at = posixpath.dirname(app.builder.get_target_uri(page))
    for link in doctree.findall(nodes.reference):
        scheme, _, path = link.get("refuri", "").partition(":")
        if scheme == SCHEME:
            link["refuri"] = posixpath.relpath(path, at or ".")


def exactly(app: Sphinx, doctree: nodes.document) -> None:
    """Let a name in a signature lead to what is called so in full, not to what ends alike."""
    for name in doctree.findall(addnodes.pending_xref):
        name.attributes.pop("refspecific", None)


def name_in_backticks(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Let a name of the package in running text lead to the reference."""
    objects = app.env.domains.python_domain.objects
    home = page.removeprefix(f"{reference.FOLDER}/")
    public = reference.homes()
    for code in list(doctree.findall(nodes.literal)):
        text = re.sub(r"^fd\.", "foredraft.", code.astext()).removesuffix("()")
        name = next((n for n in (public.get(text), text, f"{home}.{text}") if n in objects), None)
        if name and not isinstance(code.parent, nodes.reference | nodes.title):
            found = objects[name]
            uri = app.builder.get_relative_uri(page, found.docname) + f"#{found.node_id}"
            code.replace_self(nodes.reference("", "", code.deepcopy(), internal=True, refuri=uri))


def source(app: Sphinx, name: str) -> tuple[str, dict] | None:
    """The source of a module and where in it each name stands."""
    path = paths.module(name)
    if path is None:
        return None
    read = ModuleAnalyzer.for_file(str(path), name)
    read.analyze()
    return read.code, read.tags
