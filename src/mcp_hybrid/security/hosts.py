"""Host and Origin: what keeps a web page from talking to a server on its reader's own machine (DNS rebinding).

An entry without a port matches any port; `*` matches everything. Both headers are compared without regard to case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from mcp_hybrid.errors import Cause, Fault
from mcp_hybrid.routing.head import Head

_PORT = re.compile(r":[0-9]{1,5}$")


class HostPolicy:
    """The hosts and origins that are let in."""

    def __init__(self, hosts: Iterable[str], origins: Iterable[str]) -> None:
        self._hosts = frozenset(_normal(host) for host in hosts)
        self._origins = frozenset(_normal(origin) for origin in origins)
        # A server sees the same few values for ever; the bound keeps a flood of others from growing it.
        self._host_allowed = lru_cache(maxsize=256)(lambda value: _matches(value, self._hosts))
        self._origin_allowed = lru_cache(maxsize=256)(lambda value: _matches(value, self._origins))

    def check(self, head: Head) -> Fault | None:
        """Return the refusal of a request by its Host and Origin. An absent Origin is no browser's, and passes."""
        if not self._host_allowed(head.host or ""):
            return Fault(
                Cause.HOST_NOT_ALLOWED,
                "This server does not answer to that Host. The operator can add it to security.allowed_hosts.",
            )
        if head.origin is not None and not self._origin_allowed(head.origin):
            return Fault(
                Cause.ORIGIN_NOT_ALLOWED,
                "Pages of that Origin may not use this server. The operator can add it to security.allowed_origins.",
            )
        return None


def _normal(entry: str) -> str:
    """Return an entry in the form that is compared: lower case, `:*` written as no port, no slash at the end."""
    return entry.strip().lower().rstrip("/").removesuffix(":*")


def _matches(value: str, allowed: frozenset[str]) -> bool:
    value = value.lower()
    return "*" in allowed or value in allowed or _PORT.sub("", value) in allowed
