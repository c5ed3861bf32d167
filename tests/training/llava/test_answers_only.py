"""A last layer that works on answers alone learns what the whole one learns."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from foredraft.training.llava.answers_only import AnswersOnly

FIRST = 6
"""The first token that is to be learnt."""


@pytest.fixture(params=[4, 2], ids=["heads", "shared heads"])
def model(request):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=23,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=request.param,
        head_dim=8,
    )
    return LlamaForCausalLM(config).double()


def learnt(model, ids, labels):
    """The loss of the labels, and all gradients."""
    model.zero_grad()
    logits = model(input_ids=ids).logits[:, :-1]
    loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
    loss.backward()
    return loss, [parameter.grad.clone() for parameter in model.parameters()]


def test_loss_and_gradients_stay(model):
    ids = torch.randint(23, (3, 11))
    labels = ids.clone()
    labels[:, :FIRST], labels[1, : FIRST + 2] = -100, -100
    wanted, gradients = learnt(model, ids, labels)
    answers = AnswersOnly(model.model.layers[-1])
    answers.look(labels)
    assert answers.first == FIRST - 1
    found, same = learnt(model, ids, labels)
    assert found.item() == pytest.approx(wanted.item(), abs=1e-12)
    for ours, theirs in zip(same, gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_without_answers_the_layer_runs_in_full(model):
    ids = torch.randint(23, (2, 7))
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
        answers = AnswersOnly(model.model.layers[-1])
        answers.look(torch.full_like(ids, -100))
        assert torch.equal(model(input_ids=ids).logits, wanted)
        answers.look(ids)
        assert torch.equal(model(input_ids=ids).logits, wanted)
        answers.look(torch.where(torch.arange(7) < FIRST, -100, ids))
        masked = model(input_ids=ids, attention_mask=torch.tensor([[0] + [1] * 6, [1] * 7]))
        assert torch.isfinite(masked.logits).all()
