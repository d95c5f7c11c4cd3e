"""What an operator can set, in which words, and which source wins.

Command line > environment `MCP_HYBRID_…` > TOML file > defaults. `Settings(...)` built in Python reads none of them:
only `load` looks outside, and it remembers where each value came from, so that `mcp-hybrid check` and every error can
say so.

How a single value is written and checked is in `values`.
"""

# The sources of pydantic-settings are not used: its environment source reads `os.environ` only, no source remembers
# which of them a value came from, and none objects to a misspelt variable. With those three done here, what would be
# left for it is `tomllib.loads` and one dictionary merge.

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from mcp_hybrid.backplane import LogLimits
from mcp_hybrid.errors import ConfigurationError, UnusableValueError
from mcp_hybrid.masking import masked
from mcp_hybrid.routing.modes import Mode, ProgressPolicy, UnknownSession
from mcp_hybrid.runtime.names import RuntimeName
from mcp_hybrid.security.limits import Bounds
from mcp_hybrid.values import (
    Accepts,
    AdminKey,
    Algorithms,
    Audiences,
    BackplaneUrl,
    Choice,
    Count,
    CountOrNone,
    Depth,
    Duration,
    FilePath,
    Flag,
    Host,
    Hosts,
    KeySetSource,
    Origins,
    OwnPort,
    Port,
    PositiveDuration,
    Rate,
    Scopes,
    SecureUrl,
    SecureUrls,
    SessionKeys,
    Size,
    SizeOrNone,
    Target,
    UrlPath,
    decode_key,
    decode_rate,
)

__all__ = [
    "CONFIG_VARIABLE",
    "FIELDS",
    "PREFIX",
    "Accepts",
    "AuthSettings",
    "CorsSettings",
    "LimitSettings",
    "Loaded",
    "LogFormat",
    "LogLevel",
    "LogSettings",
    "OperatorSettings",
    "SecuritySettings",
    "ServerSettings",
    "SessionSettings",
    "Settings",
    "decode_key",
    "load",
    "to_display",
    "variable",
]

PREFIX: Final = "MCP_HYBRID_"
CONFIG_VARIABLE: Final = f"{PREFIX}CONFIG"
"""Names the TOML file. Not a setting itself: a file cannot say which file is read."""


class LogLevel(StrEnum):
    """The least severe log line that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """What a log line looks like."""

    AUTO = "auto"
    """`console` on a terminal, else `json`."""
    CONSOLE = "console"
    JSON = "json"


# The models


class _Section(BaseModel):
    # hide_input_in_errors: the error that Python callers see must not print a session key either
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True)


class SessionSettings(_Section):
    """How long sessions live and what seals their ids."""

    keys: SessionKeys = []
    """Keys that seal session ids: the first seals, all of them open. None: one is made at start."""
    max_age: PositiveDuration = 7 * 86400.0
    """A session ends this long after it began."""
    idle_timeout: PositiveDuration = 300.0
    """A session that did nothing for this long gives its memory back until its next request."""
    max_live: Count = 10_000
    """Sessions that may hold memory at a time; beyond it the longest idle ones give theirs back."""
    max_live_per_owner: CountOrNone = 1000
    """The same for the sessions of one authenticated owner, so that nobody crowds out the others. 0: no limit."""
    max_questions: Count = 1000
    """Questions to clients that may wait for an answer at a time; beyond it tools cannot ask."""
    max_questions_per_session: Count = 32
    """The same for the questions of one session."""
    max_ended: Count = 200_000
    """Ended sessions that are remembered one by one; beyond it the sessions that began first are over, all of them."""
    log_bytes: Size = 64 * 2**20
    """Bytes that event logs may hold for clients that come back; beyond it those that are needed least are dropped."""
    result_bytes: Size = 8 * 2**20
    """Bytes of a call's result up to which it is kept for a client that lost the connection."""

    def log_limits(self, request_timeout: float) -> LogLimits:
        """Return what event logs may hold. One outlives the longest call, or nobody could come back for its end."""
        age = max(LogLimits().age, request_timeout + 60)
        return LogLimits(result_bytes=self.result_bytes, total_bytes=self.log_bytes, age=age)

    def decoded_keys(self) -> list[bytes]:
        """Return the keys as bytes, 32 each, in order."""
        return [decode_key(key.get_secret_value()) for key in self.keys]


