"""Measures llama.cpp on a GGUF, or compares its probabilities with flash_moe's: the peer.

    python benchmarks/peer_llama.py MODEL.gguf --library FOLDER [--threads 2] [--prompt-tokens 128]
        [--max-tokens 64] [--load-mode mmap|none|auto] [--no-repack] [--experts-per-token 4]
    python benchmarks/peer_llama.py MODEL.gguf --library FOLDER --check CHECKPOINT

Prints one line of JSON. FOLDER has llama.cpp's shared libraries of release v0.5.0, as the npm
package @node-llama-cpp/linux-x64 3.22.1 ships them (`npm pack`, then bins/linux-x64): one CPU
library for each instruction set, of which ggml chooses by what the machine has. Called by ctypes:
the structs below are those of that release's llama.h, and its own defaults are checked against
them before anything is loaded.

The order is that of `flash-moe bench`, warm: a prompt and a decode untimed, then the same prompt
timed, then the decode timed. A model that is only mapped decodes other ids untimed, as bench does
where not all experts fit: its page cache would hold what the timed ids want. Prompt ids are
bench's. Tokens to decode are random ids, as llama-bench feeds them: nothing is sampled, which
flash-moe's decode does within its timed seconds.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RELEASE = "v0.5.0"
PROMPT_SEED, DECODE_SEED, WARM_SEED = 11, 12, 13  # as in flash_moe.bench
CHECK_SEED, CHECK_TOKENS = 5, 96
LOAD_MODES = {"auto": -1, "none": 0, "mmap": 1}
LAZY_OFF = 0  # would leave huge embeddings on the drive
OVERRIDE_NUMBER = 0  # tag of a whole number
EXPERTS_KEY = b"qwen35moe.expert_used_count"


class ModelParams(ctypes.Structure):
    """llama_model_params."""

    _fields_ = (
        ("devices", ctypes.c_void_p),
        ("tensor_buft_overrides", ctypes.c_void_p),
        ("n_gpu_layers", ctypes.c_int32),
        ("split_mode", ctypes.c_int32),
        ("load_mode", ctypes.c_int32),
        ("lazy_mode", ctypes.c_int32),
        ("main_gpu", ctypes.c_int32),
        ("tensor_split", ctypes.c_void_p),
        ("progress_callback", ctypes.c_void_p),
        ("progress_callback_user_data", ctypes.c_void_p),
        ("kv_overrides", ctypes.c_void_p),
        ("vocab_only", ctypes.c_bool),
        ("check_tensors", ctypes.c_bool),
        ("use_extra_bufts", ctypes.c_bool),
        ("no_host", ctypes.c_bool),
        ("no_alloc", ctypes.c_bool),
        ("load_mtp", ctypes.c_bool),
    )


class ContextParams(ctypes.Structure):
    """llama_context_params."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max")),
        *((name, ctypes.c_uint32) for name in ("n_rs_seq", "n_outputs_max", "n_outputs_per_seq")),
        *((name, ctypes.c_int32) for name in ("n_threads", "n_threads_batch", "ctx_type")),
        *((name, ctypes.c_int32) for name in ("rope_scaling_type", "pooling_type")),
        *((name, ctypes.c_int32) for name in ("attention_type", "flash_attn_type")),
        *((name, ctypes.c_float) for name in ("rope_freq_base", "rope_freq_scale")),
        *((name, ctypes.c_float) for name in ("yarn_ext_factor", "yarn_attn_factor")),
        *((name, ctypes.c_float) for name in ("yarn_beta_fast", "yarn_beta_slow")),
        ("yarn_orig_ctx", ctypes.c_uint32),
        ("defrag_thold", ctypes.c_float),
        ("cb_eval", ctypes.c_void_p),
        ("cb_eval_user_data", ctypes.c_void_p),
        ("type_k", ctypes.c_int32),
        ("type_v", ctypes.c_int32),
        ("abort_callback", ctypes.c_void_p),
        ("abort_callback_data", ctypes.c_void_p),
        *((name, ctypes.c_bool) for name in ("embeddings", "offload_kqv", "no_perf")),
        *((name, ctypes.c_bool) for name in ("op_offload", "swa_full", "kv_unified")),
        ("samplers", ctypes.c_void_p),
        ("n_samplers", ctypes.c_size_t),
        ("ctx_other", ctypes.c_void_p),
    )


