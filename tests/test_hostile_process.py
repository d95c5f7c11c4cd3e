"""One real server of a hostile program, and clients that behave: who else notices what its tools do."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import httpx2
import pytest

from harness import mcp
from harness.process import program, serve

BENCHMARKS: Final = Path(__file__).parent.parent / "benchmarks"
LONGEST: Final = 1200
"""Seconds a run may take on a machine that does much else."""
SETTINGS: Final = {"MCP_HYBRID_REQUEST_TIMEOUT": "2s", "MCP_HYBRID_LOG__LEVEL": "warning"}


@pytest.mark.process
@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("calls", [150, pytest.param(2000, marks=pytest.mark.release)])
def test_no_other_client_notices_what_hostile_tools_do(calls: int, tmp_path: Path) -> None:
    """How long others wait is the machine's as well: it is judged by `benchmarks/hostile.py` in its long form only."""
    options = ["--calls", str(calls), "--clients", "8", "--quiet", "1", "--pause", "0.05", "--longest-step", "1000"]
    command = [sys.executable, str(BENCHMARKS / "hostile.py"), *options, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "hostile.json").read_text())
    assert sum(sum(answers.values()) for answers in figures["answers"].values()) == calls
    assert figures["failures of clients that behave"] == figures["wrong"] == 0
    assert set(figures["latencies in ms"]) == {"all", "add", "in a thread", "progress", "told on GET", "asked"}
    assert all(latencies["meanwhile"]["calls"] > 0 for latencies in figures["latencies in ms"].values())


@pytest.mark.process
def test_abandoned_threads_do_not_keep_the_process_from_ending() -> None:
    with serve(program("hostile_tools"), env={**SETTINGS, "MCP_HYBRID_SERVER__DRAIN_TIMEOUT": "1s"}) as server:
        answer = httpx2.post(
            server.url, headers=mcp.headers(), content=mcp.body(mcp.tool("hang", {"seconds": 100})), timeout=60
        )
        assert answer.json()["error"]["code"] == -32603
        began = time.monotonic()
    assert time.monotonic() - began < 50, "it did not wait for the thread"
    assert "call abandoned" in server.log


@pytest.mark.process
def test_no_worker_is_lost_to_tools_that_exit() -> None:
    with serve(program("hostile_tools"), "--workers", "2", env=SETTINGS) as server:
        before = children(server.pid)
        for number in range(5):
            for kind in ("exit", "keyboard", "generator"):
                message = mcp.tool("raises", {"kind": kind}, id=number)
                answer = httpx2.post(server.url, headers=mcp.headers(), content=mcp.body(message), timeout=60)
                assert answer.json()["error"]["code"] == -32603
        assert children(server.pid) == before


def children(pid: int) -> set[str]:
    """Give the workers. Any thread of the master may have started them, so /proc is asked for their parent."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "stat").read_text().rpartition(")")[2].split()[1] == str(pid):
                found.add(folder.name)
    return found
