"""The command line on the real core: JSON from every command, timing tables, traces, plans."""

import argparse
import io
import json
import sys
from types import SimpleNamespace

import damage
import pytest

from flash_moe import cli

GENERATE = ("generate", "Hello world", "--max-tokens", 6, "--temperature", 0, "--ignore-eos")


@pytest.fixture
def run(capsys):
    """Returns a function that runs a command and returns what it wrote to stdout and stderr."""

    def call(*arguments):
        code = cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def model(checkpoint):
    return ("--model", checkpoint("hf_bf16"), "--threads", "1")


@pytest.fixture(scope="module")
def routes(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("routes") / "routes.npz"
    command = (*GENERATE, *model, "--record-routes", path)
    assert cli.main([str(a) for a in command]) == 0
    return path


COMMANDS = {
    "generate": ({"text", "token_ids", "finish_reason", "seed", "stats"}, GENERATE[1:]),
    "chat": ({"text", "token_ids", "finish_reason"}, ("--max-tokens", 3, "--seed", 1)),
    "score": ({"perplexity", "logprob", "tokens", "token_logprobs"}, ("Hello world",)),
    "plan": ({"plan", "expected"}, ("--memory", "1GB", "--no-measure")),
    "info": ({"model", "machine"}, ()),
    "pack": ({"path", "bytes", "files", "resumed"}, ("--to",)),
    "pull": ({"id", "path", "in_cache"}, ("org/model",)),
    "cache-sim": ({"lookups", "slots", "hit_rates"}, ("--slots", "8,16,32")),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prints_json(run, model, routes, monkeypatch, tmp_path, command):
    keys, arguments = COMMANDS[command]
    if command == "chat":
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hello\n")))
    hub = SimpleNamespace(snapshot_download=lambda name, **options: str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    if command == "cache-sim":
        arguments = (routes, *arguments)
    elif command == "pack":
        arguments = (*arguments, tmp_path / "pack", *model[:2])
    elif command == "info":
        arguments = model[:2]
    elif command != "pull":
        arguments = (*arguments, *model)
    out, err = run(command, *arguments, "--json")
    (line,) = out.splitlines()
    assert keys <= set(json.loads(line))
    assert err == ""


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_there_is_no_command_without_json(command):
    parser = argparse.ArgumentParser()
    cli.COMMANDS[command][1](parser)
    assert "--json" in parser.format_help()


def test_timing_accounts_for_all_of_the_time(run, model, tmp_path):
    out, _ = run(*GENERATE, *model, "--timing", "--json", "--trace", tmp_path / "t.json")
    report = json.loads(out)["timing"]
    names = [phase["name"] for phase in report["phases"]]
    assert names[-2:] == ["other", "python (sampling, text)"]
    assert {"attention", "delta net", "router", "experts", "wait for reads", "head"} < set(names)
    assert sum(phase["share"] for phase in report["phases"]) == pytest.approx(1, abs=0.02)
    assert report["decode_tokens"] == 5
    assert report["experts"]["misses"] > 0
    assert report["experts"]["read_bytes"] > 0
    experts = next(phase for phase in report["phases"] if phase["name"] == "experts")
    assert experts["bytes"] > 0
    assert experts["bytes_per_second"] < 1e12

    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert {"router", "experts", "head"} <= {event["name"] for event in spans}
    assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in spans)


def test_timing_is_a_table_beside_the_text(run, model):
    text, _ = run(*GENERATE, *model)
    out, err = run(*GENERATE, *model, "--timing")
    assert out == text
    rows = [line.split()[0] for line in err.splitlines()]
    assert rows[0] == "phase"
    assert "other" in rows
    for heading in ("ms/token", "share", "bytes", "GB/s", "of peak"):
        assert heading in err.splitlines()[0]


def test_a_trace_that_cannot_be_written_is_one_line(model, capsys, tmp_path):
    command = (*GENERATE, *model, "--trace", tmp_path / "no folder" / "t.json")
    assert cli.main([str(a) for a in command]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "t.json" in err


@pytest.mark.parametrize("name", ["hf_bf16", "mlx_mixed"])
def test_plan_and_info_read_headers_alone(run, checkpoint, tmp_path, name):
    folder = damage.copy(checkpoint(name), tmp_path / name)

    def read():
        out, _ = run("plan", "--memory", "1GB", "--no-measure", "--json", "--model", folder)
        plan = json.loads(out)["plan"]
        # What this interpreter takes by now is no property of the model.
        least = plan.pop("memory_bytes_min") - plan.pop("process_bytes")
        return plan, least, json.loads(run("info", "--json", "--model", folder)[0])["model"]

    want = read()
    for path in folder.glob("*.safetensors"):
        header, data = damage.read_header(path)
        damage.write_header(path, header, b"")
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size + len(data))  # a hole: there is nothing to read
    assert read() == want


def test_plan_expects_speed_from_measured_rates(run, checkpoint):
    folder = checkpoint("mlx_mixed")
    out, _ = run("plan", "--memory", "1GB", "--model", folder, "--json")
    expected = json.loads(out)["expected"]
    assert 0 < expected["tokens_per_second_low"] <= expected["tokens_per_second_high"]
    assert 0 <= expected["hit_rate_low"] <= expected["hit_rate_high"] <= 1
    assert min(expected["drive_bytes_per_second"], expected["memory_bytes_per_second"]) > 0


def test_plan_and_info_are_tables_for_people(run, checkpoint):
    folder = checkpoint("mlx_mixed")
    out, _ = run("plan", "--memory", "1GB", "--no-measure", "--model", folder)
    for row in ("resident weights", "expert slots", "bound", "least that works"):
        assert row in out
    out, _ = run("info", "--model", folder)
    for word in ("layers 0", "bits a weight", "CPU kernels", "backend metal: ", "drive"):
        assert word in out


def test_no_policy_beats_belady(run, routes):
    out, _ = run("cache-sim", routes, "--slots", "8,16,24,32", "--json")
    rates = json.loads(out)["hit_rates"]
    assert len(rates) >= 4
    best = rates["belady"]
    assert best == sorted(best)
    for name, rate in rates.items():
        assert all(r <= b + 1e-9 for r, b in zip(rate, best, strict=True)), name
    out, _ = run("cache-sim", routes, "--policy", "lru", "--slots", "8")
    assert out.split()[:2] == ["slots", "lru"]
