"""Tables are a function of their seed, fit their images, and never cross to the other side."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw

from foredraft.training.llava import tables
from foredraft.training.llava.pipe_table import Table, parse
from foredraft.training.llava.table_images import BOLD, Style, edges, fits, font, trace, write
from foredraft.training.llava.tables import (
    HELD_OUT_SEED,
    LEVELS,
    LEXICON,
    MINIMAL_SLACK,
    example,
    examples,
    is_held_out,
    level_of,
    word,
)

every_level = pytest.mark.parametrize("level", LEVELS.values(), ids=lambda level: level.number)
SEEDS = (0, HELD_OUT_SEED)
ANYTHING = "ab7 |\\-:`*é\t"


def random_table(random: Random) -> Table:
    rows, columns = random.randint(1, 5), random.randint(1, 4)

    def cell() -> str:
        return "".join(random.choices(ANYTHING, k=random.randint(0, 6))).strip()

    return Table(
        tuple(tuple(cell() for _ in range(columns)) for _ in range(rows)),
        tuple(random.choice(("none", "left", "centre", "right")) for _ in range(columns)),
    )


def words(table: Table) -> set[str]:
    return {cell for row in table.cells for cell in row if not cell.isdigit()}


@pytest.mark.parametrize("seed", range(200))
def test_any_table_is_read_back_from_its_markdown(seed):
    table = random_table(Random(seed))
    assert parse(table.markdown()) == table


def test_spacing_dashes_and_outer_pipes_are_free():
    loose = "\n a|  b |\n|:-|--:\n|1| \\|2\\\\\n\n"
    assert parse(loose) == Table((("a", "b"), ("1", "|2\\")), ("left", "right"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no table"),
        ("| a |", "no table"),
        ("a\n---", "no pipe"),
        ("| a |\n| b |", "rule row"),
        ("| a |\n| --- |\n| 1 | 2 |", "2 cells"),
        ("| a | b |\n| --- |", "2 cells"),
        ("Here:\n| a |\n| --- |", "no pipe"),
    ],
)
def test_what_is_not_one_table_is_refused(text, told):
    with pytest.raises(ValueError, match=told):
        parse(text)


@every_level
@pytest.mark.parametrize("seed", SEEDS)
def test_an_example_depends_on_level_seed_and_index_alone(level, seed):
    stream = [(e, e.image.tobytes()) for e in examples(level, 6, seed)]
    for index in (5, 0, 3):
        alone = example(level, seed, index)
        assert (alone, alone.image.tobytes()) == stream[index]
    assert len({pixels for _, pixels in stream}) == 6


def test_another_process_with_other_hashes_draws_the_same_bytes():
    code = (
        "import hashlib; from foredraft.training.llava.tables import LEVELS, example;"
        "print(hashlib.sha256(example(LEVELS[3], 4, 2).image.tobytes()).hexdigest())"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    here = example(LEVELS[3], 4, 2).image.tobytes()
    assert told.strip() == hashlib.sha256(here).hexdigest()


@every_level
def test_held_out_tables_and_words_are_on_the_other_side_than_those_of_training(level):
    for seed in (0, HELD_OUT_SEED - 1, HELD_OUT_SEED, HELD_OUT_SEED + 7):
        for each in examples(level, 10, seed):
            assert is_held_out(each.table.markdown()) == (seed >= HELD_OUT_SEED)
            if level.letters is None:
                assert words(each.table) <= set(LEXICON)
            else:
                assert {is_held_out(w) for w in words(each.table)} == {seed >= HELD_OUT_SEED}
                assert not words(each.table) & set(LEXICON)


def test_composed_words_have_as_many_letters_as_asked_for():
    random = Random(0)
    lengths = {len(word(random, (3, 6), held_out=True)) for _ in range(200)}
    assert lengths == {3, 4, 5, 6}


@every_level
def test_every_size_of_a_level_is_drawn(level):
    shapes = {(len(e.table.cells), len(e.table.alignments)) for e in examples(level, 100, 0)}
    rows, columns = (range(low, high + 1) for low, high in (level.rows, level.columns))
    assert shapes == {(row, column) for row in rows for column in columns}


@every_level
def test_glyphs_spell_the_cells_and_lie_inside_them_and_the_image(level):
    for each in examples(level, 30, 1):
        drawing = trace(each.table, each.style, each.size)
        for texts, boxes, glyphs in zip(
            each.table.cells, drawing.boxes, drawing.glyphs, strict=True
        ):
            for text, (left, top, right, bottom), found in zip(texts, boxes, glyphs, strict=True):
                assert "".join(glyph.character for glyph in found) == text
                for glyph in found:
                    assert 0 <= left <= glyph.left < glyph.right <= right <= each.size
                    assert 0 <= top <= glyph.top < glyph.bottom <= bottom <= each.size


@pytest.mark.parametrize("rotation", [0.0, 3.0, -3.0])
def test_all_ink_lies_in_the_boxes_of_glyphs(rotation):
    table = Table((("jog", "quiz"), ("77", "1")), ("left", "right"))
    style = Style(rules="none", shift=(50, 60), rotation=rotation)
    drawing = trace(table, style)
    pixels = 255 - np.asarray(drawing.image.convert("L")).astype(int)
    covered = np.zeros_like(pixels, dtype=bool)
    for glyph in (glyph for row in drawing.glyphs for cell in row for glyph in cell):
        # bicubic interpolation reaches two pixels further, from where a box ends within a pixel
        margin = 3 if rotation else 0
        top, left = int(glyph.top) - margin, int(glyph.left) - margin
        box = np.s_[top : int(glyph.bottom) + margin, left : int(glyph.right) + margin]
        assert pixels[box].max() > 60
        covered[box] = True
    assert pixels[~covered].max() == 0


@every_level
def test_an_alignment_is_written_only_where_it_can_be_seen(level):
    for each in examples(level, 30, 2):
        columns = zip(*trace(each.table, each.style, each.size).glyphs, strict=True)
        for alignment, cells in zip(each.table.alignments, columns, strict=True):
            assert alignment in level.alignments
            if alignment != "none" and not each.style.rotation:
                sides = {"left": [c[0].left for c in cells], "right": [c[-1].right for c in cells]}
                spread = {side: max(xs) - min(xs) for side, xs in sides.items()}
                wanted = {"left": "right", "right": "left"}.get(alignment)
                seen = [spread[wanted]] if wanted else list(spread.values())
                # of the slack, half on each side if centred; side bearings take up to two pixels
                assert min(seen) >= MINIMAL_SLACK / (1 if wanted else 2) - 2


def test_a_table_that_does_not_fit_is_refused_with_its_bounds(monkeypatch):
    table = Table((("window",) * 5,), ("none",) * 5)
    assert not fits(table, Style(), 160)
    with pytest.raises(ValueError, match=r"160 pixels a side"):
        trace(table, Style(), 160)
    monkeypatch.setattr(tables, "ATTEMPTS", 20)
    with pytest.raises(ValueError, match=r"fits into 20 pixels"):
        example(LEVELS[1], 0, 0, size=20)


def test_a_fitting_table_touches_the_image_only_inside_its_edges():
    table = Table((("a", "b"),), ("none", "none"))
    columns, rows = edges(table, Style(shift=(0, 0)))
    needed = max(columns[-1], rows[-1]) + 1
    assert fits(table, Style(shift=(0, 0)), needed)
    assert not fits(table, Style(shift=(0, 0)), needed - 1)


def test_all_fonts_are_those_of_matplotlib_and_opened_once():
    used = {name for level in LEVELS.values() for name in level.fonts}
    for name in used | {BOLD.get(name, name) for name in used}:
        assert Path(str(font(name, 10).path)).is_relative_to(matplotlib.get_data_path())
        assert font(name, 10) is font(name, 10)
    with pytest.raises(ValueError, match="did you mean 'DejaVuSans'"):
        font("DejaVuSan", 10)


def test_loose_words_are_written_where_asked_and_spaces_have_no_glyph():
    image = Image.new("RGB", (80, 20), (255, 255, 255))
    glyphs = write(ImageDraw.Draw(image), (4, 3), "a b", font("DejaVuSans", 10))
    assert [glyph.character for glyph in glyphs] == ["a", "b"]
    assert 4 <= glyphs[0].left < glyphs[0].right < glyphs[1].left
    assert np.asarray(image).min() < 100


@pytest.mark.parametrize(
    "change", [{"noise": 9.0}, {"blur": 0.5}, {"rotation": 2.0}, {"header": "shaded"}]
)
def test_each_way_to_spoil_an_image_changes_it(change):
    table, style = Table((("a", "b"), ("1", "2")), ("none", "none")), Style(shift=(30, 30))
    plain, changed = (trace(table, s).image for s in (style, replace(style, **change)))
    assert plain.tobytes() != changed.tobytes()
    assert changed.size == (160, 160)
    assert changed.mode == "RGB"


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="unknown level '4'"):
        level_of(4)
