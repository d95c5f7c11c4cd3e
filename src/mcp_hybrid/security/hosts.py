"""Host and Origin: what keeps a web page from talking to a server on its reader's own machine (DNS rebinding).

What the entries of the two settings mean is in `patterns`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final

from mcp_hybrid.errors import Cause, Fault
from mcp_hybrid.routing.head import Head
from mcp_hybrid.security.patterns import HostTable, OriginTable

_PORT: Final = re.compile(r":[0-9]{1,5}$")

_WRONG_HOST: Final = Fault(
    Cause.HOST_NOT_ALLOWED,
    "This server does not answer to that Host. The operator can add it to security.allowed_hosts.",
)
_WRONG_ORIGIN: Final = Fault(
    Cause.ORIGIN_NOT_ALLOWED,
    "Pages of that Origin may not use this server. The operator can add it to cors.allowed_origins, so that its pages "
    "can call the endpoint, or to security.allowed_origins, for what sends an Origin and is no page of another site.",
)


class HostPolicy:
    """The hosts and origins that are let in."""

    def __init__(self, hosts: Iterable[str], origins: Iterable[str], pages: Iterable[str] = ()) -> None:
        """Let in these. `pages` are origins whose pages may read answers; without a port they mean the usual one."""
        self._hosts = HostTable(hosts)
        self._origins = OriginTable(any_port=origins, exact=pages)

    def check(self, head: Head, *, addresses: bool = False) -> Fault | None:
        """Return the refusal of a request by its Host and Origin. An absent Origin is no browser's, and passes.

        `addresses` lets every IP address pass as a Host. A page can be made to mean another machine only by its name.
        """
        host = head.host or ""
        if host not in self._hosts and not (addresses and _is_address(host)):
            return _WRONG_HOST
        if head.origin is not None and head.origin not in self._origins:
            return _WRONG_ORIGIN
        return None


def _is_address(host: str) -> bool:
    name = _PORT.sub("", host)
    if name.startswith("[") != name.endswith("]"):
        return False
    try:
        return (ip_address(name.strip("[]")).version == 6) == name.startswith("[")
    except ValueError:
        return False
