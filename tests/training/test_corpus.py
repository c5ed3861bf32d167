"""The corpus is the same text for everyone, and what is held out stays out."""

import json

import pytest

from foredraft import paths
from foredraft.training import corpus
from foredraft.training.corpus import Source


def test_the_installed_sources_are_those_that_the_models_were_trained_on():
    recorded = [Source(**row) for row in json.loads(paths.CORPUS.read_text(encoding="utf-8"))]
    assert corpus.differences(recorded, corpus.manifest()) == []


def test_a_changed_source_is_named():
    was = Source("numpy", "1", 3, 10, "a" * 64)
    told = corpus.differences([was], [Source("numpy", "2", 3, 10, "b" * 64)])
    assert len(told) == 1
    assert told[0].startswith("numpy: recorded 1")


def test_documents_come_in_the_order_of_their_paths_without_build_files():
    found = [document.path for document in corpus.documents("networkx")]
    assert found == sorted(found)
    assert len(found) > 400
    assert not any(path.rpartition("/")[2] in corpus.BUILD_FILES for path in found)


def test_the_held_out_package_is_no_training_package():
    assert corpus.HELD_OUT_PACKAGE not in corpus.TRAIN_PACKAGES


def test_about_one_file_in_a_hundred_is_held_out_and_always_the_same():
    found = list(corpus.documents("sympy"))
    held = [document.path for document in found if document.is_held_out]
    assert 0.003 < len(held) / len(found) < 0.03
    assert held == [d.path for d in corpus.documents("sympy") if d.is_held_out]


def test_a_package_that_is_not_installed_is_refused():
    with pytest.raises(ValueError, match="make setup"):
        list(corpus.documents("no-such-package"))


def test_the_tokenizer_gives_back_any_text():
    tokenizer = corpus.train_tokenizer(iter(["def f(x):\n    return x\n"] * 50))
    text = "naïve = '🦜'\n\n\tif x:  # ∑\r\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_token_streams_are_encoded_once_and_separate_the_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    monkeypatch.setattr(corpus, "TRAIN_PACKAGES", ("typing_extensions",))
    monkeypatch.setattr(corpus, "HELD_OUT_PACKAGE", "iniconfig")
    texts = [document.text for document in corpus.documents("typing_extensions")]
    tokenizer = corpus.train_tokenizer(iter(texts))
    first, again = corpus.load_corpus(tokenizer), corpus.load_corpus(tokenizer)
    assert first.train.tokens.tolist() == again.train.tokens.tolist()
    stream = first.held_out_package.tokens.tolist()
    end = tokenizer.token_to_id(corpus.END_OF_TEXT)
    assert stream.count(end) == len(list(corpus.documents("iniconfig")))
    assert stream[0] == end
    assert list(tmp_path.rglob("*.part")) == []
