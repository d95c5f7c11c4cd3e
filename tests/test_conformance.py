"""The official conformance suite, leg by leg, against the everything server in a real process (docs/conformance.md)."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parent.parent / "tools" / "conformance.py"
LEGS: list[str] = [leg.name for leg in runpy.run_path(str(TOOL))["LEGS"]]

RUNS = {"2025-11-25": 10}
"""How many times in a row a leg is run, where it is not once: what comes out must not depend on luck."""

pytestmark = pytest.mark.process


@pytest.fixture
def npm() -> None:
    """Have the suite, which comes from npm: without it there is nothing to test, but the CI must not pass unnoticed."""
    if shutil.which("npm") is not None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail("npm was not found, and CI=true does not let the conformance suite be skipped: install Node.js")
    pytest.skip("npm was not found, and the conformance suite is an npm package: install Node.js")


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
