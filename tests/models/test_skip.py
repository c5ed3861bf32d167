"""A plan switches off exactly the branches that it names."""

import copy
import json
import pickle

import pytest
import torch
from torch.testing import assert_close
from transformers import PreTrainedModel

import foredraft as fd

LAYERS = range(4)
CLOSE = {"rtol": 0, "atol": 1e-12}
PLANS = {
    "nothing": fd.SkipPlan(),
    "the first attention": fd.SkipPlan(attn=[0]),
    "the last MLP": fd.SkipPlan(mlp=[3]),
    "all attention": fd.SkipPlan(attn=LAYERS),
    "all MLPs": fd.SkipPlan(mlp=LAYERS),
    "a whole layer and parts of others": fd.SkipPlan(attn=[1, 2], mlp=[0, 1]),
    "everything": fd.SkipPlan(attn=LAYERS, mlp=LAYERS),
}


@pytest.fixture(params=PLANS.values(), ids=PLANS)
def plan(request) -> fd.SkipPlan:
    return request.param


@pytest.fixture
def decoder(family, exact_decoder) -> fd.Decoder:
    return exact_decoder(family)


def without(model: PreTrainedModel, plan: fd.SkipPlan) -> PreTrainedModel:
    """A transformers model in which the sub-layers of the plan give zero."""
    model = copy.deepcopy(model)
    for index, layer in enumerate(model.model.layers):
        if index in plan.attn:
            layer.self_attn.register_forward_hook(
                lambda _module, _args, output: (torch.zeros_like(output[0]), *output[1:])
            )
        if index in plan.mlp:
            layer.mlp.register_forward_hook(lambda _module, _args, output: torch.zeros_like(output))
    return model


def test_logits_under_a_plan_are_those_of_transformers_with_zeroed_sub_layers(
    family, plan, exact_reference, decoder, widened, text
):
    tokens = text(2, 23)
    with widened:
        expected = without(exact_reference(family), plan)(tokens).logits
    assert (decoder(tokens, skip=plan) - expected).abs().max() <= 1e-10


@pytest.mark.parametrize("sizes", [[11, *[1] * 12], [2, 9, 1, 11]], ids=["tokens", "chunks"])
def test_logits_under_a_plan_are_the_same_with_a_cache(decoder, plan, text, sizes):
    tokens, cache = text(2, 23), decoder.new_cache(2, 23)
    logits = []
    for chunk in tokens.split(sizes, dim=1):
        logits.append(decoder(chunk, cache, skip=plan))
        cache.commit(chunk.shape[1])
    assert_close(torch.cat(logits, dim=1), decoder(tokens, skip=plan), **CLOSE)


def test_rows_of_different_lengths_are_drafted_under_a_plan_as_each_alone(decoder, plan, text):
    tokens, cache = text(2, 23), decoder.new_cache(2, 23)
    decoder(tokens[:, :12], cache, skip=plan)
    cache.commit([3, 12])
    logits = decoder(torch.stack([tokens[0, 3:8], tokens[1, 12:17]]), cache, skip=plan)
    for row, start in enumerate((3, 12)):
        alone = decoder(tokens[row : row + 1, : start + 5], skip=plan)[0, start:]
        assert_close(logits[row], alone, **CLOSE)


def test_the_empty_plan_changes_not_a_bit(decoder, text):
    tokens = text(2, 23)
    assert torch.equal(decoder(tokens, skip=fd.SkipPlan()), decoder(tokens))


def test_every_branch_matters(decoder, text):
    tokens = text(2, 23)
    logits = decoder(tokens)
    for plan in [fd.SkipPlan(attn=[i]) for i in LAYERS] + [fd.SkipPlan(mlp=[i]) for i in LAYERS]:
        assert (decoder(tokens, skip=plan) - logits).abs().max() > 1e-2, plan


def test_a_skipped_attention_writes_nothing(decoder, text):
    cache = decoder.new_cache(2, 8)
    decoder(text(2, 8), cache, skip=fd.SkipPlan(attn=[0, 3]))
    written = [bool(keys.any()) for keys in cache.keys]
    assert written == [False, True, True, False]


def test_with_everything_skipped_a_token_sees_only_itself(decoder, text):
    tokens = text(2, 23)
    plan = PLANS["everything"]
    alone = decoder(tokens.reshape(-1, 1), skip=plan).reshape(2, 23, -1)
    assert_close(decoder(tokens, skip=plan), alone, **CLOSE)


@pytest.mark.parametrize("plan", [fd.SkipPlan(attn=[4, 1]), fd.SkipPlan(mlp=[4])])
def test_a_layer_that_the_decoder_lacks_is_refused(decoder, text, plan):
    with pytest.raises(ValueError, match=r"skips layers \[4\], but the decoder's are 0 to 3"):
        decoder(text(1, 2), skip=plan)


def test_a_plan_is_a_set_of_branches():
    plan = fd.SkipPlan(attn=(i for i in [3, 1, 1]), mlp=range(2))
    assert plan == fd.SkipPlan(attn={1, 3}, mlp=[1, 0])
    assert plan != fd.SkipPlan(attn=[0, 1], mlp=[1, 3])
    assert len(plan) == 4
    assert {plan, fd.SkipPlan(attn=[3, 1], mlp=[0, 1])} == {plan}
    assert repr(plan) == "SkipPlan(attn=[1, 3], mlp=[0, 1])"


def test_a_plan_cannot_be_changed():
    plan = fd.SkipPlan(attn=[1])
    for name in ("attn", "mlp", "other"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(plan, name, frozenset({2}))
    assert plan == fd.SkipPlan(attn=[1])


def test_the_iterables_given_are_copied():
    layers = [1]
    plan = fd.SkipPlan(attn=layers)
    layers.append(2)
    assert plan == fd.SkipPlan(attn=[1])


def test_a_plan_survives_json_pickle_and_copy(plan):
    assert fd.SkipPlan.from_json(plan.to_json()) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert copy.deepcopy(plan) == plan


def test_equal_plans_write_the_same_json():
    text = fd.SkipPlan(attn=[40, 3, 17], mlp=[10, 9]).to_json()
    assert text == fd.SkipPlan(attn=[17, 3, 40], mlp=[9, 10]).to_json()
    assert json.loads(text) == {"attn": [3, 17, 40], "mlp": [9, 10]}


@pytest.mark.parametrize("layers", [[-1], [True], [2, 0, -3]])
@pytest.mark.parametrize("branch", ["attn", "mlp"])
def test_what_is_no_layer_index_is_refused(layers, branch):
    with pytest.raises(ValueError, match=f"{branch}=.*layers are integers counted from 0"):
        fd.SkipPlan(**{branch: layers})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"attn": []}',
        '{"attn": [], "mlp": [], "norm": []}',
        '{"attn": 1, "mlp": []}',
        '{"attn": null, "mlp": []}',
        '{"attn": "1", "mlp": []}',
        '{"attn": {"1": 2}, "mlp": []}',
        '{"attn": [-1], "mlp": []}',
        '{"attn": [true], "mlp": []}',
        '{"attn": [1.0], "mlp": []}',
        '{"attn": [[1]], "mlp": []}',
        '{"attn": ["1"], "mlp": []}',
        '{"attn": [], "mlp": [null]}',
    ],
)
def test_json_that_is_no_plan_is_refused(text):
    with pytest.raises(ValueError, match=r"a plan looks like|layers are integers"):
        fd.SkipPlan.from_json(text)
