"""A figure that answers to sliders in JupyterLab, and stands still everywhere else.

`Panel(draw, heat=Slider((0.5, 1, 2), at=1))` calls `draw(heat=1)`. While a reader has the notebook
open (`live`), the figure is drawn anew at each move of a slider; under papermill, on GitHub and in
print it is the one at the values that the sliders start at, without any widget.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from foredraft.repro.live import is_live

if TYPE_CHECKING:
    from ipywidgets import Box, ValueWidget

Value = float | int | str


@final
@dataclass(frozen=True, slots=True)
class Slider:
    """One of these values, `at` to begin with; `name` stands beside it instead of the keyword."""

    stops: Sequence[Value]
    at: Value
    name: str = ""

    def __post_init__(self) -> None:
        if self.at not in self.stops:
            raise ValueError(f"a slider cannot start at {self.at!r}: add it to {[*self.stops]}")

    @classmethod
    def near(cls, stops: Sequence[float], value: float, *, name: str = "") -> "Slider":
        """Start at the stop that is nearest to a value."""
        return cls(stops, min(stops, key=lambda stop: abs(stop - value)), name)

    def parts(self, keyword: str) -> "Parts":
        """Make the widget."""
        from ipywidgets import HBox, Layout, SelectionSlider

        slider = SelectionSlider(
            options=[
                (f"{stop:g}" if isinstance(stop, float) else str(stop), stop) for stop in self.stops
            ],
            value=self.at,
            description=self.name or keyword,
            continuous_update=False,
            style={"description_width": "9em"},
            layout=Layout(width="32em"),
        )
        return Parts(HBox([slider]), [slider], lambda: slider.value)


@final
@dataclass(frozen=True, slots=True)
class Switches:
    """Any of `n` numbered things, those of `at` to begin with: the value is a tuple of numbers."""

    n: int
    at: tuple[int, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        if not set(self.at) <= set(range(self.n)):
            raise ValueError(
                f"switches {self.at} are not all among 0 to {self.n - 1}: leave them out"
            )

    def parts(self, keyword: str) -> "Parts":
        """Make a button for each."""
        from ipywidgets import HBox, Label, Layout, ToggleButton

        narrow = Layout(width="3em")
        buttons = [
            ToggleButton(i in self.at, description=str(i), layout=narrow) for i in range(self.n)
        ]
        label = Label(self.name or keyword, layout=Layout(width="9em", justify_content="flex-end"))
        wrapping = Layout(flex_flow="row wrap")
        return Parts(
            HBox([label, *buttons], layout=wrapping),
            buttons,
            lambda: tuple(i for i, button in enumerate(buttons) if button.value),
        )


@dataclass(frozen=True, slots=True)
class Parts:
    """What a control is made of: the box that is shown, what is watched in it, and its value."""

    box: "Box"
    watched: "Sequence[ValueWidget]"
    value: Callable[[], Any]


@final
class Panel:
    """A figure with its controls; a cell that ends in it shows the one with the others, or alone.

    `draw` takes the controls' values by keyword. `still` is the figure at the first values, for
    `figures.save`.
    """

    def __init__(self, draw: Callable[..., Figure], **controls: Slider | Switches) -> None:
        self._draw, self._controls = draw, controls
        self.still = self.at(**{name: control.at for name, control in controls.items()})

    def at(self, **values: Any) -> Figure:
        """Draw the figure at some values, closed, so that it is shown where it is asked for."""
        figure = self._draw(**values)
        plt.close(figure)
        return figure

    def moving(self) -> "Box":
        """Make the controls and the figure that answers to them, or what went wrong, below."""
        from ipywidgets import Image, Layout, Output, VBox

        parts = {name: control.parts(name) for name, control in self._controls.items()}
        picture = Image(value=_png(self.still), format="png", layout=Layout(max_width="100%"))
        failure = Output()

        @failure.capture(clear_output=True)
        def answer(change: object) -> None:
            picture.value = _png(self.at(**{name: part.value() for name, part in parts.items()}))

        for part in parts.values():
            for widget in part.watched:
                widget.observe(answer, names="value")
        return VBox([*(part.box for part in parts.values()), picture, failure])

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.moving() if is_live() else self.still)


def _png(figure: Figure) -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    return drawn.getvalue()
