"""CITATION.cff: complete, and naming the works that the repository rests on."""

import tomllib

import pytest
import yaml

from foredraft import paths

CITATION = yaml.safe_load((paths.ROOT / "CITATION.cff").read_text(encoding="utf-8"))
PAPERS = {
    "arXiv:2211.17192",  # Leviathan et al.: speculative decoding
    "arXiv:2309.08168",  # Draft & Verify
    "arXiv:2404.16710",  # LayerSkip
    "arXiv:2403.10444",  # block verification
    "arXiv:1909.05858",  # CTRL: the repetition penalty
    "arXiv:1805.04833",  # top-k sampling
    "arXiv:1904.09751",  # nucleus sampling
    "arXiv:2407.01082",  # min-p
    "arXiv:2202.00666",  # locally typical sampling
    "arXiv:2405.15319",  # growing depth by stacking
    "arXiv:1810.04805",  # BERT
    "arXiv:2310.03744",  # LLaVA-1.5
}


def test_what_the_format_requires_is_there():
    assert CITATION["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(CITATION)


def test_version_and_licence_are_the_packages():
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
    assert CITATION["version"] == project["version"]
    assert CITATION["license"] == project["license"]
    licence = (paths.ROOT / "LICENSE").read_text()
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


def test_the_works_that_we_rest_on_are_cited():
    cited = {
        identifier["value"]
        for reference in CITATION["references"]
        for identifier in reference.get("identifiers", [])
    }
    assert cited == PAPERS


def test_the_articles_are_cited():
    software = [each for each in CITATION["references"] if each["type"] == "software"]
    assert any("ccs96307/fast-llm-inference" in each["repository-code"] for each in software)


@pytest.mark.parametrize("reference", CITATION["references"], ids=lambda each: each["title"])
def test_every_reference_has_what_the_format_requires(reference):
    assert {"type", "title", "authors"} <= set(reference)


def test_no_zenodo_file_silences_it():
    assert not (paths.ROOT / ".zenodo.json").exists()
