"""Timing, on a clock that stands still unless an arm moves it."""

import math
from dataclasses import asdict

import pytest
import torch

from foredraft.benchmarks.sampling import (
    SETTINGS,
    flat_logits,
    peaked_logits,
    sampling_benchmark,
    transformers_processors,
)
from foredraft.benchmarks.timing import Schedule, Spread, alternate, compare
from foredraft.sampling import Sampler


class Clock:
    """Seconds that pass only when an arm says so; `log` is who ran, in order."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def __call__(self) -> float:
        return self.now

    def arm(self, name, *seconds):
        """Make an arm that takes `seconds` in turn, and then the last of them for ever."""
        left = list(seconds)

        def run():
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_arms_alternate_after_the_warm_up(clock):
    arms = {"a": clock.arm("a", 1.0), "b": clock.arm("b", 1.0)}
    compare(arms, schedule=Schedule(repeats=3, warmup=2, inner=1), clock=clock)
    assert "".join(clock.log) == "abab" + "ababab"


def test_the_warm_up_does_not_count(clock):
    arms = {"a": clock.arm("a", 100.0, 50.0, 1.0)}
    found = compare(arms, schedule=Schedule(repeats=3, warmup=2, inner=1), clock=clock)
    assert found.seconds == {"a": (1.0, 1.0, 1.0)}


def test_ratios_are_taken_round_by_round(clock):
    """The machine is half as fast in the second round: seconds spread, ratios do not."""
    arms = {"slow": clock.arm("slow", 3.0, 6.0, 3.0), "fast": clock.arm("fast", 1.0, 2.0, 1.0)}
    found = compare(arms, schedule=Schedule(repeats=3, warmup=0, inner=1), clock=clock)
    assert found.ratio("slow", "fast") == Spread(3.0, 3.0, 3.0, 0.0, 3)
    assert found.spread("slow").maximum == 6000.0


def test_a_sample_is_as_many_calls_as_last_long_enough(clock):
    arms = {"a": clock.arm("a", 2**-10), "b": clock.arm("b", 1.0)}
    schedule = Schedule(repeats=2, warmup=1, sample_seconds=2**-8)
    found = compare(arms, schedule=schedule, clock=clock)
    assert found.calls == {"a": 4, "b": 1}
    assert found.seconds == {"a": (2**-10, 2**-10), "b": (1.0, 1.0)}


def test_an_arm_that_takes_no_time_still_ends(clock):
    found = compare({"a": lambda: None}, schedule=Schedule(repeats=1), clock=clock)
    assert found.seconds == {"a": (0.0,)}


def test_every_row_carries_labels_device_and_threads(clock):
    arms = {"a": clock.arm("a", 1.0, 2.0, 3.0, 4.0, 5.0), "b": clock.arm("b", 1.0)}
    schedule = Schedule(repeats=5, warmup=0, inner=1)
    found = compare(arms, schedule=schedule, labels={"vocab": 7, "dtype": "float32"}, clock=clock)
    row = found.table().iloc[0].to_dict()
    assert row == {
        "vocab": 7,
        "dtype": "float32",
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "arm": "a",
        "calls": 1,
        "n": 5,
        "ms_median": 3000.0,
        "ms_min": 1000.0,
        "ms_max": 5000.0,
        "ms_iqr": 2000.0,
    }
    assert found.table()["arm"].tolist() == ["a", "b"]


def test_the_cpu_is_not_synchronised_and_a_cuda_device_on_both_sides_of_the_clock(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    schedule = Schedule(repeats=3, warmup=1, inner=1)
    compare({"a": lambda: None}, schedule=schedule)
    assert not waits
    compare({"a": lambda: None}, schedule=schedule, device="cuda:0")
    assert waits == [torch.device("cuda:0")] * 6


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"warmup": -1}, {"inner": 0}])
def test_a_schedule_that_cannot_be_kept_is_refused_in_words(wrong):
    with pytest.raises(ValueError, match=r"Schedule\(.* repeats and inner must be at least 1"):
        Schedule(**wrong)


def test_no_arms_and_unknown_arms_are_refused_in_words(clock):
    with pytest.raises(ValueError, match="arms are empty; give at least one"):
        compare({})
    found = compare({"a": clock.arm("a", 1.0)}, schedule=Schedule(1, 0, 1), clock=clock)
    with pytest.raises(ValueError, match=r"arm 'b' was not timed; choose one of \['a'\]"):
        found.ratio("a", "b")


def test_the_sampling_benchmark_is_one_row_for_each_shape_vocabulary_and_setting():
    ticks = iter(range(10**6))  # every reading is a second later, so every sample takes one
    table = sampling_benchmark(
        vocabs=(16, 33),
        batch=2,
        settings={"top-k": Sampler(0.5, top_k=3)},
        schedule=Schedule(repeats=2, warmup=0, inner=1),
        clock=lambda: float(next(ticks)),
    )
    found = table[["logits", "vocab", "setting"]].itertuples(index=False, name=None)
    assert list(found) == [
        (logits, vocab, setting)
        for vocab in (16, 33)
        for logits in ("peaked", "flat")
        for setting in ("top-k", "draw")
    ]
    assert (table["ratio_median"] == 1).all()
    assert (table["n"] == 2).all()
    spread = ("median", "min", "max", "iqr")
    arms = ("foredraft_ms", "transformers_ms", "ratio")
    assert {f"{arm}_{part}" for arm in arms for part in spread} <= set(table.columns)


def test_the_default_settings_cover_every_field_of_the_sampler():
    off = asdict(Sampler())
    timed = [asdict(sampler) for sampler in SETTINGS.values()]
    for field, default in off.items():
        assert any(values[field] != default for values in timed), f"{field} is never timed"


def test_the_reference_chain_is_in_our_order():
    chain = transformers_processors(Sampler(0.5, 5, 0.9, 0.1, 0.8, 1.2))
    assert [type(step).__name__ for step in chain] == [
        "RepetitionPenaltyLogitsProcessor",
        "TemperatureLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "MinPLogitsWarper",
        "TypicalLogitsWarper",
    ]
    assert list(transformers_processors(Sampler())) == []


@pytest.mark.parametrize("vocab", [4096, 32_000])
def test_peaked_logits_are_as_uncertain_as_a_language_model_and_flat_ones_know_nothing(vocab):
    generator = torch.Generator().manual_seed(0)

    def entropy(logits):
        return torch.distributions.Categorical(logits=logits).entropy()

    peaked = entropy(peaked_logits(8, vocab, generator=generator))
    flat = entropy(flat_logits(8, vocab, generator=generator))
    assert 3 < peaked.mean() < 6
    assert (flat > math.log(vocab) - 0.1).all()


def test_alternate_runs_every_arm_on_each_case_in_turning_order(clock):
    order = []

    def arm(name, seconds):
        def run(case):
            order.append((name, case))
            clock.now += seconds
            return f"{name}{case}"

        return run

    arms = {"a": arm("a", 1.0), "b": arm("b", 2.0)}
    laps = alternate(arms, [7, 8, 9], warmup=1, clock=clock)
    warm, counted = order[:2], order[2:]
    assert warm == [("a", 7), ("b", 7)]
    assert counted == [("a", 7), ("b", 7), ("b", 8), ("a", 8), ("a", 9), ("b", 9)]
    assert [(lap.seconds, lap.result) for lap in laps["b"]] == [
        (2.0, "b7"),
        (2.0, "b8"),
        (2.0, "b9"),
    ]
