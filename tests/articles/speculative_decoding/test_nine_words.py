"""The nine words: the enumeration is that of the shipped rules, and it tells right from wrong."""

import pytest
import torch

from foredraft.articles.speculative_decoding import nine_words
from foredraft.articles.speculative_decoding.nine_words import VARIANTS, Variant


@pytest.fixture(scope="module")
def laws():
    return nine_words.laws()


def wanted(p):
    return p[0][:, None, None] * p[:, :, None] * p[None]


def test_the_laws_after_each_word_are_distributions(laws):
    for law in laws:
        torch.testing.assert_close(law.sum(-1), torch.ones(9, dtype=torch.float64))


def test_a_round_with_one_draft_emits_the_target_s_law_and_the_mistake_another(laws):
    p, q = (law[0] for law in laws)
    table = nine_words.first_word_laws(p, q)
    assert table["right"].tolist() == pytest.approx(p.tolist(), abs=1e-15)
    assert table["overlap"].sum() < 1
    assert table["residual"].sum() == pytest.approx(1)
    assert abs(table["wrong"] - p.numpy()).sum() / 2 > 0.1


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("verification", ["token", "block"])
def test_three_words_follow_the_target_s_law_for_drafts_of_any_length(laws, verification, length):
    p, q = (law[:3, :3] / law[:3, :3].sum(-1, keepdim=True) for law in laws)
    law = nine_words.joint_law(p, q, Variant("", verification), length=length)
    assert law.sum().item() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(law, wanted(p), atol=1e-12, rtol=0)


def test_each_mistake_bends_the_law_and_the_shipped_rules_do_not():
    table = nine_words.mistakes()
    assert len(table) == len(VARIANTS)
    assert (table.loc[table["exact"], "total_variation"] < 1e-12).all()
    assert (table.loc[~table["exact"], "total_variation"] > 0.1).all()


def test_drawing_from_p_again_bends_the_first_word_by_the_closed_form(laws):
    """Of drafts of one: ½ Σ |min(p, q) − β p|."""
    p, q = laws
    law = nine_words.joint_law(p, q, Variant("", draws_p_again=True), length=1).sum((1, 2))
    kept = torch.minimum(p[0], q[0])
    expected = (kept - kept.sum() * p[0]).abs().sum() / 2
    torch.testing.assert_close((law - p[0]).abs().sum() / 2, expected)


@pytest.mark.parametrize("verification", ["token", "block"])
def test_what_is_drawn_follows_the_law_and_no_other(laws, verification):
    """False-alarm probability 1e-6; the generator is fixed."""
    generator = torch.Generator().manual_seed(0)
    words = nine_words.first_words(draws=50_000, verification=verification, generator=generator)
    p, q = laws[0][0], laws[1][0]
    assert nine_words.chi_square(words, p) > 1e-6
    wrong = torch.tensor(nine_words.first_word_laws(p, q)["wrong"].to_numpy())
    assert nine_words.chi_square(words, wrong) < 1e-6
