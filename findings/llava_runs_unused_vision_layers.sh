#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0: a LLaVA whose features come from the second-last layer of its
# vision tower (vision_feature_layer=-2, the default) runs the last layer all the same. Replacing
# what that layer gives by zeros leaves every logit as it was, so its work is for nothing: 1 of 24
# layers in LLaVA-1.5, forward and, where the tower learns, not even a gradient.
# Expected by the name of the option: layers after the chosen one do not run.
# Seen: "last layer runs: 1 time, logits without it: equal".
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 pillow==13.0.0
"$room/venv/bin/python" - <<'PY'
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

vision = CLIPVisionConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
    image_size=8, patch_size=4, projection_dim=16,
)
text = LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=2, pad_token_id=0,
)
config = LlavaConfig(
    vision_config=vision, text_config=text, image_token_index=31, vision_feature_layer=-2,
    vision_feature_select_strategy="default",
)
torch.manual_seed(0)
model = LlavaForConditionalGeneration(config).eval()
ids = torch.tensor([[1, 31, 31, 31, 31, 2, 3]])  # 4 patches
pixels = torch.randn(1, 3, 8, 8)
last = next(
    module for name, module in model.named_modules() if name.endswith("encoder.layers.2")
)
calls = []


def note(module, args, output):
    calls.append(1)


def zeros(module, args, output):
    return torch.zeros_like(output) if torch.is_tensor(output) else (torch.zeros_like(output[0]), *output[1:])


with torch.no_grad():
    hook = last.register_forward_hook(note)
    logits = model(input_ids=ids, pixel_values=pixels).logits
    hook.remove()
    hook = last.register_forward_hook(zeros)
    without = model(input_ids=ids, pixel_values=pixels).logits
same = "equal" if torch.equal(logits, without) else "different"
print(f"last layer runs: {len(calls)} time, logits without it: {same}")
assert (len(calls), same) == (1, "equal"), "transformers behaves otherwise now"
PY
