"""Hosts and origins as an operator may write them, and what they match (RFC 9110, 7.2; RFC 6454, 7; WHATWG URL, 3.5).

    hosts     example.org   example.org:8443   example.org:*   *.example.org   127.0.0.1   ::1   [::1]   [::1]:8000   *
    origins   https://example.org   http://localhost:5173   http://[::1]   null   *

Without a port a host matches any port. 80 and 443 also match a header without a port: clients leave the usual ones out.
What is written is checked once, at start: an entry that nothing can match is refused with what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Final

from mcp_hybrid.errors import UnusableValueError

ANY: Final = "*"

_LONGEST: Final = 300
"""Characters of a header that is looked at. A name has 253 at most, and what is remembered of strangers is bounded."""

_USUAL: Final[dict[str, frozenset[str]]] = {"http": frozenset({"80"}), "https": frozenset({"443"})}
_ANY_USUAL: Final = frozenset({"80", "443"})
"""Ports that are left out, by scheme. Which scheme a Host was reached by, only the proxy knows."""

_LAST_PORT: Final = 65535

_LABEL: Final = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME: Final = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")
_ENTRY: Final = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*)(:(?P<port>.*))?", re.DOTALL)
_SENT: Final = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[^:\[\]/@*]*)(:(?P<port>[0-9]{1,5}))?")
_SCHEME: Final = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)


def read_host(text: str) -> str:
    """Return an entry of `security.allowed_hosts` in the one form in which it is compared.

    Raises:
        UnusableValueError: No Host header can match it. The message says what to write.
    """
    host, port = _read(text.strip().lower())
    return host if port in ("", ANY) else f"{host}:{port}"


def read_origin(text: str) -> str:
    """Return an entry of a list of origins in the one form in which it is compared.

    Raises:
        UnusableValueError: No Origin header can match it. The message says what to write.
    """
    text = text.strip().lower()
    text = text if text.endswith("//") else text.removesuffix("/")
    if text in (ANY, "null"):
        return text
    if not text:
        raise UnusableValueError("an empty item matches nothing; leave it out")
    found = _SCHEME.fullmatch(text)
    if found is None:
        raise UnusableValueError(f'an origin has a scheme; write "https://{text}"')
    scheme, rest = found["scheme"], found["rest"]
    if (end := re.search(r"[/?#]", rest)) is not None:
        raise UnusableValueError(f'an origin has no path; write "{scheme}://{rest[: end.start()]}"')
    host, port = _read(rest)
    if ANY in host:
        raise UnusableValueError(f"origins are compared whole; list each one, without {ANY}")
    return f"{scheme}://{host}{':' if port else ''}{port}"


def _read(text: str) -> tuple[str, str]:
    """Return host and port of an entry in lower case; the port is empty where none is written."""
    if not text:
        raise UnusableValueError("an empty item matches nothing; leave it out")
    if (found := _SCHEME.fullmatch(text)) is not None:
        raise UnusableValueError(f'a Host header has no scheme; write "{re.split("[/?#]", found["rest"])[0]}"')
    if "@" in text:
        raise UnusableValueError(f'a Host header has no user; write "{text.rpartition("@")[2]}"')
    if (end := re.search(r"[/?#\\]", text)) is not None:
        raise UnusableValueError(f'a Host header has no path; write "{text[: end.start()]}"')
    if re.search(r"[\s,\"']", text):
        raise UnusableValueError("write one host for each item, without quotes and blanks")
    if _is_ipv6(text):
        return _bracketed(text), ""
    found = _ENTRY.fullmatch(text)
    if found is None or ":" in (found["port"] or "") or "]" in (found["port"] or ""):
        raise UnusableValueError('an IPv6 address with a port is written "[::1]:8000"')
    return _check_host(found["host"]), _check_port(found["port"])


def _check_host(host: str) -> str:
    if host.startswith("["):
        if not _is_ipv6(host[1:-1]):
            raise UnusableValueError("brackets are for IPv6 addresses, such as [::1], without a zone")
        return _bracketed(host[1:-1])
    name = host.removeprefix(f"{ANY}.")
    if host == ANY or _NAME.fullmatch(name):
        return host
    if not host.isascii():
        raise UnusableValueError(f"clients send names in ASCII{_in_ascii(host)}")
    if ANY in name:
        raise UnusableValueError(f"{ANY} stands for all hosts, or at the start for subdomains: *.example.org")
    if host.startswith(".") and _NAME.fullmatch(host[1:]):
        raise UnusableValueError(f'write "*{host}" for subdomains, and "{host[1:]}" for the name itself')
    if host.endswith(".") and _NAME.fullmatch(name[:-1]):
        raise UnusableValueError(f'write "{host[:-1]}", without the dot at its end')
    raise UnusableValueError("this is no host name")


def _check_port(port: str | None) -> str:
    if port is None or port == ANY:
        return port or ""
    if re.fullmatch(r"[0-9]{1,5}", port) is None or not 0 < int(port) <= _LAST_PORT:
        raise UnusableValueError(f"a port is a number from 1 to {_LAST_PORT}, or {ANY} for any")
    return str(int(port))


def _in_ascii(host: str) -> str:
    try:
        return f'; write "{host.encode("idna").decode()}"'
    except UnicodeError:
        return ""


def _is_ipv6(text: str) -> bool:
    try:
        return IPv6Address(text).scope_id is None
    except ValueError:
        return False


def _bracketed(text: str) -> str:
    """Return an address as browsers write it: the shortest form, and hexadecimal where IPv4 is in it."""
    address = IPv6Address(text)
    mapped = address.ipv4_mapped
    if mapped is None:
        return f"[{address}]"
    return f"[::ffff:{int(mapped) >> 16:x}:{int(mapped) & 0xFFFF:x}]"


class _Table:
    """Which ports are admitted for which host, of one scheme or of none."""

    def __init__(self) -> None:
        self._ports: dict[str, set[str]] = {}
        self.everything = False

    def add(self, entry: str, *, bare: str) -> None:
        """Add an entry in its one form; `bare` is the port that is meant where none is written."""
        found = _ENTRY.fullmatch(entry)
        assert found is not None
        self._ports.setdefault(found["host"], set()).add(found["port"] or bare)

    def admits(self, value: str, usual: frozenset[str]) -> bool:
        """Whether a header's host and port, in lower case, are admitted. `usual` ports match where none is sent."""
        found = _SENT.fullmatch(value)
        if found is None or int(found["port"] or 0) > _LAST_PORT:
            return False
        port = str(int(found["port"])) if found["port"] is not None else None
        return any(
            ANY in ports or (port in ports if port is not None else bool(ports & usual))
            for name in _names_of(found["host"])
            if (ports := self._ports.get(name)) is not None
        )


