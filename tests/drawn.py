"""What holds of every figure: it lies within its page, and is drawn again from its values."""

import json

from matplotlib.figure import Figure

from foredraft.articles import redraw
from foredraft.viz import figures


def assert_within_its_page(figure: Figure) -> None:
    """Check that a figure has a title, and that nothing of it is cut off at the page's edge."""
    figure.draw_without_rendering()
    page, drawn = figure.bbox_inches, figure.get_tightbbox()
    assert figure.get_figwidth() <= figures.DOUBLE
    assert min(drawn.x0, drawn.y0) >= -0.01
    assert drawn.x1 <= page.width + 0.01
    assert drawn.y1 <= page.height + 0.01
    assert figure.get_suptitle()


def assert_drawn_again(first: Figure) -> None:
    """Draw it from its values as they are kept in JSON, and compare values and picture."""
    assert isinstance(first, figures.Drawn)
    assert first.drawing is not None
    again = redraw.draw(first.drawing, json.loads(json.dumps(first.arguments)))
    assert again.arguments == first.arguments
    assert figures.preview(again) == figures.preview(first)
