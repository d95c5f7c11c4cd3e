"""Tells when a path has become more expensive than it was when the figures were last recorded.

Kept is what a request costs relative to each of the others that did the same work in the same run: that carries over
from one day, and to a degree from one machine, to the next. Told of is the median of how these ratios changed, so that
one contender that was measured in a bad moment, or has a new version, does not decide.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from comparing.contenders import OURS
from comparing.results import RECORDED, Part
from comparing.workloads import WORKLOADS

TOLERATED = 1.10
"""A path that costs more than this many times what was recorded is told of."""
DIGITS = 3

Costs = Mapping[str, Mapping[str, float]]
"""By workload and contender: what ours costs, by what that contender does."""


def relative_costs(part: Part) -> Costs:
    """Give what each path of ours costs, beside each contender that was measured at the same work."""
    costs = {}
    for work in WORKLOADS:
        measured = {
            name: each["cpu_us"].median for name, each in part.table.get(work.name, {}).items() if "cpu_us" in each
        }
        ours = measured.pop(OURS.name, None)
        if ours is not None and measured:
            costs[work.name] = {name: round(ours / theirs, DIGITS) for name, theirs in measured.items()}
    return costs


def compare(part: Part, path: Path = RECORDED) -> list[str]:
    """Say of each path how it stands against what was recorded."""
    now, before = relative_costs(part), _recorded(path)
    lines = []
    for name in sorted(now.keys() & before.keys()):
        changes = [now[name][each] / before[name][each] for each in now[name].keys() & before[name].keys()]
        if not changes:
            continue
        change = median(changes)
        word = "WORSE" if change > TOLERATED else "better" if change < 1 / TOLERATED else "as it was"
        lines.append(f"{name:<18} {change - 1:+4.0%} beside {len(changes)} others  {word}")
    return lines


def record(part: Part, path: Path = RECORDED) -> None:
    """Keep what the paths cost now, and what is not in this run as it was."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**_recorded(path), **relative_costs(part)}, indent=1, sort_keys=True) + "\n")


def _recorded(path: Path) -> Costs:
    found: Costs = json.loads(path.read_text()) if path.exists() else {}
    return found
