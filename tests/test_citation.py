"""CITATION.cff: complete, and naming the works that the repository rests on."""

import re
import tomllib

import pytest
import yaml

from foredraft import paths

CITATION = yaml.safe_load((paths.ROOT / "CITATION.cff").read_text(encoding="utf-8"))
TO_COME = {"1810.04805", "2310.03744"}
"""Papers of articles that are not written yet: BERT, LLaVA-1.5."""


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


def test_the_works_that_the_sources_name_are_cited_and_no_others():
    cited = {
        identifier["value"].removeprefix("arXiv:")
        for reference in CITATION["references"]
        for identifier in reference.get("identifiers", [])
    }
    files = [
        *(file for folder in paths.PACKAGES.values() for file in folder.rglob("*.py")),
        *(paths.ROOT / "notebooks").glob("*.py"),
    ]
    named = {
        number
        for file in files
        for number in re.findall(r"\b[12]\d{3}\.\d{5}\b", file.read_text(encoding="utf-8"))
    }
    assert cited == named | TO_COME


def test_the_articles_are_cited():
    software = [each for each in CITATION["references"] if each["type"] == "software"]
    assert any("ccs96307/fast-llm-inference" in each["repository-code"] for each in software)


@pytest.mark.parametrize("reference", CITATION["references"], ids=lambda each: each["title"])
def test_every_reference_has_what_the_format_requires(reference):
    assert {"type", "title", "authors"} <= set(reference)


def test_no_zenodo_file_silences_it():
    assert not (paths.ROOT / ".zenodo.json").exists()
