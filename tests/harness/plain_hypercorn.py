"""A plugin for pytest: plain Hypercorn's defects are shown again when something has changed that they depend on.

What plain Hypercorn does is another project's. It matters where our server works around it: when `server/` changes,
when Hypercorn's version does, and for a release. A fingerprint of both is kept beside the tests. Once all
demonstrations have passed with another one, that is written there, to be committed.
"""

from __future__ import annotations

import os
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Final

import pytest

MARK: Final = "plain_hypercorn"
TESTS: Final = Path(__file__).parent.parent
SERVER: Final = TESTS.parent / "src" / "mcp_hybrid" / "server"
SHOWN: Final = TESTS / "plain_hypercorn_shown.txt"
"""The fingerprint with which all demonstrations last passed."""

TOTAL: Final = 17
"""How many demonstrations there are: part of them shows nothing of the rest."""

_OUTCOMES: Final[list[str]] = []


def fingerprint() -> str:
    """Return what the demonstrations depend on, as one word."""
    digest = sha256(version("hypercorn").encode())
    for module in sorted(SERVER.glob("*.py")):
        digest.update(module.name.encode() + module.read_bytes())
    return digest.hexdigest()[:16]


def needed() -> bool:
    """Whether the demonstrations must run."""
    known = SHOWN.read_text(encoding="utf-8").split() if SHOWN.exists() else []
    return os.environ.get("TESTS_TIER") == "all" or fingerprint() not in known


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the demonstrations out if nothing has changed."""
    marked = [item for item in items if item.get_closest_marker(MARK) is not None]
    if marked and not needed():
        config.hook.pytest_deselected(items=marked)
        items[:] = [item for item in items if item not in marked]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how a demonstration came out. Several processes that share the tests all report to the first."""
    if report.when == "call" and MARK in report.keywords:
        _OUTCOMES.append(report.outcome)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the new fingerprint, in the process that has all reports, if all demonstrations passed."""
    is_first = not hasattr(session.config, "workerinput")
    if is_first and len(_OUTCOMES) == TOTAL and set(_OUTCOMES) == {"passed"} and needed():
        SHOWN.write_text(f"{fingerprint()}\n", encoding="utf-8")
