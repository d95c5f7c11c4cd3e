"""The fuzzing script finds nothing in a short run; `benchmarks/README.md` says what a long one showed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "fuzz.py"
LONGEST = 900
"""Seconds a run may take on a machine that does much else."""


def fuzz(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted in /proc")
@pytest.mark.long
@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.release)])
def test_fuzzed_requests_and_frames_do_the_server_no_harm(count: int) -> None:
    done = fuzz("--requests", str(count), "--seed", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n0 findings" in done.stdout
    sent = re.search(r"^(\d+) items on (\d+) connections", done.stdout, re.MULTILINE)
    assert sent is not None
    assert int(sent[1]) >= count
    assert re.search(r"after: +\d+ descriptors", done.stdout), done.stdout


@pytest.mark.process
@pytest.mark.parametrize("number", ["0", "100"])
def test_one_connection_can_be_played_alone(number: str) -> None:
    done = fuzz("--seed", "1", "--only", number)
    assert done.returncode == 0, done.stdout + done.stderr
