"""Whose turn it is: who became ready first comes first.

Trio collects who has become ready and tosses a coin whether to begin at the other end, lest programs rely on an order;
its authors call that the worst of both worlds, for now. Under load the coin decides whether the first to come is the
last to be served, twice over with bad luck: with eight clients the slowest hundredth takes twice as long as the others.
"""

from __future__ import annotations

import random
from importlib import import_module
from typing import Final

# Trio's own, as `tests/test_turns.py` shows. Without it everything is served all the same, and as fast on average.
_SCHEDULER: Final = vars(import_module("trio._core._run"))


class _Heads(random.Random):
    """A coin that always falls on the same side: on the one on which Trio turns its stack the right way round."""

    def random(self) -> float:
        return 0.0


def first_come_first_served() -> None:
    """Have Trio run tasks in the order in which they became ready, from now on and in the whole process."""
    # Hypothesis, where it is loaded, has an order of its own that tests can repeat.
    if isinstance(_SCHEDULER.get("_r"), random.Random) and not _SCHEDULER.get("_ALLOW_DETERMINISTIC_SCHEDULING"):
        _SCHEDULER["_r"] = _Heads()
