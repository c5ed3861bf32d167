"""Bytes are counted as a pass reads them, and shares are ratios of arms timed side by side."""

from dataclasses import replace

import pytest
import torch

import foredraft as fd
from foredraft.benchmarks import roofline
from foredraft.benchmarks.roofline import (
    FORWARD,
    GEMV,
    LLAMA_120M,
    Sizes,
    asked,
    bytes_per_token,
    drawn,
    roofline_benchmark,
)
from foredraft.benchmarks.timing import Schedule
from foredraft.models.config import DecoderConfig
from foredraft.models.skip import Parts
from tests.benchmarks.conftest import tiny

SIZES = Sizes(
    megabytes=1,
    side=8,
    new_tokens=(1, 4),
    contexts=(10, 90),
    schedule=Schedule(repeats=3, warmup=0, inner=1),
)


class Metronome:
    """A clock on which whatever lies between two looks takes a second."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 1.0
        return self.seconds


class Stopwatch:
    """A clock that goes by a microsecond a look, and by what it is turned."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def turn(self, seconds: float) -> None:
        self.seconds += seconds

    def __call__(self) -> float:
        self.seconds += 1e-6
        return self.seconds


@pytest.fixture
def decoder() -> fd.Decoder:
    return fd.Decoder.from_hf(tiny())


@pytest.fixture
def table(decoder):
    return roofline_benchmark({"tiny": decoder}, sizes=SIZES, clock=Metronome())


@pytest.mark.parametrize("tied", [True, False])
def test_a_token_reads_every_weight_but_the_other_rows_of_the_embedding(decoder, tied):
    config = replace(decoder.config, tied=tied)
    model = drawn(config, "cpu", torch.float32)
    held = sum(4 * tensor.numel() for tensor in model.state_dict().values())
    embedding = 0 if tied else 4 * model.embedding.weight.numel()
    assert bytes_per_token(model, 0) == held - embedding


def test_keys_and_values_count_as_far_as_each_layer_sees(decoder):
    config = replace(decoder.config, windows=(16, None))
    model = drawn(config, "cpu", torch.bfloat16)
    beyond = bytes_per_token(model, 100) - bytes_per_token(model, 0)
    assert beyond == 2 * 2 * config.kv_size * (16 + 100)


def test_the_random_llama_has_120_million_parameters():
    total = Parts.of(LLAMA_120M).total(LLAMA_120M.n_layers)
    assert round(total / 1e6) == 120


def test_a_share_is_bytes_over_the_roofs_bytes_where_both_take_as_long(table, decoder):
    roof = table.loc[(table["what"] == GEMV) & (table["dtype"] == "float32"), "megabytes"].iloc[0]
    passes = table.loc[table["what"] == FORWARD]
    for row in passes.to_dict("records"):
        read = bytes_per_token(decoder, int(row["context"])) / 1e6
        assert row["product_share_median"] == row["memory_share_median"]
        assert row["memory_share_median"] == pytest.approx(read / roof)
        assert row["growth_median"] == 1
        assert row["gigabytes_per_second_median"] == pytest.approx(read / 1e3)
    assert len(passes) == 4


@pytest.mark.parametrize("wide", [2, 9])
def test_the_memorys_share_is_beside_the_faster_product_and_the_other_beside_the_models_own(
    decoder, monkeypatch, wide
):
    """The own product takes 6 seconds, that in float32 `wide`, a pass 3."""
    clock = Stopwatch()
    took = {torch.bfloat16: 6, torch.float32: wide}
    monkeypatch.setattr(
        roofline, "_product", lambda weight, row: lambda: clock.turn(took[weight.dtype])
    )

    def forward(self, tokens, cache):
        clock.turn(3)
        return tokens

    monkeypatch.setattr(fd.Decoder, "forward", forward)
    model = drawn(decoder.config, "cpu", torch.bfloat16)
    table = roofline_benchmark({"tiny": model}, sizes=replace(SIZES, contexts=(10,)), clock=clock)
    least = table.loc[table["what"] == FORWARD].iloc[0]
    scale = least["megabytes"] / table.loc[table["what"] == GEMV, "megabytes"].iloc[0]
    assert least["product_share_median"] == pytest.approx(6 / 3 * scale, rel=1e-5)
    assert least["memory_share_median"] == pytest.approx(min(6, wide) / 3 * scale, rel=1e-5)


def test_a_share_can_be_computed_again_from_the_products_beside_it(table):
    products = table.loc[(table["what"] == GEMV) & (table["model"] == "tiny")]
    assert products["dtype"].tolist() == ["float32", "float32"]
    roof = products["gigabytes_per_second_median"].max()
    passes = table.loc[table["what"] == FORWARD]
    shares = passes["gigabytes_per_second_median"] / roof
    assert passes["memory_share_median"].tolist() == pytest.approx(shares.tolist())


def test_every_row_says_on_what_it_was_measured_and_how_often(table):
    told = ["device", "threads", "dtype", "batch", "n", "ms_median", "ms_iqr"]
    assert table[told].notna().all(axis=None)
    assert set(table["n"]) == {3}


def test_the_ratios_asked_for_are_of_one_token_and_of_the_longest_context(table):
    ratios = asked(table)
    assert ratios["ratio"].tolist() == [
        "share of matrix × vector",
        "share of the memory",
        "context 90 ÷ 10",
        "4 tokens ÷ 1",
    ]
    assert ratios["value_median"].iloc[2:].tolist() == [1, 1]


def test_a_context_beyond_the_model_is_left_out(decoder):
    sizes = replace(SIZES, contexts=(10, 500))
    table = roofline_benchmark({"tiny": decoder}, sizes=sizes, clock=Metronome())
    assert table["context"].max() == 10
    assert asked(table)["ratio"].tolist()[2] == "context 10 ÷ 10"


def test_a_pass_is_timed_behind_its_context(decoder, monkeypatch):
    seen = []
    forward = fd.Decoder.forward

    def spy(self, tokens, cache=None, **options):
        seen.append((cache.lengths, tokens.shape[1]))
        return forward(self, tokens, cache, **options)

    monkeypatch.setattr(fd.Decoder, "forward", spy)
    roofline_benchmark({"tiny": decoder}, sizes=SIZES, clock=Metronome())
    assert set(seen) == {((10,), 1), ((90,), 1), ((10,), 4), ((90,), 4)}


def test_the_configuration_is_a_llama_that_the_decoder_can_be_built_from():
    assert isinstance(LLAMA_120M, DecoderConfig)
    assert fd.Decoder.without_weights(LLAMA_120M).head is None
