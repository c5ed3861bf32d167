"""The look of figures, and what is in their files."""

import html
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

from foredraft import figures, paths
from foredraft.provenance import Stamp

STAMP = Stamp(what="trial", params={"γ": 4}, inputs={"a.py": "00"}, versions={"torch": "1"}, seed=0)
TABLE = pd.DataFrame(
    [
        {"length": length, "rate": rate + length + repeat / 10, "strategy": strategy}
        for rate, strategy in enumerate(figures.STYLES)
        for length in (1, 2, 4)
        for repeat in range(3)
    ]
)
ENDINGS = ("png", "svg", "pdf")


def draw(name: str) -> list[Path]:
    figure = figures.panels(3)
    left, middle, right = figure.axes[:3]
    figures.lines(left, TABLE, x="length", y="rate", hue="strategy")
    figures.bars(middle, TABLE, x="length", y="rate", hue="strategy")
    figures.heatmap(right, TABLE, x="strategy", y="length", value="rate")
    figures.save(figure, "sampling", name, STAMP)
    return [paths.figures("sampling") / f"{name}.{ending}" for ending in ENDINGS]


def keywords(pdf: Path) -> str:
    """The string under /Keywords: escaped, and UTF-16 where it is not ASCII (PDF 1.7, 7.9.2)."""
    found = re.search(rb"/Keywords \((.*?)(?<!\\)\)", pdf.read_bytes(), re.DOTALL)
    assert found is not None
    raw = re.sub(rb"\\(.)", rb"\1", found[1])
    return raw.decode("utf-16" if raw.startswith(b"\xfe\xff") else "ascii")


def test_a_figure_is_drawn_to_the_same_bytes_whatever_the_user_has_set(outputs):
    first = [path.read_bytes() for path in draw("one")]
    mpl.rcParams.update({"font.size": 20, "savefig.dpi": 50, "svg.hashsalt": "mine"})
    second = [path.read_bytes() for path in draw("two")]
    assert first == second


def test_the_stamp_is_inside_every_file(outputs):
    png, svg, pdf = draw("one")
    with Image.open(png) as image:
        assert Stamp.from_json(image.info["Provenance"]) == STAMP
        assert image.width >= 200 * figures.DOUBLE
    told = html.unescape(svg.read_text())
    assert STAMP.to_json() in told
    assert Stamp.from_json(keywords(pdf)) == STAMP


def test_a_figure_file_has_no_date_and_no_machine_in_it(outputs):
    for path in draw("one"):
        content = path.read_bytes()
        assert b"CreationDate" not in content
        assert b"dc:date" not in content
        assert str(paths.ROOT).encode() not in content


def test_the_palette_moves_few_pixels_and_none_by_far(outputs, monkeypatch):
    few, *_ = draw("few")
    monkeypatch.setattr(figures, "_in_few_colours", lambda png: png)
    full, *_ = draw("full")
    with Image.open(few) as written, Image.open(full) as drawn:
        before, after = (numpy.asarray(each.convert("RGB"), dtype=int) for each in (drawn, written))
    moved = abs(after - before).max(axis=-1)
    assert few.stat().st_size < full.stat().st_size / 2
    assert 0 < moved.max() < 64
    assert (moved > 8).mean() < 0.01


def test_a_saved_figure_is_closed_and_handed_back(outputs):
    figure = figures.panels()
    assert figures.save(figure, "sampling", "one", STAMP) is figure
    assert not plt.get_fignums()


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
    code = "import sys, foredraft.figures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
