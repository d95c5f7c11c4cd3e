"""The head of a plain HTTP/1.1 request, read by llhttp.

h11 reads a head in Python, which takes longer than all that Hypercorn and Trio do for a request. Nearly all heads are
alike: one of four methods, no body or one whose length is said, nothing to be negotiated. Those are read here, by the
parser of Node.js at its strictest. Whatever else there is, wrong or only rare, is not judged here but left to h11,
which answers it as it always has. So there is one reader for each request, and no lenience of either adds to the
other's.
"""

from __future__ import annotations

from typing import Final

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

_METHODS: Final = frozenset({b"POST", b"GET", b"DELETE", b"OPTIONS"})

_RARE: Final = frozenset({b"transfer-encoding", b"upgrade", b"expect", b"http2-settings"})
"""What has the connection or the body treated otherwise."""

_CONNECTION: Final = {b"keep-alive": False, b"close": True, b"": False}
"""What a client may ask of the connection, and whether it is to end with the answer."""


class PlainHead:
    """The head of one request. Made by `read_plain_head`."""

    __slots__ = ("complete", "headers", "method", "target")

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        """Names are lower case."""
        self.method = b""
        self.complete = False

    def on_url(self, url: bytes) -> None:
        """Take the target. Called by the parser, as are the others."""
        self.target = url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """Note that the head has its end."""
        self.complete = True


def read_plain_head(data: bytes) -> tuple[PlainHead, int, bool] | None:
    """Read a head, with the empty line at its end. None means that it is not plain, or wrong.

    Returns the head, how many bytes of body follow it, and whether its connection is to end with the answer.
    """
    head = PlainHead()
    parser = HttpRequestParser(head)
    try:
        parser.feed_data(data)
    except (HttpParserError, HttpParserUpgrade):
        return None
    head.method = parser.get_method()
    # Its own leniences: empty lines and spaces before the target. Other versions of HTTP have other rules.
    if not (
        head.complete
        and head.method in _METHODS
        and data.startswith(b"%b %b HTTP/1.1\r\n" % (head.method, head.target))
    ):
        return None
    names = dict(head.headers)
    if not _RARE.isdisjoint(names) or b"host" not in names:
        return None
    if len(names) != len(head.headers) and _repeated(head.headers):
        return None
    ends = _CONNECTION.get(names.get(b"connection", b"").lower())
    if ends is None:
        return None
    return head, int(names.get(b"content-length", b"0")), ends


def _repeated(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether a header is there twice that says where a request goes, how long it is or how it ends."""
    return any(sum(name == once for name, _ in headers) > 1 for once in (b"host", b"content-length", b"connection"))
