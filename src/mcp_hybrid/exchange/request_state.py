"""The state of a call that asks back (`requestState`, 2026-07-28), made good on every worker.

A server hands such state to the client, sealed, and the client repeats the call with it. `MCPServer` and `FastMCP` seal
it with a key of their process unless they were given one, so that another worker would refuse it, and the same one
after a restart. With `sessions.keys` it leaves sealed with keys derived from those, and is turned into the server's own
when it comes back. The server is not touched: its own middleware opens its own seal, and checks all that it always
checks (age, request, user, service).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from mcp.server.lowlevel.server import Server
from mcp.server.request_state import (
    AESGCMRequestStateCodec,
    InvalidRequestState,
    RequestStateBoundary,
    RequestStateCodec,
    RequestStateSecurity,
)
from mcp_types.methods import INPUT_REQUIRED_METHODS

_LABEL: Final = b"mcp-hybrid request state"
"""What the derived keys are for: they are no keys of session ids."""
_FIELD: Final = "requestState"


class SharedRequestState:
    """Turns a server's own seal into one that every worker can open, and back."""

    def __init__(self, own: RequestStateCodec, keys: Sequence[bytes]) -> None:
        """Take the server's seal, and the keys of the deployment: the first seals, all open."""
        derived = [HKDF(algorithm=SHA256(), length=32, salt=None, info=_LABEL).derive(key) for key in keys]
        self._own = own
        self._shared = AESGCMRequestStateCodec(list(dict.fromkeys(derived)))

    def opened(self, method: str, params: dict[str, Any] | None) -> dict[str, Any] | None:
        """Return a request's parameters as the server itself would have sealed their state.

        What was not sealed here is left to the server, which opens its own and refuses everything else.
        """
        state = params.get(_FIELD) if params is not None and method in INPUT_REQUIRED_METHODS else None
        if params is None or not isinstance(state, str):
            return params
        try:
            payload = self._shared.unseal(state)
        except InvalidRequestState:
            return params
        return {**params, _FIELD: self._own.seal(payload)}

    async def sealed(self, handler: Callable[[], Awaitable[Mapping[str, Any]]]) -> Mapping[str, Any]:
        """Run a handler, and return its result with state that every worker can open."""
        result = await handler()
        state = result.get(_FIELD) if result.get("resultType") == "input_required" else None
        if not isinstance(state, str):
            return result
        try:
            payload = self._own.unseal(state)
        except InvalidRequestState:  # something around the server's own seal has put another one there
            return result
        return {**result, _FIELD: self._shared.seal(payload)}


def shared_request_state(server: Server[Any], keys: Sequence[bytes]) -> SharedRequestState | None:
    """Return what makes a server's state good on every worker; None where it has seen to that itself, or has none."""
    for middleware in server.middleware if keys else ():
        if isinstance(middleware, RequestStateBoundary):
            security = middleware._security  # noqa: SLF001 - pinned by a contract test
            return SharedRequestState(security.codec, keys) if _is_of_the_process(security) else None
    return None


def _is_of_the_process(security: RequestStateSecurity) -> bool:
    """Whether a policy is what the SDK puts in where it was given none.

    The SDK does not keep the answer; a policy with one key of its own and nothing else said looks the same. What that
    has sealed is opened still.
    """
    usual, codec = RequestStateSecurity.ephemeral(), security.codec
    return (
        type(codec) is AESGCMRequestStateCodec
        and len(codec._ring) == 1  # noqa: SLF001 - pinned by a contract test
        and (security.ttl, security.audience, security.bind_principal)
        == (usual.ttl, usual.audience, usual.bind_principal)
    )
