"""Does it reproduce? Every article computed again, and a verdict on each claim.

The results as they are committed are put aside first. Then the articles run, two at a time, each
with the threads that params.yaml gives it, longest first. In the end every claim is compared.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TypeVar

from foredraft import paths
from foredraft.files import digest, write_text
from foredraft.machine import Processor, this_processor
from foredraft.registry import Article
from foredraft.repro import claims as results
from foredraft.repro import digests, git, readme, values
from foredraft.repro.claims import Findings
from foredraft.repro.comparison import SEVERITY, Compared, Verdict, compare, judge
from foredraft.repro.record import Record

Read = TypeVar("Read")

JOBS = 2
"""Articles at a time: with one thread each, two on two cores take less than one after another."""

LONGEST_FIRST = ("llava_sft", "self_speculation", "bert", "confidence_gating", "layer_skipping")
"""What is started first, so that nothing long is left for the end."""

HEARTBEAT, POLL = 30, 0.2
"""Seconds between two lines that say what runs, and between two looks at it."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """What an article is compared with: its results, and the processor that they were made on.

    With git these are the committed ones, else those that were there before the first reproduction.
    `found` are those that lay in the checkout if they are others: edited, or of a former run.
    """

    committed: Findings | None
    found: Findings | None
    processor: Processor | None
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def compare(
        self, here: Findings, processor: Processor, files: Mapping[str, str] | None = None
    ) -> list[Compared]:
        """Compare with both; where they disagree the worse verdict counts.

        `files` are the digests of the table and of what the figures draw.
        """
        same = self.processor is None or self.processor.kind == processor.kind
        worst: dict[str, Compared] = {}
        for name, made in (files or {}).items():
            for before in self.files.get(name, ()):
                verdict = judge(before, made, None, same_processor=same)
                slug = here.article.slug
                worst[name] = Compared(slug, name, name, before, made, verdict, is_claim=False)
                if verdict is not Verdict.SAME:
                    break
        for each in (self.committed, self.found):
            for found in compare(each, here, same_processor=same) if each else ():
                before = worst.setdefault(found.key, found)
                if SEVERITY.index(found.verdict) > SEVERITY.index(before.verdict):
                    worst[found.key] = found
        return list(worst.values())


def baseline(article: Article) -> Baseline:
    """Read what is committed, and what lies in the checkout."""
    file, record = paths.cited(article.slug), paths.label(paths.record(article.slug))
    lying = _text(paths.ROOT / file)
    if git.is_repository():
        committed, stamp = git.file_at("HEAD", file), git.file_at("HEAD", record)
    else:
        first = FIRST / article.slug
        committed, stamp = _text(first / "results.json"), _text(first / "stamp.json")
        if not committed:
            committed, stamp = lying, _text(paths.ROOT / record)
            write_text(first / "stamp.json", stamp)
            write_text(first / "results.json", committed)
    differs = lying and lying.strip() != committed.strip()
    record_of = _whole(Record.from_json, stamp, record)
    kept = [] if record_of is None else [_digests(record_of)]
    return Baseline(
        committed=_whole(partial(results.parse, article), committed, file),
        found=_whole(partial(results.parse, article), lying if differs else "", file),
        processor=record_of.processor if record_of else None,
        files={
            name: tuple(dict.fromkeys(each[name] for each in [*kept, _digests_of_files(article)]))
            for name in (kept[0] if kept else {})
        },
    )


def _whole(read: Callable[[str], Read], text: str, name: str) -> Read | None:
    """Read a text, if there is one; ValueError, with the file's name, if it is damaged."""
    try:
        return read(text) if text else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{name} is damaged ({error!r}): `git restore {name}`") from None


def _digests(record: Record) -> Mapping[str, str]:
    return {"table": record.produced.table, "values of the figures": record.produced.drawings}


def _digests_of_files(article: Article) -> Mapping[str, str]:
    """The same of the files that lie in the checkout."""
    table, drawings = paths.results(article.slug, "csv"), paths.figure_tables(article.slug)
    if not table.is_file():
        return {"table": "none", "values of the figures": "none"}
    content = _whole(json.loads, _text(drawings), paths.label(drawings)) or {}
    content.pop("stamp", None)
    return {"table": digest(table), "values of the figures": values.digest(content)}


FIRST = paths.CACHE / "reproduction"
"""Where the results of an unpacked archive are kept as they came, since git does not."""


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


