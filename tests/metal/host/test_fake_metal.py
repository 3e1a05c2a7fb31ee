"""The fake Metal finds every class of mistake that host code can make, and nothing in code that makes none."""

import subprocess

import pytest

# mistake -> what the program is told
HOST_ERRORS = {
    "unbound": 'turned: buffer(2) "n" is not set',
    "second_encoder": "a second encoder while one is open",
    "open_at_commit": "commit with an open encoder",
    "never_ended": "released without endEncoding",
    "encoding_after_end": "encoding after endEncoding",
    "commit_twice": "commit of a committed command buffer",
    "wait_before_commit": "waitUntilCompleted before commit",
    "handler_after_commit": "addCompletedHandler after commit",
    "no_pipeline": "dispatch without a pipeline state",
    "too_many_threads": "2048 threads per threadgroup",
    "empty_grid": "an empty grid",
    "offset_past_end": "offset past the end",
    "index_past_30": "index 31",
    "long_bytes": "length 4097",
    "misaligned_no_copy": "must be multiples of 16384",
    "empty_buffer": "length 0",
    "fast_maths": "the default is fast maths",
    "freed_early": "freed before it ran",
    "freed_object": "to a freed object",
}


def run(host, case: str, **settings: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [host.program("mistakes"), case],
        env=host.environment(**settings),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"FAKE_METAL_ORDER": "reverse"},
        {"FAKE_METAL_ORDER": "shuffled"},
        {"FAKE_METAL_RUN": "lazy"},
        {"FAKE_METAL_DELAY_US": "20000"},
    ],
    ids=lambda s: "-".join(s.values()) or "plain",
)
@pytest.mark.parametrize("case", ["right", "event"])
def test_right_code_is_right_however_the_device_behaves(host, case, settings):
    done = run(host, case, **settings)
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.startswith("right")


@pytest.mark.parametrize("case", sorted(HOST_ERRORS))
def test_mistakes_of_the_host_end_the_program(host, case):
    done = run(host, case)
    assert done.returncode == -6, done.stdout + done.stderr
    assert HOST_ERRORS[case] in done.stderr


def test_a_missing_barrier_shows_when_dispatches_are_reordered(host):
    assert run(host, "missing_barrier", FAKE_METAL_ORDER="reverse").returncode == 5


@pytest.mark.parametrize("settings", [{"FAKE_METAL_RUN": "lazy"}, {"FAKE_METAL_DELAY_US": "200000"}], ids=["lazy", "delay"])
def test_a_missing_wait_shows_when_the_device_is_late(host, settings):
    assert run(host, "missing_wait", **settings).returncode == 5


def test_an_event_that_nobody_signals_is_not_reached(host):
    done = run(host, "event_never_signalled", FAKE_METAL_RUN="lazy")
    assert done.returncode == 5
    assert "event not reached" in done.stdout


def test_an_injected_failure_is_an_error_of_the_command_buffer(host):
    done = run(host, "right", FAKE_METAL_FAIL="1")
    assert done.returncode == 4
    assert "injected by FAKE_METAL_FAIL" in done.stdout


def test_errors_in_a_kernel_s_source_reach_the_host(host):
    done = run(host, "broken_source")
    assert done.returncode == 3
    assert "undeclared identifier 'y'" in done.stdout


def test_nothing_is_left_of_objects_that_went_out_of_scope(host):
    done = run(host, "right")
    assert "buffers left: 0" in done.stdout
