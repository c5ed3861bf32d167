"""Of several processes that train a model, one alone writes its folder."""

from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from foredraft import paths
from foredraft.training.bert import ship as pocket_bert
from foredraft.training.bert.pretrain import POCKET_BERT
from foredraft.training.decoder import ship as pocket
from foredraft.training.decoder.recipes import RECIPES
from foredraft.training.llava import ship as pocket_llava
from foredraft.training.llava.pretrain import POCKET_LLAVA

MADE = [
    (pocket, "pretrain", RECIPES["pocket-llama"]),
    (pocket_bert, "pretrain_bert", POCKET_BERT),
    (pocket_llava, "pretrain_llava", POCKET_LLAVA),
]


class Shipped(Exception):
    """Raised where a folder would be written."""


def ship(*_, **__):
    raise Shipped


@pytest.mark.parametrize(("module", "train", "recipe"), MADE, ids=[made[1] for made in MADE])
def test_the_first_process_alone_ships(module, train, recipe, monkeypatch):
    monkeypatch.setattr(module, train, lambda *_, **__: (None, None))
    monkeypatch.setattr(module, "ship", ship)
    for name in ("load_corpus", "load_docstrings", "rows_of", "evaluated_rows", "tokenizer_of"):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, Mock())
    with pytest.raises(Shipped):
        module.make(recipe)
    second = SimpleNamespace(is_main_process=False)
    monkeypatch.setattr(module, "PartialState", lambda: second)
    assert module.make(recipe) == paths.model(recipe.name)
