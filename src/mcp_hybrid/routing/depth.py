"""How deep a JSON value is nested. Everything that walks a value after this takes stack for each of its levels.

The parser is not at risk: it stops at some 200 levels by itself, at once and without an exception of the stack's.
"""

from __future__ import annotations

from typing import Any, Final

_CONTAINERS: Final = frozenset({dict, list})


def is_deeper(value: Any, body: bytes, depth: int) -> bool:
    """Whether `value`, which was read from `body`, has arrays and objects nested deeper than `depth` levels.

    Nearly every body has fewer brackets than that, which is counted in less than a microsecond; only in others is the
    value looked at, level by level.
    """
    if body.count(b"[") + body.count(b"{") <= depth:
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
