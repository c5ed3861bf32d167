"""Article 07: what is compared, looked at, masked, learnt and found, on models of no size.

The tiny model is also laid out as the hub caches bert-base-uncased, old names of norms and all, and
goes through the profile that asks for that.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from foredraft.articles.bert import experiment, learning, masking, parity
from foredraft.articles.bert import retrieval as searching
from foredraft.articles.bert.parity import Pieces, Ragged
from foredraft.models.bert import weights as bert_weights
from foredraft.models.bert.config import BertConfig
from foredraft.models.bert.model import Bert, BertForPretraining
from foredraft.repro import claims as results
from foredraft.repro import params
from foredraft.training.bert.docstrings import Docstring, Docstrings
from foredraft.training.bert.mlm import Masking, Passage
from foredraft.training.bert.ship import rows_of
from foredraft.training.bert.wordpiece import MASK, read_wordpiece, train_wordpiece, wrapped
from tests.articles.conftest import cached, only

NAME = "google-bert/bert-base-uncased"
VERBS = ("find", "count", "remove", "return", "draw", "compare")
THINGS = ("node", "edge", "path", "tree", "graph", "colour", "weight", "cycle")
PIECES = (Pieces.embeddings, Pieces.attention, Pieces.feed_forward, Pieces.layer, Pieces.pooler)


def docstring(verb: str, thing: str, package: str) -> Docstring:
    text = f"{verb} every {thing} of it.\n\nThe {thing} is what one may {verb}. It stays."
    return Docstring(package, f"{package}.{verb}_{thing}s", "function", (thing,), text)


FOUND = Docstrings(
    train=tuple(docstring(verb, thing, "numpy") for verb in VERBS for thing in THINGS),
    held_out_files=(),
    held_out_package=tuple(docstring(v, t, "networkx") for t in THINGS for v in VERBS),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small random BERT with both heads, and a tokenizer that cuts words."""
    place = tmp_path_factory.mktemp("tiny")
    texts = [each.text for each in FOUND.train]
    tokenizer = train_wordpiece(texts * 3, vocab_size=90)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=48,
        n_layers=2,
        n_heads=4,
        max_positions=64,
        initializer_range=0.2,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    model = BertForPretraining(Bert(config))
    model.initialise(generator=torch.Generator().manual_seed(0)).save_pretrained(place)
    wrapped(tokenizer, max_length=64).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def settings(folder) -> params.Bert:
    given = {"profile": "smoke", "model": str(folder), "encoder": str(folder), "tuning_steps": 3}
    return params.load("bert", {**given, "questions": 40})


@pytest.fixture(scope="module")
def weights(settings) -> experiment.Weights:
    return experiment.model(settings)


@pytest.fixture(scope="module")
def batch(weights) -> Ragged:
    return experiment.ragged(weights, FOUND.held_out_package)


@pytest.fixture
def both(folder, batch) -> list[Pieces]:
    return [Pieces(folder, batch, dtype) for dtype in parity.BOUNDS]


@pytest.fixture(scope="module")
def passages(folder) -> list[Passage]:
    rows = rows_of(FOUND.train, read_wordpiece(folder), Masking(), length=64, seed=0)
    return list(rows.passages)


def test_rows_have_all_lengths_that_the_model_has_positions_for(batch, weights):
    assert batch.mask.sum(1).tolist() == [1, 2, 3, 7, 16, 17, 31, 64]
    first = weights.tokenizer().cls_token_id
    assert batch.ids[:, 0].eq(first).all()
    assert batch.ids[~batch.mask].eq(0).all()
    with pytest.raises(ValueError, match="9 tokens for rows that take 133: give more text"):
        Ragged.cut([1] * 9, first=1, longest=64)


def test_every_piece_of_every_layer_is_the_references_in_both_precisions(both):
    table = parity.compared(both, *PIECES, Pieces.encoder)
    assert (table["difference"] <= table["bound"]).all()
    for piece, layers in {"attention": [1, 2], "layer": [1, 2], "states": [0, 1, 2]}.items():
        rows = table[(table["piece"] == piece) & (table["precision"] == "float64")]
        assert rows["layer"].tolist() == layers
    worst = parity.worst(table)
    assert worst["holds"].all()
    assert worst["piece"].tolist() == [
        *("embeddings", "attention", "feed-forward", "layer", "pooler"),
        *("states", "mean-pooled", "pooled"),
    ]


