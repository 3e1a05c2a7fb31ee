"""Several prompts decoded as one step, so that they share each expert that is read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .completion import Completion, GenerationStats
from .generation import Answer
from .options import Request
from .session import Session

if TYPE_CHECKING:
    from .engine import Engine

# Sequences in one step; the next prompt joins when one ends.
BATCH_MAX = 8


@dataclass
class _Running:
    index: int
    session: Session
    answer: Answer
    prompt_tokens: int
    prefill_s: float
    decode_started: float


def generate_batch(
    engine: Engine, prompts: Sequence[list[int]], request: Request
) -> list[Completion]:
    """Answers several prompts; each answer is the one that its prompt gets alone.

    Args:
        engine: the engine.
        prompts: token ids.
        request: options for all of them.

    Returns:
        Completions in the order of the prompts.
    """
    results: list[Completion | None] = [None] * len(prompts)
    running: list[_Running] = []
    waiting = list(range(len(prompts)))[::-1]
    try:
        while waiting or running:
            while waiting and len(running) < BATCH_MAX:
                running.append(_start(engine, waiting.pop(), prompts, request))
            for entry in [entry for entry in running if entry.answer.finish_reason is not None]:
                results[entry.index] = _end(engine, entry)
                running.remove(entry)
            if running:
                _decode(engine, running)
    finally:
        for entry in running:
            entry.session.close()
    return [result for result in results if result is not None]


def _start(engine: Engine, index: int, prompts: Sequence[list[int]], request: Request) -> _Running:
    session = engine.session()
    try:
        ids = prompts[index]
        session.check_room(len(ids))
        answer = Answer(request, engine.tokenizer, ids, engine.info.context - len(ids) + 1)
        started = time.perf_counter()
        logits = session.first_logits(ids, request.progress)
        now = time.perf_counter()
        session.step(answer, logits)
    except BaseException:
        session.close()
        raise
    return _Running(index, session, answer, len(ids), now - started, now)


def _decode(engine: Engine, running: list[_Running]) -> None:
    tokens = [entry.answer.token_ids[-1] for entry in running]
    logits = engine.core.decode([entry.session.core for entry in running], tokens)
    for entry, row in zip(running, logits, strict=True):
        entry.session.fed_by_batch(row)
        entry.session.step(entry.answer, row)


def _end(engine: Engine, entry: _Running) -> Completion:
    entry.session.close()
    seconds = time.perf_counter() - entry.decode_started
    count = len(entry.answer.token_ids)
    return entry.answer.completion(
        GenerationStats(entry.prompt_tokens, count, entry.prefill_s, seconds, engine.lossy)
    )
