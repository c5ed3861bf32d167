"""Article 04's figures show what their tables say, and their titles as much."""

import re

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from foredraft.articles.self_speculation import plots as draw
from foredraft.articles.self_speculation import search_plots
from foredraft.viz import figures
from tests.drawn import assert_drawn_again, assert_within_its_page

MODELS = ("pocket-llama", "pocket-gemma2", "pocket-gemma2-layerskip")
N_LAYERS, SEEDS, TRIALS = 12, 5, 40
PLANS = pd.DataFrame({"plan": ["gemma-2-9b-it", "llama-2-13b"], "cost": [0.609, 0.639]})
RUN = {
    **{"acceptance": 0.4057, "cost": 0.607, "cost_bytes": 0.609, "speedup": 0.812},
    **{"length": (1 - 0.812) / (0.812 * 0.607 - 0.4057), "best": 0.875},
}


def chance() -> np.random.Generator:
    return np.random.default_rng(0)


def article_lengths() -> pd.DataFrame:
    return pd.DataFrame({"length": range(9), "speedup": np.linspace(1, 0.3, 9)})


def checks() -> pd.DataFrame:
    """Twelve plans of three models: exact where greedy, and z as even as a normal law's are."""
    noise, rows = chance(), []
    for temperature in (0.0, 1.0):
        for model in MODELS:
            for i in range(12):
                tokens = 1.2 + 0.2 * i
                off = 1 + 0.02 * noise.standard_normal() * bool(temperature)
                rows.append(
                    {
                        **{"model": model, "temperature": temperature, "name": f"random {i}"},
                        **{"foretold": tokens * off, "foretold_sem": 0.03},
                        **{"decoded": tokens, "decoded_sem": 0.03, "off": 0},
                        **{"one_pass": 1.02 * tokens, "all_places": 1.1 * tokens},
                        "z": 0.3 * (i - 5.5) if temperature else float("nan"),
                    }
                )
    return pd.DataFrame(rows)


def search_trials() -> pd.DataFrame:
    origins = ["start"] * 6 + ["sobol"] * 8 + ["model"] * 26
    speedups = np.linspace(0.6, 1.1, len(origins)) + 0.1 * chance().standard_normal(len(origins))
    return pd.DataFrame(
        {
            **{"index": range(len(origins)), "origin": origins, "speedup": speedups},
            **{"speedup_sem": 0.02, "best": np.maximum.accumulate(speedups)},
        }
    )


def run_of(space: str, method: str, seed: int, last: float) -> pd.DataFrame:
    """A search whose best plan so far comes to `last`, the values below it."""
    best = np.minimum(last, np.linspace(0.8, last + 0.1, TRIALS))
    told = {"space": space, "method": method, "seed": seed, "index": range(TRIALS)}
    return pd.DataFrame(told | {"value": best - 0.05, "best": best})


def the_race() -> pd.DataFrame:
    """Ax finds the optimum, 1.3, with each seed; random comes half of the way from the mean."""
    mean, optimum = 0.7, 1.3
    told = {"space": "small", "method": "exhaustive", "seed": 0, "index": 1023}
    parts = [pd.DataFrame([told | {"value": mean, "best": optimum}])]
    for space in ("small", "all"):
        for seed in range(SEEDS):
            parts.append(run_of(space, "Ax", seed, optimum))
            parts.append(run_of(space, "random", seed, 0.9 + 0.05 * seed))
        parts.append(run_of(space, "greedy", 0, 1.2).head(25))
        parts.append(run_of(space, "uniform", 0, 1.1).head(13))
    return pd.concat(parts, ignore_index=True)


def frequencies() -> pd.DataFrame:
    """Three branches that every seed switches off, four that none does."""
    shares = [1.0] * 3 + [0.0] * 4 + [0.4] * (2 * N_LAYERS - 7)
    branches = [(branch, layer) for branch in ("attention", "MLP") for layer in range(N_LAYERS)]
    table = pd.DataFrame(branches, columns=["branch", "layer"])
    return table.assign(share=chance().permutation(shares))