def _names_of(host: str) -> Iterable[str]:
    """Return the host itself, and each entry with an asterisk that stands for it among others."""
    names = [host, ANY]
    if _NAME.fullmatch(host):
        labels = host.split(".")
        names += [".".join((ANY, *labels[count:])) for count in range(1, len(labels))]
    return names


class HostTable:
    """The hosts that are let in."""

    def __init__(self, hosts: Iterable[str]) -> None:
        """Take entries as an operator writes them."""
        entries = [read_host(host) for host in hosts]
        self._everything = ANY in entries
        self._table = _Table()
        for entry in entries:
            self._table.add(entry, bare=ANY)
        self._admits = lru_cache(maxsize=256)(self._judge)  # clients send the same few values for ever

    def __contains__(self, value: str) -> bool:
        """Whether a Host header is admitted."""
        return self._everything or (len(value) <= _LONGEST and self._admits(value))

    def _judge(self, value: str) -> bool:
        return self._table.admits(value.lower(), _ANY_USUAL)


class OriginTable:
    """The origins that are let in."""

    def __init__(self, any_port: Iterable[str] = (), exact: Iterable[str] = ()) -> None:
        """Take entries as an operator writes them: `any_port` match any port where none is written."""
        self._tables: dict[str, _Table] = {}
        self._whole: set[str] = set()
        for entries, bare in ((any_port, ANY), (exact, "")):
            for entry in map(read_origin, entries):
                self._add(entry, bare)
        self._admits = lru_cache(maxsize=256)(self._judge)

    def __bool__(self) -> bool:
        """Whether any origin is let in."""
        return bool(self._tables or self._whole)

    def __contains__(self, value: str) -> bool:
        """Whether an Origin header is admitted."""
        return ANY in self._whole or (len(value) <= _LONGEST and self._admits(value))

    def _add(self, entry: str, bare: str) -> None:
        found = _SCHEME.fullmatch(entry)
        if found is None:
            self._whole.add(entry)
            return
        usual = next(iter(_USUAL.get(found["scheme"], ())), "none")
        self._tables.setdefault(found["scheme"], _Table()).add(found["rest"], bare=bare or usual)

    def _judge(self, value: str) -> bool:
        value = value.lower()
        if value in self._whole:
            return True
        found = _SCHEME.fullmatch(value)
        table = self._tables.get(found["scheme"]) if found is not None else None
        if found is None or table is None:
            return False
        return table.admits(found["rest"], _USUAL.get(found["scheme"], frozenset({"none"})))
