"""Records what llama.cpp computes in float32:

    python -m golden.make_llama --source LLAMA_CPP [case ...]

LLAMA_CPP is llama.cpp's source, whose convert_hf_to_gguf.py makes the GGUF file; nothing of it is
built. The file must equal the one of gguf_twin.py, which live tests use.
"""

import argparse
import importlib
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from checkpoints import CASES, Case, as_float32, make, model_hash
from checkpoints.huggingface_layout import HuggingFaceLayout

from golden import gguf_twin
from golden.golden_file import (
    FOLDER,
    LOG_PROBABILITIES,
    Golden,
    kept_rows,
    prompt_of,
    save,
)
from golden.llama_oracle import Llama

# Each structure once; qwen3_moe always normalises its chosen experts' weights in llama.cpp, and V
# heads are as wide as K heads there, so *_unnormalised and hf_odd_heads have no golden.
RECORDED = (
    "hf_bf16",
    "hf_f32",
    "hf_f16",
    "hf_vision_mtp",
    "hf_next",
    "hf_next_mtp",
    "hf_moe",
    "hf_tied",
    "hf_experts_512",
    "hf_full_attention",
    "hf_linear_attention",
    "hf_heads_ratio_4",
    "hf_fp8",
    "hf_long",
    "mlx_4bit_g64",
    "mlx_mxfp4",
)
EXP_ROUNDING = 2.4e-7  # ssm_a is -exp(A_log): torch's exp and numpy's differ by 1 ulp


def load_converter(source: Path) -> ModuleType:
    """Returns llama.cpp's converter, made to accept a tokenizer that it does not know."""
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    converter = importlib.import_module("convert_hf_to_gguf")
    base = importlib.import_module("conversion.base")
    base.TextModel.get_vocab_base_pre = lambda _self, _tokenizer: "qwen2"
    return converter


def readable_folder(folder: Path, case: Case, scratch: Path) -> Path:
    """Returns the folder itself, or its float32 twin where the converter would round.

    It dequantises FP8 to bfloat16, and adds 1 to float16 norms in float16.
    """
    layout = case.layout
    exact = isinstance(layout, HuggingFaceLayout) and not layout.fp8 and layout.dtype != "F16"
    folder = folder if exact else as_float32.convert(folder, scratch / "readable")
    return gguf_twin.with_both_layer_types(folder, case, scratch / "readable_both")


def convert(converter: ModuleType, folder: Path, case: Case, path: Path) -> None:
    """Runs llama.cpp's converter."""
    arguments = [str(folder), "--outtype", "f32", "--outfile", str(path)]
    if case.geometry.model_type != "qwen3_moe":
        arguments.append("--no-mtp")
    kept, sys.argv = sys.argv, ["convert_hf_to_gguf.py", *arguments]
    try:
        converter.main()
    finally:
        sys.argv = kept


def check_twin(name: str, official: Path, twin: Path) -> None:
    """Raises ValueError unless both files describe the same model with the same weights."""
    reader = importlib.import_module("gguf").GGUFReader

    def content(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        file = reader(path)
        fields = {
            key: field.contents()
            for key, field in file.fields.items()
            if key.startswith(("qwen", "tokenizer.ggml.to", "tokenizer.ggml.merges"))
            # Read only where attention.recurrent_layers lacks.
            and not key.endswith("full_attention_interval")
        }
        return fields, {tensor.name: np.array(tensor.data) for tensor in file.tensors}

    (fields, tensors), (twin_fields, twin_tensors) = content(official), content(twin)
    keys = fields.keys() | twin_fields.keys()
    different = [key for key in sorted(keys) if fields.get(key) != twin_fields.get(key)]
    if different:
        raise ValueError(f"{name}: the twin's metadata differs: {different}")
    if set(tensors) != set(twin_tensors):
        raise ValueError(f"{name}: tensors of the twin: {set(tensors) ^ set(twin_tensors)}")
    for key, values in tensors.items():
        rounding = EXP_ROUNDING if key.endswith("ssm_a") else 0.0
        if not np.allclose(values, twin_tensors[key], rtol=rounding, atol=0.0):
            raise ValueError(f"{name}: {key} of the twin differs")


def compute(path: Path, case: Case) -> Golden:
    """Every kept row from its own prompt, then a greedy continuation."""
    tokens = prompt_of(case)
    rows = kept_rows(len(tokens))
    llama = Llama(path, case.geometry.vocab, len(tokens))
    recorded = llama.rows(tokens, rows)
    metadata = {
        "oracle": "llama_cpp",
        "values": LOG_PROBABILITIES,
        "versions": {"xllamacpp": version("xllamacpp")},
        "seed": case.seed,
        "logit_std": float(recorded.std()),
    }
    return Golden(tokens, rows, recorded, np.array(llama.greedy(tokens)), metadata)


def main() -> int:
    """Makes the named cases' goldens, or those of RECORDED."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=[])
    parser.add_argument("--source", type=Path, required=True, help="folder of llama.cpp's source")
    options = parser.parse_args()
    converter = load_converter(options.source.resolve())
    for name in options.cases or RECORDED:
        case = CASES[name]
        with tempfile.TemporaryDirectory() as scratch:
            original = make(name, Path(scratch) / name)
            path = Path(scratch) / "official.gguf"
            convert(converter, readable_folder(original, case, Path(scratch)), case, path)
            check_twin(name, path, gguf_twin.convert(original, case, Path(scratch) / "twin"))
            golden = compute(path, case)
            golden.metadata["model_sha256"] = model_hash(original)
        save(FOLDER / f"{name}.llama_cpp.npz", golden)
        print(f"{name}: std {golden.metadata['logit_std']:.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
