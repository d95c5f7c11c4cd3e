"""One MCP endpoint for every client.

Each request decides how it is served: without an `mcp-session-id` header statelessly, with one in its session, and at
protocol 2026-07-28 by itself. `HybridApp` is an ASGI application; the command `mcp-hybrid serve` runs one.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcp_hybrid.app import HybridApp
    from mcp_hybrid.errors import Cause, ConfigurationError, Fault
    from mcp_hybrid.exchange.state import pin_session, session_state
    from mcp_hybrid.routing.modes import Mode, ProgressPolicy, UnknownSession
    from mcp_hybrid.security.owner import Authenticator, Caller, Owner
    from mcp_hybrid.security.unavailable import VerifierUnavailableError
    from mcp_hybrid.sessions.state import SessionState, SessionStateError
    from mcp_hybrid.settings import Settings
else:
    # Names are looked up when they are first used: the SDK behind them takes a second to import, and commands such as
    # `mcp-hybrid session-key` need nothing of it. Type checkers see the imports above instead.
    _HOMES = {
        "Authenticator": "security.owner",
        "Caller": "security.owner",
        "Cause": "errors",
        "ConfigurationError": "errors",
        "Fault": "errors",
        "HybridApp": "app",
        "Mode": "routing.modes",
        "Owner": "security.owner",
        "ProgressPolicy": "routing.modes",
        "SessionState": "sessions.state",
        "SessionStateError": "sessions.state",
        "Settings": "settings",
        "UnknownSession": "routing.modes",
        "VerifierUnavailableError": "security.unavailable",
        "pin_session": "exchange.state",
        "session_state": "exchange.state",
    }

    def __getattr__(name: str) -> Any:
        """Import a public name from the module it lives in (PEP 562)."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "Authenticator",
    "Caller",
    "Cause",
    "ConfigurationError",
    "Fault",
    "HybridApp",
    "Mode",
    "Owner",
    "ProgressPolicy",
    "SessionState",
    "SessionStateError",
    "Settings",
    "UnknownSession",
    "VerifierUnavailableError",
    "pin_session",
    "session_state",
]
