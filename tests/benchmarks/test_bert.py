"""The benchmark of BERT times the same work on both sides, and says how much that is."""

from itertools import count
from pathlib import Path

import pytest
import torch
import transformers

from foredraft.benchmarks import bert
from foredraft.benchmarks.bert import WORKLOADS, Batch, bert_benchmark
from foredraft.benchmarks.timing import Schedule
from foredraft.models.bert.config import BertConfig
from foredraft.models.bert.model import Bert

CONFIG = BertConfig(
    vocab_size=50, hidden_size=16, intermediate_size=24, n_layers=2, n_heads=2, max_positions=32
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny BERT."""
    model = Bert(CONFIG).initialise(generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def batch() -> Batch:
    """Three rows of different lengths."""
    return Batch.drawn((3, 12, 7), CONFIG, generator=torch.Generator().manual_seed(1))


def test_every_workload_has_a_row_for_each_of_its_tasks(folder, monkeypatch):
    peaks = {bert._loaded: 100.0, bert._packed: 75.0, bert._reference: 150.0}
    monkeypatch.setattr(bert, "peak_megabytes", lambda arm, *rest: peaks[arm])
    encoding, peak = ["encode", "encode, packed"], ["encode once", "encode once, packed"]
    monkeypatch.setattr(bert, "TRAINED", ("ragged",))
    clock = count()
    table = bert_benchmark(
        folder=folder,
        workloads={"ragged": (3, 12, 7), "equal": (4, 4)},
        schedule=Schedule(repeats=3, warmup=0, inner=1),
        clock=lambda: float(next(clock)),
    )
    assert table.groupby("workload", sort=False)["task"].apply(list).to_dict() == {
        "ragged": [*encoding, "train the encoder", "train to guess words", *peak],
        "equal": [*encoding, *peak],
    }
    assert table["tokens"].tolist() == [22] * 6 + [8] * 4
    assert table["padding"].tolist() == pytest.approx([1 - 22 / 36] * 6 + [0.0] * 4)
    timed, weighed = (table[table["unit"] == unit] for unit in ("ms", "MB"))
    assert set(timed["ratio_median"]) == {1.0}
    assert weighed.groupby("task")["ratio_median"].unique().to_dict() == {
        "encode once": [1.5],
        "encode once, packed": [2.0],
    }
    assert set(table["n"]) == {3}
    assert not table.isna().any(axis=None)


def test_both_sides_do_the_same_to_the_same_weights(folder, batch):
    real = batch.mask.bool()
    for encodings in (bert._encodings, bert._packed_encodings):
        arms = encodings(folder, batch, "cpu")
        ours, theirs = (
            arms[arm]().last_hidden_state[real] for arm in ("foredraft", "transformers")
        )
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    reference = transformers.BertModel.from_pretrained(folder).eval()
    losses = [bert._spread_out(model, batch) for model in (Bert.from_pretrained(folder), reference)]
    torch.testing.assert_close(*losses)


def test_a_step_trains_every_weight_that_the_loss_reads(folder, batch):
    model = Bert.from_pretrained(folder)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    bert._step(model, lambda: bert._spread_out(model, batch))()
    still = {n for n, weight in model.named_parameters() if torch.equal(weight, before[n])}
    assert still == {"pooler.dense.weight", "pooler.dense.bias"}


def test_what_a_process_takes_is_read_in_megabytes(folder, batch):
    for arm in (bert._loaded, bert._packed, bert._reference):
        assert 100 < bert._encode_once(arm, folder, batch, torch.get_num_threads()) < 100_000


def test_the_workloads_are_those_that_are_claimed():
    assert set(bert.TRAINED) < set(WORKLOADS)
    assert all(len(lengths) == 32 for lengths in WORKLOADS.values())
    for name in ("8 to 256 tokens, as texts are", "8 to 256 tokens, evenly"):
        assert (min(WORKLOADS[name]), max(WORKLOADS[name])) == (8, 256)
