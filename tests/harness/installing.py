"""Folders that are filled once, by pip or npm, and used by every run of the tests, benchmarks and tools after that."""

from __future__ import annotations

import fcntl
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

_MARK: Final = ".installed"
"""The file that a folder has once it is complete."""


def filled(place: Path, fill: Callable[[Path], None]) -> Path:
    """Return a folder that `fill` has filled. One that was left half made is made again.

    Of several processes that ask for a folder at the same time one fills it, and the others wait.
    """
    if (place / _MARK).exists():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / _MARK).exists():
            print(f"installing {place}", file=sys.stderr, flush=True)  # noqa: T201 - it takes a while
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            fill(place)
            (place / _MARK).touch()
    return place
