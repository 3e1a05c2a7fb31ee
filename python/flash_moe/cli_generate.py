"""`flash-moe generate` and `flash-moe score`."""

from __future__ import annotations

import argparse
import sys

from .cli_options import (
    add_common,
    add_engine,
    add_sampling,
    read_text_argument,
    sampling_options,
)
from .cli_report import add_report, reported_engine
from .completion import Completion
from .options import MAX_TOKENS_DEFAULT
from .session import Stream
from .terminal import DIM, ProgressLine, emit, emit_json, say, styled


def add_generate(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of generate."""
    parser.add_argument("prompt", nargs="?", help='text to continue; "-" reads stdin')
    parser.add_argument("--file", metavar="PATH", help="read the prompt from a file")
    parser.add_argument(
        "--control-tokens",
        action="store_true",
        help="control tokens spelled in the prompt (<|im_start|>) count as such",
    )
    parser.add_argument(
        "--logprobs", type=int, metavar="N", help="with --json: alternatives for each token"
    )
    parser.add_argument("--ignore-eos", action="store_true", help="generate past end tokens")
    add_common(parser)
    add_engine(parser)
    add_sampling(parser, str(MAX_TOKENS_DEFAULT))
    add_report(parser)


def run_generate(args: argparse.Namespace) -> int:
    """Continues a prompt on stdout."""
    prompt = read_text_argument(args.prompt, args.file, "the prompt")
    options = sampling_options(args)
    options["control_tokens"] = args.control_tokens
    options["ignore_eos"] = args.ignore_eos
    if args.logprobs is not None:
        options["logprobs"] = args.logprobs
    progress = ProgressLine("reading the prompt")
    options["progress"] = progress
    with reported_engine(args) as (engine, report):
        completion = _follow(engine.stream(prompt, **options), progress, shown=not args.json)
    if args.json:
        emit_json({**completion.to_dict(), **report})
    else:
        summarise(completion)
    return 0


def _follow(stream: Stream, progress: ProgressLine, *, shown: bool) -> Completion:
    with stream:
        try:
            for piece in stream:
                progress.clear()
                if shown:
                    emit(piece.text, end="")
        finally:
            progress.clear()
            if shown and stream.started:
                emit("")
        return stream.completion


def summarise(completion: Completion) -> None:
    """Says counts and rates, where a person reads stderr."""
    if not sys.stderr.isatty():
        return
    stats = completion.stats
    text = (
        f"[{stats.prompt_tokens} + {stats.completion_tokens} tokens, "
        f"prefill {stats.prefill_tokens_per_second:.1f}/s, "
        f"decode {stats.decode_tokens_per_second:.1f}/s, "
        f"{completion.finish_reason}{', LOSSY: ' + stats.lossy if stats.lossy else ''}]"
    )
    say(styled(text, DIM, sys.stderr))


def add_score(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of score."""
    parser.add_argument("text", nargs="?", help='text to score; "-" reads stdin')
    parser.add_argument("--file", metavar="PATH", help="read the text from a file")
    parser.add_argument("--tokens", action="store_true", help="list every token")
    add_common(parser)
    add_engine(parser)
    add_report(parser)


def run_score(args: argparse.Namespace) -> int:
    """Prints how likely the model finds a text."""
    text = read_text_argument(args.text, args.file, "the text")
    progress = ProgressLine("scoring")
    with reported_engine(args) as (engine, report):
        try:
            score = engine.score(text, progress=progress)
        finally:
            progress.clear()
        pieces = [engine.decode([token], skip_special=False) for token in score.token_ids]
    if args.json:
        content = {
            "perplexity": score.perplexity,
            "logprob": score.logprob,
            "tokens": len(score.token_ids),
            "token_ids": score.token_ids,
            "token_logprobs": score.logprobs,
        }
        emit_json({**content, **report})
        return 0
    if args.tokens:
        for piece, token, logprob in zip(
            pieces[1:], score.token_ids[1:], score.logprobs, strict=True
        ):
            emit(f"{logprob:9.4f}  {token:7d}  {piece!r}")
    emit(
        f"perplexity {score.perplexity:.4f}  logprob {score.logprob:.4f}  "
        f"tokens {len(score.token_ids)}"
    )
    return 0
