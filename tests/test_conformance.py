"""The official conformance suite, leg by leg, against the everything server in a real process (docs/conformance.md)."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from harness.tools import need

TOOL = Path(__file__).parent.parent / "tools" / "conformance.py"
LEGS: list[str] = [leg.name for leg in runpy.run_path(str(TOOL))["LEGS"]]
CHANGES = ("2025-11-25", "2026-07-28", "session-less")
"""The legs that run for every change: one for each route. The others run the same scenarios at other revisions."""

RUNS = 10
"""How many times in a row the largest leg runs for a release: what comes out must not depend on luck."""

pytestmark = [pytest.mark.outside, pytest.mark.once, pytest.mark.long]


@pytest.fixture
def npm() -> None:
    """Have the suite, which comes from npm."""
    need("npm")


@pytest.mark.usefixtures("npm")
@pytest.mark.parametrize(
    "leg", [leg if leg in CHANGES else pytest.param(leg, marks=pytest.mark.release) for leg in LEGS]
)
def test_the_suite_comes_out_as_documented(leg: str) -> None:
    come_out_as_documented(leg, 1)


@pytest.mark.release
@pytest.mark.usefixtures("npm")
def test_the_suite_comes_out_the_same_ten_times() -> None:
    come_out_as_documented("2025-11-25", RUNS)


def come_out_as_documented(leg: str, runs: int) -> None:
    done = subprocess.run(
        [sys.executable, TOOL, leg, "--runs", str(runs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
