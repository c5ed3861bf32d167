"""A text in lines, each token on its ground, with the bar of its fate."""

import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from foredraft.viz.tokens import COLUMNS, FATES, fates


def table(*tokens):
    return pd.DataFrame(tokens, columns=["text", "confidence", "fate"])


def drawn(figure):
    (axes,) = figure.axes
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def test_every_token_has_a_ground_and_a_bar_in_the_colour_of_its_fate():
    rows = table(*((f"w{i}", 0.9, fate) for i, fate in enumerate(FATES)))
    patches = drawn(fates(rows))
    bars = [to_hex(patch.get_facecolor()) for patch in patches[1::2]]
    assert bars == [colour.lower() for _, colour in FATES.values()]
    assert [patch.get_width() for patch in patches[::2]] == [2] * len(FATES)


def test_the_less_sure_the_darker_is_the_ground():
    patches = drawn(fates(table(("a", 0.95, "plain"), ("b", 0.5, "plain"), ("c", 0.05, "plain"))))
    light = [sum(patch.get_facecolor()[:3]) for patch in patches[::2]]
    assert light == sorted(light, reverse=True)


def test_new_lines_end_a_line_and_are_shown():
    figure = fates(table(("ab\n", 0.9, "plain"), ("c", 0.9, "accepted")))
    (axes,) = figure.axes
    letters = {(text.get_position(), text.get_text()) for text in axes.texts}
    assert {letter for _, letter in letters} == {"a", "b", "↵", "c"}
    (below,) = [place for place, letter in letters if letter == "c"]
    assert below == pytest.approx((0.5, 1.45))


def test_a_token_that_does_not_fit_goes_on_in_the_next_line():
    patches = drawn(fates(table(("x" * (COLUMNS - 1), 0.9, "plain"), ("yz", 0.9, "bonus"))))
    assert [(p.get_x(), p.get_y(), p.get_width()) for p in patches[2::2]] == [
        (COLUMNS - 1, 0, 1),
        (0, 1, 1),
    ]


def test_a_lead_stands_above_the_title_and_takes_no_room_from_the_text():
    rows = table(("a", 0.9, "accepted"))
    alone, led = fates(rows), fates(rows, "one\ntwo")
    assert led.get_suptitle() == f"one\ntwo\n{alone.get_suptitle()}"
    assert led.get_figheight() > alone.get_figheight()


def test_the_title_says_what_became_of_the_sure_and_of_the_others():
    rows = table(
        *(("a", 0.9, "accepted"), ("b", 0.8, "recovered"), ("c", 0.2, "plain")),
        *(("d", 0.1, "bonus"), ("e", 0.3, "plain"), ("f", 0.4, "plain")),
    )
    title = fates(rows).get_suptitle()
    assert title == "Accepted or bonus: 1 of 2 tokens that the target was sure of, 1 of 4 others"
