"""Tiny random checkpoints in every format that the engine reads, the same on each machine.

`make("hf_bf16", tmp_path / "hf_bf16")` writes a folder and returns it; `CASES` lists the names.
"""

from .cases import CASES, Case, make, model_hash

__all__ = ["CASES", "Case", "make", "model_hash"]
