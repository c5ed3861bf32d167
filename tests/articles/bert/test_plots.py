"""What article 07's figures and their titles say is in their tables, and nothing is left out."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from foredraft.articles.bert import plots as draw
from tests.drawn import assert_drawn_again, assert_within_its_page

ARMS = {
    "words": "TF-IDF of words",
    "characters": "TF-IDF of characters",
    "real": "all-MiniLM-L6-v2",
    "before": "pocket-bert",
    "after": "pocket-bert, fine-tuned",
}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def title(figure: Figure) -> str:
    return figure.get_suptitle()


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for each in figure.legends for text in each.get_texts()]


def states(*precisions: str) -> pd.DataFrame:
    bounds = {"float32": 2e-5, "float64": 1e-12}
    rows = [
        {"layer": layer, "precision": name, "difference": layer * bounds[name] / 20}
        for name in precisions
        for layer in range(7)
    ]
    return pd.DataFrame(rows).assign(bound=lambda table: table["precision"].map(bounds))


def looks(layers: int = 6, heads: int = 12) -> pd.DataFrame:
    shares = {"itself": 0.1, "the one before": 0.05, "the one after": 0.05, "[CLS]": 0.1}
    shares |= {"[SEP]": 0.4, "others": 0.3}
    rows = [
        {"layer": layer, "head": head, "pattern": pattern, "share": share}
        for layer in range(1, layers + 1)
        for head in range(1, heads + 1)
        for pattern, share in shares.items()
    ]
    return pd.DataFrame(rows)


def fates(n: int = 60) -> pd.DataFrame:
    kinds = ["mark", "unasked", "masked", "replaced", "kept", "unasked"]
    rows = [
        {"rule": rule, "text": f" $w_{i}", "fate": kinds[i % len(kinds)]}
        for rule in draw.RULES
        for i in range(n)
    ]
    return pd.DataFrame(rows)


def by_rate(*rules: str) -> pd.DataFrame:
    rows = [
        {"rule": rule, "rate": rate, "accuracy": 0.6 - rate / 2, "nats": 2 + rate}
        for rule in rules
        for rate in (0.15, 0.5, 0.7)
    ]
    table = pd.DataFrame(rows)
    return table.assign(low=table["accuracy"] - 0.02, high=table["accuracy"] + 0.02)


def curves() -> pd.DataFrame:
    rows = [
        {"run": run, "tokens": 5e5 * step, "held_out": 5.0 / step}
        for run, n in (("shipped", 14), ("here", 2))
        for step in range(1, n + 1)
    ]
    return pd.DataFrame(rows)


def guessers() -> pd.DataFrame:
    who = ["bert", "both_neighbours", "left_neighbour", "unigram"]
    return pd.DataFrame({"who": who, "nats": [2.0, 3.9, 4.8, 6.2]})


def recalls(*arms: str) -> pd.DataFrame:
    rows = [
        {"task": task, "arm": arm, "k": k, "share": 0.21 + 0.1 * number + k / 50, "n": 1160}
        for task in draw.TASKS
        for number, arm in enumerate(arms)
        for k in (1, 3, 10)
    ]
    table = pd.DataFrame(rows)
    return table.assign(low=table["share"] - 0.03, high=table["share"] + 0.03)


def times(*devices: str) -> pd.DataFrame:
    workloads = ["32 tokens each", "8 to 256 tokens, evenly"]
    tasks = [("encode", "ms"), ("train the encoder", "ms"), ("encode once", "MB")]
    rows = [
        {"device": device, "task": task, "unit": unit, "workload": workload, "ratio_median": ratio}
        for device in devices
        for workload, ratio in zip(workloads, (1.25, 2.5), strict=True)
        for task, unit in tasks
    ]
    table = pd.DataFrame(rows)
    middle = table["ratio_median"]
    return table.assign(ratio_min=middle - 0.1, ratio_max=middle + 0.1)


def tokens(n: int = 16) -> list[str]:
    return ["[CLS]", *(f"$t_{i}" for i in range(n - 2)), "[SEP]"]


def heat(n: int = 16) -> np.ndarray:
    return np.full((n, n), 1 / n, np.float32)


DRAWN = {
    "parity": lambda: draw.parity(states("float32", "float64")),
    "one precision": lambda: draw.parity(states("float64")),
    "looks": lambda: draw.looks(looks()),
    "looks of twelve layers": lambda: draw.looks(looks(12)),
    "heads": lambda: draw.heads(tokens(), [heat()] * 5, ["layer 1, head 12: [SEP]"] * 5),
    "one head": lambda: draw.heads(tokens(), [heat()], ["layer 1, head 1: itself"]),
    "fates": lambda: draw.fates(fates()),
    "by_rate": lambda: draw.by_rate(by_rate(*draw.RULES)),
    "learning": lambda: draw.learning(curves(), guessers()),
    "recall": lambda: draw.recall(recalls(*ARMS), ARMS),
    "tuning": lambda: draw.tuning(pd.DataFrame({"step": range(1, 201), "loss": 3.0})),
    "speed": lambda: draw.speed(times("cpu")),
    "speed on two": lambda: draw.speed(times("cpu", "cuda")),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_and_its_title_lie_within_the_page(name):
    assert_within_its_page(DRAWN[name]())


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_drawn_again_from_what_it_keeps_to_the_same_picture(name):
    assert_drawn_again(DRAWN[name]())


def test_the_largest_difference_of_each_precision_is_told_with_its_bound():
    figure = draw.parity(states("float32", "float64").iloc[::-1])
    assert "6.0e-06 in float32 (2e-05 allowed), 3.0e-13 in float64 (1e-12 allowed)" in title(figure)
    dotted = [line.get_ydata()[0] for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert dotted == [2e-5, 1e-12]


def test_a_difference_of_zero_is_drawn_at_the_least():
    (axes,) = draw.parity(states("float64")).axes
    assert min(axes.lines[0].get_ydata()) == draw.LEAST


def test_every_head_is_a_cell_and_the_most_frequent_look_is_told():
    figure = draw.looks(looks(heads=3))
    grids = [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]
    assert [grid.shape for grid in grids] == [(6, 3)] * 6
    assert title(figure) == "Most attention goes to: [SEP] (40% over all heads)"


def test_maps_without_names_are_refused():
    with pytest.raises(ValueError, match="2 maps and 1 names"):
        draw.heads(tokens(), [heat(), heat()], ["a"])


def test_each_token_has_the_ground_of_its_fate_and_those_asked_are_counted():
    figure = draw.fates(fates(12))
    for axes in figure.axes:
        grounds = [to_hex(patch.get_facecolor()).upper() for patch in axes.patches]
        assert len(grounds) == 12
        assert [grounds.count(draw.FATES[fate][1]) for fate in draw.FATES] == [2, 2, 2, 4, 2]
    assert title(figure) == "Tokens asked: 6 of 10 (single pieces), 6 of 10 (whole words)"


def test_tokens_flow_on_in_the_next_line_and_pieces_of_a_word_touch():
    places, n_lines = draw._placed([" token", "izer", *[" word"] * 30, " " + "x" * 300])
    assert places[:3] == [(0, 0, "token"), (0, 5, "izer"), (0, 10, "word")]
    assert n_lines == 3
    assert max(column + len(text) for _, column, text in places) <= draw.COLUMNS


def test_guesses_at_the_least_and_the_most_masked_are_told():
    figure = draw.by_rate(by_rate("whole words"))
    assert title(figure) == "Guessed as 15% → 70% are asked: whole words 52% → 25%"
    assert legend(figure) == ["whole words"]


def test_the_last_losses_are_told_beside_counting():
    figure = draw.learning(curves().iloc[::-1], guessers())
    assert title(figure).endswith("pocket-bert 0.36, trained here 2.50, counting, at best, 3.90")
    assert {name for name, _ in draw.COUNTING.values()} <= set(legend(figure))


def test_arms_are_told_in_their_order_and_those_that_are_missing_are_left_out():
    figure = draw.recall(recalls("after", "words"), ARMS)
    assert title(figure) == (
        "Found among the first 1: TF-IDF of words 33%, pocket-bert, fine-tuned 23%"
    )
    assert legend(figure) == ["TF-IDF of words", "pocket-bert, fine-tuned"]
    assert "(n 1,160)" in figure.axes[0].get_title()


def test_encoding_has_aims_and_other_tasks_have_none():
    figure = draw.speed(times("cpu"))
    aims = [
        sorted(
            float(segment[0, 0])
            for each in axes.collections
            for segment in each.get_segments()
            if each.get_linestyle()[0][1] is not None
        )
        for axes in figure.axes
    ]
    assert aims == [[1.1, 2.0], [], []]
    assert title(figure).endswith("from the top: 1.25, 2.50")


def test_every_measured_ratio_is_written_beside_its_point():
    figure = draw.speed(times("cpu"))
    assert [[text.get_text() for text in axes.texts] for axes in figure.axes] == [
        ["1.25", "2.50"]
    ] * 3


@pytest.mark.parametrize(
    ("drawing", "table"),
    [
        (draw.parity, states("float32")),
        (draw.looks, looks()),
        (draw.fates, fates()),
        (draw.by_rate, by_rate(*draw.RULES)),
        (lambda table: draw.learning(table, guessers()), curves()),
        (lambda table: draw.recall(table, ARMS), recalls(*ARMS)),
        (draw.speed, times("cpu")),
    ],
)
def test_a_figure_leaves_its_table_as_it_was(drawing, table):
    before = table.copy(deep=True)
    drawing(table)
    pd.testing.assert_frame_equal(table, before)
