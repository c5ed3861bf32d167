"""The look of figures, and what is in their files."""

import html
import io
import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from PIL import Image

from foredraft import paths
from foredraft.repro import provenance
from foredraft.repro.provenance import Mark
from foredraft.viz import figures
from foredraft.viz.figures import FORMATS

MARK = Mark("sampling", "one", "0123456789abcdef")
TABLE = pd.DataFrame(
    [
        {"length": length, "rate": rate + length + repeat / 10, "strategy": strategy}
        for rate, strategy in enumerate(figures.STYLES)
        for length in (1, 2, 4)
        for repeat in range(3)
    ]
)


@figures.drawing
def curves(table: pd.DataFrame):
    """Draw one of everything."""
    figure = figures.panels(3)
    left, middle, right = figure.axes[:3]
    figures.lines(left, table, x="length", y="rate", hue="strategy")
    figures.bars(middle, table, x="length", y="rate", hue="strategy")
    figures.heatmap(right, table, x="strategy", y="length", value="rate")
    return figure


def keywords(pdf: Path) -> str:
    """The string under /Keywords: escaped, and UTF-16 where it is not ASCII (PDF 1.7, 7.9.2)."""
    found = re.search(rb"/Keywords \((.*?)(?<!\\)\)", pdf.read_bytes(), re.DOTALL)
    assert found is not None
    raw = re.sub(rb"\\(.)", rb"\1", found[1])
    return raw.decode("utf-16" if raw.startswith(b"\xfe\xff") else "ascii")


def mark_in(path: Path) -> Mark:
    """The mark in a picture, read by other means than the package's own."""
    match path.suffix:
        case ".png":
            with Image.open(path) as image:
                found = provenance.parse(image.info["Provenance"])
        case ".svg":
            text = html.unescape(path.read_text(encoding="utf-8"))
            found = provenance.parse(re.search(r"<dc:description>(.*?)</dc:d", text, re.DOTALL)[1])
        case _:
            found = provenance.parse(keywords(path))
    assert isinstance(found, Mark)
    return found


def test_a_figure_is_drawn_to_the_same_bytes_whatever_the_user_has_set(tmp_path):
    first = figures.save(curves(TABLE), tmp_path / "a", MARK, FORMATS)
    mpl.rcParams.update({"font.size": 20, "savefig.dpi": 50, "svg.hashsalt": "mine"})
    second = figures.save(curves(TABLE), tmp_path / "b", MARK, FORMATS)
    assert [path.name for path in first] == ["one.png", "one.svg", "one.pdf"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_the_mark_is_inside_every_file(tmp_path):
    for path in figures.save(curves(TABLE), tmp_path, MARK, FORMATS):
        assert mark_in(path) == MARK


def test_a_figure_is_a_picture_unless_other_formats_are_asked_for(tmp_path):
    assert figures.save(curves(TABLE), tmp_path, MARK) == [tmp_path / "one.png"]
    with Image.open(tmp_path / "one.png") as image:
        assert image.width == pytest.approx(figures.DOUBLE * figures.DOTS_PER_INCH, abs=1)
        assert image.info["dpi"] == pytest.approx((figures.DOTS_PER_INCH,) * 2, rel=1e-3)


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown format of a figure 'pgn': did you mean 'png'"):
        figures.save(curves(TABLE), tmp_path, MARK, ["pgn"])
    assert not list(tmp_path.iterdir())
    plt.close("all")


def test_a_figure_file_has_no_date_and_no_machine_in_it(tmp_path):
    for path in figures.save(curves(TABLE), tmp_path, MARK, FORMATS):
        content = path.read_bytes()
        assert b"CreationDate" not in content
        assert b"dc:date" not in content
        assert str(paths.ROOT).encode() not in content


def test_the_palette_moves_few_pixels_and_none_by_far(tmp_path, monkeypatch):
    def plain():
        figure = figures.panels(2)
        some = TABLE[TABLE["strategy"].isin(["foredraft", "target"])]
        figures.lines(figure.axes[0], some, x="length", y="rate", hue="strategy")
        figures.bars(figure.axes[1], some, x="length", y="rate", hue="strategy")
        return figure

    (few,) = figures.save(plain(), tmp_path / "few", MARK)
    monkeypatch.setattr(figures, "in_few_colours", lambda png: png)
    (full,) = figures.save(plain(), tmp_path / "full", MARK)
    with Image.open(few) as written, Image.open(full) as drawn:
        assert written.mode == "P"
        before, after = (numpy.asarray(each.convert("RGB"), dtype=int) for each in (drawn, written))
    moved = abs(after - before).max(axis=-1)
    assert few.stat().st_size < full.stat().st_size / 2
    assert 0 < moved.max() < 48
    assert (moved > 8).mean() < 0.005


def test_a_picture_of_more_colours_than_any_palette_gets_the_largest():
    pixels = numpy.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=numpy.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "png", dpi=(160, 160))
    with Image.open(io.BytesIO(figures.in_few_colours(written.getvalue()))) as image:
        assert image.mode == "P"
        assert len(image.getcolors()) == max(figures.PALETTES)


