"""What a long text costs is told beside what must be read, and beside a twin without windows."""

from dataclasses import replace

import pandas
import pytest

import foredraft as fd
from foredraft.benchmarks import contexts
from foredraft.benchmarks.contexts import UNLIMITED, asked, contexts_benchmark, random_models
from foredraft.benchmarks.roofline import bytes_per_token
from tests.benchmarks.conftest import tiny
from tests.benchmarks.test_roofline import SIZES, Metronome

FAR = replace(SIZES, contexts=(10, 90), compiled_tokens=())


@pytest.fixture
def models() -> dict[str, fd.Decoder]:
    full = fd.Decoder.from_hf(tiny())
    windowed = fd.Decoder(replace(full.config, windows=(16,) * full.config.n_layers))
    return {"tiny": windowed, f"tiny {UNLIMITED}": full}


@pytest.fixture
def table(models) -> pandas.DataFrame:
    return contexts_benchmark(models, sizes=FAR, clock=Metronome())


def test_every_model_is_timed_behind_every_context(table):
    assert list(zip(table["model"], table["context"], strict=True)) == [
        *[("tiny", 10), ("tiny", 90)],
        *[(f"tiny {UNLIMITED}", 10), (f"tiny {UNLIMITED}", 90)],
    ]
    told = ["device", "threads", "dtype", "batch", "n", "new_tokens", "ms_median", "ms_iqr"]
    assert table[told].notna().all(axis=None)


def test_growth_stands_beside_that_of_what_must_be_read(table, models):
    far = table.loc[table["context"] == 90].set_index("model")
    assert far["growth_median"].tolist() == [1, 1]
    for name, model in models.items():
        grown = bytes_per_token(model, 90) / bytes_per_token(model, 10)
        assert far.loc[name, "bytes_growth"] == pytest.approx(grown)
    assert far.loc["tiny", "bytes_growth"] < far.loc[f"tiny {UNLIMITED}", "bytes_growth"]


def test_only_a_model_with_windows_has_a_twin_without(table):
    assert table["over_unlimited_median"].isna().tolist() == [False, False, True, True]


def test_what_a_reader_asks_for_is_the_farthest_context(table):
    ratios = asked(table)
    far = f"÷ {UNLIMITED}, context 90"
    assert ratios["ratio"].tolist() == ["context 90 ÷ 10", "context 90 ÷ 10", far]
    assert ratios["of"].tolist() == ["tiny", f"tiny {UNLIMITED}", "tiny"]
    assert ratios["value_median"].tolist() == [1, 1, 1]


def test_compiled_models_stand_beside_their_own_twins(models, monkeypatch):
    monkeypatch.setattr(fd.Decoder, "compile_steps", lambda self: self)
    sizes = replace(FAR, compiled_tokens=(1,))
    table = contexts_benchmark(models, sizes=sizes, clock=Metronome())
    names = ["tiny", f"tiny {UNLIMITED}", "tiny, compiled", f"tiny {UNLIMITED}, compiled"]
    assert table["model"].unique().tolist() == names
    assert asked(table)["of"].tolist() == [*names, "tiny", "tiny, compiled"]


def test_random_models_have_as_many_positions_as_are_asked_for():
    models = random_models("cpu", 9000)
    assert {model.config.max_positions for model in models.values()} == {9000}
    assert set(models["gemma2"].config.windows) == {256, None}
    assert set(models[f"gemma2 {UNLIMITED}"].config.windows) == {None}
    assert max(contexts.SIZES.contexts) < 9000