def test_a_wrong_weight_shows_in_its_piece_and_in_no_other(both):
    with torch.no_grad():
        both[1].ours.layers[0].mlp.up.weight[0, 0] += 1e-3
    table = parity.compared(both, Pieces.attention, Pieces.feed_forward, Pieces.layer)
    wrong = table[table["difference"] > table["bound"]]
    assert set(zip(wrong["piece"], wrong["layer"], wrong["precision"], strict=True)) == {
        ("feed-forward", 1, "float64"),
        ("layer", 1, "float64"),
    }
    assert not parity.worst(table).set_index("piece")["holds"]["layer"]


def test_heads_and_gradients_are_the_references(folder, weights, batch):
    pairs = experiment.masked_pairs(weights, FOUND.held_out_package)
    table = parity.guessing(folder, pairs)
    assert table["piece"].unique().tolist() == [
        *("words' logits", "next sentence's logits", "gradients"),
    ]
    assert (table["difference"] <= table["bound"]).all()
    n_weights = sum(p.numel() for p in BertForPretraining.from_pretrained(folder).parameters())
    assert set(table.loc[table["piece"] == "gradients", "numbers"]) == {n_weights}
    heads = parity.classifying(batch, generator=torch.Generator().manual_seed(0))
    assert heads["piece"].unique().tolist() == ["row classifier", "token classifier"]
    assert (heads["difference"] <= heads["bound"]).all()


def test_a_model_that_looks_everywhere_alike_is_measured_to_do_so(weights):
    """All scores zero: each of a text's n tokens gets 1/n; two texts of unlike lengths."""
    reader = weights.encoder()
    with torch.no_grad():
        for layer in reader.bert.layers:
            layer.attention.qkv.weight.zero_()
    texts = ["find the node", "count the tree of it"]
    sizes = [len(reader.tokenizer(text)["input_ids"]) for text in texts]
    looks = experiment.attended(reader.bert, reader.tokenizer, texts)
    each = looks.pivot_table(index=["layer", "head"], columns="pattern", values="share")
    plain = [size - 2 for size in sizes]
    one = sum(n / size for n, size in zip(plain, sizes, strict=True)) / sum(plain)
    beside = sum((n - 1) / size for n, size in zip(plain, sizes, strict=True)) / sum(plain)
    for pattern, share in {
        "itself": one,
        "[CLS]": one,
        "[SEP]": one,
        "the one after": beside,
    }.items():
        assert each[pattern].to_numpy() == pytest.approx(share)
    assert each.sum(axis=1).to_numpy() == pytest.approx(1)
    assert len(each) == 8


def test_the_clearest_heads_are_those_with_the_largest_share(weights):
    reader = weights.encoder()
    texts = [each.summary for each in FOUND.held_out_package[:9]]
    looks = experiment.attended(reader.bert, reader.tokenizer, texts)
    clearest = experiment.clearest(looks)
    assert set(clearest["pattern"]) == set(experiment.PATTERNS[:-1])
    for row in clearest.to_dict("records"):
        assert row["share"] == looks.loc[looks["pattern"] == row["pattern"], "share"].max()
    tokens, maps = experiment.maps(reader.bert, reader.tokenizer, texts[0], clearest)
    assert all(each.shape == (len(tokens), len(tokens)) for each in maps)
    assert np.concatenate(maps).sum(1) == pytest.approx(1)


def test_the_sentence_that_is_drawn_has_a_length_that_fits(weights):
    reader = weights.encoder()
    texts = ["node", "find every node of it and every path", "find every edge"]
    lengths = [len(reader.tokenizer(text)["input_ids"]) for text in texts]
    assert [length in experiment.DRAWN for length in lengths] == [False, True, False]
    assert experiment.sentence(reader, texts) == texts[1]
    assert experiment.sentence(reader, texts[:1]) == texts[0]


def test_the_rule_does_what_it_says_and_whole_words_are_asked_whole(folder, passages):
    """Seeds are fixed; of 8 intervals all hold what is asked."""
    rule = Masking(rate=0.3, masked=0.6, replaced=0.3)
    shares = masking.shares(passages * 12, read_wordpiece(folder), rule, seed=0)
    told = shares.set_index(["rule", "what"])
    for name, unit in (("single pieces", "tokens"), ("whole words", "words")):
        wanted = {f"{unit} chosen": 0.3, "of these masked": 0.6, "of these left": 0.1}
        for what, asked in wanted.items():
            row = told.loc[(name, what)]
            assert row["asked"] == pytest.approx(asked)
            assert row["low"] - 0.02 <= asked <= row["high"] + 0.02
    broken = told["share"].xs("of long words asked, asked in part", level="what")
    assert broken["whole words"] == 0
    assert broken["single pieces"] > 0.3


