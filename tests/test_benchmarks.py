"""The benchmark scripts run, and what they show holds on a small scale too."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.redis import RedisServer

pytestmark = pytest.mark.once

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


@pytest.mark.parametrize(("growth", "code"), [(9, 0), (11, 1)])
def test_a_flood_that_makes_the_server_grow_is_a_failure(
    growth: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = runpy.run_path(str(BENCHMARKS / "initialize_flood.py"))
    main = script["main"]

    @contextmanager
    def serving() -> Iterator[tuple[int, int]]:
        yield 0, 0

    async def flood(_port: int, count: int, _connections: int) -> object:
        return script["Tally"](0, answered=count, ids=set(range(count)))

    async def count_sessions(count: int) -> tuple[object, int, int]:
        return await flood(0, count, 0), count, 0

    sizes = iter([(100 * 1024, 0), ((100 + growth) * 1024, 0)])
    for name, stand_in in [
        ("serving", serving),
        ("flood", flood),
        ("count_sessions", count_sessions),
        ("memory", lambda _pid: next(sizes)),
    ]:
        monkeypatch.setitem(main.__globals__, name, stand_in)
    monkeypatch.setattr("sys.argv", ["initialize_flood.py", "--count", "3"])
    assert main() == code, capsys.readouterr().out


FIGURES = [
    r"3000 live sessions in one process +\+-?\d+ MiB RSS",
    r"RSS for each of them +-?\d+ bytes",
    r"bytes for an offered session +(-?[\d.]+)",
    r"bytes for a live session +(-?[\d.]+)",
    r"bytes for a hibernating session +(-?[\d.]+)",
    r"ping in a live session, median +\d+ us",
    r"ping in a hibernating session, median +\d+ us",
    r"CPU of a stateless tools/call, median +\d+ us",
    r"CPU of a tools/call in a session, memory, median +\d+ us",
    r"CPU of a tools/call in a session, Redis, median +\d+ us",
    r"DELETE with two workers that share a Redis, median +[\d.]+ ms",
    *(
        figure
        for kind in ("memory", "Redis")
        for figure in (
            rf"sessions brought back a second, {kind} \(40, one call each\) +\d+",
            r"the same calls a second, once they are live +\d+",
            r"CPU to bring one back +[+-]\d+ us",
        )
    ),
]

BYTES = {"offered": 100, "live": 2048, "hibernating": 100}
"""What a session may cost in each stage of its life. The tables it was once in keep something of their size."""


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory and CPU time are read from /proc")
def test_what_sessions_cost_is_measured_to_the_last_figure(shared_redis: RedisServer) -> None:
    command = [sys.executable, str(BENCHMARKS / "sessions.py"), "--sessions", "3000", "--calls", "50"]
    done = subprocess.run([*command, "--restarted", "40"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(FIGURES), done.stdout
    for figure, line in zip(FIGURES, lines, strict=True):
        assert (found := re.match(figure, line)), line
        if (stage := re.search(r"bytes for an? (\w+) session", figure)) is not None:
            assert float(found[1]) <= BYTES[stage[1]], line
