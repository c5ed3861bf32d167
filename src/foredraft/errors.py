"""The one wording for a name that is not known: what was given, what is allowed, what is near."""

from collections.abc import Iterable
from difflib import get_close_matches

MOST = 24
"""Names that are listed; of more, only those that resemble the given one."""


def unknown(what: str, name: str, known: Iterable[str]) -> ValueError:
    """The error to raise for a `name` that is not among the `known` ones.

    >>> raise unknown("strategy", "drafft", ["draft", "target"])
    Traceback (most recent call last):
    ValueError: unknown strategy 'drafft': did you mean 'draft'? Known: draft, target
    """
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return ValueError(f"unknown {what} {name!r}: {meant}Known: {_listed(name, names)}")


def _listed(name: str, names: list[str]) -> str:
    if len(names) <= MOST:
        return ", ".join(names) or "none"
    alike = get_close_matches(name, names, n=MOST // 3, cutoff=0)
    return f"{', '.join(alike)} and {len(names) - len(alike)} others"
