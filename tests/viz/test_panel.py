"""A panel draws what its controls say, and is its first figure where nobody can move them."""

import io

import pytest
from matplotlib import pyplot as plt

from foredraft.repro import live
from foredraft.viz import figures
from foredraft.viz.panel import Panel, Slider, Switches


def draw(height, off):
    figure = figures.panels(width=2, height=1)
    figure.axes[0].plot([0, height], [len(off), sum(off)])
    return figure


@pytest.fixture
def panel() -> Panel:
    return Panel(draw, height=Slider((0.5, 1.0, 2.0), at=1.0), off=Switches(4, at=(1, 3)))


@pytest.fixture
def shown(monkeypatch) -> list[object]:
    """What is displayed, in order."""
    found: list[object] = []
    monkeypatch.setattr("IPython.display.display", found.append)
    monkeypatch.delenv(live.SESSION_VARIABLE, raising=False)
    return found


def png(figure) -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    return drawn.getvalue()


def test_where_nobody_watches_a_panel_is_its_figure_at_the_first_values(panel, shown):
    panel._ipython_display_()
    assert shown == [panel.still]
    assert png(panel.still) == png(draw(1.0, (1, 3)))


def test_where_somebody_watches_a_panel_is_controls_and_the_same_figure(panel, shown, monkeypatch):
    monkeypatch.setenv(live.SESSION_VARIABLE, "notebooks/01_sampling.ipynb")
    panel._ipython_display_()
    (box,) = shown
    *_, picture, _ = box.children
    assert picture.value == png(draw(1.0, (1, 3)))


def test_a_moved_control_draws_the_figure_again(panel):
    height, off, picture, _ = panel.moving().children
    height.children[0].value = 2.0
    assert picture.value == png(draw(2.0, (1, 3)))
    _, *buttons = off.children
    buttons[0].value, buttons[3].value = True, False
    assert picture.value == png(draw(2.0, (0, 1)))


def test_no_figure_stays_open_to_be_shown_twice(panel):
    plt.close("all")
    height, *_ = panel.moving().children
    height.children[0].value = 0.5
    assert plt.get_fignums() == []


def test_a_slider_starts_at_the_nearest_stop():
    assert Slider.near((0.0, 0.5, 1.0), 0.7).at == 0.5


def test_a_start_that_a_control_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"cannot start at 3: add it to \[1, 2\]"):
        Slider((1, 2), at=3)
    with pytest.raises(ValueError, match=r"not all among 0 to 3"):
        Switches(4, at=(4,))
