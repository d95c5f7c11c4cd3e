"""API keys: how one is made, and the file that says which are good.

    [[keys]]
    id = "alice-3f9a1c"
    owner = "alice"
    scopes = ["tools"]
    expires = 2027-01-31T00:00:00Z    # may be left out
    sha256 = "5e88...42d8"

The file holds hashes only; a key itself is shown once, when it is made. A key is 32 random bytes, so a fast hash is the
right one: slow and salted hashes are for passwords, which can be guessed. Nobody guesses 256 bits, however fast each
try is, and a slow hash would only make it cheap to keep the server busy. The digest of what was sent is then looked up
in a table. What the time that takes may tell is about the digest, and nobody can choose that.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from mcp_hybrid.errors import ConfigurationError

PREFIX: Final = "mh_"
"""How a key starts, so that secret scanners find it, and no other token is taken for one."""

KEY_BYTES: Final = 32

_OWNER: Final = r"""[^\x00-\x1f\x7f"\\]{1,200}"""
_ID: Final = r"[A-Za-z0-9._-]{1,100}"
_SCOPE: Final = r"[\x21\x23-\x2b\x2d-\x5b\x5d-\x7e]+"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What the file says of one key."""

    id: str
    owner: str
    scopes: tuple[str, ...] = ()
    expires: datetime | None = None


ApiKeys = Mapping[bytes, ApiKey]
"""Keys by the SHA-256 digest of their text."""


class _Entry(BaseModel):
    """One key as it is written in the file."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    id: Annotated[str, StringConstraints(pattern=f"^{_ID}$")]
    owner: Annotated[str, StringConstraints(pattern=f"^{_OWNER}$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$")]
    scopes: list[Annotated[str, StringConstraints(pattern=f"^{_SCOPE}$")]] = Field(default=[])
    expires: datetime | date | None = None


def digest(key: str) -> bytes:
    """Return what stands for a key in the file."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def parse(text: str) -> ApiKeys:
    """Return the keys that a file's text lists.

    Raises:
        ValueError: It is no TOML, holds something else, or names a key twice. The message has no hash in it.
    """
    data = tomllib.loads(text)
    entries = data.pop("keys", [])
    if data:
        raise ValueError(f"it may hold [[keys]] only, not {', '.join(sorted(data))}")
    if not isinstance(entries, list):
        raise ValueError("keys are written as [[keys]]")  # noqa: TRY004 - the one kind of error this function has
    keys: dict[bytes, ApiKey] = {}
    ids: set[str] = set()
    for number, raw in enumerate(entries, start=1):
        entry = _entry(number, raw)
        hashed = bytes.fromhex(entry.sha256)
        if entry.id in ids or hashed in keys:
            raise ValueError(f"key {number} ({entry.id}) is there twice")
        ids.add(entry.id)
        keys[hashed] = ApiKey(entry.id, entry.owner, tuple(entry.scopes), _moment(entry.expires))
    return keys


def _entry(number: int, raw: object) -> _Entry:
    try:
        return _Entry.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"key {number}: {where}: {first['msg']}") from None


def _moment(expires: datetime | date | None) -> datetime | None:
    """Return a time with its zone: one that is written without is UTC, and a date is its first moment."""
    if expires is None:
        return None
    moment = expires if isinstance(expires, datetime) else datetime.combine(expires, time())
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


# Making them


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made, and the entry that makes it good."""

    key: str
    id: str
    entry: str


def make(owner: str, scopes: Sequence[str] = (), expires: datetime | None = None, name: str | None = None) -> NewKey:
    """Make a key of `owner`; `name` is its id, which is made up where not given.

    Raises:
        ConfigurationError: A name or scope has characters that it must not have.
    """
    key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    name = name or f"{re.sub('[^A-Za-z0-9._-]+', '-', owner)[:80]}-{secrets.token_hex(3)}"
    for what, pattern, text in [("owner", _OWNER, owner), ("name", _ID, name), *(("scope", _SCOPE, s) for s in scopes)]:
        if re.fullmatch(pattern, text) is None:
            raise ConfigurationError(f"{text!r} cannot be the {what} of an API key: it has characters that do not fit")
    lines = [
        "[[keys]]",
        f'id = "{name}"',
        f"owner = {json.dumps(owner, ensure_ascii=False)}",
        f"scopes = {json.dumps(list(scopes))}",
        *([f"expires = {expires.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"] if expires is not None else []),
        f'sha256 = "{digest(key).hex()}"',
    ]
    return NewKey(key, name, "\n".join(lines) + "\n")


def append(path: Path, new: NewKey) -> None:
    """Add an entry to the file, which is made where it is not there. Whoever reads it sees all of that or nothing.

    Raises:
        ConfigurationError: The file cannot be read, written or understood, or has a key of that name.
    """
    path = path.resolve()  # what a link leads to is replaced, not the link
    try:
        with _locked(path.parent):
            there = path.exists()
            text = path.read_text(encoding="utf-8") if there else ""
            text += ("" if not text else "\n" if text.endswith("\n") else "\n\n") + new.entry
            parse(text)
            _replace(path, text, path.stat().st_mode & 0o777 if there else 0o600)
    except ValueError as error:
        raise ConfigurationError(f"the API key file {path} is not understood: {error}") from None
    except OSError as error:
        raise ConfigurationError(f"the API key file {path} cannot be written: {error.strerror}") from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other commands from changing a file of this directory meanwhile; one that is replaced cannot be locked."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _replace(path: Path, text: str, mode: int) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
