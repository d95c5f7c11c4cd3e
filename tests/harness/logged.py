"""What goes to the log while a block runs, ours (structlog) and everybody else's (the standard library's)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from structlog.testing import capture_logs


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
