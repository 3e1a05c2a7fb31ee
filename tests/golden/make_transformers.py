"""Records what transformers computes in float32: `python -m golden.make_transformers [case ...]`.

Unquantised Hugging Face folders are loaded as they are, which also proves the folders; MLX and FP8
ones through their exact float32 twin.
"""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from checkpoints import CASES, Case, as_float32, make, model_hash
from checkpoints.huggingface_layout import HuggingFaceLayout

from golden.golden_file import (
    FOLDER,
    GREEDY_MARGIN_MIN,
    GREEDY_TOKENS,
    ROUTER_MARGIN_MIN,
    Golden,
    kept_rows,
    prompt_of,
    relative_difference,
    save,
)

ROUTER_MARGIN_MAX = 1e3  # what is recorded where every expert is chosen


def load_model(folder: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Loads a folder as transformers does for users; every weight must come from the files."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    for key in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        left = [
            name for name in info[key] if "visual" not in name and not str(name).startswith("mtp.")
        ]
        if left:
            raise ValueError(f"{folder}: {key}: {left}")
    return model.eval(), info


class RouterMargins:
    """Watches every router: the least gap between the last chosen and the first refused logit."""

    def __init__(self, model: torch.nn.Module, top_k: int) -> None:
        self.least = float("inf")
        self.top_k = top_k
        count = 0
        for name, module in model.named_modules():
            if name.endswith("mlp.gate"):
                module.register_forward_hook(self._watch)
                count += 1
        if count == 0:
            raise ValueError("no router found")

    def _watch(self, module: torch.nn.Module, inputs: tuple, _output: object) -> None:
        hidden = inputs[0].reshape(-1, inputs[0].shape[-1])
        logits = torch.nn.functional.linear(hidden, module.weight).double()
        best = logits.topk(min(self.top_k + 1, logits.shape[-1])).values
        if best.shape[-1] > self.top_k:
            gap = (best[:, self.top_k - 1] - best[:, self.top_k]).min().item()
            self.least = min(self.least, gap)


class Stepper:
    """Feeds tokens and returns their logits, keeping a cache where transformers can."""

    def __init__(self, model: torch.nn.Module, case: Case) -> None:
        self.model = model
        # transformers cannot count the tokens of a cache without an attention layer: recompute
        # the whole.
        self.use_cache = "F" in case.geometry.layer_types
        self.cache = None
        self.fed: list[int] = []

    def feed(self, tokens: list[int]) -> np.ndarray:
        """Returns float32 logits [len(tokens), vocab]."""
        self.fed += tokens
        given = tokens if self.use_cache else self.fed
        out = self.model(
            input_ids=torch.tensor([given]), past_key_values=self.cache, use_cache=self.use_cache
        )
        if self.use_cache:
            self.cache = out.past_key_values
        return out.logits[0, -len(tokens) :].float().numpy()


@torch.no_grad()
def compute(folder: Path, case: Case) -> Golden:
    """Whole prompt in one pass, then a greedy continuation token by token on its cache."""
    model, _ = load_model(folder)
    margins = RouterMargins(model, case.geometry.top_k)
    stepper = Stepper(model, case)
    tokens = prompt_of(case)
    logits = stepper.feed(tokens.tolist())
    greedy: list[int] = []
    least = float("inf")
    last = logits[-1]
    for _ in range(GREEDY_TOKENS):
        best = np.sort(last)[-2:]
        least = min(least, float(best[1] - best[0]))
        greedy.append(int(last.argmax()))
        last = stepper.feed([greedy[-1]])[-1]
    rows = kept_rows(len(tokens))
    metadata = {
        "oracle": "transformers",
        "versions": {
            "transformers": transformers.__version__,
            "torch": torch.__version__.split("+")[0],
        },
        "seed": case.seed,
        "router_margin_min": min(margins.least, ROUTER_MARGIN_MAX),
        "greedy_margin_min": least,
        "logit_std": float(logits.std()),
    }
    return Golden(tokens, rows, logits[rows], np.array(greedy), metadata)


def readable_folder(folder: Path, case: Case, scratch: Path) -> Path:
    """Returns the folder itself, or its float32 twin where transformers cannot use it."""
    is_huggingface = isinstance(case.layout, HuggingFaceLayout)
    return folder if is_huggingface and not case.layout.fp8 else as_float32.convert(folder, scratch)


def check_margins(name: str, metadata: dict[str, Any]) -> str:
    """Returns what makes the case ill conditioned, or an empty string."""
    if metadata["router_margin_min"] < ROUTER_MARGIN_MIN:
        return f"{name}: router margin {metadata['router_margin_min']:.1e}: choose another seed"
    if metadata["greedy_margin_min"] < GREEDY_MARGIN_MIN:
        return f"{name}: greedy margin {metadata['greedy_margin_min']:.1e}: choose another seed"
    return ""


@torch.no_grad()
def recurrent_difference(folder: Path, case: Case, golden: Golden) -> float:
    """Returns how far the oracle, fed token by token, is from itself (relative to the range)."""
    stepper = Stepper(load_model(folder)[0], case)
    rows = np.concatenate([stepper.feed([int(token)]) for token in golden.tokens])
    return relative_difference(golden.logits, rows[golden.rows])


def main() -> int:
    """Makes the named cases' goldens, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=[])
    parser.add_argument(
        "--recurrent", action="store_true", help="also hold the oracle against itself"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    failures = 0
    for name in options.cases or CASES:
        case = CASES[name]
        with tempfile.TemporaryDirectory() as scratch:
            original = make(name, Path(scratch) / name)
            folder = readable_folder(original, case, Path(scratch) / "float32")
            golden = compute(folder, case)
            golden.metadata["model_sha256"] = model_hash(original)
            golden.metadata["dequantised"] = folder != original
            problem = check_margins(name, golden.metadata)
            self_difference = (
                recurrent_difference(folder, case, golden) if options.recurrent else float("nan")
            )
        print(
            f"{name}: std {golden.metadata['logit_std']:.2f}, router margin "
            f"{golden.metadata['router_margin_min']:.1e}, greedy margin "
            f"{golden.metadata['greedy_margin_min']:.1e}, token by token {self_difference:.1e}"
        )
        if problem:
            print(problem, file=sys.stderr)
            failures += 1
            continue
        save(FOLDER / f"{name}.transformers.npz", golden)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
