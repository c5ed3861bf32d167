"""What a figure is drawn from goes through JSON and comes back."""

import io
import json
from dataclasses import dataclass
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from foredraft.repro.values import decode, digest, encode
from foredraft.viz import figures

STRATEGIES = pd.CategoricalDtype(["speculative", "target", "draft"], ordered=True)
MIXED = pd.DataFrame(
    {
        "rate": [0.25, float("nan"), float("inf")],
        "count": [1, 2, 10**15],
        "known": [True, False, True],
        "text": ["γ", "", "a\nb"],
        "strategy": pd.Categorical(["target", None, "draft"], dtype=STRATEGIES),
        "any": [None, "five", 5],
        "perhaps": pd.array([1, None, 3], dtype="Int64"),
        "single": np.array([0.5, 1, 2], dtype=np.float32),
        3: [1, 2, 3],
    }
)


@dataclass(frozen=True)
class Case:
    name: str
    rates: tuple[float, ...]


def through_json(value):
    """What comes back after the value was written to a file."""
    return decode(json.loads(json.dumps(encode(value), allow_nan=False)))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        -(10**20),
        0.25,
        1e-300,
        "γ { } $map",
        [1, [2.5, None], "a"],
        (1, (2, "b"), [3]),
        {"a": 1, 2: {"b": (True, None)}, ("x", 0.5): []},
        {"$float": "nan"},
        {},
    ],
    ids=repr,
)
def test_plain_values_come_back_with_their_types(value):
    found = through_json(value)
    assert found == value
    assert repr(found) == repr(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_floats_that_json_does_not_have_come_back(value):
    assert repr(through_json(value)) == repr(value)
    assert repr(through_json(np.float64(value))) == repr(value)


@pytest.mark.parametrize("value", [np.int64(3), np.float32(0.5), np.bool_(True), np.str_("a")])
def test_scalars_of_numpy_come_back_as_pythons_own(value):
    found = through_json(value)
    assert found == value.item()
    assert type(found) is type(value.item())


@pytest.mark.parametrize(
    "frame",
    [
        MIXED,
        MIXED.set_index("text"),
        MIXED.set_index(["text", "count"]),
        MIXED.iloc[::-1],
        MIXED.iloc[1:],
        MIXED.head(0),
        MIXED.rename_axis("row"),
        pd.DataFrame(index=range(2)),
        pd.DataFrame({("a", "b"): [1.5], ("a", "c"): [2.5]}),
    ],
    ids=["plain", "index", "MultiIndex", "backwards", "part", "no rows", "name", "bare", "columns"],
)
def test_a_table_comes_back_with_index_columns_and_types(frame):
    pd.testing.assert_frame_equal(
        through_json(frame), frame, check_index_type=False, check_column_type=False
    )


@pytest.mark.parametrize(
    "series",
    [
        MIXED["rate"],
        MIXED["strategy"],
        MIXED.set_index("text")["count"],
        pd.Series([1.5, 2.5]),
        pd.Series([1, 2], index=["a", "b"], name=0),
    ],
    ids=["floats", "categories", "index", "no name", "name 0"],
)
def test_a_column_comes_back_with_its_name(series):
    pd.testing.assert_series_equal(through_json(series), series, check_index_type=False)


@pytest.mark.parametrize(
    "array",
    [
        np.array([[0.5, np.nan], [np.inf, 1.0]]),
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.array([True, False]),
        np.array(["a", "bcd"]),
        np.array([], dtype=np.float32),
        np.array([0.5, 0.25], dtype=np.float32),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_an_array_comes_back_with_its_type_and_shape(array):
    found = through_json(array)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_a_picture_comes_back_pixel_by_pixel(mode):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    picture = Image.fromarray(pixels, "RGBA").convert(mode)
    found = through_json(picture)
    assert found.mode == mode
    assert found.tobytes() == picture.tobytes()


def test_a_data_class_comes_back_as_what_has_its_fields():
    found = through_json([Case("one", (0.5, 1.0))])
    assert found == [SimpleNamespace(name="one", rates=(0.5, 1.0))]


@pytest.mark.parametrize(
    "value",
    [MIXED, MIXED.set_index(["text", "count"]), {"a": (Case("x", (1 / 3,)), np.eye(2))}, [1 / 3]],
    ids=["table", "index", "nested", "float"],
)
def test_what_came_back_is_encoded_as_before(value):
    encoded = encode(value)
    assert encode(decode(encoded)) == encoded


def test_floats_keep_six_significant_digits_wherever_they_are():
    rounded = 0.333333
    assert encode(1 / 3) == rounded
    assert through_json(pd.DataFrame({"x": [1 / 3]}))["x"].tolist() == [rounded]
    assert through_json(np.array([1 / 3])).tolist() == [rounded]
    assert encode({"a": (1 / 3,)}) == encode({"a": (1 / 3 + 1e-12,)})


@pytest.mark.parametrize(
    "value",
    [Fraction(1, 3), {1, 2}, b"bytes", 1j, Case, pd.Timestamp("2026-11-30"), [object()]],
    ids=lambda value: type(value).__name__,
)
def test_a_value_of_an_unknown_kind_is_refused(value):
    with pytest.raises(TypeError, match="drawn from tables, arrays, pictures and plain values"):
        encode(value)


def test_a_kind_of_another_version_is_refused():
    with pytest.raises(ValueError, match=r"kind '\$tensor' is not known"):
        decode({"$tensor": [1]})


def test_a_digest_does_not_depend_on_the_order_of_keys_or_on_spacing():
    one, other = '{"a": 1, "b": {"c": [1, 2], "d": "γ"}}', '{"b":{"d":"γ","c":[1,2]},\n "a":1}'
    assert digest(json.loads(one)) == digest(json.loads(other))
    assert len(digest({})) == 16


@pytest.mark.parametrize("other", [{"a": 2}, {"b": 1}, {"a": [1]}, {"a": "1"}, [["a", 1]]])
def test_other_values_have_another_digest(other):
    assert digest(other) != digest({"a": 1})


@figures.drawing
def points(table: pd.DataFrame, *, names: tuple[str, ...], case: Case | None = None):
    figure = figures.panels(width=figures.SINGLE)
    (axes,) = figure.axes
    axes.plot(table["x"], table["y"], "o", label=names[0])
    axes.set_title(case.name if case else names[-1])
    return figure


def png(figure) -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})
    plt.close(figure)
    return drawn.getvalue()


def test_a_figure_is_drawn_again_to_the_same_bytes_from_what_it_keeps():
    table = pd.DataFrame({"x": [1, 2, 3], "y": [1 / 3, np.nan, 2 / 3]}, index=[2, 5, 7])
    first = points(table, names=("a", "b"), case=Case("one", ()))
    kept = json.loads(json.dumps(first.arguments))
    again = figures.draw_again(points, kept)
    assert again.arguments == first.arguments
    assert again.drawing == first.drawing
    assert png(again) == png(first)


def test_figures_whose_values_differ_in_the_last_digits_are_the_same():
    """Those digits in which processors differ."""
    table = pd.DataFrame({"x": [1, 2], "y": [1 / 3, 2 / 3]})
    nearly = table.assign(y=table["y"] * (1 + 1e-13))
    other = table.assign(y=table["y"] * 1.001)
    one, same, another = (points(each, names=("a",)) for each in (table, nearly, other))
    assert one.arguments == same.arguments != another.arguments
    assert png(one) == png(same) != png(another)
