"""`flash-moe chat`: a conversation at the terminal, or line by line from a pipe."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from .cli_generate import summarise
from .cli_options import (
    add_common,
    add_engine,
    add_sampling,
    read_tools,
    sampling_options,
)
from .cli_report import add_report, reported_engine
from .completion import Completion, Piece
from .conversation import Conversation
from .errors import ConfigError, Error
from .markdown import MarkdownStyler
from .options import GenerateOptions
from .session import Stream
from .terminal import (
    BOLD,
    DIM,
    RESET,
    ProgressLine,
    decode_utf8,
    emit,
    emit_json,
    has_colour,
    say,
    styled,
)

HELP = """\
/help               this text
/system TEXT        set the system message (empty: none)
/think on|off       ask the model to think first, or not to
/think show|hide    show its thinking dimmed, or not at all
/clear              forget the conversation, keep the system message
/retry              answer the last message again
/save NAME          save conversation and state
/load NAME          resume a saved one
/chats              list saved ones
/quit               leave (so does Ctrl-D)
A line that ends in \\ goes on in the next. Ctrl-C stops an answer."""
_NAME = re.compile(r"[\w.-]+")


def state_home() -> Path:
    """Returns the folder for history and saved chats ($XDG_STATE_HOME/flash-moe)."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".local" / "state") / "flash-moe"


def chat_path(name: str) -> Path:
    """Returns the file of a saved chat; a name with a slash is a path of its own.

    Raises:
        ConfigError: when it is no name.
    """
    if "/" in name:
        return Path(name).expanduser()
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name for a chat: use letters, digits, dots and dashes")
    return state_home() / "chats" / f"{name}.json"


