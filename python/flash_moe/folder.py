"""Finds model folders and reads their JSON files. Weights and their headers are the core's."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from .errors import ConfigError, FormatError

Json = dict[str, Any]

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


def demo_model() -> Path:
    """Returns the folder of the model that comes with the package.

    Raises:
        ConfigError: when this build has no bundled model.
    """
    folder = Path(__file__).parent / "models" / "demo"
    if not (folder / "config.json").is_file():
        raise ConfigError("this build has no bundled model: name a model folder (--model PATH)")
    return folder


def hub_cache() -> Path:
    """Returns the folder in which huggingface_hub keeps downloads, by its environment variables."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    base = os.environ.get("XDG_CACHE_HOME")
    root = Path(base).expanduser() if base else Path.home() / ".cache"
    return root / "huggingface" / "hub"


def find_download(hub_id: str) -> Path | None:
    """Returns the folder of a downloaded hub id, "org/name" or "org/name@revision", else None."""
    name, _, revision = hub_id.partition("@")
    root = hub_cache() / f"models--{name.replace('/', '--')}"
    reference = root / "refs" / (revision or "main")
    if reference.is_file():
        revision = reference.read_text(encoding="utf-8").strip()
    if revision:
        snapshot = root / "snapshots" / revision
        return snapshot if (snapshot / "config.json").is_file() else None
    # Without refs/main (a download of one revision) a single snapshot is unambiguous.
    found = [path.parent for path in root.glob("snapshots/*/config.json")]
    return found[0] if len(found) == 1 else None


def resolve_model(path_or_id: str | os.PathLike[str]) -> Path:
    """Returns the model folder for a path, or for a hub id that is already downloaded. No network.

    Raises:
        ConfigError: when there is no such folder; the message says what was tried.
    """
    text = os.fspath(path_or_id)
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ConfigError(f"model {text!r} is a file: name the folder that holds config.json")
    if _HUB_ID.fullmatch(text):
        if snapshot := find_download(text):
            return snapshot
        raise ConfigError(
            f"model {text!r}: no such folder, and not downloaded (looked in {hub_cache()}); "
            f"`flash-moe pull {text}` fetches it"
        )
    raise ConfigError(f"model {text!r}: no such folder")


def read_text(path: Path) -> str:
    """Returns the text of a file of a model folder.

    Raises:
        FormatError: when it is missing, a Git-LFS pointer, or not UTF-8.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from error
    if data.startswith(LFS_POINTER):
        raise FormatError(
            f"{path}: is a Git-LFS pointer, not the file; run `git lfs pull` in the folder"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: is not UTF-8 at byte {error.start}") from error


def read_json(path: Path) -> Json:
    """Returns the JSON object in a file.

    Raises:
        FormatError: when it is missing, no JSON, or no object.
    """
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise FormatError(f"{path}: is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path}: wanted a JSON object, got {type(content).__name__}")
    return content


def read_json_if_present(path: Path) -> Json:
    """Like `read_json`, but an absent file is an empty object."""
    return read_json(path) if path.exists() else {}
