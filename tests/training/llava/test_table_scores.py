"""Scores of tables: 1 for the truth, known values by hand, bounds, and a kind for every fault."""

from itertools import pairwise
from random import Random

import pytest

from foredraft.training.llava.table_scores import (
    TableScore,
    cell_accuracy,
    cells,
    confusions,
    faults,
    levenshtein,
    score,
    summary,
    teds,
)
from foredraft.training.llava.tables import LEVELS, examples

TRUE = "| cat | 12 |\n| --- | ---: |\n| dog | 345 |\n| sun | 6 |"
TABLES = [each.table.markdown() for each in examples(LEVELS[2], 12, 3)]


@pytest.fixture(scope="module")
def spoilt() -> list[tuple[str, str]]:
    """Tables with some characters replaced, dropped or doubled, pipes and line ends too."""
    random = Random(0)
    pairs = []
    for true in TABLES:
        changed = [
            random.choice(("", c, c + c, "7", "|")) if random.random() < 0.1 else c for c in true
        ]
        pairs.append(("".join(changed), true))
    return pairs


@pytest.mark.parametrize("true", [TRUE, *TABLES[:8]])
def test_the_truth_scores_one_and_has_no_fault(true):
    assert score(true, true) == TableScore(
        exact=True, text=True, cell_accuracy=1.0, teds=1.0, valid=True
    )
    assert faults(true, true) == []


def test_layout_that_markdown_leaves_free_is_no_fault():
    loose = "cat|12\n-|-:\n  dog |345\n|sun|  6|"
    assert score(loose, TRUE).exact
    assert faults(loose, TRUE) == []


@pytest.mark.parametrize(
    ("predicted", "cells", "similarity"),
    [
        # one digit of a three-digit cell: trees of 12 nodes, distance 1/3
        (TRUE.replace("345", "348"), 5 / 6, 1 - (1 / 3) / 12),
        # the last row is lost: tr and two td
        ("| cat | 12 |\n| --- | ---: |\n| dog | 345 |", 4 / 6, 1 - 3 / 12),
        # a row more: 15 nodes, and two cells more to be right
        (TRUE + "\n| a | 1 |", 6 / 8, 1 - 3 / 15),
        # the second column is lost: three td
        ("| cat |\n| --- |\n| dog |\n| sun |", 3 / 6, 1 - 3 / 12),
        ("", 0.0, 0.0),
        ("I see no table.", 0.0, 0.0),
    ],
)
def test_scores_are_those_computed_by_hand(predicted, cells, similarity):
    found = score(predicted, TRUE)
    assert found.cell_accuracy == pytest.approx(cells)
    assert found.teds == pytest.approx(similarity)
    assert not found.exact


def test_a_header_alone_has_no_body_in_its_tree():
    # table, thead, tr, td against the same with tbody, tr, td below
    assert teds((("a",),), (("a",), ("b",))) == pytest.approx(1 - 3 / 7)


def test_text_around_a_table_makes_it_invalid_but_its_cells_count():
    found = score(f"Here it is:\n{TRUE}", TRUE)
    assert found == TableScore(exact=False, text=True, cell_accuracy=1.0, teds=1.0, valid=False)


def test_another_alignment_is_not_exact():
    found = score(TRUE.replace("---:", "---"), TRUE)
    assert found == TableScore(exact=False, text=True, cell_accuracy=1.0, teds=1.0, valid=True)


def test_scores_lie_between_zero_and_one_whatever_is_written(spoilt):
    for predicted, true in [*spoilt, *pairwise(TABLES)]:
        found = score(predicted, true)
        assert 0 <= found.cell_accuracy <= 1
        assert 0 <= found.teds <= 1
        assert found.valid or not found.exact


def test_similarities_are_symmetric(spoilt):
    for predicted, true in spoilt[:6]:
        a, b = cells(predicted), cells(true)
        assert cell_accuracy(a, b) == pytest.approx(cell_accuracy(b, a))
        assert teds(a, b) == pytest.approx(teds(b, a))


def test_a_reference_that_is_no_table_is_refused():
    with pytest.raises(ValueError, match="no pipe"):
        score(TRUE, "no table")


@pytest.mark.parametrize(
    ("a", "b", "distance"), [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)]
)
def test_levenshtein_distances_known_by_hand(a, b, distance):
    assert levenshtein(a, b) == levenshtein(b, a) == distance


@pytest.mark.parametrize(
    ("was", "read", "kind"),
    [
        ("345", "348", "digit confusion"),
        ("dog", "dag", "letter confusion"),
        ("dog", "d0g", "mixed confusion"),
        ("345", "3455", "length"),
        ("345", "", "missing"),
        ("dog", "elephant", "other"),
        ("dog", "fig", "letter confusion"),
        ("dog", "hen", "other"),
        ("dog", "dog345", "merged"),
    ],
)
def test_a_wrong_cell_has_the_kind_of_its_fault(was, read, kind):
    (fault,) = faults(TRUE.replace(was, read), TRUE)
    assert (fault.kind, fault.predicted, fault.reference) == (kind, read, was)


def test_two_cells_that_changed_places_are_swapped():
    found = faults(TRUE.replace("cat", "?").replace("dog", "cat").replace("?", "dog"), TRUE)
    assert [(f.row, f.column, f.kind) for f in found] == [(0, 0, "swapped"), (1, 0, "swapped")]


def test_a_row_left_out_is_missing_and_shifts_no_other():
    found = faults("| cat | 12 |\n| --- | ---: |\n| sun | 6 |", TRUE)
    assert [(f.row, f.column, f.kind) for f in found] == [(1, 0, "missing"), (1, 1, "missing")]


def test_cells_outside_the_truth_are_extra_even_when_they_are_empty():
    found = faults(TRUE + "\n|  | 1 |", TRUE)
    assert [(f.row, f.column, f.kind) for f in found] == [(3, 0, "extra"), (3, 1, "extra")]


def test_faults_are_none_just_where_the_score_is_exact(spoilt):
    for predicted, true in [*spoilt, (f"{TRUE}\n\nDone.", TRUE), (TRUE.replace(":", ""), TRUE)]:
        assert (faults(predicted, true) == []) == score(predicted, true).exact


def test_confused_characters_are_counted_with_what_they_were_read_as():
    read = TRUE.replace("345", "348").replace("dog", "dg").replace("sun", "elephants")
    assert confusions(faults(read, TRUE)) == {("5", "8"): 1, ("o", ""): 1}


def test_a_summary_averages_each_score_over_its_tables():
    found = summary([score(TRUE, TRUE), score("", TRUE)])
    assert found.n == 2
    for each in (found.exact, found.cell_accuracy, found.teds, found.valid):
        assert each.value == 0.5
        assert each.low < 0.5 < each.high


def test_a_summary_of_nothing_is_refused():
    with pytest.raises(ValueError, match="0 scores have no mean"):
        summary([])
