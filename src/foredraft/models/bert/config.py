"""The shape of a BERT, to and from a Hugging Face config.json."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PretrainedConfig

from foredraft.models.bert.fused import Activation

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
_NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "max_positions": "max_position_embeddings",
    "n_segments": "type_vocab_size",
    "norm_eps": "layer_norm_eps",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "classifier_dropout": "classifier_dropout",
    "initializer_range": "initializer_range",
    "pad_token_id": "pad_token_id",
}
"""What config.json calls our fields."""
_ONE_WAY: dict[str, Any] = {
    "is_decoder": False,
    "add_cross_attention": False,
    "position_embedding_type": "absolute",
    "tie_word_embeddings": True,
    "quantization_config": None,
}
"""Options of config.json for which there is one choice here."""
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "n_layers", "n_heads"),
    *("max_positions", "n_segments"),
)


@dataclass(frozen=True, slots=True)
class BertConfig:
    """What distinguishes one BERT from another, as data; the defaults are bert-base-uncased.

    Sizes count features, heads, positions or token ids; a dropout is a probability.
    """

    vocab_size: int = 30_522
    hidden_size: int = 768
    intermediate_size: int = 3072
    n_layers: int = 12
    n_heads: int = 12
    max_positions: int = 512
    n_segments: int = 2
    """Kinds of token: those of sentence A and those of sentence B."""
    norm_eps: float = 1e-12
    activation: Activation = "gelu"
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float | None = None
    """Before a classification head; None: as `hidden_dropout`."""
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    """What a classification head tells apart."""

    def __post_init__(self) -> None:
        """Refuse what cannot make a BERT."""
        told = asdict(self)
        for name in _SIZES:
            if not isinstance(told[name], int) or told[name] < 1:
                raise ValueError(f"{name}={told[name]!r}: it must be a whole number, at least 1")
        if self.hidden_size % self.n_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is no multiple of n_heads={self.n_heads}: "
                "all heads must have as many features"
            )
        for name in ("hidden_dropout", "attention_dropout", "classifier_dropout"):
            if told[name] is not None and not 0 <= told[name] < 1:
                raise ValueError(f"{name}={told[name]}: it must be 0 or more and below 1")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"pad_token_id={self.pad_token_id} is no token: the vocabulary has "
                f"{self.vocab_size}; give one of them, or None"
            )

    @property
    def head_dim(self) -> int:
        """Features of one attention head."""
        return self.hidden_size // self.n_heads

    @property
    def head_dropout(self) -> float:
        """Dropout before a classification head."""
        given = self.classifier_dropout
        return self.hidden_dropout if given is None else given

    @classmethod
    def from_hf(cls, config: PretrainedConfig) -> "BertConfig":
        """Read a transformers configuration; see `from_fields`."""
        return cls.from_fields(config.to_dict())

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "BertConfig":
        """Read the fields of a config.json; those it lacks are as in bert-base-uncased.

        Raises ValueError that names the field if this is another architecture, or has an option
        that there is no code for.
        """
        if fields.get("model_type") != "bert":
            raise ValueError(
                f"model_type={fields.get('model_type')!r} is not supported: only 'bert' is"
            )
        for name, only in _ONE_WAY.items():
            if fields.get(name) not in (None, only):
                raise ValueError(f"{name}={fields[name]!r} is not supported: only {only!r} is")
        activation = fields.get("hidden_act", "gelu")
        if activation not in _ACTIVATIONS:
            raise ValueError(
                f"hidden_act={activation!r} is not supported; known: {sorted(_ACTIVATIONS)}"
            )
        told = {ours: fields[theirs] for ours, theirs in _NAMES.items() if theirs in fields}
        if fields.get("id2label"):
            numbered = {int(number): label for number, label in fields["id2label"].items()}
            told["labels"] = tuple(label for _, label in sorted(numbered.items()))
        return cls(activation=_ACTIVATIONS[activation], **told)

    def fields(self) -> dict[str, Any]:
        """Give the fields of a config.json, which transformers reads too."""
        told = asdict(self)
        theirs = next(name for name, ours in _ACTIVATIONS.items() if ours == self.activation)
        return {
            "model_type": "bert",
            "hidden_act": theirs,
            **{name: told[ours] for ours, name in _NAMES.items()},
            "id2label": {str(number): label for number, label in enumerate(self.labels)},
            "label2id": {label: number for number, label in enumerate(self.labels)},
        }
