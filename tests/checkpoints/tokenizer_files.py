"""A small byte-level BPE tokenizer in the layout of the family's releases, as plain JSON.

Vocabulary: 256 byte tokens, then one token a merge, then the control tokens. It has fewer ids than
the models have embedding rows, as in the releases (248 077 ids, 248 320 rows).
"""

import json
from pathlib import Path
from typing import Any

PRETOKENIZE_3_5 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRETOKENIZE_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Pairs in rank order, "_" for a space. The hex ones join parts of characters (CJK, emoji, a
# combining accent), so that token borders cut UTF-8 sequences in two.
MERGES = (
    "_ t|h e|i n|_ a|r e|o n|_t he|e r|_ s|a t|i s|o u|e n|_ w|in g|l l|u s|s er|us er|a s|as s|t h"
    "|_ _|__ __|\n \n|f u|fu n|c t|o r|l d|or ld|_w or|_w orld|H e|He ll"
)
MERGES_HEX = "e4 bd|e4bd a0|f0 9f|f09f 98|e2 80|d7 9c|cc 81|c3 a9"

CONTROL_TOKENS = {  # token: special (dropped when decoding with skip_special_tokens)
    "<|endoftext|>": True,
    "<|im_start|>": True,
    "<|im_end|>": True,
    "<|vision_start|>": True,
    "<|vision_end|>": True,
    "<|image_pad|>": True,
    "<tool_call>": False,
    "</tool_call>": False,
    "<tool_response>": False,
    "</tool_response>": False,
    "<think>": False,
    "</think>": False,
}


def byte_alphabet() -> dict[int, str]:
    """Returns the printable character that stands for each byte (GPT-2's mapping), in id order.

    As in the releases an id is not its byte: printable bytes come first, "!" is id 0.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: chr(byte) for byte in printable}
    alphabet.update({byte: chr(256 + index) for index, byte in enumerate(hidden)})
    return alphabet


def merge_pairs() -> list[tuple[bytes, bytes]]:
    """Returns the merges in rank order as byte strings."""
    text = [pair.rsplit(" ", 1) for pair in MERGES.split("|")]
    pairs = [(a.replace("_", " ").encode(), b.replace("_", " ").encode()) for a, b in text]
    for pair in MERGES_HEX.split("|"):
        left, right = pair.split(" ")
        pairs.append((bytes.fromhex(left), bytes.fromhex(right)))
    known = {bytes([byte]) for byte in range(256)}
    for left, right in pairs:
        assert {left, right} <= known, (left, right)
        assert left + right not in known, (left, right)
        known.add(left + right)
    return pairs


MERGE_COUNT = len(merge_pairs())
CONTROL_ID = {name: 256 + MERGE_COUNT + i for i, name in enumerate(CONTROL_TOKENS)}
END_OF_TEXT = CONTROL_ID["<|endoftext|>"]
IM_END = CONTROL_ID["<|im_end|>"]
TOKEN_COUNT = 256 + MERGE_COUNT + len(CONTROL_TOKENS)


def _pre_tokenizer(pattern: str) -> dict[str, Any]:
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    return {"type": "Sequence", "pretokenizers": [split, level]}


def _added_token(name: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": name, **flags, "special": CONTROL_TOKENS[name]}


def tokenizer_json(pattern: str) -> dict[str, Any]:
    """Returns the content of tokenizer.json."""
    alphabet = byte_alphabet()

    def spell(data: bytes) -> str:
        return "".join(alphabet[byte] for byte in data)

    pairs = merge_pairs()
    vocab = {character: index for index, character in enumerate(alphabet.values())}
    vocab.update({spell(left + right): 256 + rank for rank, (left, right) in enumerate(pairs)})
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": CONTROL_ID[name], **_added_token(name)} for name in CONTROL_TOKENS],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": _pre_tokenizer(pattern),
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [[spell(left), spell(right)] for left, right in pairs],
        },
    }


def write_tokenizer(folder: Path, model_type: str) -> None:
    """Writes the tokenizer, its config, the generation config and the chat template."""
    family_3_5 = model_type.startswith("qwen3_5")
    pattern = PRETOKENIZE_3_5 if family_3_5 else PRETOKENIZE_3
    tokenizer_config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(CONTROL_ID[name]): _added_token(name) for name in CONTROL_TOKENS
        },
        "additional_special_tokens": [
            "<|im_start|>",
            "<|im_end|>",
            "<|vision_start|>",
            "<|vision_end|>",
        ],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 4096,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    generation_config = {
        "do_sample": True,
        "eos_token_id": [IM_END, END_OF_TEXT],
        "pad_token_id": END_OF_TEXT,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
    }
    for name, content in (
        ("tokenizer.json", tokenizer_json(pattern)),
        ("tokenizer_config.json", tokenizer_config),
        ("generation_config.json", generation_config),
    ):
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    template = Path(__file__).parent / "chat_template.jinja"
    (folder / "chat_template.jinja").write_bytes(template.read_bytes())
