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

RUNS = {"2025-11-25": 10}
"""How many times in a row a leg is run, where it is not once: what comes out must not depend on luck."""

pytestmark = [pytest.mark.process, pytest.mark.once]


@pytest.fixture
def npm() -> None:
    """Have the suite, which comes from npm."""
    need("npm")


@pytest.mark.usefixtures("npm")
@pytest.mark.parametrize("leg", LEGS)
def test_the_suite_comes_out_as_documented(leg: str) -> None:
    done = subprocess.run(
        [sys.executable, TOOL, leg, "--runs", str(RUNS.get(leg, 1))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
