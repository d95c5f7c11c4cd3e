"""The benchmark scripts run, and what they show holds on a small scale too."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.redis import RedisServer

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_flood_of_initialize_is_answered_and_nothing_is_kept() -> None:
    command = [sys.executable, str(BENCHMARKS / "initialize_flood.py"), "--count", "500"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"answered with an id +(.+)", done.stdout) == ["500 (500 different ids)"] * 2
    assert re.findall(r"(?:refused|sessions held) +(\d+)", done.stdout) == ["0", "0"]
    assert len(re.findall(r"RSS .*MiB", done.stdout)) == 3


FIGURES = [
    r"300 live sessions in one process +\+\d+ MiB RSS",
    r"RSS for each of them +\d+ bytes",
    r"bytes for an offered session +-?[\d.]+",
    r"bytes for a live session +[\d.]+",
    r"bytes for a hibernating session +-?[\d.]+",
    r"ping in a live session, median +\d+ us",
    r"ping in a hibernating session, median +\d+ us",
    r"CPU of a stateless tools/call, median +\d+ us",
    r"CPU of a tools/call in a session, memory, median +\d+ us",
    r"CPU of a tools/call in a session, Redis, median +\d+ us",
    r"DELETE with two workers that share a Redis, median +[\d.]+ ms",
    r"sessions brought back a second \(40, one call each\) +\d+",
    r"the same calls a second, once they are live +\d+",
]


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory and CPU time are read from /proc")
def test_what_sessions_cost_is_measured_to_the_last_figure(shared_redis: RedisServer) -> None:
    command = [sys.executable, str(BENCHMARKS / "sessions.py"), "--sessions", "300", "--calls", "50"]
    done = subprocess.run([*command, "--restarted", "40"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(FIGURES), done.stdout
    for figure, line in zip(FIGURES, lines, strict=True):
        assert re.match(figure, line), line
