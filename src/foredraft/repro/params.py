"""The parameters of every article: typed, validated, read from params.yaml here and nowhere else.

A section's values come from three places, the later ones winning: the article's section, the
overlay of the profile in force (`profiles.<profile>.<slug>`), and what the caller overrides. An
override of None means "what params.yaml says", so that a notebook declares its knobs without
repeating a default.

To add an article: add its class, name it in SECTIONS, and add an overload of `load`.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, overload

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from foredraft import paths
from foredraft.errors import unknown

Count = Annotated[int, Field(ge=1)]
Temperature = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
Penalty = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]

BASE_PROFILE = "pocket"
"""The sections themselves; every other profile is an overlay on them."""


class Section(BaseModel):
    """What every article's parameters have in common.

    `threads` are those of the notebook's kernel when `foredraft run` starts it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    profile: str
    seed: Annotated[int, Field(ge=0)]
    threads: Annotated[int, Field(ge=1)]


class Sampling(Section):
    """Article 01."""

    model: str
    temperatures: tuple[Temperature, ...]
    top_ps: tuple[Share, ...]
    top_ks: tuple[Count, ...]
    min_ps: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], ...]
    typical_ps: tuple[Share, ...]
    repetition_penalties: tuple[Penalty, ...]
    n_positions: Count
    n_prompts: Count
    prompt_tokens: Count
    max_new_tokens: Count
    samples: Count


class SpeculativeDecoding(Section):
    """Article 02; `questions`, if there are any, take the place of the code prompts.

    All prompts of `prompts_file`, if there is one, take the place of both.
    """

    model: str
    draft_model: str
    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16", "float16"]
    temperature: Temperature
    top_p: Share
    length: Count
    verification: Literal["token", "block"]
    lengths: tuple[Count, ...]
    temperatures: tuple[Temperature, ...]
    kinds: tuple[str, ...]
    questions: tuple[str, ...]
    prompts_file: str | None
    n_prompts: Count
    samples: Count
    max_new_tokens: Annotated[int, Field(ge=2)]


class LayerSkipping(Section):
    """Article 03; `length` is that of the drafts which are verified in earnest."""

    models: tuple[str, ...]
    layer_skip_model: str
    control_model: str
    temperature: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    length: Count
    kinds: tuple[str, ...]
    n_prompts: Count
    max_new_tokens: Annotated[int, Field(ge=2)]
    n_positions: Count
    joint_sizes: tuple[Count, ...]
    joint_sets: Count
    n_cheapest: Count
    exits: tuple[Count, ...]
    vocabularies: tuple[Count, ...]


class SelfSpeculation(Section):
    """Article 04; `model` is the one that is searched in the notebook, one of `models`."""

    models: Annotated[tuple[str, ...], Field(min_length=1)]
    model: str
    device: str
    prompts: Literal["code", "chat"]
    temperature: Temperature
    objective: str
    trials: Annotated[int, Field(ge=2)]
    initial: Count
    longest: Count
    n_prompts: Count
    max_new_tokens: Annotated[int, Field(ge=3)]
    plans_checked: Annotated[int, Field(ge=2)]
    checked_length: Count
    checked_prompts: Count
    checked_tokens: Annotated[int, Field(ge=3)]
    samples: Count
    pareto_trials: Annotated[int, Field(ge=2)]
    free_layers: tuple[Annotated[int, Field(ge=0)], ...]
    race_trials: Annotated[int, Field(ge=2)]
    race_seeds: Count
    exit_tokens: Annotated[int, Field(ge=3)]


class ConfidenceGating(Section):
    """Article 05; `plan` names the skip plan of the drafter that is one, `drafter` the first shown.

    `thresholds` are tried for every gate, those of entropies scaled.
    """

    model: str
    draft_model: str
    plan: str
    device: str
    dtype: Literal["float32", "bfloat16", "float16"]
    prompts: Literal["code", "chat"]
    drafter: str
    drafters: Annotated[tuple[str, ...], Field(min_length=1)]
    temperature: Temperature
    temperatures: tuple[Temperature, ...]
    signal: Literal["confidence", "entropy", "margin"]
    threshold: Annotated[float, Field(ge=0.0, le=1.0)]
    thresholds: Annotated[tuple[Annotated[float, Field(ge=0.0, le=1.0)], ...], Field(min_length=2)]
    longest: Annotated[int, Field(ge=2)]
    n_prompts: Annotated[int, Field(ge=2)]
    max_new_tokens: Annotated[int, Field(ge=4)]
    samples: Count
    costs: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...]


