"""Legacy or modern: which family of protocol revisions a request speaks (design, "Legacy or modern?").

    PV       the `mcp-protocol-version` header
    ENV      `params._meta["io.modelcontextprotocol/protocolVersion"]`, which exists at 2026-07-28 only

A request that says two different things is refused rather than guessed at (requirement V4); a version that is not
served is refused with *all* that are (V5).
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS

from mcp_hybrid.errors import Cause, Fault
from mcp_hybrid.routing.message import ABSENT

SERVED_VERSIONS: Final = (*HANDSHAKE_PROTOCOL_VERSIONS, *MODERN_PROTOCOL_VERSIONS)
"""Every revision served, oldest first. 2024-11-05 has no Streamable HTTP of its own, but clients negotiate it here."""

DEFAULT_VERSION: Final = "2025-03-26"
"""What a legacy request without any sign of its version is taken for (2025-06-18, "Protocol Version Header")."""


class Era(Enum):
    """A family of protocol revisions."""

    LEGACY = auto()
    MODERN = auto()


class _PV(Enum):
    ABSENT = auto()
    LEGACY = auto()
    MODERN = auto()
    UNKNOWN = auto()


class _ENV(Enum):
    ABSENT = auto()
    SAME = auto()
    LEGACY = auto()
    """A handshake revision, but not the header's."""
    OTHER = auto()
    """A modern or unknown one, or no version at all, and not the header's."""


_TABLE: Final[dict[tuple[_PV, _ENV], Era | Cause]] = {
    (_PV.MODERN, _ENV.ABSENT): Era.MODERN,  # its classifier names the missing keys
    (_PV.MODERN, _ENV.SAME): Era.MODERN,
    (_PV.MODERN, _ENV.LEGACY): Era.MODERN,  # its classifier refuses the mismatch
    (_PV.MODERN, _ENV.OTHER): Era.MODERN,
    (_PV.UNKNOWN, _ENV.ABSENT): Cause.VERSION_UNSUPPORTED,
    (_PV.UNKNOWN, _ENV.SAME): Cause.VERSION_UNSUPPORTED,
    (_PV.UNKNOWN, _ENV.LEGACY): Cause.VERSION_MISMATCH,
    (_PV.UNKNOWN, _ENV.OTHER): Cause.VERSION_MISMATCH,
    (_PV.ABSENT, _ENV.ABSENT): Era.LEGACY,
    (_PV.ABSENT, _ENV.LEGACY): Era.LEGACY,
    (_PV.ABSENT, _ENV.OTHER): Cause.VERSION_MISMATCH,
    (_PV.LEGACY, _ENV.ABSENT): Era.LEGACY,
    (_PV.LEGACY, _ENV.SAME): Era.LEGACY,
    (_PV.LEGACY, _ENV.LEGACY): Cause.VERSION_MISMATCH,
    (_PV.LEGACY, _ENV.OTHER): Cause.VERSION_MISMATCH,
}


def decide_era(header: str | None, envelope: object, *, initialize: bool) -> Era | Fault:
    """Return the era of a request, or its refusal.

    `initialize` is the handshake itself: it exists in the legacy era only, and proposes its version in its own
    parameters, so an envelope on it decides nothing.
    """
    outcome = _TABLE[_classify_header(header), _classify_envelope(header, envelope)]
    if isinstance(outcome, Era):
        return outcome
    if outcome is Cause.VERSION_UNSUPPORTED:
        return unsupported_version(header)
    if initialize and header not in (None, *HANDSHAKE_PROTOCOL_VERSIONS):
        return unsupported_version(header)
    if initialize:
        return Era.LEGACY
    return version_mismatch()


def version_mismatch() -> Fault:
    """Return the refusal of a request whose header and envelope name different versions (requirement V4)."""
    return Fault(
        Cause.VERSION_MISMATCH, "The header mcp-protocol-version and the version in params._meta do not agree."
    )


def unsupported_version(requested: str | None) -> Fault:
    """Return the refusal of a version that is not served, naming those that are (requirement V5)."""
    data = {"supported": list(SERVED_VERSIONS), "requested": requested}
    return Fault(Cause.VERSION_UNSUPPORTED, "Unsupported protocol version", data=data)


def _classify_header(header: str | None) -> _PV:
    if header is None:
        return _PV.ABSENT
    if header in MODERN_PROTOCOL_VERSIONS:
        return _PV.MODERN
    return _PV.LEGACY if header in HANDSHAKE_PROTOCOL_VERSIONS else _PV.UNKNOWN


def _classify_envelope(header: str | None, envelope: object) -> _ENV:
    if envelope is ABSENT:
        return _ENV.ABSENT
    if header is not None and envelope == header:
        return _ENV.SAME
    return _ENV.LEGACY if envelope in HANDSHAKE_PROTOCOL_VERSIONS else _ENV.OTHER
