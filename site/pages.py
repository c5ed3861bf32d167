"""The pages of the site, written from what the repository holds."""

import re
import shutil
from pathlib import Path

import articles
import links
import reference

from foredraft import paths
from foredraft.files import write_text
from foredraft.registry import ARTICLES, Article
from foredraft.repro import claims
from foredraft.repro.claims import Claim, Findings

IMAGE = re.compile(rf"!\[([^\]]*)\]\({links.SCHEME}:(\S+)\.png\)")
LANGUAGES = {".yaml": "yaml", ".cff": "yaml", ".json": "json"}


def write(site: Path) -> None:
    """Write every page below the folder that Sphinx reads; ValueError if it holds anything."""
    if any(site.iterdir()):
        raise ValueError(f"{site} is not empty; give an empty folder, as `make site` does")
    files(site / links.PLACE)
    for name, text in pages(site).items():
        write_text(site / f"{name}.md", text)


def files(folder: Path) -> None:
    """Copy figures and results."""
    ignored = shutil.ignore_patterns("executed", "*.tex")
    shutil.copytree(paths.ROOT / "figures", folder / "figures", ignore=ignored)
    shutil.copytree(paths.result_files(), folder / "data" / "results")


def pages(site: Path) -> dict[str, str]:
    """Every page by its name; the pictures of the articles are written beside them."""
    found, cards = claims.findings(), sorted(paths.MODELS.glob("*/README.md"))
    guide = {path.stem: path for path in sorted((paths.ROOT / "docs").glob("*.md"))}
    shown: set[str] = set()

    def markdown(path: Path) -> str:
        text = path.read_text(encoding="utf-8")
        return IMAGE.sub(figure, links.rewritten(text, paths.label(path.parent), shown.add))

    written = {
        "index": markdown(paths.ROOT / "README.md") + contents(*TOP, hidden=True),
        "log": markdown(paths.ROOT / "LOG.md"),
        "results": results_page(found),
        **{f"guide/{name}": markdown(path) for name, path in guide.items()},
        "guide/index": guide_page(list(guide)),
        **{f"results/{each.article.slug}": values_page(each) for each in found},
        **{f"models/{card.parent.name}": markdown(card) for card in cards},
        "models/index": models_page([card.parent.name for card in cards]),
        **reference.pages(),
    }

    def linked(text: str) -> str:
        return links.rewritten(text, paths.label(paths.NOTEBOOKS), shown.add)

    for each in ARTICLES:
        written[f"articles/{each.stem}"] = articles.page(each, site / "articles", linked)
    written["articles/index"] = articles_page(written)
    return written | {f"files/{path}": file_page(path) for path in sorted(shown)}


TOP = (
    "articles/index",
    "guide/index",
    "results",
    "models/index",
    f"Reference </{reference.FOLDER}/foredraft>",
    "log",
)


def contents(*names: str, hidden: bool = False) -> str:
    """A table of contents, which Sphinx makes the navigation of."""
    option = ":hidden:\n" if hidden else ":maxdepth: 1\n"
    return "\n\n" + "\n".join(
        [
            "```{toctree}",
            option,
            *(name if name.endswith(">") else f"/{name}" for name in names),
            "```",
            "",
        ]
    )


def figure(image: re.Match[str]) -> str:
    """An image of the repository that opens large."""
    alt, stem = image.groups()
    return f"[![{alt}](/{links.PLACE}/{stem}.png)]({links.SCHEME}:{stem}.png)"


def articles_page(pages: dict[str, str]) -> str:
    """All articles, each with the sentence that says what it settles."""
    lines = ["# The articles", "Each is an executed notebook, code, tables and figures."]
    for each in ARTICLES:
        said = articles.summary(pages[f"articles/{each.stem}"])
        lines.append(f"**[{each.number:02d} · {each.title}]({each.stem}.md)** {said}")
    return "\n\n".join(lines) + contents(*(f"articles/{e.stem}" for e in ARTICLES), hidden=True)


def guide_page(names: list[str]) -> str:
    """The pages of docs, those first that README.md names first."""
    readme = (paths.ROOT / "README.md").read_text(encoding="utf-8")
    order = sorted(names, key=lambda name: readme.find(f"docs/{name}.md"))
    head = "# Guide\n\nHow the library is built and used, and how its results are reproduced."
    return head + contents(*(f"guide/{name}" for name in order))


def models_page(names: list[str]) -> str:
    """The models that this repository trained, each with its card."""
    head = "# The pocket models\n\nTrained here and shipped, each with how, on what and how well."
    return head + contents(*(f"models/{name}" for name in names))


def results_page(found: list[Findings]) -> str:
    """Every claim with the article's value and ours, which leads to where it stands."""
    parts = [paths.results_page().read_text(encoding="utf-8").split("\n|")[0]]
    for each in found:
        rows = [_claim(each, claim) for claim in each.claims]
        command = f"`dvc repro -f {each.article.slug}` computes them anew."
        parts += [_heading(each.article), f"{command}", "\n".join([_CLAIMS, *rows])]
    names = [f"results/{each.article.slug}" for each in found]
    return "\n\n".join(parts) + contents(*names, hidden=True)


def values_page(found: Findings) -> str:
    """Every value of an article, each in a row that can be linked to."""
    raw = [found.file, found.file.replace(".json", ".csv")]
    files = " and ".join(f"[{Path(file).name}]({links.SCHEME}:{file})" for file in raw)
    head = f"# Results of {found.article.number:02d} · {found.article.title}"
    about = f"All that may be cited, as `foredraft cite '{found.file}#key'` does; from {files}."
    rows = [f'| <span id="{k}">`{k}`</span> | {_cell(str(v))} |' for k, v in found.values.items()]
    return "\n\n".join([head, about, "\n".join([_VALUES, *rows])]) + "\n"


def file_page(path: str) -> str:
    """A file of the repository, shown."""
    text = (paths.ROOT / path).read_text(encoding="utf-8").rstrip()
    language = LANGUAGES.get(Path(path).suffix, "text")
    return (
        f"---\norphan: true\n---\n\n# {path}\n\n``````{{code-block}} {language}\n{text}\n``````\n"
    )


def _heading(article: Article) -> str:
    return f"## [{article.number:02d} · {article.title}](articles/{article.stem}.md)"


def _claim(found: Findings, claim: Claim) -> str:
    ours = claims.ours(claim, found.values)
    value = f"[{ours}]({links.value(found.article.slug, claim.key)})"
    return f"| {_cell(claim.text)} | {claims.shown(claim.article)} | {value} | {claim.n} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


_CLAIMS = "| claim | article | ours | n |\n|---|---:|---:|---:|"
_VALUES = "| key | value |\n|---|---:|"
