"""The connections of one process: how many there may be, and who gives way when there are as many.

A connection on which nothing runs costs its client nothing and the server a place. Where all places are taken, the
client with the most connections gives one up on which nothing runs, for one that has fewer: nobody keeps others out by
holding connections open. A client is an address, as for the other limits of anonymous callers.
"""

from __future__ import annotations

import resource
from typing import Final, Protocol

from mcp_hybrid.security.limits import Admission, Caller
from mcp_hybrid.security.owner import ANONYMOUS

_SHARE: Final = 0.8
"""The part of the process's open files that may be connections. The rest is for Redis, files, and what tools open."""


class Connection(Protocol):
    """One connection, as far as its place is concerned."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs on it."""
        ...


class Connections:
    """Who holds how many connections. No I/O, and nothing to wait for."""

    def __init__(self) -> None:
        self._held: dict[Caller, dict[Connection, None]] = {}
        """In the order in which they came."""
        self._callers: dict[Connection, Caller] = {}

    def __len__(self) -> int:
        return len(self._callers)

    def admit(self, connection: Connection, address: str, most: int) -> tuple[bool, Connection | None]:
        """Return whether there is a place among `most` (0: any number), and which connection has to give way for it.

        That one has no place any more. Its owner closes it.
        """
        caller = Admission.ticket(ANONYMOUS, (address, 0)).caller
        evicted = None
        if 0 < most <= len(self):
            evicted = self._evictable(caller)
            if evicted is None:
                return False, None
            self.remove(evicted)
        self._callers[connection] = caller
        self._held.setdefault(caller, {})[connection] = None
        return True, evicted

    def remove(self, connection: Connection) -> None:
        """Take a connection's place back, if it still has one."""
        caller = self._callers.pop(connection, None)
        if caller is not None:
            del self._held[caller][connection]
            if not self._held[caller]:
                del self._held[caller]

    def _evictable(self, newcomer: Caller) -> Connection | None:
        """Return the oldest idle connection of who has the most, if the newcomer would still have fewer."""
        most = max(self._held.values(), key=len)
        if len(self._held.get(newcomer, ())) + 1 >= len(most):
            return None
        return next((connection for connection in most if connection.is_idle), None)


def allowed_by_files(wanted: int) -> int:
    """Return how many connections there may be where `wanted` are configured: fewer where open files are too few."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if not wanted or files == resource.RLIM_INFINITY:
        return wanted
    return min(wanted, int(files * _SHARE))
