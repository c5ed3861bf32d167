"""A plan switches off exactly the branches that it names."""

import copy
import itertools
import json
import pickle

import pytest
import torch
from torch.testing import assert_close
from transformers import DynamicCache, Gemma2Config, LlamaConfig, PreTrainedModel

import foredraft as fd
from foredraft import paths
from foredraft.articles.layer_skipping import experiment
from foredraft.models.config import DecoderConfig
from foredraft.models.skip import PublishedPlan

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
    """A transformers model in which the branches of the plan give zero to the residual stream."""
    model = copy.deepcopy(model)
    for index, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        if model.config.model_type == "gemma2":  # what joins the stream is what these norms give
            attention, mlp = layer.post_attention_layernorm, layer.post_feedforward_layernorm
        for last, layers in ((attention, plan.attn), (mlp, plan.mlp)):
            if index in layers:
                last.register_forward_hook(zeroed)
    return model


def zeroed(_module, _args, output):
    """Give zeros for the output of a module, or for the first of its outputs."""
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)


def test_logits_under_a_plan_are_those_of_transformers_with_zeroed_sub_layers(
    family, plan, exact_reference, decoder, widened, text
):
    tokens = text(2, 23)
    with widened:
        expected = without(exact_reference(family), plan)(tokens).logits
    assert (decoder(tokens, skip=plan) - expected).abs().max() <= 1e-10


def test_a_draft_on_the_whole_model_s_prefix_is_that_of_transformers(
    family, plan, exact_reference, decoder, widened, text
):
    """The self-drafter's reading: all of the prefix, past the window, then token by token."""
    tokens, cache = text(2, 17), decoder.new_cache(2, 17)
    model = exact_reference(family)
    theirs = DynamicCache(config=model.config)
    with widened:
        model(tokens[:, :12], past_key_values=theirs)
        drafting = without(model, plan)
        expected = [
            drafting(token, past_key_values=theirs).logits for token in tokens[:, 12:].split(1, 1)
        ]
    decoder.hidden(tokens[:, :12], cache)
    cache.commit(12)
    for token, wanted in zip(tokens[:, 12:].split(1, 1), expected, strict=True):
        assert (decoder(token, cache, skip=plan) - wanted).abs().max() <= 1e-10
        cache.commit(1)


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


def test_plans_combine_as_sets_do():
    one, other = fd.SkipPlan(attn=[1, 2], mlp=[0]), fd.SkipPlan(attn=[2, 3], mlp=[0, 1])
    assert one | other == fd.SkipPlan(attn=[1, 2, 3], mlp=[0, 1])
    assert one & other == fd.SkipPlan(attn=[2], mlp=[0])
    assert one - other == fd.SkipPlan(attn=[1])
    assert (one | other) - other == one - other
    assert len(one | other) == len(one) + len(other) - len(one & other)


@pytest.mark.parametrize(
    ("plan", "layers"),
    [
        (fd.SkipPlan.layers([3, 0]), [0, 3]),
        (fd.SkipPlan.early_exit(9, 12), [9, 10, 11]),
        (fd.SkipPlan.early_exit(12, 12), []),
        (fd.SkipPlan.early_exit(0, 2), [0, 1]),
        (fd.SkipPlan.every(4, 12), [3, 7, 11]),
        (fd.SkipPlan.every(1, 3), [0, 1, 2]),
        (fd.SkipPlan.every(5, 4), []),
        (fd.SkipPlan.spread(3, 12), [2, 6, 10]),
        (fd.SkipPlan.spread(1, 5), [2]),
        (fd.SkipPlan.spread(0, 5), []),
    ],
    ids=repr,
)
def test_plans_of_whole_layers(plan, layers):
    assert plan == fd.SkipPlan(attn=layers, mlp=layers)


@pytest.mark.parametrize("n", range(13))
def test_spread_layers_are_as_many_as_asked_and_evenly_apart(n):
    layers = sorted(fd.SkipPlan.spread(n, 12).attn)
    assert len(layers) == n
    gaps = {after - before for before, after in itertools.pairwise(layers)}
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: fd.SkipPlan.layers([-1]), r"layers=\[-1\]: layers are integers counted from 0"),
        (lambda: fd.SkipPlan.early_exit(13, 12), "n=13: an early exit lies after 0 to 12"),
        (lambda: fd.SkipPlan.early_exit(-1, 12), "n=-1"),
        (lambda: fd.SkipPlan.every(0, 12), "k=0: skip each layer"),
        (lambda: fd.SkipPlan.spread(13, 12), "n=13: of 12 layers"),
        (lambda: fd.SkipPlan.spread(-1, 12), "n=-1"),
        (lambda: fd.SkipPlan(attn=[42]).cost(gemma2_9b()), r"skips layers \[42\]"),
    ],
)
def test_what_makes_no_plan_is_refused(call, told):
    with pytest.raises(ValueError, match=told):
        call()


