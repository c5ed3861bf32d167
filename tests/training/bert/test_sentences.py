"""Sentence search: what is asked, how finding is counted, and that fine-tuning helps."""

import numpy as np
import pytest
import torch

from foredraft.models.bert.config import BertConfig
from foredraft.models.bert.model import Bert
from foredraft.training.bert.docstrings import Docstring
from foredraft.training.bert.sentences import (
    Search,
    Tuning,
    bodies,
    by_encoder,
    by_tf_idf,
    contrast,
    embed,
    fine_tuned,
    functions,
    recall,
)
from foredraft.training.bert.wordpiece import train_wordpiece, wrapped


def docstring(name, text, *parameters, kind="function"):
    return Docstring(name.partition(".")[0], name, kind, parameters, text)


FOUND = [
    docstring("nx.paths.shortest_path", "Find the shortest path.\n\nBy Dijkstra.", "G", "source"),
    docstring("nx.paths._hidden", "Never asked about this one.\n\nBody."),
    docstring("nx.tests.test_paths.build", "Of a test module.\n\nBody."),
    docstring("nx.other.shortest_path", "The same name again.\n\nOther body.", "G", "source"),
    docstring("nx.add_nodesFrom", "Find the shortest PATH.\n\nA question asked before."),
    docstring("nx.Graph", "A class of graphs.\n\nBody of it.", kind="class"),
    docstring("nx.trees.height", "Too short.", "T"),
    docstring("nx.trees.is_tree", "Tell whether it is a tree.", "G"),
]


def test_functions_are_described_by_name_and_parameters_and_each_is_asked_about_once():
    found = functions(FOUND)
    assert found.questions == ("Find the shortest path.", "Tell whether it is a tree.")
    assert found.texts == ("shortest path g source", "is tree g")
    assert found.names == ("nx.paths.shortest_path", "nx.trees.is_tree")


def test_bodies_belong_to_their_summaries_and_docstrings_without_one_are_left_out():
    found = bodies(FOUND[:2] + FOUND[-1:])
    assert found.questions == ("Find the shortest path.", "Never asked about this one.")
    assert found.texts == ("By Dijkstra.", "Body.")


def test_recall_is_one_at_the_top_and_k_of_n_where_all_are_alike():
    perfect = recall(torch.eye(7), 1)
    assert (perfect.share, perfect.n, perfect.high) == (1, 7, pytest.approx(1))
    for k in (1, 3, 7, 9):
        assert recall(torch.ones(7, 7), k).share == pytest.approx(min(k, 7) / 7)


def test_recall_counts_those_above_and_shares_places_among_equals():
    similarity = torch.tensor(
        [
            [0.5, 0.9, 0.1, 0.2],  # one above
            [0.3, 0.3, 0.3, 0.1],  # two equals
            [0.9, 0.8, 0.1, 0.7],  # all above
            [0.1, 0.2, 0.3, 0.4],  # first
        ]
    )
    assert recall(similarity, 1).share == pytest.approx((0 + 1 / 3 + 0 + 1) / 4)
    assert recall(similarity, 2).share == pytest.approx((1 + 2 / 3 + 0 + 1) / 4)
    assert recall(similarity, 4).share == 1


@pytest.mark.parametrize("characters", [False, True])
def test_tf_idf_finds_shared_words_and_gives_nothing_for_none(characters):
    search = Search(("a graph of nodes", "matrix inverse"), ("nodes of it", "inverse"), ("a", "b"))
    similarity = by_tf_idf(search, characters=characters)
    assert recall(similarity, 1).share == 1
    assert similarity[0, 1] == pytest.approx(0, abs=0.05)


COLOURS = ["red", "green", "blue", "white", "black", "brown", "pink", "grey"]
THINGS = ["tree", "house", "car", "cat"]
PAIRS = Search(
    tuple(f"what is {colour} and a {thing}" for colour in COLOURS for thing in THINGS),
    tuple(f"{COLOURS[i - 1]} {THINGS[j - 1]}" for i in range(8) for j in range(4)),
    tuple(f"{i}.{j}" for i in range(8) for j in range(4)),
)
"""A colour is answered by the one before it: nothing that words alone tell."""


@pytest.fixture(scope="module")
def tokenizer():
    return wrapped(train_wordpiece([*PAIRS.questions * 5], vocab_size=120), max_length=16)


@pytest.fixture(scope="module")
def bert(tokenizer):
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        n_layers=1,
        n_heads=2,
        max_positions=12,
        initializer_range=0.2,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    return Bert(config).initialise(generator=torch.Generator().manual_seed(0)).eval()


def test_a_text_s_features_depend_on_no_other_text_and_have_length_one(bert, tokenizer):
    texts = ["red tree", "what is red and a tree " * 9, "cat", *PAIRS.questions * 3]
    together = embed(bert, tokenizer, texts)
    assert torch.allclose(together.norm(dim=1), torch.ones(len(texts)))
    for index in (0, 1, 2, 80):
        alone = embed(bert, tokenizer, [texts[index]])[0]
        torch.testing.assert_close(together[index], alone, atol=1e-5, rtol=0)


def test_contrast_is_zero_for_texts_told_apart_and_log_n_for_texts_all_alike():
    apart = torch.eye(5)
    assert contrast(apart, apart).item() == pytest.approx(0, abs=1e-6)
    alike = torch.ones(5, 3) / 3**0.5
    assert contrast(alike, alike).item() == pytest.approx(np.log(5))


def test_fine_tuning_teaches_what_words_do_not_tell_and_leaves_its_start_alone(bert, tokenizer):
    before = {name: tensor.clone() for name, tensor in bert.state_dict().items()}
    tuning = Tuning(steps=80, pairs=16, peak_learning_rate=5e-3)
    tuned, losses = fine_tuned(bert, tokenizer, PAIRS, tuning)
    assert sum(losses[-5:]) < sum(losses[:5]) / 2
    found = [recall(by_encoder(model, tokenizer, PAIRS), 1).share for model in (bert, tuned)]
    assert found[1] > found[0] + 0.5
    assert found[1] > recall(by_tf_idf(PAIRS), 1).share
    assert all(torch.equal(before[name], tensor) for name, tensor in bert.state_dict().items())
    again, same = fine_tuned(bert, tokenizer, PAIRS, tuning)
    assert losses == same
    assert all(
        torch.equal(a, b) for a, b in zip(tuned.parameters(), again.parameters(), strict=True)
    )


def test_a_batch_that_cannot_be_is_refused(bert, tokenizer):
    with pytest.raises(ValueError, match="pairs=1"):
        Tuning(pairs=1)
    with pytest.raises(ValueError, match="pairs=64"):
        fine_tuned(bert, tokenizer, PAIRS, Tuning())
