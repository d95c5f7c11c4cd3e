"""How one setting's value is read: its type, the ways it may be written, and the words that say what is accepted.

Durations are seconds and sizes are bytes once validated, whichever unit they were written in. Lists may be written
with commas, which is how the environment and the command line have to write them.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from mcp_hybrid.errors import UnusableValueError
from mcp_hybrid.security.patterns import read_host, read_origin

KEY_BYTES: Final = 32
ADMIN_KEY_LENGTH: Final = 24
"""Characters of the shortest key of the admin pages: too many to be found by trying."""
DURATION_UNITS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
SIZE_UNITS: Final = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
RATE_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
MAX_DEPTH: Final = 128
"""The deepest nesting that may be allowed. Beyond some 200 levels the JSON parser and the SDK's models give up."""
_RATE: Final = re.compile(r"(?P<count>[1-9]\d{0,8})\s*/\s*(?P<unit>[smhd])")
_QUANTITY: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*(?P<unit>[a-z]*)")


@dataclass(frozen=True)
class Accepts:
    """Field metadata: what a setting accepts, in the words of its error message."""

    text: str


def decode_key(text: str) -> bytes:
    """Return the bytes of a session key in standard or URL-safe base64; raises ValueError, never quoting the key."""
    try:
        key = base64.b64decode(text.strip().translate(str.maketrans("-_", "+/")), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64") from None
    if len(key) != KEY_BYTES:
        raise ValueError(f"{len(key)} bytes long")
    return key


def decode_rate(text: str) -> tuple[int, int] | None:
    """Return a rate as a count and the seconds it is for, or None where it is no limit.

    Raises:
        ValueError: The text is neither empty nor a rate.
    """
    if not text.strip():
        return None
    match = _RATE.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError("not a rate")
    return int(match["count"]), RATE_UNITS[match["unit"]]


# Validators. What they raise is ValueError without exception: pydantic turns that one into its own error.


def _quantity(value: object, units: Mapping[str, float]) -> float:
    """Return `value` in its base unit; raises ValueError for what is not a finite, non-negative number with a unit."""
    if isinstance(value, str) and (match := _QUANTITY.fullmatch(value.strip().lower())) and match["unit"] in units:
        result = float(match["number"]) * units[match["unit"]]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        result = float(value)
    else:
        raise ValueError("not a number with a known unit")
    if not math.isfinite(result) or result < 0:
        raise ValueError("not a finite number from 0 up")
    return result


def _duration(value: object) -> float:
    return _quantity(value, DURATION_UNITS)


def _size(value: object) -> float:
    return _quantity(value, SIZE_UNITS)


def _items(value: object) -> object:
    """Split the comma-separated form that environment and command line use; leave lists alone."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


def _entries(value: object) -> object:
    """Split as `_items` does, but keep what is empty, to be refused: a variable that was not set, most likely."""
    if not isinstance(value, str):
        return value
    items = [item.strip() for item in value.split(",")]
    return items if items[-1] else items[:-1]


def _folded(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("not a number")  # noqa: TRY004 - pydantic turns ValueError, not TypeError, into its own error
    return value


def _rate(text: str) -> str:
    decode_rate(text)
    return text.strip().lower()


def _none_if_empty(value: object) -> object:
    """Let the environment say "none", which it must to overrule a file."""
    return None if value == "" else value


def _session_keys(value: object) -> object:
    """Check every key here, so that a message can say which one is wrong without showing it."""
    keys = _items(value)
    if not isinstance(keys, list | tuple):
        raise ValueError("not a list")  # noqa: TRY004 - see _number
    for number, key in enumerate(keys, start=1):
        text = key.get_secret_value() if isinstance(key, SecretStr) else key
        try:
            decode_key(text if isinstance(text, str) else "")
        except ValueError as error:
            raise ValueError(f"key {number} of {len(keys)} is {error}") from None
    return list(keys)


def _admin_key(value: object) -> object:
    """Check the key here, so that a message can say what is wrong with it without showing it."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if text is None or text == "":
        return None
    if not isinstance(text, str) or re.fullmatch(r"[!-~]*", text) is None:
        raise ValueError("the key has other characters")
    if len(text) < ADMIN_KEY_LENGTH:
        raise ValueError(f"the key has {len(text)} characters")
    return value


def _matching(pattern: str) -> AfterValidator:
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if compiled.fullmatch(text) is None:
            raise ValueError("not of the expected form")
        return text

    return AfterValidator(check)


def _url_path(text: str) -> str:
    """Return a path in the one form in which requests come: with a slash before it, none behind it, and none twice."""
    if "://" in text:
        raise UnusableValueError("this is a URL; write its path only")
    if (found := re.search(r"[?#]", text)) is not None:
        raise UnusableValueError(f'a path has no query; write "{text[: found.start()]}"')
    if "%" in text:
        raise UnusableValueError("write the path as it is, without %")  # paths are decoded before they are compared
    if not text.strip() or re.search(r"[\x00-\x20\x7f\\]|\s", text):
        raise UnusableValueError("a path has no blanks, backslashes or control characters")
    segments = [segment for segment in text.split("/") if segment]
    if {".", ".."} & set(segments):
        raise UnusableValueError("clients take . and .. out of paths")
    return f"/{'/'.join(segments)}"


def _secure_url(text: str) -> str:
    """Check that nobody on the way can change what is fetched from a URL: https, or http on this machine."""
    parts = urlsplit(text)
    local = parts.hostname in {"127.0.0.1", "::1", "localhost"}
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and local)):
        raise ValueError("not https")
    if parts.username is not None or parts.fragment or re.search(r"[\s,\"\\]", text):
        raise ValueError("not a plain URL")
    return text


