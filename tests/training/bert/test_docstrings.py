"""Docstrings: whose they are, what they say, and that no split has another's text."""

import importlib
import inspect
import itertools

import pytest

from foredraft import paths
from foredraft.training.bert import docstrings as module
from foredraft.training.bert.docstrings import Docstring, docstrings, load_docstrings, words
from foredraft.training.corpus import TRAIN_PACKAGES, Document, Source, documents

TEXT = '''"""A module.

Of two paragraphs."""

class Tree:
    """A tree. It grows! Does it?

    Parameters
    ----------
    height : float
    """
    if True:
        async def grow(self, by, /, *, slowly=True):
            """  Grow it.
               Indented.
            """
            def inner(): "Within."

    @classmethod
    def plant(cls): pass
'''


def test_modules_classes_and_functions_are_named_from_the_package_down():
    found = {each.name: each for each in docstrings(Document("forest", "forest/oaks.py", TEXT))}
    assert {name: each.kind for name, each in found.items()} == {
        "forest.oaks": "module",
        "forest.oaks.Tree": "class",
        "forest.oaks.Tree.grow": "function",
        "forest.oaks.Tree.grow.inner": "function",
    }
    grow = found["forest.oaks.Tree.grow"]
    assert grow.parameters == ("by", "slowly")
    assert grow.text == "Grow it.\nIndented."
    assert found["forest.oaks"].summary == "A module."
    assert found["forest.oaks"].body == "Of two paragraphs."
    init = Document("forest", "forest/__init__.py", '"""All."""')
    assert next(docstrings(init)).name == "forest"


def test_sentences_hold_every_word_of_the_text_once_and_in_order():
    tree = [*docstrings(Document("forest", "forest/oaks.py", TEXT))][1]
    assert tree.sentences[:3] == ["A tree.", "It grows!", "Does it?"]
    assert " ".join(tree.sentences).split() == tree.text.split()


def test_what_this_python_cannot_read_has_no_docstrings():
    assert not [*docstrings(Document("old", "old/a.py", '"""Old."""\nprint "x"\n'))]


def test_a_file_with_an_invalid_escape_is_read_without_a_warning():
    assert [*docstrings(Document("old", "old/a.py", "'''Old.'''\nx = '\\d'\n"))]


def test_a_docstring_is_the_one_that_python_shows():
    """Of the functions of some files of the held-out package, all but those made anew."""
    checked = 0
    for document in itertools.islice(documents("networkx"), 40, 60):
        for each in docstrings(document):
            if each.kind != "function" or each.name.count(".") != document.path.count("/") + 1:
                continue
            home, _, name = each.name.rpartition(".")
            told = inspect.getdoc(getattr(importlib.import_module(home), name))
            assert told == each.text
            checked += 1
    assert checked > 20


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Packages of a hundred files each, whose docstrings partly repeat those of others."""
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    read = []

    def fake(package):
        read.append(package)
        for number in range(100):
            own, shared = f'"""{package} {number}."""', f'    "Shared\\n  {number}."'
            yield Document(package, f"{package}/{number}.py", f"{own}\ndef f():\n{shared}\n")

    monkeypatch.setattr(module, "documents", fake)
    monkeypatch.setattr(module, "manifest", lambda: [Source("a", "1", 1, 1, "0" * 64)])
    return read


def test_no_text_stands_in_two_splits_or_twice_in_one(packages):
    found = load_docstrings()
    everything = [*found.train, *found.held_out_files, *found.held_out_package]
    texts = [" ".join(each.text.lower().split()) for each in everything]
    assert len(set(texts)) == len(texts) == 7 * 100 + 100
    assert {each.package for each in found.held_out_package} == {"networkx"}
    assert {each.package for each in found.train} == set(TRAIN_PACKAGES)


def test_held_out_files_are_those_of_the_decoders(packages):
    found = load_docstrings()
    held_out = {
        document.path.removesuffix(".py").replace("/", ".")
        for package in TRAIN_PACKAGES
        for document in module.documents(package)
        if document.is_held_out
    }
    modules = {each.name for each in found.held_out_files if each.kind == "module"}
    assert modules == held_out
    assert modules


def test_what_was_read_once_is_read_from_the_cache_and_is_the_same(packages):
    first = load_docstrings()
    packages.clear()
    assert load_docstrings() == first
    assert not packages


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dijkstra_path", "dijkstra path"),
        ("numpy.linalg.LinAlgError", "numpy linalg lin alg error"),
        ("to_hdf5", "to hdf 5"),
        ("HTTPServer", "http server"),
        ("__init__", "init"),
        ("G", "g"),
    ],
)
def test_an_identifier_is_split_into_words(name, said):
    assert words(name) == said.split()


def test_a_summary_is_one_line_and_a_body_may_be_empty():
    found = Docstring("p", "p.f", "function", (), "Do this\nand that.")
    assert found.summary == "Do this and that."
    assert found.body == ""
