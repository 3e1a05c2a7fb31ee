"""Records tokenizer.json: what transformers' AutoTokenizer makes of a hostile corpus.

Each entry has `text` (or `unit` repeated `count` times) and, for the tokenizer of both generations
("3_5": hf_bf16, "3": hf_moe): `ids` with control tokens recognised, `plain` with none recognised
(text from a user), `decoded` and `decoded_skip` (special tokens dropped). Long id lists are kept
as their count and the sha256 of int32 bytes.
"""

import hashlib
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers
from checkpoints import make

from golden.golden_file import FOLDER

IDS_KEPT_MAX = 400
FOLDERS = {"3_5": "hf_bf16", "3": "hf_moe"}

LONG = [
    ("ab", 25_000),
    ("user", 12_500),
    ("你", 17_000),
    ("😀", 3_000),
    (" ", 20_000),
    ("\n", 5_000),
    ("a ", 5_000),
]


def keep(ids: list[int]) -> Any:
    """Returns the ids, or their count and hash when there are many."""
    if len(ids) <= IDS_KEPT_MAX:
        return ids
    data = np.array(ids, dtype="<i4").tobytes()
    return {"count": len(ids), "sha256": hashlib.sha256(data).hexdigest()}


def tokenizers_of(folder: Path) -> tuple[Any, tokenizers.Tokenizer]:
    """Returns AutoTokenizer of a folder, and its twin that knows no control token."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["added_tokens"] = []
    plain = tokenizers.Tokenizer.from_str(json.dumps(content))
    return transformers.AutoTokenizer.from_pretrained(folder), plain


def entry(text: str, pair: tuple[Any, tokenizers.Tokenizer]) -> dict[str, Any]:
    """Returns what one tokenizer makes of one text."""
    auto, plain = pair
    ids = auto(text, add_special_tokens=False)["input_ids"]
    out = {"ids": keep(ids), "plain": keep(plain.encode(text, add_special_tokens=False).ids)}
    if len(ids) <= IDS_KEPT_MAX:
        out["decoded"] = auto.decode(ids)
        out["decoded_skip"] = auto.decode(ids, skip_special_tokens=True)
    return out


def main() -> int:
    """Writes tokenizer.json beside this script."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = {key: make(name, Path(scratch) / name) for key, name in FOLDERS.items()}
        pairs = {key: tokenizers_of(folder) for key, folder in folders.items()}
        hashes = {
            key: hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
            for key, folder in folders.items()
        }
        corpus = json.loads((FOLDER / "hostile_texts.json").read_text(encoding="utf-8"))
        entries = []
        for text in corpus:
            entries.append(
                {"text": text, **{key: entry(text, pair) for key, pair in pairs.items()}}
            )
        for unit, count in LONG:
            results = {key: entry(unit * count, pair) for key, pair in pairs.items()}
            entries.append({"unit": unit, "count": count, **results})
    versions = {name: version(name) for name in ("transformers", "tokenizers")}
    content = {"folders": FOLDERS, "sha256": hashes, "versions": versions, "entries": entries}
    text = json.dumps(content, ensure_ascii=True, indent=None, separators=(",", ":"))
    (FOLDER / "tokenizer.json").write_text(text.replace('},{"text"', '},\n{"text"') + "\n")
    print(f"{len(entries)} texts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
