"""Whether values are those that were committed: a verdict on each."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeGuard

from foredraft.repro import claims as results
from foredraft.repro.claims import Claim, Findings, Value

DRIFT = 0.01
"""How far another kind of processor may move a claim that states nothing of it, relatively."""


VALUE_DRIFT, LEAST_DRIFT = 0.25, 0.02
"""The same of a value that backs no claim, whose interval is not known: relatively; of a small one
at least as much, but no more than itself."""


class Verdict(StrEnum):
    """What became of a value; only the last means that it did not reproduce."""

    SAME = "same digits"
    WITHIN = "within its interval"
    DRIFT = "drift on another processor"
    DIFFERS = "differs"


SEVERITY = tuple(Verdict)
"""From the best to the worst."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A claim, or a value without one, as committed and as computed here."""

    slug: str
    key: str
    text: str
    committed: Value | None
    here: Value | None
    verdict: Verdict
    is_claim: bool

    @property
    def change(self) -> str:
        """What it was and is, in words."""
        before, after = results.shown(self.committed), results.shown(self.here)
        moved = None
        if _is_number(self.committed) and _is_number(self.here):
            moved = float(self.here) - float(self.committed)
        return f"{before} → {after}" + ("" if moved is None else f" ({moved:+.2g})")


def compare(committed: Findings, here: Findings, *, same_processor: bool) -> list[Compared]:
    """Compare the values of an article, those that back a claim by the claim's tolerances.

    A claim may move by its spread anywhere, and on another kind of processor by its `drift`, or a
    DRIFT of itself if it has neither; a value without a claim by nothing here, and there by what
    VALUE_DRIFT allows, or to another text or truth value.
    """
    claims = _tolerances(committed, here)
    old, new = _stated(committed), _stated(here)
    compared = []
    for key in dict.fromkeys([*claims, *old, *new]):
        before, after, claim = old.get(key), new.get(key), claims.get(key)
        verdict = judge(before, after, claim, same_processor=same_processor)
        text = claim.text if claim else key
        slug = committed.article.slug
        compared.append(Compared(slug, key, text, before, after, verdict, claim is not None))
    return compared


def _tolerances(committed: Findings, here: Findings) -> Mapping[str, Claim]:
    """The claims of both by their keys: with the committed interval, and the drift of the code."""
    before = {claim.key: claim for claim in committed.claims}
    found = {
        claim.key: replace(claim, spread=before[claim.key].spread) if claim.key in before else claim
        for claim in here.claims
    }
    return {**before, **found}


def _stated(findings: Findings) -> dict[str, Value]:
    """All that an article states: its values, and of each claim its interval, n and the post's."""
    beside = {
        f"{claim.key}@{name}": value
        for claim in findings.claims
        for name, value in (("spread", claim.spread), ("n", claim.n), ("article", claim.article))
        if value is not None
    }
    return {**findings.values, **beside}


def judge(
    committed: Value | None, here: Value | None, claim: Claim | None, *, same_processor: bool
) -> Verdict:
    """The verdict on one value: see `compare`."""
    both_numbers = _is_number(committed) and _is_number(here)
    if committed == here and (both_numbers or type(committed) is type(here)):
        return Verdict.SAME
    if not (_is_number(committed) and _is_number(here)):
        follows = claim is None and type(committed) is type(here)  # a text or truth of numbers
        return Verdict.DRIFT if follows and not same_processor else Verdict.DIFFERS
    before, moved = float(committed), abs(float(here) - float(committed))
    if claim is not None and claim.spread is not None and moved <= claim.spread:
        return Verdict.WITHIN
    may_drift = not same_processor and moved <= _drift(claim, before)
    return Verdict.DRIFT if may_drift else Verdict.DIFFERS


def _drift(claim: Claim | None, before: float) -> float:
    if claim is None:
        return max(VALUE_DRIFT * abs(before), min(LEAST_DRIFT, abs(before)))
    if claim.drift is not None:
        return claim.drift
    return 0.0 if claim.spread is not None else DRIFT * abs(before)


def _is_number(value: Value | None) -> TypeGuard[float | int]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