class Override(ctypes.Structure):
    """llama_model_kv_override, of a whole number."""

    _fields_ = (
        ("tag", ctypes.c_int),
        ("key", ctypes.c_char * 128),
        ("value", ctypes.c_int64),
        ("rest_of_union", ctypes.c_char * 120),
    )


class Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("token", "embd", "pos", "n_seq_id", "seq_id")),
        ("logits", ctypes.c_void_p),
    )


# What the release's own functions put there: another layout would not give all of these.
MODEL_DEFAULTS = {
    "n_gpu_layers": -1, "split_mode": 1, "load_mode": -1, "lazy_mode": 1, "main_gpu": 0,
    "vocab_only": False, "check_tensors": False, "use_extra_bufts": True, "no_host": False,
    "no_alloc": False,
}  # fmt: skip
CONTEXT_DEFAULTS = {
    "n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_threads": 4,
    "n_threads_batch": 4, "flash_attn_type": -1, "defrag_thold": -1.0, "type_k": 1, "type_v": 1,
    "offload_kqv": True, "no_perf": True, "kv_unified": False, "n_samplers": 0,
}  # fmt: skip
LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
POINTER, NUMBER, TEXT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p
PROTOTYPES: dict[str, tuple[Any, ...]] = {  # result, arguments
    "llama_log_set": (None, LOG, POINTER),
    "llama_model_default_params": (ModelParams,),
    "llama_context_default_params": (ContextParams,),
    "llama_model_load_from_file": (POINTER, TEXT, ModelParams),
    "llama_init_from_model": (POINTER, POINTER, ContextParams),
    "llama_model_get_vocab": (POINTER, POINTER),
    "llama_vocab_n_tokens": (NUMBER, POINTER),
    "llama_decode": (NUMBER, POINTER, Batch),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), POINTER, NUMBER),
    "llama_get_memory": (POINTER, POINTER),
    "llama_memory_clear": (None, POINTER, ctypes.c_bool),
}


def check_defaults(params: ctypes.Structure, wanted: dict[str, object]) -> None:
    """Raises OSError when a struct is not laid out as here."""
    for name, value in wanted.items():
        got = getattr(params, name)
        if got != value:
            raise OSError(
                f"{type(params).__name__}.{name}: wanted {value}, got {got}: "
                f"is this llama.cpp {RELEASE}?"
            )


def load_library(folder: Path, log: Callable[[str], None]) -> tuple[ctypes.CDLL, str]:
    """Returns libllama with its prototypes set, and ggml's commit.

    Args:
        folder: of the shared libraries.
        log: told what llama.cpp says.

    Raises:
        OSError: when they are not there, or not of the release.
    """
    about = json.loads((folder / "_nlcBuildMetadata.json").read_text(encoding="utf-8"))
    release = about["buildOptions"]["llamaCpp"]["release"]
    if release != RELEASE:
        raise OSError(f"{folder}: wanted llama.cpp {RELEASE}, got {release}")
    base, ggml, llama = (
        ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL)
        for name in ("libggml-base.so", f"libggml.{RELEASE}.so", f"libllama.{RELEASE}.so")
    )
    for name, (result, *arguments) in PROTOTYPES.items():
        function = getattr(llama, name)
        function.restype, function.argtypes = result, arguments
    llama.keep_log = LOG(lambda _, text, __: log(text.decode(errors="replace")))
    llama.llama_log_set(llama.keep_log, None)
    check_defaults(llama.llama_model_default_params(), MODEL_DEFAULTS)
    check_defaults(llama.llama_context_default_params(), CONTEXT_DEFAULTS)
    ggml.ggml_backend_load_all_from_path.argtypes = [TEXT]
    ggml.ggml_backend_load_all_from_path(str(folder).encode())  # it chooses by what the CPU has
    base.ggml_commit.restype = TEXT
    return llama, base.ggml_commit().decode()


