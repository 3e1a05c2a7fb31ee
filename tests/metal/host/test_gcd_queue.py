"""The read queue of Apple systems passes the cases of every read queue, over a libdispatch of our own."""

import subprocess


def test_the_read_queue_s_cases(host, tmp_path):
    done = subprocess.run(
        [host.native_test("io/test_read_queue.cpp")],
        env=host.environment(TMPDIR=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "io_uring" not in done.stdout
