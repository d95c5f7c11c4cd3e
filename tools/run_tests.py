"""Runs one tier of the checks: `check` for every save, `test` for every change, `all` for a release.

    python tools/run_tests.py check
    python tools/run_tests.py test -k sessions -x      further arguments are pytest's

It says first how long the tier takes. mypy runs beside the tests. However the run ends, by ctrl-C too, no process that
it started is left: on Linux all descendants are found, orphans among them. A test that leaves one behind fails the run.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

GRACE = 15.0
"""Seconds that pytest has to end after ctrl-C, before it is killed with all that it started."""
SETTLE = 5.0
"""Seconds that processes have to end by themselves after a run."""

_SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER, prctl(2): orphans become children of this process instead of the system's first."""

IN_PROCESS = "not process and not redis and not outside and not release"


@dataclass(frozen=True)
class Tier:
    """What one command runs."""

    name: str
    takes: str
    """With two cores and everything installed; docs/testing.md has the figures."""
    marks: str
    """Which tests run, as an expression of pytest's `-m`."""
    workers: int
    """Processes that share the tests. More than cores, where tests wait more than they compute."""
    profile: str
    """The Hypothesis profile (tests/harness/properties.py)."""
    scripts: tuple[tuple[str, ...], ...] = ()
    """What runs after the tests, if they passed."""


CHECK = Tier("check", "100 seconds", IN_PROCESS, 2, "fixed")
TEST = Tier("test", "12 minutes", "not release", 4, "fixed", (("tools/check_wheel.py", "--quick"),))
ALL = Tier("all", "an hour", "", 4, "long", (("tools/check_wheel.py",), ("tools/newest_python.py",)))
TIERS = {tier.name: tier for tier in (CHECK, TEST, ALL)}


STARTED: dict[int, subprocess.Popen[bytes]] = {}
"""The processes that this one started itself, by their ids."""


class StoppedError(Exception):
    """A signal asked the run to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def main() -> int:
    """Run a tier. The exit code is 0 if all of it passed and no process was left running."""
    parser = argparse.ArgumentParser(description="Run one tier of the checks; further arguments are pytest's.")
    parser.add_argument("tier", choices=TIERS)
    options, arguments = parser.parse_known_args()
    tier = TIERS[options.tier]
    say(f"{options.tier}: takes about {tier.takes} on two cores")
    os.chdir(ROOT)
    adopt_orphans()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    started = time.monotonic()
    try:
        code = lint() or types_and_tests(tier, arguments)
        for script in tier.scripts:
            code = code or run(sys.executable, *script)
        code = report(running_after(SETTLE)) or code
    except StoppedError as stopped:
        say(f"{options.tier}: stopped by {stopped}")
        return stopped.exit_code
    finally:
        kill_descendants()
    say(f"{options.tier}: {'FAILED' if code else 'passed'} in {time.monotonic() - started:.0f} s")
    return code


def lint() -> int:
    """Look at style, which takes no time."""
    ruff = str(BIN / "ruff")
    return run(ruff, "check", "--quiet", ".") or run(ruff, "format", "--check", "--quiet", ".")


def types_and_tests(tier: Tier, arguments: Sequence[str]) -> int:
    """Run mypy beside the tests, and show what it found after them."""
    scripts = sorted(map(str, Path("benchmarks").glob("*.py")))
    with tempfile.TemporaryFile("w+") as found:
        mypy = start(str(BIN / "mypy"), "src", "tests", "tools", *scripts, output=found)
        code = tests(tier, arguments)
        wrong = wait(mypy)
        found.seek(0)
        say(f"mypy: {found.read().strip()}")
    return code or wrong


def tests(tier: Tier, arguments: Sequence[str]) -> int:
    """Run the tier's tests, shared among processes."""
    marks = ("-m", tier.marks) if tier.marks else ()
    shared = ("-n", str(tier.workers), "--dist", "loadgroup", "--no-loadscope-reorder")
    os.environ["TESTS_TIER"] = tier.name
    os.environ["HYPOTHESIS_PROFILE"] = tier.profile
    return run(sys.executable, "-m", "pytest", "-q", *shared, *marks, *arguments)


def run(*command: str) -> int:
    """Run a command to its end. When a signal stops the run, it has `GRACE` seconds to clean up after itself.

    A signal of the terminal's reaches it as well; it is sent again, for those that came to this process alone.
    """
    process = start(*command)
    try:
        return wait(process)
    except StoppedError:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # stopping has begun; a second signal must not interrupt it
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        with suppress(TimeoutError):
            wait(process, GRACE)
        raise


def start(*command: str, output: IO[str] | None = None) -> subprocess.Popen[bytes]:
    """Start a command that `wait` waits for; its output goes where this script's goes, or to a file."""
    process = subprocess.Popen(command, stdout=output, stderr=output and subprocess.STDOUT)
    STARTED[process.pid] = process
    return process


def wait(process: subprocess.Popen[bytes], within: float = math.inf) -> int:
    """Wait for a process, and meanwhile reap the orphans that were adopted: a test may look whether one has ended."""
    until = time.monotonic() + within
    while (code := process.poll()) is None:
        if time.monotonic() > until:
            raise TimeoutError
        reap()
        time.sleep(0.05)
    return code


def reap() -> None:
    """Reap ended children. Those that this process started itself keep their exit codes."""
    with suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if (process := STARTED.get(ended.si_pid)) is not None:
                process.poll()
            else:
                os.waitpid(ended.si_pid, 0)


def _stop(number: int, _frame: FrameType | None) -> None:
    raise StoppedError(number)


# Processes


def adopt_orphans() -> None:
    """Have every descendant stay one, however its parents end. Only Linux can; elsewhere orphans are not found."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def descendants() -> dict[int, str]:
    """Give the descendants that run, with their command lines."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(folder.name)] = int(parent)
    found: dict[int, str] = {}
    generation = {os.getpid()}
    while generation := {pid for pid, parent in parents.items() if parent in generation}:
        for pid in generation:
            with suppress(OSError):
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


def running_after(seconds: float) -> dict[int, str]:
    """Wait until no descendant runs, at most so long, and give those that do."""
    until = time.monotonic() + seconds
    while (left := descendants()) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def report(left: dict[int, str]) -> int:
    """Say which processes a test has left behind; the exit code is 1 if any."""
    for pid, command in left.items():
        say(f"left running by a test: {pid} {command}")
    return 1 if left else 0


def kill_descendants() -> None:
    """Kill all that still runs. Each round ends what the last one orphaned or a fork has added."""
    while left := descendants():
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
        reap()


def say(line: str) -> None:
    """Print a line before what the commands print."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
