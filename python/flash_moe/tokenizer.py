"""Text to token ids and back, over the checkpoint's tokenizer.json.

DESIGN: the `tokenizers` library gets the file without its added tokens. So nothing that it encodes
    can become a control token; control tokens are split out here, and only where the caller says
    that the text may hold them. Decoding goes by bytes: each id is a byte string, and text leaves
    only in whole UTF-8 characters.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from .errors import ConfigError, FormatError
from .folder import Json, read_text

# Embedding tables are padded to a round number of rows: 243 rows in Qwen3.5, 465 in DeepSeek-V3.
PADDING_ROWS_MAX = 1023


@dataclass(frozen=True)
class ControlToken:
    """An added token: `special` ones vanish from decoded text, the others (`<think>`) are shown."""

    id: int
    text: str
    special: bool
    pattern: str


def byte_alphabet() -> dict[str, int]:
    """Returns the byte of each character of a byte-level vocabulary (GPT-2's mapping)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + index): byte for index, byte in enumerate(hidden)})
    return table


_BYTE_OF = byte_alphabet()
_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _control_token(entry: Json, path: Path) -> ControlToken:
    try:
        text, token_id = str(entry["content"]), int(entry["id"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{path}: added_tokens: wanted id and content, got {entry!r}") from error
    pattern = re.escape(text)
    if entry.get("single_word"):
        pattern = rf"(?<!\w){pattern}(?!\w)"
    pattern = (r"\s*" if entry.get("lstrip") else "") + pattern
    pattern += r"\s*" if entry.get("rstrip") else ""
    return ControlToken(token_id, text, bool(entry.get("special")), pattern)


def split_added_tokens(text: str) -> tuple[list[Json], str]:
    """Takes `added_tokens` out of the text of a tokenizer.json.

    The rest (tens of megabytes of vocabulary) is not parsed here.

    Args:
        text: the file's content.

    Returns:
        The entries, and the text with an empty list in their place.

    Raises:
        ValueError: when the text is no JSON around the key.
    """
    decoder = json.JSONDecoder()
    for match in re.finditer(r'"added_tokens"\s*:\s*(?=\[)', text):
        entries, end = decoder.raw_decode(text, match.end())
        return entries, text[: match.end()] + "[]" + text[end:]
    return [], text


class Tokenizer:
    """A checkpoint's tokenizer. Thread-safe.

    Attributes:
        size: count of ids, control tokens included; ids from here to the model's vocabulary are
            padding.
        control_tokens: control tokens by their text.
    """

    def __init__(self, folder: Path) -> None:
        """Reads tokenizer.json of a model folder.

        Raises:
            FormatError: when it is missing, damaged, or of a kind that is not known here.
        """
        path = folder / "tokenizer.json"
        if not path.exists():
            raise FormatError(
                f"{path}: missing; the folder needs the tokenizer.json of its release"
            )
        text = read_text(path)
        try:
            entries, text = split_added_tokens(text)
            tokens = [_control_token(entry, path) for entry in entries]
            self._fast = tokenizers.Tokenizer.from_str(text)
        except FormatError:
            raise
        except Exception as error:  # `tokenizers` raises bare Exception
            raise FormatError(f"{path}: not a tokenizer.json: {error}") from error
        self._fast.no_truncation()
        self._fast.no_padding()
        self.path = path
        self.control_tokens = {token.text: token for token in tokens}
        self._by_id = {token.id: token for token in tokens}
        self.size = max([self._fast.get_vocab_size() - 1, *self._by_id]) + 1
        longest_first = sorted(tokens, key=lambda token: -len(token.text))
        alternatives = "|".join(token.pattern for token in longest_first)
        self._control = re.compile(f"({alternatives})" if alternatives else "((?!))")
        self._byte_level = "ByteLevel" in str(self._fast.decoder)
        self._bytes: dict[int, bytes] = {}

    def check_vocab(self, vocab: int) -> None:
        """Raises FormatError when this cannot belong to a model of `vocab` embedding rows."""
        if self.size > vocab or vocab - self.size > PADDING_ROWS_MAX:
            raise FormatError(
                f"{self.path}: has {self.size} ids, the model's vocabulary {vocab}: "
                "the tokenizer belongs to another model"
            )

    def encode(self, text: str, *, control_tokens: bool = False) -> list[int]:
        """Returns the ids of a text, with no token added at its ends.

        Args:
            text: any text.
            control_tokens: whether control tokens spelled out in the text count as such. Off, they
                are plain text.

        Raises:
            ConfigError: when the text holds lone surrogates, so that it is no valid UTF-8.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"text is not valid UTF-8 at character {error.start} ({text[error.start]!r})"
            ) from error
        if not control_tokens:
            return self._encode_plain(text)
        ids: list[int] = []
        for piece, control in self.split_control(text):
            ids += self._encode_plain(piece) if control is None else [control]
        return ids

    def split_control(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Yields runs of plain text, with None, and the control tokens between, with their ids."""
        for index, piece in enumerate(self._control.split(text)):
            if index % 2:
                token = self.control_tokens.get(piece) or self.control_tokens[piece.strip()]
                yield piece, token.id
            else:
                yield piece, None

    def _encode_plain(self, text: str) -> list[int]:
        if not text:
            return []
        return list(self._fast.encode(text, add_special_tokens=False).ids)

    def token_bytes(self, token_id: int) -> bytes:
        """Returns the bytes of one id. They may be a part of a character.

        Raises:
            ConfigError: when there is no such id.
        """
        known = self._bytes.get(token_id)
        if known is not None:
            return known
        control = self._by_id.get(token_id)
        if control is not None:
            data = control.text.encode("utf-8")
        else:
            token = self._fast.id_to_token(token_id) if 0 <= token_id < self.size else None
            if token is None:
                raise ConfigError(
                    f"token id {token_id}: the tokenizer has ids 0 to {self.size - 1}"
                )
            data = self._spell(token)
        self._bytes[token_id] = data
        return data

    def _spell(self, token: str) -> bytes:
        if self._byte_level:
            if all(character in _BYTE_OF for character in token):
                return bytes(_BYTE_OF[character] for character in token)
            return token.encode("utf-8")
        if match := _BYTE_FALLBACK.fullmatch(token):
            return bytes([int(match[1], 16)])
        return token.replace("\u2581", " ").encode("utf-8")

    def is_special(self, token_id: int) -> bool:
        """True for the control tokens that decoded text leaves out."""
        token = self._by_id.get(token_id)
        return token is not None and token.special

    def control_id(self, text: str) -> int | None:
        """Returns the id of a control token, None when this vocabulary has no such token."""
        token = self.control_tokens.get(text)
        return token.id if token else None

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Returns the text of ids; bytes that are no UTF-8 become U+FFFD.

        Args:
            ids: token ids.
            skip_special: leaves special control tokens (`<|im_end|>`) out of the text.
        """
        data = (self.token_bytes(i) for i in ids if not (skip_special and self.is_special(i)))
        return b"".join(data).decode("utf-8", errors="replace")


class Detokenizer:
    """Turns ids into text one by one, never handing out half a character.

    The pieces joined are `Tokenizer.decode` of the ids. Not thread-safe.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        """Starts at the beginning of a text."""
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Returns the text that this id completes; empty while a character is still open."""
        if self._skip_special and self._tokenizer.is_special(token_id):
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """Returns what is left: U+FFFD when the text ends inside a character."""
        return self._decoder.decode(b"", final=True)
