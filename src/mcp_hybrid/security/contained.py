"""An authenticator whose failures stay with the one request that it was asked about."""

from __future__ import annotations

import anyio
from starlette.types import Scope

from mcp_hybrid.errors import Fault
from mcp_hybrid.security.owner import Authenticator, Caller


class AuthenticatorFailedError(Exception):
    """A verifier raised what would have ended the server, such as `SystemExit`. The cause is chained."""


class ContainedAuthenticator:
    """Asks another authenticator, and raises nothing but `Exception` and what the host itself raises."""

    def __init__(self, inner: Authenticator) -> None:
        self._inner = inner

    async def authenticate(self, scope: Scope) -> Caller | Fault:
        """Return what the other one says.

        Raises:
            AuthenticatorFailedError: It raised a `BaseException` that is neither a cancellation of the caller's own
                scope nor an interrupt.
        """
        try:
            return await self._inner.authenticate(scope)
        except Exception:
            raise
        except BaseException as error:
            if _is_of_the_host(error):
                raise
            raise AuthenticatorFailedError(type(error).__name__) from error


def _is_of_the_host(error: BaseException) -> bool:
    """Whether swallowing an exception would break cancellation or Ctrl-C. A group counts by what is in it."""
    kinds = (KeyboardInterrupt, anyio.get_cancelled_exc_class())
    return error.subgroup(kinds) is not None if isinstance(error, BaseExceptionGroup) else isinstance(error, kinds)
