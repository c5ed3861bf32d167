"""Losses and overlaps of models whose answers are known."""

import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from foredraft.models.config import DecoderConfig
from foredraft.models.decoder import Decoder
from foredraft.training.corpus import Split
from foredraft.training.decoder.evaluation import held_out, overlap

VOCAB = 16
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


@pytest.fixture
def split():
    return Split(np.random.default_rng(0).integers(0, VOCAB, 400).astype(np.uint16), 800)


def decoder(head_scale: float, seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    made = Decoder(DecoderConfig.from_hf(LlamaConfig(**SIZES))).eval().requires_grad_(False)
    made.head.weight.mul_(head_scale)
    return made


def test_a_uniform_model_loses_the_logarithm_of_the_vocabulary_at_every_position(split):
    measured = held_out(decoder(0.0), split, length=20, n_windows=7)
    assert measured.by_position.tolist() == pytest.approx([math.log(VOCAB)] * 20)
    assert measured.nats_per_token * split.bits_per_nat == pytest.approx(4 * 400 / 800)


def test_bins_average_the_positions_between_their_edges(split):
    measured = held_out(decoder(3.0), split, length=20, n_windows=7)
    binned = measured.binned((0, 5, 20))
    assert list(binned) == ["0-4", "5-19"]
    mean = (5 * binned["0-4"] + 15 * binned["5-19"]) / 20
    assert mean == pytest.approx(measured.nats_per_token)


def test_the_loss_is_that_of_one_window_at_a_time(split):
    model = decoder(3.0)
    measured = held_out(model, split, length=20, n_windows=3)
    starts = np.linspace(0, 400 - 21, 3).astype(int)
    losses = []
    for start in starts:
        text = torch.from_numpy(split.tokens[start : start + 21].astype(np.int64))
        logits = model(text[None, :-1])[0]
        losses.append(torch.nn.functional.cross_entropy(logits, text[1:]).item())
    assert measured.nats_per_token == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_a_model_overlaps_itself_wholly_and_another_in_part(split):
    model, other = decoder(3.0), decoder(3.0, seed=1)
    assert overlap(model, model, split, length=20, n_windows=5) == pytest.approx(1, abs=1e-6)
    assert 0 < overlap(model, other, split, length=20, n_windows=5) < 0.95
