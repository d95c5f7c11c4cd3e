"""Whether a request that sent a progress token is served its progress (design, "Progress")."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final

from mcp_types import ProgressToken

from mcp_hybrid.routing.media import Form
from mcp_hybrid.routing.modes import ProgressPolicy
from mcp_hybrid.routing.table import RouteName


class Progress(Enum):
    """What becomes of the progress of one request."""

    NOT_WANTED = auto()
    """No token was sent."""
    SERVED = auto()
    WITHHELD = auto()
    """A token was sent, and the answer's route header says that it is not served."""


_SERVED: Final[Mapping[ProgressPolicy, frozenset[RouteName]]] = {
    ProgressPolicy.SESSION: frozenset({RouteName.SESSION, RouteName.MODERN}),
    ProgressPolicy.ALWAYS: frozenset(RouteName),
    ProgressPolicy.OFF: frozenset(),
}


def decide_progress(policy: ProgressPolicy, route: RouteName, token: ProgressToken | None, form: Form) -> Progress:
    """Return what becomes of a request's progress. A client that takes JSON only has no room for any."""
    if token is None:
        return Progress.NOT_WANTED
    return Progress.SERVED if route in _SERVED[policy] and form.streams else Progress.WITHHELD
