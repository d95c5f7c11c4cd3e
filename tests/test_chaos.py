"""Clients that behave notice nothing of those that do not, nor of workers that die; `benchmarks/` has the script."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.redis import RedisServer

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "chaos.py"
LONGEST = 600
"""Seconds a run may take on a machine that does much else."""
KINDS = ["stateless", "session", "progress", "modern", "elicitation", "GET stream", "HTTP/2"]

LONG = pytest.param(24, marks=pytest.mark.release)
"""Faults, one a second. With several workers each twelfth is a kill."""

pytestmark = [
    pytest.mark.process,
    pytest.mark.long,
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted in /proc"),
]


def chaos(faults_caused: int, *options: str) -> str:
    """Run it for so many faults; give what it printed."""
    minutes = str(faults_caused / 60)
    command = [sys.executable, str(SCRIPT), "--minutes", minutes, "--clients", "2", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n0 errors of the server's making" in done.stdout
    calls = {kind: re.search(rf"^{kind} +(\d+) ", done.stdout, re.MULTILINE) for kind in KINDS}
    assert all(found is not None and int(found[1]) > 0 for found in calls.values()), done.stdout
    faults = re.findall(r"^ +(\d+)  ", done.stdout.partition("faults\n")[2], re.MULTILINE)
    assert sum(map(int, faults)) == faults_caused
    return done.stdout


@pytest.mark.parametrize("faults", [8, LONG])
def test_a_fault_every_second_costs_nobody_else_an_error_and_nothing_is_left_over(faults: int) -> None:
    assert re.search(r", 0 lost by kills$", chaos(faults), re.MULTILINE)


@pytest.mark.parametrize("faults", [12, LONG])
def test_killed_workers_cost_the_calls_that_were_on_them_and_no_session(
    faults: int,
    shared_redis: RedisServer,  # asked for so that there is a redis-server; the script starts its own
) -> None:
    assert f"{faults // 12}  a worker is killed" in chaos(faults, "--workers", "3")


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.release)])
def test_the_wanted_number_serves_again_whenever_a_worker_is_killed(kills: int) -> None:
    command = [sys.executable, str(SCRIPT.with_name("chaos_master.py")), "--kills", str(kills), "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=4 * LONGEST, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in ("while they serve", "during a reload", "during a drain", "during a start"):
        assert f" killed {kind}" in done.stdout
