"""What a verifier raises that cannot tell right now."""

from __future__ import annotations


class VerifierUnavailableError(Exception):
    """A token can be neither accepted nor refused: what would tell is out of reach.

    Raised by `verify_token`, one of your own too, it becomes 503 with `Retry-After`. `None` would become 401, and
    clients throw tokens away that got 401.
    """

    def __init__(self, reason: str, retry_after: float = 5.0) -> None:
        """`reason` is for the log, not for the client; `retry_after` is in seconds."""
        super().__init__(reason)
        self.retry_after = retry_after
