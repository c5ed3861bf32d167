"""Typed, validated parameters."""

from typing import Any

import pytest

from foredraft.registry import ARTICLES
from foredraft.repro import params


@pytest.fixture
def document() -> dict[str, Any]:
    section = {
        "profile": "pocket",
        "seed": 0,
        "model": "pocket-llama",
        "temperatures": [0, 1.5],
    }
    defaults = params.load("sampling").model_dump(mode="json")
    return {
        "sampling": defaults | section,
        "profiles": {"pocket": {}, "smoke": {"sampling": {"seed": 7, "samples": 1}}, "big": {}},
    }


@pytest.mark.parametrize("article", ARTICLES, ids=lambda article: article.slug)
@pytest.mark.parametrize("profile", [None, "smoke"])
def test_every_article_has_a_section_and_a_smoke_overlay(article, profile):
    loaded = params.load(article.slug, {"profile": profile})
    assert loaded.profile == (profile or "pocket")


def test_every_section_belongs_to_an_article():
    assert set(params.SECTIONS) == {article.slug for article in ARTICLES}


def test_none_means_what_params_yaml_says(document):
    assert params.resolve(document, "sampling", {"seed": None}).seed == 0


def test_an_overlay_beats_the_section_and_an_override_beats_both(document):
    assert params.resolve(document, "sampling", {"profile": "smoke"}).seed == 7
    assert params.resolve(document, "sampling", {"profile": "smoke", "seed": 9}).seed == 9


def test_the_profile_of_params_yaml_selects_its_overlay(document):
    document["sampling"]["profile"] = "smoke"
    loaded = params.resolve(document, "sampling", {})
    assert (loaded.seed, loaded.profile) == (7, "smoke")


def test_parameters_are_frozen_and_lists_are_tuples(document):
    loaded = params.resolve(document, "sampling", {})
    assert isinstance(loaded, params.Sampling)
    assert loaded.temperatures == (0.0, 1.5)
    with pytest.raises(ValueError, match="frozen"):
        loaded.seed = 1


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"sed": 1}, "parameter of sampling 'sed': did you mean 'seed'. Known: .*temperatures"),
        ({"seed": "1"}, "sampling.seed: '1' is not allowed; it must be a valid integer"),
        ({"seed": True}, "sampling.seed: True is not allowed"),
        ({"seed": -1}, "sampling.seed: -1 is not allowed; it must be greater than or equal to 0"),
        ({"temperatures": [1, -2]}, "sampling.temperatures.1: -2 is not allowed"),
        (
            {"temperatures": 1.0},
            "temperatures: 1.0 is not allowed; it must be a list, such as .1.0.",
        ),
        ({"temperatures": [float("nan")]}, "sampling.temperatures.0: nan is not allowed"),
        ({"top_ps": [0.0]}, "sampling.top_ps.0: 0.0 is not allowed; it must be greater than 0"),
        ({"profile": "smok"}, "unknown profile of sampling 'smok': did you mean 'smoke'"),
        ({"profile": "big"}, "unknown profile of sampling 'big': Known: pocket, smoke"),
    ],
)
def test_what_is_not_allowed_is_told_with_key_and_remedy(document, overrides, told):
    with pytest.raises(ValueError, match=told):
        params.resolve(document, "sampling", overrides)


def test_a_misspelt_key_in_params_yaml_or_an_overlay_is_told(document):
    document["profiles"]["smoke"]["sampling"]["sampels"] = 1
    with pytest.raises(ValueError, match="'sampels': did you mean 'samples'"):
        params.resolve(document, "sampling", {"profile": "smoke"})


def test_a_misspelt_section_is_told_wherever_it_stands(document):
    document["profiles"]["smoke"]["samplng"] = {}
    with pytest.raises(ValueError, match="section of profile smoke 'samplng': did you mean"):
        params.resolve(document, "sampling", {})
    del document["profiles"]["smoke"]["samplng"]
    document["profile"] = {}
    with pytest.raises(ValueError, match=r"section of params\.yaml 'profile': did you mean"):
        params.resolve(document, "sampling", {})


def test_a_missing_key_or_section_is_told(document):
    del document["sampling"]["seed"]
    with pytest.raises(ValueError, match=r"sampling\.seed is missing"):
        params.resolve(document, "sampling", {})
    with pytest.raises(ValueError, match="no section 'sampling'"):
        params.resolve({}, "sampling", {})


def test_an_unknown_article_is_told():
    with pytest.raises(ValueError, match="unknown article 'samplin': did you mean 'sampling'"):
        params.load("samplin")
