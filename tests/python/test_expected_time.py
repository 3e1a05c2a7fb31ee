"""docs/METAL.md shows what benchmarks/expected_time.py prints, and that follows from the model."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def say(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/expected_time.py", *arguments],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def cells(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(start))
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture(scope="module")
def printed():
    return say()


def test_the_page_shows_what_the_script_prints(printed):
    assert printed in (ROOT / "docs/METAL.md").read_text(encoding="utf-8")


def test_an_expert_has_the_bytes_of_its_three_matrices(printed):
    # 1024 x 4096 weights, three times, at 4 bits and two 16-bit numbers for each 64.
    assert float(cells(printed, "| full attention")[4]) == round(3 * 1024 * 4096 * 4.5 / 8 / 1e6, 1)


def test_without_hits_a_token_reads_all_its_experts(printed):
    row = cells(printed, "| 10 | 0%")
    assert float(row[2]) == round(60 * 10 * 3 * 1024 * 4096 * 4.5 / 8 / 1e9, 2)
    assert float(row[3]) == pytest.approx(float(row[2]) / 17.5 * 1e3, rel=0.01)


def test_a_slower_drive_and_longer_waits_cost(printed):
    slow = say("--drive", "3.5", "--wait", "0.5")
    fast_row, slow_row = cells(printed, "| 10 | 50%"), cells(slow, "| 10 | 50%")
    assert float(slow_row[4]) < float(fast_row[4]) / 3
    assert float(slow_row[5]) < float(slow_row[4])
