"""A plugin for pytest: what a test needs, said by marks, so that a tier can choose, and where it runs among several.

A test without a mark runs in process: it starts no program, and fails if it does. The marks are in pyproject.toml.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from typing import Any, Final

import pytest

IN_PROCESS: Final = "in process"

MARKS: Final = ("outside", "redis", "process")
"""What a test may need beyond this process, the most expensive first."""

REDIS_FIXTURES: Final = frozenset({"redis", "shared_redis"})
"""Fixtures that start a Redis: what uses one, directly or not, needs no mark of its own."""

GROUPED_SCOPES: Final = ("module", "class", "package", "session")

_ALONE: Final = "measures"
"""The group of the tests that measure: one at a time. The mark that puts a test there has the same name."""


class StartedPrograms:
    """The programs that this process has started, as Python's audit events tell."""

    def __init__(self) -> None:
        self.names: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen":
            self.names.append(str(arguments[0]))


_STARTED: Final = StartedPrograms()


def kind(item: pytest.Item) -> str:
    """Return the mark that says what a test needs, or `IN_PROCESS`."""
    return next((mark for mark in MARKS if item.get_closest_marker(mark) is not None), IN_PROCESS)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the expensive tests first, so that none of them is left over at the end, and group what shares a fixture."""
    for item in items:
        if REDIS_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.redis)
    order = (*MARKS, IN_PROCESS)
    items.sort(key=lambda item: (item.get_closest_marker("long") is None, order.index(kind(item))))
    for item in items:
        group = _group(item)
        if group is not None:
            item.add_marker(pytest.mark.xdist_group(group))


def _group(item: pytest.Item) -> str | None:
    """Return the name of the tests that must run in one process of several, if any.

    A fixture that lasts longer than a test, as a server does, would be made once in each process.
    """
    if item.get_closest_marker(_ALONE) is not None:
        return _ALONE
    return item.nodeid.partition("::")[0] if _shares_a_fixture(item) else None


def _shares_a_fixture(item: pytest.Item) -> bool:
    info = getattr(item, "_fixtureinfo", None)
    definitions: Sequence[Sequence[Any]] = () if info is None else list(info.name2fixturedefs.values())
    own = item.nodeid.partition("::")[0]
    return any(each[-1].scope in GROUPED_SCOPES and each[-1].baseid == own for each in definitions)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Forget what earlier tests have started."""
    _STARTED.names.clear()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, Any, pytest.TestReport]:
    """Fail a test that has started a program without a mark that says so: the quickest tier would run it."""
    report: pytest.TestReport = yield
    report.user_properties.append(("kind", kind(item)))
    if call.when == "call" and report.passed and kind(item) == IN_PROCESS and _STARTED.names:
        report.outcome = "failed"
        report.longrepr = f"started {_STARTED.names[0]}: mark the test with one of {', '.join(MARKS)}"
    return report
