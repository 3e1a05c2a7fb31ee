"""Tiny random checkpoints in every format that the engine reads, made at test time, the same on each machine.

    from checkpoints import CASES, make
    folder = make("hf_bf16", tmp_path / "hf_bf16")
"""

from .cases import CASES, Case, make, model_hash

__all__ = ["CASES", "Case", "make", "model_hash"]
