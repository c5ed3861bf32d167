"""What an article found: a table, values, and the claims that set a value beside the article's.

`data/results/<slug>.json` holds mark, table, claims, values; a value is cited as `file#key`.
From these files, and nothing else, come RESULTS.md and the TeX macros of figures/results.tex.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foredraft import paths
from foredraft.errors import unknown
from foredraft.files import write_text
from foredraft.registry import ARTICLES, Article, article
from foredraft.repro.provenance import read_marked

Value = float | int | str | bool


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement with the article's number for it and ours.

    `key` is that of our value; `article` what the article reports (None: nothing); `n` how many
    measurements ours is from; `spread` half the width of its 95 % interval, None if it is exact.
    `drift` is how far another kind of processor may move it, absolute; None: by its spread, and
    without one by a hundredth of the value.
    """

    id: str
    text: str
    key: str
    article: Value | None = None
    n: int = 1
    spread: float | int | None = None
    drift: float | int | None = None


def notch(iqr: float, n: int) -> float:
    """Give half the width of a 95 % interval of a median (McGill et al. 1978, 10.2307/2683468)."""
    return 1.57 * iqr / n**0.5


@dataclass(frozen=True, slots=True)
class Findings:
    """The claims and the flat values of one article."""

    article: Article
    claims: tuple[Claim, ...]
    values: Mapping[str, Value]

    @property
    def file(self) -> str:
        """The file they stand in, as it is cited."""
        return paths.cited(self.article.slug)


def checked(
    slug: str, values: Mapping[str, Any], claims: Iterable[Claim]
) -> Mapping[str, list[dict[str, Any]] | Mapping[str, Any]]:
    """The content of an article's file of results: its claims, and its values, nested or flat.

    `{"a": {"b": 1}}` is cited as `#a.b`. ValueError for a claim without its value, an id that
    occurs twice, or an ill-formed key.
    """
    flat, claims = flattened(values), list(claims)
    names = [claim.id for claim in claims]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"claim {twice[0]!r} stands twice among the claims of {slug}; rename one")
    for claim in claims:
        if claim.key not in flat:
            raise unknown(f"value of the claim {claim.id!r}", claim.key, flat)
    return {"claims": [_stated(claim) for claim in claims], "values": values}


def _stated(claim: Claim) -> dict[str, Any]:
    """A claim as it is kept: without a drift where it has none of its own."""
    stated = asdict(claim)
    if claim.drift is None:
        del stated["drift"]
    return stated


def read(slug: str, below: Path | None = None) -> Findings | None:
    """An article's findings, of the run that wrote below this folder; None if there is none."""
    path = paths.results(slug) if below is None else below / paths.cited(slug)
    if not path.is_file():
        return None
    return _findings(article(slug), read_marked(path))


def parse(article: Article, text: str) -> Findings:
    """An article's findings from the text of a file, whatever its mark says."""
    return _findings(article, json.loads(text))


def _findings(article: Article, content: Mapping[str, Any]) -> Findings:
    claims = tuple(Claim(**claim) for claim in content["claims"])
    return Findings(article=article, claims=claims, values=flattened(content["values"]))


def findings() -> list[Findings]:
    """What all articles found that have been run, in their order."""
    return [found for article in ARTICLES if (found := read(article.slug)) is not None]


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Value]:
    """Nested values with their keys joined by dots; ValueError for a key that cannot be cited."""
    flat: dict[str, Value] = {}
    for key, value in values.items():
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", key):
            raise ValueError(f"key {key!r} cannot be cited; use letters, digits, '_', '-' and '.'")
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def publish() -> list[Findings]:
    """Write RESULTS.md and figures/results.tex from the results on disk, and return these."""
    found = findings()
    write_text(paths.results_page(), page(found))
    write_text(paths.results_macros(), macros(found))
    return found


def page(found: list[Findings]) -> str:
    """RESULTS.md: every claim with the article's value, ours, the command, and where it stands."""
    rows = [_row(each, claim) for each in found for claim in each.claims]
    return "\n".join([_PAGE_HEAD, *rows]) + "\n"


def ours(claim: Claim, values: Mapping[str, Value]) -> str:
    """Our value as it is shown: value ± spread."""
    spread = "" if claim.spread is None else f" ± {shown(claim.spread)}"
    return f"{shown(values[claim.key])}{spread}"


def shown(value: Value | None) -> str:
    """A value in words: four significant digits, a dash for none."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def macros(found: list[Findings]) -> str:
    """TeX: `\\input` the file, then `\\res{sampling/entropy.cold}` is the value of that key.

    Of a claimed value, `key@spread`, `key@n` and `key@article` are what RESULTS.md has beside it.
    """
    lines = (
        f"\\expandafter\\def\\csname res@{each.article.slug}/{key}\\endcsname{{{tex(value)}}}"
        for each in found
        for key, value in {**each.values, **_beside(each.claims)}.items()
    )
    return "\n".join([_MACROS_HEAD, *lines]) + "\n"


def _beside(claims: Iterable[Claim]) -> dict[str, Value]:
    """The numbers of the claims that are no values of their own; `@` stands in no key."""
    numbers = {
        f"{claim.key}@{name}": value
        for claim in claims
        for name, value in (("spread", claim.spread), ("n", claim.n), ("article", claim.article))
    }
    return {name: value for name, value in numbers.items() if value is not None}


def _row(found: Findings, claim: Claim) -> str:
    cells: Iterator[str] = iter(
        (
            claim.text,
            shown(claim.article),
            ours(claim, found.values),
            str(claim.n),
            f"`dvc repro -f {found.article.slug}`",
            f"[`{found.file}#{claim.key}`]({found.file})",
        )
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def tex(value: Value) -> str:
    """A value as TeX sets it: six significant digits, special characters escaped."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text.translate(_TEX)


_PAGE_HEAD = """# Results

Written by `foredraft results` from `data/results/`, not by hand. The second column is what the
article reports, a dash where it reports nothing. ± is half the width of a 95 % interval over n
measurements (98 % for a median of seven ratios); a value without it is exact for the given
parameters. `file#key` cites a value.

| claim | article | ours | n | command | value |
|---|---|---|---|---|---|"""

_TEX = str.maketrans(
    {
        **{special: f"\\{special}" for special in "#$%&_{}"},
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
    }
)
"""What stands for the characters that TeX takes for its own."""

_MACROS_HEAD = r"""% Written by `foredraft results`; \res{<slug>/<key>} is the value of that key,
% \res{<slug>/<key>@spread}, @n and @article what RESULTS.md has beside it.
\newcommand\res[1]{\ifcsname res@#1\endcsname\csname res@#1\endcsname
  \else\PackageError{res}{no result #1}{}\fi}"""
