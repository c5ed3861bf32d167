"""Our BERT is the reference's, number by number, and does no work for padding."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import foredraft as fd
from foredraft.models.bert.config import BertConfig
from foredraft.models.bert.fused import ActivatedLinear, ResidualLinear, can_fuse
from foredraft.models.bert.model import (
    Bert,
    BertForPretraining,
    SequenceClassifier,
    TokenClassifier,
)
from foredraft.models.bert.padding import Layout, mean_pool
from foredraft.models.bert.weights import Pretrained, checkpoint_tensors

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 40,
}
LENGTHS = (5, 23, 1, 17, 5, 31, 2, 23)
LABELS = ("other", "noun", "verb")
PAIRS: dict[str, type[Pretrained]] = {
    "BertModel": Bert,
    "BertForPreTraining": BertForPretraining,
    "BertForMaskedLM": BertForPretraining,
    "BertForSequenceClassification": SequenceClassifier,
    "BertForTokenClassification": TokenClassifier,
}
EXACT = {"rtol": 0, "atol": 1e-12}
CLOSE = {"rtol": 0, "atol": 2e-5}

COMPILED = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file
import foredraft as fd

model = fd.Bert.from_pretrained(sys.argv[1])
compiled = torch.compile(model, fullgraph=True, backend="eager")
for file in sorted(Path(sys.argv[1]).glob("*.batch")):
    batch = load_file(file)
    given = [batch[name] for name in ("ids", "mask", "types")]
    for inputs in (given, given[:2]):
        with torch.no_grad():
            ours, wanted = compiled(*inputs), model(*inputs)
        for name in ("last_hidden_state", "pooler_output"):
            tensors = [getattr(output, name) for output in (ours, wanted)]
            torch.testing.assert_close(*tensors, rtol=0, atol=1e-12)
"""
"""Compile a saved model, whole or not at all, and compare it with itself on saved batches."""

every_pair = pytest.mark.parametrize("name", list(PAIRS))


