"""Article 01's measures mean what their names say."""

import math

import pytest
import torch

import foredraft as fd
from foredraft.articles.sampling import experiment
from tests.articles.confidence_gating.test_experiment import letters


def test_entropy_of_a_uniform_law_is_the_logarithm_of_its_size_and_of_a_one_hot_zero():
    laws = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]])
    wanted = torch.tensor([math.log(4), 0.0, math.log(2)])
    torch.testing.assert_close(experiment.entropy(laws), wanted)
    assert experiment.kept(laws).tolist() == [4, 1, 2]


def test_distinct_bigrams_are_counted_over_all_texts_of_a_prompt():
    assert experiment.distinct_bigrams([[1, 2, 3], [1, 2, 4]]) == pytest.approx(3 / 4)
    assert experiment.distinct_bigrams([[1, 1, 1, 1]]) == pytest.approx(1 / 3)


def test_repetition_is_the_share_of_runs_that_came_before_in_their_own_text():
    assert experiment.repeated_share([[1, 2, 3, 4, 5, 6]]) == 0
    assert experiment.repeated_share([[7] * 8]) == pytest.approx(4 / 5)
    assert experiment.repeated_share([[1, 2]]) == 0


def test_draws_of_the_sampler_pass_its_own_chi_square_test_and_no_other(monkeypatch):
    """False-alarm probability 1e-6; the generator is fixed."""
    logits, generator = torch.tensor([1.0, 0.5, 0.0, -1.0]), torch.Generator().manual_seed(0)
    sampler = fd.Sampler(0.7)
    assert experiment.chi_square(sampler, logits, draws=20_000, generator=generator) > 1e-6
    other = torch.multinomial(
        fd.Sampler(0.8).probs(logits), 20_000, replacement=True, generator=generator
    )
    monkeypatch.setattr(fd.Sampler, "draw", lambda *_, **__: other)
    assert experiment.chi_square(sampler, logits, draws=20_000, generator=generator) < 1e-6


def test_each_setting_of_the_nine_words_is_a_distribution():
    table = experiment.nine_word_table()
    totals = table.groupby("setting")["probability"].sum()
    assert totals.tolist() == pytest.approx([1.0] * len(experiment.NINE_SETTINGS))


def test_typical_sampling_can_drop_the_likeliest_word():
    table = experiment.nine_word_table()
    typical = table[table["setting"] == "typical-p 0.3"].set_index("word")["probability"]
    assert typical["mat"] == 0
    assert typical["floor"] > 0


def test_a_position_is_shown_by_its_likeliest_tokens_and_all_others_together():
    logits = torch.linspace(0, 3, experiment.SHOWN + 5)
    table = experiment.one_position(logits, [0, 1], fd.Sampler(top_k=3), letters())
    assert len(table) == experiment.SHOWN + 1
    for law in ("plain", "probability"):
        assert table[law].sum() == pytest.approx(1, abs=1e-6)
    assert (table["probability"] > 0).sum() == table["kept"][0] == 3
    assert table["of"][0] == len(logits)
    assert table["entropy"][0] < table["plain_entropy"][0]
