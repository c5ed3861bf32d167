"""Draft ahead: speculative decoding, measured.

The public names are resolved on first use (PEP 562), so `import foredraft` loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foredraft.decoding.draft import ModelDrafter as ModelDrafter
    from foredraft.decoding.draft import PromptLookupDrafter as PromptLookupDrafter
    from foredraft.decoding.exit import AdaptiveExit as AdaptiveExit
    from foredraft.decoding.exit import ConfidenceExit as ConfidenceExit
    from foredraft.decoding.exit import CostAwareExit as CostAwareExit
    from foredraft.decoding.exit import FixedLength as FixedLength
    from foredraft.decoding.expected_gain import ExpectedGain as ExpectedGain
    from foredraft.decoding.gate import AlwaysDraft as AlwaysDraft
    from foredraft.decoding.gate import ConfidenceGate as ConfidenceGate
    from foredraft.decoding.gate import EntropyGate as EntropyGate
    from foredraft.decoding.gate import MarginGate as MarginGate
    from foredraft.decoding.loop import Generation as Generation
    from foredraft.decoding.loop import generate as generate
    from foredraft.decoding.self_draft import SelfDrafter as SelfDrafter
    from foredraft.decoding.verify import verify as verify
    from foredraft.models.bert.model import Bert as Bert
    from foredraft.models.decoder import Decoder as Decoder
    from foredraft.models.loading import load as load
    from foredraft.models.skip import SkipPlan as SkipPlan
    from foredraft.sampling import Sampler as Sampler

_HOMES = {
    "AdaptiveExit": "foredraft.decoding.exit",
    "AlwaysDraft": "foredraft.decoding.gate",
    "Bert": "foredraft.models.bert.model",
    "ConfidenceExit": "foredraft.decoding.exit",
    "ConfidenceGate": "foredraft.decoding.gate",
    "CostAwareExit": "foredraft.decoding.exit",
    "Decoder": "foredraft.models.decoder",
    "EntropyGate": "foredraft.decoding.gate",
    "ExpectedGain": "foredraft.decoding.expected_gain",
    "FixedLength": "foredraft.decoding.exit",
    "Generation": "foredraft.decoding.loop",
    "MarginGate": "foredraft.decoding.gate",
    "ModelDrafter": "foredraft.decoding.draft",
    "PromptLookupDrafter": "foredraft.decoding.draft",
    "Sampler": "foredraft.sampling",
    "SelfDrafter": "foredraft.decoding.self_draft",
    "SkipPlan": "foredraft.models.skip",
    "generate": "foredraft.decoding.loop",
    "load": "foredraft.models.loading",
    "verify": "foredraft.decoding.verify",
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'foredraft' has no attribute {name!r}; it has {__all__}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
