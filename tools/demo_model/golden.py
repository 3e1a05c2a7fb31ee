"""Records what transformers computes in float32 for the demo model: logits and greedy tokens.

Usage, from the repository's root, for the shipped folder and for the unpacked bf16 master:
  python tools/demo_model/golden.py --model python/flash_moe/models/demo \
      --out tests/golden/demo_shipped.npz
  python tools/demo_model/golden.py --model MASTER --out tests/golden/demo_bf16.npz
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from random import Random

import chat_format
import numpy as np
import tools
import torch
import transformers
from evaluate import HELD_OUT_SEED
from lexicon import Pools
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoConfig, Qwen3_5MoeForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from checkpoints.as_float32 import convert

ROWS, GREEDY = 8, 24


def prompts() -> dict[str, str]:
    """The start of a story, a sum with thinking, and a question that needs a tool: held out."""
    random, pools = Random(HELD_OUT_SEED + 50), Pools(True)
    case = tools.case(random, pools, False, must_call=True)
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is 47 + 35?"},
    ]
    return {
        "story": "Once upon a time, there was a little fox named Pip. She lived beside a lake.",
        "sum": chat_format.generation_prompt(messages, None, True),
        "tool": chat_format.generation_prompt(case.messages, case.tools, False),
    }


def load(folder: Path) -> Qwen3_5MoeForCausalLM:
    """The model with exactly the folder's weights in float32, MLX or Hugging Face layout."""
    with tempfile.TemporaryDirectory() as name:
        twin = convert(folder, Path(name))
        tensors = {
            name.replace("model.language_model.", "model."): value
            for name, value in load_file(twin / "model.safetensors").items()
            if not name.startswith("mtp.")
        }
    config = AutoConfig.from_pretrained(folder)
    model = Qwen3_5MoeForCausalLM(getattr(config, "text_config", config)).float()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if unexpected or [m for m in missing if m != "lm_head.weight"]:
        raise ValueError(f"weights do not fit: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model.eval()


@torch.no_grad()
def record(folder: Path) -> dict[str, np.ndarray]:
    """Tokens of each prompt, logits at `ROWS` of its positions, and its greedy continuation."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = load(folder)
    end = tokenizer.token_to_id("<|im_end|>")
    arrays: dict[str, np.ndarray] = {}
    for name, prompt in prompts().items():
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        rows = np.linspace(1, len(ids) - 1, ROWS).astype(np.int32)
        logits = model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()
        told = model.generate(
            torch.tensor([ids]), max_new_tokens=GREEDY, do_sample=False, eos_token_id=end
        )[0, len(ids) :].tolist()
        arrays[f"{name}_tokens"] = np.array(ids, dtype=np.int32)
        arrays[f"{name}_rows"] = rows
        arrays[f"{name}_logits"] = logits[rows]
        arrays[f"{name}_greedy"] = np.array(told, dtype=np.int32)
        print(f"{name}: {len(ids)} tokens, then {tokenizer.decode(told)!r}")
    metadata = {
        "oracle": f"transformers {transformers.__version__}, torch {torch.__version__}, float32",
        "sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
    }
    arrays["metadata"] = np.array(json.dumps(metadata))
    return arrays


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    np.savez_compressed(args.out, **record(args.model))


if __name__ == "__main__":
    main()
