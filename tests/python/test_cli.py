"""The command line over the fake core: what goes where, exit codes, bad input."""

import io
import json
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from fake_core import FakeEngine

from flash_moe import cli, cli_chat, engine, errors, folder, routes
from flash_moe.markdown import MarkdownStyler
from flash_moe.options import GenerateOptions
from flash_moe.tokenizer import Tokenizer


@pytest.fixture
def core(checkpoint, monkeypatch):
    """The core that commands open; their model is a real tiny folder."""
    fake = FakeEngine(vocab=320)
    opened = SimpleNamespace(open=lambda path, options, progress: fake)
    module = SimpleNamespace(
        Engine=opened, EngineOptions=SimpleNamespace, CancelledError=errors.CancelledError
    )
    monkeypatch.setattr(engine, "_core", module)
    monkeypatch.setattr(folder, "demo_model", lambda: checkpoint("hf_bf16"))
    monkeypatch.setattr(engine, "demo_model", lambda: checkpoint("hf_bf16"))
    return fake


@pytest.fixture
def run(core, capsys):
    def call(*arguments):
        code = cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def stdin(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def test_generate_writes_the_text_and_nothing_else_to_stdout(run):
    code, out, err = run("generate", "Hello", "--max-tokens", 5, "--temperature", 0, "--ignore-eos")
    assert (code, err) == (0, "")
    code, text, _ = run(
        "generate", "Hello", "--max-tokens", 5, "--temperature", 0, "--ignore-eos", "--json"
    )
    content = json.loads(text)
    assert out == content["text"] + "\n"
    assert len(content["token_ids"]) == 5
    assert content["stats"]["prompt_tokens"] > 0


def test_the_same_seed_gives_the_same_text(run):
    arguments = ("generate", "Hello", "--seed", 7, "--max-tokens", 12, "--temperature", 1)
    assert run(*arguments) == run(*arguments)


def test_prompts_come_from_files_and_stdin(run, monkeypatch, tmp_path):
    options = ("--max-tokens", 4, "--temperature", 0)
    want = run("generate", "Hello", *options)
    (tmp_path / "p").write_text("Hello", encoding="utf-8")
    assert run("generate", "--file", tmp_path / "p", *options) == want
    stdin(monkeypatch, b"Hello")
    assert run("generate", "-", *options) == want


def test_score_prints_perplexity(run):
    code, out, _ = run("score", "Hello world")
    assert code == 0
    assert out.startswith("perplexity ")
    _, out, _ = run("score", "Hello world", "--json")
    content = json.loads(out)
    assert len(content["token_logprobs"]) == content["tokens"] - 1
    _, out, _ = run("score", "Hello world", "--tokens")
    assert len(out.splitlines()) == content["tokens"]


BAD = [
    (("generate", ""), "prompt is empty"),
    (("generate", "a\udcffb"), "not valid UTF-8"),
    (("generate",), "give the prompt"),
    (("generate", "a", "--file", "b"), "give the prompt"),
    (("generate", "--file", "/nowhere/at/all"), "cannot be read"),
    (("generate", "a", "--model", "/nowhere"), "no such folder"),
    (("generate", "a", "--model", "org/never-downloaded"), "not downloaded"),
    (("generate", "a", "--memory", "lots"), "is no size"),
    (("generate", "a", "--memory", "0"), "more than zero"),
    (("generate", "a", "--threads", "0"), "thread_count"),
    (("generate", "a", "--top-p", "2"), "top_p"),
    (("generate", "a", "--max-tokens", "0"), "max_tokens"),
    (("generate", "a", "--logit-bias", "[]"), "--logit-bias"),
    (("generate", "a", "--record-routes", "x.txt"), "routes are kept as"),
    (("score", "a"), "at least two tokens"),
    (("cache-sim", "/nowhere.tsv"), "no such file"),
    (("cache-sim", "/nowhere.csv"), "routes are kept as"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(b[0]) for b in BAD])
def test_bad_input_is_one_line_and_exit_code_2(run, hub, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("flash-moe: ")
    assert message in err


@pytest.mark.parametrize(
    "arguments", [("nothing",), ("generate", "--no-such"), ("generate", "--seed", "x")]
)
def test_wrong_usage_is_one_line_and_exit_code_2(core, capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_bytes_that_are_no_utf8_name_their_place(run, monkeypatch, tmp_path):
    stdin(monkeypatch, b"ab\xff")
    assert run("generate", "-") == (2, "", "flash-moe: stdin: is not valid UTF-8 at byte 2\n")
    (tmp_path / "p").write_bytes(b"\xc3")
    code, _, err = run("generate", "--file", tmp_path / "p")
    assert (code, "not valid UTF-8 at byte 0" in err) == (2, True)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (errors.IoError("read f at offset 4:\nwanted 8 bytes"), 2, "offset 4: wanted 8 bytes\n"),
        (errors.DeviceError("no metal"), 2, "no metal"),
        (errors.InternalError("bug"), 1, "please report"),
        (errors.CancelledError("x"), 130, "stopped"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_errors_become_exit_codes(run, core, error, code, text):
    core.error, core.fail_at = error, 2
    got, _, err = run("generate", "Hello", "--temperature", 0, "--ignore-eos")
    assert (got, len(err.splitlines())) == (code, 1)
    assert text in err


def test_help_and_version_go_to_stdout(capsys):
    for argument in ("--help", "--version"):
        with pytest.raises(SystemExit) as caught:
            cli.main([argument])
        assert caught.value.code == 0
        assert "flash-moe" in capsys.readouterr().out
    assert cli.main([]) == 2
    assert "generate" in capsys.readouterr().err


def test_timing_has_a_row_for_the_time_outside_the_core(run, core, monkeypatch):
    phase = SimpleNamespace(name="experts", ns=20_000, calls=4, bytes=80_000)
    stats = SimpleNamespace(
        lossy="4 of 10 experts",
        phases=[phase],
        step_ns=20_000,
        prefill_tokens=1,
        decode_tokens=3,
        expert_hits=6,
        expert_joined=1,
        expert_misses=1,
        read_bytes=1000,
        slots=5,
        cache_mode="slots",
        io_engine="threads",
        policy="lru",
    )
    monkeypatch.setattr(core, "stats", lambda: stats)
    _, out, err = run(
        "generate", "Hello", "--max-tokens", 3, "--timing", "--json", "--temperature", 0
    )
    report = json.loads(out)["timing"]
    assert err == ""
    experts, outside = report["phases"]
    assert experts["ms_per_token"] == pytest.approx(0.005)
    assert experts["bytes_per_second"] == pytest.approx(4e9)
    assert outside["ns"] == pytest.approx(report["wall_seconds"] * 1e9 - 20_000, abs=1)
    assert report["experts"]["hit_rate"] == 0.75
    _, out, err = run("generate", "Hello", "--max-tokens", 3, "--timing", "--temperature", 0)
    assert "phase" not in out
    for word in (
        "phase",
        "ms/token",
        "share",
        "GB/s",
        "of peak",
        "python (sampling, text)",
        "LOSSY",
    ):
        assert word in err


def test_routes_and_traces_are_written(run, core, monkeypatch, tmp_path):
    switches = []
    rows = [[0, 3, 1], [1, 2, 0]]
    monkeypatch.setattr(core, "record_routes", lambda on: switches.append(on), raising=False)
    logits = np.array([[-1, 2, 0, 3], [4, 1, 5, 0]], dtype=np.float32)
    monkeypatch.setattr(core, "take_routes", lambda: (rows, logits), raising=False)
    monkeypatch.setattr(core, "trace", lambda on: switches.append(on), raising=False)
    monkeypatch.setattr(core, "take_trace_json", lambda: '{"traceEvents": []}', raising=False)
    for ending in ("npz", "tsv", "jsonl"):
        path = tmp_path / f"r.{ending}"
        code, _, _ = run(
            "generate", "Hello", "--record-routes", path, "--trace", tmp_path / "t.json"
        )
        assert code == 0
        loaded = routes.load_routes(path)
        assert loaded.rows == rows
        assert (loaded.logits is None) == (ending != "npz")
        assert loaded.logits is None or (loaded.logits == logits).all()
    assert json.loads((tmp_path / "t.json").read_text()) == {"traceEvents": []}
    assert switches == [True, True, False, False] * 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "1\tx\n"),
        ("a.tsv", "1\n"),
        ("a.tsv", "1\t-2\n"),
        ("a.jsonl", "[1, 2\n"),
        ("a.jsonl", "5\n"),
        ("a.jsonl", '["a"]\n'),
        ("a.npz", "PK nonsense"),
    ],
)
def test_damaged_routes_are_named(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(errors.FormatError, match=name):
        routes.load_routes(tmp_path / name)


def test_routes_whose_lengths_do_not_add_up_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", lengths=np.array([2, 9]), values=np.arange(5))
    with pytest.raises(errors.FormatError, match="add up to 11"):
        routes.load_routes(tmp_path / "a.npz")
    np.savez(
        tmp_path / "b.npz", lengths=np.array([2]), values=np.arange(2), logits=np.zeros((3, 4))
    )
    with pytest.raises(errors.FormatError, match=r"logits \[3, 4\] for 1 rows"):
        routes.load_routes(tmp_path / "b.npz")


# --- Chat -----------------------------------------------------------------------------------------


@pytest.fixture
def talk(run, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def say(*lines, arguments=("--max-tokens", 6, "--temperature", 0)):
        stdin(monkeypatch, "".join(line + "\n" for line in lines).encode())
        return run("chat", *arguments)

    return say


def test_chat_answers_line_by_line_from_a_pipe(talk):
    code, out, _ = talk(
        "Hello", "", "And you?", arguments=("--max-tokens", 6, "--seed", 1, "--json")
    )
    answers = [json.loads(line) for line in out.splitlines()]
    assert (code, len(answers)) == (0, 2)
    assert all(len(a["token_ids"]) <= 6 for a in answers)


def test_chat_continues_lines_that_end_in_a_backslash(talk, core):
    seen = []
    original = FakeEngine.before_feed
    core.before_feed = lambda tokens: (seen.append(tokens), original(core, tokens))
    talk("one\\", "two", arguments=("--max-tokens", 1))
    assert sum(len(t) for t in seen) > 6
    assert talk("a\\")[0] == 0


def test_chat_commands_talk_on_stderr_only(talk):
    code, out, err = talk(
        "/help",
        "/system Be brief.",
        "/think hide",
        "/think off",
        "/clear",
        "/chats",
        "/quit",
        "never",
    )
    assert (code, out) == (0, "")
    assert "/save NAME" in err
    assert "system message set" in err
    assert "there are no saved chats" in err


def test_chats_are_saved_listed_and_resumed(talk, tmp_path):
    code, _, err = talk("Hello", "/save one", "/chats")
    assert code == 0
    assert err.splitlines()[-1] == "one"
    assert (tmp_path / "state/flash-moe/chats/one.json").exists()
    code, _, err = talk("/quit", arguments=("--resume", "one"))
    assert (code, "resumed one.json: 2 messages" in err) == (0, True)


def test_retry_answers_again(talk):
    code, out, _ = talk(
        "Hello", "/retry", arguments=("--json", "--max-tokens", 5, "--temperature", 0)
    )
    first, second = (json.loads(line) for line in out.splitlines())
    assert code == 0
    assert first["token_ids"] == second["token_ids"]


@pytest.mark.parametrize("line", ["/nothing", "/think maybe", "/load never", "/save a b", "/retry"])
def test_a_wrong_command_from_a_pipe_is_bad_input(talk, line):
    code, _, err = talk(line)
    assert (code, len(err.splitlines())) == (2, 1)


class Typed:
    """A terminal whose user types lines, or presses Ctrl-C (None)."""

    def __init__(self, lines):
        self.lines = iter(lines)

    def __call__(self, prompt=""):
        line = next(self.lines, EOFError)
        if line is EOFError:
            raise EOFError
        if line is None:
            raise KeyboardInterrupt
        return line


@pytest.fixture
def terminal(run, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(cli_chat, "_open_history", lambda: None)

    def say(*lines, arguments=()):
        monkeypatch.setattr("builtins.input", Typed(lines))
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
        return run("chat", "--temperature", 0, *arguments)

    return say


def test_at_a_terminal_wrong_commands_and_ctrl_c_do_not_end_the_chat(terminal):
    code, out, err = terminal("/nothing", None, "Hello", arguments=("--max-tokens", 4))
    assert code == 0
    assert "there is no command /nothing" in err
    assert out.strip()


def test_ctrl_c_stops_the_answer_not_the_program(terminal, core, checkpoint):
    tokenizer = Tokenizer(checkpoint("hf_bf16"))
    core.never = [i for i in range(tokenizer.size) if tokenizer.is_special(i)]
    core.error, core.fail_at = KeyboardInterrupt(), 5
    code, out, err = terminal("Hello", "Again", arguments=("--max-tokens", 12))
    assert code == 0
    assert "[stopped]" in err
    assert out.count("[thinking]") == 2


def answer(core, checkpoint, text):
    from flash_moe.chat_template import ChatTemplates

    tokenizer = Tokenizer(checkpoint("hf_bf16"))
    template = ChatTemplates(checkpoint("hf_bf16"), tokenizer).choose(tools=False)
    prompt = template.encode([{"role": "user", "content": "Hello"}])
    core.answer_with(len(prompt), tokenizer.encode(text, control_tokens=True))


REPLY = (
    "some thoughts\n</think>\n\nAn **answer**.\n\n<tool_call>\n<function=look>\n"
    "<parameter=at>\nit\n</parameter>\n</function>\n</tool_call><|im_end|>"
)


def test_thinking_is_marked_or_hidden_and_calls_are_shown(talk, core, checkpoint):
    answer(core, checkpoint, REPLY)
    _, out, _ = talk("Hello", arguments=("--temperature", 0))
    assert out == "[thinking]\nsome thoughts\n[answer]\nAn **answer**.\n[tool call] look(at='it')\n"
    _, out, _ = talk("Hello", arguments=("--temperature", 0, "--hide-thinking"))
    assert out == "An **answer**.\n[tool call] look(at='it')\n"


def test_colour_is_for_terminals_whose_user_wants_it(monkeypatch):
    from flash_moe.terminal import has_colour

    tty = SimpleNamespace(isatty=lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert has_colour(tty)
    assert not has_colour(SimpleNamespace(isatty=lambda: False))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not has_colour(tty)


MARKDOWN = "# Title\nsome **bold** and `code`\n```py\nx = **y**\n```\n2 * 3 ** lone\nend"


def test_markdown_is_styled_without_losing_a_character():
    import re

    for size in (1, 2, 3, 7, 100):
        styler = MarkdownStyler(enabled=True)
        pieces = [MARKDOWN[i : i + size] for i in range(0, len(MARKDOWN), size)]
        shown = "".join(styler.push(piece) for piece in pieces) + styler.finish()
        assert re.sub(r"\x1b\[[0-9]*m", "", shown) == MARKDOWN
        assert "\x1b[1m**bold**\x1b[0m" in shown
        assert "\x1b[36m`code`\x1b[0m" in shown
        assert "x = **y**" in shown
        assert shown.rstrip("end").count("\x1b[0m") > 0
    assert MarkdownStyler(enabled=False).push(MARKDOWN) == MARKDOWN


def test_every_option_of_the_api_is_an_option_of_the_command_line():
    parser = cli.build_parser()
    arguments = parser.parse_args(["generate", "x"])
    for name in GenerateOptions.__annotations__:
        assert name == "progress" or hasattr(arguments, name), name
    import inspect

    for name in inspect.signature(engine.engine_options).parameters:
        assert hasattr(arguments, name), name


def test_ctrl_c_is_left_to_python():
    """The command line installs no handler of its own: the core looks for Python's signals."""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
