"""The overview gives ratios alone, each with its spread and what it was measured on."""

from dataclasses import replace
from functools import partial

import pandas
import pytest

import foredraft as fd
from foredraft.benchmarks import (
    bert,
    compiled,
    contexts,
    decoding,
    overview,
    roofline,
    self_drafting,
)
from foredraft.benchmarks.overview import EXIT, WHERE, Short
from foredraft.benchmarks.ratios import ENDS
from foredraft.benchmarks.timing import Schedule
from foredraft.sampling import Sampler
from tests.benchmarks.conftest import tiny
from tests.benchmarks.test_roofline import SIZES, Metronome

ON = {"n": 2, "device": "cpu", "dtype": "float32", "threads": 1}
SHORT = Short(
    sizes=SIZES,
    far=replace(SIZES, compiled_tokens=()),
    n_prompts=2,
    new_tokens=6,
    vocabs=(8,),
    schedule=Schedule(repeats=2, warmup=0, inner=1),
)


def spread(name: str, middle: float) -> dict[str, float]:
    return {f"{name}_{end}": middle for end in ENDS}


@pytest.fixture
def table(monkeypatch) -> pandas.DataFrame:
    """Real roofs, samplers and early exits of tiny models; the others told."""
    theirs = tiny(n_layers=EXIT + 2)
    theirs.generation_config.eos_token_id = None
    ours = fd.Decoder.from_hf(theirs)
    contest = self_drafting.Contest(
        *("tiny", ours, theirs, [[1, 2, 3], [4, 5]], {}), samplers={"greedy": Sampler(0.0)}
    )
    about = {"sampler": "greedy", "strategy": "autoregressive", "length": 0, "batch": 1, **ON}
    plain = {**about, "library": "foredraft", **spread("speedup", 1.0)}
    rows = [plain, {**plain, "library": "transformers", **spread("speedup", 0.5)}]
    rows.append({**plain, "batch": 8})
    task = {"task": "encoding", "unit": "ms", **spread("ratio", 1.5), **ON}
    monkeypatch.setattr(roofline, "pocket_and_random", partial(roofs, ours))
    monkeypatch.setattr(contexts, "random_models", lambda *_: {"tiny": ours})
    monkeypatch.setattr(self_drafting, "pocket_contests", lambda **_: [contest])
    monkeypatch.setattr(decoding, "pocket_contest", lambda **_: two_sides())
    monkeypatch.setattr(decoding, "decoding_benchmark", lambda *_, **__: pandas.DataFrame(rows))
    sped = {**plain, "library": compiled.COMPILED, "strategy": "autoregressive"}
    sped |= {**spread("over_eager", 2.0), **spread("over_theirs", 3.0), **spread("rounding", 1.0)}
    monkeypatch.setattr(compiled, "compiled_benchmark", lambda *_, **__: pandas.DataFrame([sped]))
    monkeypatch.setattr(bert, "bert_benchmark", lambda **_: pandas.DataFrame([task]))
    return overview.overview(SHORT, clock=Metronome())


def roofs(ours: fd.Decoder, device: str, names: list[str]) -> dict[str, fd.Decoder]:
    """The tiny model alone; on a processor nobody may wait until the large one is compiled."""
    assert names == ["pocket-llama"] or device != "cpu"
    return {"tiny": ours}


def two_sides() -> decoding.Contest:
    theirs = tiny()
    ours = fd.Decoder.from_hf(theirs)
    return decoding.Contest(ours, ours, theirs, theirs, [[1]], batch=1)


def test_every_benchmark_is_there_and_every_row_is_a_ratio_with_its_spread(table):
    assert table["benchmark"].unique().tolist() == [
        *("roofline", "contexts", "decoding", "compiled", "self drafting", "sampling", "bert")
    ]
    told = ["ratio", "of", *(f"value_{end}" for end in ENDS), *WHERE]
    assert list(table.columns) == ["benchmark", *told]
    assert table.notna().all(axis=None)


def test_our_plain_decoding_is_what_others_are_measured_by_and_no_row(table):
    rows = table.loc[table["benchmark"] == "decoding"]
    assert rows["of"].tolist() == ["greedy, transformers, autoregressive"]
    assert rows["value_median"].tolist() == [0.5]


def test_early_exits_run_in_both_libraries(table):
    rows = table.loc[table["benchmark"] == "self drafting", "of"].tolist()
    assert rows == [
        "tiny, foredraft, self-drafting of 3",
        "tiny, transformers, autoregressive",
        "tiny, transformers, self-drafting of 3",
    ]
