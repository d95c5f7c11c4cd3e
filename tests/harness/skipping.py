"""A plugin for pytest: where CI is set, a test that is skipped has failed.

What CI does not test nobody tests, and a skip is easily overlooked. `harness.tools.need` says which program is missing;
this is for whatever else makes a test skip itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from typing import Any, Final

import pytest

ALLOWED: Final = (
    # Debian's Chromium may be older. What the test shows is the browser's doing, and not ours.
    "this Chromium does not know local network access yet",
)
"""Reasons that CI cannot do anything about."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Look at what became of a test, or of what it was set up with."""
    report = yield
    _judge(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Look at what became of a module that skips itself."""
    report = yield
    _judge(report)
    return report


def _judge(report: Any) -> None:
    if not report.skipped or hasattr(report, "wasxfail") or not os.environ.get("CI"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = re.sub(r"^Skipped: ", "", reason)
    if reason in ALLOWED:
        return
    report.outcome = "failed"
    report.longrepr = f"skipped, which CI must not: {reason}"
