"""flash-moe bench: errors come before measurements, and every figure follows from what was counted.

Nothing here says how fast anything is.
"""

import json
import sys

import pytest
from test_synth import TINY

from flash_moe import bench, bench_plot
from flash_moe.bench import COLUMNS, Machine, Plan, Result, Run, Setting
from flash_moe.cli import main
from flash_moe.errors import ConfigError, FormatError
from flash_moe.plan import inspect
from flash_moe.synth import synthesise

RATES = Machine({1: 1e9, 2: 2e9}, {1: 1e6, 8: 4e6}, {1: 2e6}, 4096)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return synthesise(TINY, tmp_path_factory.mktemp("bench") / "tiny", layers=2).path


@pytest.fixture
def unmeasured(monkeypatch):
    """Fails the test when something is measured."""

    def measure(*_, **__):
        raise AssertionError("measured before the arguments were checked")

    monkeypatch.setattr("flash_moe.cli_bench.measure_machine", measure)


@pytest.fixture
def given_rates(monkeypatch):
    monkeypatch.setattr("flash_moe.cli_bench.measure_machine", lambda *_, **__: RATES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt-tokens", "many"], "--prompt-tokens: wanted numbers"),
        (["--prompt-tokens", "8,0"], "--prompt-tokens: wanted numbers"),
        (["--max-tokens", "-1"], "--max-tokens of 0 or more"),
        (["--repeats", "0"], "--repeats of 1 or more"),
        (["--prompt-tokens", "", "--max-tokens", "0"], "nothing to measure"),
        (["--drive-seconds", "0"], "--drive-seconds"),
        (["--memory", "12GB,much"], "'much' is no size"),
        (["--memory", "1MB"], "memory"),
        (["--cache", "slots,ram"], "--cache: known here are auto, slots, both, os, got 'ram'"),
        (["--isa", "sse9"], "--isa: known here are auto"),
        (["--results", "no/such/folder/x.tsv"], "there is no folder"),
        (["--plot", "picture.txt"], "wanted a name that ends in .png"),
        (["--model", "no/such/model"], "no such folder"),
    ],
)
def test_bad_arguments_end_before_anything_is_measured(capsys, unmeasured, arguments, message):
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_plot_without_matplotlib_says_what_to_install(capsys, monkeypatch, unmeasured, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", "--plot", str(tmp_path / "x.png")]) == 2
    assert "pip install 'flash-moe[plot]'" in capsys.readouterr().err


def test_a_hollow_model_is_not_measured(capsys, unmeasured, tmp_path):
    (tmp_path / "synth.json").write_text(json.dumps({"hollow": True}))
    (tmp_path / "config.json").write_text("{}")
    assert main(["bench", "--model", str(tmp_path)]) == 2
    assert "its experts are holes" in capsys.readouterr().err


def test_a_results_file_of_another_kind_is_not_touched(capsys, unmeasured, tmp_path):
    path = tmp_path / "results.tsv"
    path.write_text("a\tb\n")
    assert main(["bench", "--results", str(path)]) == 2
    assert f"{len(COLUMNS)} columns" in capsys.readouterr().err
    assert path.read_text() == "a\tb\n"
    with pytest.raises(FormatError):
        bench.append_rows(path, [])


def test_the_bound_is_the_slower_of_drive_and_memory():
    reads = Run(tokens=2, seconds=10.0, missed_bytes=8_000_000, touched_bytes=4_000, hit_rate=0.5)
    assert reads.bound_seconds(RATES) == pytest.approx(2.0)
    resident = Run(tokens=1, seconds=1.0, missed_bytes=4, touched_bytes=10**9, hit_rate=1.0)
    assert resident.bound_seconds(RATES) == pytest.approx(0.5)


def test_a_summary_holds_medians_and_spread():
    runs = [Run(10, seconds, 4_000_000, 0, 0.5) for seconds in (4.0, 2.0, 5.0)]
    result = Result(Setting("1GB"), "decode", 10, cold=False, runs=runs)
    summary = result.summary(RATES)
    assert summary["tokens_per_second"] == {"min": 2.0, "median": 2.5, "max": 5.0}
    assert summary["share_of_bound"] == pytest.approx(0.25)
    assert summary["bound_seconds_per_token"] == pytest.approx(0.1)
    assert summary["missed_bytes_per_token"] == pytest.approx(400_000)


def test_touched_bytes_are_all_weights_but_the_embedding_and_idle_experts(model):
    info = inspect(model)
    sizes = {
        name: entry["data_offsets"][1] - entry["data_offsets"][0]
        for name, entry in bench.safetensors_headers(bench.Path(model))
    }
    used = {name: size for name, size in sizes.items() if "embed_tokens" not in name}
    active = sum(
        size * TINY["num_experts_per_tok"] // TINY["num_experts"] if "switch_mlp" in name else size
        for name, size in used.items()
    )
    counted = bench.touched_bytes_per_token(bench.Path(model), info)
    assert counted == pytest.approx(active, rel=0.05)  # small tensors may be held as float32


def test_a_run_counts_tokens_bytes_and_hits(capsys, given_rates, model, tmp_path):
    table = tmp_path / "results.tsv"
    arguments = [
        "bench", "--model", model, "--prompt-tokens", "8,5", "--max-tokens", "4", "--repeats", "2",
        "--memory", "400MB,300MB", "--cold", "--json", "--results", str(table), "--note", "a\ttest",
    ]  # fmt: skip
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    found = {(r["setting"]["memory"], r["kind"], r["tokens"]): r for r in report["results"]}
    assert len(found) == len(report["results"]) == 6
    for one in found.values():
        assert one["runs"] == 2
        speed = one["tokens_per_second"]
        assert 0 < speed["min"] <= speed["median"] <= speed["max"]
        assert one["missed_bytes_per_token"] > 0  # from cold, something had to be read
    decode = found[("300MB", "decode", 4)]
    assert decode["timing"]["decode_tokens"] == 4
    assert decode["bound_seconds_per_token"] == pytest.approx(
        max(
            decode["missed_bytes_per_token"] / RATES.drive_rate,
            decode["touched_bytes_per_token"] / RATES.memory_rate,
        )
    )
    lines = [line.split("\t") for line in table.read_text().splitlines()]
    assert lines[0] == list(COLUMNS)
    assert [len(line) for line in lines] == [len(COLUMNS)] * 7
    row = dict(zip(lines[0], lines[-1], strict=True))
    assert (row["synthetic"], row["state"], row["runs"], row["note"]) == (
        "yes",
        "cold",
        "2",
        "a test",
    )
    assert row["model_hash"] == bench.model_hash(bench.Path(model))


def test_a_warm_run_in_memory_misses_nothing(capsys, given_rates, model):
    arguments = ["--prompt-tokens", "8", "--max-tokens", "3", "--repeats", "1", "--cache", "slots"]
    assert main(["bench", "--model", model, *arguments, "--memory", "400MB", "--timing"]) == 0
    out, err = capsys.readouterr()
    assert "of bound" in out
    assert "delta net" in err
    (decode,) = [line for line in out.splitlines() if line.startswith("decode 3 warm")]
    assert "100.0 %" in decode
    assert " 0 B " in decode


def test_an_interrupted_run_reports_what_it_has(capsys, given_rates, model, monkeypatch):
    once, calls = bench.Bench._once, []

    def stop_at_the_second(self, setting, rates):
        calls.append(setting)
        if len(calls) == 2:
            raise KeyboardInterrupt
        once(self, setting, rates)

    monkeypatch.setattr(bench.Bench, "_once", stop_at_the_second)
    arguments = ["--prompt-tokens", "4", "--max-tokens", "2", "--memory", "400MB", "--json"]
    assert main(["bench", "--model", model, *arguments]) == 130
    (prefill, decode) = json.loads(capsys.readouterr().out)["results"]
    assert (prefill["runs"], decode["runs"]) == (1, 1)
    monkeypatch.setattr(bench.Bench, "_once", lambda *_: stop_now())
    assert main(["bench", "--model", model, *arguments]) == 130


def stop_now():
    raise KeyboardInterrupt


def test_the_machine_is_measured_at_the_experts_size(model, monkeypatch):
    monkeypatch.setattr(bench, "DEPTHS", (1, 2))
    info = inspect(model)
    rates = bench.measure_machine(bench.Path(model), info, seconds=0.02)
    assert rates.record_bytes == info.expert_bytes
    assert rates.memory
    assert 1 in rates.buffered
    assert min([*rates.memory.values(), *rates.buffered.values()]) > 0


def test_settings_say_what_differs():
    assert str(Setting("4GB", "os")) == "memory 4GB, cache os"
    assert Plan().repeats == 3


def test_the_picture_shows_each_budget_and_its_bound(tmp_path):
    pytest.importorskip("matplotlib")
    runs = [Run(10, 2.0, 4_000_000, 10, 0.5)]
    summaries = [
        Result(Setting(memory), "decode", 10, cold=False, runs=runs).summary(RATES)
        for memory in ("1GB", "2GB")
    ]
    bench_plot.plot(tmp_path / "x.svg", "title", summaries)
    assert "tokens/s, decoding" in (tmp_path / "x.svg").read_text()


def test_a_picture_in_no_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no folder"):
        bench_plot.check_plot(tmp_path / "none" / "x.png")