def level_lines() -> pd.DataFrame:
    """What a gain needs: its multiple of the cost, and NaN where that is more than 1."""
    rows = [
        {"gain": gain, "cost": cost, "acceptance": gain * cost if gain * cost <= 1 else np.nan}
        for gain in (1.0, 1.1, 1.25, 1.5, 2.0)
        for cost in np.linspace(0.02, 1, 50)
    ]
    return pd.DataFrame(rows)


def front() -> pd.DataFrame:
    """Three plans of which two pay, one of them between the lines of 1.25 and 1.5."""
    return pd.DataFrame({"cost": [0.2, 0.5, 0.9], "overlap": [0.1, 0.7, 0.95], "plan": ["{}"] * 3})


def tried() -> pd.DataFrame:
    cost = chance().uniform(0.1, 1, 30)
    return pd.DataFrame({"cost": cost, "overlap": 0.7 * cost})


def thresholds() -> pd.DataFrame:
    rows = [
        {**{"rule": rule, "length": length, "accepted": accepted}, "token": n, "threshold": at}
        for rule, step in (("draft_and_verify", 0.001), ("article", 0.002))
        for length in (1, 4, 8)
        for accepted in (0, length)
        for n, at in enumerate(0.5 + step * np.arange(101) * (1 if accepted else -1))
    ]
    return pd.DataFrame(rows)


def policies() -> pd.DataFrame:
    """The best fixed length gives 1.1; the best other way 1.1 too, the worst a tenth less."""
    names = ["Draft & Verify controller", "the article's controller", "threshold 0.5", "cost-aware"]
    fixed = [
        {"policy": f"fixed {n}", "speedup": 1.13 - 0.01 * n, "drafted": n} for n in range(3, 9)
    ]
    others = [
        {"policy": name, "speedup": speedup, "drafted": drafted}
        for name, speedup, drafted in zip(names, (0.99, 1.0, 1.05, 1.1), (7, 6, 3, 2), strict=True)
    ]
    return pd.DataFrame(fixed + others).assign(sem=0.01, acceptance=0.6)


def times() -> pd.DataFrame:
    """Two plans a search: the one that was foretold to be best is the slower one."""
    rows = [
        {
            **{"model": model, "sampler": sampler, "name": f"found {i}", "length": 3},
            **{"speedup_median": median, "speedup_min": median - 0.1},
            **{"speedup_max": median + 0.2, "predicted": predicted},
            **{"predicted_held_out": 1.02 * median, "predicted_sem": 0.01},
            **{"predicted_held_out_sem": 0.02, "rounds_speedup": 1.02 * 0.95 * median},
            "ceiling": 1.5,
        }
        for model in MODELS
        for sampler in ("greedy", "temperature 1")
        for i, (median, predicted) in enumerate(((1.2, 1.3), (1.4, 1.25)), start=1)
    ]
    plain = [{"model": MODELS[0], "sampler": "greedy", "name": "plain", "predicted": np.nan}]
    return pd.DataFrame(rows + plain)


def verified() -> pd.DataFrame:
    rows = [
        {"rule": rule, "length": n, "mean": 1 + 0.3 * n + more, "sem": 0.03}
        for rule, more in (("token", 0.0), ("block", 0.25))
        for n in (1, 2, 4, 8)
    ]
    return pd.DataFrame(rows)


DRAWN = {
    "article": lambda: draw.article(article_lengths(), RUN),
    "reality": lambda: draw.reality(checks()),
    "shortcuts": lambda: draw.shortcuts(checks()),
    "search": lambda: search_plots.search(search_trials()),
    "race": lambda: search_plots.race(the_race()),
    "frequency": lambda: search_plots.frequency(frequencies()),
    "trade_off": lambda: search_plots.trade_off(front(), tried(), level_lines()),
    "controllers": lambda: draw.controllers(thresholds(), policies()),
    "timed": lambda: draw.timed(times()),
    "needed": lambda: draw.needed(level_lines(), PLANS, RUN),
    "rules": lambda: draw.rules(verified()),
}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def title(figure: Figure) -> str:
    return figure.get_suptitle()


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_and_its_title_lie_within_the_page(name):
    assert_within_its_page(DRAWN[name]())


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_drawn_again_from_what_it_keeps_to_the_same_picture(name):
    assert_drawn_again(DRAWN[name]())