def test_each_token_of_the_passage_has_a_fate_and_marks_are_never_asked(folder, passages):
    table = masking.fates(passages, read_wordpiece(folder), Masking(rate=0.5), seed=1)
    for _, part in table.groupby("rule"):
        assert part["fate"].iloc[0] == part["fate"].iloc[-1] == "mark"
        assert {"masked", "unasked"} <= set(part["fate"])
        assert all("→" in text for text in part.loc[part["fate"] == "replaced", "text"])


def test_a_model_is_asked_by_both_rules_at_all_rates(folder):
    model = learning.guesser(folder)
    table = masking.by_rate(
        model, read_wordpiece(folder), FOUND.held_out_package, (0.2, 0.8), n_rows=20
    )
    assert table["rate"].tolist() == [0.2, 0.8, 0.2, 0.8]
    assert (table["low"] <= table["accuracy"]).all()
    assert table["n"].iloc[1] > 2 * table["n"].iloc[0]


def test_the_parameters_make_the_recipe(settings):
    changed = {"layers": 3, "hidden_size": 96, "masking_rate": 0.4, "whole_words": True, "seed": 5}
    recipe = learning.recipe(settings.model_copy(update=changed))
    assert (recipe.config.n_layers, recipe.config.hidden_size, recipe.seed) == (3, 96, 5)
    assert recipe.masking == Masking(rate=0.4, whole_words=True)
    assert recipe.tokens == settings.tokens


def test_training_here_is_judged_beside_the_shipped_model_and_leaves_no_file(
    settings, monkeypatch, tmp_path
):
    monkeypatch.setattr("foredraft.paths.CACHE", tmp_path)
    short = settings.model_copy(update={"tokens": 1200, "batch_tokens": 256, "documents": 40})
    rows = learning.training_rows(short, FOUND.train)
    assert len({passage.document for passage in rows.passages}) == 48
    judged = learning.judging_rows(FOUND)
    steps = []
    here = learning.trained(short, rows, judged, report=steps.append)
    again = learning.trained(short, rows, judged)
    pd.testing.assert_frame_equal(here.log, again.log)
    assert steps == here.log["tokens"].tolist()
    assert here.log["held_out"].notna().sum() >= 2
    assert not [*tmp_path.rglob("*")]
    card = learning.card()
    curves = learning.curves(card, here)
    assert curves["held_out"].notna().all()
    assert set(curves["run"]) == {learning.SHIPPED, learning.HERE}
    score = {"accuracy": 0.1, "low": 0.0, "high": 0.2, "nats": 5.0, "n": 9, "documents": 3}
    who = learning.guessers(card, {"rows": 3, "bert": score}).set_index("who")
    assert who.loc["bert", "nats"] == card["held_out_package"]["bert"]["nats"]
    assert who.loc[learning.HERE, "nats"] == 5.0


def test_a_mask_is_filled_with_the_likeliest_words(folder):
    model, tokenizer = learning.guesser(folder), read_wordpiece(folder)
    text = f"find every {MASK} of it."
    table = experiment.filled(model, tokenizer, [text], n=90)
    assert table["probability"].is_monotonic_decreasing
    assert table["probability"].sum() == pytest.approx(1, abs=1e-5)
    assert table["guess"].nunique() == 90


@pytest.fixture(scope="module")
def compared(settings, weights):
    searches = searching.searches(FOUND.held_out_package, settings.questions)
    before = weights.encoder()
    after, log = searching.tuned(before, FOUND.train, settings)
    encoders = {searching.BEFORE: before, searching.AFTER: after}
    by_task = {task: searching.similarities(each, encoders) for task, each in searches.items()}
    return searches, by_task, after, log


def test_every_arm_is_asked_the_same_questions_and_recall_grows_with_k(compared, settings):
    searches, by_task, _, log = compared
    assert log["step"].tolist() == [1, 2, 3]
    table = searching.recalls(by_task, settings.ks)
    assert set(table["n"]) == {settings.questions}
    assert set(table["arm"]) == {"words", "characters", "before", "after"}
    for _, rows in table.groupby(["task", "arm"]):
        assert rows["share"].is_monotonic_increasing
    assert len(searches["functions"].texts) == settings.questions


def test_cases_are_found_first_by_one_arm_and_not_by_the_other(compared):
    searches, by_task, *_ = compared
    search, by_arm = searches["functions"], by_task["functions"]
    table = searching.cases(search, by_arm, one="words", other="before", n=3)
    assert len(table)
    for row in table.to_dict("records"):
        assert [row["words"], row["before"]].count(row["asked for"]) == 1


