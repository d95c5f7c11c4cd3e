"""Makes what is sent on one connection."""

from __future__ import annotations

from random import Random

from fuzzing import http1, http2
from fuzzing.script import Item, Known, Script

LONGEST = 40
"""Requests on one connection, at the most; as many frames ten times over."""


def make(rng: Random, known: Known) -> Script:
    """Make a connection's script: what is made depends on `rng` alone, but for the session ids in it."""
    if rng.random() < 0.25:
        frames = http2.frames(rng, known, rng.randrange(1, 4 * LONGEST))
        items = [Item(http2.PREFACE, "preface"), *(Item(data, "frame") for data in frames)]
        return Script(tuple(items), http2=True)
    items = [http1.whole_item(rng, known) for _ in range(rng.choice((0, 1, 3, 10, LONGEST)))]
    if not items or rng.random() < 0.7:
        items.append(http1.last_item(rng, known))
    return Script(tuple(items))
