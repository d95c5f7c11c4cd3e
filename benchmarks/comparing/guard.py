"""Tells when a path has become more expensive than it was when the figures were last recorded.

Kept is what a request costs relative to a bare hello on plain Hypercorn in the same run: that carries over from one
day, and to a degree from one machine, to the next. Nothing of ours is in it: relative to a hello on our own worker,
whatever makes the worker better would make every path look worse.
"""

from __future__ import annotations

import json
from pathlib import Path

from comparing.contenders import OURS, PLAIN
from comparing.results import RECORDED, Part
from comparing.workloads import HELLO, WORKLOADS

TOLERATED = 1.10
"""A path that costs more than this many times what was recorded is told of."""
DIGITS = 3


def relative_costs(part: Part) -> dict[str, float]:
    """Give what each path costs of ours; nothing where the bare hello was not measured."""
    floor = part.figure(HELLO.name, PLAIN.name, "cpu_us")
    if floor is None:
        return {}
    found = {work.name: part.figure(work.name, OURS.name, "cpu_us") for work in WORKLOADS}
    return {name: round(each.median / floor.median, DIGITS) for name, each in found.items() if each is not None}


def compare(part: Part, path: Path = RECORDED) -> list[str]:
    """Say of each path how it stands against what was recorded."""
    now = relative_costs(part)
    before: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    lines = []
    for name in sorted(now.keys() & before.keys()):
        change = now[name] / before[name]
        word = "WORSE" if change > TOLERATED else "better" if change < 1 / TOLERATED else "as it was"
        lines.append(f"{name:<18} {before[name]:6.2f} → {now[name]:6.2f} of hello  {change - 1:+4.0%}  {word}")
    return lines


def record(part: Part, path: Path = RECORDED) -> None:
    """Keep what the paths cost now, and what is not in this run as it was."""
    before: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**before, **relative_costs(part)}, indent=1, sort_keys=True) + "\n")
