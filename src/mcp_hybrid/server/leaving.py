"""The end of a process whose tools still run.

A function in a thread cannot be stopped, and Trio waits for the task that waits for it. When all else has ended in
order, the process does not wait for what nobody waits for any more.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from contextlib import suppress

import structlog

log = structlog.get_logger()


def leave_at_once(code: int) -> None:
    """End this process now, as the interpreter would but for its threads: what was registered for its exit is run."""
    with suppress(Exception):
        atexit._run_exitfuncs()  # noqa: SLF001 - what the interpreter calls; `os._exit` does not
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)
