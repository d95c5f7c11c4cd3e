"""Has a worker end when its master has died, whatever its event loop does.

A master that is killed says nothing. A thread of its own sees the end of the control socket, as a tool may block the
loop. It gives the port back at once, so that a new server can start, and bounds the time that the worker has left. The
loop, as soon as it runs, drains as ever: calls that are running still get their answers within that time.

This is a thread and not Linux's PR_SET_PDEATHSIG: that signal kills at once, with every call that runs, and it is bound
to the thread of the master that started the process, which ends long before the master. What no thread can interrupt is
code that never lets go of the interpreter's lock, such as a regular expression that takes hours. Its siblings give the
port back even then: the socket is the same.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from mcp_hybrid.server.stopping import FORCE_AFTER, Stopping
from mcp_hybrid.telemetry.logs import flush_logs

_LOOK: Final = 5_000
"""Milliseconds between two looks at who the parent is, if the control socket does not tell."""
_SETTLE: Final = 0.02
_SETTLE_LOOKS: Final = 100
"""Seconds between looks, and their number, until the system names another parent after the socket has ended."""


class ParentWatch:
    """Watches the master of this process, from the start of the process on."""

    def __init__(self, control: socket.socket, master: int, listeners: Sequence[socket.socket]) -> None:
        """Watch the process `master`, which holds the other end of `control`.

        The descriptors are copied: whoever owns the originals may close them at any time.
        """
        self._master = master
        self._control = control.dup()
        self._listeners = [listener.dup() for listener in listeners]
        self._lock = threading.Lock()
        """Held while the listeners are used or closed, so that no other socket can have got their numbers."""
        self._stopping: Stopping | None = None
        threading.Thread(target=self._watch, name="parent watch", daemon=True).start()

    def serving(self, stopping: Stopping) -> None:
        """Note that requests are served from now on: until here the process just ends."""
        self._stopping = stopping

    def stop_listening(self) -> None:
        """Close the copies of the listening sockets: while they are open, the system goes on taking connections."""
        with self._lock:
            for listener in self._listeners:
                listener.close()
            self._listeners = []

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._control, 0)  # the end of the stream is told unasked; what can be read is the loop's
        while os.getppid() == self._master and not poll.poll(_LOOK):
            pass
        # The sockets of a process that dies are closed before its children get another parent.
        for _ in range(_SETTLE_LOOKS):
            if os.getppid() != self._master:
                break
            time.sleep(_SETTLE)
        self._give_back_the_port()
        if self._stopping is None:
            flush_logs()
            os._exit(0)
        self._stopping.bound(FORCE_AFTER)

    def _give_back_the_port(self) -> None:
        """Stop listening, for all that share the sockets: they are workers of the same master."""
        if os.getppid() == self._master:  # it has closed our socket, but lives: its other workers go on listening
            return
        with self._lock:
            for listener in self._listeners:
                with suppress(OSError):  # where a listening socket cannot be shut down, the loop closes it when it runs
                    listener.shutdown(socket.SHUT_RDWR)
        self.stop_listening()