class LimitSettings(_Section):
    """What a single request may cost, and what one client may take of the server. Each process counts for itself."""

    headers: Size = 32 * 2**10
    """Bytes a request's head may have; each header counts its name, its value and 32 bytes, as in HTTP/2."""
    body: Size = 4 * 2**20
    """Bytes a request's body may have."""
    body_time: PositiveDuration = 30.0
    """A request whose body has not arrived after this long is refused, and its connection closed."""
    depth: Depth = 64
    """How deep the arrays and objects of a body may be nested."""
    write_time: PositiveDuration = 60.0
    """A connection whose client does not take one write in this time is closed. `serve` and Hypercorn only."""
    connections: CountOrNone = 5000
    """Connections that may be open, as far as open files allow. Beyond it, idle ones of the address with the most give
    way to those of others, and further ones are closed at once. `serve` and Hypercorn only. 0: no limit."""
    requests: CountOrNone = 1000
    """Requests that may be answered at a time. 0: no limit."""
    requests_per_owner: CountOrNone = 250
    """The same for one owner; where nobody is authenticated, for one client address. 0: no limit."""
    streams_per_owner: CountOrNone = 250
    """Streams without an end of their own (GET, resumed, subscriptions/listen) that one owner may hold. 0: no limit."""
    rate_per_owner: Rate = "1000/s"
    """Requests of one owner in a time, such as "100/s": as many at once, then evenly. Empty: no limit."""
    bodies: SizeOrNone = 64 * 2**20
    """Bytes of large bodies that may be read and answered at a time. 0: no limit."""
    bodies_per_owner: SizeOrNone = 16 * 2**20
    """The same for one owner. 0: no limit."""

    tool_threads: Count = 40
    """Threads in which blocking (`def`) tools may run at a time, one owner's in at most three quarters of them.

    A call that gets none in time is told to try later.
    """

    def bounds(self) -> Bounds:
        """Return the limits that are kept by counting requests."""
        rate = decode_rate(self.rate_per_owner)
        return Bounds(
            self.requests,
            self.requests_per_owner,
            self.streams_per_owner,
            rate,
            self.bodies,
            self.bodies_per_owner,
        )


class SecuritySettings(_Section):
    """Which Host and Origin headers are served, against DNS rebinding."""

    allowed_hosts: Hosts = ["127.0.0.1", "localhost", "[::1]"]
    """Host headers that are served. Without a port: on any port. "*.example.org": subdomains. "*": every host."""
    allowed_origins: Origins = ["http://127.0.0.1", "http://localhost", "http://[::1]"]
    """Origin headers that are served; a request without one always is. Without a port: on any port."""


class AuthSettings(_Section):
    """Who is let in. Nothing set: everybody, which `mcp-hybrid serve` does on loopback addresses only."""

    allow_anonymous: Flag = False
    """Serve everybody on any address, without authentication."""
    api_keys: FilePath = None
    """The file that lists API keys (`mcp-hybrid api-key new` makes them). None: there are none."""
    issuer: SecureUrl = None
    """Whose JWTs are taken: exactly what they have as `iss`. None: no JWTs."""
    audience: Audiences = []
    """Of the JWTs, those that have one of these as `aud`. None: those that have `auth.resource`."""
    jwks: KeySetSource = None
    """The issuer's public keys: a URL, or a file."""
    algorithms: Algorithms = ["RS256", "PS256", "ES256", "EdDSA"]
    """Signature algorithms that are taken."""
    clock_skew: Duration = 60.0
    """How far the issuer's clock and this one may be apart."""
    required_scopes: Scopes = []
    """Scopes that every request needs, by JWT or API key."""
    resource: SecureUrl = None
    """Where the public reaches the endpoint. None: read off each request."""
    authorization_servers: SecureUrls = []
    """Where clients get tokens. None: the issuer."""


class CorsSettings(_Section):
    """Which web pages may read the answers."""

    allowed_origins: Origins = []
    """Origins of web pages that may call the endpoint from a browser. None: no CORS headers are sent."""


