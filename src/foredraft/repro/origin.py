"""Where a figure or a file of results came from, and how that compares with this checkout.

A file of an article carries a mark: its article and the digest of its values. The full stamp stands
in the article's record, which is looked for by that digest: in this checkout, beside the file, and
in the history of this repository. The file may lie anywhere and have any name; what it is, is read
from its first bytes. Files of former versions carry their full stamp themselves.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image

from foredraft import paths
from foredraft.files import digest
from foredraft.registry import ARTICLES, Article
from foredraft.repro import git, params, provenance
from foredraft.repro.provenance import Mark, Stamp
from foredraft.repro.record import Record, read_record

DESCRIPTION = "{http://purl.org/dc/elements/1.1/}description"
"""The element of an SVG file that holds its stamp."""

PNG_END = b"IEND\xaeB`\x82"
"""The last chunk of every PNG file, with its checksum."""

SWEEP = "sweep of "
"""How the stamp of a sweep's table and figure begins; an article's slug follows."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a file was made from, and how that compares with this checkout.

    `record` is the file that says so, `commit` the one whose record it is if this checkout has
    another; `processor` what the values were first made on, if that is known. `inputs` says of
    each input: same, changed, missing, or elsewhere; `differing` is what params.yaml has now where
    it is another value; `twin` is the file here with the same bytes.
    """

    stamp: Stamp
    record: str
    commit: str | None
    processor: str | None
    article: Article | None
    inputs: Mapping[str, str]
    differing: Mapping[str, Any]
    twin: str | None

    def text(self) -> str:
        """The same in lines: what, then parameters, versions and inputs."""
        what = f"{self.article.number:02d} {self.article.title}" if self.article else "no article"
        record = f"{self.record} of commit {self.commit}" if self.commit else self.record
        changed = [name for name, state in self.inputs.items() if state in ("changed", "missing")]
        facts = [
            ("made as", f"{self.stamp.what} ({what}), {self.stamp.device}, {self.stamp.dtype}"),
            ("record", record),
            *([("processor", self.processor)] if self.processor else []),
            ("here", self.twin or "no file here has the same bytes"),
            ("inputs", f"{len(changed)} of {len(self.inputs)} are not the same here"),
            *(("parameter", self._parameter(name)) for name in self.stamp.params),
            *(("version", f"{name} {told}") for name, told in self.stamp.versions.items()),
            *(
                ("input", f"{digest} {name}: {self.inputs[name]}")
                for name, digest in {**self.stamp.code, **self.stamp.inputs}.items()
            ),
        ]
        return "\n".join(f"{name:<10} {fact}" for name, fact in facts)

    def _parameter(self, name: str) -> str:
        note = "" if name not in self.differing else f" (params.yaml: {self.differing[name]})"
        return f"{name}: {self.stamp.params[name]}{note}"


@dataclass(frozen=True, slots=True)
class Found:
    """A stamp, the file that holds it, and what else is known of it."""

    stamp: Stamp
    record: str
    commit: str | None = None
    processor: str | None = None

    @classmethod
    def of(cls, record: Record, file: str, commit: str | None = None) -> "Found":
        """What an article's record says."""
        return cls(record.stamp, file, commit, str(record.processor))


def trace(path: Path) -> Origin:
    """Find what made a file and compare with this checkout.

    ValueError if the file is missing, damaged, edited, has no stamp, lies among the files of
    another article than its own, or has a digest that no record has.
    """
    found = find(path)
    article = _article(found.stamp)
    return Origin(
        stamp=found.stamp,
        record=found.record,
        commit=found.commit,
        processor=found.processor,
        article=article,
        inputs=_states(found.stamp),
        differing=_differing(found.stamp),
        twin=_twin(path, article) if article else None,
    )


def find(path: Path) -> Found:
    """Find the stamp of a PNG, SVG, PDF, JSON or CSV file; ValueError as of `trace`."""
    if not path.is_file():
        raise ValueError(f"{path} is no file; give one that `foredraft run` has written")
    if path.suffix == ".csv":
        return _of_table(path)
    carried = _carried(path)
    if carried is None:
        raise ValueError(
            f"{path.name} carries no stamp: PNG, SVG, PDF and JSON files of this repository do, "
            "until another program saves them again without it"
        )
    if isinstance(carried, Record):
        return Found.of(carried, path.name)
    if isinstance(carried, Stamp):
        return Found(carried, path.name)
    _require_own_folder(path, carried)
    return _recorded(path, carried.article, carried.data)


def _of_table(path: Path) -> Found:
    """A table carries nothing: it is known by its digest, or by the JSON file beside it."""
    beside = path.with_suffix(".json")
    if beside.is_file():
        provenance.read_table(path)
        return find(beside)
    slugs = [each.slug for each in ARTICLES if path.name.startswith(each.slug)]
    return _recorded(path, (slugs or [None])[0], digest(path))