@pytest.mark.parametrize("n", range(5))
def test_an_early_exit_knows_its_layer_and_other_plans_have_none(n):
    exiting = fd.SkipPlan.early_exit(n, 4)
    assert exiting.exit_layer(4) == n
    assert exiting.exit_layer(6) == (6 if n == 4 else None)
    for branch in ({"attn": [3]}, {"mlp": [3]}, {"attn": [0]}, {"mlp": [0]}):
        one = fd.SkipPlan(**branch)
        other = exiting - one if one & exiting else exiting | one
        assert other.exit_layer(4) is None


ARTICLE = fd.SkipPlan(
    attn=[4, 7, 8, 9, 10, 12, 16, 18, 19, 25, 29, 31, 34, 35, 36, 37, 38, 39, 41],
    mlp=[2, 3, 6, 7, 8, 9, 14, 18, 20, 23, 25, 31, 33, 34, 35, 36, 37, 41],
)


def gemma2_9b() -> Gemma2Config:
    return Gemma2Config(
        vocab_size=256_000,
        hidden_size=3584,
        intermediate_size=14_336,
        num_hidden_layers=42,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=256,
    )


def llama3_8b() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )


def test_the_article_s_plan_leaves_three_fifths_of_gemma_2_9b():
    assert ARTICLE.cost(gemma2_9b()) == pytest.approx(0.609, abs=5e-4)
    assert ARTICLE.cost(DecoderConfig.from_hf(gemma2_9b())) == ARTICLE.cost(gemma2_9b())


@pytest.mark.parametrize(
    ("config", "attention", "mlp", "head"),
    [(gemma2_9b(), 0.200, 0.701, 0.099), (llama3_8b(), 0.179, 0.751, 0.070)],
    ids=["gemma-2-9b", "Llama-3-8B"],
)
def test_the_branches_shares_of_published_models(config, attention, mlp, head):
    """By hand: weights of the branches and of the head, without norms, to three places."""
    everything = range(config.num_hidden_layers)
    kept = {
        "attention": fd.SkipPlan(attn=everything).cost(config),
        "mlp": fd.SkipPlan(mlp=everything).cost(config),
        "all": fd.SkipPlan(attn=everything, mlp=everything).cost(config),
    }
    wanted = {"attention": 1 - attention, "mlp": 1 - mlp, "all": head}
    assert kept == pytest.approx(wanted, abs=6e-4)


def test_a_cost_counts_the_very_weights_that_a_pass_reads(variant, exact_decoder, plan):
    """Every tensor of the modules that run, the embedding's own lookup left out."""
    decoder = exact_decoder(variant)
    read = sum(each.numel() for each in (*decoder.norm.parameters(), head_weight(decoder)))
    kept = read
    for layer in decoder.layers:
        for branch, skipped in ((layer.attention, plan.attn), (layer.mlp, plan.mlp)):
            size = sum(each.numel() for each in branch.parameters())
            read += size
            kept += size * (layer.index not in skipped)
    assert plan.cost(decoder.config) == pytest.approx(kept / read, abs=1e-15)


def head_weight(decoder: fd.Decoder) -> torch.Tensor:
    return decoder.embedding.weight if decoder.config.tied else decoder.head.weight


def test_a_pass_goes_on_where_an_earlier_one_stopped(decoder, text):
    tokens = text(2, 12)
    exiting = fd.SkipPlan.early_exit(2, 4)
    start = decoder.hidden(tokens, skip=exiting)
    rest = decoder.hidden(tokens, skip=fd.SkipPlan.layers(LAYERS) - exiting, start=start)
    assert torch.equal(rest, decoder.hidden(tokens))


@pytest.mark.parametrize("ids", [[5], [90, 3, 41]])
def test_some_rows_of_the_head_give_their_logits(variant, exact_decoder, text, ids):
    decoder, ids = exact_decoder(variant), torch.tensor(ids)
    hidden = decoder.hidden(text(2, 5))
    trimmed = decoder.logits(hidden, decoder.head_rows(ids))
    assert_close(trimmed, decoder.logits(hidden)[..., ids], **CLOSE)


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


def llama2(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=32_000,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
    )


