"""How the outcome of a reproduction is shown: one row per claim, counts, what is left to do."""

from collections.abc import Iterator

from rich.table import Table

from foredraft.repro.comparison import Verdict
from foredraft.repro.reproduction import Report

SHOWN = 5
"""Changed files that are named."""

MARKS = {Verdict.SAME: "✓", Verdict.WITHIN: "✓", Verdict.DRIFT: "~", Verdict.DIFFERS: "✗"}


def table(report: Report) -> Table:
    """Every claim with its verdict, and of the other values those that are not the same."""
    rows = Table("", "article", "claim", "committed → here", "verdict", box=None, pad_edge=False)
    for each in report.compared:
        if each.is_claim or each.verdict is not Verdict.SAME:
            name = each.text if each.is_claim else f"value {each.key}"
            rows.add_row(MARKS[each.verdict], each.slug, name, each.change, str(each.verdict))
    return rows


def lines(report: Report) -> Iterator[str]:
    """The counts, both processors, and what changed in the repository."""
    for what, claims in (("claims", True), ("other values", False)):
        counts = report.counts(claims=claims)
        each = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
        yield f"{sum(counts.values())} {what}: {each}."
    yield f"Committed on: {'; '.join(report.committed_on) or 'not recorded'}."
    yield f"Here on:      {report.here_on}."
    if report.changed:
        shown = ", ".join(report.changed[:SHOWN]) + ", …" * (len(report.changed) > SHOWN)
        yield f"{len(report.changed)} files have changed: {shown}; {report.restored_by}."
    else:
        yield "No file has changed."


def failure(report: Report) -> str:
    """Why it did not reproduce, in one line."""
    parts = []
    if report.stopped:
        parts.append(report.stopped)
    if report.trouble:
        parts.append(f"the results are new, but {report.trouble}")
    if report.failed:
        parts.append(f"did not run to the end: {', '.join(report.failed)}")
    if beyond := report.beyond():
        keys = [f"{each.slug}#{each.key}" for each in beyond]
        parts.append(f"{len(keys)} values differ beyond their interval: {', '.join(keys)}")
    return "not reproduced: " + "; ".join(parts)