def _recorded(path: Path, slug: str | None, wanted: str) -> Found:
    """Look for the record that has a digest: in this checkout, beside the file, in history."""
    slugs = [each.slug for each in ARTICLES if slug in (None, each.slug)]
    if not slugs:
        raise ValueError(
            f"{path.name} carries the stamp of an article {slug!r}, which this checkout does not "
            f"have; it has {', '.join(each.slug for each in ARTICLES)}"
        )
    for file in _records(path, slugs):
        record = read_record(file)
        if wanted in record.produced.everything():
            return Found.of(record, paths.label(file))
    if (swept := _sweep(path, wanted)) is not None:
        return swept
    for each in slugs:
        file = paths.label(paths.record(each))
        for commit in git.commits_with(wanted, file):
            record = Record.from_json(git.file_at(commit, file))
            if wanted in record.produced.everything():
                return Found.of(record, file, commit)
    raise ValueError(
        f"{path.name} has the digest {wanted}, which no record has, neither in this checkout nor "
        "in its history: it was edited, or comes from a run that was not committed"
    )


def _sweep(path: Path, wanted: str) -> Found | None:
    """The stamp of the sweep below whose folder the file lies, if its table has a digest."""
    for folder in path.resolve().parents:
        table = folder / "table.json"
        try:
            made = provenance.read_json(table)
        except (OSError, ValueError, TypeError):  # not there, or somebody else's
            continue
        if made.content.get("table") == {"file": "table.csv", "digest": wanted}:
            return Found(made.stamp, paths.label(table))
    return None


def _records(path: Path, slugs: list[str]) -> Iterator[Path]:
    """The records of these articles here, and those of the run that left the file."""
    for slug in slugs:
        beside = (folder / paths.cited(slug) for folder in path.resolve().parents)
        others = (file.with_name(paths.record(slug).name) for file in beside)
        yield from (file for file in (paths.record(slug), *others) if file.is_file())


def _require_own_folder(path: Path, mark: Mark) -> None:
    """Refuse a file that lies where, or is called as, another article's is."""
    folder, name = path.resolve().parent, path.name.partition(".")[0]
    of_folder = (a for a in ARTICLES if folder == paths.figures(a.slug).resolve())
    of_name = (a for a in ARTICLES if mark.name in ("results", "figures") and name == a.slug)
    owner = next(chain(of_folder, of_name), None)
    if owner is not None and owner.slug != mark.article:
        raise ValueError(
            f"{path.name} carries the stamp of the article {mark.article}, but lies among the "
            f"files of {owner.slug}: `foredraft run {owner.slug}` writes its own"
        )


def _carried(path: Path) -> Stamp | Mark | Record | None:
    head = path.read_bytes()[:1024].lstrip()
    if head.startswith(b"{"):
        return read_record(path) if _is_record(path) else provenance.read_stamp(path)
    if head.startswith(b"\x89PNG"):
        text = _png(path)
    elif head.startswith(b"%PDF"):
        text = _keywords(path.read_bytes())
    elif b"<svg" in head or head.startswith(b"<?xml"):
        text = _description(path)
    else:
        text = None
    return None if text is None else provenance.parse(text)


def _is_record(path: Path) -> bool:
    return path.name in {paths.record(each.slug).name for each in ARTICLES}


def _png(path: Path) -> str | None:
    if PNG_END not in path.read_bytes():
        raise ValueError(
            f"{path.name} is not a whole PNG file (its end is missing); `git restore` it, or run "
            "its article"
        )
    try:
        with Image.open(path) as image:
            image.load()
            return image.info.get("Provenance")
    except (OSError, SyntaxError) as error:
        raise ValueError(
            f"{path.name} is not a whole PNG file ({error}); `git restore` it, or run its article"
        ) from None


def _description(path: Path) -> str | None:
    try:
        return ElementTree.parse(path).findtext(f".//{DESCRIPTION}")
    except ElementTree.ParseError as error:
        raise ValueError(f"{path.name} is not a whole SVG file ({error})") from None


def _keywords(pdf: bytes) -> str | None:
    """The string under /Keywords, UTF-16 where it is not ASCII (PDF 1.7, 7.3.4.2 and 7.9.2)."""
    found = re.search(rb"/Keywords \(((?:[^\\)]|\\.)*)\)", pdf, re.DOTALL)
    if found is None:
        return None
    controls = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"f": b"\f"}
    raw = re.sub(rb"\\(.)", lambda at: controls.get(at[1], at[1]), found[1], flags=re.DOTALL)
    return raw.decode("utf-16" if raw.startswith(b"\xfe\xff") else "ascii", errors="replace")


def _article(stamp: Stamp) -> Article | None:
    slug = stamp.what.removeprefix(SWEEP)
    return next((article for article in ARTICLES if article.slug == slug), None)


def _states(stamp: Stamp) -> Mapping[str, str]:
    changed = stamp.changed_inputs()
    gone = [name for name in changed if not (paths.ROOT / name).is_file()]
    elsewhere = [name for name in stamp.inputs if name.startswith(f"{paths.ELSEWHERE}/")]
    return {
        **dict.fromkeys([*stamp.code, *stamp.inputs], "same"),
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