class Peer:
    """A loaded model and one timeline."""

    def __init__(self, args: argparse.Namespace, context_tokens: int) -> None:
        """Loads it.

        Raises:
            OSError: when llama.cpp refuses; its log says why.
        """
        self.log = ""
        self._llama, self.commit = load_library(args.library, self._hear)
        model_params = self._llama.llama_model_default_params()
        model_params.load_mode = LOAD_MODES[args.load_mode]
        model_params.lazy_mode = LAZY_OFF
        model_params.use_extra_bufts = args.repack
        if args.experts_per_token:  # an entry without a key ends the list
            number = Override(OVERRIDE_NUMBER, EXPERTS_KEY, args.experts_per_token)
            self._overrides = (Override * 2)(number)
            model_params.kv_overrides = ctypes.addressof(self._overrides)
        params = self._llama.llama_context_default_params()
        params.n_ctx = context_tokens
        params.n_threads = params.n_threads_batch = args.threads
        self._model = self._llama.llama_model_load_from_file(str(args.model).encode(), model_params)
        self._context = self._model and self._llama.llama_init_from_model(self._model, params)
        if not self._context:
            raise OSError(f"{args.model}: llama.cpp does not load it:\n{self.log}")
        self.experts_per_token = int(self._said("n_expert_used"))
        if args.experts_per_token not in (None, self.experts_per_token):
            raise OSError(f"{args.model}: llama.cpp takes {self.experts_per_token} experts a token")
        self.vocab = self._llama.llama_vocab_n_tokens(
            self._llama.llama_model_get_vocab(self._model)
        )

    def _hear(self, text: str) -> None:
        self.log += text

    def _said(self, name: str) -> str:
        """Returns what its log gives for a name: "... name = value"."""
        for line in self.log.splitlines():
            left, _, value = line.partition(" = ")
            if left.split()[-1:] == [name]:
                return value.strip()
        raise OSError(f"llama.cpp said nothing of {name}:\n{self.log[-2000:]}")

    def feed(self, ids: Sequence[int]) -> None:
        """Runs tokens; when it returns, the last one's logits are there.

        Raises:
            OSError: when llama.cpp fails.
        """
        for first in range(0, len(ids), CONTEXT_DEFAULTS["n_batch"]):
            here = ids[first : first + CONTEXT_DEFAULTS["n_batch"]]
            tokens = (ctypes.c_int32 * len(here))(*here)
            batch = Batch(n_tokens=len(here), token=ctypes.addressof(tokens))
            status = self._llama.llama_decode(self._context, batch)
            if status or not self._llama.llama_get_logits_ith(self._context, -1):
                raise OSError(f"llama_decode: {status}:\n{self.log[-2000:]}")

    def logits(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Returns a copy of the last token's."""
        values = self._llama.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(values, (self.vocab,)).copy()

    def clear(self) -> None:
        """Forgets all tokens."""
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)


def resident_bytes() -> dict[str, int]:
    """Returns the process's memory: its own, and pages of files that it maps."""
    names = {"RssAnon": "anonymous", "RssFile": "of files"}
    found = {}
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name in names:
            found[names[name]] = int(value.split()[0]) * 1024
    return found


def read_bytes() -> int:
    """Returns what this process has had read from drives."""
    for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    return 0


