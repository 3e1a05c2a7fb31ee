"""The corpus: mixes the generators, trains the tokenizer, packs windows of tokens.

Usage:
  python corpus.py tokenizer --out DIR
  python corpus.py windows --tokenizer DIR --out DIR --shards 400 --length 1024 --workers 15
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from pathlib import Path
from random import Random

import chat
import chat_format
import facts
import numpy as np
import stories
import tasks
import tools
from chat_format import PLAIN, PROMPT, Segments
from lexicon import Pools
from shape import VOCAB_SIZE

END = "<|endoftext|>"
SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>",
    "</tool_call>", "<tool_response>", "</tool_response>",
)  # fmt: skip
CONTROL = SPECIALS[:3]
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|"
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TRAIN = Pools(False)


def document(random: Random, pools: Pools = TRAIN) -> Segments:
    """One document of the training mixture."""
    pick = random.random()
    if pick < 0.26:
        return [(stories.tell(random, pools).text, PLAIN)]
    if pick < 0.28:
        lines = []
        for _ in range(random.randint(1, 8)):
            asked, answer = facts.question(random)
            lines.append(random.choice((f"Question: {asked}\nAnswer: {answer}", f"Q: {asked}\nA: {answer}", answer)))
        return [("\n\n".join(lines), PLAIN)]
    if pick < 0.30:
        return [("\n".join(tasks.arithmetic(random, pools).plain for _ in range(random.randint(2, 16))), PLAIN)]
    if pick < 0.36:
        return chat_format.render(chat.task_conversation(random, tasks.arithmetic(random, pools)))
    if pick < 0.48:
        return chat_format.render(chat.task_conversation(random, tasks.json_task(random, pools)))
    if pick < 0.51:
        return chat_format.render(chat.task_conversation(random, tasks.reading(random, pools)))
    if pick < 0.54:
        return chat_format.render(chat.task_conversation(random, tasks.copying(random, pools)))
    if pick < 0.76:
        return chat_format.render(chat.conversation(random, pools))
    return chat_format.render(*tools.conversation(random, pools))


def train_tokenizer(out: Path, documents: int, seed: int) -> None:
    """Trains the byte-level BPE and writes the tokenizer's files.

    Args:
        out: Folder to write.
        documents: How many documents to learn from.
        seed: Of the documents.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    random = Random(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=8,
        show_progress=False,
    )

    def texts() -> list[str]:
        found = []
        for _ in range(documents):
            text = "".join(part for part, _ in document(random))
            for special in SPECIALS:
                text = text.replace(special, "\n")
            found.append(text.replace(chat_format.CALL_RULES, ""))
        found.extend([chat_format.CALL_RULES] * 50)
        return found

    tokenizer.train_from_iterator(texts(), trainer)
    from tokenizers import AddedToken

    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROL])
    tokenizer.add_tokens(
        [AddedToken(t, special=False, normalized=False) for t in SPECIALS if t not in CONTROL]
    )
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    ids = {t: tokenizer.token_to_id(t) for t in SPECIALS}
    config = {
        "tokenizer_class": "Qwen2TokenizerFast",
        "model_max_length": 8192,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": END,
        "unk_token": None,
        "add_prefix_space": False,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "added_tokens_decoder": {
            str(i): {
                "content": t, "lstrip": False, "normalized": False, "rstrip": False,
                "single_word": False, "special": t in CONTROL,
            }
            for t, i in ids.items()
        },
    }  # fmt: skip
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    template = Path(__file__).with_name("chat_template.jinja").read_text()
    (out / "chat_template.jinja").write_text(template)
    generation = {
        "do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.95,
        "eos_token_id": [ids["<|im_end|>"], ids[END]], "pad_token_id": ids[END],
    }  # fmt: skip
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    print(f"{tokenizer.get_vocab_size()} entries, {ids}")


class Packer:
    """Fills windows [2, T + 2] with whole documents; only one longer than the rest is cut."""

    def __init__(self, tokenizer_folder: Path, length: int) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
        self.end = self.tokenizer.token_to_id(END)
        self.width = length + 2

    def encode(self, segments: Segments) -> np.ndarray:
        """Ids and loss classes [2, n] of a document with its end mark."""
        encoded = self.tokenizer.encode_batch([text for text, _ in segments], add_special_tokens=False)
        ids = [i for e in encoded for i in e.ids] + [self.end]
        classes = [c for e, (_, c) in zip(encoded, segments, strict=True) for _ in e.ids] + [PLAIN]
        return np.array([ids, classes], dtype=np.uint16)

    def windows(self, random: Random, count: int, pools: Pools) -> np.ndarray:
        """Packs `count` windows [count, 2, T + 2], best fit among a few open documents."""
        out = np.zeros((count, 2, self.width), dtype=np.uint16)
        out[:, 0] = self.end
        waiting: list[np.ndarray] = []
        for row in range(count):
            at = 0
            while at < self.width:
                while len(waiting) < 24:
                    waiting.append(self.encode(document(random, pools)))
                room = self.width - at
                best = max(
                    (i for i, d in enumerate(waiting) if d.shape[1] <= room),
                    key=lambda i: waiting[i].shape[1] if room < 400 else -i,
                    default=-1,
                )
                if best < 0:
                    if at:
                        shortest = min(range(len(waiting)), key=lambda i: waiting[i].shape[1])
                        piece = waiting.pop(shortest)[:, :room]
                    else:
                        piece = waiting.pop(0)[:, :room]
                else:
                    piece = waiting.pop(best)
                out[row, :, at : at + piece.shape[1]] = piece
                at += piece.shape[1]
        return out


def _shard(job: tuple[int, int, Path, Path, int, int]) -> int:
    index, seed, tokenizer, out, length, windows = job
    target = out / f"{index:05}.npy"
    if target.exists():
        return 0
    rows = Packer(tokenizer, length).windows(Random(f"{seed}/{index}"), windows, TRAIN)
    temporary = out / f"{index:05}.part"
    with temporary.open("wb") as file:
        np.save(file, rows)
    temporary.rename(target)
    return rows.shape[0] * length


def write_windows(args: argparse.Namespace) -> None:
    """Writes shards with all workers; ``done`` marks the end."""
    args.out.mkdir(parents=True, exist_ok=True)
    jobs = [
        (i, args.seed, args.tokenizer, args.out, args.length, args.windows)
        for i in range(args.shards)
    ]
    start, tokens = time.monotonic(), 0
    with multiprocessing.get_context("fork").Pool(args.workers) as pool:
        for i, n in enumerate(pool.imap_unordered(_shard, jobs)):
            tokens += n
            if i % 50 == 0 or i + 1 == len(jobs):
                seconds = time.monotonic() - start
                print(f"shard {i + 1}: {tokens / 1e6:.1f} M tokens in {seconds:.0f} s", flush=True)
    (args.out / "done").touch()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("tokenizer")
    first.add_argument("--out", type=Path, required=True)
    first.add_argument("--documents", type=int, default=40000)
    first.add_argument("--seed", type=int, default=1)
    second = commands.add_parser("windows")
    second.add_argument("--tokenizer", type=Path, required=True)
    second.add_argument("--out", type=Path, required=True)
    second.add_argument("--shards", type=int, default=400)
    second.add_argument("--windows", type=int, default=512)
    second.add_argument("--length", type=int, default=1024)
    second.add_argument("--workers", type=int, default=15)
    second.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.command == "tokenizer":
        train_tokenizer(args.out, args.documents, args.seed)
    else:
        write_windows(args)


if __name__ == "__main__":
    main()
