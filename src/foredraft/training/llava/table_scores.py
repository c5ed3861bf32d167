"""How near a Markdown table that a model wrote comes to the true one, and in what it goes wrong."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise, zip_longest
from typing import Literal, final

from apted import APTED

from foredraft.analysis.statistics import wilson
from foredraft.training.llava.pipe_table import Table, alignment, parse, split_row

Grid = tuple[tuple[str, ...], ...]
Kind = Literal[
    "missing",
    "extra",
    "swapped",
    "merged",
    "digit confusion",
    "letter confusion",
    "mixed confusion",
    "length",
    "other",
    "alignment",
    "form",
]


@dataclass(frozen=True, slots=True)
class TableScore:
    """One prediction's scores, all in [0, 1]; `exact` implies that all others are 1."""

    exact: bool
    text: bool
    cell_accuracy: float
    teds: float
    valid: bool


def score(predicted: str, reference: str) -> TableScore:
    """Score a text against a true table; ValueError if the reference is no table.

    exact: both are tables and their Markdown, written anew by `Table.markdown`, is the same: spaces
    around cells, the number of dashes and outer pipes are free, alignments and all text are not.
    text: all cells stand in place with their text, whatever the alignments and the form.
    valid: the prediction is one table and nothing else.
    Cells and trees are those of all lines that have a pipe, so an invalid text earns its part too.
    """
    truth = parse(reference)
    table = _parsed(predicted)
    grid = cells(predicted)
    return TableScore(
        exact=table == truth,
        text=grid == truth.cells,
        cell_accuracy=cell_accuracy(grid, truth.cells),
        teds=teds(grid, truth.cells),
        valid=table is not None,
    )


def cells(markdown: str) -> Grid:
    """The rows of whatever is table in a text: its lines with a pipe but the first rule row."""
    if (table := _parsed(markdown)) is not None:
        return table.cells
    rows = [row for line in markdown.splitlines() if (row := _row(line))]
    rule = next((number for number, row in enumerate(rows) if _is_rule(row)), len(rows))
    return tuple(row for number, row in enumerate(rows) if number != rule)


def cell_accuracy(predicted: Grid, reference: Grid) -> float:
    """The share of the reference's cells, header included, that stand in place with their text.

    A cell that is missing is wrong; each one that lies outside the reference counts as one wrong
    cell more, so that only the very same grid gives 1.
    """
    n_right = n_cells = 0
    for ours, true in zip_longest(predicted, reference, fillvalue=()):
        n_right += sum(a == b for a, b in zip(ours, true, strict=False))
        n_cells += max(len(ours), len(true))
    return n_right / n_cells


def teds(predicted: Grid, reference: Grid) -> float:
    """Tree-edit-distance similarity (Zhong et al., arXiv 1911.10683): 1 - distance / larger tree.

    The trees are HTML's: table, thead and tbody, tr, td. To delete, insert or rename a node costs
    1, to change a cell's text the Levenshtein distance over the longer text's length. No table: 0,
    as for trees so unlike that making one of the other takes more than the larger has nodes.
    """
    if not predicted or not reference:
        return float(predicted == reference)
    if predicted == reference:
        return 1.0
    trees = _tree(predicted), _tree(reference)
    distance = APTED(*trees, _Costs()).compute_edit_distance()
    return max(0.0, 1 - distance / max(tree.size for tree in trees))


def levenshtein(a: str, b: str) -> int:
    """How many characters to insert, delete or replace at least to turn one text into the other."""
    costs = list(range(len(b) + 1))
    for row, x in enumerate(a, start=1):
        diagonal, costs[0] = costs[0], row
        for column, y in enumerate(b, start=1):
            replaced = diagonal + (x != y)
            diagonal = costs[column]
            costs[column] = min(replaced, diagonal + 1, costs[column - 1] + 1)
    return costs[-1]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over tables with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The scores of `n` tables."""

    n: int
    exact: Estimate
    text: Estimate
    cell_accuracy: Estimate
    teds: Estimate
    valid: Estimate


def summary(scores: Iterable[TableScore]) -> Summary:
    """Average scores over tables, with Wilson's intervals; ValueError if there is none."""
    scores = list(scores)
    if not scores:
        raise ValueError("0 scores have no mean: give at least one")
    return Summary(
        n=len(scores),
        exact=_estimate([float(s.exact) for s in scores]),
        text=_estimate([float(s.text) for s in scores]),
        cell_accuracy=_estimate([s.cell_accuracy for s in scores]),
        teds=_estimate([s.teds for s in scores]),
        valid=_estimate([float(s.valid) for s in scores]),
    )


def _estimate(values: Sequence[float]) -> Estimate:
    mean = sum(values) / len(values)
    return Estimate(mean, *wilson(mean, len(values)))


@dataclass(frozen=True, slots=True)
class Fault:
    """A cell that is wrong; row 0 is the header, row None the rule row or the text as a whole."""

    row: int | None
    column: int
    kind: Kind
    predicted: str
    reference: str


