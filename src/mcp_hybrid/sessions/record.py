"""The unchanging facts of a session: what has to be known to bring it back anywhere."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache

from mcp_types import ClientCapabilities, Implementation, InitializeRequestParams
from pydantic import ValidationError
from pydantic_core import from_json, to_json


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """What `initialize` settled. Sealed, it is the session id."""

    client: bytes
    """The client's part, as JSON: protocol version, name, version and capabilities, as they were on the wire."""
    owner: str
    """The owner's fingerprint."""
    issued: int
    """Seconds since the epoch, by the wall clock: it is compared on other machines, after restarts."""

    @classmethod
    def of(cls, params: InitializeRequestParams, version: str, owner: str, issued: float) -> SessionRecord:
        """Return the record of an accepted `initialize`."""
        capabilities = params.capabilities.model_dump(by_alias=True, mode="json", exclude_none=True)
        info = params.client_info
        return cls(to_json([version, info.name, info.version, capabilities]), owner, int(issued))

    @property
    def version(self) -> str:
        """The negotiated protocol version."""
        return _client(self.client)[0]

    @property
    def client_params(self) -> InitializeRequestParams:
        """The `initialize` parameters, as the SDK's connection keeps them."""
        return _client(self.client)[1]

    def pack(self) -> bytes:
        """Return the record as compact JSON: a list, since the names are the same in every id."""
        return to_json([from_json(self.client), self.owner, self.issued])

    @classmethod
    def unpack(cls, packed: bytes) -> SessionRecord | None:
        """Return the record in `packed`, or None where it is of another shape (sealed by another release)."""
        try:
            client, owner, issued = from_json(packed)
            if not isinstance(owner, str) or not isinstance(issued, int):
                return None
            return cls(_shared(to_json(client)), sys.intern(owner), issued)
        except (TypeError, ValueError, ValidationError):
            return None


@lru_cache(maxsize=1024)
def _shared(client: bytes) -> bytes:
    """Return the one copy of a kind of client, once it is known to be of the right shape.

    Thousands of sessions are of a few kinds of client; what is the same for all of them is held once.
    """
    _client(client)
    return client


@lru_cache(maxsize=1024)
def _client(client: bytes) -> tuple[str, InitializeRequestParams]:
    version, name, client_version, capabilities = from_json(client)
    params = InitializeRequestParams(
        protocol_version=version,
        capabilities=ClientCapabilities.model_validate(capabilities, by_name=False),
        client_info=Implementation(name=name, version=client_version),
    )
    return version, params
