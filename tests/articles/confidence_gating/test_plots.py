"""What article 05's figures and their titles say is in their tables, and nothing is left out."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foredraft.articles.confidence_gating import plots as draw
from foredraft.articles.confidence_gating import signal_plots
from foredraft.viz import figures
from tests.drawn import assert_drawn_again, assert_within_its_page

DRAFTERS, HEATS = tuple(draw.DRAFTERS), (0.0, 1.0)
GAINS = {
    "never": 0.5,
    "fixed length": 1.0,
    "the article's gate": 0.9,
    "expected gain": 1.02,
    "clairvoyant": 3.0,
}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def title(figure: Figure) -> str:
    return figure.get_suptitle()


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for each in figure.legends for text in each.get_texts()]


def rows_of(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_yticklabels()]


def written(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def line(axes: Axes, name: str) -> np.ndarray:
    """The points [n, 2] of a line, by its name in the legend."""
    (found,) = (each for each in axes.lines if each.get_label() == name)
    return np.column_stack(found.get_data()).astype(float)


def confirmations() -> pd.DataFrame:
    """Two policies of each drafter, z from -1.5 up in steps of 1: four within two."""
    told = enumerate(product(DRAFTERS, ("fixed length", "expected gain")))
    rows = [
        {"drafter": d, "policy": p, "decoded": 2 + i / 10, "replayed": 2.0, "z": i - 1.5}
        for i, (d, p) in told
    ]
    return pd.DataFrame(rows).assign(decoded_sem=0.1, replayed_sem=0.1)


def bins(signal: str = "confidence") -> pd.DataFrame:
    """Acceptance rises by 20 points with the skip plan, by 10 with the others."""
    rows = [
        {"drafter": d, "temperature": t, "signal": signal, "value": v, "share": s}
        for d, t in product(DRAFTERS, HEATS)
        for v, s in ((0.2, 0.5), (0.9, 0.7 if d == "skip plan" else 0.6))
    ]
    table = pd.DataFrame(rows)
    return table.assign(low=table["share"] - 0.05, high=table["share"] + 0.05, n=30)


def aucs() -> pd.DataFrame:
    """Margins have 0.65, what is known after drafting 0.9, all else 0.6; one kind knows nothing."""
    by_signal = {"confidence": 0.6, "entropy": 0.6, "margin": 0.65, "draft_confidence": 0.9}
    rows = [
        {"drafter": d, "temperature": t, "kind": kind, "signal": signal, "auc": auc, "sem": 0.02}
        for d, t in product(DRAFTERS, HEATS)
        for kind in ("all", "function", "test")
        for signal, auc in by_signal.items()
        if (d, signal) != ("prompt lookup", "draft_confidence")
    ]
    table = pd.DataFrame(rows).assign(n=100)
    table.loc[table["kind"] == "test", ["auc", "sem"]] = np.nan
    return table


def gains(**others: float) -> pd.DataFrame:
    rows = [
        {"drafter": d, "temperature": t, "policy": name, "gain": gain, "speedup": 1.5 * gain}
        for d, t in product(DRAFTERS, HEATS)
        for name, gain in (GAINS | others).items()
    ]
    return pd.DataFrame(rows).assign(gain_sem=0.01, sem=0.01)


def sweep(bounds: tuple[float, ...] = (0.0, 0.5, 1.0)) -> pd.DataFrame:
    """The higher a threshold, the fewer drafts, and the slower."""
    rows = [
        {"signal": s, "threshold": 8 * (1 - t) if s == "entropy" else t, "closed": t}
        for s in ("confidence", "entropy", "margin")
        for t in bounds
    ]
    table = pd.DataFrame(rows)
    return table.assign(speedup=1.4 - 0.4 * table["closed"], sem=0.02, length=3)


def chances(opening: tuple[float, ...] = (0.3, 0.6, 0.9)) -> pd.DataFrame:
    """An opening curve of three knots, and one knot in the curves of a rule that does not look."""
    rows = [
        *(
            {"curve": "opening", "signal": s, "chance": c}
            for s, c in zip((0.1, 0.6, 1.0), opening, strict=True)
        ),
        *({"curve": name, "signal": 0.0, "chance": 0.7} for name in ("stands", "follows")),
    ]
    return pd.DataFrame(rows)


def machines() -> pd.DataFrame:
    """Sampled; the rule gains 3 % in one place, the clairvoyant 80 % everywhere."""
    rows = [
        {"drafter": d, "cost": c, "policy": policy, "gain": 1.8 if policy == draw.BOUND else 1.0}
        for d, c, policy in product(DRAFTERS, (0.1, 0.4, 0.8), draw.MACHINES)
    ]
    table = pd.DataFrame(rows).assign(gain_sem=0.01, speedup=1.2, temperature=1.0)
    best = (table["drafter"] == "skip plan") & (table["cost"] == 0.4)
    table.loc[best & (table["policy"] == "expected gain"), "gain"] = 1.03
    return table


def clock() -> pd.DataFrame:
    """The rule gains a tenth by the clock, and a twentieth was foretold; never is far off."""
    names = {"never": 0.4, "fixed length": 1.0, "the article's gate": 0.8, "expected gain": 1.1}
    rows = [
        {"drafter": d, "sampler": s, "policy": name, "gain": gain}
        for d, s in product(DRAFTERS, ("greedy", "temperature 1"))
        for name, gain in names.items()
    ]
    table = pd.DataFrame(rows).assign(gain_sem=0.01)
    foretold = (table["gain"] - 0.05).where(table["policy"] != "never")
    return table.assign(foretold_gain=foretold)


DRAWN = {
    "confirmed": lambda: draw.confirmed(confirmations()),
    "reliability": lambda: signal_plots.reliability(bins()),
    "discrimination": lambda: signal_plots.discrimination(aucs()),
    "policies": lambda: draw.policies(gains()),
    "thresholds": lambda: draw.thresholds(sweep(), 1.4),
    "curves": lambda: draw.curves(chances(), 0.45),
    "by_cost": lambda: draw.by_cost(machines()),
    "timed": lambda: draw.timed(clock()),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_and_its_title_lie_within_the_page(name):
    assert_within_its_page(DRAWN[name]())


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_drawn_again_from_what_it_keeps_to_the_same_picture(name):
    assert_drawn_again(DRAWN[name]())


def test_confirmed_counts_the_policies_within_two_standard_errors():
    figure = draw.confirmed(confirmations())
    assert "of 6 policies 4 lie within two standard errors" in title(figure)
    assert "z from -1.5 to +3.5" in title(figure)
    assert legend(figure) == list(DRAFTERS)


@pytest.mark.parametrize("signal", ["confidence", "entropy"])
def test_reliability_tells_how_acceptance_changes_as_its_signal_rises(signal):
    table = bins(signal)
    figure = signal_plots.reliability(table.iloc[::-1])
    assert f"lowest {signal} to the highest" in title(figure)
    assert "by +10 to +20 points" in title(figure)
    assert len(figure.axes) == len(HEATS)
    assert all(signal in axes.get_xlabel() for axes in figure.axes)


def test_what_is_known_after_drafting_does_not_count_as_known_before():
    assert "0.60 to 0.65" in title(signal_plots.discrimination(aucs()))


def test_signals_are_shown_by_kind_and_by_drafter_where_they_are_known():
    left, right = signal_plots.discrimination(aucs()).axes
    assert rows_of(left) == ["all", "function", "test"]
    assert rows_of(right) == [f"{d}, T = {t:g}" for d, t in product(DRAFTERS, HEATS)]
    assert len(left.containers) == 2 * 4, "nothing is known of the third kind"
    assert len(right.containers) == 6 * 4 - 2, "prompt lookup has no confidence of its own"


def test_policies_are_rows_in_the_order_of_the_table():
    figure = draw.policies(gains())
    assert rows_of(figure.axes[0]) == list(GAINS)
    assert "the article's gate -10.0%, expected gain +2.0%, clairvoyant +200.0%" in title(figure)


def test_only_what_lies_beyond_an_edge_is_a_number_there():
    beyond = [text.strip() for text in written(draw.policies(gains()))]
    assert sorted(set(beyond)) == ["+200% ›", "‹ -50%"]
    assert len(beyond) == 2 * len(DRAFTERS) * len(HEATS)
    assert not written(draw.policies(gains(never=0.95, clairvoyant=1.05)))


def test_one_temperature_is_drawn_in_the_middle_of_its_row():
    axes = draw.policies(figures.where(gains(), temperature=1.0)).axes[0]
    places = {float(y) for each in axes.lines for y in np.asarray(each.get_ydata())}
    assert places == {0.0, 1.0, 2.0, 3.0}, "0 and 1 are the ends of the vertical line"


def test_the_articles_threshold_is_marked_on_the_line_of_confidence():
    figure = draw.thresholds(sweep(), 1.4)
    (axes,) = figure.axes
    star = np.asarray(axes.collections[-1].get_offsets(), float)
    assert star == pytest.approx(np.array([[0.5, 1.2]]))
    assert written(figure) == ["1.20×"]
    assert "the article's 0.5" in legend(figure)
    assert "keeps 50% of rounds from drafting: 1.20×, the best fixed length 1.40×" in title(figure)


def test_a_threshold_that_is_only_near_the_articles_is_not_called_its_own():
    figure = draw.thresholds(sweep((0.0, 0.6, 1.0)), 1.4)
    assert "0.6, nearest to the article's 0.5" in legend(figure)
    assert "the article's 0.5" not in legend(figure)


@pytest.mark.parametrize(
    ("opening", "least", "said", "marks"),
    [
        ((0.3, 0.6, 0.9), 0.45, "reached from a signal of 0.35 on", ["0.35"]),
        ((0.9, 0.6, 0.3), 0.45, "reached up to a signal of 0.8", ["0.8"]),
        ((0.3, 0.6, 0.9), 0.2, "reached at every signal", []),
        ((0.3, 0.6, 0.9), 1.2, "reached at no signal", []),
    ],
)
def test_where_a_draft_pays_is_read_off_between_the_knots(opening, least, said, marks):
    figure = draw.curves(chances(opening), least)
    assert title(figure).endswith(said)
    assert written(figure) == marks
    assert figure.axes[0].get_ylim()[1] > min(1, least)


def test_curves_are_level_beyond_their_knots_and_one_knot_is_a_line():
    (axes,) = draw.curves(chances(), 0.45).axes
    opening, stands = (line(axes, draw.CURVES[name][0]) for name in ("opening", "stands"))
    assert opening[0] == pytest.approx([0, 0.3])
    assert stands[[0, -1]] == pytest.approx(np.array([[0, 0.7], [1, 0.7]]))


def test_the_machine_is_named_where_the_rule_brings_most():
    figure = draw.by_cost(machines())
    assert (
        "Temperature 1: at no c does expected gain bring more than +3.0% ± 2.0%: skip plan, c = 0.4"
        in title(figure)
    )
    assert legend(figure) == list(draw.MACHINES)


def test_a_bound_does_not_flatten_the_rules_and_its_number_is_told():
    figure = draw.by_cost(machines())
    assert written(figure) == ["clairvoyant: up to +80%"] * len(DRAFTERS)
    assert all(axes.get_ylim()[1] < 1.2 for axes in figure.axes)


def test_by_the_clock_gains_are_told_over_the_fixed_length():
    figure = draw.timed(clock())
    assert "the article's gate -20.0%, expected gain +10.0%" in title(figure)
    assert legend(figure) == ["greedy", "temperature 1"]


def test_what_was_foretold_is_hollow_beside_what_was_timed():
    axes = draw.timed(clock()).axes[0]
    hollow = [float(np.asarray(each.get_offsets(), float)[0, 0]) for each in axes.collections[1::2]]
    assert sorted({round(value, 2) for value in hollow if value == value}) == [0.75, 0.95, 1.05]


def test_each_kind_has_a_panel_and_the_title_tells_how_far_acceptance_goes():
    ends = {"function": (0.2, 0.9), "test": (0.5, 0.4)}
    rows = [
        {"kind": kind, "value": value, "share": share, "low": share - 0.1, "high": share + 0.1}
        for kind, shares in ends.items()
        for value, share in zip((0.1, 0.9), shares, strict=True)
    ]
    told = {"drafter": "draft model", "temperature": 0.0, "signal": "confidence"}
    figure = signal_plots.reliability_by_kind(pd.DataFrame(rows).assign(**told))
    assert [axes.get_title("center").strip() for axes in figure.axes] == list(ends)
    assert (
        title(figure) == "Draft model, greedy: kind by kind acceptance changes by -10 to +70 points"
    )


def test_a_figure_leaves_its_table_as_it_was():
    table = clock()
    before = table.copy(deep=True)
    draw.timed(table)
    pd.testing.assert_frame_equal(table, before)
