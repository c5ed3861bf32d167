"""What article 08's figures and their titles say is in their tables."""

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from foredraft.articles.vector_add import plots as draw
from tests.drawn import assert_drawn_again, assert_within_its_page

CARDS = ("A100", "H100")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def instances() -> pd.DataFrame:
    places = range(12)
    return pd.DataFrame(
        {
            "element": places,
            "program": [each // 4 for each in places],
            "lane": [each % 4 for each in places],
            "within": [each < 10 for each in places],
        }
    )


def floors() -> pd.DataFrame:
    rows = [
        {"card": card, "dtype": "float32", "bytes": size, "floor_us": size / speed}
        for card, speed in zip(CARDS, (2e6, 3e6), strict=True)
        for size in (1e4, 1e6, 1e8)
    ]
    return pd.DataFrame(rows).assign(launch_us=5.0)


def roofline() -> pd.DataFrame:
    names = {"vector add, float32": 0.01, "matrix": 1.0}
    return pd.DataFrame(
        [
            {"card": card, "operation": name, "attainable": share}
            for card in CARDS
            for name, share in names.items()
        ]
    )


def launches() -> pd.DataFrame:
    rows = [(128, 1, 4, 0.5, 0.25), (128, 8, 2, 1.0, 0.8), (1024, 1, 16, 0.5, 1.0)]
    rows.append((1024, 8, 16, 1.0, 1.0))
    return pd.DataFrame(rows, columns=["block", "warps", "load_bytes", "occupancy", "attainable"])


def loads() -> pd.DataFrame:
    rows = [("float32", True, 16, 4), ("float32", False, 4, 16), ("bfloat16", True, 16, 2)]
    rows.append(("bfloat16", False, 2, 16))
    return pd.DataFrame(rows, columns=["dtype", "aligned", "load_bytes", "n_loads"])


def fusion() -> pd.DataFrame:
    parts = {"add": 30e6, "square": 40e6, "scale": 50e6}
    rows = []
    for form in ("llama", "gemma"):
        for n, factor in ((1, 1e-3), (2048, 1.0)):
            about = {"form": form, "rows": n}
            rows += [
                {**about, "way": "one by one", "operation": name, "bytes": factor * size}
                for name, size in parts.items()
            ]
            rows.append({**about, "way": "fused", "operation": "fused", "bytes": factor * 20e6})
    return pd.DataFrame(rows)


def worth() -> pd.DataFrame:
    rows = [
        {"card": card, "form": form, "rows": n, "share_bytes": n / 2e4, "share_launches": 0.4}
        for card in CARDS
        for form in ("llama", "gemma")
        for n in (1, 2048)
    ]
    return pd.DataFrame(rows)


def laws(names: tuple[str, ...] = ("top-k", "drafted", "drafted, then verified")) -> pd.DataFrame:
    far = {"drafted": 0.3}
    rows = [
        {"filters": name, "token": i, "expected": 0.25, "found": 0.25 + sign * far.get(name, 0.01)}
        for name in names
        for i, sign in enumerate((1, -1, 0, 0))
    ]
    return pd.DataFrame(rows)


def recorded() -> pd.DataFrame:
    rows = [
        ("vector_add", "kernel", "graph", 0.95, 1.0, 1.0, "keep"),
        ("rms_norm", "kernel", "graph", 0.6, 3.0, 0.9, "drop"),
        ("rms_norm", "kernel", "one by one", 0.1, 0.9, 0.5, "drop"),
        ("vector_add", "grid-stride", "graph", 0.9, 1.0, 1.0, "drop"),
    ]
    names = ["kernel", "way", "launched", "share_median", "ratio_eager_median"]
    table = pd.DataFrame(rows, columns=[*names, "ratio_compiled_median", "verdict"])
    spreads = {name: 0.02 for name in ("share_iqr", "ratio_eager_iqr", "ratio_compiled_iqr")}
    return table.assign(shape="8 × 4096", dtype="bfloat16", **spreads)


DRAWN = {
    "instances": lambda: draw.instances(instances()),
    "floors": lambda: draw.floors(floors(), roofline(), dtype="float32"),
    "launches": lambda: draw.launches(launches()),
    "one launch": lambda: draw.launches(launches().head(1)),
    "loads": lambda: draw.loads(loads()),
    "fusion": lambda: draw.fusion(fusion(), worth()),
    "laws": lambda: draw.laws(laws()),
    "four laws": lambda: draw.laws(laws(("a", "b", "c", "d"))),
    "bandwidth": lambda: draw.bandwidth(recorded()),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_and_its_title_lie_within_the_page(name):
    assert_within_its_page(DRAWN[name]())


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_drawn_again_from_what_it_keeps_to_the_same_picture(name):
    assert_drawn_again(DRAWN[name]())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("instances", "10 elements in blocks of 4: 3 program instances, 2 places masked off"),
        ("floors", "Below 10 to 15 MB launching takes longer than moving; adding keeps at most 1%"),
        ("launches", "Of 4 launches 2 could ask for 100% of the bandwidth"),
        ("loads", "Without the hint of alignment 5.3 times as many loads"),
        ("fusion", "Bytes moved apart ÷ fused: Llama 6.0, Gemma 6.0"),
        ("laws", "follow their law to 0.010; what was drafted does not"),
        ("bandwidth", "Worth keeping: 1 of 2"),
    ],
)
def test_the_title_states_what_the_table_says(name, told):
    assert told in DRAWN[name]().get_suptitle()


def test_every_place_is_drawn_and_the_masked_ones_have_no_number():
    (axes,) = draw.instances(instances()).axes
    texts = [text.get_text() for text in axes.texts]
    assert len(axes.patches) == 12
    assert texts == [*map(str, range(10)), "–", "–"]


def test_a_bar_says_how_many_bytes_a_load_moves():
    (axes,) = draw.loads(loads()).axes
    assert [text.get_text() for text in axes.texts] == ["16 B", "16 B", "4 B", "2 B"]


def test_stacks_are_as_high_as_their_operations_together():
    left = draw.fusion(fusion(), worth()).axes[0]
    assert [text.get_text() for text in left.texts] == ["120", "20", "120", "20"]


def test_only_the_kernels_own_way_by_graph_is_drawn():
    left, right = draw.bandwidth(recorded()).axes
    assert [text.get_text() for text in left.get_yticklabels()] == [
        "vector_add, 8 × 4096, bfloat16",
        "rms_norm, 8 × 4096, bfloat16",
    ]
    assert len(right.containers) == 2