def test_a_saved_figure_is_closed(tmp_path):
    figures.save(curves(TABLE), tmp_path, MARK)
    assert not plt.get_fignums()


def test_a_preview_is_small_and_closed():
    with Image.open(io.BytesIO(figures.preview(curves(TABLE)))) as image:
        assert image.width == pytest.approx(figures.DOUBLE * figures.PREVIEW_DOTS_PER_INCH, abs=1)
    assert not plt.get_fignums()


def test_a_drawing_notes_its_name_and_values():
    figure = curves(table=TABLE)
    assert figure.drawing == f"{__name__}.curves"
    assert figure.arguments == figures.values.encode([[], {"table": TABLE}])
    plt.close(figure)


def test_a_drawing_sees_its_values_as_they_are_kept():
    seen = []

    @figures.drawing
    def draw(*values, **named):
        seen.extend([values, named])
        return figures.panels()

    plt.close(draw(1 / 3, range(2), x=(TABLE["rate"] / 3).iloc[1]))
    assert seen == [(0.333333, [0, 1]), {"x": 0.366667}]


def test_a_drawing_refuses_what_it_could_not_keep():
    with pytest.raises(TypeError, match="pass what is drawn of it"):
        curves(object())


def test_a_figure_that_is_no_drawing_knows_no_values():
    for figure in (figures.panels(), figures.page(2.0)):
        assert (figure.drawing, figure.arguments) == (None, None)
    plt.close("all")


def test_several_panels_are_lettered():
    assert [axes.get_title("left") for axes in figures.panels(2, 2).axes] == ["a", "b", "c", "d"]
    assert figures.panels().axes[0].get_title("left") == ""
    plt.close("all")


def test_strategies_are_told_apart_by_colour_by_marker_and_by_dashes():
    styles = figures.STYLES.values()
    for seen in ("colour", "marker", "dashes"):
        assert len({getattr(style, seen) for style in styles}) == len(styles)


def test_a_strategy_has_its_own_colour_in_every_plot():
    axes = figures.panels().axes[0]
    some = TABLE[TABLE["strategy"].isin(["foredraft", "target"])]
    figures.bars(axes, some, x="length", y="rate", hue="strategy")
    drawn = {patch.get_facecolor()[:3] for patch in axes.patches}
    assert drawn == {to_rgb(figures.STYLES[name].colour) for name in ("foredraft", "target")}
    plt.close("all")


@pytest.mark.parametrize("hue", [None, "length", "other"])
def test_lines_take_numbers_words_and_nothing_as_hue(hue):
    axes = figures.panels().axes[0]
    table = TABLE.assign(other=TABLE["strategy"] + "?")
    figures.lines(axes, table, x="length", y="rate", hue=hue)
    assert axes.lines
    plt.close("all")


def test_drawing_needs_no_torch():
    code = "import sys, foredraft.viz.figures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