class LlavaSft(Section):
    """Article 06; `data` is "tables", "vsft" or a folder of images with their Markdown.

    `levels` are trained on, `judged_levels` judged by `n_tables` each; `examples` are seen once.
    """

    model: str
    device: str
    data: str
    method: Literal["full", "lora"]
    methods: Annotated[tuple[Literal["full", "lora"], ...], Field(min_length=1)]
    rank: Count
    learning_rate: Annotated[float, Field(gt=0.0, lt=1.0)]
    lora_learning_rate: Annotated[float, Field(gt=0.0, lt=1.0)]
    warmup_steps: Annotated[int, Field(ge=0)]
    freeze: tuple[str, ...]
    autocast: bool
    examples: Count
    development: Count
    evaluations: Count
    batch_size: Count
    accumulation: Count
    levels: Annotated[tuple[Annotated[int, Field(ge=1, le=3)], ...], Field(min_length=1)]
    judged_levels: Annotated[tuple[Annotated[int, Field(ge=1, le=3)], ...], Field(min_length=1)]
    n_tables: Count
    image_size: Annotated[int, Field(ge=32)]
    max_new_tokens: Count
    answers_at_once: Count


class Bert(Section):
    """Article 07; `model` guesses and is fine-tuned, `encoder` is held against the reference.

    `layers` to `learning_rate` make the model that the notebook trains; `rates` are those at which
    `model` is asked; a search has `questions` at most.
    """

    model: str
    encoder: str
    layers: Count
    hidden_size: Count
    masking_rate: Share
    whole_words: bool
    documents: Count
    tokens: Count
    batch_tokens: Annotated[int, Field(ge=128)]
    learning_rate: Annotated[float, Field(gt=0.0, lt=1.0)]
    judged_rows: Count
    rates: Annotated[tuple[Share, ...], Field(min_length=1)]
    rate_rows: Count
    attended: Count
    tuning_steps: Count
    tuning_pairs: Annotated[int, Field(ge=2)]
    tuning_rate: Annotated[float, Field(gt=0.0, lt=1.0)]
    questions: Annotated[int, Field(ge=2)]
    ks: Annotated[tuple[Count, ...], Field(min_length=1)]


Element = Literal["float32", "float16", "bfloat16", "int32"]
PowerOfTwo = Literal[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384]


class VectorAdd(Section):
    """Article 08; one addition of `size` elements, all `sizes` against torch, the rest counted.

    `coins` and `draws` are the grids that laws are taken over, `rows` the positions of a pass.
    """

    size: Annotated[int, Field(ge=1)]
    dtype: Element
    block: PowerOfTwo
    warps: Literal[1, 2, 4, 8, 16, 32]
    sizes: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    dtypes: Annotated[tuple[Element, ...], Field(min_length=1)]
    blocks: Annotated[tuple[PowerOfTwo, ...], Field(min_length=1)]
    warp_counts: Annotated[tuple[Literal[1, 2, 4, 8, 16, 32], ...], Field(min_length=1)]
    targets: Annotated[tuple[Literal["sm_80", "sm_90", "gfx942"], ...], Field(min_length=1)]
    hidden: Annotated[int, Field(ge=1, le=32768)]
    rows: Annotated[tuple[Count, ...], Field(min_length=1)]
    vocab: Annotated[int, Field(ge=4)]
    coins: Annotated[int, Field(ge=2)]
    draws: Annotated[int, Field(ge=2)]


SECTIONS: Mapping[str, type[Section]] = {
    "sampling": Sampling,
    "speculative_decoding": SpeculativeDecoding,
    "layer_skipping": LayerSkipping,
    "self_speculation": SelfSpeculation,
    "confidence_gating": ConfidenceGating,
    "llava_sft": LlavaSft,
    "bert": Bert,
    "vector_add": VectorAdd,
}


