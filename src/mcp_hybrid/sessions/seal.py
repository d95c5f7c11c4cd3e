"""Session ids that contain their session: the record, encrypted and authenticated (AES-256-GCM), in base64url.

    id = base64url( format (1 byte) | nonce (12 bytes, random) | ciphertext | tag (16 bytes) )

The nonce makes every id unique (requirement N2) and is random: one key must not seal more than about 2**32 ids
(NIST SP 800-38D, section 8.3), which is 49 days of a thousand `initialize` a second. Rotate before.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 32

ID_LIMIT: Final = 4096
"""Characters of the longest id. Proxies take 8 KiB for all of a request's headers."""

_FORMAT: Final = b"\x01"
_NONCE_BYTES: Final = 12
_PURPOSE: Final = b"mcp-hybrid session id"
"""Additional authenticated data: a key that also seals something else cannot pass it off as a session."""
_ALPHABET: Final = re.compile(r"[A-Za-z0-9_-]+")


class TooLargeToSealError(Exception):
    """A record whose id would be longer than `ID_LIMIT`."""


def fresh_key() -> str:
    """Return a new random key as the settings take it: 32 bytes in base64."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode("ascii")


class KeyRing:
    """The keys of a deployment: the first seals, all open, so that a key can be rotated under open sessions."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys:
            raise ValueError("a key-ring needs at least one key")
        self._ciphers = [AESGCM(key) for key in keys]

    def seal(self, packed: bytes) -> str:
        """Return `packed` as an id.

        Raises:
            TooLargeToSealError: The id would be longer than `ID_LIMIT` characters.
        """
        nonce = os.urandom(_NONCE_BYTES)
        sealed = _FORMAT + nonce + self._ciphers[0].encrypt(nonce, packed, _PURPOSE)
        text = _encode(sealed)
        if len(text) > ID_LIMIT:
            raise TooLargeToSealError
        return text

    def open(self, text: str) -> bytes | None:
        """Return what was sealed in `text`, or None: tampered with, not ours, or sealed by a key that is gone."""
        sealed = _decode(text)
        if sealed is None or sealed[:1] != _FORMAT:
            return None
        nonce, ciphertext = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(nonce, ciphertext, _PURPOSE)
            except InvalidTag:
                continue
            except ValueError:  # too short to hold a nonce or a tag
                return None
        return None


def _encode(sealed: bytes) -> str:
    return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode("ascii")


def _decode(text: str) -> bytes | None:
    """Return the bytes of `text` if it is exactly what `_encode` would write: one session has one id."""
    if len(text) > ID_LIMIT or not _ALPHABET.fullmatch(text):
        return None
    try:
        sealed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        return None
    # The last character may carry bits that mean nothing; another one in its place would open as well.
    return sealed if _encode(sealed) == text else None
