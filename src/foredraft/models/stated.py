"""A config.json that says all there is to know, read as it stands.

To read it through transformers takes longer than to import torch, since a family's class brings in
the library's engine. It is needed where a file leaves a default to it, or says what only it can
judge; then `stated` gives None.
"""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, final

Check = Callable[[Any], bool]


@final
class StatedConfig(SimpleNamespace):
    """The fields of such a file, as attributes: what a transformers configuration would hold."""


def stated(fields: Mapping[str, Any]) -> StatedConfig | None:
    """Give the fields of a config.json; None unless each one that is read is there and plain."""
    checks = {**_COMMON, **_FAMILIES.get(str(fields.get("model_type")), {"": _never})}
    if not all(name in fields and check(fields[name]) for name, check in checks.items()):
        return None
    heads_fit = fields["hidden_size"] % fields["num_attention_heads"] == 0
    kinds = fields.get("layer_types", ["full_attention"] * fields["num_hidden_layers"])
    if not heads_fit or not _are_kinds(kinds) or len(kinds) != fields["num_hidden_layers"]:
        return None
    return StatedConfig(**fields)


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and value > 0


def _is_number_or_none(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _is_share(value: Any) -> bool:
    return type(value) is float and 0 <= value <= 1


def _is_token(value: Any) -> bool:
    return value is None or type(value) is int


def _is_plain_rotation(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"rope_type", "rope_theta"}
        and value["rope_type"] == "default"
        and _is_number(value["rope_theta"])
    )


def _is_text(value: Any) -> bool:
    return type(value) is str


def _are_kinds(value: Any) -> bool:
    known = {"sliding_attention", "full_attention"}
    return isinstance(value, list) and all(kind in known for kind in map(str, value))


def _never(value: Any) -> bool:
    return False


_COMMON: Mapping[str, Check] = {
    "vocab_size": _is_size,
    "hidden_size": _is_size,
    "intermediate_size": _is_size,
    "num_hidden_layers": _is_size,
    "num_attention_heads": _is_size,
    "num_key_value_heads": _is_size,
    "head_dim": _is_size,
    "max_position_embeddings": _is_size,
    "rope_parameters": _is_plain_rotation,
    "rms_norm_eps": _is_number,
    "tie_word_embeddings": _is_bool,
    "eos_token_id": _is_token,
    "initializer_range": _is_share,
    "attention_bias": _is_bool,
}

_FAMILIES: Mapping[str, Mapping[str, Check]] = {
    "llama": {"hidden_act": _is_text, "mlp_bias": _is_bool},
    "gemma2": {
        "hidden_activation": _is_text,
        "layer_types": _are_kinds,
        "sliding_window": _is_size,
        "query_pre_attn_scalar": _is_number,
        "attn_logit_softcapping": _is_number_or_none,
        "final_logit_softcapping": _is_number_or_none,
        "use_bidirectional_attention": lambda value: value is None or _is_bool(value),
    },
}
