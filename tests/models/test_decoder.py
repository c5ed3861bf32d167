"""One decoder computes what transformers computes for each architecture, and nothing besides."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel

import foredraft as fd
from foredraft.models.cache import KVCache
from foredraft.models.config import DecoderConfig
from foredraft.models.decoder import Decoder
from foredraft.models.weights import checkpoint_tensors, decoder_tensors

LENGTH = 29  # a prime, and four times the sliding window
WAITS_FOR_THE_DEVICE = {"_local_scalar_dense", "equal", "is_nonzero", "nonzero", "unique_dim"}
BRINGS_HOST_DATA = {"lift_fresh"}


class Operations(TorchDispatchMode):
    """Write down every operation that reaches the dispatcher, and what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.append(func.overloadpacket.__name__)
        several = result if isinstance(result, (tuple, list)) else (result,)
        self.dtypes |= {tensor.dtype for tensor in several if isinstance(tensor, torch.Tensor)}
        return result


def ragged_cache(decoder: Decoder, rows: int) -> KVCache:
    cache = decoder.new_cache(rows, 64)
    cache.commit(range(5, 5 + rows))
    return cache


def operations(decoder: Decoder, tokens: torch.Tensor, cache: KVCache | None) -> Operations:
    with Operations() as seen:
        decoder(tokens, cache)
    return seen


def test_logits_equal_those_of_transformers_in_float32(variant, reference, text):
    model, tokens = reference(variant, torch.float32), text(3, LENGTH)
    difference = (fd.Decoder.from_hf(model)(tokens) - model(tokens).logits).abs().max()
    assert difference <= 2e-5


def test_logits_equal_those_of_transformers_in_float64_but_for_its_float32_islands(
    variant, reference, text
):
    model, tokens = reference(variant, torch.float64), text(3, LENGTH)
    difference = (fd.Decoder.from_hf(model)(tokens) - model(tokens).logits).abs().max()
    assert difference <= 5e-6


def test_logits_equal_those_of_transformers_in_float64_once_its_islands_are_widened(
    variant, exact_reference, decoder, widened, text
):
    tokens = text(3, LENGTH)
    with widened:
        expected = exact_reference(variant)(tokens).logits
    assert (decoder(tokens) - expected).abs().max() <= 1e-10


def test_in_bfloat16_the_logits_are_as_near_the_truth_as_those_of_transformers(
    variant, reference, text
):
    model, tokens = reference(variant, torch.bfloat16), text(3, LENGTH)
    ours = fd.Decoder.from_hf(model)(tokens)
    truth = fd.Decoder.from_hf(copy.deepcopy(model).double())(tokens)
    error = {"ours": ours - truth, "theirs": model(tokens).logits - truth}
    assert error["ours"].norm() <= 1.25 * error["theirs"].norm()


def test_the_patch_reaches_every_float32_island_of_the_reference(
    variant, exact_reference, widened, text
):
    with Operations() as seen, widened:
        exact_reference(variant)(text(2, 5))
    assert torch.float32 not in seen.dtypes


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_float64_decoder_has_no_float32_islands(decoder, text, is_cached):
    cache = ragged_cache(decoder, 2) if is_cached else None
    seen = operations(decoder, text(2, LENGTH), cache)
    assert {dtype for dtype in seen.dtypes if dtype.is_floating_point} == {torch.float64}


@pytest.mark.parametrize(
    "change",
    [
        {"attention_softcap": None},
        {"final_softcap": None},
        {"attention_scale": None},
        {"norm_offset": 0.0},
        {"embedding_scale": 1.0},
        {"activation": "silu"},
        {"windows": (None,) * 4},
        {"windows": (8, None, 8, None)},
        {"windows": (None, 7, None, 7)},
    ],
    ids=lambda change: "-".join(map(str, *change.items())),
)
def test_every_trait_of_gemma2_shows_in_the_logits(exact_decoder, text, change):
    decoder, tokens = exact_decoder("gemma2"), text(2, LENGTH)
    other = Decoder.from_tensors(replace(decoder.config, **change), decoder.state_dict())
    assert (decoder(tokens) - other(tokens)).abs().max() > 1e-2


def test_the_rope_scaling_of_llama_3_shows_in_the_logits(exact_decoder, text):
    decoder, tokens = exact_decoder("llama-3.1"), text(2, LENGTH)
    plain = replace(decoder.config, rope_scaling=None)
    other = Decoder.from_tensors(plain, decoder.state_dict())
    assert (decoder(tokens) - other(tokens)).abs().max() > 1e-2


@pytest.mark.parametrize("variant", ["llama-3.1", "llama-tied", "qwen2", "gemma2-biased"])
def test_every_bias_shows_in_the_logits(variant, exact_decoder, text):
    decoder, tokens = exact_decoder(variant), text(2, LENGTH)
    biases = [name for name in decoder.state_dict() if name.endswith(".bias")]
    assert biases
    for name in biases:
        state = dict(decoder.state_dict())
        state[name] = torch.zeros_like(state[name])
        other = Decoder.from_tensors(decoder.config, state)
        assert (decoder(tokens) - other(tokens)).abs().max() > 1e-2, name


