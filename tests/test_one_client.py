"""One client takes what it can of a real server, and another one is not refused; `docs/limits.md` has the figures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mcp_hybrid.settings import LimitSettings

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "one_client.py"
LONGEST = 600
"""Seconds a run may take on a machine that does much else."""


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_one_client_does_not_take_the_server_from_another() -> None:
    command = [sys.executable, str(SCRIPT), "--seconds", "3", "--only", "listening", "--only", "parsing"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {line.split()[0]: int(line.split()[1]) for line in done.stdout.splitlines()[1:]}
    assert set(rows) == {"listening", "parsing"}
    assert rows["listening"] <= LimitSettings().streams_per_owner