@overload
def load(slug: Literal["sampling"], overrides: Mapping[str, Any] | None = None) -> Sampling: ...
@overload
def load(
    slug: Literal["speculative_decoding"], overrides: Mapping[str, Any] | None = None
) -> SpeculativeDecoding: ...
@overload
def load(
    slug: Literal["layer_skipping"], overrides: Mapping[str, Any] | None = None
) -> LayerSkipping: ...
@overload
def load(
    slug: Literal["self_speculation"], overrides: Mapping[str, Any] | None = None
) -> SelfSpeculation: ...
@overload
def load(
    slug: Literal["confidence_gating"], overrides: Mapping[str, Any] | None = None
) -> ConfidenceGating: ...
@overload
def load(slug: Literal["llava_sft"], overrides: Mapping[str, Any] | None = None) -> LlavaSft: ...
@overload
def load(slug: Literal["bert"], overrides: Mapping[str, Any] | None = None) -> Bert: ...
@overload
def load(slug: Literal["vector_add"], overrides: Mapping[str, Any] | None = None) -> VectorAdd: ...
@overload
def load(slug: str, overrides: Mapping[str, Any] | None = None) -> Section: ...
def load(slug: str, overrides: Mapping[str, Any] | None = None) -> Section:
    """The parameters of an article with some of them overridden.

    ValueError for a profile, a key or a value that is not allowed; it names the key, what is
    allowed, and the nearest known name.
    """
    document = yaml.safe_load(paths.PARAMS.read_text(encoding="utf-8"))
    return resolve(document, slug, overrides or {})


def resolve(document: Mapping[str, Any], slug: str, overrides: Mapping[str, Any]) -> Section:
    """The same from a document in the form of params.yaml."""
    if slug not in SECTIONS:
        raise unknown("article", slug, SECTIONS)
    if slug not in document:
        raise ValueError(f"params.yaml has no section {slug!r}; add it with the keys {_keys(slug)}")
    _require_known(document)
    given = {key: value for key, value in overrides.items() if value is not None}
    base = {**document[slug], **given}
    overlay = _overlay(document, slug, base.get("profile"))
    return _validated(slug, {**document[slug], **overlay, **given})


def _require_known(document: Mapping[str, Any]) -> None:
    """Refuse sections of no article, which would go unnoticed."""
    if stray := sorted(set(document) - {*SECTIONS, "profiles"}):
        raise unknown("section of params.yaml", stray[0], {*SECTIONS, "profiles"})
    for name, sections in document.get("profiles", {}).items():
        if stray := sorted(set(sections or {}) - set(SECTIONS)):
            raise unknown(f"section of profile {name}", stray[0], SECTIONS)


def _overlay(document: Mapping[str, Any], slug: str, profile: Any) -> Mapping[str, Any]:
    profiles = {name: sections or {} for name, sections in document.get("profiles", {}).items()}
    offered = {BASE_PROFILE, *(name for name, sections in profiles.items() if slug in sections)}
    if profile not in offered:
        raise unknown(f"profile of {slug}", str(profile), offered)
    overlay = profiles.get(str(profile), {}).get(slug) or {}
    return {**overlay, "profile": profile}


def _validated(slug: str, values: Mapping[str, Any]) -> Section:
    if stray := sorted(set(values) - set(SECTIONS[slug].model_fields)):
        raise unknown(f"parameter of {slug}", stray[0], _keys(slug))
    try:
        # By way of JSON: strict about types, and a list is a tuple there.
        return SECTIONS[slug].model_validate_json(json.dumps(dict(values), default=str))
    except ValidationError as error:
        raise ValueError("; ".join(_told(slug, each) for each in error.errors())) from None


def _told(slug: str, error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"parameter {slug}.{key} is missing; params.yaml must give it"
    wanted = error["msg"].removeprefix("Input should be ")
    if error["type"] == "tuple_type":
        wanted = f"a list, such as [{error['input']}]"
    return f"parameter {slug}.{key}: {error['input']!r} is not allowed; it must be {wanted}"


def _keys(slug: str) -> list[str]:
    return list(SECTIONS[slug].model_fields)
