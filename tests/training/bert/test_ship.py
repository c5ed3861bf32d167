"""Counting knows what was counted, scores have honest bounds, and the shipped model is its card's.

What is measured on the shipped weights is what their card says, so luck has no part in it.
"""

import json
import math

import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer, BertForMaskedLM, BertForPreTraining

from foredraft import paths
from foredraft.files import digest
from foredraft.models.bert.model import BertForPretraining
from foredraft.training.bert.docstrings import load_docstrings
from foredraft.training.bert.mlm import Passage
from foredraft.training.bert.pretrain import POCKET_BERT
from foredraft.training.bert.ship import (
    GUESSERS,
    Neighbours,
    evaluated,
    evaluated_rows,
    rendered,
    score,
)
from foredraft.training.bert.wordpiece import SPECIAL, read_wordpiece

FOLDER = paths.model(POCKET_BERT.name)
TEXTS = (
    "Return the shortest path between source and target.",
    "numpy.linalg.eigvalsh(a, UPLO='L')",
)


@pytest.fixture
def counted():
    """Of seven tokens, 5 is followed by 6, but once by 3; 4 by nothing and 2 is never seen."""
    return Neighbours.of([Passage(0, ((5, 6, 5, 6), (5, 6, 5))), Passage(1, ((5, 3, 4),))], 7)


def test_counted_laws_sum_to_one_and_know_the_likeliest_neighbour(counted):
    assert torch.allclose(counted.follows.sum(1), torch.ones(7))
    assert counted.single.sum() == pytest.approx(1)
    assert counted.follows[5].argmax() == 6
    assert counted.single.argmax() == 5
    assert torch.equal(counted.follows[2], counted.single)


def test_absolute_discounting_takes_three_quarters_from_each_kind_of_pair(counted):
    spared = 0.75 * 2 / 4
    expected = (3 - 0.75) / 4 + spared * counted.single[6]
    assert counted.follows[5, 6].item() == pytest.approx(expected.item())


def test_both_neighbours_are_bayes_rule_on_pairs(counted):
    law = counted.from_both(torch.tensor([5]), torch.tensor([4]))[0]
    by_hand = torch.stack([counted.follows[5, x] * counted.follows[x, 4] for x in range(7)])
    assert torch.allclose(law, by_hand / by_hand.sum())
    assert law.argmax() == 3


def test_a_score_s_bounds_are_those_of_documents_not_of_tokens():
    """Ten tokens that are right or wrong together count as one."""
    alone = pd.DataFrame({"document": range(100), "right": [i % 2 == 0 for i in range(100)]})
    alone["nats"] = 1.0
    together = alone.loc[alone.index.repeat(10)]
    one, ten = score(alone), score(together)
    assert (one["accuracy"], one["low"], one["high"]) == (ten["accuracy"], ten["low"], ten["high"])
    assert (one["n"], ten["n"], ten["documents"]) == (100, 1000, 100)
    normal = 1.96 * math.sqrt(0.25 / 100)
    assert one["high"] - one["low"] == pytest.approx(2 * normal, rel=0.15)


@pytest.fixture(scope="module")
def card():
    return json.loads((FOLDER / "card.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def shipped():
    return BertForPretraining.from_pretrained(FOLDER, dtype=torch.float32)


def test_the_card_is_the_recipe_s_and_of_these_weights_and_the_page_is_the_card_s(card, shipped):
    weights = FOLDER / "model.safetensors"
    assert card["command"] == f"foredraft pretrain {POCKET_BERT.name}"
    assert card["tokens_seen"] >= POCKET_BERT.tokens
    assert (card["weights"], card["bytes"]) == (digest(weights), weights.stat().st_size)
    assert card["bytes"] <= 10_000_000
    assert shipped.config == POCKET_BERT.config
    assert card["parameters"] == sum(parameter.numel() for parameter in shipped.parameters())
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == rendered(card)


def test_the_held_out_loss_of_the_shipped_weights_is_the_card_s(card, shipped):
    package = load_docstrings().held_out_package
    rows = evaluated_rows(package, read_wordpiece(FOLDER), length=shipped.config.max_positions)
    found, told = evaluated(shipped, None, rows), card["held_out_package"]
    assert found["rows"] == told["rows"]
    for who in ("bert", "next_sentence"):
        assert found[who] == pytest.approx(told[who], abs=2e-3)


@pytest.mark.parametrize("text", ["held_out_package", "held_out_files"])
def test_it_guesses_better_than_counting_from_nothing_and_from_the_left(card, text):
    told = card[text]
    assert set(GUESSERS) <= set(told)
    for who in ("unigram", "left_neighbour"):
        assert told["bert"]["nats"] < told[who]["nats"]
        assert told["bert"]["low"] > told[who]["high"]
    assert told["next_sentence"]["low"] > 0.5


def test_texts_come_back_from_its_tokenizer_in_lower_case():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert tokenizer.convert_ids_to_tokens(range(len(SPECIAL))) == list(SPECIAL)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids == read_wordpiece(FOLDER).encode(text).ids
        said = tokenizer.decode(ids, skip_special_tokens=True)
        assert said.replace(" ", "") == text.lower().replace(" ", "")


@torch.inference_mode()
def test_transformers_loads_the_folder_and_agrees(shipped):
    given = AutoTokenizer.from_pretrained(FOLDER)(list(TEXTS), padding=True, return_tensors="pt")
    ids, mask = given["input_ids"], given["attention_mask"]
    ours = shipped(ids, mask)
    theirs = BertForPreTraining.from_pretrained(FOLDER, dtype=torch.float32).eval()(**given)
    words = BertForMaskedLM.from_pretrained(FOLDER, dtype=torch.float32).eval()(**given).logits
    real, close = mask.bool(), {"rtol": 0, "atol": 5e-5}
    for logits in (theirs.prediction_logits, words):
        torch.testing.assert_close(ours.prediction_logits[real], logits[real], **close)
    torch.testing.assert_close(
        ours.seq_relationship_logits, theirs.seq_relationship_logits, **close
    )


def test_without_counting_only_the_model_is_scored(shipped):
    rows = evaluated_rows(
        load_docstrings().held_out_package[:20], read_wordpiece(FOLDER), length=128
    )
    assert set(evaluated(shipped, None, rows, n_rows=20)) <= {"rows", "bert", "next_sentence"}