def add_chat(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of chat."""
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument("--tools", metavar="FILE", help="JSON list of function schemas")
    parser.add_argument("--resume", metavar="NAME", help="go on with a saved chat")
    parser.add_argument("--think", choices=("on", "off"), help="default: as the template has it")
    parser.add_argument("--hide-thinking", action="store_true", help="do not show the thinking")
    add_common(parser)
    add_engine(parser)
    add_sampling(parser, "as many as the context holds")
    add_report(parser)


def run_chat(args: argparse.Namespace) -> int:
    """Talks until /quit or the end of stdin."""
    options = sampling_options(args)
    with reported_engine(args) as (engine, report):
        thinking = None if args.think is None else args.think == "on"
        conversation = Conversation(
            engine, args.system, read_tools(args.tools), enable_thinking=thinking
        )
        chat = Chat(conversation, options, as_json=args.json, show_thinking=not args.hide_thinking)
        if args.resume:
            chat.load(args.resume)
        chat.loop(sys.stdin.isatty())
        conversation.close()
    if args.json and report:
        emit_json(report)
    return 0


class Chat:
    """Reads lines, obeys those that begin with a slash, answers the others."""

    def __init__(
        self,
        conversation: Conversation,
        options: GenerateOptions,
        *,
        as_json: bool,
        show_thinking: bool,
    ) -> None:
        """Sets up; nothing is read yet."""
        self._conversation = conversation
        self._options = options
        self._json = as_json
        self._show_thinking = show_thinking
        self._commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: say(HELP),
            "system": self._system,
            "think": self._think,
            "clear": self._clear,
            "retry": self._retry,
            "save": self._save,
            "load": self.load,
            "chats": self._chats,
        }

    def loop(self, interactive: bool) -> None:
        """Answers line after line. Ctrl-C clears the line, or stops the answer."""
        history = _open_history() if interactive else None
        if interactive:
            say(styled("/help lists commands, Ctrl-D leaves", DIM, sys.stderr))
        try:
            while True:
                try:
                    line = _read_line(interactive)
                except KeyboardInterrupt:
                    if not interactive:
                        raise
                    say("")
                    continue
                if line is None or line.strip() in ("/quit", "/exit"):
                    return
                if line.strip():
                    self._handle(line, interactive)
        finally:
            if history is not None:
                history()

    def _handle(self, line: str, interactive: bool) -> None:
        try:
            if line.startswith("/"):
                name, _, rest = line[1:].strip().partition(" ")
                if name not in self._commands:
                    raise ConfigError(f"there is no command /{name}; /help lists them")
                self._commands[name](rest.strip())
            else:
                self.answer(line)
        except Error as error:
            # A pipe has nobody who could correct it.
            if not interactive:
                raise
            say(f"error: {' '.join(str(error).split())}")

    def answer(self, message: str | None) -> None:
        """Answers a message; Ctrl-C ends the answer, and what there is of it stays."""
        progress = ProgressLine("reading")
        options: GenerateOptions = {**self._options, "progress": progress}
        shown = Shown(self._show_thinking, progress) if not self._json else None
        with self._conversation.stream(message, **options) as stream:
            try:
                _follow(stream, shown)
            except KeyboardInterrupt:
                if not sys.stdin.isatty():
                    raise
            finally:
                progress.clear()
                if shown is not None:
                    shown.finish()
            completion = stream.completion
        self._after(completion)

    def _after(self, completion: Completion) -> None:
        if self._json:
            emit_json(completion.to_dict())
            return
        if completion.finish_reason == "cancelled":
            say(styled("[stopped]", DIM, sys.stderr))
        elif completion.finish_reason == "length":
            say(styled("[cut off: no more tokens allowed]", DIM, sys.stderr))
        summarise(completion)

    # --- Commands ---------------------------------------------------------------------------

    def _system(self, text: str) -> None:
        self._conversation.set_system(text)
        say("system message set" if text else "system message removed")

    def _think(self, how: str) -> None:
        if how in ("on", "off"):
            self._conversation.enable_thinking = how == "on"
        elif how in ("show", "hide"):
            self._show_thinking = how == "show"
        else:
            raise ConfigError("/think: wanted on, off, show or hide")
        say(f"thinking: {how}")

    def _clear(self, _: str) -> None:
        self._conversation.clear()
        say("conversation cleared")

    def _retry(self, _: str) -> None:
        messages = self._conversation.messages
        if not messages or messages[-1]["role"] != "assistant":
            raise ConfigError("/retry: there is no answer yet")
        dropped = messages.pop()
        try:
            self.answer(None)
        except Error:
            messages.append(dropped)
            raise

    def _save(self, name: str) -> None:
        path = chat_path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{path.parent}: cannot be made: {error.strerror}") from error
        self._conversation.save(path)
        say(f"saved {path}")

    def load(self, name: str) -> None:
        """Resumes a saved chat."""
        path = chat_path(name)
        if not path.is_file():
            raise ConfigError(f"{path}: no such saved chat")
        with_state = self._conversation.load(path)
        count = len(self._conversation.messages)
        note = "" if with_state else " (they will be read again)"
        say(f"resumed {path.name}: {count} messages{note}")

    def _chats(self, _: str) -> None:
        names = sorted(path.stem for path in (state_home() / "chats").glob("*.json"))
        say("\n".join(names) if names else "there are no saved chats")


class Shown:
    """An answer on the terminal: thinking dimmed, markdown lightly styled, tool calls in full."""

    def __init__(self, show_thinking: bool, progress: ProgressLine) -> None:
        """Starts before the first piece."""
        self._show_thinking = show_thinking
        self._progress = progress
        self._colour = has_colour(sys.stdout)
        self._markdown = MarkdownStyler(enabled=self._colour)
        self._kind = ""

    def piece(self, piece: Piece) -> None:
        """Shows one piece."""
        self._progress.clear()
        if piece.kind == "thinking" and not self._show_thinking:
            return
        if piece.kind != self._kind and (piece.text or piece.kind == "tool_call"):
            self._change(piece.kind)
        if piece.kind == "thinking":
            emit(piece.text, end="")
        elif piece.tool_call is not None:
            arguments = ", ".join(
                f"{name}={value!r}" for name, value in piece.tool_call.arguments.items()
            )
            emit(self._style(f"[tool call] {piece.tool_call.name}({arguments})", BOLD))
        else:
            emit(self._markdown.push(piece.text), end="")

    def _style(self, text: str, style: str) -> str:
        return f"{style}{text}{RESET}" if self._colour else text

    def _change(self, kind: str) -> None:
        self._leave()
        self._kind = kind
        if kind == "thinking":
            # Words beside the colour: colour alone carries no meaning.
            emit((DIM if self._colour else "") + "[thinking]")

    def _leave(self) -> None:
        if self._kind == "thinking":
            emit(RESET if self._colour else "", end="")
            emit("\n[answer]" if not self._colour else "\n")
        elif self._kind == "text":
            emit(self._markdown.finish())

    def finish(self) -> None:
        """Ends the last line and all styles."""
        if self._kind == "thinking":
            emit(RESET if self._colour else "")
        elif self._kind == "text":
            emit(self._markdown.finish())
        self._kind = ""


def _follow(stream: Stream, shown: Shown | None) -> None:
    for piece in stream:
        if shown is not None:
            shown.piece(piece)


def _read_line(interactive: bool) -> str | None:
    """Returns the next message, None at the end of input; a backslash at the end goes on."""
    lines: list[str] = []
    while True:
        if interactive:
            try:
                line = input("> " if not lines else ". ")
            except EOFError:
                say("")
                return None
        else:
            data = sys.stdin.buffer.readline()
            if not data:
                return "\n".join(lines) if lines else None
            line = decode_utf8(data, "stdin").rstrip("\r\n")
        if not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line[:-1])


def _open_history() -> Callable[[], None] | None:
    """Turns on line editing with a lasting history; returns what writes it, if there is one."""
    try:
        import readline
    except ImportError:
        return None
    path = state_home() / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            readline.read_history_file(path)
    except OSError as error:
        say(f"history {path}: {error.strerror}")
        return None
    readline.set_history_length(1000)

    def write() -> None:
        try:
            readline.write_history_file(path)
        except OSError as error:
            say(f"history {path}: {error.strerror}")

    return write
