"""Which tensor of a Hugging Face checkpoint goes where in a Decoder, in both directions."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from foredraft.models.config import DecoderConfig
from foredraft.types import Tensor


@dataclass(frozen=True, slots=True)
class Slot:
    """One parameter of the decoder and the checkpoint tensors that it stacks, by name and shape."""

    name: str
    sources: dict[str, tuple[int, ...]]


def slots(config: DecoderConfig) -> Iterator[Slot]:
    """List every parameter of a decoder of this configuration."""
    size = config.hidden_size
    vocab = (config.vocab_size, size)
    yield Slot("embedding.weight", {"model.embed_tokens.weight": vocab})
    for layer in range(config.n_layers):
        yield from _layer_slots(config, layer)
    yield Slot("norm.weight", {"model.norm.weight": (size,)})
    if not config.tied:
        yield Slot("head.weight", {"lm_head.weight": vocab})


def decoder_tensors(
    config: DecoderConfig,
    source: Mapping[str, Tensor],
    put: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor,
) -> dict[str, Tensor]:
    """Arrange checkpoint tensors as a Decoder's state, each put in its place as soon as it is read.

    Raises ValueError naming the first tensor that is missing, has the wrong shape or holds no
    floating-point numbers, or any that a decoder of this configuration has no place for.
    """
    layout = list(slots(config))
    _refuse_strangers(layout, source, config)
    return {slot.name: put(slot.name, stacked(slot, source)) for slot in layout}


def checkpoint_tensors(config: DecoderConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Arrange a Decoder's state as the tensors of a Hugging Face checkpoint."""
    tensors = {}
    for slot in slots(config):
        rows = [shape[0] for shape in slot.sources.values()]
        parts = state[slot.name].split(rows)
        tensors |= zip(slot.sources, parts, strict=True)
    return tensors


def _layer_slots(config: DecoderConfig, layer: int) -> Iterator[Slot]:
    ours, theirs = f"layers.{layer}", f"model.layers.{layer}"
    size, inner = config.hidden_size, config.intermediate_size
    query, kv = config.query_size, config.kv_size
    attention, mlp = f"{theirs}.self_attn", f"{theirs}.mlp"

    def linear(name: str, parts: dict[str, int], columns: int, bias: bool) -> Iterator[Slot]:
        yield Slot(f"{name}.weight", {f"{p}.weight": (rows, columns) for p, rows in parts.items()})
        if bias:
            yield Slot(f"{name}.bias", {f"{p}.bias": (rows,) for p, rows in parts.items()})

    def norm(name: str, part: str) -> Slot:
        return Slot(f"{ours}.{name}.weight", {f"{theirs}.{part}.weight": (size,)})

    qkv = {f"{attention}.{part}_proj": rows for part, rows in (("q", query), ("k", kv), ("v", kv))}
    yield norm("attention.norm", "input_layernorm")
    yield from linear(f"{ours}.attention.operation.qkv", qkv, size, config.qkv_bias)
    out = {f"{attention}.o_proj": size}
    yield from linear(f"{ours}.attention.operation.out", out, query, config.out_bias)
    gate_up = {f"{mlp}.gate_proj": inner, f"{mlp}.up_proj": inner}
    yield from linear(f"{ours}.mlp.operation.gate_up", gate_up, size, config.mlp_bias)
    yield from linear(
        f"{ours}.mlp.operation.down", {f"{mlp}.down_proj": size}, inner, config.mlp_bias
    )
    if config.post_norms:
        yield norm("attention.post_norm", "post_attention_layernorm")
        yield norm("mlp.norm", "pre_feedforward_layernorm")
        yield norm("mlp.post_norm", "post_feedforward_layernorm")
    else:
        yield norm("mlp.norm", "post_attention_layernorm")


def stacked(slot: Slot, source: Mapping[str, Tensor]) -> Tensor:
    """Give a parameter from the tensors that it stacks.

    Raises ValueError naming the first that is missing, has the wrong shape or holds no
    floating-point numbers.
    """
    parts = []
    for name, shape in slot.sources.items():
        if name not in source:
            raise ValueError(f"tensor {name!r} of shape {shape} is missing from the checkpoint")
        tensor = source[name]
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"tensor {name!r} has shape {tuple(tensor.shape)}, but config.json asks for "
                f"{shape}: the weights belong to another config.json"
            )
        if not tensor.is_floating_point():
            raise ValueError(
                f"tensor {name!r} holds {tensor.dtype}: quantised weights are not supported"
            )
        parts.append(tensor)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _refuse_strangers(
    layout: list[Slot], source: Mapping[str, Tensor], config: DecoderConfig
) -> None:
    known = {name for slot in layout for name in slot.sources}
    known |= {"lm_head.weight"} if config.tied else set()
    strangers = [n for n in source if n not in known and not n.endswith("rotary_emb.inv_freq")]
    if strangers:
        raise ValueError(
            f"tensor {strangers[0]!r} (and {len(strangers) - 1} more) has no place in a decoder of "
            f"architecture {config.architecture!r}: is config.json that of these weights?"
        )