def test_places_are_those_nearest_to_a_readers_own_question(compared):
    searches, _, after, _ = compared
    search = searches["functions"]
    table = searching.places(search, search.texts[7], after, 3)
    assert table["text"].iloc[0] == search.texts[7]
    assert table["cosine"].iloc[0] == pytest.approx(1)
    assert table["cosine"].is_monotonic_decreasing


def test_findings_are_cited_by_keys_and_claims_have_their_values(compared, settings, both, weights):
    _, by_task, *_ = compared
    guessers = {"accuracy": 0.3, "low": 0.2, "high": 0.4, "nats": 4.0, "n": 9}
    ratio = {"ratio_median": 2.0, "ratio_min": 1.9, "ratio_max": 2.1, "ratio_iqr": 0.1, "n": 7}
    share = {"share": 0.1, "low": 0.0, "high": 1.0, "n": 5}
    about = {"device": "cpu", "workload": "8 to 256 tokens, evenly", "unit": "ms"}
    tables = {
        "parity": parity.worst(parity.compared(both, *PIECES)),
        "masking": pd.DataFrame([{"rule": "whole words", "what": "words chosen", **share}]),
        "guessers": pd.DataFrame([{"who": "bert", "words": "this model", **guessers}]),
        "recall": searching.recalls(by_task, settings.ks),
        "speed": pd.DataFrame([{**about, "task": "encode", **ratio}]),
    }
    arms = experiment.arm_names(weights, weights)
    values, claims = experiment.findings(tables, arms)
    flat = results.flattened(values)
    assert {claim.key for claim in claims} <= set(flat)
    assert len({claim.id for claim in claims}) == len(claims)
    assert flat["speed.cpu.8_to_256_tokens_evenly.encode.median"] == 2.0
    assert flat["parity.holds"] is True
    assert flat["guesses.bert.nats"] == 4.0
    assert flat["masking.whole_words.words_chosen.share"] == 0.1


def test_without_the_trained_weights_it_is_said_why_and_others_are_used(settings, monkeypatch):
    monkeypatch.setattr(bert_weights, "MINILM", "no_such_package")
    asked = settings.model_copy(update={"encoder": experiment.MINILM})
    found = experiment.encoder(asked)
    assert found.folder == experiment.model(settings).folder
    assert "no_such_package" in found.missing
    assert "make setup" in found.missing


def test_a_sentence_encoders_texts_are_as_long_as_its_folder_says(folder, weights, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9}))
    assert experiment.Weights("x", tmp_path).tokenizer().model_max_length == 9
    assert weights.tokenizer().model_max_length == 64


def test_a_model_that_cannot_be_had_is_named_with_what_runs_instead(settings):
    absent = settings.model_copy(update={"model": "pocket-brt"})
    with pytest.raises(ValueError, match=r"pocket-brt.*profile=pocket"):
        experiment.model(absent)


def test_the_profile_of_bert_base_finds_the_hubs_model_and_all_of_it_runs(
    folder, tmp_path, monkeypatch
):
    made = tmp_path / "made"
    made.mkdir()
    for file in folder.iterdir():
        (made / file.name).write_bytes(file.read_bytes())
    tensors = load_file(made / "model.safetensors")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for new, name in old.items():
        tensors = {key.replace(new, name): tensor for key, tensor in tensors.items()}
    save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
    cached(tmp_path / "hub", NAME, made)
    only(monkeypatch, tmp_path / "hub")
    asked = params.load("bert", {"profile": "bert-base", "tuning_steps": 2, "tuning_pairs": 8})
    ours, real = experiment.model(asked), experiment.encoder(asked)
    assert (ours.name, ours.folder) == (real.name, real.folder) == (NAME, ours.folder)
    assert len(ours.files) == 3
    batch = experiment.ragged(real, FOUND.held_out_package)
    pieces = [Pieces(real.folder, batch, dtype) for dtype in parity.BOUNDS]
    assert parity.worst(parity.compared(pieces, *PIECES, Pieces.encoder))["holds"].all()
    pairs = experiment.masked_pairs(ours, FOUND.held_out_package)
    assert parity.worst(parity.guessing(ours.folder, pairs))["holds"].all()
    text = f"find every {MASK} of it."
    guessed = experiment.filled(
        learning.guesser(ours.folder), read_wordpiece(ours.folder), [text], n=2
    )
    assert len(guessed) == 2
    after, log = searching.tuned(ours.encoder(), FOUND.train, asked)
    assert len(log) == 2
    search = searching.searches(FOUND.held_out_package, asked.questions)["functions"]
    found = searching.recalls({"functions": searching.similarities(search, {"after": after})}, (1,))
    assert set(found["arm"]) == {"words", "characters", "after"}
