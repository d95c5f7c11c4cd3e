"""An answer as bytes of HTTP/1.1 (RFC 9112): its head, and how its body is framed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from h11 import LocalProtocolError

Headers = Iterable[tuple[bytes, bytes]]

_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FORBIDDEN: Final = re.compile(rb"[\x00\r\n\v\f]")
NO_BODY: Final = frozenset({204, 304})
"""What has no body, whatever an application says (RFC 9112, section 6.3)."""


class PlainAnswer:
    """One answer. What it is given must be in order: the head, parts of the body, the end.

    Raises:
        LocalProtocolError: The application has said something that cannot be said in HTTP.
    """

    __slots__ = ("_left", "begun", "done", "ends")

    def __init__(self, *, ends: bool) -> None:
        self.ends = ends
        """Whether the connection ends with it."""
        self.begun = False
        self.done = False
        self._left: int | None = None
        """How many bytes of body are to come. None: nobody knows, it is sent in chunks."""

    def head(self, status: int, headers: Headers) -> bytes:
        """Return the head of the answer."""
        if status < 200:
            raise LocalProtocolError(f"{status} is no answer's status")
        self.begun = True
        self._left = 0 if status in NO_BODY else None
        lines = [b"HTTP/1.1 %d \r\n" % status]
        for name, value in headers:
            _check(name, value)
            lower = name.lower()
            if lower == b"transfer-encoding":
                continue  # ours to say
            if lower == b"content-length" and status not in NO_BODY:
                self._left = _length(value)
            elif lower == b"connection":
                self.ends = self.ends or b"close" in value.lower()
                continue
            lines.append(b"%b: %b\r\n" % (name, value))
        if self._left is None:
            lines.append(b"transfer-encoding: chunked\r\n")
        if self.ends:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        return b"".join(lines)

    def body(self, data: bytes) -> bytes:
        """Return a part of the body."""
        if self._left is None:
            return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        self._left -= len(data)
        if self._left < 0:
            raise LocalProtocolError("Too much data for declared Content-Length")
        return data

    def end(self) -> bytes:
        """Return the end of the body."""
        if self._left:
            raise LocalProtocolError("Too little data for declared Content-Length")
        self.done = True
        return b"0\r\n\r\n" if self._left is None else b""


def _check(name: bytes, value: bytes) -> None:
    if not _is_name(name):
        raise LocalProtocolError(f"Illegal header name {name!r}")
    if _FORBIDDEN.search(value):
        raise LocalProtocolError(f"Illegal header value {value!r}")


@lru_cache(maxsize=1024)
def _is_name(name: bytes) -> bool:
    return _NAME.fullmatch(name) is not None


def _length(value: bytes) -> int:
    if not value.isdigit():
        raise LocalProtocolError("bad Content-Length")
    return int(value)
