"""The modules of dvc.yaml's stages, kept in step with what the notebooks import."""

import pytest

from foredraft import paths, stages
from foredraft.articles import ARTICLES, Article, article

TEXT = (paths.ROOT / "dvc.yaml").read_text(encoding="utf-8")
SAMPLING = article("sampling")


def test_what_is_committed_is_in_step():
    assert all(stages.synced(TEXT, each) == TEXT for each in ARTICLES), "run `foredraft sync`"


def test_modules_are_added_and_dropped_and_the_rest_stays():
    first = "      - src/foredraft/sampling.py\n"
    drifted = TEXT.replace(first, "      - src/foredraft/gone.py\n", 1)
    assert drifted != TEXT
    assert stages.synced(drifted, SAMPLING) == TEXT


def test_a_stage_without_modules_gets_them_before_its_data():
    head, deps, rest = TEXT.partition("    deps:\n")
    modules, data, tail = rest.partition("      - data/models/pocket-llama\n")
    assert modules
    assert stages.synced(head + deps + data + tail, SAMPLING) == TEXT


def test_an_article_without_a_stage_is_told():
    with pytest.raises(ValueError, match="no stage 'nothing' with a list of deps: add one"):
        stages.synced(TEXT, Article(9, "nothing", "Nothing"))


def test_a_changed_file_is_written_and_named(tmp_path, monkeypatch):
    drifted = TEXT.replace("      - src/foredraft/sampling.py\n", "", 1)
    (tmp_path / "dvc.yaml").write_text(drifted)
    monkeypatch.setattr(stages, "ARTICLES", (SAMPLING,))
    monkeypatch.setattr(paths, "label", lambda path, root=paths.ROOT: str(path.relative_to(root)))
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    assert stages.sync() == [tmp_path / "dvc.yaml"]
    assert (tmp_path / "dvc.yaml").read_text() == TEXT
    assert stages.sync() == []
