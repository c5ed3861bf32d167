"""What article 06's figures and their titles say is in their tables, and nothing is left out."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from PIL import Image

from foredraft.articles.llava_sft import plots as draw
from foredraft.articles.llava_sft import table_plots as show
from foredraft.viz import figures
from tests.drawn import assert_drawn_again, assert_within_its_page

MATHS = "| $x_1 | $y^2 |\n| --- | --- |\n| \\frac | a\\\\b$ |"
"""What would not be drawn as it is if it were taken for mathematics."""
PLAIN = "| ab | cd |\n| --- | --- |\n| 12 | 34 |"


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@dataclass(frozen=True)
class Case:
    image: Image.Image
    reference: str
    before: str
    after: str


def picture() -> Image.Image:
    return Image.new("RGB", (160, 160), (250, 240, 230))


def title(figure: Figure) -> str:
    return figure.get_suptitle()


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for each in figure.legends for text in each.get_texts()]


def rows_of(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_yticklabels()]


def written(figure: Figure, **look: str) -> list[str]:
    """The texts of all axes, or those of this colour."""
    texts = [text for axes in figure.axes for text in axes.texts]
    colour = look.get("color")
    return [
        text.get_text() for text in texts if colour is None or to_hex(text.get_color()) == colour
    ]


def widths(axes: Axes) -> list[float]:
    return [patch.get_width() for patch in axes.patches if isinstance(patch, Rectangle)]


def tokens(n_image: int = 5) -> pd.DataFrame:
    """Three tokens of a prompt around an image, then four of an answer and its end."""
    parts = [
        *(("<s>", "prompt"), *[("<image>", "image")] * n_image, ("read\n", "prompt")),
        *(("$x_1", "prompt"), ("| a", "answer"), (" |\n", "answer"), ("\\f", "answer")),
        *(("$ |", "answer"), ("</s>", "end")),
    ]
    table = pd.DataFrame(parts, columns=["text", "role"])
    return table.assign(has_loss=table["role"].isin(["answer", "end"]))


def scored(levels: tuple[int, ...] = (1, 2, 3), stages: tuple[str, ...] = tuple(draw.STAGES)):
    exact = {"before": 0.0, "full": 0.96, "lora": 0.92}
    rows = [
        {"stage": stage, "level": level, "n": 200, "exact": exact[stage] / level}
        for stage in stages
        for level in levels
    ]
    table = pd.DataFrame(rows)
    for score in draw.METRICS:
        table[score] = table["exact"]
        table[f"{score}_low"] = (table["exact"] - 0.03).clip(lower=1e-17)
        table[f"{score}_high"] = (table["exact"] + 0.03).clip(upper=1.0)
    return table


def log(*methods: str) -> pd.DataFrame:
    """Forty steps of eight examples; the loss of others is lowest at the thirtieth."""
    rows = [
        {"method": method, "step": step, "examples": 8 * step, "loss": 3 / step}
        for method in methods
        for step in range(1, 41)
    ]
    table = pd.DataFrame(rows)
    others = 0.125 + (table["step"] - 30).abs() / 10 + (table["method"] == "lora") / 8
    return table.assign(eval_loss=others.where(table["step"] % 10 == 0))


def grown(levels: tuple[int, ...] = (1, 2, 3), methods: tuple[str, ...] = ("full", "lora")):
    rows = [
        {"method": method, "examples": n, "level": level, "n": 200, "exact": share / level}
        for method in methods
        for level in levels
        for n, share in ((600, 0.2), (1800, 0.5), (6000, 0.9 if method == "full" else 0.8))
    ]
    table = pd.DataFrame(rows)
    return table.assign(exact_low=table["exact"] - 0.02, exact_high=table["exact"] + 0.02)


def wrong() -> pd.DataFrame:
    """Level 2 has letters confused by both methods, level 1 lengths by one; the base all else."""
    rows = [
        ("before", 1, "missing", 1000),
        ("before", 2, "form", 1000),
        ("full", 1, "length", 2),
        ("full", 2, "letter confusion", 6),
        ("lora", 2, "letter confusion", 9),
        ("lora", 2, "swapped", 0),
    ]
    table = pd.DataFrame(rows, columns=["stage", "level", "kind", "count"])
    return table.assign(share=table["count"] / 1000)


def misread(n_others: int = 0) -> pd.DataFrame:
    rows = [("$", "S", 5), ("_", "\\", 3), ("", "x", 1), (" ", "", 1)]
    others = [(chr(0x61 + i), "?", 1) for i in range(n_others)]
    return pd.DataFrame([*rows, *others], columns=["true", "read", "count"])


def steps(*methods: str) -> pd.DataFrame:
    parts = {"collation": 0.0125, "forward and backward": 0.8, "evaluation": 0.1875}
    rows = [(method, part, share) for method in methods for part, share in parts.items()]
    return pd.DataFrame(rows, columns=["method", "part", "share"])


def cases() -> list[Case]:
    return [
        Case(picture(), PLAIN, "nothing but words " * 90, PLAIN),
        Case(picture(), MATHS, "", MATHS.replace("y", "z").replace("| \\", "\\")),
    ]


def heats(n: int) -> list[np.ndarray]:
    """Of a hundred patches one has 1, or in later maps one more each; all others 0."""
    return [
        np.array([1.0] * (i + 1) + [0.0] * (99 - i), np.float32).reshape(10, 10) for i in range(n)
    ]


EXAMPLES = [(2, picture(), MATHS), (1, picture(), PLAIN), (1, picture(), PLAIN[:-5])]
DRAWN = {
    "levels": lambda: show.levels(EXAMPLES),
    "one level": lambda: show.levels([(3, picture(), f"| {'word | ' * 40}\n" * 12)]),
    "roles": lambda: show.roles(tokens(256)),
    "before_and_after": lambda: show.before_and_after(cases()),
    "saliency": lambda: show.saliency(
        picture(), heats(5), ["$x_1", "\\frac", "word " * 9, "", "7"]
    ),
    "one map": lambda: show.saliency(picture(), heats(1), ["$"]),
    "scores": lambda: draw.scores(scored()),
    "learning": lambda: draw.learning(log("full", "lora")),
    "growth": lambda: draw.growth(grown()),
    "faults": lambda: draw.faults(wrong()),
    "no faults": lambda: draw.faults(wrong().head(2)),
    "confusions": lambda: draw.confusions(misread(20)),
    "no confusions": lambda: draw.confusions(misread().head(0)),
    "speed": lambda: draw.speed(steps("full", "lora")),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_and_its_title_lie_within_the_page(name):
    assert_within_its_page(DRAWN[name]())


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_drawn_again_from_what_it_keeps_to_the_same_picture(name):
    assert_drawn_again(DRAWN[name]())


def test_each_level_is_a_row_of_pictures_whose_markdown_is_below_them():
    figure = show.levels(EXAMPLES)
    (page,) = figure.axes
    tops = [image.get_extent()[3] for image in page.images if isinstance(image, AxesImage)]
    assert tops[0] == tops[1] < tops[2]
    texts = written(figure)
    assert [text for text in texts if text.startswith("level")] == ["level 1", "level 2"]
    assert [text for text in texts if text.startswith("|")] == [
        line for text in (PLAIN, PLAIN[:-5], MATHS) for line in text.split("\n")
    ]
    assert f"at level 1: {len(PLAIN) - 5} to {len(PLAIN)}, 2: {len(MATHS)}" in title(figure)


def test_a_run_of_image_tokens_is_one_box_and_every_other_token_has_its_own():
    figure = show.roles(tokens(n_image=256))
    (axes,) = figure.axes
    grounds = [to_hex(patch.get_facecolor()).upper() for patch in axes.patches]
    for role, n in (("prompt", 3), ("image", 1), ("answer", 4), ("end", 1)):
        assert grounds.count(show.ROLES[role][1]) == n, role
    assert "<image> × 256" in "".join(written(figure))


def test_a_bar_is_below_the_tokens_that_carry_loss_and_the_title_counts_them():
    figure = show.roles(tokens(n_image=256))
    patches = figure.axes[0].patches
    bars = [i for i, p in enumerate(patches) if to_hex(p.get_facecolor()).upper() == show.LOSS]
    assert len(bars) == 5
    assert {to_hex(patches[i - 1].get_facecolor()).upper() for i in bars} == {
        show.ROLES["answer"][1],
        show.ROLES["end"][1],
    }
    assert title(figure) == (
        "5 of 264 tokens carry loss: 0 of 3 prompt, 0 of 256 image, 4 of 4 answer, 1 of 1 end"
    )


def test_tokens_flow_on_in_the_next_line_and_new_lines_end_one():
    table = pd.DataFrame({"text": ["a\n", *["word"] * 60, "x" * 300], "role": "prompt"})
    figure = show.roles(table.assign(has_loss=False))
    (axes,) = figure.axes
    boxes = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [boxes[i].get_xy() for i in (0, 1)] == [(0, 0), (0, 1)]
    assert max(box.get_x() + box.get_width() for box in boxes) <= show.COLUMNS
    assert len({box.get_y() for box in boxes}) == 5, "one, three of words, one cut short"


def test_the_title_gives_the_exact_tables_of_every_stage_and_level():
    figure = draw.scores(scored())
    assert title(figure) == (
        "Tables written exactly, level 1, 2, 3: before 0%, 0%, 0%; full 96%, 48%, 32%; "
        "LoRA 92%, 46%, 31%"
    )
    assert legend(figure) == ["before", "full", "LoRA"]


def test_aims_are_dotted_in_the_panel_of_exact_tables_only():
    def dotted(figure):
        return [
            [segment[0, 1] for each in axes.collections for segment in each.get_segments()]
            for axes in figure.axes
        ]

    bare = dotted(draw.scores(scored(levels=(3,))))
    aimed = dotted(draw.scores(scored(levels=(1, 2))))
    assert not {0.9, 0.6} & {y for panel in bare for y in panel}
    assert {0.9, 0.6} <= set(aimed[0])
    assert not any({0.9, 0.6} & set(panel) for panel in aimed[1:])


def test_one_stage_and_one_level_are_scores_too():
    figure = draw.scores(scored(levels=(1,), stages=("full",)))
    assert title(figure).endswith("level 1: full 96%")
    assert legend(figure) == ["full"]


def test_each_methods_lowest_evaluated_loss_and_where_it_was_are_told():
    figure = draw.learning(log("full", "lora").iloc[::-1])
    assert "full 0.125 after 240 examples, LoRA 0.25 after 240 examples" in title(figure)
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    marked = [line for line in axes.lines if str(line.get_marker()) in "Ds"]
    assert [len(np.asarray(line.get_xdata())) for line in marked] == [4, 4]


def test_a_method_that_was_never_evaluated_is_said_to_be_so():
    figure = draw.learning(log("lora").assign(eval_loss=np.nan))
    assert title(figure) == "Lowest held-out loss: LoRA never evaluated"


def test_growth_has_a_panel_a_level_and_tells_of_the_first():
    figure = draw.growth(grown().sample(frac=1, random_state=0))
    assert title(figure) == (
        "Exact at level 1, 600 → 6,000 examples: full 20% → 90%, LoRA 20% → 80%"
    )
    assert [axes.get_title("center").strip() for axes in figure.axes] == [
        "level 1",
        "level 2",
        "level 3",
    ]
    assert all(axes.get_xscale() == "log" for axes in figure.axes)


def test_growth_of_one_method_at_one_level_is_one_line():
    figure = draw.growth(grown(levels=(2,), methods=("lora",)))
    assert len(figure.axes[0].containers) == 1
    assert title(figure).endswith("level 2, 600 → 6,000 examples: LoRA 10% → 40%")


def test_faults_are_those_of_the_fine_tuned_and_kinds_with_none_are_left_out():
    figure = draw.faults(wrong())
    assert rows_of(figure.axes[0]) == ["letter confusion", "length"]
    assert [sorted(widths(axes)) for axes in figure.axes] == [[0.002], [0.006, 0.009]]
    assert "full 8, 75% letter confusion; LoRA 9, 100% letter confusion" in title(figure)


@pytest.mark.parametrize("n", [0, 2], ids=["no rows", "none after fine-tuning"])
def test_no_faults_are_said_to_be_none(n):
    assert title(draw.faults(wrong().head(n))) == "No fault in any table of the fine-tuned models"


def test_confusions_are_named_most_frequent_first_and_no_more_than_fit():
    figure = draw.confusions(misread(20).iloc[::-1])
    names = rows_of(figure.axes[0])
    assert names[:2] == ["$ → S", "_ → \\"]
    assert len(names) == draw.MOST_PAIRS
    assert title(figure) == "Most often $ → S: 5 of 30 characters misread"


def test_characters_lost_and_added_are_told_from_those_read_as_others():
    figure = draw.confusions(misread())
    assert rows_of(figure.axes[0])[2:] == ["x added", "␣ lost"]
    assert legend(figure) == ["read as another", "added", "lost"]


def test_no_confusions_are_said_to_be_none():
    figure = draw.confusions(misread().head(0))
    assert title(figure) == "No character was read as another, lost or added"


def letters(figure: Figure, colour: str) -> str:
    """What is written in this colour, without its spaces."""
    return "".join("".join(written(figure, color=colour.lower())).split())


def test_what_is_unlike_the_reference_is_marked_and_what_is_missing_has_a_caret():
    case = Case(picture(), "| abcd |\n| 1 |", "| abxd |\n| 1 |", "| abcd \n| 1 |")
    figure = show.before_and_after([case])
    assert letters(figure, show.UNLIKE) == "x^"
    assert {"before, characters unlike: 1", "after, characters unlike: 1"} <= set(written(figure))


def test_marks_and_text_stand_in_columns_of_one_width():
    case = Case(picture(), "| abcd |", "| abxd |", "| abcd |")
    page = show.before_and_after([case]).axes[0]
    (mark,) = [text for text in page.texts if text.get_text().strip() == "x"]
    (rest,) = [text for text in page.texts if text.get_text() == "| ab d |"]
    assert mark.get_text() == "    x"
    assert mark.get_position() == rest.get_position()


def test_a_new_line_too_many_is_shown():
    figure = show.before_and_after([Case(picture(), "| a |", "| a\n |", "| a |")])
    assert letters(figure, show.UNLIKE) == "↵"


def test_the_title_counts_the_tables_written_as_they_should_be():
    assert title(show.before_and_after(cases())).endswith("0 before fine-tuning, 1 after")
    assert written(show.before_and_after(cases())).count("after, as it should be") == 1


def test_a_long_text_ends_in_how_much_is_left_out_and_stays_above_the_next_row():
    figure = show.before_and_after(cases())
    shown = letters(figure, show.UNLIKE).replace("^", "") + letters(figure, show.INK)
    (told,) = [text for text in written(figure) if text.startswith("…")]
    left_out = int(told.split()[2])
    assert 0 < left_out < len("nothing but words " * 90)
    assert len(shown) < 2 * len(MATHS) + len(PLAIN) + len("nothing but words " * 90) - left_out
    assert "(nothing)" in written(figure)
    page = figure.axes[0]
    (place,) = [text.get_position()[1] for text in page.texts if text.get_text() == told]
    assert place <= show.TOP + show.SIDE


def test_a_text_is_not_taken_for_mathematics_and_what_the_font_lacks_is_shown_as_such():
    text = "$a_1$ \\frac 文 \x07\t|"
    figure = show.before_and_after([Case(picture(), text, text, text)])
    assert f"$a_1$ \\frac {show.UNKNOWN} {show.UNKNOWN * 2}|" in written(figure)
    assert not any(text.get_parse_math() for text in figure.axes[0].texts if "$" in text.get_text())


def test_saliency_counts_the_patches_that_hold_half_of_it():
    figure = show.saliency(picture(), heats(5), list("abcde"))
    assert title(figure) == "Half of a cell's saliency lies in 1 to 3 of 100 patches"
    one = show.saliency(picture(), heats(1), ["$x_1"])
    assert title(one) == "Half of a cell's saliency lies in 1 of 100 patches"
    assert one.axes[1].get_title("center").strip() == "$x_1"


def test_a_heat_map_covers_the_whole_picture():
    figure = show.saliency(picture(), heats(2), ["a", "b"])
    below, above = figure.axes[1].images
    assert tuple(below.get_extent()) == tuple(above.get_extent()) == (0, 160, 160, 0)
    assert np.asarray(above.get_array()).shape == (10, 10)


@pytest.mark.parametrize(("n", "n_labels"), [(0, 0), (6, 6), (2, 1)])
def test_as_many_maps_as_labels_and_no_more_than_five(n, n_labels):
    with pytest.raises(ValueError, match=f"{n} maps and {n_labels} labels: give 1 to 5"):
        show.saliency(picture(), heats(n), ["a"] * n_labels)


def test_the_data_paths_share_is_told_of_each_method():
    figure = draw.speed(steps("full", "lora").iloc[::-1])
    assert title(figure) == "The data path's share of a training step: full 1.2%, LoRA 1.2%"
    assert sorted(legend(figure)) == ["collation", "evaluation", "forward and backward"]


def test_the_parts_of_a_step_lie_end_to_end():
    (axes,) = draw.speed(steps("lora")).axes
    starts = [patch.get_x() for patch in axes.patches if isinstance(patch, Rectangle)]
    assert starts == pytest.approx([0, *np.cumsum(widths(axes))[:-1]])
    assert sum(widths(axes)) == pytest.approx(1)


def test_a_step_without_its_data_path_is_refused():
    table = steps("full")
    with pytest.raises(ValueError, match="forward and backward, evaluation: give a share"):
        draw.speed(figures.where(table, method="full").loc[table["part"] != "collation"])


@pytest.mark.parametrize(
    ("drawing", "table"),
    [
        (show.roles, tokens()),
        (draw.scores, scored()),
        (draw.learning, log("full")),
        (draw.growth, grown()),
        (draw.faults, wrong()),
        (draw.confusions, misread()),
        (draw.speed, steps("full")),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_a_figure_leaves_its_table_as_it_was(drawing, table):
    before = table.copy(deep=True)
    drawing(table)
    pd.testing.assert_frame_equal(table, before)


def test_a_figure_leaves_its_pictures_and_maps_as_they_were():
    image, maps = picture(), heats(2)
    show.saliency(image, maps, ["a", "b"])
    show.levels([(1, image, PLAIN)])
    assert image.tobytes() == picture().tobytes()
    assert image.mode == "RGB"
    assert all(np.array_equal(*pair) for pair in zip(maps, heats(2), strict=True))
