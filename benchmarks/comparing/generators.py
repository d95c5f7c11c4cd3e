"""What drives a server: wrk where it is to be had, else a program of our own that does the same.

Both check every answer. A load with a single wrong one is no measurement.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from comparing.clients import PATH, WrongAnswerError
from comparing.installing import CACHE
from comparing.plans import Plan

OVERTIME = 60.0
"""Seconds a generator may take longer than it was told to."""
SCRIPT = Path(__file__).with_name("check.lua")
RESULT = "result "
"""What the line starts with that a generator writes at its end."""


@dataclass(frozen=True)
class Load:
    """What came of sending requests for a while."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    wrong: int
    """Answers that were not right, and connections that failed."""
    sample: str
    """What was wrong with one of them."""


class Generator(Protocol):
    """Sends requests on several connections, each one after another."""

    name: str

    def run(self, port: int, plan: Plan, connections: int, seconds: float) -> Load:
        """Send for so many seconds, of which wrk takes whole ones only.

        Raises:
            WrongAnswerError: An answer was not right, or none came.
        """
        ...


class Wrk:
    """Runs wrk, with one thread."""

    def __init__(self, program: str, version: str) -> None:
        self.name = f"wrk {version}"
        self._program = program

    def run(self, port: int, plan: Plan, connections: int, seconds: float) -> Load:
        """Run it with the script for this plan."""
        CACHE.mkdir(parents=True, exist_ok=True)
        script = CACHE / "plan.lua"
        script.write_text(lua(plan))
        duration = max(1, round(seconds))
        counts = ["-t", "1", "-c", str(connections), "-d", f"{duration}s", "--timeout", "20s"]
        return _run([self._program, *counts, "-s", str(script), f"http://127.0.0.1:{port}{PATH}"], duration)


class PythonGenerator:
    """Runs `generator.py`."""

    name = "generator.py"

    def run(self, port: int, plan: Plan, connections: int, seconds: float) -> Load:
        """Run it, telling it the plan."""
        order = {"port": port, "connections": connections, "seconds": seconds, "plan": asdict(plan)}
        script = Path(__file__).with_name("generator.py")
        return _run([sys.executable, str(script)], seconds, json.dumps(order))


def _run(command: list[str], seconds: float, told: str = "") -> Load:
    done = subprocess.run(command, input=told, capture_output=True, text=True, timeout=seconds + OVERTIME, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if done.returncode or not lines:
        raise WrongAnswerError(f"{Path(command[0]).name} failed: {done.stdout}{done.stderr}")
    load = Load(**json.loads(lines[-1].removeprefix(RESULT)))
    if load.wrong:
        raise WrongAnswerError(f"{load.wrong} of {load.requests} answers were wrong, such as: {load.sample}")
    return load


def lua(plan: Plan) -> str:
    """Write the script that has wrk follow a plan."""
    values: Mapping[str, Any] = {
        "PATH": PATH,
        "PIECES": plan.pieces,
        "HEADS": plan.headers,
        "EXPECTED": plan.expected,
    }
    return "\n".join([*(f"local {name} = {_lua(value)}" for name, value in values.items()), SCRIPT.read_text()])


def _lua(value: Any) -> str:
    if isinstance(value, str):
        assert value.isascii(), value  # then JSON's escapes are Lua's
        return json.dumps(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"[{_lua(key)}] = {_lua(each)}" for key, each in value.items()) + "}"
    if isinstance(value, tuple):
        return "{" + ", ".join(map(_lua, value)) + "}"
    return str(value)
