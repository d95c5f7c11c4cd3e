"""`mcp-hybrid sessions`: what a running server holds for its clients, as its admin page tells it, and how to end it.

On a terminal a table; anywhere else one line for each session, with what scripts cut at tabs.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

import httpx2
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mcp_hybrid.client.screen import printable, say
from mcp_hybrid.errors import ConfigurationError
from mcp_hybrid.settings import Settings

PATH: Final = "/admin/sessions"
TIMEOUT: Final = 10.0
"""Seconds for an answer. A server waits 2 s for its other workers."""

_HASH: Final = re.compile(r"[0-9a-f]{8,32}")
_COLUMNS: Final = ("session", "owner", "client", "protocol", "age", "idle", "now")
_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


class RefusedError(Exception):
    """The server did not do it. The text says why, in one line."""


def list_sessions(settings: Settings, url: str | None) -> int:
    """Print the sessions that are live; the exit code to leave with is returned."""
    try:
        answer = _ask(settings, url, "GET", PATH)
    except RefusedError as error:
        say(f"error: {printable(str(error))}")
        return 1
    _print([_row(session) for session in answer["sessions"]])
    if answer["more"]:
        say(f"{answer['more']} more are live and not listed")
    if not answer["complete"]:
        say(_note(answer["workers"]))
    return 0


def end_session(settings: Settings, url: str | None, name: str) -> int:
    """End one session, named by its hash or the start of it; the exit code to leave with is returned."""
    if _HASH.fullmatch(name) is None:
        raise ConfigurationError(f"{name!r:.80} is no session's hash: 8 to 32 hexadecimal digits, as `list` shows them")
    try:
        answer = _ask(settings, url, "DELETE", f"{PATH}/{name}")
    except RefusedError as error:
        say(f"error: {printable(str(error))}")
        return 1
    print(f"ended {answer['ended']}")  # noqa: T201  # this is the command's output
    if not answer["everywhere"]:
        say(
            "note: only the worker that was asked knows it: the workers share no backplane, and another may bring the "
            "session back"
        )
    return 0


def _ask(settings: Settings, url: str | None, method: str, path: str) -> Mapping[str, Any]:
    """Send one request to the admin page and return what it says.

    Raises:
        ConfigurationError: There is no key to send, or no URL to send it to.
        RefusedError: The server is not there, or will not.
    """
    key = settings.operator.admin_key
    if key is None:
        raise ConfigurationError(
            "operator.admin_key is not set: give the server's own by MCP_HYBRID_OPERATOR__ADMIN_KEY or --config"
        )
    base = _base(settings) if url is None else url.rstrip("/")
    try:
        answer = httpx2.request(
            method, base + path, headers={"authorization": f"Bearer {key.get_secret_value()}"}, timeout=TIMEOUT
        )
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol):
        raise ConfigurationError(f"--url: {url!r} is not accepted; expected one like http://127.0.0.1:8000") from None
    except httpx2.ConnectError:
        raise RefusedError(f"cannot connect to {base}: is a server running there?") from None
    except httpx2.HTTPError as error:
        raise RefusedError(f"the connection to {base} broke ({type(error).__name__})") from None
    return _read(answer, base)


def _read(answer: httpx2.Response, base: str) -> Mapping[str, Any]:
    try:
        body = answer.json()
        if answer.status_code == 200:
            return {**body}
        why = body["error"]["message"]
    except (ValueError, TypeError, KeyError):
        raise RefusedError(f"{base} did not answer as mcp-hybrid does (HTTP {answer.status_code})") from None
    if answer.status_code == 404 and "MCP endpoint" in why:
        why = "there is no admin page: is operator.admin_key set there, and has the page a port of its own?"
    raise RefusedError(f"{why} (HTTP {answer.status_code} from {base})")


def _base(settings: Settings) -> str:
    """Return where a server with these settings has its pages, seen from this machine."""
    own = settings.operator.port
    host, port = (settings.operator.host, own) if own else (settings.server.host, settings.server.port)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "::1"}.get(host, host).strip("[]")  # noqa: S104  # read, not bound
    scheme = "https" if settings.server.certfile is not None and not own else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _row(session: Mapping[str, Any]) -> tuple[str, ...]:
    doing = {
        "calls": f"{session['calls']} calls",
        "questions": f"{session['questions']} questions",
        "stream": "stream",
        "pinned": "pinned",
    }
    return (
        session["session"],
        session["owner"],
        f"{session['client']} {session['client_version']}",
        session["protocol"],
        _span(time.time() - session["issued"]),
        _span(session["idle"]),
        ", ".join(words for name, words in doing.items() if session[name]) or "idle",
    )


def _span(seconds: float) -> str:
    """Return a length of time as people say it: in the largest unit of which there is one."""
    seconds = max(0, int(seconds))
    size, unit = next((each for each in _UNITS if seconds >= each[0]), _UNITS[-1])
    return f"{seconds // size}{unit}"


def _print(rows: Iterable[tuple[str, ...]]) -> None:
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(_cell(text) for text in row))  # noqa: T201  # this is the command's output
        return
    table = Table(*_COLUMNS, box=None, header_style="bold", padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(Text(_cell(text), overflow="fold") for text in row))  # what a client calls itself is not markup
    Console().print(table)


def _cell(text: str) -> str:
    """Return text that stays in its place: what a client calls itself may hold anything."""
    return " ".join(printable(text).split())


def _note(workers: int) -> str:
    return f"note: {workers} of the server's workers answered; the others' sessions are not listed"


__all__ = ["RefusedError", "end_session", "list_sessions"]
