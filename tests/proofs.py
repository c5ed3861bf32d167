"""What the proofs found, told after the run: tests record it, the summary collects it.

Worker processes have no terminal of their own; a recorded property reaches the one that has.
"""

from collections.abc import Iterable, Iterator

import pytest

BUG = "bug"
DISTANCE = "largest distance from the target's law"
PVALUE = "χ² p-value of sampled continuations"
CONTROL = "χ² p-value of the biased control"


def told(reports: Iterable[pytest.TestReport]) -> Iterator[str]:
    """Give the lines of the summary; none where no proof was run."""
    found = [each for report in reports for each in report.user_properties]
    yield from sorted(str(value) for name, value in found if name == BUG)
    for name, worst in ((DISTANCE, max), (PVALUE, min), (CONTROL, max)):
        if values := [float(str(value)) for each, value in found if each == name]:
            yield f"{name}: {worst(values):.1e} at worst, of {len(values)}"
