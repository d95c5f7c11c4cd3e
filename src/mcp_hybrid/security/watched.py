"""A file that is read again when it has changed, so that what it says can change without a restart."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

import structlog

from mcp_hybrid.errors import ConfigurationError

log = structlog.get_logger("mcp_hybrid")

LOOK_EVERY: Final = 1.0
"""Seconds between two looks at the file, at the least."""

T = TypeVar("T")


class WatchedFile(Generic[T]):
    """What a file says now. One that cannot be read any more, or not be understood, goes on meaning what it did.

    Files are small and local: they are read where they are needed, without a thread.
    """

    def __init__(
        self, path: Path, parse: Callable[[str], T], what: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Read the file for the first time. `parse` raises ValueError for what it does not understand.

        Raises:
            ConfigurationError: It cannot be read or understood. `what` names its kind: "the API key file".
        """
        self._path = path
        self._parse = parse
        self._what = what
        self._clock = clock
        self._seen: object = None
        try:
            self._value = self._read()
        except ValueError as error:
            raise ConfigurationError(f"{what} {path} is not understood: {' '.join(str(error).split())}") from None
        except OSError as error:
            raise ConfigurationError(f"{what} {path} cannot be read: {error.strerror}") from None
        self._next_look = clock() + LOOK_EVERY

    @property
    def value(self) -> T:
        """What the file says, at most a second ago."""
        now = self._clock()
        if now >= self._next_look:
            self._next_look = now + LOOK_EVERY
            self._look()
        return self._value

    def _look(self) -> None:
        if self._mark() == self._seen:
            return
        try:
            self._value = self._read()
        except (ValueError, OSError) as error:
            words = "a file cannot be used; what it said before stays in force"
            log.error(words, file=self._what, path=str(self._path), error=str(error))  # noqa: TRY400 - no bug of ours
        else:
            log.info("a file that changed was read again", file=self._what, path=str(self._path))

    def _read(self) -> T:
        self._seen = self._mark()  # first: a change while it is being read is seen the next time
        return self._parse(self._path.read_text(encoding="utf-8"))

    def _mark(self) -> object:
        """Return what changes when the file does; it stays the same while the file is not there."""
        try:
            status = self._path.stat()
        except OSError as error:
            return error.errno
        return status.st_mtime_ns, status.st_size, status.st_ino