def cpu_library() -> str:
    """Returns the name of the CPU library that was loaded."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    names = {Path(line.split()[-1]).name for line in maps if "/libggml-cpu" in line}
    return ", ".join(sorted(names))


def random_ids(seed: int, count: int, vocab: int) -> list[int]:
    """Returns the ids that flash_moe's bench would."""
    chosen = random.Random(seed)
    return [chosen.randrange(vocab) for _ in range(count)]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Loads, warms up and measures; returns the line to print."""
    started = time.perf_counter()
    peer = Peer(args, args.prompt_tokens + args.max_tokens + 8)
    loaded_seconds = time.perf_counter() - started
    after_load = resident_bytes()
    prompt = random_ids(PROMPT_SEED + args.prompt_tokens, args.prompt_tokens, peer.vocab)
    warm_seed = WARM_SEED if args.load_mode == "mmap" else DECODE_SEED

    def decode(seed: int) -> None:
        for token in random_ids(seed, args.max_tokens, peer.vocab):
            peer.feed([token])

    def timed(work: Callable[[], None], tokens: int) -> dict[str, float]:
        before, start = read_bytes(), time.perf_counter()
        work()
        seconds = time.perf_counter() - start
        return {
            "tokens_per_second": tokens / seconds,
            "read_bytes_per_token": (read_bytes() - before) / tokens,
        }

    peer.feed(prompt)
    decode(warm_seed)
    peer.clear()
    prefill = timed(lambda: peer.feed(prompt), len(prompt))
    decoding = timed(lambda: decode(DECODE_SEED), args.max_tokens)
    return {
        "prefill": prefill,
        "decode": decoding,
        "rss_after_load": after_load,
        "rss_at_end": resident_bytes(),
        "load_seconds": loaded_seconds,
        "llama_cpp": RELEASE,
        "ggml_commit": peer.commit,
        "cpu_library": cpu_library(),
        "threads": args.threads,
        "experts_per_token": peer.experts_per_token,
        "load_mode": args.load_mode,
        "repack": args.repack,
        "buffers": [
            " ".join(line.split()[1:])
            for line in peer.log.splitlines()
            if "model buffer size" in line
        ],
    }


def compare(args: argparse.Namespace) -> dict[str, float]:
    """Runs random ids through both and returns how far their next-token distributions agree.

    Each token alone, then the whole prompt at once: both of llama.cpp's ways.
    """
    from flash_moe import Engine

    def probabilities(logits: Any) -> Any:  # noqa: ANN401 - arrays
        shifted = logits - logits.max(axis=-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))

    peer = Peer(args, CHECK_TOKENS + 8)
    ids = random_ids(CHECK_SEED, CHECK_TOKENS, peer.vocab)
    with Engine(args.check, threads=args.threads) as engine:
        ours = probabilities(np.asarray(engine.logits(ids))[:, : peer.vocab].astype(np.float64))
    rows = []
    for token in ids:
        peer.feed([token])
        rows.append(peer.logits())
    theirs = probabilities(np.array(rows, dtype=np.float64))
    peer.clear()
    peer.feed(ids)
    at_once = probabilities(peer.logits().astype(np.float64))
    correlations = [float(np.corrcoef(a, b)[0, 1]) for a, b in zip(ours, theirs, strict=True)]
    divergence = (np.exp(ours) * (ours - theirs)).sum(axis=-1)
    return {
        "tokens": len(ids),
        "correlation_median": float(np.median(correlations)),
        "correlation_min": min(correlations),
        "top_1_equal": float((ours.argmax(axis=-1) == theirs.argmax(axis=-1)).mean()),
        "kl_median": float(np.median(divergence)),
        "correlation_last_of_prompt_at_once": float(np.corrcoef(ours[-1], at_once)[0, 1]),
    }


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description="Measures llama.cpp on a GGUF.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--library", type=Path, required=True, help="folder of libllama")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--prompt-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--load-mode", choices=tuple(LOAD_MODES), default="auto")
    parser.add_argument(
        "--no-repack", dest="repack", action="store_false", help="keep the file's layout of weights"
    )
    parser.add_argument(
        "--experts-per-token", type=int, metavar="N", help="fewer than trained: faster and LOSSY"
    )
    parser.add_argument("--check", metavar="CHECKPOINT", help="compare with flash_moe instead")
    args = parser.parse_args()
    try:
        print(json.dumps(compare(args) if args.check else measure(args)), flush=True)
    except OSError as error:
        print(f"peer_llama.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