PUBLISHED = {
    "gemma-2-9b-it": (gemma2_9b(), 19, 18, 0.609),
    "llama-2-13b": (llama2(5120, 13_824, 40, 40, 40), 24, 10, 0.639),
    "llama-2-70b": (llama2(8192, 28_672, 80, 64, 8), 47, 37, 0.517),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_plans_skip_and_cost_what_is_known_of_them(name):
    config, n_attn, n_mlp, cost = PUBLISHED[name]
    plan = fd.SkipPlan.published(name)
    assert (len(plan.attn), len(plan.mlp)) == (n_attn, n_mlp)
    assert plan.cost(config) == pytest.approx(cost, abs=5e-4)


def test_the_article_s_published_plan_is_that_of_article_03():
    found = PublishedPlan.read("gemma-2-9b-it")
    assert found.plan == experiment.ARTICLE_PLAN == ARTICLE
    assert found.measured == {
        "target_rate": experiment.TARGET_RATE,
        "draft_rate": experiment.DRAFT_RATE,
        "self_rate": experiment.SELF_RATE,
        "acceptance": experiment.ARTICLE_ACCEPTANCE,
    }


@pytest.mark.parametrize("path", sorted(paths.PLANS.glob("*.json")), ids=lambda path: path.stem)
def test_every_plan_shipped_can_be_read_and_lists_each_layer_once_in_order(path):
    found = PublishedPlan.read(path.stem)
    assert found.model
    assert found.source
    for layers in (found.branches.attn, found.branches.mlp):
        assert list(layers) == sorted(set(layers))


@pytest.mark.parametrize("name", ["gemma-2-9b", "../models/pocket-llama/card", ""])
def test_a_name_of_no_plan_is_refused_with_those_there_are(name):
    known = ", ".join(sorted(path.stem for path in paths.PLANS.glob("*.json")))
    with pytest.raises(ValueError, match=f"unknown plan '{name}': .*Known: {known}"):
        fd.SkipPlan.published(name)


def test_a_near_name_is_suggested():
    with pytest.raises(ValueError, match="did you mean 'llama-2-70b'"):
        fd.SkipPlan.published("llama2-70b")


WRITTEN = {
    "plan": {"attn": [1, 0], "mlp": []},
    "model": "pocket-llama",
    "source": "a search",
    "gamma": 3,
    "predicted": {"speedup": 1.2},
    "measured": None,
}


@pytest.fixture
def written(monkeypatch, tmp_path):
    """Keep some content under the name `mine`."""
    monkeypatch.setattr(paths, "PLANS", tmp_path)

    def write(content):
        text = content if isinstance(content, str) else json.dumps(content)
        paths.plan("mine").write_text(text, encoding="utf-8")

    return write


def test_a_plan_found_is_read_with_what_is_said_of_it(written):
    written({**WRITTEN, "stamp": {"what": "a search"}, "trials": [1, 2]})
    found = PublishedPlan.read("mine")
    assert found.plan == fd.SkipPlan(attn=[0, 1])
    assert (found.model, found.source, found.gamma) == ("pocket-llama", "a search", 3)
    assert (found.predicted, found.measured) == ({"speedup": 1.2}, None)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"plan": {"attn": [1]}}, "plan.mlp"),
        ({"plan": {"attn": [], "mlp": [], "norm": []}}, "plan.norm"),
        ({"plan": {"attn": [-1], "mlp": []}}, "plan.attn.0"),
        ({"plan": {"attn": [], "mlp": [True]}}, "plan.mlp.0"),
        ({"plan": {"attn": [], "mlp": ["3"]}}, "plan.mlp.0"),
        ({"plan": None}, "plan"),
        ({"model": None}, "model"),
        ({"gamma": 0}, "gamma"),
        ({"gamma": 2.5}, "gamma"),
        ({"measured": {"rate": "fast"}}, "measured.rate"),
        ({"predicted": 1.2}, "predicted"),
    ],
)
def test_a_file_of_another_form_is_refused_with_the_place(written, change, key):
    written({**WRITTEN, **change})
    with pytest.raises(ValueError, match=rf"/mine.json: {key}: "):
        fd.SkipPlan.published("mine")


@pytest.mark.parametrize("key", WRITTEN)
def test_a_file_that_lacks_a_key_is_refused(written, key):
    written({name: value for name, value in WRITTEN.items() if name != key})
    with pytest.raises(ValueError, match=rf"/mine.json: {key}: Field required"):
        fd.SkipPlan.published("mine")


def test_a_file_that_is_no_json_is_refused(written):
    written("{")
    with pytest.raises(ValueError, match=r"/mine.json: the file: Invalid JSON"):
        fd.SkipPlan.published("mine")
