"""Which forms of answer a client takes (RFC 9110, section 12.5.1), and whether it sent JSON."""

from __future__ import annotations

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


_MOST_SPECIFIC_FIRST: Final = {
    "application/json": ("application/json", "application/*", "*/*"),
    "text/event-stream": ("text/event-stream", "text/*", "*/*"),
}


@lru_cache(maxsize=256)  # clients send the same few values for ever
def accepted(header: str | None) -> Form | None:
    """Return what `header` admits, or None where it admits neither JSON nor an event stream. Absent admits both."""
    if header is None or not header.strip():
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
            try:
                return float(value)
            except ValueError:
                return 1.0
    return 1.0