def test_the_articles_run_lies_on_the_line_of_its_acceptance():
    left = draw.article(article_lengths(), RUN).axes[0]
    lines = {line.get_label(): line for line in left.lines}
    line, point = lines["α is accepted ÷ drafted"], lines["measured, 0.81×"]
    (x,), (y,) = point.get_data()
    assert y == pytest.approx(np.interp(x, *line.get_data()), abs=1e-3)


def test_reality_counts_the_z_beyond_two_and_the_greedy_texts_that_differ():
    table = checks()
    assert "foretold exactly; of what is drawn, 36 of 36 z" in title(draw.reality(table))
    table.loc[table.index[-1], "z"] = -2.5
    table.loc[0, "off"] = 3
    assert "3 texts differ; of what is drawn, 35 of 36 z" in title(draw.reality(table))


def test_drawn_z_of_a_normal_law_lie_on_the_diagonal():
    table = figures.where(checks(), temperature=1.0)
    law = pd.Series(chance().permutation(np.sort(chance().standard_normal(400))))
    many = pd.concat([table] * 12).head(400).assign(z=law.to_numpy())
    right = draw.reality(many).axes[-1]
    dots = np.concatenate([np.column_stack(line.get_data()) for line in right.lines[1:]])
    assert len(dots) == 400
    assert np.abs(dots[:, 0] - dots[:, 1]).mean() < 0.1


def test_shortcuts_tell_the_median_error_of_each_way_where_texts_are_drawn():
    told = title(draw.shortcuts(checks()))
    assert re.search(r"temperature 1: exact band \d\.\d%, one pass 2\.0%, .* alike 10\.0%", told)


def test_a_search_names_its_best_plan_and_when_it_was_tried():
    trials = search_trials()
    trials.loc[17, ["speedup", "best"]] = 1.5
    assert "1.50× ± 0.04, trial 18" in title(search_plots.search(trials))


def test_a_race_counts_gains_from_the_mean_plan_to_the_best():
    told = title(search_plots.race(the_race()))
    assert "40 of 1,024 plans Ax has 100% " in told
    assert "random 50%" in told


def test_frequency_counts_branches_that_are_always_and_never_off():
    assert "3 of 24 branches are off" in title(search_plots.frequency(frequencies()))
    assert "4 in none" in title(search_plots.frequency(frequencies()))


def test_a_trade_off_counts_plans_that_pay_and_the_line_that_they_pass():
    told = title(search_plots.trade_off(front(), tried(), level_lines()))
    assert told.startswith("2 of 3 plans")
    assert "beyond 1.25×" in told
    poor = front().assign(overlap=[0.1, 0.3, 0.6])
    assert title(search_plots.trade_off(poor, tried(), level_lines())).startswith("0 of 3 plans")


def test_controllers_are_held_against_the_best_fixed_length():
    told = title(draw.controllers(thresholds(), policies()))
    assert "1.10×" in told
    assert "-10.0% to +0.0%" in told


def test_both_rules_and_both_extremes_are_drawn_for_each_length_that_is_shown():
    *left, right = draw.controllers(thresholds(), policies()).axes
    assert [axes.get_title() for axes in left] == ["   drafts of 4", "   drafts of 8"]
    for axes in left:
        assert len({tuple(line.get_ydata()) for line in axes.lines}) == 4
    assert len(right.containers) == 1 + 4


def test_the_timed_plan_is_the_one_foretold_to_be_best_not_the_one_that_was():
    told = title(draw.timed(times()))
    assert "decode at 1.16× to 1.16×" in told, "rounds alone"
    assert "5.0% from what held-out texts foretell in the median, 5.0% at most" in told


def test_needed_reads_the_lowest_gain_above_one_at_the_articles_cost():
    told = title(draw.needed(level_lines(), PLANS, RUN))
    assert f"1.1× needs α = {1.1 * RUN['cost']:.2f}" in told


def test_rules_are_compared_at_the_longest_draft_with_an_interval():
    told = title(draw.rules(verified()))
    assert f"γ = 8: block verification gives +0.25 ± {1.96 * 0.03 * 2**0.5:.2f}" in told