class LogSettings(_Section):
    """What is logged, and how."""

    level: Annotated[LogLevel, Choice] = LogLevel.INFO
    """The least severe log line that is written."""
    format: Annotated[LogFormat, Choice] = LogFormat.AUTO
    """auto is console on a terminal, else json."""


class ServerSettings(_Section):
    """The listening process, for `mcp-hybrid serve` only."""

    host: Host = "127.0.0.1"
    """Address to listen on."""
    port: Port = 8000
    """Port to listen on; 0 takes any free one."""
    workers: Count = 1
    """Processes that share the port. From 2 up, those that die are replaced, and SIGHUP reloads."""
    drain_timeout: Duration = 30.0
    """What running requests have to finish when the server is told to stop; then they are answered with an error."""
    certfile: FilePath = None
    """Certificate chain in PEM, to serve HTTPS. None: HTTP."""
    keyfile: FilePath = None
    """Its private key in PEM."""


class OperatorSettings(_Section):
    """What an operator sees of a running server: probes, metrics, and the sessions that are live."""

    host: Host = "127.0.0.1"
    """Address that the operator's pages listen on, if they have a port of their own."""
    port: OwnPort = 0
    """Port of the operator's pages, which are then served nowhere else; 0 is the endpoint's own."""
    metrics: Flag = True
    """Whether /metrics is served."""
    admin_key: AdminKey = None
    """What opens /admin/sessions, which is not served without it."""


class Settings(_Section):
    """Everything an operator can set. Immutable; reads nothing but its arguments (see `load`)."""

    mode: Annotated[Mode, Choice] = Mode.HYBRID
    """Which ways of serving are offered."""
    target: Target = None
    """The server to serve. None: the built-in demo."""
    runtime: Annotated[RuntimeName, Choice] = RuntimeName.AUTO
    """What runs the server's code: Trio, an asyncio event loop in a thread of its own, or what the code needs."""
    path: UrlPath = "/mcp"
    """URL path of the endpoint."""
    progress: Annotated[ProgressPolicy, Choice] = ProgressPolicy.SESSION
    """Which requests that sent a progress token get progress."""
    unknown_session: Annotated[UnknownSession, Choice] = UnknownSession.REJECT
    """What a POST with an unknown or expired session id gets."""
    stream_after: Duration = 1.0
    """A call in a session that takes longer than this turns into a stream."""
    request_timeout: PositiveDuration = 300.0
    """A request that takes longer than this is cancelled."""
    backplane: BackplaneUrl = "memory"
    """What the workers share: nothing but one process's memory, or a Redis."""
    sessions: SessionSettings = SessionSettings()
    limits: LimitSettings = LimitSettings()
    security: SecuritySettings = SecuritySettings()
    auth: AuthSettings = AuthSettings()
    cors: CorsSettings = CorsSettings()
    log: LogSettings = LogSettings()
    server: ServerSettings = ServerSettings()
    operator: OperatorSettings = OperatorSettings()


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


FIELDS: Final[Mapping[str, FieldInfo]] = dict(_fields(Settings))
"""Every setting by its dotted key, as it is written in the TOML file."""


SECRETS: Final = frozenset({"sessions.keys", "operator.admin_key"})
"""Settings whose values are not shown. What is wrong with one is said by its validator."""


# Layers


@dataclass(frozen=True)
class Loaded:
    """Effective settings, and for each dotted key where its value came from."""

    settings: Settings
    origins: Mapping[str, str]
    overrides: Mapping[str, Any]
    config: Path | None
    """What `load` was given, for whoever reads the settings again."""


def load(
    overrides: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    config: Path | None = None,
    overrides_origin: str = "command line",
) -> Loaded:
    """Merge overrides, environment, TOML file and defaults, in this order of priority.

    `overrides` are nested or have dotted keys (`{"server.port": 80}`). The file is `config`, else the one that
    `MCP_HYBRID_CONFIG` names, else none. Raises ConfigurationError for an unknown key or a value that is not accepted.
    """
    environ = os.environ if environ is None else environ
    layers = (_from_file(environ, config), _from_environment(environ), _from_mapping(overrides or {}, overrides_origin))
    given: dict[str, tuple[Any, str]] = {key: (value, origin) for layer in layers for key, value, origin in layer}
    origins = {key: given[key][1] if key in given else "default" for key in FIELDS}
    try:
        settings = Settings.model_validate(_nested({key: value for key, (value, _) in given.items()}))
    except ValidationError as error:
        raise ConfigurationError(_explain(error, given)) from None
    return Loaded(settings, origins, overrides or {}, config)


