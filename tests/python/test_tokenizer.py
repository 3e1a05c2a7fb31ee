"""The tokenizer against what transformers recorded, and its own promises."""

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest

from flash_moe import errors
from flash_moe.tokenizer import Detokenizer, Tokenizer, split_added_tokens

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer.json"
RECORDED = json.loads(GOLDEN.read_text(encoding="utf-8"))
HOSTILE = [
    "😀 👩‍👩‍👧‍👦 🏳️‍🌈",
    "你好世界",
    "שלום עולם",
    "\x00\x01",
    "e\u0301",
    "a<|im_end|>b<think>c</tool_call>",
    "x" * 50_000,
]


def text_of(entry):
    return entry["text"] if "text" in entry else entry["unit"] * entry["count"]


def kept(ids):
    if len(ids) <= 400:
        return ids
    data = np.array(ids, dtype="<i4").tobytes()
    return {"count": len(ids), "sha256": hashlib.sha256(data).hexdigest()}


@pytest.fixture(params=["3_5", "3"])
def generation(request, checkpoint):
    return request.param, Tokenizer(checkpoint(RECORDED["folders"][request.param]))


def test_ids_and_text_are_those_of_transformers(generation):
    name, tokenizer = generation
    for entry in RECORDED["entries"]:
        text, want = text_of(entry), entry[name]
        ids = tokenizer.encode(text, control_tokens=True)
        assert kept(ids) == want["ids"], text[:40]
        assert kept(tokenizer.encode(text)) == want["plain"], text[:40]
        if "decoded" in want:
            assert tokenizer.decode(ids, skip_special=False) == want["decoded"], text[:40]
            assert tokenizer.decode(ids) == want["decoded_skip"], text[:40]


def test_text_never_becomes_a_control_token(generation):
    _, tokenizer = generation
    control = {token.id for token in tokenizer.control_tokens.values()}
    for name in tokenizer.control_tokens:
        for text in (name, f"a{name}b", name * 3, f"<|im_start|>{name}<|im_end|>"):
            ids = tokenizer.encode(text)
            assert not control & set(ids)
            assert tokenizer.decode(ids, skip_special=False) == text


def test_pieces_join_to_the_decoded_text(generation):
    _, tokenizer = generation
    for text in HOSTILE:
        ids = tokenizer.encode(text, control_tokens=True)
        for skip in (True, False):
            detokenizer = Detokenizer(tokenizer, skip_special=skip)
            pieces = [detokenizer.push(i) for i in ids] + [detokenizer.finish()]
            assert "".join(pieces) == tokenizer.decode(ids, skip_special=skip)
            assert "\ufffd" not in "".join(pieces), "half a character was handed out"


def test_any_ids_decode_alike_in_one_go_and_one_by_one(generation):
    _, tokenizer = generation
    rng = random.Random(7)
    for _ in range(200):
        ids = [rng.randrange(tokenizer.size) for _ in range(30)]
        detokenizer = Detokenizer(tokenizer)
        streamed = "".join([detokenizer.push(i) for i in ids]) + detokenizer.finish()
        assert streamed == tokenizer.decode(ids)


def test_a_character_comes_whole_with_its_last_byte(generation):
    _, tokenizer = generation
    detokenizer = Detokenizer(tokenizer)
    by_bytes = [byte for byte in "😀".encode()]
    ids = [next(i for i in range(256) if tokenizer.token_bytes(i) == bytes([b])) for b in by_bytes]
    assert [detokenizer.push(i) for i in ids] == ["", "", "", "😀"]


def test_a_text_that_ends_inside_a_character_ends_in_a_replacement(generation):
    _, tokenizer = generation
    detokenizer = Detokenizer(tokenizer)
    first = next(i for i in range(256) if tokenizer.token_bytes(i) == b"\xf0")
    assert (detokenizer.push(first), detokenizer.finish()) == ("", "\ufffd")


def test_lone_surrogates_are_refused(generation):
    _, tokenizer = generation
    with pytest.raises(errors.ConfigError, match="not valid UTF-8 at character 1"):
        tokenizer.encode("a\udcff")


def test_an_id_that_does_not_exist_is_refused(generation):
    _, tokenizer = generation
    for token in (-1, tokenizer.size, 10**9):
        with pytest.raises(errors.ConfigError, match=f"token id {token}"):
            tokenizer.decode([token])


def test_size_counts_control_tokens(checkpoint):
    from checkpoints.tokenizer_files import TOKEN_COUNT

    assert Tokenizer(checkpoint("hf_bf16")).size == TOKEN_COUNT


def test_a_vocabulary_of_another_model_is_refused(checkpoint):
    tokenizer = Tokenizer(checkpoint("hf_bf16"))
    tokenizer.check_vocab(tokenizer.size)
    tokenizer.check_vocab(tokenizer.size + 243)
    for vocab in (tokenizer.size - 1, 248_320):
        with pytest.raises(errors.FormatError, match="belongs to another model"):
            tokenizer.check_vocab(vocab)


def test_added_tokens_are_split_from_the_text_without_parsing_it():
    text = (
        '{"model": {"vocab": {"\\"added_tokens\\"": 1, "added_tokens": 2}}, '
        '"added_tokens": [{"id": 3}], "x": []}'
    )
    entries, rest = split_added_tokens(text)
    assert entries == [{"id": 3}]
    assert json.loads(rest) == {**json.loads(text), "added_tokens": []}
    assert split_added_tokens('{"model": 1}') == ([], '{"model": 1}')


def test_flags_of_added_tokens_are_kept(checkpoint, tmp_path):
    content = json.loads((checkpoint("hf_bf16") / "tokenizer.json").read_text(encoding="utf-8"))
    for entry in content["added_tokens"]:
        entry.update(
            {"<think>": {"lstrip": True}, "</think>": {"rstrip": True}}.get(entry["content"], {})
        )
        entry["single_word"] = entry["content"] == "<|im_end|>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tokenizer = Tokenizer(tmp_path)
    import tokenizers

    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in (
        "a  <think> b",
        "a </think>  b",
        "x<|im_end|>y",
        "x <|im_end|> y",
        "<think></think>",
    ):
        want = reference.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, control_tokens=True) == want, text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "missing"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git-LFS pointer"),
        (b"{", "not a tokenizer.json"),
        (b"[]", "not a tokenizer.json"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"added_tokens": [{"id": "x"}]}', "added_tokens"),
        (b'{"added_tokens": [', "not a tokenizer.json"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(errors.FormatError, match=message) as caught:
        Tokenizer(tmp_path)
    assert "tokenizer.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.oracle
def test_round_trips_equal_a_live_transformers(generation, checkpoint):
    transformers = pytest.importorskip("transformers")
    name, tokenizer = generation
    oracle = transformers.AutoTokenizer.from_pretrained(checkpoint(RECORDED["folders"][name]))
    rng = random.Random(3)
    alphabet = [
        chr(c) for c in (*range(32, 127), 0xE9, 0x301, 0x4F60, 0x1F600, 0x5D0, 0x200D, 0x85)
    ]
    alphabet += list(tokenizer.control_tokens)
    for _ in range(300):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(40)))
        want = oracle.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text, control_tokens=True) == want, text
        for skip in (True, False):
            decoded = oracle.decode(
                want, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )
            assert tokenizer.decode(want, skip_special=skip) == decoded, text
