"""The list of articles."""

import pytest

from foredraft.registry import ARTICLES, article


def test_numbers_and_slugs_are_unique_and_in_order():
    assert [each.number for each in ARTICLES] == sorted({each.number for each in ARTICLES})
    assert len({each.slug for each in ARTICLES}) == len(ARTICLES)


def test_an_article_is_found_by_its_slug():
    assert all(article(each.slug) is each for each in ARTICLES)
    assert article("sampling").stem == "01_sampling"


def test_an_unknown_slug_names_the_nearest():
    with pytest.raises(ValueError, match="unknown article 'samplin': did you mean 'sampling'"):
        article("samplin")
