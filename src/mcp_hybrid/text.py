"""Text that somebody else chose, cut to what a log line, a metric or a listing has room for."""

from __future__ import annotations

from typing import Final

SHORT: Final = 128
"""Characters of a name in a log line or a listing."""
_CUT: Final = "\N{HORIZONTAL ELLIPSIS}"


def short(text: str, limit: int = SHORT) -> str:
    """Return a text, or its beginning if it has more than `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + _CUT


def short_traceback(text: str, limit: int, line_limit: int) -> str:
    """Return a traceback of at most about `limit` characters: its beginning and its end, which say the most."""
    if len(text) <= line_limit:
        return text
    lines = [short(line, line_limit) for line in text.split("\n", limit)]
    text = "\n".join(lines)
    if len(text) <= limit:
        return text
    head = limit // 4
    return f"{text[:head]}\n{_CUT}\n{text[head - limit :]}"
