"""Writes log lines in a thread of its own, so that nobody who logs waits for whoever reads the log.

A reader may stop reading at any time: a log shipper that hangs, a terminal on which somebody pressed ctrl-S. Lines wait
in memory then, up to a bound. Beyond it new lines are dropped and counted. As soon as the log can be written again, a
line says how many are missing, in the place where they are missing. Lines keep the order in which they were logged.

For the caller a line is one append. The thread gathers the lines of a moment and writes them together, in pieces that
the system does not mix with those of other processes that write to the same pipe.
"""

from __future__ import annotations

import atexit
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Final, TextIO

LONGEST_QUEUE: Final = 4 * 1024 * 1024
"""Characters of lines that wait for being written. Beyond it lines are dropped, until half of it is free again."""
OVERHEAD: Final = 100
"""What a line counts for beside its characters: the object that holds it."""
GATHER: Final = 0.02
"""Seconds for which lines are gathered after a write. The first line after a pause is written at once."""
AT_EXIT: Final = 1.0
"""Seconds that the end of the process waits for the last lines to be written."""

Report = Callable[[int], str]
"""Makes the line that says how many are missing."""


class LogWriter:
    """Writes lines to one stream, in order, and never keeps who logs waiting."""

    def __init__(self) -> None:
        self._stream: TextIO | None = None
        self._report: Report = "{} log lines are missing".format
        self._on_drop: Callable[[], None] = _nothing
        self._start_over()
        os.register_at_fork(after_in_child=self._start_over)
        atexit.register(self.flush, AT_EXIT)

    def _start_over(self) -> None:
        """Have nothing to write, and no thread. After a fork, the parent writes the lines of the parent."""
        # Reentrant: a finalizer that logs may run anywhere, in here as well.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._lines: deque[str] = deque()
        self._size = 0
        self._dropping = False
        self._missing = 0
        """Lines that were dropped since the last one that was kept."""
        self._thread: threading.Thread | None = None
        self._asleep = False
        """Whether the thread waits for a line."""
        self._waiting = 0
        """Callers of `flush`."""
        self._kept = self._done = 0
        """Lines so far: those that were kept, and those of them that are written or cannot be."""

    def write_to(self, stream: TextIO, report: Report) -> None:
        """Write to this stream, which has a descriptor, from now on. `report` makes the line about missing ones."""
        if stream is not self._stream:
            self.flush(AT_EXIT)
        with self._lock:
            self._stream, self._report = stream, report

    def on_drop(self, hook: Callable[[], None]) -> None:
        """Have `hook` called for each line that is dropped, in the thread that logged it. It must not log."""
        self._on_drop = hook

    def write(self, line: str) -> None:
        """Have a line written. May be called in any thread. Never waits for the reader."""
        with self._lock:
            size = self._size + len(line) + OVERHEAD
            if self._dropping or size > LONGEST_QUEUE:
                self._drop_or_resume(size)
                if self._dropping:
                    return
                size = self._size + len(line) + OVERHEAD
            self._lines.append(line)
            self._size = size
            self._kept += 1
            if self._asleep:
                self._asleep = False
                self._changed.notify_all()
            starts = self._thread is None
            if starts:
                self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)
        if starts:
            self._start()

    def flush(self, timeout: float) -> bool:
        """Wait until the lines so far are written, at most so many seconds. Returns whether they are.

        Must not be called by a signal handler: it may have interrupted what it would wait for.
        """
        until = time.monotonic() + timeout
        if not self._lock.acquire(timeout=timeout):
            return False
        self._waiting += 1
        try:
            goal = self._kept
            while (self._done < goal or self._missing) and self._thread is not None:
                self._changed.notify_all()
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
            return self._done >= goal
        finally:
            self._waiting -= 1
            self._lock.release()

    def _drop_or_resume(self, size: int) -> None:
        """Drop a line; unless enough was written since the last one for more than a few to be kept."""
        if self._dropping and size <= LONGEST_QUEUE // 2:
            self._dropping = False
            self._say_what_is_missing()
        else:
            self._dropping = True
            self._missing += 1
            self._on_drop()

    def _say_what_is_missing(self) -> None:
        line = self._report(self._missing)
        self._lines.append(line)
        self._size += len(line) + OVERHEAD
        self._kept += 1
        self._missing = 0

    # The thread

    def _start(self) -> None:
        # Without the lock: the start waits for the new thread, in which a finalizer that logs may run before anything.
        thread = self._thread
        try:
            if thread is not None:
                thread.start()
        except RuntimeError:  # the system has no room for a thread: the next line tries again
            self._thread = None

    def _run(self) -> None:
        try:
            self._write_for_ever()
        except Exception:  # noqa: BLE001 - no memory for a line: those in hand are lost, the next starts another thread
            with self._lock:
                self._thread, self._asleep = None, False
                self._size = sum(len(line) + OVERHEAD for line in self._lines)
                self._done = self._kept - len(self._lines)

    def _write_for_ever(self) -> None:
        while True:
            for piece, lines, size in _pieces(self._take()):
                try:
                    with suppress(OSError, ValueError):  # the reader has gone, or the stream was closed: lines are lost
                        _write(self._stream, piece)
                finally:
                    self._note_done(lines, size)

    def _take(self) -> Iterable[str]:
        """Return all lines that wait, as soon as there are some: at once after a pause, else after a moment."""
        with self._lock:
            if self._done and not self._waiting:
                self._changed.wait_for(lambda: self._waiting, GATHER)
            while not self._lines:
                if self._missing:
                    self._dropping = False
                    self._say_what_is_missing()
                    break
                self._asleep = True
                self._changed.wait()
            self._asleep = False
            lines, self._lines = self._lines, deque()
        return lines

    def _note_done(self, lines: int, size: int) -> None:
        with self._lock:
            self._done += lines
            self._size -= size
            if self._waiting:
                self._changed.notify_all()


def _pieces(lines: Iterable[str]) -> Iterator[tuple[bytes, int, int]]:
    """Join lines to what a pipe takes in one piece, with their number and what they counted for; long ones alone."""
    piece, count, size = b"", 0, 0
    for line in lines:
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        if piece and len(piece) + len(data) > select.PIPE_BUF:
            yield piece, count, size
            piece, count, size = b"", 0, 0
        piece, count, size = piece + data, count + 1, size + len(line) + OVERHEAD
    if piece:
        yield piece, count, size


def _write(stream: TextIO | None, data: bytes) -> None:
    """Write to the stream's descriptor, and wait for as long as it takes.

    Raises:
        OSError: Nobody reads it any more, or it is full.
        ValueError: It is closed.
    """
    if stream is None:
        return
    rest = memoryview(data)
    while rest:
        number = stream.fileno()  # anew each time: a closed stream's number may be another file's by now
        try:
            rest = rest[os.write(number, rest) :]
        except BlockingIOError:  # who shares it has set it so
            poll = select.poll()
            poll.register(number, select.POLLOUT)
            poll.poll()


def _nothing() -> None:
    pass
