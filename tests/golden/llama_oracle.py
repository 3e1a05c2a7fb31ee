"""Runs llama.cpp, as PyPI's xllamacpp brings it, on a GGUF file: next-token log-probabilities.

The strict settings: float32 weights, float32 KV cache, no flash attention, no repacked weights, one
thread, every prompt from its start (nothing is reused between calls).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xllamacpp

from golden.golden_file import GREEDY_TOKENS

CONTEXT_SPARE = 64
# The server tells nothing of a token whose bytes are no whole character, so sampling is forced onto
# the token of "!". What it tells are the probabilities before sampling: the bias is not in them.
FORCED_TOKEN = 0
FORCING_BIAS = 1e6


class Llama:
    """A loaded GGUF file. llama.cpp aborts the process on what it does not support."""

    def __init__(self, path: Path, vocab: int, tokens: int) -> None:
        """Loads `path`; prompts may have up to `tokens` tokens."""
        self.vocab = vocab
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = tokens + CONTEXT_SPARE
        params.n_parallel = 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.no_extra_bufts = True
        params.n_gpu_layers = 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.warmup = params.fit_params = False
        params.cache_ram_mib = params.n_ctx_checkpoints = 0
        params.verbosity = 0
        self._server = xllamacpp.Server(params)

    def log_probabilities(self, tokens: Sequence[int]) -> np.ndarray:
        """Returns float32 [vocab]: the log-probability of each token after `tokens`."""
        answer = self._server.handle_completions(
            {
                "prompt": [int(token) for token in tokens],
                "n_predict": 1,
                "n_probs": self.vocab,
                "post_sampling_probs": False,
                "temperature": 0.0,
                "logit_bias": [[FORCED_TOKEN, FORCING_BIAS]],
                "cache_prompt": False,
                "stream": False,
            }
        )
        out = np.full(self.vocab, np.nan, np.float32)
        for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            out[entry["id"]] = entry["logprob"]
        if np.isnan(out).any():
            raise ValueError(f"llama.cpp told {np.isfinite(out).sum()} of {self.vocab} tokens")
        return out

    def rows(self, tokens: Sequence[int], rows: Sequence[int]) -> np.ndarray:
        """Returns [len(rows), vocab]: what follows each prefix that ends with a row's token."""
        return np.stack([self.log_probabilities(tokens[: row + 1]) for row in rows])

    def greedy(self, tokens: Sequence[int]) -> list[int]:
        """Returns the GREEDY_TOKENS likeliest tokens after `tokens`, one after another."""
        known = [int(token) for token in tokens]
        for _ in range(GREEDY_TOKENS):
            known.append(int(self.log_probabilities(known).argmax()))
        return known[-GREEDY_TOKENS:]