def faults(predicted: str, reference: str) -> list[Fault]:
    """Give each wrong cell its kind, the first that fits; empty just where the score is exact.

    Rows stand in order if there are as many as in the reference, else where most agree (difflib).

    missing: no text where there should be some. extra: text or a cell where there should be none.
    swapped: the text of another cell that is wrong too. merged: the cell's text joined to its
    neighbour's. digit, letter and mixed confusion: as long as the true text, other characters.
    length: characters lost or added, at least half of the text (difflib's ratio) the same.
    other: none of these, or as long and three characters or more, none of them right.
    alignment: a cell of the rule row of a valid table. form: the text is no valid table.
    """
    truth, table = parse(reference), _parsed(predicted)
    pairs = [pair for pair in _pairs(cells(predicted), truth.cells) if pair[2] != pair[3]]
    wrong = {true for *_, true in pairs if true}
    found = [
        Fault(
            row,
            column,
            _kind(ours, true, _joined(truth, row, column), wrong),
            ours or "",
            true or "",
        )
        for row, column, ours, true in pairs
    ]
    if table is None:
        return [*found, Fault(None, 0, "form", "", "")]
    rules = zip_longest(table.alignments, truth.alignments, fillvalue="")
    return found + [
        Fault(None, column, "alignment", ours, true)
        for column, (ours, true) in enumerate(rules)
        if ours != true
    ]


def confusions(found: Iterable[Fault]) -> Counter[tuple[str, str]]:
    """Count (true, read) characters in cells that were misread, aligned by difflib.

    "" as read is a character lost, as true one added.
    """
    misread = [f for f in found if f.kind.endswith("confusion") or f.kind == "length"]
    return Counter(pair for fault in misread for pair in _character_pairs(fault))


def _parsed(markdown: str) -> Table | None:
    try:
        return parse(markdown)
    except ValueError:
        return None


def _row(line: str) -> tuple[str, ...]:
    try:
        return split_row(line)
    except ValueError:
        return ()


def _is_rule(row: Sequence[str]) -> bool:
    try:
        return all(alignment(cell) for cell in row)
    except ValueError:
        return False


_Pair = tuple[int, int, str | None, str | None]
"""Row (the reference's, if it has it), column, predicted and true text, None where is no cell."""


@dataclass(frozen=True, slots=True)
class _Node:
    tag: str
    text: str = ""
    children: tuple["_Node", ...] = ()

    @property
    def size(self) -> int:
        return 1 + sum(child.size for child in self.children)


def _tree(grid: Grid) -> _Node:
    rows = [_Node("tr", children=tuple(_Node("td", cell) for cell in row)) for row in grid]
    head, body = _Node("thead", children=(rows[0],)), _Node("tbody", children=tuple(rows[1:]))
    return _Node("table", children=(head, body) if body.children else (head,))


@final
class _Costs:
    """What APTED asks of a cost model."""

    valuecls = float

    def delete(self, node: _Node) -> float:
        return 1.0

    def insert(self, node: _Node) -> float:
        return 1.0

    def rename(self, a: _Node, b: _Node) -> float:
        if a.tag != b.tag:
            return 1.0
        return levenshtein(a.text, b.text) / max(len(a.text), len(b.text), 1)

    def children(self, node: _Node) -> tuple[_Node, ...]:
        return node.children


def _pairs(predicted: Grid, reference: Grid) -> Iterator[_Pair]:
    for ours, true in _row_pairs(predicted, reference):
        number = ours if true is None else true
        assert number is not None
        rows = () if ours is None else predicted[ours], () if true is None else reference[true]
        for column, (a, b) in enumerate(zip_longest(*rows)):
            yield number, column, a, b


def _row_pairs(predicted: Grid, reference: Grid) -> Iterator[tuple[int | None, int | None]]:
    if len(predicted) == len(reference):
        yield from ((number, number) for number in range(len(reference)))
        return
    matcher = SequenceMatcher(None, predicted, reference, autojunk=False)
    for _, start, stop, true_start, true_stop in matcher.get_opcodes():
        yield from zip_longest(range(start, stop), range(true_start, true_stop))


def _joined(truth: Table, row: int, column: int) -> set[str]:
    """What the cell and one beside it look like when they run into one another."""
    line = truth.cells[row] if row < len(truth.cells) else ()
    return {
        left + right
        for number, (left, right) in enumerate(pairwise(line))
        if column in (number, number + 1)
    }


def _kind(ours: str | None, true: str | None, joined: set[str], wrong: set[str]) -> Kind:
    if not true:
        return "missing" if ours is None else "extra"
    if not ours:
        return "missing"
    if ours in wrong:
        return "swapped"
    if ours.replace(" ", "") in joined:
        return "merged"
    if len(ours) != len(true):
        alike = SequenceMatcher(None, ours, true, autojunk=False).ratio()
        return "length" if alike >= 0.5 else "other"
    differing = [pair for pair in zip(ours, true, strict=True) if pair[0] != pair[1]]
    if len(differing) == len(true) > 2:
        return "other"
    if all(a.isdigit() and b.isdigit() for a, b in differing):
        return "digit confusion"
    is_letters = all(a.isalpha() and b.isalpha() for a, b in differing)
    return "letter confusion" if is_letters else "mixed confusion"


def _character_pairs(fault: Fault) -> Iterator[tuple[str, str]]:
    matcher = SequenceMatcher(None, fault.reference, fault.predicted, autojunk=False)
    for tag, start, stop, read_start, read_stop in matcher.get_opcodes():
        if tag != "equal":
            true, read = fault.reference[start:stop], fault.predicted[read_start:read_stop]
            yield from zip_longest(true, read, fillvalue="")
