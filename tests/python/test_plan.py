"""Expected speed from plain arithmetic, and the two measurements that it rests on."""

from types import SimpleNamespace

import pytest

from flash_moe import errors, machine
from flash_moe.cli_info import layer_forms
from flash_moe.plan import expected_speed

INFO = SimpleNamespace(moe_layers=10, expert_bytes=1_000_000, resident_bytes=100_000_000)


def speed(slots, drive_rate=1e9, memory_rate=1e10, slots_all=1000):
    plan = SimpleNamespace(slots=slots, slots_all=slots_all)
    return expected_speed(INFO, plan, 4, drive_rate, memory_rate)


def test_without_a_cache_the_drive_is_the_bound():
    got = speed(slots=40)
    assert got.expert_bytes_per_token == 40_000_000
    assert (got.hit_rate_low, got.hit_rate_high) == (0.04, 0.04)
    compute, read = 140e6 / 1e10, 0.96 * 40e6 / 1e9
    assert got.tokens_per_second_low == pytest.approx(1 / (compute + read))
    assert got.tokens_per_second_high == pytest.approx(1 / max(compute, read))


def test_neighbouring_tokens_help_once_two_of_them_fit():
    assert speed(slots=79).hit_rate_high == speed(slots=79).hit_rate_low
    assert speed(slots=80).hit_rate_high == pytest.approx(0.08 + 0.92 * 0.43)


def test_with_everything_cached_memory_is_the_bound():
    got = speed(slots=1000)
    assert (got.hit_rate_low, got.hit_rate_high) == (1.0, 1.0)
    assert got.tokens_per_second_low == got.tokens_per_second_high == pytest.approx(1e10 / 140e6)


def test_a_dense_model_has_no_slots():
    assert speed(slots=0, slots_all=0).hit_rate_low == 1.0


def test_measurements_are_above_zero(tmp_path):
    (tmp_path / "small").write_bytes(b"x" * 100)
    path = tmp_path / "large"
    path.write_bytes(bytes(8 << 20))
    assert machine.largest_file(tmp_path) == path
    assert machine.measure_memory(16 << 20) > 1e6
    read = machine.measure_drive(path, seconds=0.2)
    assert read["bytes_per_second"] > 1e3
    assert read["read_bytes"] == machine.PROBE_READ_BYTES
    assert machine.measure_drive(tmp_path / "small", seconds=0.1)["read_bytes"] == 4096


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(errors.IoError, match="gone"):
        machine.measure_drive(tmp_path / "gone")
    with pytest.raises(errors.IoError, match="no file"):
        machine.largest_file(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(errors.IoError, match="empty"):
        machine.measure_drive(tmp_path / "empty")


def test_a_drive_slower_than_the_time_given_still_has_a_rate(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    assert machine.measure_drive(path, seconds=0)["bytes_per_second"] > 0


def test_the_machine_is_described():
    this = machine.describe()
    assert this["cores"] >= 1
    assert this["memory_bytes"] > 1 << 28


def test_layers_that_are_stored_alike_are_told_together():
    def layer(full, form, bits):
        return SimpleNamespace(
            full_attention=full,
            mixer_format="bf16",
            experts=4,
            experts_format=form,
            expert_bits=bits,
            resident_bytes=10,
            expert_bytes=5,
        )

    info = SimpleNamespace(layer_info=[layer(False, "a", 4.5)] * 3 + [layer(True, "b", 8.5)])
    linear, full = layer_forms(info)
    assert (linear["layers"], linear["bytes"]) == ([0, 1, 2], 90)
    assert (full["layers"], full["experts_format"]) == ([3], "b")
