"""Hypothesis: how many examples a property is tried with, and whether they are the same ones in each run.

HYPOTHESIS_PROFILE chooses. `fixed` (also the default) tries the same examples each time, so that a change fails for its
own reasons; `long` tries many more, other ones each time.
"""

from __future__ import annotations

import os
from typing import Any, Final

from hypothesis import HealthCheck, settings

LONG: Final = "long"
FIXED: Final = "fixed"

_MORE: Final = 20
"""How many times as many examples `long` tries."""

_SUPPRESSED: Final = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture)


def chosen() -> str:
    """Return the profile that the environment names."""
    return os.environ.get("HYPOTHESIS_PROFILE") or FIXED


def examples(count: int, **options: Any) -> settings:
    """Return the settings of a property that is worth so many examples when every change is checked.

    No property has a deadline: how long an example takes is the machine's doing.
    """
    most = count * (_MORE if chosen() == LONG else 1)
    return settings(settings.get_profile(chosen()), max_examples=most, **options)


def load_profile() -> None:
    """Register the profiles and load the chosen one."""
    common = settings(deadline=None, suppress_health_check=_SUPPRESSED)
    settings.register_profile(FIXED, common, derandomize=True, database=None, max_examples=100)
    settings.register_profile(LONG, common, print_blob=True, max_examples=100 * _MORE)
    settings.load_profile(chosen())