def theirs(
    name: str, dtype: torch.dtype = torch.float64, **options
) -> transformers.PreTrainedModel:
    """A tiny model of transformers, with weights that let every part of it show."""
    config = transformers.BertConfig(
        **SIZES | options, id2label=dict(enumerate(LABELS)), attn_implementation="eager"
    )
    model = getattr(transformers, name)(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.ndim == 1:
                parameter += 0.3 * noise.to(dtype)
            else:
                parameter.copy_(noise * parameter.shape[1] ** -0.5)
    return model


@pytest.fixture
def unchecked() -> Iterator[None]:
    """No checks of shapes meanwhile, which would come before our own."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Rows of many lengths, in no order, padded on the right; two sentences each."""
    generator = torch.Generator().manual_seed(5)
    shape = (len(LENGTHS), max(LENGTHS))
    column = torch.arange(shape[1])
    lengths = torch.tensor(LENGTHS)[:, None]
    mask = (column < lengths).long()
    ids = torch.randint(1, SIZES["vocab_size"], shape, generator=generator) * mask
    return {"ids": ids, "mask": mask, "types": (column >= lengths // 2).long() * mask}


def shifted(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with padding on the left, and a hole in the longest row."""
    mask = batch["mask"].flip(1).clone()
    mask[LENGTHS.index(31), 7:11] = 0
    return {name: values.flip(1) * mask for name, values in batch.items()}


def reference(model: nn.Module, batch: dict[str, torch.Tensor], **options):
    return model(
        input_ids=batch["ids"],
        attention_mask=batch["mask"],
        token_type_ids=batch["types"],
        **options,
    )


@pytest.mark.parametrize("pads", ["right", "left and within"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, EXACT), (torch.float32, CLOSE)])
@torch.no_grad()
def test_every_hidden_state_is_the_references_and_zero_at_padding(batch, pads, dtype, tolerance):
    batch = batch if pads == "right" else shifted(batch)
    model = theirs("BertModel", dtype)
    expected = reference(model, batch, output_hidden_states=True).hidden_states
    states = Bert.from_hf(model).hidden_states(batch["ids"], batch["mask"], batch["types"])
    real = batch["mask"].bool()
    assert len(states) == len(expected)
    for ours, wanted in zip(states, expected, strict=True):
        torch.testing.assert_close(ours[real], wanted[real], **tolerance)
        assert ours[~real].eq(0).all()


@torch.no_grad()
def test_output_and_pooled_output_are_the_references(batch):
    model = theirs("BertModel")
    expected = reference(model, batch)
    output = Bert.from_hf(model)(batch["ids"], batch["mask"], batch["types"])
    real = batch["mask"].bool()
    torch.testing.assert_close(output.pooler_output, expected.pooler_output, **EXACT)
    torch.testing.assert_close(
        output.last_hidden_state[real], expected.last_hidden_state[real], **EXACT
    )


@torch.no_grad()
def test_without_mask_and_types_all_is_one_sentence_of_real_tokens(batch):
    model = theirs("BertModel")
    output = Bert.from_hf(model)(batch["ids"])
    expected = model(batch["ids"])
    torch.testing.assert_close(output.last_hidden_state, expected.last_hidden_state, **EXACT)
    torch.testing.assert_close(output.pooler_output, expected.pooler_output, **EXACT)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
@torch.no_grad()
def test_masked_language_and_next_sentence_logits_are_the_references(batch, activation):
    model = theirs("BertForPreTraining", hidden_act=activation)
    expected = reference(model, batch)
    ours = BertForPretraining.from_hf(model)(batch["ids"], batch["mask"], batch["types"])
    real = batch["mask"].bool()
    torch.testing.assert_close(
        ours.prediction_logits[real], expected.prediction_logits[real], **EXACT
    )
    torch.testing.assert_close(
        ours.seq_relationship_logits, expected.seq_relationship_logits, **EXACT
    )


@torch.no_grad()
def test_guesses_at_chosen_places_are_those_at_all_places(batch):
    model = BertForPretraining.from_hf(theirs("BertForMaskedLM"))
    chosen = (batch["ids"] % 5 == 1) & batch["mask"].bool()
    some = model(batch["ids"], batch["mask"], chosen=chosen)
    every = model(batch["ids"], batch["mask"]).prediction_logits
    assert some.prediction_logits.shape == (int(chosen.sum()), SIZES["vocab_size"])
    assert some.seq_relationship_logits is None
    torch.testing.assert_close(some.prediction_logits, every[chosen], **EXACT)


@torch.no_grad()
def test_classifiers_are_the_references(batch):
    real = batch["mask"].bool()
    rows, tokens = theirs("BertForSequenceClassification"), theirs("BertForTokenClassification")
    of_rows = SequenceClassifier.from_hf(rows)(batch["ids"], batch["mask"], batch["types"])
    torch.testing.assert_close(of_rows, reference(rows, batch).logits, **EXACT)
    of_tokens = TokenClassifier.from_hf(tokens)(batch["ids"], batch["mask"], batch["types"])
    torch.testing.assert_close(of_tokens[real], reference(tokens, batch).logits[real], **EXACT)


def test_gradients_are_the_references(batch):
    model = theirs("BertForPreTraining")
    chosen = (batch["ids"] % 4 == 1) & batch["mask"].bool()
    labels = batch["ids"].masked_fill(~chosen, -100)
    follows = torch.tensor([row % 2 for row in range(len(labels))])
    reference(model, batch, labels=labels, next_sentence_label=follows).loss.backward()

    ours = BertForPretraining.from_hf(model)
    logits = ours(batch["ids"], batch["mask"], batch["types"], chosen=chosen)
    loss = F.cross_entropy(logits.prediction_logits, batch["ids"][chosen])
    (loss + F.cross_entropy(logits.seq_relationship_logits, follows)).backward()
    of_ours = deepcopy(ours)
    of_ours.load_state_dict({name: weight.grad for name, weight in ours.named_parameters()})
    gradients = checkpoint_tensors(of_ours)
    expected = {name: weight.grad for name, weight in model.named_parameters()}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], **EXACT)


@every_pair
def test_transformers_loads_what_is_saved_and_nothing_is_missing(name, tmp_path):
    model = theirs(name)
    PAIRS[name].from_hf(model).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [name]
    loaded, about = getattr(transformers, name).from_pretrained(
        tmp_path, output_loading_info=True, dtype="auto"
    )
    assert not any(about.values()), about
    assert loaded.config.id2label == dict(enumerate(LABELS))
    for key, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], weight), key


@every_pair
@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_what_transformers_saves_is_loaded(name, shard, tmp_path):
    model = theirs(name, torch.float32)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    loaded, taken = PAIRS[name].from_pretrained(tmp_path), PAIRS[name].from_hf(model)
    assert loaded.config == taken.config
    assert not loaded.training
    assert loaded.state_dict().keys() == taken.state_dict().keys()
    for key, weight in taken.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], weight), key


@every_pair
def test_an_encoder_is_taken_out_of_any_checkpoint(name, tmp_path, batch):
    model = theirs(name)
    model.save_pretrained(tmp_path)
    loaded = fd.Bert.from_pretrained(tmp_path)
    assert (loaded.pooler is None) == (model.base_model.pooler is None)
    output = loaded(batch["ids"], batch["mask"])
    expected = model.base_model(batch["ids"], batch["mask"]).last_hidden_state
    real = batch["mask"].bool()
    torch.testing.assert_close(output.last_hidden_state[real], expected[real], **EXACT)


def test_the_old_names_of_norms_are_read(tmp_path):
    model = theirs("BertForPreTraining", torch.float32)
    BertForPretraining.from_hf(model).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for new, name in old.items():
        tensors = {key.replace(new, name): tensor for key, tensor in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert any(name.endswith("gamma") for name in tensors)
    loaded = BertForPretraining.from_pretrained(tmp_path)
    torch.testing.assert_close(
        checkpoint_tensors(loaded), checkpoint_tensors(BertForPretraining.from_hf(model))
    )


def test_a_copy_of_the_weights_is_ours_alone(batch):
    model = theirs("BertForPreTraining")
    before = deepcopy(model.state_dict())
    ours = BertForPretraining.from_hf(model)
    assert all(weight.requires_grad for weight in ours.parameters())
    with torch.no_grad():
        for weight in ours.parameters():
            weight.add_(1)
    assert all(torch.equal(before[key], weight) for key, weight in model.state_dict().items())


def test_padding_costs_nothing(batch):
    """Every linear map, norm and embedding sees as many rows as there are real tokens."""
    model, rows = Bert.from_hf(theirs("BertModel", torch.float32)), {}

    def count(name: str) -> Callable:
        def note(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            rows[name] = len(output)

        return note

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.LayerNorm | nn.Embedding):
            module.register_forward_hook(count(name))
    with torch.inference_mode():
        model(batch["ids"], batch["mask"], batch["types"])
    assert rows.pop("pooler.dense") == len(LENGTHS)
    assert len(rows) == 4 + 6 * SIZES["num_hidden_layers"]
    assert set(rows.values()) == {sum(LENGTHS)}


def test_attention_compares_no_more_than_the_tokens_of_each_row(batch, monkeypatch):
    compared = []
    attend = F.scaled_dot_product_attention

    def counting(query, key, value, **options):
        compared.append(query.shape[0] * query.shape[2] * key.shape[2])
        return attend(query, key, value, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counting)
    Bert.from_hf(theirs("BertModel"))(batch["ids"], batch["mask"])
    n_layers = SIZES["num_hidden_layers"]
    assert sum(compared) == n_layers * sum(length**2 for length in LENGTHS)
    assert len(compared) == n_layers * len(set(LENGTHS))


@torch.no_grad()
def test_a_row_does_not_depend_on_its_neighbours_or_its_padding(batch):
    model = Bert.from_hf(theirs("BertModel"))
    together = model(batch["ids"], batch["mask"], batch["types"])
    order = torch.tensor([6, 3, 0, 7, 1, 5, 2, 4])
    turned = model(*(batch[name][order] for name in ("ids", "mask", "types")))
    torch.testing.assert_close(turned.last_hidden_state, together.last_hidden_state[order], **EXACT)
    torch.testing.assert_close(turned.pooler_output, together.pooler_output[order], **EXACT)
    for row, length in enumerate(LENGTHS):
        alone = model(
            batch["ids"][row : row + 1, :length], None, batch["types"][row : row + 1, :length]
        )
        torch.testing.assert_close(
            alone.last_hidden_state[0], together.last_hidden_state[row, :length], **EXACT
        )
        torch.testing.assert_close(alone.pooler_output[0], together.pooler_output[row], **EXACT)


def test_compiling_gives_one_graph_and_the_same_numbers(batch, tmp_path):
    """In a process of its own: the checks of shapes in tests are no code that can be compiled."""
    Bert.from_hf(theirs("BertModel")).save_pretrained(tmp_path)
    for name, given in {"right": batch, "left": shifted(batch)}.items():
        save_file(given, tmp_path / f"{name}.batch")
    told = subprocess.run(
        [sys.executable, "-W", "error", "-c", COMPILED, tmp_path],
        check=False,
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr


@torch.no_grad()
def test_attention_maps_are_the_references_and_leave_padding_out(batch):
    model = theirs("BertModel")
    expected = reference(model, batch, output_attentions=True).attentions
    maps = Bert.from_hf(model).attention_maps(batch["ids"], batch["mask"], batch["types"])
    real = batch["mask"].bool()
    pairs = (real[:, None, :, None] & real[:, None, None, :]).expand_as(maps[0])
    assert len(maps) == SIZES["num_hidden_layers"]
    for ours, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours[pairs], wanted[pairs], **EXACT)
        assert ours[~pairs].eq(0).all()
        torch.testing.assert_close(
            ours.sum(-1), real[:, None, :].expand(ours.shape[:3]).double(), **EXACT
        )


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu"])
def test_fused_maps_are_their_steps(activation):
    """Within 2e-5 at size one: oneDNN has a polynomial of its own for the error function."""
    generator = torch.Generator().manual_seed(7)
    x, residual = (3 * torch.randn(19, size, generator=generator) for size in (24, 40))
    for linear, *more in (
        (ActivatedLinear(24, 40, activation),),
        (ResidualLinear(24, 40, 0.5).eval(), residual),
    ):
        steps = linear(x, *more)
        assert steps.requires_grad
        with torch.inference_mode():
            assert can_fuse(linear, x)
            torch.testing.assert_close(linear(x, *more), steps.detach(), **CLOSE)


def test_only_float32_without_gradients_is_fused():
    linear, x = ActivatedLinear(4, 4, "gelu"), torch.ones(2, 4)
    assert not can_fuse(linear, x)
    with torch.no_grad():
        assert can_fuse(linear, x)
        assert not can_fuse(deepcopy(linear).double(), x.double())
        with torch.autocast("cpu", torch.bfloat16):
            assert not can_fuse(linear, x)


@torch.no_grad()
def test_a_packed_model_gives_and_saves_the_same(batch, tmp_path):
    model = theirs("BertForPreTraining", torch.float32)
    plain, packed = (BertForPretraining.from_hf(model) for _ in range(2))
    packed.pack().pack().save_pretrained(tmp_path)
    ours, wanted = (each(batch["ids"], batch["mask"]) for each in (packed, plain))
    torch.testing.assert_close(ours.prediction_logits, wanted.prediction_logits, **CLOSE)
    assert packed.bert.layers[0].mlp.up.weight.numel() == 0
    again = BertForPretraining.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in plain.state_dict().items())
    with pytest.raises(ValueError, match=r"without pack\(\)"):
        packed.train()(batch["ids"])
    with pytest.raises(ValueError, match=r"without pack\(\)"):
        packed.eval().double()(batch["ids"])


def test_dropout_acts_in_training_only(batch):
    model = Bert.from_hf(theirs("BertModel"))
    still = [model(batch["ids"], batch["mask"]).last_hidden_state for _ in range(2)]
    assert torch.equal(*still)
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        moving = [model(batch["ids"], batch["mask"]).last_hidden_state for _ in range(2)]
    assert not torch.allclose(*moving)
    assert all(state[~batch["mask"].bool()].eq(0).all() for state in moving)


def test_arguments_are_left_as_they_were(batch):
    before = deepcopy(batch)
    model = BertForPretraining.from_hf(theirs("BertForPreTraining", torch.float32))
    with torch.inference_mode():
        model(batch["ids"], batch["mask"], batch["types"], chosen=batch["mask"].bool())
    assert all(torch.equal(before[name], values) for name, values in batch.items())


def test_mean_pooling_averages_real_tokens(batch):
    hidden = torch.randn(*batch["ids"].shape, 6, dtype=torch.float64)
    pooled = mean_pool(hidden, batch["mask"])
    for row, length in enumerate(LENGTHS):
        torch.testing.assert_close(pooled[row], hidden[row, :length].mean(0), **EXACT)
    torch.testing.assert_close(mean_pool(hidden), hidden.mean(1), **EXACT)


def test_rows_without_padding_are_laid_out_as_they_are(batch):
    layout = Layout.packed(torch.ones(3, 5, dtype=torch.long))
    assert layout.places is None
    assert [(block.rows, block.length) for block in layout.blocks] == [(3, 5)]
    assert layout.firsts.tolist() == [0, 5, 10]


def test_new_weights_are_drawn_from_the_generator_alone():
    config = BertConfig(
        vocab_size=500, hidden_size=64, intermediate_size=128, n_layers=2, n_heads=4
    )
    drawn = [
        BertForPretraining(Bert(config)).initialise(generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    first, again, other = (model.state_dict() for model in drawn)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(
        first["bert.layers.0.mlp.up.weight"], other["bert.layers.0.mlp.up.weight"]
    )
    words = first["bert.embeddings.words.weight"]
    assert words[0].eq(0).all()
    assert words[1:].std().item() == pytest.approx(config.initializer_range, rel=0.05)
    for name, weight in first.items():
        if "norm.weight" in name:
            assert weight.eq(1).all()
        elif name.endswith("bias"):
            assert weight.eq(0).all()


def test_what_config_json_does_not_say_is_as_in_transformers():
    assert BertConfig.from_fields({"model_type": "bert"}) == BertConfig()
    assert BertConfig.from_hf(transformers.BertConfig()) == BertConfig()


def test_a_configuration_comes_back_from_its_fields():
    config = BertConfig(
        hidden_size=60, n_heads=5, activation="relu", classifier_dropout=0.3, labels=LABELS
    )
    assert BertConfig.from_fields(json.loads(json.dumps(config.fields()))) == config
    assert BertConfig.from_hf(transformers.BertConfig(**config.fields())) == config
    assert (config.head_dim, config.head_dropout) == (12, 0.3)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("model_type", "roberta"),
        ("is_decoder", True),
        ("add_cross_attention", True),
        ("position_embedding_type", "relative_key"),
        ("tie_word_embeddings", False),
        ("hidden_act", "silu"),
        ("quantization_config", {"bits": 8}),
        ("hidden_dropout_prob", 1.0),
        ("num_hidden_layers", 0),
        ("vocab_size", "many"),
        ("num_attention_heads", 7),
        ("pad_token_id", 40_000),
    ],
)
def test_an_option_that_is_not_supported_is_refused_by_name(option, value, tmp_path):
    theirs("BertModel", torch.float32).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {option: value}))
    ours = {"hidden_dropout_prob": "hidden_dropout", "num_hidden_layers": "n_layers"}
    ours["num_attention_heads"] = "n_heads"
    with pytest.raises(ValueError, match=rf"config\.json: .*{ours.get(option, option)}="):
        Bert.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors: tensors.pop("embeddings.LayerNorm.bias"), r"LayerNorm\.bias.*is missing"),
        (
            lambda tensors: tensors.update({"pooler.dense.weight": torch.ones(48, 47)}),
            r"pooler\.dense\.weight.*\(48, 47\)",
        ),
        (
            lambda tensors: tensors.update({"encoder.layer.3.output.dense.bias": torch.ones(48)}),
            r"encoder\.layer\.3\.output\.dense\.bias.*no place",
        ),
        (
            lambda tensors: tensors.update({"pooler.dense.bias": torch.ones(48).half()}),
            r"mix torch\.float16, torch\.float32",
        ),
    ],
)
def test_damaged_weights_are_refused_with_the_file_and_the_tensor(damage, message, tmp_path):
    Bert.from_hf(theirs("BertModel", torch.float32)).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"model\.safetensors: .*{message}"):
        Bert.from_pretrained(tmp_path)


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        Bert.from_pretrained(tmp_path)


def test_a_head_that_reads_the_pooler_wants_one():
    bert = Bert(BertConfig.from_hf(transformers.BertConfig(**SIZES)), pooler=False)
    with pytest.raises(ValueError, match="give a Bert with one"):
        BertForPretraining(bert)
    with pytest.raises(ValueError, match="give a Bert with one"):
        SequenceClassifier(bert, LABELS)


@pytest.mark.usefixtures("unchecked")
def test_inputs_that_do_not_fit_are_refused(batch):
    model = Bert.from_hf(theirs("BertModel"))
    with pytest.raises(ValueError, match="41 tokens a row, but the model has 40 positions"):
        model(torch.ones(1, 41, dtype=torch.long))
    with pytest.raises(ValueError, match="row 2 of attention_mask is all padding"):
        model(batch["ids"], batch["mask"] * (torch.arange(len(LENGTHS)) != 2)[:, None])
    with pytest.raises(ValueError, match=r"attention_mask of shape \(8, 30\) for ids of shape"):
        model(batch["ids"], batch["mask"][:, 1:])
    with pytest.raises(ValueError, match="between 0 and 97, but the model has 97 of them"):
        model(torch.tensor([[0, 97]]))
    with pytest.raises(ValueError, match="token_type_ids lie between 2 and 2"):
        model(batch["ids"], None, torch.full_like(batch["ids"], 2))


def test_a_hub_id_that_is_not_here_is_told(monkeypatch, tmp_path: Path):
    with pytest.raises(ValueError, match="could not be downloaded"):
        Bert.from_pretrained("nobody/no-such-bert")


def test_the_public_name_is_this_class():
    assert fd.Bert is Bert
