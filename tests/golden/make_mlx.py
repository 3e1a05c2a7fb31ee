"""Records what mlx-lm computes with float32 activations: `python -m golden.make_mlx [case ...]`.

Scales, biases, norms and unquantised weights are widened to float32, so nothing but summation
order differs from exact arithmetic on the stored weights. The CPU backend serves (no Apple machine
is needed).
"""

import argparse
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import numpy as np
from checkpoints import CASES, Case, make, model_hash
from checkpoints.mlx_layout import MlxLayout
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from golden.golden_file import FOLDER, GREEDY_TOKENS, Golden, kept_rows, prompt_of, save


def compute(folder: Path, case: Case) -> Golden:
    """Whole prompt in one pass, then a greedy continuation token by token on its cache."""
    model, _ = load_model(folder, strict=True)
    model.set_dtype(mx.float32)
    tokens = prompt_of(case)
    cache = make_prompt_cache(model)
    logits = np.array(model(mx.array(tokens[None]), cache=cache)[0])
    greedy, last = [], logits[-1]
    for _ in range(GREEDY_TOKENS):
        greedy.append(int(last.argmax()))
        last = np.array(model(mx.array([[greedy[-1]]]), cache=cache)[0, -1])
    rows = kept_rows(len(tokens))
    metadata = {
        "oracle": "mlx_lm",
        "versions": {"mlx": version("mlx"), "mlx_lm": version("mlx-lm")},
        "seed": case.seed,
        "logit_std": float(logits.std()),
        "model_sha256": model_hash(folder),
    }
    return Golden(tokens, rows, logits[rows], np.array(greedy), metadata)


def main() -> int:
    """Makes the named cases' goldens, or those of all MLX folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=[])
    options = parser.parse_args()
    mx.set_default_device(mx.cpu)
    mlx_cases = [name for name, case in CASES.items() if isinstance(case.layout, MlxLayout)]
    for name in options.cases or mlx_cases:
        with tempfile.TemporaryDirectory() as scratch:
            folder = make(name, Path(scratch) / name)
            golden = compute(folder, CASES[name])
        save(FOLDER / f"{name}.mlx_lm.npz", golden)
        print(f"{name}: std {golden.metadata['logit_std']:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
