"""How deep a JSON value is nested, and how much work it is to read.

Everything that walks a value takes stack for each of its levels. The parser is not at risk: it stops at some 200 levels
by itself, at once and without an exception of the stack's. But it reads nothing else meanwhile, nor does anybody: what
is made of 4 MiB of brackets takes seconds.
"""

from __future__ import annotations

import re
from typing import Any, Final

MOST_CONTAINERS: Final = 100_000
"""Arrays and objects that a body may have. So many take a tenth of a second to read."""

PLAIN: Final = 4096
"""Bytes of a body that is never much work, whatever is in it."""

_BYTES_EACH: Final = 16 * 1024
_VALUES_EACH: Final = 200
"""Bytes, and brackets and commas, that are as much work as an ordinary request is in all, roughly."""

_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)

_CONTAINERS: Final = frozenset({dict, list})


def is_deeper(value: Any, body: bytes, depth: int) -> bool:
    """Whether `value`, which was read from `body`, has arrays and objects nested deeper than `depth` levels.

    Nearly every body has fewer brackets than that, which is counted in less than a microsecond; only in others is the
    value looked at, level by level.
    """
    if _brackets(body) <= depth:
        return False
    level = [value] if type(value) in _CONTAINERS else []
    for _ in range(depth):
        if not level:
            return False
        level = [
            child
            for container in level
            for child in (container.values() if type(container) is dict else container)
            if type(child) in _CONTAINERS
        ]
    return bool(level)


def has_too_many(body: bytes) -> bool:
    """Whether a body has more than `MOST_CONTAINERS` arrays and objects. Brackets in strings are none."""
    if _brackets(body) <= MOST_CONTAINERS:
        return False
    return _brackets(_STRING.sub(b"", body)) > MOST_CONTAINERS


def work(body: bytes) -> int:
    """Return how many ordinary requests' work it is to read a body, beside the one that it is."""
    if len(body) <= PLAIN:
        return 0
    return len(body) // _BYTES_EACH + (_brackets(body) + body.count(b",")) // _VALUES_EACH


def _brackets(body: bytes) -> int:
    return body.count(b"[") + body.count(b"{")