def _backplane(text: str) -> str:
    """Check an address as the Redis client is going to read it, which would otherwise fail with the password in it."""
    if text == "memory":
        return text
    parts = urlsplit(text)
    if parts.scheme not in {"redis", "rediss"} or not parts.hostname or re.search(r"[\s#]", text):
        raise ValueError("not an address of a Redis")
    _ = parts.port  # raises ValueError for what is none
    if re.fullmatch(r"(/[0-9]{0,4})?", parts.path) is None:
        raise ValueError("not a number of a database")
    return text


def _key_source(text: str | None) -> str | None:
    """Check a URL; what is none is a file."""
    return _secure_url(text) if text is not None and "://" in text else text


# Types

Choice = BeforeValidator(_folded)
"""Makes an enumeration indifferent to case and surrounding blanks."""

Duration = Annotated[
    float, BeforeValidator(_duration), Accepts('a duration such as 300, "500ms", "30s", "5m", "1h" or "7d"')
]
PositiveDuration = Annotated[Duration, Field(gt=0), Accepts('a duration above 0, such as 300, "30s", "5m" or "7d"')]
Size = Annotated[
    int, BeforeValidator(_size), Field(gt=0), Accepts('a number of bytes above 0, such as 65536, "512KiB" or "4MiB"')
]
SizeOrNone = Annotated[
    int, BeforeValidator(_size), Accepts('a number of bytes such as 65536, "512KiB" or "4MiB", or 0 for no limit')
]
CountOrNone = Annotated[
    int, BeforeValidator(_number), Field(ge=0), Accepts("a whole number from 1 up, or 0 for no limit")
]
Count = Annotated[int, BeforeValidator(_number), Field(ge=1), Accepts("a whole number from 1 up")]
Depth = Annotated[
    int, BeforeValidator(_number), Field(ge=1, le=MAX_DEPTH), Accepts(f"a whole number from 1 to {MAX_DEPTH}")
]
Rate = Annotated[str, AfterValidator(_rate), Accepts('a rate such as "100/s", "600/m" or "5000/h", or "" for no limit')]
Port = Annotated[
    int, BeforeValidator(_number), Field(ge=0, le=65535), Accepts("a port from 1 to 65535, or 0 for any free one")
]
Target = Annotated[str | None, BeforeValidator(_none_if_empty), Accepts('"module:attr", "file.py:attr" or "file.py"')]
UrlPath = Annotated[str, AfterValidator(_url_path), Accepts('a path such as "/mcp"')]
BackplaneUrl = Annotated[
    str,
    AfterValidator(_backplane),
    Accepts(
        '"memory", or where a Redis is: "redis://:password@host:6379/0" (in a password, write / as %2F, ? as %3F '
        "and # as %23)"
    ),
]
Host = Annotated[str, _matching(r"[^\s/]+"), Accepts('an address or host name, such as "127.0.0.1"')]
Hosts = Annotated[
    list[Annotated[str, AfterValidator(read_host)]],
    BeforeValidator(_entries),
    Field(min_length=1),
    Accepts('host names such as "example.org", "example.org:8443", "*.example.org" or "[::1]", or "*" for any'),
]
Origins = Annotated[
    list[Annotated[str, AfterValidator(read_origin)]],
    BeforeValidator(_entries),
    Accepts('origins such as "https://example.org", without a path'),
]
Flag = Annotated[bool, BeforeValidator(_folded), Accepts("true or false")]
OwnPort = Annotated[
    int,
    BeforeValidator(_number),
    Field(ge=0, le=65535),
    Accepts("a port from 1 to 65535, or 0 for the endpoint's own"),
]
AdminKey = Annotated[
    SecretStr | None,
    BeforeValidator(_admin_key),
    Accepts(f"at least {ADMIN_KEY_LENGTH} visible ASCII characters"),
]
SessionKeys = Annotated[
    list[SecretStr],
    BeforeValidator(_session_keys),
    Accepts("32 random bytes in base64 for each; `mcp-hybrid session-key` prints one"),
]

FilePath = Annotated[str | None, BeforeValidator(_none_if_empty), Accepts("the path of a file")]
SecureUrl = Annotated[
    str | None,
    BeforeValidator(_none_if_empty),
    AfterValidator(lambda text: _secure_url(text) if text is not None else None),
    Accepts('a URL such as "https://example.org/mcp"; http only on 127.0.0.1, [::1] or localhost'),
]
SecureUrls = Annotated[
    list[Annotated[str, AfterValidator(_secure_url)]],
    BeforeValidator(_items),
    Accepts('URLs such as "https://login.example.org"; http only on 127.0.0.1, [::1] or localhost'),
]
KeySetSource = Annotated[
    str | None,
    BeforeValidator(_none_if_empty),
    AfterValidator(_key_source),
    Accepts('a URL such as "https://login.example.org/jwks.json" (http only on loopback), or the path of a file'),
]
Audiences = Annotated[
    list[Annotated[str, _matching(r"[^\s,]+")]],
    BeforeValidator(_items),
    Accepts('what tokens may have as `aud`, such as "https://example.org/mcp"'),
]
Scopes = Annotated[
    list[Annotated[str, _matching(r"(?!offline_access$)[\x21\x23-\x2b\x2d-\x5b\x5d-\x7e]+")]],
    BeforeValidator(_items),
    Accepts('scopes such as "tools"; offline_access is between a client and its authorization server'),
]
Algorithms = Annotated[
    list[Annotated[str, _matching(r"(RS|PS)(256|384|512)|ES256|ES384|ES512|EdDSA")]],
    BeforeValidator(_items),
    Field(min_length=1),
    Accepts("some of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512 and EdDSA; never none or HS256"),
]
