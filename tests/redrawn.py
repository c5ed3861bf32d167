"""Whether a figure can be drawn again from the values that it keeps."""

import json

from matplotlib.figure import Figure

from foredraft.articles import redraw
from foredraft.viz import figures


def assert_drawn_again(first: Figure) -> None:
    """Draw it from its values as they are kept in JSON, and compare values and picture."""
    assert isinstance(first, figures.Drawn)
    assert first.drawing is not None
    again = redraw.draw(first.drawing, json.loads(json.dumps(first.arguments)))
    assert again.arguments == first.arguments
    assert figures.preview(again) == figures.preview(first)
