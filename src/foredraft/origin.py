"""Where a figure or file of results came from: the stamp inside it, beside this checkout.

The file may lie anywhere and have any name; what it is, is read from its first bytes.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image

from foredraft import params, paths, provenance
from foredraft.articles import ARTICLES, Article
from foredraft.provenance import Stamp

DESCRIPTION = "{http://purl.org/dc/elements/1.1/}description"
"""The element of an SVG file that holds its stamp."""

SWEEP = "sweep of "
"""How the stamp of a sweep's table and figure begins; an article's slug follows."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a file says of itself, and how that compares with this checkout.

    `inputs` says of each input: same, changed, missing, or elsewhere; `differing` is what
    params.yaml has now where it is another value; `twin` is the file here with the same bytes.
    """

    stamp: Stamp
    article: Article | None
    inputs: Mapping[str, str]
    differing: Mapping[str, Any]
    twin: str | None

    def text(self) -> str:
        """The same in lines: what, then parameters, versions and inputs."""
        what = f"{self.article.number:02d} {self.article.title}" if self.article else "no article"
        changed = [name for name, state in self.inputs.items() if state in ("changed", "missing")]
        facts = [
            ("made as", f"{self.stamp.what} ({what}), {self.stamp.device}, {self.stamp.dtype}"),
            ("here", self.twin or "no file here has the same bytes"),
            ("inputs", f"{len(changed)} of {len(self.inputs)} are not the same here"),
            *(("parameter", self._parameter(name)) for name in self.stamp.params),
            *(("version", f"{name} {told}") for name, told in self.stamp.versions.items()),
            *(
                ("input", f"{digest} {name}: {self.inputs[name]}")
                for name, digest in self.stamp.inputs.items()
            ),
        ]
        return "\n".join(f"{name:<10} {fact}" for name, fact in facts)

    def _parameter(self, name: str) -> str:
        note = "" if name not in self.differing else f" (params.yaml: {self.differing[name]})"
        return f"{name}: {self.stamp.params[name]}{note}"


def trace(path: Path) -> Origin:
    """Read a file's stamp and compare; ValueError if it is not there or has no stamp."""
    stamp = read_stamp(path)
    article = _article(stamp)
    return Origin(
        stamp=stamp,
        article=article,
        inputs=_states(stamp),
        differing=_differing(stamp),
        twin=_twin(path, article) if article else None,
    )


def read_stamp(path: Path) -> Stamp:
    """The stamp that a PNG, SVG, PDF or JSON file carries, or the JSON file beside a CSV file."""
    if not path.is_file():
        raise ValueError(f"{path} is no file; give one that `foredraft run` has written")
    if path.suffix == ".csv":
        provenance.read_table(path)
        return provenance.read_json(path.with_suffix(".json")).stamp
    text = _embedded(path)
    if text is None:
        raise ValueError(
            f"{path.name} carries no stamp: PNG, SVG, PDF and JSON files of this repository do, "
            "until a program that leaves out what it does not know writes them anew"
        )
    return Stamp.from_json(text)


def _embedded(path: Path) -> str | None:
    head = path.read_bytes()[:1024].lstrip()
    if head.startswith(b"\x89PNG"):
        with Image.open(path) as image:
            image.load()
            return image.info.get("Provenance")
    if head.startswith(b"%PDF"):
        return _keywords(path.read_bytes())
    if b"<svg" in head or head.startswith(b"<?xml"):
        return _description(path)
    if head.startswith(b"{"):
        return provenance.read_json(path).stamp.to_json()
    return None


def _description(path: Path) -> str | None:
    try:
        return ElementTree.parse(path).findtext(f".//{DESCRIPTION}")
    except ElementTree.ParseError as error:
        raise ValueError(f"{path.name} is no whole SVG file ({error})") from None


def _keywords(pdf: bytes) -> str | None:
    """The string under /Keywords, UTF-16 where it is not ASCII (PDF 1.7, 7.3.4.2 and 7.9.2)."""
    found = re.search(rb"/Keywords \(((?:[^\\)]|\\.)*)\)", pdf, re.DOTALL)
    if found is None:
        return None
    controls = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"f": b"\f"}
    raw = re.sub(rb"\\(.)", lambda at: controls.get(at[1], at[1]), found[1], flags=re.DOTALL)
    return raw.decode("utf-16" if raw.startswith(b"\xfe\xff") else "ascii")


def _article(stamp: Stamp) -> Article | None:
    slug = stamp.what.removeprefix(SWEEP)
    return next((article for article in ARTICLES if article.slug == slug), None)


def _states(stamp: Stamp) -> Mapping[str, str]:
    changed = stamp.changed_inputs()
    gone = [name for name in changed if not (paths.ROOT / name).is_file()]
    elsewhere = [name for name in stamp.inputs if name.startswith(f"{paths.ELSEWHERE}/")]
    return {
        **dict.fromkeys(stamp.inputs, "same"),
        **dict.fromkeys(changed, "changed"),
        **dict.fromkeys(gone, "missing"),
        **dict.fromkeys(elsewhere, "elsewhere"),
    }


def _differing(stamp: Stamp) -> Mapping[str, Any]:
    """The parameters of a run that are not what its profile gives now."""
    if stamp.what not in params.SECTIONS:
        return {}
    now = params.load(stamp.what).model_dump(mode="json")
    return {name: now.get(name) for name in stamp.params if now.get(name) != stamp.params[name]}


def _twin(path: Path, article: Article) -> str | None:
    content = path.read_bytes()
    same = (each for each in _files(article) if each.read_bytes() == content)
    return next((paths.label(each) for each in same), None)


def _files(article: Article) -> Iterator[Path]:
    for folder in (paths.figures(article.slug), paths.result_files(), paths.RECORDED):
        yield from (path for path in sorted(folder.glob("*")) if path.is_file())
