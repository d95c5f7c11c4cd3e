"""A plugin for pytest: a test that fails shows what its servers said, as its reader has nothing else to go by."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

import pytest

from harness.process import ServerProcess

SHOWN: Final = 4000
"""Characters of each log, from its end."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Forget the servers that are none of the next test's."""
    ServerProcess.known[:] = [server for server in ServerProcess.known if not server.is_over]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the logs to the report of a failure."""
    report = yield
    if report.failed:
        report.sections += [(f"Log of {server.name}", server.log[-SHOWN:]) for server in ServerProcess.known]
    return report
