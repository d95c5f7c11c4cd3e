"""The benchmark scripts run, and what they show holds on a small scale too."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from comparing import guard
from comparing.contenders import CONTENDERS, OURS, SDK, Family
from comparing.results import Figure, Part
from comparing.targets import TARGETS
from comparing.workloads import CALL, Can

from harness.redis import RedisServer
from harness.tools import need

pytestmark = pytest.mark.once

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

needs_cpu_time = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="CPU time is read from /proc")


@pytest.mark.process
@pytest.mark.measures
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
    def serving(_env: object) -> Iterator[tuple[int, int]]:
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
    r"1000 live sessions in one process +\+-?\d+ MiB RSS",
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


@pytest.mark.long
@pytest.mark.process
@pytest.mark.measures
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory and CPU time are read from /proc")
def test_what_sessions_cost_is_measured_to_the_last_figure(shared_redis: RedisServer) -> None:
    command = [sys.executable, str(BENCHMARKS / "sessions.py"), "--sessions", "1000", "--calls", "50"]
    done = subprocess.run([*command, "--restarted", "40"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(FIGURES), done.stdout
    for figure, line in zip(FIGURES, lines, strict=True):
        assert (found := re.match(figure, line)), line
        if (stage := re.search(r"bytes for an? (\w+) session", figure)) is not None:
            assert float(found[1]) <= BYTES[stage[1]], line


def compare(*options: str) -> tuple[str, list[str]]:
    """Compare by the cost of a call; give what was printed, and whom it names."""
    command = [sys.executable, str(BENCHMARKS / "compare.py"), "--quick", "--no-write", "--only", CALL.name, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, re.findall(rf" {CALL.name} +(\S+) +cpu_us [\d.]+ .*p99_ms [\d.]+", done.stdout)


@pytest.mark.long
@pytest.mark.process
@pytest.mark.measures
@needs_cpu_time
def test_a_comparison_with_one_peer_runs_to_its_end() -> None:
    _, compared = compare("--only", OURS.name, "--only", SDK[0].name)
    assert compared == [OURS.name, SDK[0].name]


@pytest.mark.release
@pytest.mark.outside
@pytest.mark.measures
@needs_cpu_time
def test_every_peer_is_set_up_and_compared_and_every_answer_is_right() -> None:
    need("npm")
    printed, compared = compare()
    assert compared == [each.name for each in CONTENDERS if Can.STATELESS in each.can]
    judged = [each.what for each in TARGETS if f"a {CALL.title}, against" in each.what and "hello" not in each.what]
    assert len(judged) > 4
    assert [
        title for title in judged if not re.search(rf"^{re.escape(title)} .*(held|missed)", printed, re.MULTILINE)
    ] == []


@pytest.mark.long
@pytest.mark.process
@pytest.mark.measures
@needs_cpu_time
def test_growth_is_measured_where_wrk_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "compare.py"), "--growth", "--quick", "--no-write", "--only", "workers"]
    env = {"PATH": str(tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"workers: (\d) +ours, call +cpu_us [\d.]+ .*p99_ms [\d.]+", done.stdout) == ["1", "2"]


def costs(ours: float, others: Mapping[str, float]) -> Part:
    figures = {OURS.name: ours, **others}
    return Part({}, {CALL.name: {name: {"cpu_us": Figure.of([cost])} for name, cost in figures.items()}}, {})


PEERS = [each.name for each in CONTENDERS if each.family is Family.PEER and Can.STATELESS in each.can]


@pytest.mark.parametrize(
    ("ours", "machine", "odd", "word"),
    [
        (112, 1, 1, "WORSE"),
        (108, 1, 1, "as it was"),
        (88, 1, 1, "better"),
        (224, 2, 1, "WORSE"),
        (200, 2, 1, "as it was"),
        (100, 1, 3, "as it was"),
        (112, 1, 3, "WORSE"),
    ],
)
def test_a_path_that_became_dearer_is_told_of_whatever_the_machine_and_one_peer_did(
    ours: float, machine: float, odd: float, word: str, tmp_path: Path
) -> None:
    recorded = tmp_path / "recorded.json"
    guard.record(costs(100, dict.fromkeys(PEERS, 200)), recorded)
    now = dict.fromkeys(PEERS, 200 * machine) | {PEERS[0]: 200 * machine * odd}
    assert [line.split("others")[1].strip() for line in guard.compare(costs(ours, now), recorded)] == [word]


def test_what_one_run_did_not_measure_stays_recorded_as_it_was(tmp_path: Path) -> None:
    recorded = tmp_path / "recorded.json"
    guard.record(costs(100, dict.fromkeys(PEERS, 200)), recorded)
    guard.record(Part({}, {}, {}), recorded)
    assert guard.compare(costs(150, {}), recorded) == []
    assert len(guard.compare(costs(150, {PEERS[0]: 200}), recorded)) == 1
