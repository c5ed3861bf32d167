"""How each pocket model is made: its shape, and the stages of its training, as data.

Depth grows by stacking (arXiv 2405.15319): a shallow model is trained first, and its layers,
repeated, start the deeper one. On two CPU cores this is what makes twelve layers affordable.
"""

from dataclasses import dataclass, replace
from typing import Any

from transformers import Gemma2Config, LlamaConfig, PretrainedConfig

from foredraft.training.corpus import VOCAB_SIZE
from foredraft.training.decoder.layerskip import LayerSkip

MAX_POSITIONS = 4096


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of training at one shape and sequence length, on this many tokens.

    With an `intermediate_size`, the MLPs have that width in this stage instead of the recipe's:
    they grow, or are pruned, on the way from one stage to the next. With a teacher (the name of a
    pocket model), the student learns the teacher's distribution over the next token instead of the
    token that the text has.
    """

    n_layers: int
    sequence: int
    tokens: int
    teacher: str | None = None
    intermediate_size: int | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """A pocket model: architecture, sizes, stages and the optimiser's few numbers.

    The learning rate falls from `peak_learning_rate` as `pretrain.learning_rate` says, with a
    warm-up of `warmup_steps` at the start of each stage.
    """

    name: str
    architecture: type[PretrainedConfig]
    sizes: dict[str, Any]
    stages: tuple[Stage, ...]
    peak_learning_rate: float
    batch_tokens: int = 2048
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    warmup_steps: int = 80
    seed: int = 0
    starts_from: str | None = None
    """The shipped model whose weights the first stage goes on from, instead of new ones."""
    layer_skip: LayerSkip | None = None
    """Layer dropout and early exits, in all stages; None is plain training."""

    def __post_init__(self) -> None:
        """Refuse early exits beside a teacher, whose law they would not learn."""
        if self.layer_skip and any(stage.teacher for stage in self.stages):
            raise ValueError(f"{self.name}: early exits learn from the text; leave out the teacher")

    @property
    def tokens(self) -> int:
        """Tokens over all stages."""
        return sum(stage.tokens for stage in self.stages)

    @property
    def teacher(self) -> str | None:
        """The pocket model that some stage learns from; None if all learn from the text."""
        return next((stage.teacher for stage in self.stages if stage.teacher), None)

    def config(self, stage: Stage | None = None) -> PretrainedConfig:
        """Describe the model of a stage, by default the last, in transformers' terms."""
        stage = stage or self.stages[-1]
        shared = {
            "vocab_size": VOCAB_SIZE,
            "num_hidden_layers": stage.n_layers,
            "max_position_embeddings": MAX_POSITIONS,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
            "dtype": "bfloat16",
        }
        sizes = dict(self.sizes)
        if stage.intermediate_size is not None:
            sizes["intermediate_size"] = stage.intermediate_size
        return self.architecture(**shared, **sizes)


POCKET_LLAMA = Recipe(
    name="pocket-llama",
    architecture=LlamaConfig,
    sizes={
        "hidden_size": 320,
        "intermediate_size": 960,
        "num_attention_heads": 10,
        "num_key_value_heads": 5,
        "head_dim": 32,
        "architectures": ["LlamaForCausalLM"],
    },
    stages=(
        Stage(n_layers=3, sequence=256, tokens=5_000_000),
        Stage(n_layers=6, sequence=256, tokens=2_000_000),
        Stage(n_layers=12, sequence=256, tokens=2_200_000),
        Stage(n_layers=12, sequence=1024, tokens=700_000),
        Stage(n_layers=12, sequence=256, tokens=2_400_000),
        Stage(n_layers=12, sequence=1024, tokens=3_000_000),
    ),
    peak_learning_rate=2e-3,
)

POCKET_GEMMA2 = Recipe(
    name="pocket-gemma2",
    architecture=Gemma2Config,
    sizes={
        "hidden_size": 320,
        "intermediate_size": 1024,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "query_pre_attn_scalar": 64,
        "sliding_window": 256,
        "architectures": ["Gemma2ForCausalLM"],
    },
    stages=(
        Stage(n_layers=3, sequence=256, tokens=5_000_000),
        Stage(n_layers=6, sequence=256, tokens=2_000_000),
        Stage(n_layers=12, sequence=256, tokens=2_000_000),
        Stage(n_layers=12, sequence=1024, tokens=2_000_000),
    ),
    peak_learning_rate=2e-3,
)

POCKET_GEMMA2_SHALLOW = replace(
    POCKET_GEMMA2,
    name="pocket-gemma2-shallow",
    stages=(
        Stage(n_layers=3, sequence=256, tokens=9_000_000),
        Stage(n_layers=3, sequence=1024, tokens=2_000_000),
    ),
)

POCKET_GEMMA2_LAYERSKIP = replace(
    POCKET_GEMMA2,
    name="pocket-gemma2-layerskip",
    stages=(
        Stage(n_layers=12, sequence=256, tokens=2_200_000),
        Stage(n_layers=12, sequence=1024, tokens=800_000),
    ),
    peak_learning_rate=1e-3,
    seed=1,
    starts_from="pocket-gemma2",
    layer_skip=LayerSkip(max_dropout=0.2, exit_scale=1.0, rotation=6),
)

POCKET_LLAMA_DRAFT = Recipe(
    name="pocket-llama-draft",
    architecture=LlamaConfig,
    sizes={
        "hidden_size": 192,
        "intermediate_size": 848,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 32,
        "architectures": ["LlamaForCausalLM"],
    },
    stages=(
        Stage(2, 256, 20_000_000, intermediate_size=768),
        Stage(2, 256, 4_000_000, teacher="pocket-llama", intermediate_size=768),
        Stage(2, 1024, 1_000_000, teacher="pocket-llama", intermediate_size=768),
        Stage(2, 256, 5_000_000, teacher="pocket-llama", intermediate_size=1536),
        Stage(2, 1024, 3_500_000, teacher="pocket-llama", intermediate_size=1536),
        Stage(2, 256, 3_000_000, teacher="pocket-llama"),
        Stage(2, 1024, 3_500_000, teacher="pocket-llama"),
    ),
    peak_learning_rate=4e-3,
)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        POCKET_LLAMA,
        POCKET_LLAMA_DRAFT,
        POCKET_GEMMA2,
        POCKET_GEMMA2_SHALLOW,
        POCKET_GEMMA2_LAYERSKIP,
    )
}
