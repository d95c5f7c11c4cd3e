"""Which forms of answer a client takes (RFC 9110, section 12.5.1), and whether it sent JSON."""

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache
from typing import Final


class Form(Enum):
    """The answers an `Accept` header admits."""

    JSON = "application/json"
    """Only one JSON body: nothing can precede the result."""
    SSE = "text/event-stream"
    """Only an event stream."""
    EITHER = "either"
    """JSON, unless something has to precede the result."""

    @property
    def streams(self) -> bool:
        """Whether an event stream may be sent."""
        return self is not Form.JSON


_QUALITY: Final = re.compile(r"[0-9]{1,3}(\.[0-9]{0,20})?|\.[0-9]{1,20}", re.ASCII)
"""RFC 9110, 12.4.2, with a little more than it allows: not what Python reads as a number, such as `nan` or `1_0`."""

_MOST_SPECIFIC_FIRST: Final = {
    "application/json": ("application/json", "application/*", "*/*"),
    "text/event-stream": ("text/event-stream", "text/*", "*/*"),
}


def accepted(header: str | None) -> Form | None:
    """Return what `header` admits, or None where it admits neither JSON nor an event stream. Absent admits both."""
    if header is None:
        return Form.EITHER
    return _read(header) if len(header) <= _LONGEST_KEPT else _read.__wrapped__(header)


_LONGEST_KEPT: Final = 512
"""Characters of a header that is remembered: 256 of them, made up by strangers, must not take megabytes."""


@lru_cache(maxsize=256)  # clients send the same few values for ever
def _read(header: str) -> Form | None:
    if not header.strip():
        return Form.EITHER
    qualities = dict(_ranges(header))
    json, sse = (_admits(qualities, ranges) for ranges in _MOST_SPECIFIC_FIRST.values())
    if json and sse:
        return Form.EITHER
    if json:
        return Form.JSON
    return Form.SSE if sse else None


def is_json(content_type: str | None) -> bool:
    """Whether `content_type` is JSON; parameters such as `charset` are allowed."""
    return content_type is not None and content_type.partition(";")[0].strip().lower() == "application/json"


def is_identity(content_encoding: str) -> bool:
    """Whether a body is sent as it is: `identity`, however often, or nothing."""
    return all(coding.strip().lower() in {"", "identity"} for coding in content_encoding.split(","))


def _admits(qualities: dict[str, float], ranges: tuple[str, ...]) -> bool:
    """Whether the most specific of `ranges` that was sent has a quality above zero."""
    return next((qualities[name] for name in ranges if name in qualities), 0.0) > 0


def _ranges(header: str) -> list[tuple[str, float]]:
    return [(name.strip().lower(), _quality(rest)) for name, _, rest in (p.partition(";") for p in header.split(","))]


def _quality(parameters: str) -> float:
    """Return the `q` parameter; 1 where there is none or where it is no number."""
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            return float(value) if _QUALITY.fullmatch(value.strip()) else 1.0
    return 1.0
