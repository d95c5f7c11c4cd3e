"""What goes to the log while a block runs, ours (structlog) and everybody else's (the standard library's).

Also a plugin for pytest: a test finds no logger as an earlier one has left it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from structlog.testing import capture_logs


def pytest_runtest_setup() -> None:
    """Have loggers look their configuration up again. One that is cached would pass `capture_logs` by."""
    for name, module in list(sys.modules.items()):
        if name.startswith("mcp_hybrid"):
            logger = vars(module).get("log")
            if isinstance(logger, structlog.typing.BindableLogger):
                getattr(logger, "__dict__", {}).pop("bind", None)  # where structlog's proxy keeps what it has cached


class _Keeping(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.name}: {record.getMessage()}")


@contextmanager
def errors_logged() -> Iterator[list[str]]:
    """Give the lines of level error and above, once the block is over."""
    errors: list[str] = []
    others, root = _Keeping(), logging.getLogger()
    root.addHandler(others)
    try:
        with capture_logs() as ours:
            yield errors
    finally:
        root.removeHandler(others)
    errors += [f"mcp_hybrid: {line}" for line in ours if line["log_level"] in ("error", "critical")]
    errors += others.lines
