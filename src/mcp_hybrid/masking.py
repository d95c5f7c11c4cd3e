"""URLs as they may be shown: without the passwords in them."""

from __future__ import annotations

import re
from typing import Final

MASK: Final = "***"

_END_OF_AUTHORITY: Final = re.compile(r"[/?#]")
_HOST: Final = re.compile(r"((\[[^\]]*\]|[^:\[\]]+)(:[0-9]*)?)?")
"""What an authority without credentials is: a host and its port, or nothing."""
_REDIS: Final = re.compile(r"(?i)rediss?:$")
_SECRET_PARAMETER: Final = re.compile(r"(?i)([?&][^=&#\s]*(?:pass|secret|token|credential)[^=&#\s]*=)[^&#\s'\"]*")


def masked(text: str) -> str:
    """Return `text` with the passwords of all URLs in it replaced, in their authority (RFC 3986, 3.2) and query.

    A password may hold an unescaped `@` or `:`, and in a URL that is malformed for it, a slash.
    """
    shown, rest = "", _SECRET_PARAMETER.sub(lambda found: found[1] + MASK, text)
    while "//" in rest:
        before, _, rest = rest.partition("//")
        size = _authority(before, rest)
        credentials, at, host = rest[:size].rpartition("@")
        user, colon, _ = credentials.partition(":")
        shown += f"{before}//{user}{colon}{MASK if colon else ''}{at}{host}"
        rest = rest[size:]
    return shown + rest


def _authority(before: str, rest: str) -> int:
    """Return how many characters of what follows the two slashes are credentials, host and port."""
    end = _END_OF_AUTHORITY.search(rest)
    size = end.start() if end is not None else len(rest)
    if not _REDIS.search(before) and ("@" in rest[:size] or _HOST.fullmatch(rest[:size])):
        return size
    # No host has such a name, and nothing behind a Redis has an `@`: what ends the authority so early is a password's.
    return max(size, rest.rfind("@") + 1)