_Layer = Iterable[tuple[str, Any, str]]


def _from_file(environ: Mapping[str, str], config: Path | None) -> _Layer:
    named = environ.get(CONFIG_VARIABLE)
    path = Path(named) if config is None and named else config
    if path is None:
        return ()
    try:
        return _from_mapping(tomllib.loads(path.read_text(encoding="utf-8")), f"file {path}")
    except OSError as error:
        raise ConfigurationError(f"configuration file {path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise ConfigurationError(f"configuration file {path} is not TOML: {_one_line(error)}") from None


def _from_environment(environ: Mapping[str, str]) -> _Layer:
    known = {variable(key): key for key in FIELDS}
    for name, value in environ.items():
        if not name.startswith(PREFIX) or name == CONFIG_VARIABLE:
            continue
        if name not in known:
            nearest = _nearest(name, [*known, CONFIG_VARIABLE])
            raise ConfigurationError(f"unknown environment variable {name}; the nearest is {nearest}")
        yield known[name], value, f"environment {name}"


def _from_mapping(values: Mapping[str, Any], origin: str, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and (value or key in Settings.model_fields):
            yield from _from_mapping(value, origin, f"{key}.")
        elif key in FIELDS:
            yield key, value, origin
        else:
            raise ConfigurationError(f'unknown setting "{key}" ({origin}); the nearest is "{_nearest(key, FIELDS)}"')


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (result.setdefault(section, {}) if section else result)[name] = value
    return result


def variable(key: str) -> str:
    """Return the environment variable of a dotted key: `server.port` is `MCP_HYBRID_SERVER__PORT`."""
    return PREFIX + key.upper().replace(".", "__")


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    # "port" is nearer to "server.port" for a person than to "path", which has more letters in common
    in_section = [key for key in names if key.endswith((f".{name}", f"__{name.removeprefix(PREFIX)}"))]
    return (in_section or get_close_matches(name, names, n=1, cutoff=0.0))[0]


# Words about values


def _explain(error: ValidationError, given: Mapping[str, tuple[Any, str]]) -> str:
    """Return one line about the first fault; the others follow once it is put right."""
    first = error.errors(include_url=False)[0]
    parts = [str(part) for part in first["loc"]]
    key = parts[0] if parts[0] in FIELDS else ".".join(parts[:2])
    value, origin = given[key]
    reason = first.get("ctx", {}).get("error")
    if key in SECRETS:
        what = first["msg"].removeprefix("Value error, ")
    else:
        in_list = len(parts) > len(key.split("."))  # then the one item that is wrong says more than the whole list
        what = f"{masked(repr(first['input'] if in_list else value)):.80} is not accepted"
        if isinstance(reason, UnusableValueError):
            what += f": {masked(str(reason))}"
    return _one_line(f"{key} ({origin}): {what}; expected {_accepted(FIELDS[key])}")


def _accepted(field: FieldInfo) -> str:
    if isinstance(field.annotation, type) and issubclass(field.annotation, StrEnum):
        *others, last = (str(member) for member in field.annotation)
        return f"{', '.join(others)} or {last}"
    return [item.text for item in field.metadata if isinstance(item, Accepts)][-1]


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _rendered(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case list():
            return ",".join(_rendered(item) for item in value)
        case SecretStr():
            return value.get_secret_value()
        case float():
            return repr(value).removesuffix(".0")
        case _:
            return str(value)


def to_display(settings: Settings) -> dict[str, str]:
    """Return each setting as text that may be shown to anyone: without session keys and passwords."""
    shown = {key: masked(_rendered(attrgetter(key)(settings))) for key in FIELDS}
    shown["sessions.keys"] = str(len(settings.sessions.keys))
    shown["operator.admin_key"] = "set" if settings.operator.admin_key is not None else ""
    return shown
