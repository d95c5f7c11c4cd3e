"""A command on a terminal of its own, with the test at the keyboard."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

PATIENCE = 60.0
"""Seconds a command may take to show something, or to end."""

CTRL_D = "\x04"

_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """Runs a command on a pseudo-terminal; used as a context manager, which ends the command if it still runs.

    An `env` is all of the command's environment, but for what says how large the terminal is.
    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        self._written = b""
        self._passed = 0
        self._ours, theirs = pty.openpty()
        environ = {**(os.environ if env is None else env), "TERM": "xterm", "COLUMNS": "100"}
        try:
            self._process = subprocess.Popen(argv, cwd=cwd, env=environ, stdin=theirs, stdout=theirs, stderr=theirs)
        finally:
            os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._ours)

    @property
    def shown(self) -> str:
        """What was shown so far, without the codes that colour it and move about."""
        return _CODES.sub("", self._written.decode(errors="replace"))

    def until(self, text: str) -> None:
        """Wait until a text is shown, below what was waited for before."""
        until = time.monotonic() + PATIENCE
        while (at := self.shown.find(text, self._passed)) < 0:
            assert self._read(until), f"{text!r} was not shown:\n{self.shown}"
        self._passed = at + len(text)

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._ours, text.encode())

    def interrupt(self) -> None:
        """Send what ctrl-C sends."""
        self._process.send_signal(signal.SIGINT)

    def ended(self) -> int:
        """Wait for the end of the command, and give its exit code."""
        until = time.monotonic() + PATIENCE
        while self._read(until):
            pass
        return self._process.wait(PATIENCE)

    def _read(self, until: float) -> bool:
        """Read more of what is shown; false at its end, or if there is none in time."""
        readable, _, _ = select.select([self._ours], [], [], max(0, until - time.monotonic()))
        if not readable:
            return False
        with suppress(OSError):  # EIO: nobody is left on the other side
            chunk = os.read(self._ours, 65536)
            self._written += chunk
            return bool(chunk)
        return False