def test_a_token_never_sees_what_follows_it(decoder, text):
    tokens = text(1, LENGTH)
    changed = tokens.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % 97
    assert torch.equal(decoder(tokens)[:, :20], decoder(changed)[:, :20])


def test_a_windowed_layer_forgets_what_left_its_window(exact_decoder, text):
    decoder = exact_decoder("mistral")
    tokens = text(1, LENGTH)
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 97
    reach = decoder.config.n_layers * (decoder.config.windows[0] - 1)
    difference = (decoder(tokens) - decoder(changed)).abs().amax((0, 2))
    assert difference[: reach + 1].min() > 0
    assert difference[reach + 1 :].max() == 0


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_forward_pass_runs_where_no_value_can_be_read(family, exact_decoder, text, is_cached):
    decoder = exact_decoder(family)
    state = {name: tensor.to("meta") for name, tensor in decoder.state_dict().items()}
    decoder = Decoder.from_tensors(decoder.config, state)
    cache = ragged_cache(decoder, 3) if is_cached else None
    logits = decoder(text(3, LENGTH).to("meta"), cache)
    assert logits.device.type == "meta"
    assert logits.shape == (3, LENGTH, 97)


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_forward_pass_neither_waits_for_the_device_nor_sends_it_data(decoder, text, is_cached):
    cache = ragged_cache(decoder, 3) if is_cached else None
    seen = operations(decoder, text(3, LENGTH), cache)
    assert not set(seen.names) & (WAITS_FOR_THE_DEVICE | BRINGS_HOST_DATA)


@pytest.mark.parametrize("is_cached", [False, True])
def test_the_operations_of_a_forward_pass_depend_neither_on_rows_nor_on_tokens(
    decoder, text, is_cached
):
    passes = [
        operations(decoder, text(rows, length), ragged_cache(decoder, rows) if is_cached else None)
        for rows, length in ((2, 8), (5, 31))
    ]
    assert passes[0].names == passes[1].names


def test_one_row_and_one_token_are_enough(decoder, text):
    tokens = text(1, 2)
    assert_close(decoder(tokens[:, :1]), decoder(tokens)[:, :1], rtol=0, atol=1e-12)


def test_tokens_are_left_alone(decoder, text):
    tokens = text(2, 9)
    decoder(tokens, decoder.new_cache(2, 9))
    assert torch.equal(tokens, text(2, 9))


def test_a_model_taken_over_is_in_eval_mode_and_leaves_the_other_trainable(reference):
    model = copy.deepcopy(reference("llama", torch.float32)).requires_grad_(True)
    decoder = fd.Decoder.from_hf(model)
    assert not decoder.training
    assert not any(parameter.requires_grad for parameter in decoder.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_taken_over_keeps_its_dtype(reference):
    model = reference("gemma2", torch.bfloat16)
    assert fd.Decoder.from_hf(model).dtype == torch.bfloat16


def test_checkpoint_tensors_invert_decoder_tensors(variant, exact_reference):
    model = exact_reference(variant)
    config = DecoderConfig.from_hf(model.config)
    source = model.state_dict()
    if config.tied:
        del source["lm_head.weight"]
    restored = checkpoint_tensors(config, decoder_tensors(config, source))
    assert restored.keys() == source.keys()
    assert all(torch.equal(restored[name], source[name]) for name in source)


def test_the_parameters_are_those_that_the_checkpoint_layout_lists(decoder):
    tensors = checkpoint_tensors(decoder.config, decoder.state_dict())
    assert sum(tensor.numel() for tensor in tensors.values()) == sum(
        parameter.numel() for parameter in decoder.parameters()
    )
    assert decoder_tensors(decoder.config, tensors).keys() == decoder.state_dict().keys()


def test_an_architecture_that_is_not_supported_is_named():
    config = GPT2Config(n_layer=1, n_embd=4, n_head=1, vocab_size=5)
    with pytest.raises(ValueError, match=r"'gpt2' is not supported.*gemma2, llama, mistral, qwen2"):
        fd.Decoder.from_hf(GPT2LMHeadModel(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layers": 0, "windows": ()}, "n_layers=0"),
        ({"n_heads": 5}, "n_heads=5 is no multiple of n_kv_heads=2"),
        ({"head_dim": 15}, "head_dim=15 is odd"),
        ({"windows": (None,)}, "1 windows for 4 layers"),
        ({"windows": (0, None, 0, None)}, "at least 1, or None"),
    ],
)
def test_a_configuration_that_makes_no_decoder_is_refused(exact_decoder, change, message):
    config = exact_decoder("gemma2").config
    with pytest.raises(ValueError, match=message):
        replace(config, **change)
