"""What the workers of one deployment share.

protocol  what any backplane does
memory    the one for a single process
ended     the ended sessions that a process remembers, within a bound
redis     the one for many (extra `redis`)
"""

from mcp_hybrid.backplane.memory import MemoryBackplane
from mcp_hybrid.backplane.protocol import (
    Backplane,
    BackplaneUnavailableError,
    Entry,
    Holder,
    LogLimits,
    Signal,
    SignalKind,
    StateTooLargeError,
    StreamKey,
    UnknownEventError,
    number_of,
)

__all__ = [
    "Backplane",
    "BackplaneUnavailableError",
    "Entry",
    "Holder",
    "LogLimits",
    "MemoryBackplane",
    "Signal",
    "SignalKind",
    "StateTooLargeError",
    "StreamKey",
    "UnknownEventError",
    "number_of",
]
