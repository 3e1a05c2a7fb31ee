"""Model folders by path, by hub id, and by what is not there; sizes as people write them."""

import sys
from types import SimpleNamespace

import pytest

from flash_moe import cli, errors
from flash_moe.folder import (
    LFS_POINTER,
    demo_model,
    find_download,
    hub_cache,
    read_json,
    resolve_model,
)
from flash_moe.sizes import format_bytes, parse_bytes


def download(hub, name, revision="0123abc", *, main=True):
    root = hub / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    if main:
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / "main").write_text(revision + "\n")
    return snapshot


def test_a_path_is_itself(tmp_path):
    assert resolve_model(tmp_path) == tmp_path
    assert resolve_model(str(tmp_path)) == tmp_path


def test_a_hub_id_is_its_snapshot(hub):
    snapshot = download(hub, "Qwen/Qwen3.5-35B-A3B")
    assert resolve_model("Qwen/Qwen3.5-35B-A3B") == snapshot
    assert find_download("Qwen/Qwen3.5-35B-A3B@0123abc") == snapshot
    assert find_download("Qwen/Qwen3.5-35B-A3B@other") is None


def test_a_single_snapshot_needs_no_reference(hub):
    snapshot = download(hub, "a/b", main=False)
    assert find_download("a/b") == snapshot
    download(hub, "a/b", "4567def", main=False)
    assert find_download("a/b") is None


def test_the_hub_moves_with_its_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "one"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "two"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "three"))
    assert hub_cache() == tmp_path / "one"
    monkeypatch.delenv("HF_HUB_CACHE")
    assert hub_cache() == tmp_path / "two" / "hub"
    monkeypatch.delenv("HF_HOME")
    assert hub_cache() == tmp_path / "three" / "huggingface" / "hub"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub_cache() == tmp_path / ".cache" / "huggingface" / "hub"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/model", "flash-moe pull org/model"),
        ("nowhere", "no such folder"),
        ("a/b/c", "no such"),
    ],
)
def test_what_is_not_there_says_what_to_do(hub, name, message):
    with pytest.raises(errors.ConfigError, match=message):
        resolve_model(name)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(errors.ConfigError, match="is a file"):
        resolve_model(tmp_path / "config.json")


def test_the_bundled_model_is_a_folder_or_an_error():
    try:
        folder = demo_model()
    except errors.ConfigError as error:
        folder, message = None, str(error)
    if folder is None:
        assert "no bundled model" in message
    else:
        assert (folder / "config.json").is_file()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (LFS_POINTER, "Git-LFS pointer"),
        (b"\xff", "not UTF-8 at byte 0"),
        (b"{", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[1]", "wanted a JSON object, got list"),
    ],
    ids=["missing", "lfs", "bytes", "cut", "deep", "list"],
)
def test_json_that_cannot_be_read_is_named(tmp_path, content, message):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(errors.FormatError, match=message) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("12GB", 12_000_000_000),
        ("12GiB", 12 << 30),
        ("1.5 GB", 1_500_000_000),
        (".5tib", 1 << 39),
        ("800 MB", 800_000_000),
        ("7kB", 7000),
        ("2G", 2_000_000_000),
        ("4096", 4096),
        ("12 b", 12),
        (4096, 4096),
    ],
)
def test_sizes_are_decimal_or_binary_as_written(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "size", ["", "GB", "12 XB", "-1GB", "1e9", "12GBs", "0", 0, -5, 1.5, None, True]
)
def test_what_is_no_size_is_refused(size):
    with pytest.raises(errors.ConfigError, match="memory"):
        parse_bytes(size)


def test_bytes_are_shown_short():
    shown = [format_bytes(n) for n in (0, 999, 1000, 12_345, 123_456_789, 5_400_000_000, 2e12)]
    assert shown == ["0 B", "999 B", "1.00 kB", "12.3 kB", "123 MB", "5.40 GB", "2.00 TB"]


def test_pull_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert cli.main(["pull", "org/model"]) == 2
    assert "pip install 'flash-moe[pull]'" in capsys.readouterr().err


def test_pull_prints_where_the_model_is(monkeypatch, capsys, hub):
    asked = {}

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        return str(download(hub, name))

    module = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    assert cli.main(["pull", "org/model@main"]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(resolve_model("org/model"))
    assert (asked["name"], asked["revision"]) == ("org/model", "main")
    assert "*.safetensors" in asked["allow_patterns"]


@pytest.mark.parametrize("error", [OSError("no route to host"), ValueError("bad id")])
def test_a_download_that_fails_is_one_line(monkeypatch, capsys, error):
    def snapshot_download(name, **options):
        raise error

    monkeypatch.setitem(
        sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download)
    )
    assert cli.main(["pull", "org/model"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert str(error) in captured.err
