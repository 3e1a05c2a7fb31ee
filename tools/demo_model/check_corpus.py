"""Checks that training text equals what the chat template renders, and prints token statistics.

Usage: python check_corpus.py TOKENIZER_FOLDER [documents]
"""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import chat
import chat_format
import corpus
import tasks
import tools
from lexicon import Pools
from transformers import AutoTokenizer


def main() -> int:
    """Returns 1 at the first difference."""
    folder = Path(sys.argv[1])
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 200
    tokenizer = AutoTokenizer.from_pretrained(folder)
    random, pools = Random(11), Pools(False)
    for _ in range(count):
        kind = random.randrange(3)
        declared = None
        if kind == 0:
            messages, declared = tools.conversation(random, pools)
        elif kind == 1:
            messages = chat.conversation(random, pools)
        else:
            messages = chat.task_conversation(random, tasks.json_task(random, pools))
        ours = "".join(text for text, _ in chat_format.render(messages, declared))
        theirs = tokenizer.apply_chat_template(messages, tools=declared, tokenize=False)
        if ours != theirs:
            print(f"rendered differently:\n{ours!r}\n{theirs!r}")
            return 1
        for thinking in (False, True):
            ours = chat_format.generation_prompt(messages[:-1], declared, thinking)
            theirs = tokenizer.apply_chat_template(
                messages[:-1], tools=declared, tokenize=False, add_generation_prompt=True,
                enable_thinking=thinking,
            )  # fmt: skip
            if ours != theirs:
                print(f"prompt differs:\n{ours!r}\n{theirs!r}")
                return 1
            whole = tokenizer(ours + "text", add_special_tokens=False)["input_ids"]
            parts = tokenizer(ours, add_special_tokens=False)["input_ids"]
            if whole[: len(parts)] != parts:
                print("the prompt's tokens depend on the answer")
                return 1
    packer = corpus.Packer(folder, 1024)
    text = tokens = padding = 0
    for _ in range(count):
        segments = corpus.document(random, pools)
        text += sum(len(t) for t, _ in segments)
        encoded = packer.encode(segments)
        tokens += encoded.shape[1]
        whole = tokenizer("".join(t for t, _ in segments), add_special_tokens=False)["input_ids"]
        padding += whole != encoded[0, :-1].tolist()
    print(f"{count} conversations equal; {text / tokens:.2f} characters a token, "
          f"{tokens / count:.0f} tokens a document, {padding} documents split elsewhere")  # fmt: skip
    rules = packer.encode([(chat_format.CALL_RULES, 1)]).shape[1]
    print(f"the tool rules are {rules} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