@dataclass
class Run:
    """The articles of one reproduction, and how far they are; `say` gets what happens in lines."""

    articles: Sequence[Article]
    say: Callable[[str], None]
    jobs: int = JOBS
    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    stopped: str | None = None
    _running: dict[str, tuple["subprocess.Popen[bytes]", float]] = field(default_factory=dict)
    _begun: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        """Run all, longest first; on a signal stop, and say in `stopped` what is lost."""
        waiting = sorted(self.articles, key=_rank)
        said = time.monotonic()
        with _signals_as_interrupts():
            try:
                while waiting or self._running:
                    while waiting and len(self._running) < self.jobs:
                        self._start(waiting.pop(0))
                    self._collect()
                    if time.monotonic() - said > HEARTBEAT:
                        said = time.monotonic()
                        self.say(f"  {self.elapsed}  {self._state(waiting)}")
                    time.sleep(POLL)
            except KeyboardInterrupt:
                self.stopped = self._stop()

    @property
    def elapsed(self) -> str:
        """Minutes and seconds since the beginning."""
        minutes, seconds = divmod(int(time.monotonic() - self._begun), 60)
        return f"{minutes:2d}:{seconds:02d}"

    def _start(self, article: Article) -> None:
        slug = article.slug
        log = _log(slug)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "foredraft", "run", slug],
                cwd=paths.ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running[slug] = process, time.monotonic()
        self.say(f"▶ {self.elapsed}  {article.number:02d} {slug}")

    def _collect(self) -> None:
        for slug, (process, started) in list(self._running.items()):
            if process.poll() is None:
                continue
            del self._running[slug]
            took = f"{time.monotonic() - started:.0f} s"
            if process.returncode == 0:
                self.done.append(slug)
                self.say(f"✓ {self.elapsed}  {slug}  {took}")
            else:
                self.failed.append(slug)
                log = _log(slug).read_text(encoding="utf-8", errors="replace").strip()
                self.say(f"✗ {self.elapsed}  {slug}  {took}\n{log}")

    def _state(self, waiting: Sequence[Article]) -> str:
        now = time.monotonic()
        running = [f"{slug} {now - started:.0f} s" for slug, (_, started) in self._running.items()]
        left = ", ".join(each.slug for each in waiting) or "nothing else"
        return f"running: {', '.join(running)}; left: {left}"

    def _stop(self) -> str:
        for process, _ in self._running.values():
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
        lost = ", ".join(self._running) or "nothing"
        done = ", ".join(self.done) or "none"
        return (
            f"stopped after {self.elapsed.strip()}. What was running is lost, and its results are "
            f"as they were before: {lost}. Computed again: {done}"
        )


def _rank(article: Article) -> tuple[int, int]:
    """Longest first."""
    known = article.slug in LONGEST_FIRST
    return (LONGEST_FIRST.index(article.slug) if known else len(LONGEST_FIRST)), article.number


def _log(slug: str) -> Path:
    return paths.BUILD / "reproduction" / f"{slug}.log"


@contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """Let a request to end be an interrupt, as Ctrl-C is."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@dataclass(frozen=True, slots=True)
class Report:
    """What a reproduction came to: every value's verdict, and where both sides were made.

    `changed` are the files that are no longer as committed, or as they were without git;
    `restored_by` says how to put them back.
    """

    compared: Sequence[Compared]
    failed: Sequence[str]
    committed_on: Sequence[str]
    here_on: str
    changed: Sequence[str]
    restored_by: str
    stopped: str | None = None
    trouble: str | None = None

    @property
    def reproduced(self) -> bool:
        """Whether all ran, and nothing differs beyond its interval."""
        return not (self.failed or self.beyond() or self.stopped or self.trouble)

    def beyond(self) -> list[Compared]:
        """What differs."""
        return [each for each in self.compared if each.verdict is Verdict.DIFFERS]

    def counts(self, *, claims: bool) -> Mapping[Verdict, int]:
        """How many claims, or other values, have each verdict."""
        of_kind = [each.verdict for each in self.compared if each.is_claim == claims]
        return {verdict: of_kind.count(verdict) for verdict in Verdict}

    def to_json(self) -> str:
        """All of it, for machines."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


def reproduce(
    articles: Sequence[Article], say: Callable[[str], None], *, jobs: int = JOBS
) -> Report:
    """Compute articles again, whatever the digests say, and compare with what is committed.

    If it is stopped, what was done until then counts. Afterwards dvc.lock, RESULTS.md and the
    numbers in README.md and docs are those of the new results; what hindered that is the report's
    `trouble`.
    """
    before = {each.slug: baseline(each) for each in articles}
    lying, edited = _written(), set(git.changed_files())
    digests.write()
    run = Run(articles, say, jobs)
    run.run()
    here = this_processor()
    compared: list[Compared] = []
    for each in articles:
        found = results.read(each.slug) if each.slug in run.done else None
        if found is not None:
            compared += before[each.slug].compare(found, here, _digests_of_files(each))
    trouble = _publish(run.done)
    changed = _differing(lying, _written())
    report = Report(
        compared=compared,
        failed=run.failed,
        committed_on=sorted({str(each.processor) for each in before.values() if each.processor}),
        here_on=str(here),
        changed=changed,
        restored_by=_restored_by(changed, edited),
        stopped=run.stopped,
        trouble=trouble,
    )
    write_text(paths.BUILD / "reproduction.json", report.to_json())
    return report


def _publish(done: Sequence[str]) -> str | None:
    """Bring pages and dvc.lock up to date; say what hindered it."""
    try:
        readme.write(results.publish())
        _lock(["code", *done, "results"])
    except (ValueError, RuntimeError) as error:
        return str(error)
    return None


def _written() -> Mapping[str, str]:
    """The digests of all files that a reproduction may write."""
    places = [path for path in paths.written() if path.exists()]
    folders = [path for path in places if path.is_dir()]
    files = [path for path in places if path.is_file()]
    files += [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {paths.label(path): digest(path) for path in files}


def _differing(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    names = sorted({*before, *after})
    return [name for name in names if before.get(name) != after.get(name)]


def _restored_by(changed: Sequence[str], edited: Collection[str]) -> str:
    """How to put files back, without those that a reader had edited before."""
    if not git.is_repository():
        return "unpacking the archive again puts them back"
    places = [paths.label(path) for path in paths.written()]
    places = [
        each
        for each in places
        if each not in edited and any(f"{name}/".startswith(f"{each}/") for name in changed)
    ]
    return f"`git restore {' '.join(places)}` puts back what was committed"


def _lock(stages: Sequence[str]) -> None:
    """Let dvc.lock say that these stages made what is there now."""
    dvc = Path(sys.executable).with_name("dvc")
    done = subprocess.run(
        [str(dvc), "commit", "--force", *stages], cwd=paths.ROOT, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise RuntimeError(f"dvc.lock could not be brought up to date: {done.stderr.strip()}")
