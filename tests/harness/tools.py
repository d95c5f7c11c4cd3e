"""Programs that come from outside and are not everywhere."""

from __future__ import annotations

import os
import shutil

import pytest


def need(program: str) -> str:
    """Find a program; where the machine has none the test is skipped, but not in CI, which installs it."""
    found = shutil.which(program)
    if found is not None:
        return found
    if os.environ.get("CI"):
        pytest.fail(f"{program} is not installed, and CI must not skip what needs it")
    pytest.skip(f"{program} is not installed")
