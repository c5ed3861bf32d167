"""LayerSkip: rates and weights as the paper has them, one loss over exits, exact resume."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import Gemma2Config

import foredraft as fd
from foredraft import paths
from foredraft.training.checkpoint import Checkpoint
from foredraft.training.corpus import Corpus, Split
from foredraft.training.decoder.layerskip import (
    ExitLoss,
    LayerSkip,
    cut,
    dropout_rates,
    dropped,
    exit_weights,
)
from foredraft.training.decoder.pretrain import initialised, pretrain, started
from foredraft.training.decoder.recipes import RECIPES, Recipe, Stage
from foredraft.training.decoder.ship import rendered

OPTION = LayerSkip(max_dropout=0.4, exit_scale=0.5, rotation=2)
RECIPE = Recipe(
    name="tiny-layerskip",
    architecture=Gemma2Config,
    sizes={
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 8,
    },
    stages=(Stage(4, 16, 640), Stage(4, 32, 640)),
    peak_learning_rate=3e-3,
    batch_tokens=64,
    warmup_steps=4,
    layer_skip=OPTION,
)


@pytest.fixture
def decoder():
    return initialised(RECIPE, RECIPE.stages[-1])


@pytest.fixture
def text():
    tokens = torch.randint(40, (3, 17), generator=torch.Generator().manual_seed(0))
    return tokens[:, :-1], tokens[:, 1:]


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    split = Split(np.tile(np.arange(40, dtype=np.uint16), 60), 5000)
    return Corpus(train=split, held_out_files=split, held_out_package=split)


@pytest.mark.parametrize("n_layers", [2, 3, 12, 42])
def test_the_first_layer_always_stays_and_the_last_is_dropped_most(n_layers):
    rates = dropout_rates(OPTION, n_layers, 0.5)
    assert rates[0] == 0
    assert rates[-1] == OPTION.max_dropout
    assert all(np.diff(rates) > 0)
    depth = np.arange(n_layers) / (n_layers - 1)
    paper = OPTION.max_dropout * (np.exp(depth * np.log(2)) - 1)
    np.testing.assert_allclose(rates, paper, rtol=0, atol=1e-15)


def test_ramping_dropout_grows_from_none_to_the_whole():
    ramping = replace(OPTION, ramps=True)
    assert dropout_rates(ramping, 6, 0.0) == (0.0,) * 6
    assert dropout_rates(ramping, 6, 1.0) == dropout_rates(OPTION, 6, 1.0)
    halfway = dropout_rates(ramping, 6, 0.5)[-1]
    assert halfway == pytest.approx((2**0.5 - 1) * OPTION.max_dropout)


def test_layers_are_dropped_as_often_as_the_rates_say():
    """Each of 11 counts within 4.5 standard deviations: a false alarm in 13,000 seeds."""
    generator, n, n_draws = torch.Generator().manual_seed(0), 12, 4000
    plans = [dropped(OPTION, n, 1.0, generator=generator) for _ in range(n_draws)]
    counts = np.array([sum(layer in plan.attn for plan in plans) for layer in range(n)])
    rates = np.array(dropout_rates(OPTION, n, 1.0))
    deviation = np.sqrt(n_draws * rates * (1 - rates))
    assert (np.abs(counts - n_draws * rates) <= 4.5 * deviation).all()
    assert all(plan.attn == plan.mlp for plan in plans)


@pytest.mark.parametrize("n_layers", [1, 2, 7, 12])
@pytest.mark.parametrize("scale", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("rotation", [1, 3, 6])
def test_exit_weights_sum_to_one_and_the_last_layer_is_always_on(n_layers, scale, rotation):
    option = LayerSkip(0.1, scale, rotation)
    for step in range(rotation):
        weights = exit_weights(option, n_layers, step)
        assert len(weights) == n_layers
        assert sum(weights) == pytest.approx(1)
        assert weights[-1] == max(weights) > 0


def test_a_rotation_turns_on_every_early_exit_that_has_weight_once():
    option = LayerSkip(0.1, 1.0, 4)
    rounds = [exit_weights(option, 12, step) for step in range(4)]
    times_on = [sum(weights[layer] > 0 for weights in rounds) for layer in range(12)]
    assert times_on == [0, *[1] * 10, 4]
    assert exit_weights(option, 12, 5) == rounds[1]


def test_exit_weights_of_three_layers_are_the_paper_s():
    """e = (0, 0.5 · 1, 2 + 0.5 · 1), all on."""
    weights = exit_weights(LayerSkip(0.0, 0.5, 1), 3, 0)
    assert weights == pytest.approx((0, 0.5 / 3, 2.5 / 3))


def test_without_dropout_and_exit_scale_the_loss_is_the_plain_one(decoder, text):
    option, (tokens, targets) = LayerSkip(0.0, 0.0, 6), text
    plan = dropped(option, 4, 1.0, generator=torch.Generator().manual_seed(0))
    loss = ExitLoss(decoder)(tokens, targets, exit_weights(option, 4, 3), plan)
    plain = F.cross_entropy(decoder(tokens).flatten(0, 1), targets.flatten())
    assert torch.equal(loss, plain)
    assert torch.equal(ExitLoss(decoder)(tokens, targets), plain)


def test_the_loss_is_the_weighted_sum_over_exits(decoder, text):
    tokens, targets = text
    skip, weights = fd.SkipPlan(attn=[2], mlp=[2]), (0.0, 0.1, 0.3, 0.6)
    wanted = 0.0
    for n_layers, weight in enumerate(weights, 1):
        exit = fd.SkipPlan({2, *range(n_layers, 4)}, {2, *range(n_layers, 4)})
        logits = decoder(tokens, skip=exit).flatten(0, 1)
        wanted += weight * F.cross_entropy(logits, targets.flatten())
    torch.testing.assert_close(ExitLoss(decoder)(tokens, targets, weights, skip), wanted)


@pytest.mark.parametrize("n_layers", [1, 2, 3, 4])
def test_an_exit_is_the_decoder_with_the_later_branches_skipped(decoder, text, n_layers):
    plan = fd.SkipPlan(attn=range(n_layers, 4), mlp=range(n_layers, 4))
    wanted = decoder(text[0], skip=plan)
    states = list(decoder.hidden_states(text[0]))
    assert torch.equal(decoder.logits(states[n_layers]), wanted)
    assert torch.equal(cut(decoder, n_layers)(text[0]), wanted)


def test_cutting_leaves_the_decoder_as_it_was(decoder):
    shallow = cut(decoder, 2)
    assert all(parameter.requires_grad for parameter in decoder.parameters())
    assert shallow.embedding.weight.data_ptr() == decoder.embedding.weight.data_ptr()
    with pytest.raises(ValueError, match="1 to 4"):
        cut(decoder, 5)


def test_every_parameter_gets_a_gradient_over_a_rotation(decoder, text):
    generator = torch.Generator().manual_seed(0)
    for step in range(2 * OPTION.rotation):
        plan = dropped(OPTION, 4, 1.0, generator=generator)
        ExitLoss(decoder)(*text, exit_weights(OPTION, 4, step), plan).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_a_dropped_layer_gets_no_gradient(decoder, text):
    ExitLoss(decoder)(*text, skip=fd.SkipPlan(attn=[3], mlp=[3])).backward()
    assert all(parameter.grad is None for parameter in decoder.layers[3].parameters())


def test_training_lowers_the_loss_at_an_early_exit_too(corpus):
    tokens = torch.arange(17)[None]
    before = initialised(RECIPE, RECIPE.stages[-1])
    after, _ = pretrain(RECIPE, corpus, compile=False)
    losses = [
        ExitLoss(model)(tokens[:, :-1], tokens[:, 1:], (0.0, 0.0, 1.0, 0.0)).item()
        for model in (before, after)
    ]
    assert losses[1] < losses[0] - 0.2


def test_an_interrupted_run_resumes_bit_for_bit(corpus, monkeypatch):
    """The dropped layers, the exits on and the batch follow from the tokens seen."""
    monkeypatch.setattr("foredraft.training.decoder.pretrain.CHECKPOINT_EVERY", 3)
    whole, _ = pretrain(RECIPE, corpus, compile=False)
    Checkpoint(RECIPE.name).path.unlink()

    class Interrupted(Exception):
        pass

    for stop_at in (1, 8, 15):

        def stop(step, stop_at=stop_at):
            if step.tokens == stop_at * RECIPE.batch_tokens:
                raise Interrupted

        with pytest.raises(Interrupted):
            pretrain(RECIPE, corpus, compile=False, report=stop)
    resumed, progress = pretrain(RECIPE, corpus, compile=False)
    assert progress.tokens == RECIPE.tokens
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_the_held_out_loss_is_the_whole_model_s(corpus, monkeypatch):
    monkeypatch.setattr("foredraft.training.decoder.pretrain.EVALUATE_EVERY", 10)
    told = []
    decoder, _ = pretrain(
        RECIPE, corpus, compile=False, report=lambda step: told.append(step.held_out_loss)
    )
    starts = np.linspace(0, len(corpus.train.tokens) - 32 - 2, 16).astype(int)
    rows = np.stack([corpus.train.tokens[s : s + 33] for s in starts]).astype(np.int64)
    batch = torch.from_numpy(rows)
    wanted = F.cross_entropy(decoder(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
    assert told[-1] == pytest.approx(wanted.item(), rel=2**-7)  # bf16 autocast in training


def test_a_recipe_goes_on_from_the_shipped_model_it_names():
    recipe = RECIPES["pocket-gemma2-layerskip"]
    shipped, _ = fd.load("pocket-gemma2", dtype=torch.float32)
    decoder = started(recipe)
    assert all(parameter.requires_grad for parameter in decoder.parameters())
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(tensor, shipped.state_dict()[name]), name


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [("max_dropout", 1.5, "0 to 1"), ("exit_scale", -1.0, "0 or more"), ("rotation", 0, "1 or")],
)
def test_numbers_that_mean_nothing_are_refused(field, value, remedy):
    with pytest.raises(ValueError, match=remedy):
        replace(OPTION, **{field: value})


def test_the_page_of_a_model_with_early_exits_says_what_they_cost_and_gain():
    told = json.loads((paths.model("pocket-gemma2") / "card.json").read_text(encoding="utf-8"))
    assert "LayerSkip" not in rendered(told)
    told |= {
        "starts_from": "pocket-gemma2",
        "layer_skip": asdict(OPTION),
        "exits": {"pocket-gemma2": {"4": 7.1, "12": 2.5}, "new": {"4": 3.1, "12": 2.6}},
        "name": "new",
    }
    page = rendered(told)
    assert "goes on from `pocket-gemma2`" in page
    assert "| layers | pocket-gemma2 | new |\n|---|---|---|\n| 4 | 7.1 | 3.1 |\n" in page


def test_early_exits_beside_a_teacher_are_refused():
    with pytest.raises(ValueError, match="teacher"):
        replace(RECIPE, stages=(Stage(4, 16, 64, teacher="pocket-llama"),))
